"""The JSON form of what is watched: the docs, the shapes, and that updates make the state."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from kit.live import states

from stapsrv.control.protocol.live_fields import (
    EndedRequestInfo,
    IntervalInfo,
    RunningRequestInfo,
    UpdateInfo,
    updated,
)
from stapsrv.control.protocol.status_fields import row
from stapsrv.control.protocol.validation import checked, members
from stapsrv.control.server.watching import update_info
from stapsrv.observe.feed import Update
from stapsrv.observe.live import differences

DOCS = Path(__file__).parents[3] / "docs" / "control.md"
AT = datetime(2026, 2, 3, 4, 5, 7, tzinfo=UTC)


@pytest.mark.parametrize("shape", [UpdateInfo, RunningRequestInfo, EndedRequestInfo, IntervalInfo])
def test_docs_have_every_field_in_the_words_of_the_table(shape):
    lines = ["| member | meaning |", "| --- | --- |"]
    lines += [f"| `{name}` | {row(hint)[0]} |" for name, hint in members(shape).items()]
    assert re.search(re.escape("\n" + "\n".join(lines) + "\n") + "(?!\\|)", DOCS.read_text(encoding="utf-8"))


@settings(max_examples=25, deadline=None)
@given(states(), states())
def test_updates_make_the_state_that_a_snapshot_would_tell(before, after):
    first = update_info(Update(AT, before))
    second = update_info(Update(AT, differences(before, after)))
    for info in (first, second):
        assert checked(json.loads(json.dumps(info)), UpdateInfo, name="update", exact=True) == info
    assert updated(updated(None, first), second) == updated(None, update_info(Update(AT, after)))


@settings(max_examples=25, deadline=None)
@given(states())
def test_nothing_that_is_as_before_is_told(state):
    told = update_info(Update(AT, differences(state, state)))
    assert told == {"kind": "changes", "at": "2026-02-03T04:05:07.000Z"}


def test_changes_before_a_snapshot_are_refused():
    with pytest.raises(ValueError, match=r"^there are changes before the first snapshot$"):
        updated(None, {"kind": "changes", "at": ""})
    with pytest.raises(ValueError, match=r"^there is a snapshot without a supervisor$"):
        updated(None, {"kind": "snapshot", "at": ""})
