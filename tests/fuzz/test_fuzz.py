"""Hostile bytes, a little of them: the saved corpus, and changes to it that hypothesis chooses.

``make fuzz`` runs for as long as is wanted, and saves what it finds here.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.cpu_time import bounded
from fuzz.mutation import REPEAT, Change, changed
from fuzz.targets import CHECKS, GETOPT, INPUT_S, WORDS, check_options, corpus

SAVED = [(name, path) for name in CHECKS for path in corpus(name)]
EXAMPLES = {"connection": 60}
"""Inputs for each target; a connection takes some milliseconds."""
REPEATED = {"connection": 8, "messages": 8, "script": 8}
"""Fragments for each target."""


@pytest.mark.parametrize(("name", "path"), SAVED, ids=[f"{name}-{path.name}" for name, path in SAVED])
def test_saved_inputs(name, path):
    with bounded(INPUT_S):
        CHECKS[name](path.read_bytes())


@pytest.mark.parametrize("name", CHECKS)
def test_changed_inputs(name):
    saved = [path.read_bytes() for path in corpus(name)]
    pieces = st.one_of(st.binary(max_size=8), st.sampled_from(WORDS[name]))
    changes = st.builds(Change, st.integers(0, REPEAT - 1), st.integers(0, 65535), st.integers(1, 63), pieces)

    @settings(max_examples=EXAMPLES.get(name, 400), suppress_health_check=list(HealthCheck))
    @given(st.builds(changed, st.sampled_from(saved), st.lists(changes, max_size=5)))
    def check(data: bytes) -> None:
        with bounded(INPUT_S):
            CHECKS[name](data)

    check()


@pytest.mark.parametrize("name", CHECKS)
def test_repeated_fragments(name):
    """Up to the largest size, alone and within a whole input: what is superlinear shows there."""
    words = list(dict.fromkeys((*WORDS[name], *(a + b for a, b in itertools.pairwise(WORDS[name])))))
    whole = max((path.read_bytes() for path in corpus(name)), key=len)
    for word in words[:: max(1, len(words) // REPEATED.get(name, 30))]:
        for data in (b"", whole):
            repeated = Change(kind=REPEAT, position=32768, length=1, piece=word)
            with bounded(INPUT_S):
                CHECKS[name](changed(data, [repeated]))


def test_every_option_in_every_spelling():
    for name in map(str.encode, GETOPT.names.values()):
        for end in range(1, len(name) + 1):
            for form in (b"--%s", b"--%s=stapusr", b"--%s\0stapusr", b"--%s\0--\0-g"):
                check_options(form % name[:end])


def test_every_letter():
    for letter in range(1, 256):
        for form in (b"-%c", b"-v%cg", b"-%c\0-g", b"x\0-%c=1"):
            check_options(form % letter)
