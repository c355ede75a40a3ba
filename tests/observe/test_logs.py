"""The log file: its lines, rotation, a full disk."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from stapsrv.errors import ConfigError
from stapsrv.observe.logs import FileSink, LogFormat, TerminalSink, open_log

PREFIX = r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} [ 123]\d \d\d:\d\d:\d\d \d{4}: "


@pytest.fixture
def sink(tmp_path: Path):
    made = FileSink(tmp_path / "log")
    yield made
    made.close()


def test_classic_line(sink):
    open_log(sink).bind(peer="p").info("request.version", version="4.8")
    assert re.fullmatch(PREFIX + "Client version is 4.8\n", sink.path.read_text())


def test_traceback_follows_its_line(sink):
    log = open_log(sink)
    try:
        raise ValueError("odd\nvalue")
    except ValueError:
        log.exception("server.crashed", nickname="n")
    first, *rest = sink.path.read_text().splitlines()
    assert first.endswith(": server.crashed nickname=n")
    assert rest[0] == "  Traceback (most recent call last):"
    assert "  ValueError: odd" in rest


def test_json_line(sink):
    open_log(sink, style=LogFormat.JSON).warning("request.options", options="a\nb")
    record = json.loads(sink.path.read_text())
    assert (record["event"], record["level"], record["options"]) == ("request.options", "warning", "a\nb")


def test_new_file_after_rotation(sink):
    log = open_log(sink)
    log.info("one")
    sink.path.rename(sink.path.with_suffix(".1"))
    log.info("two")
    assert sink.path.read_text().endswith(": two\n")
    assert sink.path.with_suffix(".1").read_text().endswith(": one\n")


def test_reopen_begins_at_the_name_again(sink):
    before = os.listdir("/proc/self/fd")
    sink.reopen()
    open_log(sink).info("one")
    assert sink.path.read_text().endswith(": one\n")
    assert os.listdir("/proc/self/fd") == before


def test_unwritable_file_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError) as caught:
        FileSink(tmp_path / "missing" / "log")
    assert str(caught.value) == (
        f"log file {tmp_path}/missing/log: cannot be written (No such file or directory); "
        "give a file in a directory that the server's user may write to, with --log"
    )


def test_full_disk_loses_lines_and_nothing_else(tmp_path):
    """/dev/full refuses every write; the log goes on, and tells what is missing."""
    (tmp_path / "log").symlink_to("/dev/full")
    sink = FileSink(tmp_path / "log")
    log = open_log(sink)
    log.info("lost")
    log.info("lost too")
    (tmp_path / "log").unlink()
    log.info("kept")
    told, kept = (tmp_path / "log").read_text().splitlines()
    assert told.endswith(": 2 log lines were lost while the log could not be written")
    assert kept.endswith(": kept")
    sink.close()


def test_terminal_that_went_away(monkeypatch):
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr("sys.stderr", full)
        TerminalSink().write("line")
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.close()
