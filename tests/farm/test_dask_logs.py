"""Dask's warnings are lines of this program's log, no more than one a minute of each kind."""

from __future__ import annotations

import logging
import re
import warnings

import pytest
import structlog
from structlog.testing import LogCapture

from stapsrv.farm.dask_logs import INTERVAL_S, dask_logs_to


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def capture() -> LogCapture:
    return LogCapture()


@pytest.fixture
def log(capture):
    wrapper = structlog.make_filtering_bound_logger("info")
    return structlog.wrap_logger(None, processors=[capture], wrapper_class=wrapper)


@pytest.fixture
def entries(log, capture, clock):
    with dask_logs_to(log, clock=clock):
        yield capture.entries


def test_warnings_come_and_what_is_less_does_not(entries, capsys):
    for name in ("distributed.comm.tcp", "distributed.client", "tornado.application", "asyncio"):
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).warning("%s said\nthis", name)
    # Dask has more to say of the same.
    logging.getLogger("tornado.general").error("SSL Error")
    assert [entry["text"] for entry in entries] == ["distributed.comm.tcp said\nthis"]
    logging.getLogger("asyncio").warning("another place")
    assert {entry["log_level"] for entry in entries} == {"warning"}
    assert len(entries) == 2
    assert capsys.readouterr().err == ""


def test_same_line_comes_once_a_minute(entries, clock):
    logger = logging.getLogger("distributed.comm.tcp")
    for second in range(3 * int(INTERVAL_S)):
        clock.now = 1000.0 + second
        logger.warning("handshake %d failed", second)
    assert [entry["text"] for entry in entries] == [
        "handshake 0 failed",
        "handshake 60 failed (and 59 more like it before)",
        "handshake 120 failed (and 59 more like it before)",
    ]


def test_only_errors_of_this_program_have_a_traceback(entries):
    logger = logging.getLogger("distributed.core")
    for error in (ConnectionResetError("gone"), KeyError("bug")):
        try:
            raise error
        except OSError:
            logger.exception("while reading")
        except KeyError:
            logger.exception("while handling")
    assert [entry["text"] for entry in entries] == [
        "while reading: ConnectionResetError: gone",
        "while handling: KeyError: 'bug'",
    ]
    assert [type(entry["exc_info"]) for entry in entries] == [type(None), KeyError]


def test_warning_of_python_is_one_line(log, capture, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with dask_logs_to(log):
            warnings.warn("odd", RuntimeWarning, stacklevel=1)
    (entry,) = capture.entries
    assert re.fullmatch(r".*test_dask_logs\.py:\d+: RuntimeWarning: odd", entry["text"])
    assert capsys.readouterr().err == ""


def test_long_line_is_cut(entries):
    logging.getLogger("distributed").warning("x" * 10_000)
    assert len(entries[0]["text"]) < 600


def test_handlers_are_as_before_afterwards(clock):
    loggers = [
        logging.getLogger(name) for name in ("distributed", "distributed.client", "tornado", "asyncio")
    ]

    def state():
        return [(logger.handlers, logger.level, logger.propagate) for logger in loggers]

    before = state()
    with dask_logs_to(structlog.get_logger(), clock=clock):
        assert state() != before
    assert state() == before
