"""A systemd journal as far as one that logs sees it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest


def journal_fields(entry: bytes) -> dict[str, str]:
    """Read an entry in the journal's own form, as the journal does."""
    fields: dict[str, str] = {}
    while entry:
        line, _, entry = entry.partition(b"\n")
        name, is_short, value = line.partition(b"=")
        if not is_short:
            (length,) = struct.unpack("<Q", entry[:8])
            value, end, entry = entry[8 : 8 + length], entry[8 + length : 9 + length], entry[9 + length :]
            assert end == b"\n"
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def make_journal(tmp_path: Path) -> Callable[[], socket.socket]:
    def make() -> socket.socket:
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.bind(str(tmp_path / "journal"))
        receiver.settimeout(60)
        return receiver

    return make


@pytest.fixture
def journal(make_journal: Callable[[], socket.socket]):
    with make_journal() as receiver:
        yield receiver
