"""The table of what can be tuned: each row is a variable of the files, an option, and a line of the manual.

A row of scope SERVER may stand in the global file, where it holds for every server, in a server's file and on
the command lines of ``stap-serverd`` and ``stap-server``, where it goes before that. One of scope SUPERVISOR
stands in the global file and on ``stap-serverd``'s command line.

What has been set is a :class:`Tuning`: attribute to value, and nothing where nobody said anything, so that
one source can be laid over another. Values with all defaults filled in, and with types, are the attrs classes
of :mod:`stapsrv.config.settings`. Light to import, like :mod:`stapsrv.config.files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

from stapsrv.config.networks import LISTEN_ADDRESS, NETWORK
from stapsrv.config.quantities import Kind, choice, count, duration, path, size, switch


class Scope(Enum):
    """Whose a setting is."""

    SERVER = "server"
    SUPERVISOR = "supervisor"


class Tunable(NamedTuple):
    """One row.

    Attributes:
        variable: its name in files.
        attribute: its name in a :class:`Tuning`, and in the class that gives it a type.
        kind: what values it takes; an array's elements, each.
        default: what holds where nobody says anything; None where that depends on the host.
        help: what it is, in a few words without a full stop.
        scope: whose it is.
        array: holds any number of values, one for each line of a file and each time the option is typed.
        identifies: servers that differ in it are not the same (manual page, ``start``).
    """

    variable: str
    attribute: str
    kind: Kind
    default: Any
    help: str
    scope: Scope = Scope.SERVER
    array: bool = False
    identifies: bool = False

    @property
    def option(self) -> str:
        """Its long option."""
        return f"--{self.variable.lower().replace('_', '-')}"

    @property
    def default_text(self) -> str:
        """The default as one would write it; empty where there is none to write."""
        return "" if self.default is None or self.array else self.kind.encode(self.default)


_GIBI = 1024**3
_GRACE = duration(least_s=0.0, most_s=3600.0)

TUNABLES: tuple[Tunable, ...] = (
    Tunable(
        "LISTEN",
        "listen",
        LISTEN_ADDRESS,
        (),
        "an address to listen on, in place of all that this host has",
        array=True,
        identifies=True,
    ),
    Tunable(
        "ALLOW",
        "allow",
        NETWORK,
        (),
        "a network whose clients may use the server, in place of all clients",
        array=True,
    ),
    Tunable(
        "DENY",
        "deny",
        NETWORK,
        (),
        "a network whose clients may not use the server, whatever is allowed",
        array=True,
    ),
    Tunable(
        "MAX_CONNECTIONS",
        "connections",
        count("a number of connections"),
        512,
        "open connections; more are reset before the handshake, so that clients come back",
    ),
    Tunable(
        "MAX_CONNECTIONS_PER_ADDRESS",
        "connections_per_address",
        count("a number of connections"),
        128,
        "open connections from one address, or from one IPv6 network of 64 bits; more are reset likewise",
    ),
    Tunable(
        "HANDSHAKE_TIMEOUT",
        "handshake_s",
        duration(),
        10.0,
        "how long a client may take for the TLS handshake",
    ),
    Tunable(
        "REQUEST_TIMEOUT",
        "request_s",
        duration(),
        30.0,
        "how long a client may take to send its request",
    ),
    Tunable(
        "QUEUE_LENGTH",
        "queue_length",
        count("a number of requests", least=0),
        256,
        "requests that may wait for a worker; more connections are reset before the handshake",
    ),
    Tunable(
        "QUEUE_TIMEOUT",
        "queue_s",
        duration(),
        300.0,
        "how long a request may wait for a worker",
    ),
    Tunable(
        "COMPILE_TIMEOUT",
        "compile_s",
        duration(),
        600.0,
        "how long stap may take for a request",
    ),
    Tunable(
        "SEND_TIMEOUT",
        "send_s",
        duration(),
        60.0,
        "how long a client may take to receive its answer",
    ),
    Tunable(
        "MAX_OUTPUT_SIZE",
        "output_bytes",
        size(),
        16 * 1024 * 1024,
        "what stap may print for a request, on each of standard output and standard error",
    ),
    Tunable(
        "MAX_ANSWER_SIZE",
        "answer_bytes",
        size(),
        64 * 1024 * 1024,
        "all files of an answer together, before compression",
    ),
    Tunable(
        "MAX_TEMP_SIZE",
        "temp_bytes",
        size(),
        _GIBI,
        "temporary files of a request together",
    ),
    Tunable(
        "MAX_TOTAL_TEMP_SIZE",
        "total_temp_bytes",
        size(),
        4 * _GIBI,
        "temporary files of all requests to all servers together; beyond it the largest request is ended",
        Scope.SUPERVISOR,
    ),
    Tunable(
        "MAX_COMPILES",
        "total_compiles",
        count("a number of compiles"),
        None,
        "requests compiled at the same time by all servers together (default: the number of cores)",
        Scope.SUPERVISOR,
    ),
    Tunable(
        "MAX_TOTAL_CONNECTIONS",
        "total_connections",
        count("a number of connections"),
        None,
        "open connections to all servers together (default: 4096, or what the limit of open files allows)",
        Scope.SUPERVISOR,
    ),
    Tunable(
        "RESULT_CACHE",
        "result_cache",
        switch(),
        True,  # noqa: FBT003 - the default, as in every row
        "answer a request whose result is known without compiling it again",
    ),
    Tunable(
        "RESULT_CACHE_SIZE",
        "result_cache_bytes",
        size(least=1024 * 1024),
        256 * 1024 * 1024,
        "all results that are kept, on disk",
        scope=Scope.SUPERVISOR,
    ),
    Tunable(
        "RESULT_CACHE_AGE",
        "result_cache_s",
        duration(least_s=1.0, most_s=366 * 86_400.0),
        30 * 86_400.0,
        "how long a result is kept",
        scope=Scope.SUPERVISOR,
    ),
    Tunable(
        "DRAIN_TIMEOUT",
        "drain_s",
        _GRACE,
        5.0,
        "how long a server that stops lets outstanding requests finish",
    ),
    Tunable(
        "KILL_GRACE",
        "kill_grace_s",
        _GRACE,
        2.0,
        "how long a compile that is ended has between the signals TERM and KILL",
    ),
    Tunable(
        "LIMIT_CPU",
        "cpu_s",
        duration(least_s=0.0),
        600.0,
        "processor time of each process of a compile; 0: no limit",
    ),
    Tunable(
        "LIMIT_MEMORY",
        "memory_bytes",
        size(least=0),
        8 * _GIBI,
        "address space of each process of a compile, and memory of all in a control group; 0: no limit",
    ),
    Tunable(
        "LIMIT_FILE",
        "file_bytes",
        size(least=0),
        2 * _GIBI,
        "size of each file that a compile writes; 0: no limit",
    ),
    Tunable(
        "LIMIT_PROCESSES",
        "processes",
        count("a number of processes", least=0),
        512,
        "processes of a compile at the same time; 0: no limit",
    ),
    Tunable(
        "LIMIT_CORES",
        "cores",
        count("a number of cores", least=0),
        0,
        "cores that a compile may use up at the same time, in a control group; 0: no limit",
    ),
    Tunable(
        "NICE",
        "nice",
        count("a priority", least=0, most=19),
        5,
        "how far compiles stand behind other programs",
    ),
    Tunable(
        "SANDBOX_READ",
        "sandbox_read",
        path(),
        (),
        "a further file or directory that compiles may read",
        array=True,
    ),
    Tunable(
        "SANDBOX_WRITE",
        "sandbox_write",
        path(),
        (),
        "a further directory that compiles may change",
        array=True,
    ),
    Tunable(
        "SANDBOX",
        "sandbox",
        choice("auto", "bubblewrap", "landlock", "off", gone={"unshare": "auto or bubblewrap"}),
        "auto",
        "how compiles are kept from the rest of the host; auto: the first way that works",
        scope=Scope.SUPERVISOR,
    ),
    Tunable(
        "TEMP_IN_MEMORY",
        "temp_in_memory",
        switch(),
        True,  # noqa: FBT003 - the default, as in every row
        "compile in memory where TMPDIR is not set and twice MAX_TOTAL_TEMP_SIZE is free",
        scope=Scope.SUPERVISOR,
    ),
    Tunable(
        "WARMUP",
        "warmup",
        switch(),
        True,  # noqa: FBT003 - the default, as in every row
        "compile for each release once after the start, in the background, lest its first client waits",
    ),
)
"""In the order in which people read of them. Add rows where they belong."""

BY_ATTRIBUTE: Mapping[str, Tunable] = {row.attribute: row for row in TUNABLES}
SERVER_TUNABLES = tuple(row for row in TUNABLES if row.scope is Scope.SERVER)


class Tuning(Mapping[str, Any]):
    """What has been set: attribute to value. Immutable; the order of setting does not count.

    Args:
        values: by attributes of the table.

    Raises:
        KeyError: the table has no such attribute.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = {BY_ATTRIBUTE[name].attribute: value for name, value in (values or {}).items()}

    def __getitem__(self, attribute: str) -> Any:  # noqa: ANN401 - each row has its own type
        return self._values[attribute]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Tuning({self._values!r})"

    def over(self, base: Mapping[str, Any]) -> Tuning:
        """Return what holds when this goes before ``base``."""
        return Tuning({**base, **self._values})

    def effective(self, attribute: str) -> Any:  # noqa: ANN401 - each row has its own type
        """Return a value, or the default where none was set."""
        return self._values.get(attribute, BY_ATTRIBUTE[attribute].default)

    def identifying(self) -> Tuning:
        """Return what makes a server another one."""
        return Tuning({name: value for name, value in self.items() if BY_ATTRIBUTE[name].identifies})

    def of_servers(self) -> Tuning:
        """Return what holds for servers, without what is the supervisor's own."""
        return Tuning(
            {name: value for name, value in self.items() if BY_ATTRIBUTE[name].scope is Scope.SERVER}
        )


NOTHING_SET = Tuning()


def with_tuning(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by attribute, those of the table put together as ``tuning`` if there is any."""
    tuned = {name: value for name, value in values.items() if name in BY_ATTRIBUTE}
    others = {name: value for name, value in values.items() if name not in tuned}
    return {**others, "tuning": Tuning(tuned)} if tuned else others
