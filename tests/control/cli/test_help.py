"""The tables behind ``--help``, the manual page and completion."""

from __future__ import annotations

import pytest

from stapsrv.control.cli.help import ACTIONS, ALIASES, OPTIONS, Group, groups_of, usage
from stapsrv.control.cli.invocation import DESCRIBING_OPTIONS, LIST_OPTIONS, NICKNAME, Action


def test_every_action_has_help():
    assert {*ACTIONS} == {str(action) for action in Action} - {"help", "version"}


def test_every_setting_with_an_option_is_shown():
    shown = {row.option: row.group for row in OPTIONS}
    assert shown[NICKNAME] is Group.DESCRIBING
    assert all(shown[option] is Group.LISTS for option in LIST_OPTIONS)
    for option, row in DESCRIBING_OPTIONS.items():
        assert shown[option] is (Group.TUNING if row.tunable else Group.DESCRIBING)


@pytest.mark.parametrize("topic", [*ACTIONS, *ALIASES])
def test_help_of_an_action_has_its_options_and_fits(topic):
    text = usage(topic)
    assert text.startswith(f"usage: stap-server {topic}")
    groups = groups_of(ALIASES.get(topic, topic))
    assert all(row.option in text for row in OPTIONS if row.group in groups)
    assert max(map(len, text.splitlines())) <= 110


def test_unknown_topic_gets_the_overview():
    assert usage("nonsense") == usage(None)
