"""Every event that the code logs has a sentence, and the sentence's words are there."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import stapsrv
from stapsrv.observe.formats import CLASSIC

_LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical", "msg"})
_RESERVED = frozenset({"time", "level", "event", "message", "traceback"})
_BOUND = frozenset({"peer", "server", "nickname", "method", "job"})
"""Fields that a log may have been bound to."""


@attrs.frozen
class Call:
    """One call of a log."""

    where: str
    events: tuple[str, ...]
    fields: frozenset[str]
    has_more: bool


def is_log(node: ast.expr) -> bool:
    """Whether an expression is a log, by its name: ``log``, ``self._log``, ``self._logged``."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr == "bind" and is_log(node.func.value)
    return name.strip("_") in {"log", "logger", "logged"}


def constants(node: ast.expr) -> Iterator[str]:
    """The values that an expression may have, where it tells them; else nothing."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.IfExp):
        yield from constants(node.body)
        yield from constants(node.orelse)


def logged() -> list[Call]:
    calls = []
    root = Path(stapsrv.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in _LEVELS and is_log(node.func.value):
                names = frozenset(keyword.arg for keyword in node.keywords if keyword.arg is not None)
                calls.append(
                    Call(
                        f"{path.relative_to(root)}:{node.lineno}",
                        tuple(constants(node.args[0])) if node.args else (),
                        names,
                        any(keyword.arg is None for keyword in node.keywords),
                    )
                )
    return calls


CALLS = logged()


def words(event: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(CLASSIC[event]) if name is not None}


def test_there_are_calls():
    assert len(CALLS) > 50


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.where)
def test_event_has_a_sentence_of_words_that_are_there(call):
    assert call.events, "the event's name is not a constant"
    for event in call.events:
        assert event in CLASSIC
        assert call.has_more or words(event) <= call.fields | _BOUND
    assert not call.fields & _RESERVED


def test_no_sentence_is_left_over():
    assert set(CLASSIC) <= {event for call in CALLS for event in call.events} | {"log.lost"}
