"""How errors read, and that their tree is as it is drawn."""

from __future__ import annotations

import re

import pytest

from stapsrv import errors
from stapsrv.errors import ConfigError, ControlError, StapsrvError, UsageError, first_error

# Those that the module has; other modules may refine them.
KINDS = [kind for kind in StapsrvError.__subclasses__() if kind.__module__ == errors.__name__]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("is missing"), "is missing"),
        (ConfigError("is missing", where="log x"), "log x: is missing"),
        (ConfigError("is missing", remedy="make it"), "is missing; make it"),
        (ConfigError("is missing", where="log x", remedy="make it"), "log x: is missing; make it"),
        (ControlError("is unknown", code=-32601, remedy="see status"), "is unknown; see status"),
    ],
)
def test_text_has_place_problem_and_remedy_as_far_as_given(error, text):
    assert str(error) == text


def test_only_usage_errors_exit_with_2():
    assert {kind.__name__ for kind in KINDS if kind.exit_status == 2} == {UsageError.__name__}
    assert {kind.exit_status for kind in KINDS} == {1, 2}


def test_drawn_tree_has_every_error():
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__))
    assert drawn == {kind.__name__ for kind in KINDS}


def test_first_error_of_nested_groups_is_the_first_leaf():
    first, other = ConfigError("first"), ConfigError("other")
    inner = ExceptionGroup("inner", [first, other])
    assert first_error(ExceptionGroup("outer", [ExceptionGroup("middle", [inner]), other])) is first
