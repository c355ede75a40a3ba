"""The table of what a supervisor says of itself and of its servers: name, type, meaning and column.

Each class below is one JSON object and each member one row, in the order of the columns of ``status``.
Everything else is derived from them:

* mypy reads the types, and :mod:`stapsrv.control.protocol.validation` checks answers against them;
* :func:`stapsrv.control.protocol.schema.supervisor_info` takes the values from the attributes of the same
  names in :mod:`stapsrv.supervisor.status`;
* :mod:`stapsrv.control.cli.table` makes its columns of :func:`columns`;
* ``docs/control.md`` has the meanings in the same words, which a test compares.

A new member is a row here, and the attribute that holds its value. One that an older supervisor does not send
is NotRequired. ``stap-server status`` loads this module, so it needs :mod:`typing` only.
"""

# Annotations are values here, not strings: that spares every status the time to evaluate them.

from functools import cache
from typing import (
    Annotated,
    Literal,
    NamedTuple,
    NotRequired,
    TypeAlias,
    TypedDict,
    cast,
    get_args,
    get_type_hints,
    is_typeddict,
)

Format: TypeAlias = Literal["text", "number", "moment", "seconds", "variable", "hit rate", "count"]
"""``variable``: the one of a server's settings that the heading names. ``count``: nothing for zero."""

SettingsInfo: TypeAlias = dict[str, str | int | bool | list[str]]
"""A server's settings by the configuration files' names of variables: texts, whole numbers, for arrays lists
of texts. ``KEEP`` (``-k``), which the files do not have, is true or false. What is left out has its default.
"""


class Column(NamedTuple):
    """A column of the table that a terminal shows; an optional one is left out where it has no value."""

    heading: str
    format: Format = "text"
    right: bool = False
    optional: bool = False


class Field(NamedTuple):
    """What a member means, in the words of ``docs/control.md``, and where the table shows it."""

    meaning: str
    columns: tuple[Column, ...] = ()


@cache
def members(shape: type) -> dict[str, object]:
    """Return the types of the members of one of the classes below."""
    return get_type_hints(shape)


def fields(shape: type) -> dict[str, Field]:
    """Return the rows of one of the classes below, by the members' names."""
    return {name: _field(hint) for name, hint in get_type_hints(shape, include_extras=True).items()}


def columns(shape: type) -> list[tuple[Column, tuple[str, ...]]]:
    """Return the columns of a class, each with the path of the member that it shows."""
    found: list[tuple[Column, tuple[str, ...]]] = []
    for name, field in fields(shape).items():
        found += ((column, (name,)) for column in field.columns)
        inner = members(shape)[name]
        if is_typeddict(inner):
            found += ((column, (name, *path)) for column, path in columns(cast(type, inner)))
    return found


class ReleaseInfo(TypedDict):
    """A kernel release that a server serves."""

    name: Annotated[str, Field("as a client states it")]
    health: Annotated[str, Field("one of `untried`, `warming`, `healthy` and `unhealthy`")]
    reason: Annotated[str | None, Field("the compiler's first error if it is unhealthy, or null")]


class RecentInfo(TypedDict):
    """What the last requests took; see :class:`stapsrv.compile.stats.RecentTimes`."""

    requests: Annotated[int, Field("how many these are, a hundred at most")]
    queue_s: Annotated[
        float | None,
        Field(
            "the median of their waits for a worker, in seconds, or null",
            (Column("WAIT", "seconds", right=True, optional=True),),
        ),
    ]
    compile_s: Annotated[
        float | None,
        Field(
            "the median of stap's runs, in seconds, or null",
            (Column("COMPILE", "seconds", right=True, optional=True),),
        ),
    ]


class CacheInfo(TypedDict):
    """What the result cache did for a server; see :class:`stapsrv.compile.stats.CacheCounts`."""

    hits: Annotated[
        int,
        Field("requests answered from it", (Column("HIT%", "hit rate", right=True, optional=True),)),
    ]
    misses: Annotated[int, Field("compiles whose result could have been in it")]
    shared: Annotated[
        int,
        Field(
            "requests answered from the compile of an equal one",
            (Column("SHARED", "count", right=True, optional=True),),
        ),
    ]
    stored: Annotated[int, Field("results stored")]
    uncacheable: Annotated[dict[str, int], Field("compiles whose result was not stored, by reason")]


class ServerInfo(TypedDict):
    """One server at one moment."""

    nickname: Annotated[str, Field("the given one, else the id", (Column("NICKNAME"),))]
    id: Annotated[
        int,
        Field("what `stap-server status` shows as PID and `-p` takes; no process has it", (Column("ID"),)),
    ]
    settings: Annotated[
        SettingsInfo,
        Field(
            "what it was asked to be, see [Settings](#settings)",
            (Column("USER", "variable"), Column("RELEASE", "variable"), Column("ARCH", "variable")),
        ),
    ]
    origin: Annotated[str | None, Field("the configuration file that it comes from, or null")]
    port: Annotated[
        int | None,
        Field(
            "where it listens, or last listened; null before the first time",
            (Column("PORT", "number", right=True),),
        ),
    ]
    wanted: Annotated[str, Field("what the operator wants: `up` or `down`")]
    state: Annotated[
        str,
        Field(
            "what it is: `starting`, `serving`, `draining`, `stopping`, `stopped`, `backing-off` (it crashed"
            " and will be started again), `failed` (its settings cannot be served)",
            (Column("STATE"),),
        ),
    ]
    since: Annotated[str, Field("when it came into that state", (Column("SINCE", "moment"),))]
    reason: Annotated[str | None, Field("why it is backing off or has failed, or null")]
    running: Annotated[int, Field("requests that compile", (Column("RUNNING", "number", right=True),))]
    queued: Annotated[
        int, Field("requests that wait for a worker", (Column("QUEUED", "number", right=True),))
    ]
    done: Annotated[int, Field("requests that were answered", (Column("DONE", "number", right=True),))]
    failed: Annotated[
        int, Field("requests without an answer from stap", (Column("FAILED", "number", right=True),))
    ]
    connections: NotRequired[Annotated[int, Field("open connections, whatever they are doing")]]
    refusals: NotRequired[
        Annotated[
            dict[str, int],
            Field(
                "connections and requests rejected since it last started, by reason (see"
                " [limits](limits.md)); a reason that is missing counts zero"
            ),
        ]
    ]
    cache: NotRequired[
        Annotated[CacheInfo, Field("what the [result cache](cache.md) did since the server last started")]
    ]
    recent: NotRequired[Annotated[RecentInfo, Field("what the last requests took that stap answered")]]
    certificate_expires: Annotated[
        str | None,
        Field("when its certificate expires, or null without one", (Column("CERT UNTIL", "moment"),)),
    ]
    releases: NotRequired[
        Annotated[list[ReleaseInfo], Field("an array of the kernel releases that it serves, while it serves")]
    ]


class SupervisorInfo(TypedDict):
    """A supervisor and its servers."""

    pid: Annotated[int, Field("the supervisor's process")]
    user: Annotated[str, Field("the name of the user that it runs as")]
    version: Annotated[str, Field("of stapsrv")]
    stap_version: Annotated[str, Field("of the translator")]
    sandbox: NotRequired[
        Annotated[
            str, Field("what keeps compiles from the rest of the host: `bubblewrap`, `landlock`, or `off`")
        ]
    ]
    containment: Annotated[str, Field("how the process tree of a compile is held together")]
    cgroup: NotRequired[
        Annotated[
            str | None,
            Field("what compiles get control groups of their own from; null where the host grants none"),
        ]
    ]
    since: Annotated[str, Field("when it started")]
    compiles: Annotated[int, Field("requests that compile now, over all servers")]
    max_compiles: Annotated[int, Field("the most that may compile at once")]
    servers: Annotated[list[ServerInfo], Field("an array of its [servers](#a-server), in order of their ids")]


def _field(hint: object) -> Field:
    """Return the row in an annotation."""
    while not isinstance(row := get_args(hint)[-1], Field):
        hint = row
    return row
