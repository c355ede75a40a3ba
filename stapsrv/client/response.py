"""Reads a server's response: the zip becomes a :class:`Result`, as the real client understands it. Pure.

A response is foreign input: it is read by the rules for a request's zip, and what names its files have can be
appended to a directory's. Source: PROTOCOL, the response zip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from stapsrv.client.options import LAST_PASS
from stapsrv.compile.protocol.archive import read_archive
from stapsrv.errors import ProtocolError
from stapsrv.rejection import RejectReason
from stapsrv.text import printable_bytes

MAX_FILES_BYTES = 512 * 1024 * 1024
"""Of all files of a response together."""

_DIRECTORY = re.compile(rb"stap.{6}/", re.DOTALL)
_EXIT_STATUS = re.compile(rb"\s*(-?[0-9]{1,10})\s*")
_MODULE = re.compile(r"[\w.-]+\.ko", re.ASCII)
# The server's own way to say where it put the module.
_MODULE_LINE = re.compile(rb"^[^\n]*\.ko(?:\n|\Z)", re.MULTILINE)
_MOK_CERTIFICATE = b"signing_key.x509"


def _size(data: bytes | None) -> str:
    return "None" if data is None else f"<{len(data)} bytes>"


@attrs.frozen(kw_only=True)
class Result:
    r"""The result of a script.

    Attributes:
        status: as stap's own client would exit: 0, or 1 if there is no module, or whatever was asked for.
        module: the kernel module, where pass 4 made one.
        module_name: of its file, such as ``stap_1234.ko``.
        signature: of the module, by the server, for users with restricted privileges.
        files: all that the server made, by path: sources and objects, as far as it sends them.
        stdout: what stap printed, less the lines that name the module; what is not UTF-8 is shown as
            ``\xNN``.
        stderr: what stap and the server said.
        problem: what the client itself has to say of a response that lacks something, or None.
        mok_certificate: in DER: the target's kernel takes no module until it is enrolled there.
        version: of the server's protocol.
    """

    status: int
    module: bytes | None = attrs.field(default=None, repr=_size)
    module_name: str | None = None
    signature: bytes | None = attrs.field(default=None, repr=_size)
    files: Mapping[str, bytes] = attrs.field(factory=dict, repr=lambda files: repr(sorted(files)))
    raw_stdout: bytes = attrs.field(default=b"", repr=False)
    raw_stderr: bytes = attrs.field(default=b"", repr=False)
    problem: str | None = None
    mok_certificate: bytes | None = attrs.field(default=None, repr=_size)
    version: str = "1.0"

    @property
    def stdout(self) -> str:
        """See above."""
        return self.raw_stdout.decode("utf-8", "backslashreplace")

    @property
    def stderr(self) -> str:
        """See above."""
        return self.raw_stderr.decode("utf-8", "backslashreplace")


def read_response(data: bytes, *, last_pass: int) -> Result:
    """Read the zip that a server sent for a request up to this pass; a broken one is a ProtocolError."""
    entries = _unpack(data)
    files = {
        _text(path[match.end() :]): content
        for path, content in entries.items()
        if (match := _DIRECTORY.match(path))
    }
    status, module_name, problem = _judge(entries, files, last_pass=last_pass)
    return Result(
        status=status,
        module=None if module_name is None else files[module_name],
        module_name=module_name,
        signature=files.get(f"{module_name}.sgn"),
        files=files,
        raw_stdout=_MODULE_LINE.sub(b"", entries.get(b"stdout", b"")),
        raw_stderr=entries.get(b"stderr", b""),
        problem=problem,
        mok_certificate=entries.get(_MOK_CERTIFICATE),
        version=printable_bytes(entries.get(b"version", b"").strip(), limit=20) or "1.0",
    )


def _unpack(data: bytes) -> dict[bytes, bytes]:
    try:
        archive = read_archive(data, max_bytes=MAX_FILES_BYTES)
    except ProtocolError as exc:
        # The reader speaks of requests, which it was made for.
        problem = exc.problem.replace("The request's zip", "its zip")
        if exc.reject_reason is RejectReason.REQUEST_SIZE:
            problem = f"its files have more than {MAX_FILES_BYTES >> 20} MiB"
        raise ProtocolError(
            f"the response is not that of a compile server, or was cut short: {problem}"
        ) from exc
    return {file.path: file.data for file in archive.files}


def _judge(
    entries: Mapping[bytes, bytes], files: Mapping[str, bytes], *, last_pass: int
) -> tuple[int, str | None, str | None]:
    """Return the exit status, the module's name and the client's own message."""
    stated = _EXIT_STATUS.fullmatch(entries.get(b"rc", b""))
    if stated is None:
        return 1, None, "the server sent no exit status: it may not serve this kernel release"
    if int(stated[1]) != 0:
        return 1, None, None
    if last_pass < LAST_PASS:
        return 0, None, None
    modules = [name for name in files if name.endswith(".ko") and "/" not in name]
    if not modules:
        return 1, None, "No module was returned by the server."
    if len(modules) > 1 or not _MODULE.fullmatch(modules[0]):
        return 1, None, "Incorrect number of modules in server response"
    return 0, modules[0], None


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
