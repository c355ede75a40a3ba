"""Verdicts, and what is different from the last time."""

from __future__ import annotations

import pytest

from stapsrv.scripts.matrix import Cell, Inputs, Result, Verdict, differences, judge, release_order

OLD, NEW = "6.1.0-9-amd64", "6.1.0-10-amd64"
KNOWN = Inputs("r", "t", "e")


def result(verdict: Verdict, release: str = NEW, **facts: object) -> Result:
    return Result(cell=Cell("/srv", "x.stp", release), verdict=verdict, **{"inputs": KNOWN, **facts})


def texts(before: list[Result], now: list[Result]) -> list[str]:
    return [each.text for each in differences({one.cell: one for one in before}, now)]


@pytest.mark.parametrize(
    ("status", "stderr", "is_to_fail", "verdict"),
    [
        (0, b"", False, (Verdict.OK, "")),
        (0, b"note\nWARNING: never assigned\n", False, (Verdict.WARNS, "WARNING: never assigned")),
        (1, b"noise\nsemantic error: no match\nPass 2\n", False, (Verdict.FAILS, "semantic error: no match")),
        (1, b"parse error: x\n", True, (Verdict.EXPECTED, "parse error: x")),
        (0, b"", True, (Verdict.UNEXPECTED, "it compiles, and is stated to fail")),
    ],
)
def test_verdict(status, stderr, is_to_fail, verdict):
    assert judge(status=status, stderr=stderr, limit=None, is_to_fail=is_to_fail) == verdict


def test_limit_is_a_failure_in_its_own_words():
    met = judge(status=0, stderr=b"", limit="it met LIMIT_CPU", is_to_fail=False)
    assert met == (Verdict.FAILS, "it met LIMIT_CPU")


def test_new_release_that_a_script_fails_for_is_held_against_the_last_that_it_works_for():
    assert texts([result(Verdict.OK, OLD)], [result(Verdict.FAILS, message="error: y")]) == [
        f"worked on {OLD}, fails on {NEW}: error: y"
    ]


def test_change_of_one_release_names_what_changed():
    before = [result(Verdict.WARNS, inputs=Inputs("r", "t", "e"))]
    now = [result(Verdict.FAILS, message="error: y", inputs=Inputs("r", "T", "E"))]
    (text,) = texts(before, now)
    assert text == (
        f"worked before, fails on {NEW} (the kernel's headers, the compiler or the runtime changed): error: y"
    )
    assert texts(now, [result(Verdict.OK, inputs=Inputs("r", "T", "E2"))]) == [
        f"failed before, compiles on {NEW}: tapsets or settings changed"
    ]


def test_what_stays_is_no_difference():
    assert texts([result(Verdict.FAILS)], [result(Verdict.FAILS)]) == []
    assert texts([], [result(Verdict.OK), result(Verdict.LEFT_OUT, OLD)]) == []


def test_worse_comes_first():
    better = Result(cell=Cell("/srv", "a.stp", NEW), verdict=Verdict.OK)
    before = [attrs_failed := Result(cell=better.cell, verdict=Verdict.FAILS), result(Verdict.OK)]
    assert attrs_failed.cell == better.cell
    found = texts(before, [better, result(Verdict.UNTRIED, message="busy")])
    assert [text.split()[0] for text in found] == ["not", "failed"]


def test_releases_are_in_the_order_of_their_numbers():
    assert sorted([NEW, OLD, "5.10"], key=release_order) == ["5.10", OLD, NEW]
