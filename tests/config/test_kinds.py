"""Amounts as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stapsrv.config.kinds import (
    LOG_FORMAT,
    SWITCH,
    LogFormat,
    choice,
    count,
    duration,
    encode_duration,
    encode_size,
    size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        (" 30\t", 30.0),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1.5h", 5400.0),
        ("1d", 86_400.0),
    ],
)
def test_durations(text, seconds):
    assert duration().parse(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "99ms", "25h", "-1", "1 m", "5M", "1e3", "inf", "nan", "٣", "9" * 19]
)
def test_wrong_durations(text):
    with pytest.raises(
        ValueError, match=r"^a duration from 0.1 seconds to 1d, like 30 \(seconds\), 30s or 5m$"
    ):
        duration().parse(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("65536", 65_536),
        ("64k", 65_536),
        ("64K", 65_536),
        ("1M", 2**20),
        ("1MiB", 2**20),
        ("1mb", 2**20),
        ("2G", 2**31),
        ("1T", 2**40),
    ],
)
def test_sizes(text, number):
    assert size().parse(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "1023", "-1", "1.5M", "1 M", "M", "1x", "9" * 19, "99999999999999T"]
)
def test_wrong_sizes(text):
    with pytest.raises(ValueError, match=r"^a size of 1k or more, like 65536 \(bytes\), 64M or 1G$"):
        size().parse(text)


def test_counts_and_choices():
    assert count("a number of cats").parse(" 7 ") == 7
    assert count("a number of cats", least=0, most=9).parse("0") == 0
    assert choice("a", "b").parse("b") == "b"
    for text in ("0", "x", "-1", "1.0", "9" * 19):
        with pytest.raises(ValueError, match=r"^a number of cats, 1 or more$"):
            count("a number of cats").parse(text)
    with pytest.raises(ValueError, match=r"^a number of cats from 0 to 9$"):
        count("a number of cats", least=0, most=9).parse("10")
    with pytest.raises(ValueError, match=r"^a or b$"):
        choice("a", "b").parse("A")
    with pytest.raises(ValueError, match=r"^a or b \(c is gone\)$"):
        choice("a", "b", gone={"c": "a or b"}).parse("c")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.25, "0.25s"),
        (30.0, "30s"),
        (90.0, "90s"),
        (300.0, "5m"),
        (7200.0, "2h"),
        (86_400.0, "1d"),
    ],
)
def test_durations_as_they_are_written(seconds, text):
    assert encode_duration(seconds) == text


@settings(derandomize=True, database=None)
@given(st.integers(100, 86_400_000), st.integers(1024, 2**50))
def test_what_is_written_reads_back_equal(milliseconds, number):
    assert duration().parse(encode_duration(milliseconds / 1000)) == milliseconds / 1000
    assert size().parse(encode_size(number)) == number


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("no", False), ("NO", False)])
def test_switch(text, value):
    assert SWITCH.parse(text) is value


def test_log_format_is_read_in_any_case_and_written_back() -> None:
    assert LOG_FORMAT.parse("JSON") is LogFormat.JSON
    assert [LOG_FORMAT.encode(LOG_FORMAT.parse(name)) for name in LogFormat] == [*LogFormat]
