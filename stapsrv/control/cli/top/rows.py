"""The tables of ``top``: states in, rows of text out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from stapsrv.control.cli.commands.watch import total_s
from stapsrv.control.cli.top.states import Followed
from stapsrv.control.protocol.live_fields import EndedRequestInfo, RunningRequestInfo
from stapsrv.control.protocol.status_fields import ReleaseInfo, ServerInfo
from stapsrv.text import printable, tally

# Of what is drawn: ten minutes.
BARS = 60
BAR_S = 10
_BARS = " ▁▂▃▄▅▆▇█"
_NOTHING = "-"
_MARKS = {"healthy": "✓", "unhealthy": "✗", "warming": "…", "untried": "?"}
_DAY_S = 86_400
_DIGEST_CHARACTERS = 8


class Row(NamedTuple):
    """A row of a table: what it is about, and its cells."""

    key: str
    cells: tuple[str, ...]


class ServerColumn(NamedTuple):
    """A column of servers, and what they are sorted by; the largest first where ``descending``."""

    heading: str
    value: Callable[[ServerInfo], float | str]
    descending: bool = False


def hit_rate(server: ServerInfo) -> float | None:
    """Return the share of lookups that the result cache answered, from 0 to 1, or None without any."""
    cache = server.get("cache")
    lookups = cache["hits"] + cache["misses"] + cache["shared"] if cache else 0
    return cache["hits"] / lookups if cache and lookups else None


def releases(server: ServerInfo) -> str:
    """Return a server's release with the mark of its health, or how many it serves and how many well."""
    served = server.get("releases", [])
    if len(served) == 1:
        return f"{_MARKS.get(served[0]['health'], '?')} {served[0]['name']}"
    ill = sum(release["health"] == "unhealthy" for release in served)
    return f"{_MARKS['unhealthy']} {ill} of {len(served)}" if ill else f"{len(served)} releases"


def _median(server: ServerInfo, name: str) -> float | None:
    recent = server.get("recent")
    if recent is None:
        return None
    return recent["queue_s"] if name == "queue_s" else recent["compile_s"]


def days_left(server: ServerInfo, now: datetime) -> int | None:
    """Return for how many whole days its certificate is valid yet; below zero when it is not any more."""
    expires = server["certificate_expires"]
    return None if expires is None else int((datetime.fromisoformat(expires) - now).total_seconds() // _DAY_S)


# What is unknown comes last.
COLUMNS = (
    ServerColumn("SERVER", lambda server: server["nickname"]),
    ServerColumn("STATE", lambda server: server["state"]),
    ServerColumn("PORT", lambda server: server["port"] or 0),
    ServerColumn("RELEASES", releases),
    ServerColumn("BUSY", lambda server: server["running"], descending=True),
    ServerColumn("QUE", lambda server: server["queued"], descending=True),
    ServerColumn("HIT%", lambda server: _or_least(hit_rate(server)), descending=True),
    ServerColumn("COMPILE", lambda server: _or_least(_median(server, "compile_s")), descending=True),
    ServerColumn("WAIT", lambda server: _or_least(_median(server, "queue_s")), descending=True),
    ServerColumn("CERT", lambda server: server["certificate_expires"] or "~"),
)
RUNNING_HEADINGS = ("RUNNING", "SERVER", "RELEASE", "DIGEST", "STAGE", "AGE", "WORKER")
ENDED_HEADINGS = ("ENDED", "CLIENT", "SERVER", "RELEASE", "RESULT", "SOURCE", "TOOK")


def server_rows(states: Mapping[str, Followed], *, sort: int, words: str, now: datetime) -> list[Row]:
    """Return the servers that ``words`` are found in, sorted by the column number ``sort``."""
    column = COLUMNS[sort]
    servers = [one for one in _servers(states) if _finds(words, _server_text(one[1], now))]
    servers.sort(key=lambda one: (one[1]["nickname"], one[1]["id"]))
    servers.sort(key=lambda one: column.value(one[1]), reverse=column.descending)
    return [Row(key_of(user, server), _server_cells(server, now)) for user, server in servers]


def running_rows(states: Mapping[str, Followed], *, words: str, now: datetime) -> list[Row]:
    """Return the requests under way, the oldest first."""
    found: list[tuple[str, Row]] = []
    for followed in states.values():
        names = _names(followed)
        for number, request in followed.info["running"].items():
            row = Row(f"{followed.user}/{number}", _running_cells(request, names, now))
            found.append((request["since"], row))
    return [row for _, row in sorted(found, key=lambda one: one[0]) if _finds(words, " ".join(row.cells))]


def ended_rows(states: Mapping[str, Followed], *, words: str) -> list[Row]:
    """Return the last requests, the newest first."""
    found: list[tuple[str, Row]] = []
    for followed in states.values():
        names = _names(followed)
        for number, request in followed.info["recent"].items():
            found.append((request["ended"], Row(f"{followed.user}/{number}", _ended_cells(request, names))))
    found.sort(key=lambda one: one[0], reverse=True)
    return [row for _, row in found if _finds(words, " ".join(row.cells))]


def refusals_line(servers: Iterable[ServerInfo]) -> str:
    """Return how many connections and requests were rejected, by reason, the most frequent first."""
    counts: Counter[str] = Counter()
    for server in servers:
        counts.update(server.get("refusals", {}))
    told = ", ".join(f"{reason} {count}" for reason, count in counts.most_common() if count)
    return f"refusals: {told or 'none'}"


def history_lines(states: Mapping[str, Followed], now: datetime) -> list[str]:
    """Return three lines with the bars of the last ten minutes: requests, hits and queue."""
    requests, hits, queued = ([0] * BARS for _ in range(3))
    last = int(now.timestamp()) // BAR_S * BAR_S
    for followed in states.values():
        for begin, interval in followed.info["history"].items():
            bar = BARS - 1 - (last - int(begin)) // BAR_S
            if 0 <= bar < BARS:
                requests[bar] += interval["requests"]
                hits[bar] += interval["hits"]
                queued[bar] += interval["queued"]
    waiting = sum(server["queued"] for _, server in _servers(states))
    total = sum(requests)
    rate = f"{100 * sum(hits) // total} %" if total else _NOTHING
    return [
        f"requests {bars(requests)} {total}/10m",
        f"hits     {bars(hits)} {rate}",
        f"queue    {bars(queued)} {waiting} now",
    ]


def bars(values: Sequence[int]) -> str:
    """Return a character for each value, the tallest for the largest; nothing for zero."""
    most = max(values, default=0)
    steps = len(_BARS) - 1
    return "".join(_BARS[-(-value * steps // most) if most else 0] for value in values)


def server_of(states: Mapping[str, Followed], key: str) -> tuple[Followed, ServerInfo] | None:
    """Return the server of a row, and its supervisor; None if it is gone."""
    for followed in states.values():
        for server in followed.info["servers"].values():
            if key_of(followed.user, server) == key:
                return followed, server
    return None


def page_lines(
    server: ServerInfo, now: datetime, *, scripts: Mapping[str, Mapping[str, int]] = {}
) -> list[str]:
    """Return what a server's own page says of it; ``scripts`` are counted by release and verdict."""
    left = days_left(server, now)
    busy = f"{server['running']} of {server.get('workers', 0)} workers busy, {server['queued']} queued"
    took = f"compile {_seconds(_median(server, 'compile_s'))}, wait {_seconds(_median(server, 'queue_s'))}"
    lines = [
        f"{server['nickname']} (id {server['id']}): {_state_words(server)}; wanted: {server['wanted']}",
        f"port {server['port'] or _NOTHING}; {busy}; {server.get('connections', 0)} connections",
        f"done {server['done']}, failed {server['failed']}, hit % {_percent(hit_rate(server))}; {took}",
        f"certificate: {_NOTHING if left is None else f'{left} days left'}; {refusals_line([server])}",
    ]
    for release in server.get("releases", ()):
        # Where servers compile in unlike ways for a release, those after the first are named.
        counts = scripts.get(f"{release['name']} ({server['nickname']})") or scripts.get(release["name"])
        lines.append(f"{_release_line(release)}{f'; scripts: {tally(counts)}' if counts else ''}")
    return list(map(printable, lines))


def key_of(user: str, server: ServerInfo) -> str:
    """Return what tells a server from all others on this host."""
    return f"{user}/{server['id']}"


def _servers(states: Mapping[str, Followed]) -> Iterable[tuple[str, ServerInfo]]:
    return [(one.user, server) for one in states.values() for server in one.info["servers"].values()]


def _names(followed: Followed) -> Mapping[int, str]:
    return {server["id"]: server["nickname"] for server in followed.info["servers"].values()}


def _server_cells(server: ServerInfo, now: datetime) -> tuple[str, ...]:
    left = days_left(server, now)
    return (
        printable(server["nickname"]),
        server["state"],
        str(server["port"] or _NOTHING),
        printable(releases(server)),
        f"{server['running']}/{server.get('workers', 0)}",
        str(server["queued"]),
        _percent(hit_rate(server)),
        _seconds(_median(server, "compile_s")),
        _seconds(_median(server, "queue_s")),
        _NOTHING if left is None else f"{left} d",
    )


def _running_cells(request: RunningRequestInfo, names: Mapping[int, str], now: datetime) -> tuple[str, ...]:
    age_s = max(0.0, (now - datetime.fromisoformat(request["since"])).total_seconds())
    return (
        _host(request["client"]),
        _server_name(request["server"], names),
        printable(request["release"] or _NOTHING),
        (request["digest"] or _NOTHING)[:_DIGEST_CHARACTERS],
        request["stage"],
        f"{age_s:.0f} s",
        printable(request["worker"] or _NOTHING),
    )


def _ended_cells(request: EndedRequestInfo, names: Mapping[int, str]) -> tuple[str, ...]:
    result = f"rc={request['rc']}" if request["outcome"] == "answered" else request["outcome"]
    return (
        datetime.fromisoformat(request["ended"]).astimezone().strftime("%H:%M:%S"),
        _host(request["client"]),
        _server_name(request["server"], names),
        printable(request["release"] or _NOTHING),
        request["rejection"] or result,
        request["source"] or _NOTHING,
        _seconds(total_s(request)),
    )


def _server_text(server: ServerInfo, now: datetime) -> str:
    names = " ".join(release["name"] for release in server.get("releases", ()))
    return f"{' '.join(_server_cells(server, now))} {names}"


def _finds(words: str, text: str) -> bool:
    return words.lower() in text.lower()


def _server_name(server_id: int, names: Mapping[int, str]) -> str:
    return printable(names.get(server_id, str(server_id)))


def _host(client: str) -> str:
    """Return the address of a client without its port."""
    return printable(client.rpartition(":")[0].strip("[]") or client)


def _state_words(server: ServerInfo) -> str:
    return f"{server['state']}: {server['reason']}" if server["reason"] else server["state"]


def _release_line(release: ReleaseInfo) -> str:
    reason = f": {release['reason']}" if release["reason"] else ""
    return f"{_MARKS.get(release['health'], '?')} {release['name']} {release['health']}{reason}"


def _percent(share: float | None) -> str:
    return _NOTHING if share is None else f"{100 * share:.0f}"


def _seconds(seconds: float | None) -> str:
    return _NOTHING if seconds is None else f"{seconds:.1f} s"


def _or_least(value: float | None) -> float:
    return -1.0 if value is None else value
