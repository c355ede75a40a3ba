"""The live state of a process as data, and the difference between two states. Pure.

Nothing of a request's content is in it. The differences of two states, applied to the first, make the second;
so who looks only now and then loses nothing but what came and went meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import attrs

from stapsrv.compile.activity import EndedRequest, Interval, RunningRequest
from stapsrv.supervisor.status import ServerStatus, SupervisorStatus

TABLES = ("servers", "running", "recent", "history")

_Value = TypeVar("_Value")


@attrs.frozen(kw_only=True)
class LiveState:
    """A process at one moment."""

    supervisor: SupervisorStatus  # without its servers
    servers: Mapping[int, ServerStatus]  # by id
    running: Mapping[int, RunningRequest]  # by number, which grow
    recent: Mapping[int, EndedRequest]  # by number, in the order in which they ended
    history: Mapping[int, Interval]  # by the Unix time at which each began


@attrs.frozen(kw_only=True)
class Differences:
    """The new and changed entries, each whole, and the keys of those that are gone, by table."""

    supervisor: SupervisorStatus | None = None  # None: as before
    servers: Mapping[int, ServerStatus] = attrs.field(factory=dict)
    running: Mapping[int, RunningRequest] = attrs.field(factory=dict)
    recent: Mapping[int, EndedRequest] = attrs.field(factory=dict)
    history: Mapping[int, Interval] = attrs.field(factory=dict)
    gone: Mapping[str, tuple[int, ...]] = attrs.field(factory=dict)

    @property
    def entries(self) -> int:
        """The size, in entries of tables."""
        return sum(len(getattr(self, table)) + len(self.gone.get(table, ())) for table in TABLES)


def differences(before: LiveState, after: LiveState) -> Differences:
    """Return what makes ``after`` of ``before``."""
    gone: dict[str, tuple[int, ...]] = {}
    for table in TABLES:
        rows, left = getattr(before, table), getattr(after, table)
        missing = tuple(key for key in rows if key not in left)
        if missing:
            gone[table] = missing
    return Differences(
        supervisor=None if after.supervisor == before.supervisor else after.supervisor,
        servers=_changed(before.servers, after.servers),
        running=_changed(before.running, after.running),
        recent=_changed(before.recent, after.recent),
        history=_changed(before.history, after.history),
        gone=gone,
    )


def applied(before: LiveState, found: Differences) -> LiveState:
    """Return the state that the differences were found in."""
    return LiveState(
        supervisor=found.supervisor or before.supervisor,
        servers=_merged(before.servers, found.servers, found.gone.get("servers", ())),
        running=_merged(before.running, found.running, found.gone.get("running", ())),
        recent=_merged(before.recent, found.recent, found.gone.get("recent", ())),
        history=_merged(before.history, found.history, found.gone.get("history", ())),
    )


def _changed(before: Mapping[int, _Value], after: Mapping[int, _Value]) -> Mapping[int, _Value]:
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def _merged(
    before: Mapping[int, _Value], changed: Mapping[int, _Value], gone: tuple[int, ...]
) -> Mapping[int, _Value]:
    merged = {**before, **changed}
    for key in gone:
        del merged[key]
    return merged
