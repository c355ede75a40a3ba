"""Identities that tests share, since RSA keys are slow to make, and a log that remembers."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
import structlog
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from stapsrv.identity.certificate import Identity, load_or_create_identity
from stapsrv.identity.nss import DATABASE_FILES


@attrs.frozen
class Log:
    """A logger, and the entries that it got."""

    capture: LogCapture = attrs.field(factory=LogCapture)

    @property
    def logger(self) -> FilteringBoundLogger:
        return structlog.wrap_logger(
            None, processors=[self.capture], wrapper_class=structlog.make_filtering_bound_logger(0)
        )

    @property
    def events(self) -> list[str]:
        return [entry["event"] for entry in self.capture.entries]

    def entry(self, event: str) -> Mapping[str, Any]:
        (entry,) = (entry for entry in self.capture.entries if entry["event"] == event)
        return entry


@pytest.fixture
def log() -> Log:
    return Log()


def _make(directory: Path) -> Identity:
    async def make() -> Identity:
        return await load_or_create_identity(directory, log=Log().logger)

    return anyio.run(make)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """An identity in a directory that no test may change."""
    return _make(tmp_path_factory.mktemp("made") / "server")


@pytest.fixture(scope="session")
def another(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """The identity of another server."""
    return _make(tmp_path_factory.mktemp("another") / "server")


@pytest.fixture
def identity(made: Identity, tmp_path: Path) -> Identity:
    """An identity in a directory of the test's own."""
    return attrs.evolve(made, directory=shutil.copytree(made.directory, tmp_path / "server"))


def contents(directory: Path) -> dict[str, bytes]:
    """Everything in a directory but the lock."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def names(directory: Path) -> list[str]:
    """The names of all that is in a directory."""
    return sorted(path.name for path in directory.iterdir())


# Blocking, and named here so that async tests may do them without a word.


def new_directory(path: Path) -> Path:
    path.mkdir()
    return path


def set_mode(path: Path, mode: int) -> None:
    path.chmod(mode)


def make_read_only(directory: Path) -> None:
    for path in (*directory.iterdir(), directory):
        path.chmod(path.stat().st_mode & ~0o222)


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def remove(path: Path) -> None:
    path.unlink()


def modes(directory: Path) -> dict[str, int]:
    """The permissions of a database directory ('.') and of the files of a database in it."""
    names = (".", *DATABASE_FILES, "stap.cert")
    return {name: (directory / name).stat().st_mode & 0o7777 for name in names if (directory / name).exists()}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Keep an SQLite file to ourselves."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 16)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: dict[str, Callable[[Path], None]] = {
    f"{damage.__name__} {name}": lambda directory, damage=damage, name=name: damage(directory / name)
    for damage in (truncate, overwrite, empty, Path.unlink)
    for name in ("cert9.db", "key4.db")
}
"""Ways to lose a database for good."""

needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root is refused nothing")
