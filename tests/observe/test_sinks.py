"""Where log entries go: files that are rotated, inherited descriptors, the systemd journal."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from stapsrv.errors import ConfigError
from stapsrv.observe.logs import LogBook
from stapsrv.observe.sinks import FileSink, JournalSink, StreamSink, stream_descriptor


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


@pytest.mark.parametrize(
    ("path", "descriptor"),
    [
        ("/dev/stdout", 1),
        ("/dev/stderr", 2),
        ("/dev/fd/12", 12),
        ("/proc/self/fd/3", 3),
        ("/dev/null", None),
        ("/dev/fd/x", None),
        ("/var/log/stap-server/log", None),
    ],
)
def test_names(path, descriptor):
    assert stream_descriptor(Path(path)) == descriptor


@pytest.fixture(params=["pipe", "socket"])
def ends(request):
    """What a container's output is, and what a service manager's is."""
    if request.param == "pipe":
        reading, writing = os.pipe()
    else:
        pair = socket.socketpair()
        reading, writing = (end.detach() for end in pair)
    os.set_blocking(reading, False)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def read_all(reading: int) -> str:
    data = b""
    while True:
        try:
            data += os.read(reading, 1 << 20)
        except BlockingIOError:
            return data.decode()


def test_lines_arrive(ends):
    reading, writing = ends
    book = LogBook()
    log = book.open(Path(f"/dev/fd/{writing}"))
    log.info("server.signal", signal=15)
    book.reopen()
    log.info("server.signal", signal=1)
    book.flush()
    lines = read_all(reading).splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "Received signal 15, exiting",
        "Received signal 1, exiting",
    ]
    assert lines[0].endswith(": Received signal 15, exiting")
    book.close()


def test_reader_that_stalls_costs_lines_and_no_time(ends):
    reading, writing = ends
    book = LogBook()
    log = book.open(Path(f"/dev/fd/{writing}"))
    for number in range(1000):
        log.info("request.options", options=f"{number} " + "x" * 6000)
    book.flush()
    first = read_all(reading)
    log.info("server.serial")
    book.flush()
    lines = [line.partition(" client: ")[2] or line for line in (first + read_all(reading)).splitlines()]
    whole = [line for line in lines if line.endswith("x" * 6000)]
    assert [int(line.split()[0]) for line in whole] == list(range(len(whole)))
    assert 0 < len(whole) < 1000
    told, last = lines[len(whole) :]
    assert told.endswith(f" {1000 - len(whole)} log lines were lost while the log could not be written")
    assert last.endswith(" Concurrency disabled")
    assert book.dropped == 1000 - len(whole)
    book.close()


def test_a_stream_is_not_doubled_on_the_terminal(ends, tmp_path):
    reading, writing = ends
    terminal = FileSink(tmp_path / "terminal")
    book = LogBook(terminal=terminal)
    book.open(Path(f"/dev/fd/{writing}")).info("x")
    book.flush()
    assert read_all(reading).endswith(": x\n")
    assert terminal.path.read_text() == ""
    book.close()


def test_reader_that_left_costs_lines_only(ends):
    reading, writing = ends
    other = os.dup(reading)
    sink = StreamSink(Path("/dev/stdout"), writing)
    os.dup2(os.open("/dev/null", os.O_RDONLY), reading)
    os.close(other)
    with pytest.raises(BlockingIOError):
        sink.write(b"gone\n")
    sink.close()


@pytest.mark.parametrize("path", ["/dev/fd/999", "/dev/fd/reading"])
def test_descriptor_that_is_not_for_writing(path):
    reading, writing = os.pipe()
    name = path.replace("reading", str(reading))
    with pytest.raises(
        ConfigError, match=r"^log /dev/fd/\d+: cannot be written \(Bad file descriptor\); start"
    ):
        LogBook().open(Path(name))
    os.close(reading)
    os.close(writing)
