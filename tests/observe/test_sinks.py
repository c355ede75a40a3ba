"""Where entries end up: what is not taken is said, and nothing waits."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from stapsrv.errors import ConfigError
from stapsrv.observe.sinks import JournalSink


def test_journal_is_missing(tmp_path):
    with pytest.raises(ConfigError) as caught:
        JournalSink(tmp_path / "journal")
    assert str(caught.value) == (
        f"log format journal: the systemd journal does not listen at {tmp_path}/journal (No such file or "
        "directory); use classic or json where systemd does not run"
    )


def test_journal_that_does_not_read_holds_nobody_up(tmp_path, journal):
    sink = JournalSink(tmp_path / "journal")
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while taken < 100_000:
            sink.write(b"MESSAGE=x\n")
            taken += 1
    assert 0 < taken < 100_000
    sink.close()


def test_entry_longer_than_a_datagram(tmp_path, journal):
    """It comes as a sealed file, which is how the journal wants it."""
    sink = JournalSink(tmp_path / "journal")
    entry = b"MESSAGE=" + b"x" * 4_000_000 + b"\n"
    sink.write(entry)
    sink.close()
    data, descriptors, _, _ = socket.recv_fds(journal, 1, 1)
    (fd,) = descriptors
    with open(fd, "rb") as file:
        file.seek(0)
        assert (data, file.read()) == (b"", entry)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"y", 0)
