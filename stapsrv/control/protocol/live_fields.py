"""The table of the fields of ``watch``: the JSON form of a supervisor's state, and of differences. Pure.

Like :mod:`stapsrv.control.protocol.status_fields`, from which it has servers and supervisor: each class is
one JSON object, each member one row with its meaning in the words of ``docs/control.md``. The values come
from the attributes of the same names in :mod:`stapsrv.observe.live` and :mod:`stapsrv.compile.activity`.
"""

# Annotations are values here, as there.

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

from stapsrv.control.protocol.status_fields import ServerInfo, SupervisorFacts

TABLES = ("servers", "running", "recent", "history")


class RunningRequestInfo(TypedDict):
    """A request under way; see :class:`stapsrv.compile.activity.RunningRequest`."""

    server: Annotated[int, "the id of its server"]
    client: Annotated[str, "address and port of the client, as in the log"]
    since: Annotated[str, "when it had arrived whole"]
    stage: Annotated[
        str,
        "what it does: `read` (it is taken apart), `lookup` (in the result cache), `shared` (it waits for the"
        " compile of an equal request), `queue` (it waits for a worker), `compile`, `sign`, `send`, `store`"
        " (the client has its answer)",
    ]
    release: Annotated[str | None, "the kernel release that it asks for, or null while that is not read"]
    digest: Annotated[str | None, "equal for equal requests, or null before it is looked up"]
    worker: Annotated[str | None, "the host of a [farm](farm.md) that compiled it, or null"]


class EndedRequestInfo(TypedDict):
    """A request that is done; see :class:`stapsrv.compile.activity.EndedRequest`."""

    server: Annotated[int, "the id of its server"]
    client: Annotated[str, "address and port of the client, as in the log"]
    since: Annotated[str, "when it had arrived whole"]
    ended: Annotated[str, "when it was done"]
    release: Annotated[str | None, "the kernel release that it asked for, or null if that was not read"]
    digest: Annotated[str | None, "equal for equal requests, or null if it was not looked up"]
    worker: Annotated[str | None, "the host of a [farm](farm.md) that compiled it, or null"]
    outcome: Annotated[
        str,
        "`answered` (with what stap said), `refused` (the server said why), or `abandoned` (no answer)",
    ]
    rc: Annotated[int | None, "the exit status in the answer, or null without one"]
    source: Annotated[
        str | None,
        "where stap's answer came from: `compiled`, `hit` (the cache), `shared` (an equal request), or null",
    ]
    build: Annotated[str | None, "how a new module was built: `prepared`, `plain` with the reason, or null"]
    rejection: Annotated[
        str | None, "the bound that it met, in the words of [limits](limits.md), or null; the log says more"
    ]
    request_bytes: Annotated[int, "the size of the request"]
    answer_bytes: Annotated[int, "the size of the answer"]
    lookup_s: Annotated[float, "seconds for the search in the result cache"]
    queue_s: Annotated[float, "seconds that it waited for a worker"]
    compile_s: Annotated[float, "seconds of stap's run; 0 if it had none of its own"]
    sign_s: Annotated[float, "seconds for signatures"]
    send_s: Annotated[float, "seconds for the answer to be taken"]


class IntervalInfo(TypedDict):
    """The requests of ten seconds; see :class:`stapsrv.compile.activity.Interval`."""

    requests: Annotated[int, "requests that ended"]
    hits: Annotated[int, "how many of these were answered from the result cache"]
    queued: Annotated[int, "the most that waited for a worker at the same time"]


class UpdateInfo(TypedDict):
    """A supervisor's whole state, or its difference from the state before."""

    kind: Annotated[
        Literal["snapshot", "changes"],
        "`snapshot`: all there is, in place of what was told before; `changes`: what is new or other, each"
        " entry whole, and what is gone",
    ]
    at: Annotated[str, "when that was so"]
    supervisor: NotRequired[
        Annotated[SupervisorFacts, "its [`status`](#status) without `servers`; left out if it is as before"]
    ]
    servers: NotRequired[Annotated[dict[str, ServerInfo], "[servers](#a-server) by their ids"]]
    running: NotRequired[
        Annotated[dict[str, RunningRequestInfo], "[requests under way](#a-request) by numbers that grow"]
    ]
    recent: NotRequired[
        Annotated[
            dict[str, EndedRequestInfo],
            "the last 200 [requests that ended](#a-request) by the same numbers, in the order of their ends",
        ]
    ]
    history: NotRequired[
        Annotated[
            dict[str, IntervalInfo],
            "what happened in the ten seconds from each Unix time on, for the last ten minutes in which"
            " something did",
        ]
    ]
    gone: NotRequired[
        Annotated[dict[str, list[str]], "the keys of entries that are gone, by the names of their tables"]
    ]


class LiveInfo(TypedDict):
    """A supervisor's state, as its updates make it."""

    at: str
    supervisor: SupervisorFacts
    servers: dict[str, ServerInfo]
    running: dict[str, RunningRequestInfo]
    recent: dict[str, EndedRequestInfo]
    history: dict[str, IntervalInfo]


def updated(before: LiveInfo | None, update: UpdateInfo) -> LiveInfo:
    """Return the state after an update, the first of which is a snapshot; raises ValueError if it is not."""
    told = cast("Mapping[str, Any]", update)
    if update["kind"] == "snapshot":
        before = None
    elif before is None:
        raise ValueError("there are changes before the first snapshot")
    gone = update.get("gone", {})
    supervisor = update.get("supervisor") or (before and before["supervisor"])
    if supervisor is None:
        raise ValueError("there is a snapshot without a supervisor")
    tables: dict[str, Any] = {}
    for table in TABLES:
        rows = {**(cast("Any", before)[table] if before else {}), **told.get(table, {})}
        for key in gone.get(table, ()):
            rows.pop(key, None)
        tables[table] = rows
    return cast("LiveInfo", {"at": update["at"], "supervisor": supervisor, **tables})
