"""Text of others cannot forge a line, drive a terminal or fill a log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stapsrv.text import counted, error_line, printable, printable_bytes, shortened, tally


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 'text' …", "plain ünïcode 'text' …"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\udcff\u202e", "\\udcff\\u202e"),
    ],
)
def test_printable_escapes_what_is_not_printable(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_printable_text_is_one_line_that_can_be_encoded(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"", ""),
        (b"plain 'text' \\n", "plain 'text' \\n"),
        ("grün €".encode(), "grün €"),
        (b"caf\xe9\xff", "caf\\xe9\\xff"),
        (b"a\nb\rc\td\0e\x7f", "a\\nb\\rc\\td\\x00e\\x7f"),
        ("\u2028\u202e\u200b\x85".encode(), "\\u2028\\u202e\\u200b\\x85"),
        (b"x" * 200, "x" * 200),
        (b"x" * 201, "x" * 200 + "…"),
        ("𝄞".encode() * 201, "𝄞" * 200 + "…"),
    ],
)
def test_printable_bytes_escapes_and_ends(raw, shown):
    assert printable_bytes(raw) == shown


def test_shortened_ends_with_an_ellipsis_beyond_the_limit():
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "abc…"


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        (b"WARNING: x\nsemantic error: no runtime\nPass 2: analysis failed.\n", "semantic error: no runtime"),
        (
            b"  a.c:1:2: fatal error: x.h: No such file\nerror: later\n",
            "a.c:1:2: fatal error: x.h: No such file",
        ),
        (b"ERROR: kernel release isn't found\n", "ERROR: kernel release isn't found"),
        (b"make: Entering\nfatal: no rule\nmake: Leaving\n", "fatal: no rule"),
        (b"one\ntwo\n\n", "two"),
        (b"", "it failed and said nothing"),
        (b"error: \x1b[2J" + b"x" * 999, "error: \\x1b[2J" + "x" * 289 + "…"),
    ],
)
def test_error_line_is_the_first_error_else_the_last_line(stderr, line):
    assert error_line(stderr) == line


def test_error_line_of_nothing_is_the_default():
    assert error_line(b" \n", default="status 3") == "status 3"


def test_one_thing_is_not_many():
    assert [counted(number, "job") for number in (0, 1, 2)] == ["0 jobs", "1 job", "2 jobs"]


def test_tally_has_each_thing_in_its_order():
    assert tally({"ok": 41, "fails": 2}) == "41 ok, 2 fails"
