"""A log in a thread of its own: a file system that hangs costs lines, and nobody waits."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import anyio
import pytest

from stapsrv.observe.logs import LogBook
from stapsrv.observe.sinks import FileSink
from stapsrv.observe.writer import MAX_ENTRIES

LOST = " log lines were lost while the log could not be written"


class Gate:
    """Holds up every write to the files of ``path``, as a dead file system does, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self._open = threading.Event()
        self._open.set()
        self.met = threading.Event()
        real = FileSink._moved_away

        def wait(sink: FileSink, fd: int) -> bool:
            if sink.path == path:
                self.met.set()
                assert self._open.wait(60)
            return real(sink, fd)

        monkeypatch.setattr(FileSink, "_moved_away", wait)

    def shut(self) -> None:
        self.met.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def gate(monkeypatch, path: Path):
    made = Gate(monkeypatch, path)
    yield made
    made.open()


def texts(path: Path) -> list[str]:
    return [line[26:] for line in path.read_text().splitlines()]


@pytest.mark.anyio
async def test_a_log_that_hangs_holds_up_no_loop_and_no_other_log(gate, path, tmp_path):
    book = LogBook()
    log, other = book.open(path), book.open(tmp_path / "other")
    gate.shut()
    log.info("first")
    with anyio.fail_after(60):
        assert await anyio.to_thread.run_sync(gate.met.wait, 30)
        # On the event loop: each of them would wait for ever.
        for number in range(MAX_ENTRIES + 100):
            log.info("entry", number=number)
        other.info("goes on")
        book.reopen()
        book._writers[tmp_path / "other"].flush(deadline=time.monotonic() + 30)
    assert texts(tmp_path / "other") == ["goes on"]
    assert path.read_text() == ""
    assert book.dropped == 100
    gate.open()
    book.flush()
    log.info("last")
    book.close()
    # In order; and missing lines are reported where they are missing.
    kept = [f"entry number={number}" for number in range(MAX_ENTRIES)]
    assert texts(path) == ["first", *kept, "100" + LOST, "last"]


def test_rotation_is_in_the_order_of_the_entries(gate, path):
    book = LogBook()
    log = book.open(path)
    gate.shut()
    log.info("one")
    assert gate.met.wait(30)
    log.info("two")
    book.reopen()
    log.info("three")
    gate.open()
    book.flush()
    path.rename(path.with_suffix(".1"))
    book.reopen()
    log.info("four")
    book.close()
    assert texts(path.with_suffix(".1")) == ["one", "two", "three"]
    assert texts(path) == ["four"]


def test_the_end_writes_what_waits_and_is_bounded(gate, path, tmp_path, monkeypatch):
    monkeypatch.setattr("stapsrv.observe.logs.FLUSH_S", 2.0)
    book = LogBook()
    log, other = book.open(path), book.open(tmp_path / "other")
    gate.shut()
    log.info("lost")
    for number in range(1000):
        other.info(str(number))
    began = time.monotonic()
    book.close()
    assert time.monotonic() - began < 30
    assert texts(tmp_path / "other") == [str(number) for number in range(1000)]


def test_an_entry_after_the_end_is_written_still(path):
    book = LogBook()
    log = book.open(path)
    log.info("before")
    book.close()
    log.info("after")
    book.flush()
    assert texts(path) == ["before", "after"]
    book.close()


def test_a_file_that_two_threads_open_at_once_is_one_log(path):
    book = LogBook()
    opened = threading.Barrier(2)

    def use() -> None:
        opened.wait(60)
        book.open(path).info("x")

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    book.flush()
    links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert texts(path) == ["x", "x"]
    assert links.count(str(path)) == 1
    book.close()


def test_two_first_entries_at_once_start_one_thread(path, monkeypatch):
    book = LogBook()
    log = book.open(path)
    second = threading.Thread(target=log.info, args=("second",))
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def start_slowly(thread: threading.Thread) -> None:
        if thread.name == "log writer":
            started.append(thread)
            if len(started) == 1:
                start(second)
                # It waits for this start, or starts another thread at once.
                second.join(0.5)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_slowly)
    log.info("first")
    second.join(60)
    book.close()
    assert len(started) == 1
    assert sorted(texts(path)) == ["first", "second"]


def test_a_thread_that_cannot_be_started_costs_the_entry(path, monkeypatch):
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    book = LogBook()
    log = book.open(path)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        log.info("lost")
    log.info("kept")
    book.close()
    assert texts(path) == ["1" + LOST, "kept"]
    assert book.dropped == 1
