"""Log lines to a descriptor that was inherited."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from stapsrv.errors import ConfigError
from stapsrv.observe.logs import Channel, LogBook, open_log
from stapsrv.observe.sinks import FileSink, StreamSink, stream_descriptor


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
    lines = read_all(reading).splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "Received signal 15, exiting",
        "Received signal 1, exiting",
    ]
    assert lines[0].endswith(": Received signal 15, exiting")
    book.close()


def test_reader_that_stalls_costs_lines_and_no_time(ends):
    reading, writing = ends
    sink = StreamSink(Path("/dev/stdout"), writing)
    log = open_log(Channel(sink))
    for number in range(1000):
        log.info("request.options", options=f"{number} " + "x" * 6000)
    first = read_all(reading)
    log.info("server.serial")
    lines = [line.partition(" client: ")[2] or line for line in (first + read_all(reading)).splitlines()]
    whole = [line for line in lines if line.endswith("x" * 6000)]
    assert [int(line.split()[0]) for line in whole] == list(range(len(whole)))
    assert 0 < len(whole) < 1000
    told, last = lines[len(whole) :]
    assert told.endswith(f" {1000 - len(whole)} log lines were lost while the log could not be written")
    assert last.endswith(" Concurrency disabled")
    sink.close()


def test_a_stream_is_not_doubled_on_the_terminal(ends, tmp_path):
    reading, writing = ends
    terminal = FileSink(tmp_path / "terminal")
    book = LogBook(terminal=terminal)
    book.open(Path(f"/dev/fd/{writing}")).info("x")
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
