"""Writes what a server made into a directory, each file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from stapsrv.client.errors import ClientError
from stapsrv.client.response import Result
from stapsrv.system.atomic_file import replace_file

MOK_CERTIFICATE = "signing_key.x509"
_FILE_MODE = 0o644


def write_result(result: Result, directory: Path, *, keep: bool = False) -> Path | None:
    """Write a module, its signature and a key to be enrolled; return the module's path if there is one.

    The signature is there before the module is. With ``keep`` all files go to ``NAME.files`` beside it, in
    place of any such directory before.

    Raises:
        ClientError: a file cannot be written; what is there is whole.
    """
    with _explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        if result.mok_certificate is not None:
            replace_file(directory / MOK_CERTIFICATE, result.mok_certificate, mode=_FILE_MODE)
        if keep and result.files:
            name = (result.module_name or "stap").removesuffix(".ko")
            _write_tree(directory / f"{name}.files", result.files)
        if result.module is None or result.module_name is None:
            return None
        path = directory / result.module_name
        signature = path.with_name(f"{path.name}.sgn")
        if result.signature is not None:
            replace_file(signature, result.signature, mode=_FILE_MODE)
        else:
            # That of another module would only mislead.
            signature.unlink(missing_ok=True)
        replace_file(path, result.module, mode=_FILE_MODE)
        return path


def _write_tree(target: Path, files: Mapping[str, bytes]) -> None:
    # Made aside and moved as a whole.
    new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        made = new / target.name
        for name, data in files.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if target.exists():
            target.rename(new / "before")
        made.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        where = os.fspath(exc.filename or directory)
        raise ClientError(
            f"cannot be written ({exc.strerror})", where=where, remedy="name another with -o"
        ) from exc
