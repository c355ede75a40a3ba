"""The table of the status fields of a supervisor and its servers: name, type, meaning and column.

Each class below is one JSON object and each member one row, in the order of the columns of ``status``: its
type, what it means in the words of ``docs/control.md``, and its columns. Everything else is derived:

* :mod:`stapsrv.control.protocol.validation` checks answers against the types;
* :mod:`stapsrv.control.protocol.schema` takes the values from the attributes of the same names in
  :mod:`stapsrv.supervisor.status`;
* :mod:`stapsrv.control.cli.table` makes its columns of :func:`columns`; a test compares the meanings.

A new member is a row here, and the attribute that holds its value. One that an older supervisor does not send
is NotRequired. ``stap-server status`` loads this module, so it needs :mod:`typing` and the checks only.
"""

# Annotations are values here, not strings: that spares every status the time to evaluate them.

from typing import (
    Annotated,
    Literal,
    NamedTuple,
    NotRequired,
    TypeAlias,
    TypedDict,
    cast,
    get_args,
    is_typeddict,
)

from stapsrv.control.protocol.validation import alternatives, members

# ``variable``: the one of a server's settings that the heading names. ``count``: nothing for zero.
Format: TypeAlias = Literal["text", "number", "moment", "seconds", "variable", "hit rate", "count"]

# By the configuration files' names of variables; what is left out has its default. ``KEEP`` (``-k``), which
# the files do not have, is true or false.
SettingsInfo: TypeAlias = dict[str, str | int | bool | list[str]]


class Column(NamedTuple):
    """A column of the table that a terminal shows."""

    heading: str
    format: Format = "text"


def row(hint: object) -> tuple[str, *tuple[Column, ...]]:
    """Return the meaning and the columns of a member of one of the classes below."""
    inner, *found = get_args(hint)
    return cast("tuple[str, *tuple[Column, ...]]", tuple(found)) if found else row(inner)


def columns(shape: type) -> list[tuple[Column, tuple[str, ...]]]:
    """Return the columns of a class, each with the path of the member that it shows."""
    found: list[tuple[Column, tuple[str, ...]]] = []
    for name, hint in members(shape).items():
        _, *shown = row(hint)
        found += ((column, (name,)) for column in shown)
        inner = alternatives(hint).get(dict)
        if is_typeddict(inner):
            found += ((column, (name, *path)) for column, path in columns(cast(type, inner)))
    return found


class ReleaseInfo(TypedDict):
    """A kernel release that a server serves."""

    name: Annotated[str, "as a client states it"]
    health: Annotated[str, "one of `untried`, `warming`, `healthy` and `unhealthy`"]
    reason: Annotated[str | None, "the compiler's first error if it is unhealthy, or null"]


class RecentInfo(TypedDict):
    """The times of the last requests; see :class:`stapsrv.compile.stats.RecentTimes`."""

    requests: Annotated[int, "how many these are, a hundred at most"]
    queue_s: Annotated[
        float | None, "the median of their waits for a worker, in seconds, or null", Column("WAIT", "seconds")
    ]
    compile_s: Annotated[
        float | None, "the median of stap's runs, in seconds, or null", Column("COMPILE", "seconds")
    ]


class CacheInfo(TypedDict):
    """The result cache's counts for a server; see :class:`stapsrv.compile.stats.CacheCounts`."""

    hits: Annotated[int, "requests answered from it", Column("HIT%", "hit rate")]
    misses: Annotated[int, "compiles whose result could have been in it"]
    shared: Annotated[int, "requests answered from the compile of an equal one", Column("SHARED", "count")]
    stored: Annotated[int, "results stored"]
    uncacheable: Annotated[dict[str, int], "compiles whose result was not stored, by reason"]
    builds: Annotated[dict[str, int], "how new modules were built: prepared, or plain with the reason"]


class EngineInfo(TypedDict):
    """The hosts that compile for a server; see :class:`stapsrv.compile.engine.base.EngineStatus`."""

    name: Annotated[str, "as `ENGINE` has it"]
    address: Annotated[str, "where the farm's scheduler is reached"]
    connected: Annotated[bool, "whether it is reached"]
    since: Annotated[str, "when it was reached, or lost"]
    reason: Annotated[str | None, "why it is not reached, or null"]
    workers: Annotated[int, "the hosts that it has"]
    slots: Annotated[int, "how many compiles they run at the same time"]
    releases: Annotated[list[str], "what they can compile for now, each release with its architecture"]
    running: Annotated[int, "jobs of this supervisor that they have"]
    waiting: Annotated[int, "jobs of this supervisor that nobody has taken yet"]
    retries: Annotated[int, "jobs that were given to another host, since the supervisor started"]
    lost_workers: Annotated[int, "hosts that ended without a word since then"]


class ServerInfo(TypedDict):
    """One server at one moment."""

    nickname: Annotated[str, "the given one, else the id", Column("NICKNAME")]
    id: Annotated[
        int, "what `stap-server status` shows as PID and `-p` takes; no process has it", Column("ID")
    ]
    settings: Annotated[
        SettingsInfo,
        "what it was asked to be, see [Settings](#settings)",
        Column("USER", "variable"),
        Column("RELEASE", "variable"),
        Column("ARCH", "variable"),
    ]
    origin: Annotated[str | None, "the configuration file that it comes from, or null"]
    port: Annotated[
        int | None, "where it listens, or last listened; null before the first time", Column("PORT", "number")
    ]
    wanted: Annotated[str, "what the operator wants: `up` or `down`"]
    state: Annotated[
        str,
        "what it is: `starting`, `serving`, `draining`, `stopping`, `stopped`, `backing-off` (it crashed"
        " and will be started again), `failed` (its settings cannot be served)",
        Column("STATE"),
    ]
    since: Annotated[str, "when it came into that state", Column("SINCE", "moment")]
    reason: Annotated[str | None, "why it is backing off or has failed, or null"]
    workers: NotRequired[Annotated[int, "requests that may compile at the same time; 0 until it serves"]]
    running: Annotated[int, "requests that compile", Column("RUNNING", "number")]
    queued: Annotated[int, "requests that wait for a worker", Column("QUEUED", "number")]
    done: Annotated[int, "requests that were answered", Column("DONE", "number")]
    failed: Annotated[int, "requests without an answer from stap", Column("FAILED", "number")]
    connections: NotRequired[Annotated[int, "open connections, whatever they are doing"]]
    refusals: NotRequired[
        Annotated[
            dict[str, int],
            "connections and requests rejected since it last started, by reason (see"
            " [limits](limits.md)); a reason that is missing counts zero",
        ]
    ]
    cache: NotRequired[
        Annotated[CacheInfo, "what the [result cache](cache.md) did since the server last started"]
    ]
    recent: NotRequired[Annotated[RecentInfo, "what the last requests took that stap answered"]]
    engine: NotRequired[
        Annotated[
            EngineInfo | None,
            "the [farm](farm.md) that compiles for it while it serves, or null where this host does",
        ]
    ]
    certificate_expires: Annotated[
        str | None, "when its certificate expires, or null without one", Column("CERT UNTIL", "moment")
    ]
    certificate_serial: NotRequired[
        Annotated[str | None, "its certificate's serial number, in hex pairs, or null without one"]
    ]
    certificate_sha256: NotRequired[
        Annotated[str | None, "its certificate's SHA-256 fingerprint, in hex pairs, or null without one"]
    ]
    releases: NotRequired[
        Annotated[list[ReleaseInfo], "an array of the kernel releases that it serves, while it serves"]
    ]


class SupervisorFacts(TypedDict):
    """A supervisor without its servers."""

    pid: Annotated[int, "the supervisor's process"]
    user: Annotated[str, "the name of the user that it runs as"]
    version: Annotated[str, "of stapsrv"]
    stap_version: Annotated[str, "of the translator"]
    sandbox: NotRequired[
        Annotated[str, "what keeps compiles from the rest of the host: `bubblewrap`, `landlock`, or `off`"]
    ]
    sandbox_failures: NotRequired[
        Annotated[list[str], "better mechanisms that are installed and do not work, a line for each"]
    ]
    containment: Annotated[str, "how the process tree of a compile is held together"]
    cgroup: NotRequired[
        Annotated[
            str | None, "what compiles get control groups of their own from; null where the host grants none"
        ]
    ]
    since: Annotated[str, "when it started"]
    compiles: Annotated[int, "requests that compile now, over all servers"]
    max_compiles: Annotated[int, "the most that may compile at once"]
    refused: NotRequired[
        Annotated[list[str], "why configured servers are not among its servers, a line for each"]
    ]
    scripts: NotRequired[
        Annotated[
            dict[str, dict[str, int]],
            "what the last check of [collections of scripts](scripts.md) came to: for each release that they"
            " are checked for, how many scripts have which verdict; empty without collections",
        ]
    ]
    new_releases: NotRequired[
        Annotated[
            list[str],
            "kernel releases whose installation it noticed since it started, while it had collections to"
            " check for them",
        ]
    ]


class SupervisorInfo(SupervisorFacts):
    """A supervisor and its servers."""

    servers: Annotated[list[ServerInfo], "an array of its [servers](#a-server), in order of their ids"]
