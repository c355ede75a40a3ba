"""``status --watch``: prints what changes, until it is interrupted: lines for people, or for programs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from stapsrv.control.cli.console import Console, script_lines
from stapsrv.control.cli.follow import Follower, Lost, Seen, sockets_to_follow
from stapsrv.control.cli.invocation import OutputForm
from stapsrv.control.protocol.live_fields import EndedRequestInfo, LiveInfo, updated
from stapsrv.control.protocol.status_fields import ServerInfo

# As a shell reports a program that a signal ended.
_INTERRUPTED = 130


def run_watch(
    config_file: Path | None, form: OutputForm, console: Console, environ: Mapping[str, str]
) -> int:
    """Print all that the supervisors tell until SIGINT; return the exit status.

    Raises:
        ConfigError: a configuration cannot be used.
    """
    # Before anything begins: in a thread nobody would read of it.
    sockets_to_follow(config_file, environ)
    printer = _Printer(console, form)
    try:
        with Follower(partial(sockets_to_follow, config_file, environ), printer.print):
            printer.closed.wait()
    except KeyboardInterrupt:
        return _INTERRUPTED
    if printer.fault is not None:
        raise printer.fault
    return 0


class _Printer:
    """Prints the news of all supervisors, one at a time."""

    def __init__(self, console: Console, form: OutputForm) -> None:
        self._console = console
        self._form = form
        self._lock = threading.Lock()
        self._states: dict[str, LiveInfo] = {}
        self.closed = threading.Event()  # what is printed cannot be written, by the fault
        self.fault: OSError | None = None

    def print(self, news: Seen | Lost) -> None:
        lines = self._as_json(news) if self._form is OutputForm.JSON else self._as_text(news)
        with self._lock:
            try:
                for line in lines:
                    self._console.say(line)
                self._console.write("")
            except OSError as exc:
                self.fault = exc
                self.closed.set()

    def _as_json(self, news: Seen | Lost) -> Iterator[str]:
        if isinstance(news, Seen):
            yield json.dumps({"user": news.user, **news.update})
        else:
            at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            yield json.dumps({"user": news.user, "kind": "lost", "at": at, "reason": news.reason})

    def _as_text(self, news: Seen | Lost) -> Iterator[str]:
        if isinstance(news, Lost):
            self._states.pop(news.user, None)
            yield f"{_time(None)} {news.user}: {news.reason}"
            return
        before = self._states.get(news.user)
        after = self._states[news.user] = updated(before, news.update)
        yield from change_lines(before, after)


def change_lines(before: LiveInfo | None, after: LiveInfo) -> Iterator[str]:
    """Yield a line for each server whose state is another one, and each request that has ended since.

    Each release for which another number of scripts has some verdict has a line, too.
    """
    for key, server in after["servers"].items():
        known = before["servers"].get(key) if before else None
        if known is None or _state(known) != _state(server):
            yield f"{_time(server['since'])} {_state(server)}"
    for key, server in (before["servers"] if before else {}).items():
        if key not in after["servers"]:
            yield f"{_time(after['at'])} {server['nickname']}: gone"
    told = script_lines(before["supervisor"]) if before else []
    for line in script_lines(after["supervisor"]):
        if line not in told:
            yield f"{_time(after['at'])} {line}"
    for key, request in after["recent"].items():
        if before is not None and key not in before["recent"]:
            yield request_line(request, after["servers"])


def request_line(request: EndedRequestInfo, servers: Mapping[str, ServerInfo]) -> str:
    """Return one line about a request that has ended."""
    server = servers.get(str(request["server"]))
    name = server["nickname"] if server is not None else str(request["server"])
    facts = [request["client"], request["release"] or "-", request["outcome"]]
    if request["rc"] is not None:
        facts.append(f"rc={request['rc']}")
    facts += filter(None, (request["source"], request["rejection"]))
    return f"{_time(request['ended'])} {name}: {' '.join(facts)} {total_s(request):.2f} s"


def total_s(request: EndedRequestInfo) -> float:
    """Return how many seconds a request took, as far as they are counted."""
    waited_s = request["lookup_s"] + request["queue_s"]
    return waited_s + request["compile_s"] + request["sign_s"] + request["send_s"]


def _state(server: ServerInfo) -> str:
    where = f" on port {server['port']}" if server["state"] == "serving" else ""
    reason = f": {server['reason']}" if server["reason"] else ""
    return f"{server['nickname']}: {server['state']}{where}{reason}"


def _time(moment: str | None) -> str:
    """Return a moment of a supervisor, by default now, as this host's time of day."""
    when = datetime.now(UTC) if moment is None else datetime.fromisoformat(moment)
    return when.astimezone().strftime("%H:%M:%S")
