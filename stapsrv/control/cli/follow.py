"""Follows every supervisor that this user may ask, across their restarts: each in a thread of its own.

A thread takes the next update when the one before was dealt with, so who reads slowly lets the supervisors
send less. None of them outlives the block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

from stapsrv.control.client.discovery import find_sockets
from stapsrv.control.client.sync import SupervisorNotRunning, SyncControlClient
from stapsrv.control.client.whereabouts import own_settings, readable_stat_paths
from stapsrv.control.protocol.jsonrpc import Code
from stapsrv.control.protocol.live_fields import UpdateInfo
from stapsrv.errors import ControlError, StapsrvError

# Between looks for supervisors, while nothing says that one has begun.
_LOOK_S = 1.0
# For a thread that was interrupted.
_JOIN_S = 5.0


class Seen(NamedTuple):
    """An update of the supervisor of a user; ``may_command`` says whether the caller may command it."""

    user: str
    socket: Path
    may_command: bool
    update: UpdateInfo


class Lost(NamedTuple):
    """The supervisor of a user cannot be followed now; a snapshot comes when it can again."""

    user: str
    reason: str


OnNews: TypeAlias = Callable[[Seen | Lost], object]


def sockets_to_follow(config_file: Path | None, environ: Mapping[str, str]) -> list[Path]:
    """Return the control sockets of the supervisors that this user may ask; may raise ConfigError."""
    settings = own_settings(environ, config_file)
    found = [
        path
        for stat_path in readable_stat_paths(settings, config_file, environ)
        for path in find_sockets(stat_path)
    ]
    return list(dict.fromkeys(found))


class Follower:
    """Calls ``on_news`` with all that supervisors tell, from their threads, while the block runs.

    ``find`` returns the sockets of those to follow, again and again.
    """

    def __init__(self, find: Callable[[], Iterable[Path]], on_news: OnNews) -> None:
        self._find = find
        self._on_news = on_news
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._threads: dict[Path, threading.Thread] = {}
        self._clients: set[SyncControlClient] = set()
        # Why each was lost, so that it is reported once.
        self._lost: dict[Path, str] = {}
        self._looking = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._looking.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._looking.join(_JOIN_S)
        with self._lock:
            for client in self._clients:
                client.interrupt()
        for thread in self._threads.values():
            thread.join(_JOIN_S)

    def _look(self) -> None:
        while True:
            for path in self._find():
                thread = self._threads.get(path)
                if thread is None or not thread.is_alive():
                    self._threads[path] = thread = threading.Thread(
                        target=self._follow, args=(path,), daemon=True
                    )
                    thread.start()
            if self._ending.wait(_LOOK_S):
                return

    def _follow(self, path: Path) -> None:
        try:
            with SyncControlClient(path) as client:
                with self._lock:
                    if self._ending.is_set():
                        return
                    self._clients.add(client)
                try:
                    self._watch(path, client)
                finally:
                    with self._lock:
                        self._clients.discard(client)
        except SupervisorNotRunning:
            # There was none, or the end of one was told already.
            return
        except StapsrvError as exc:
            self._lose(path, exc)

    def _watch(self, path: Path, client: SyncControlClient) -> None:
        may_command = client.hello()["access"] == "all"
        for update in client.watch():
            self._lost.pop(path, None)
            if self._ending.is_set():
                return
            self._on_news(Seen(path.parent.name, path, may_command, update))

    def _lose(self, path: Path, exc: StapsrvError) -> None:
        is_over = isinstance(exc, ControlError) and exc.code in {Code.LOST, Code.SHUTTING_DOWN}
        reason = "the supervisor has ended" if is_over else str(exc)
        if not self._ending.is_set() and self._lost.get(path) != reason:
            self._lost[path] = reason
            self._on_news(Lost(path.parent.name, reason))
