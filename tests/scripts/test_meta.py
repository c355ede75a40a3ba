"""Lines ``test_check`` of SystemTap's examples."""

from __future__ import annotations

import pytest

from stapsrv.scripts.meta import CheckLine, parse_meta


@pytest.mark.parametrize(
    ("line", "options", "arguments"),
    [
        ("stap -p4 x.stp", (), ()),
        ("stap -wp4 x.stp 'kernel.statement(\"f@fs/open.c:*\")' '$$vars'", ("-w",), None),
        ("stap -gp1 x.stp", ("-g", "-p1"), ()),
        ('stap -p4 x.stp "tid()" @sum', (), ("tid()", "@sum")),
        ("stap -g -p4 ./x.stp TCP 1", ("-g",), ("TCP", "1")),
        ("stap -p4 -Itapset/ x.stp", ("-Itapset/",), ()),
        ("stap --all-modules -p4 x.stp -c 'sleep 2'", ("--all-modules", "-csleep 2"), ()),
    ],
)
def test_line_is_options_and_arguments_without_what_ends_after_the_compile(line, options, arguments):
    found = parse_meta(f"title: x\ntest_check: {line}\n", "x.stp")
    assert found is not None
    assert found.options == options
    if arguments is not None:
        assert found.arguments == arguments


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("stap -p4 x.stp -x $$", "needs a shell"),
        ('stap -d "`which stap`" -p4 x.stp', "needs a shell"),
        ("stap -p4 x.stp; rm -rf /", "needs a shell"),
        ("stap -p4 x.stp > file", "needs a shell"),
        ("./x.stp -p4", "is no stap command"),
        ("stap -p4 'x.stp", "cannot be read"),
        ("stap -p4 --no-such x.stp", "cannot be read"),
    ],
)
def test_line_for_a_shell_is_not_understood(line, words):
    with pytest.raises(ValueError, match=words):
        parse_meta(f"test_check: {line}\n", "x.stp")


def test_first_line_about_the_script_counts():
    text = "test_check: stap -p4 other.stp\ntest_check: stap -p4 x.stp `a`\ntest_check: stap -g x.stp\n"
    assert parse_meta(text, "x.stp") == CheckLine(("-g",))
    assert parse_meta("test_installcheck: stap x.stp\n", "x.stp") is None
