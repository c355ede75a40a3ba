"""No regular expression of the program takes more than linear time, whatever text it is given."""

from __future__ import annotations

import re
import time

import pytest

from fuzz.cpu_time import TooSlow, bounded
from fuzz.regexes import Use, attacks, uses

SIZE = 32_768
# Linear time is a few milliseconds; what takes longer is tried with a longer text.
SUSPECT_S = 0.02
GROWTH = 4
# No linear use takes so long for either text.
ENOUGH_S = 0.5

USES = list(uses())


@pytest.mark.parametrize(
    "use", USES, ids=[f"{number}-{use.where}-{use.method}" for number, use in enumerate(USES)]
)
def test_takes_linear_time(use):
    assert slow_text(use) is None


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r"\$\(wildcard [^)]*\)", "sub"),
        (r"(?P<nickname>\S.*?) +(?P<trust>[a-zA-Z]*,[a-zA-Z]*,[a-zA-Z]*)", "fullmatch"),
        (r"\s+$", "search"),
        (r"(a+)+b", "match"),
        (r'@cast\("[^"]*",.*?\)', "findall"),
    ],
)
def test_finds_what_does_not(pattern, method):
    assert slow_text(Use("here", re.compile(pattern), method)) is not None


def slow_text(use):
    """Return a text that a use takes more than linear time for."""
    for number, text in enumerate(attacks(use.pattern, SIZE)):
        taken = _cpu_s(use, text)
        if taken >= ENOUGH_S:
            return text
        if taken > SUSPECT_S:
            longer = next(each for at, each in enumerate(attacks(use.pattern, GROWTH * SIZE)) if at == number)
            # Quadratic is 16 times. A busy processor is slower at times, so the shorter one is tried again.
            allowed = 2 * GROWTH * max(taken, _cpu_s(use, text))
            if _cpu_s(use, longer) > min(allowed, 0.9 * ENOUGH_S):
                return text
    return None


def _cpu_s(use, text):
    began = time.process_time()
    try:
        with bounded(ENOUGH_S):
            use.apply(text)
    except TooSlow:
        return ENOUGH_S
    return time.process_time() - began
