"""Keys of certificate databases, made small and exported once: slow work that few tests are about."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import anyio.to_thread
import pytest
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from stapsrv.identity import mok, selfsigned
from stapsrv.identity.nss import Database

_exported: dict[tuple[bytes, bytes, str], list[PrivateKeyTypes]] = {}
_export = Database._private_keys


@pytest.fixture
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let new keys be small, and each key be exported from equal databases once for all tests."""
    monkeypatch.setattr(Database, "_private_keys", _private_keys)
    with small_keys():
        yield


@contextlib.contextmanager
def small_keys() -> Iterator[None]:
    """Let keys be small that are made within the block: those of the real size take a second each."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (mok, selfsigned):
            patch.setattr(module, "_KEY_BITS", 2048)
        yield


async def _private_keys(database: Database, nickname: str) -> list[PrivateKeyTypes]:
    before = await anyio.to_thread.run_sync(_content, database)
    known = (before, database._password_line, nickname)
    if known in _exported:
        return _exported[known]
    keys = await _export(database, nickname)
    if keys and await anyio.to_thread.run_sync(_content, database) == before:
        _exported[known] = keys
    return keys


def _content(database: Database) -> bytes:
    try:
        return hashlib.sha256((database.directory / "key4.db").read_bytes()).digest()
    except OSError:
        return b""
