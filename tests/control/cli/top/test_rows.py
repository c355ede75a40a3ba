"""Rows of the tables of ``top``: sorted, filtered, and bars."""

from __future__ import annotations

from datetime import timedelta

import pytest
from kit.top import NOW, cloud, live_state, native, seen

from stapsrv.control.cli.top.rows import (
    BARS,
    COLUMNS,
    bars,
    ended_rows,
    history_lines,
    page_lines,
    refusals_line,
    running_rows,
    server_of,
    server_rows,
)
from stapsrv.control.cli.top.states import States
from stapsrv.control.protocol.schema import encoded
from stapsrv.control.protocol.status_fields import ServerInfo


@pytest.fixture
def followed():
    states = States(lambda: None)
    states.take(seen(live_state()))
    return states.look()[0]


def names(rows) -> list[str]:
    return [row.cells[0] for row in rows]


def test_servers_have_a_cell_for_each_column(followed):
    cloud_row, native_row = server_rows(followed, sort=0, words="", now=NOW)
    assert native_row.cells == (
        *("native", "serving", "5001", "✓ 6.1.0-56-amd64", "2/2", "1", "75", "4.5 s", "0.2 s", "364 d"),
    )
    assert cloud_row.cells == (*("cloud", "draining", "5002", "✗ 1 of 2", "0/1", "0", "-", "-", "-", "9 d"),)


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.heading)
def test_servers_are_sorted_by_any_column(followed, column):
    order = names(server_rows(followed, sort=COLUMNS.index(column), words="", now=NOW))
    first = {"SERVER": "cloud", "STATE": "cloud", "PORT": "native", "RELEASES": "native", "CERT": "cloud"}
    assert order[0] == first.get(column.heading, "native")


def test_words_are_looked_for_in_all_that_is_told(followed):
    assert names(server_rows(followed, sort=0, words="CLOUD-amd64", now=NOW)) == ["cloud"]
    assert names(running_rows(followed, words="compile", now=NOW)) == ["192.0.2.1"]
    assert [row.cells[4] for row in ended_rows(followed, words="QUEUE_length")] == ["queue_length"]
    assert [row.cells[5] for row in ended_rows(followed, words="hit")] == ["hit"]


def test_requests_under_way_are_the_oldest_first(followed):
    assert [row.cells for row in running_rows(followed, words="", now=NOW)] == [
        ("192.0.2.1", "native", "6.1.0-56-amd64", "ce114e45", "compile", "12 s", "-"),
        ("2001:db8::7", "native", "-", "01234567", "queue", "3 s", "-"),
    ]


def test_last_requests_are_the_newest_first_and_say_which_bound_they_met(followed):
    assert [row.cells[2:6] for row in ended_rows(followed, words="")] == [
        ("cloud", "6.1.0-test", "queue_length", "-"),
        ("native", "6.1.0-56-amd64", "rc=0", "hit"),
        ("native", "6.1.0-56-amd64", "rc=0", "compiled"),
    ]


def test_bars_are_as_tall_as_their_values():
    assert bars([0, 1, 4, 8]) == " ▁▄█"
    assert bars([0, 0]) == "  "
    assert bars([1, 1000]) == "▁█"


def test_history_moves_with_the_time_and_ends_after_ten_minutes(followed):
    requests, hits, queue = history_lines(followed, NOW)
    assert requests == f"requests {' ' * (BARS - 8)}▂    █▂  6/10m"
    assert (hits[-4:], queue[-5:]) == ("33 %", "1 now")
    assert history_lines(followed, NOW + timedelta(minutes=10))[0].endswith(" 0/10m")


def test_refusals_are_summed_over_servers():
    infos = [encoded(server, ServerInfo) for server in (native(), cloud())]
    assert refusals_line(infos) == "refusals: queue_length 4, denied 1"
    assert refusals_line([]) == "refusals: none"


def test_page_has_the_health_of_every_release_and_its_reason(followed):
    found = server_of(followed, "me/8")
    assert found is not None
    lines = page_lines(found[1], NOW)
    assert lines[0] == "cloud (id 8): draining; wanted: up"
    assert lines[-1] == "✗ 6.12.1-cloud-amd64 unhealthy: cc1: all warnings being treated as errors"
    assert server_of(followed, "me/9") is None


def test_page_has_what_the_scripts_for_a_release_came_to(followed):
    _, server = server_of(followed, "me/8")
    release = "6.12.1-cloud-amd64"
    counts = {release: {"ok": 41}}
    assert page_lines(server, NOW, scripts=counts)[-1].endswith("as errors; scripts: 41 ok")
    # It compiles in another way than the first that serves the release.
    counts[f"{release} (cloud)"] = {"ok": 39, "fails": 2}
    assert page_lines(server, NOW, scripts=counts)[-1].endswith("as errors; scripts: 39 ok, 2 fails")
