"""Pages by path: a state goes in, a template and its facts come out. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

import attrs

from stapsrv.compile.activity import EndedRequest, RunningRequest
from stapsrv.compile.health import Health
from stapsrv.observe.live import LiveState
from stapsrv.observe.web.day import Minute
from stapsrv.observe.web.graphs import graphs_of, hours_of
from stapsrv.supervisor.lifecycle import State, Wanted
from stapsrv.supervisor.status import ReleaseStatus, ServerStatus, ServerWork

# On the first page; a server's or a release's own has all that are known.
_LAST_SHOWN = 50


@attrs.frozen(kw_only=True)
class Moment:
    """The state at one moment; ``host`` is what clients call this host."""

    at: datetime
    state: LiveState
    minutes: Mapping[int, Minute]
    host: str


@attrs.frozen
class View:
    """A template, and what it shows."""

    template: str
    facts: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class CheckedRelease:
    """The results of scripts for a release; of servers with unlike options each has a label."""

    label: str
    release: str  # that has a page
    is_new: bool  # it was installed since the start
    counts: Mapping[str, int]  # by verdict


@attrs.frozen
class ServedRelease:
    """A release as one server has it."""

    server: ServerStatus
    release: ReleaseStatus


def find_view(path: str, moment: Moment) -> View | None:
    """Return what a path shows, or None where nothing is."""
    kind, _, rest = path.removeprefix("/").partition("/")
    name = unquote(rest)
    state = moment.state
    match kind:
        case "" if not rest:
            return View("overview.html", _overview(moment))
        case "add-client" if not rest:
            return View("add_client.html", {"offers": _offers(moment)})
        case "server" if (server := state.servers.get(_number(name))) is not None:
            return View("server.html", {"server": server, **_requests(state, server_id=server.id)})
        case "release":
            found = _requests(state, release=name)
            served = _served(state, name)
            scripts = [each for each in _checked(state) if each.release == name]
            if served or scripts or any(found.values()):
                return View("release.html", {"name": name, "served": served, "scripts": scripts, **found})
        case "request":
            number = _number(name)
            if number in state.running or number in state.recent:
                running, ended = state.running.get(number), state.recent.get(number)
                return View("request.html", {"number": number, "running": running, "ended": ended})
    return None


def release_path(name: str) -> str:
    """Return the path of a release's page; a build tree's name has slashes."""
    return f"/release/{quote(name, safe='')}"


def hit_percent(work: ServerWork) -> float | None:
    """Return how many of a server's answers came from the cache."""
    asked = work.cache.hits + work.cache.misses + work.cache.shared
    return 100 * work.cache.hits / asked if asked else None


def problems(state: LiveState) -> tuple[str, ...]:
    """Return what an operator has to see to, a line each."""
    found = [
        f"Server {server.nickname} is {server.state.value}{f': {server.reason}' if server.reason else ''}"
        for server in state.servers.values()
        if server.wanted is Wanted.UP and server.state is not State.SERVING
    ]
    found += [
        f"Server {server.nickname} cannot compile for {release.name}: {release.reason}"
        for server in state.servers.values()
        for release in server.work.releases
        if release.health is Health.UNHEALTHY
    ]
    return (*found, *(f"Configuration refused: {fault}" for fault in state.supervisor.refused))


def _overview(moment: Moment) -> dict[str, Any]:
    state = moment.state
    servers = list(state.servers.values())
    refusals: dict[str, int] = {}
    for server in servers:
        for reason, count in server.work.refusals.items():
            if count:
                refusals[reason.value] = refusals.get(reason.value, 0) + count
    now = moment.at.timestamp()
    return {
        "servers": servers,
        "serving": sum(server.state is State.SERVING for server in servers),
        "queued": sum(server.work.queued for server in servers),
        "done": sum(server.work.done for server in servers),
        "hits": hit_percent(_together(servers)),
        "problems": problems(state),
        "refusals": sorted(refusals.items(), key=lambda item: -item[1]),
        "graphs": graphs_of(moment.minutes, now),
        "hours": hours_of(moment.minutes),
        "scripts": _checked(state),
        "running": state.running,
        "recent": _last_first(state.recent)[:_LAST_SHOWN],
    }


def _together(servers: Iterable[ServerStatus]) -> ServerWork:
    work = ServerWork()
    for server in servers:
        for name in ("hits", "misses", "shared"):
            setattr(work.cache, name, getattr(work.cache, name) + getattr(server.work.cache, name))
    return work


def _offers(moment: Moment) -> list[dict[str, Any]]:
    """Return for each server that serves: its address and its releases, as a shell reads them."""
    offers = []
    for server in moment.state.servers.values():
        if server.state is not State.SERVING:
            continue
        host = next(iter(server.settings.access.listen), moment.host)
        address = shlex.quote(f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}")
        usable = [
            shlex.quote(each.name) for each in server.work.releases if each.health is not Health.UNHEALTHY
        ]
        offers.append({"server": server, "address": address, "releases": usable})
    return offers


def _served(state: LiveState, name: str) -> list[ServedRelease]:
    return [
        ServedRelease(server, release)
        for server in state.servers.values()
        for release in server.work.releases
        if release.name == name
    ]


def _checked(state: LiveState) -> list[CheckedRelease]:
    new = set(state.supervisor.new_releases)
    served = {release.name for server in state.servers.values() for release in server.work.releases}
    found = []
    for label, counts in state.supervisor.scripts.items():
        meant = [name for name in served if label.startswith(f"{name} (")]
        release = label if label in served or not meant else max(meant, key=len)
        found.append(CheckedRelease(label, release, release in new, counts))
    return found


def _requests(
    state: LiveState, *, server_id: int | None = None, release: str | None = None
) -> dict[str, Any]:
    def is_wanted(request: RunningRequest | EndedRequest) -> bool:
        return request.server == server_id if release is None else request.release == release

    return {
        "running": {number: each for number, each in state.running.items() if is_wanted(each)},
        "recent": [(number, each) for number, each in _last_first(state.recent) if is_wanted(each)],
    }


def _last_first(recent: Mapping[int, EndedRequest]) -> Sequence[tuple[int, EndedRequest]]:
    return list(recent.items())[::-1]


def _number(text: str) -> int:
    # Python refuses thousands of digits.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1  # noqa: PLR2004


def run_of(state: LiveState) -> str:
    """Return what names this run of the supervisor: numbers of requests begin anew with each."""
    return f"{state.supervisor.pid}-{state.supervisor.since.astimezone(UTC):%Y%m%dT%H%M%S}"
