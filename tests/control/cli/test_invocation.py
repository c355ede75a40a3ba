"""Which option is of which kind."""

from __future__ import annotations

from stapsrv.config.table import SERVER_SETTINGS
from stapsrv.control.cli.invocation import ARCH, DESCRIBING_OPTIONS, LIST_OPTIONS, NICKNAME, RELEASE


def test_options_of_one_value_a_server_are_the_long_ones_that_do_not_tune():
    assert list(LIST_OPTIONS) == [
        "--port",
        "--log",
        "--ssl",
        "--max-threads",
        "--max-request-size",
        "--max-compressed-request",
    ]


def test_each_option_is_of_one_kind():
    options = [row.option for row in SERVER_SETTINGS if row.option]
    assert sorted(options) == sorted([NICKNAME, *LIST_OPTIONS, *DESCRIBING_OPTIONS])
    assert {ARCH, RELEASE} <= {*DESCRIBING_OPTIONS}
