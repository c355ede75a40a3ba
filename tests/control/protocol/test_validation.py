"""JSON values against their descriptions, and in which words they are refused."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

import pytest

from stapsrv.control.protocol.validation import ShapeError, checked


class Inner(TypedDict):
    number: int
    share: NotRequired[float | None]


class Base(TypedDict):
    flag: NotRequired[bool]


class Outer(Base):
    inner: Inner
    names: list[str]
    which: list[int] | Literal["all"]
    table: dict[str, str | int | list[str]]


class Empty(TypedDict):
    pass


GOOD = {"inner": {"number": 1}, "names": ["a"], "which": "all", "table": {"A": "x", "B": 1, "C": ["y"]}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flag": True},
        {"names": []},
        {"which": [1, 2]},
        {"inner": {"number": -1, "share": 1}},
        {"inner": {"number": 1, "share": 1.5}},
        {"inner": {"number": 1, "share": None}},
    ],
)
def test_good_values_pass(changes):
    value = GOOD | changes
    assert checked(value, Outer, name="params", exact=True) is value


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"flag": 1}, "params.flag: expected true or false, not a number"),
        ({"flag": None}, "params.flag: expected true or false, not null"),
        ({"inner": []}, "params.inner: expected an object, not an array"),
        ({"inner": {}}, "params.inner: the member 'number' is missing"),
        ({"inner": {"number": True}}, "params.inner.number: expected a whole number, not true"),
        ({"inner": {"number": 1.0}}, "params.inner.number: expected a whole number, not a fraction"),
        (
            {"inner": {"number": 1, "share": "x"}},
            "params.inner.share: expected a number or null, not a string",
        ),
        (
            {"inner": {"number": 1, "share": False}},
            "params.inner.share: expected a number or null, not false",
        ),
        (
            {"inner": {"number": 1, "x": 1}},
            "params.inner: unknown member 'x'; it may have number, share",
        ),
        ({"names": "a"}, "params.names: expected an array, not a string"),
        ({"names": ["a", 1]}, "params.names[1]: expected a string, not a number"),
        ({"which": "some"}, 'params.which: expected an array or "all", not a string'),
        ({"which": [1, "all"]}, "params.which[1]: expected a whole number, not a string"),
        (
            {"table": {"A": True}},
            "params.table.A: expected a string or a whole number or an array, not true",
        ),
        (
            {"table": {"\x1b": {}}},
            r"params.table.\x1b: expected a string or a whole number or an array, not an object",
        ),
        (
            {"y" * 99: 1},
            f"params: unknown member '{'y' * 60}...'; it may have flag, inner, names, which, table",
        ),
    ],
)
def test_bad_values_are_named(changes, text):
    with pytest.raises(ShapeError) as caught:
        checked(GOOD | changes, Outer, name="params", exact=True)
    assert str(caught.value) == text


def test_no_object_at_all():
    with pytest.raises(ShapeError, match=r"^result: expected an object, not null$"):
        checked(None, Outer, name="result", exact=False)


def test_empty_object_has_no_members():
    with pytest.raises(ShapeError, match=r"^params: unknown member 'x'; it has none$"):
        checked({"x": 1}, Empty, name="params", exact=True)


def test_later_members_pass_where_they_may():
    value = GOOD | {"later": 1, "inner": {"number": 1, "later": 2}}
    assert checked(value, Outer, name="result", exact=False) is value
