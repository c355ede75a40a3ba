"""States of what is watched, made by hypothesis."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from stapsrv.compile.activity import EndedRequest, Interval, RunningRequest
from stapsrv.compile.stats import Outcome, Source, Stage
from stapsrv.observe.live import LiveState
from stapsrv.rejection import RejectReason
from stapsrv.supervisor.lifecycle import State

from .supervisor import server_status, supervisor_status

BEGIN = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


def running(stage: Stage = Stage.COMPILE, **facts: object) -> RunningRequest:
    values = {"server": 7, "client": "192.0.2.1:4242", "since": BEGIN, "release": "6.1.0-test"}
    return RunningRequest(stage=stage, **(values | {"digest": "0123456789ab", "worker": None} | facts))


def ended(outcome: Outcome = Outcome.ANSWERED, **facts: object) -> EndedRequest:
    values = {
        "server": 7,
        "client": "192.0.2.1:4242",
        "since": BEGIN,
        "ended": BEGIN + timedelta(seconds=2),
        "release": "6.1.0-test",
        "digest": "0123456789ab",
        "worker": None,
        "rc": 0,
        "source": Source.COMPILED,
        "build": "prepared",
        "rejection": None,
        "request_bytes": 963,
        "answer_bytes": 43650,
        **dict.fromkeys(("lookup_s", "queue_s", "sign_s", "send_s"), 0.25),
        "compile_s": 1.5,
    }
    return EndedRequest(outcome=outcome, **(values | facts))


def rows(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.dictionaries(st.integers(1, 6), values, max_size=4)


def states() -> st.SearchStrategy[LiveState]:
    """States with few keys and values, so that two of them have entries in common."""
    servers = st.sets(st.integers(1, 4)).flatmap(
        lambda ids: st.fixed_dictionaries(
            {
                key: st.builds(server_status, st.just(key), st.sampled_from(State), running=st.integers(0, 1))
                for key in ids
            }
        )
    )
    return st.builds(
        LiveState,
        supervisor=st.builds(supervisor_status, compiles=st.integers(0, 1)),
        servers=servers,
        running=rows(st.builds(running, st.sampled_from(Stage))),
        recent=rows(
            st.builds(ended, st.sampled_from(Outcome), rejection=st.sampled_from([None, *RejectReason]))
        ),
        history=rows(st.builds(Interval, st.integers(0, 1))),
    )
