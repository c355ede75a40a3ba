"""Graphs of the last day: bars within the picture, scales that read well, words for who does not see them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stapsrv.observe.web.day import Minute
from stapsrv.observe.web.graphs import HEIGHT, WIDTH, graphs_of, hours_of, rounded_up

NOW = 1_800_000_123.0
LAST = int(NOW) // 60 * 60


def test_minutes_are_drawn_together_and_described():
    minutes = {
        LAST - 3600: Minute(requests=30, answers=30, hits=15, compiles=15, compile_s=30.0, queued=7),
        LAST: Minute(requests=2, answers=2, hits=0, compiles=2, compile_s=3.0),
    }
    requests, hits, queue, compiles = graphs_of(minutes, NOW)
    assert requests.top == 50
    assert [bar[3] for bar in requests.bars] == [pytest.approx(0.6 * HEIGHT), pytest.approx(0.04 * HEIGHT)]
    assert requests.description.startswith(
        "The last value is 2, the highest of the last day 30 (in ten minutes)."
    )
    assert (hits.top, len(hits.bars), queue.top, compiles.top) == (100, 1, 10, 2)
    assert [hour.total.requests for hour in hours_of(minutes)] == [2, 30]


def test_day_without_requests():
    assert {(graph.bars, graph.description) for graph in graphs_of({}, NOW)} == {
        ((), "Nothing in the last day.")
    }
    assert hours_of({}) == ()


def test_what_is_older_than_the_picture_is_not_in_it():
    assert graphs_of({LAST - 90_000: Minute(requests=1)}, NOW)[0].bars == ()


counts = st.integers(0, 10**6)


@given(
    st.dictionaries(
        st.integers(0, 1439).map(lambda ago: LAST - 60 * ago),
        st.builds(
            Minute,
            requests=counts,
            answers=st.integers(1, 10),
            hits=st.integers(0, 1),
            queued=counts,
            compiles=st.integers(1, 5),
            compile_s=st.floats(0, 600),
        ),
        max_size=50,
    )
)
def test_bars_stay_in_the_picture(minutes):
    for graph in graphs_of(minutes, NOW):
        for x, y, width, height in graph.bars:
            assert x >= 0
            assert x + width <= WIDTH
            assert y >= -0.1
            assert y + height <= HEIGHT + 0.1


@pytest.mark.parametrize(("value", "top"), [(1, 1), (1.1, 2), (2.5, 5), (7, 10), (100, 100), (0.03, 0.05)])
def test_scale_ends_at_a_number_that_reads_well(value, top):
    assert rounded_up(value) == pytest.approx(top)
