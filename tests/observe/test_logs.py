"""Logs from the call to the bytes: formats, rotation, a full disk."""

from __future__ import annotations

import json
import os
import re
import resource
from pathlib import Path

import pytest

from stapsrv.compile.stats import RequestRecord, summary
from stapsrv.config.kinds import LogFormat
from stapsrv.errors import ConfigError
from stapsrv.observe.logs import LogBook
from stapsrv.observe.sinks import FileSink

from .conftest import journal_fields

PREFIX = r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} [ 123]\d \d\d:\d\d:\d\d \d{4}: "

# Where lines are files' lines.
FILE_FORMATS = pytest.mark.parametrize("style", [LogFormat.CLASSIC, LogFormat.JSON])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def book(tmp_path: Path):
    made = LogBook(journal=tmp_path / "journal")
    yield made
    made.close()


def sentences(path: Path, style: LogFormat) -> list[str]:
    lines = path.read_text().splitlines()
    if style is LogFormat.JSON:
        return [json.loads(line)["message"] for line in lines]
    found = [re.fullmatch(PREFIX + "(.*)", line) for line in lines]
    assert None not in found, lines
    return [match[2] for match in found if match]


def test_classic_line(book, path):
    book.open(path).bind(peer="p").info("request.version", version="4.8")
    book.flush()
    assert re.fullmatch(PREFIX + "Client version is 4.8\n", path.read_text())


def test_traceback_follows_its_line(book, path):
    log = book.open(path)
    try:
        raise ValueError("odd\nvalue")
    except ValueError:
        log.exception("server.crashed")
    book.flush()
    first, *rest = path.read_text().splitlines()
    assert first.endswith(": The server crashed:")
    assert rest[0] == "  Traceback (most recent call last):"
    assert "  ValueError: odd" in rest
    assert all(row.startswith("  ") for row in rest)


def test_json_line(book, path):
    log = book.open(path, LogFormat.JSON)
    try:
        raise ValueError("odd\nvalue")
    except ValueError:
        log.bind(peer=Path("/p")).exception("request.options", options="a\nb", running=1)
    book.flush()
    record = json.loads(path.read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
    assert record.pop("traceback").endswith("ValueError: odd\nvalue")
    assert record == {
        "level": "error",
        "event": "request.options",
        "message": r"Options passed from the client: a\nb",
        "peer": "/p",
        "options": "a\nb",
        "running": 1,
    }


def test_journal_entry(book, path, journal):
    book.open(path, LogFormat.JOURNAL).warning("request.options", options="a\nb", running=1)
    assert journal_fields(journal.recv(65536)) == {
        "MESSAGE": r"Options passed from the client: a\nb",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "stap-serverd",
        "STAPSRV_EVENT": "request.options",
        "STAPSRV_OPTIONS": "a\nb",
        "STAPSRV_RUNNING": "1",
    }
    assert not path.exists()


def test_terminal_shows_what_goes_elsewhere(tmp_path, path, journal):
    terminal = FileSink(tmp_path / "terminal")
    book = LogBook(LogFormat.JSON, terminal=terminal, journal=tmp_path / "journal")
    book.open(path).info("server.serial")
    book.open(path, LogFormat.JOURNAL).info("server.serial")
    book.flush()
    own, of_journal = (tmp_path / "terminal").read_text().splitlines()
    assert own == path.read_text().rstrip()
    assert re.fullmatch(PREFIX + "Concurrency disabled", of_journal)
    book.close()


def test_standard_error(book, capfd):
    book.open(None).info("server.serial")
    book.reopen()
    book.close()
    assert re.fullmatch(PREFIX + "Concurrency disabled\n", capfd.readouterr().err)


@FILE_FORMATS
def test_new_file_after_rotation(book, path, style):
    log = book.open(path, style)
    log.info("one")
    book.flush()
    path.rename(path.with_suffix(".1"))
    log.info("two")
    book.flush()
    assert sentences(path, style) == ["two"]
    assert sentences(path.with_suffix(".1"), style) == ["one"]


@FILE_FORMATS
def test_reopen_begins_at_the_name_again(book, path, style):
    log = book.open(path, style)
    log.info("one")
    book.flush()
    before = os.listdir("/proc/self/fd")
    path.write_text("")
    book.reopen()
    log.info("two")
    book.flush()
    assert sentences(path, style) == ["two"]
    assert os.listdir("/proc/self/fd") == before


def test_servers_share_a_file(book, path):
    book.open(path).info("one")
    before = os.listdir("/proc/self/fd")
    book.open(path, LogFormat.JSON).info("two")
    book.flush()
    assert os.listdir("/proc/self/fd") == before
    assert len(path.read_text().splitlines()) == 2


def test_unwritable_file_is_one_clear_line(book, tmp_path):
    with pytest.raises(ConfigError) as caught:
        book.open(tmp_path / "missing" / "log")
    assert str(caught.value) == (
        f"log file {tmp_path}/missing/log: cannot be written (No such file or directory); "
        "give a file in a directory that the server's user may write to, with --log"
    )


@FILE_FORMATS
def test_full_disk_loses_entries_and_nothing_else(book, path, style):
    """/dev/full refuses every write; the log goes on, and tells what is missing."""
    path.symlink_to("/dev/full")
    log = book.open(path, style)
    log.info("lost")
    log.info("lost too")
    book.flush()
    path.unlink()
    log.info("kept")
    book.flush()
    assert sentences(path, style) == ["2 log lines were lost while the log could not be written", "kept"]
    assert book.dropped == 2


@FILE_FORMATS
def test_line_cut_short_does_not_run_into_the_next(book, path, style):
    """A limit on the size of files stands in for a disk that gets full within a line."""
    log = book.open(path, style)
    log.info("first")
    book.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))
    try:
        log.info("second")
        log.info("third")
        book.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.info("fourth")
    book.flush()
    whole, torn, *rest = path.read_text().splitlines()
    assert len(torn) == 5
    path.write_text("\n".join([whole, *rest]))
    assert sentences(path, style) == [
        "first",
        "2 log lines were lost while the log could not be written",
        "fourth",
    ]


def test_journal_that_was_started_again(tmp_path, path, journal, make_journal):
    book = LogBook(journal=tmp_path / "journal")
    log = book.open(path, LogFormat.JOURNAL)
    journal.close()
    log.info("lost")
    (tmp_path / "journal").unlink()
    log.info("lost too")
    book.flush()
    with make_journal() as again:
        log.info("kept")
        told, kept = (journal_fields(again.recv(65536))["MESSAGE"] for _ in range(2))
    assert (told, kept) == ("2 log lines were lost while the log could not be written", "kept")
    book.close()


def test_the_documentation_names_each_field_of_a_request():
    text = (Path(__file__).parents[2] / "docs" / "logs.md").read_text(encoding="utf-8")
    table = text.partition("## One line for each request")[2].partition("## JSON")[0]
    names = {
        name
        for row in table.splitlines()
        if row.startswith("|")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert names == {"peer", *summary(RequestRecord(request_bytes=1))}
