"""Serves ``/metrics``, ``/livez`` and ``/readyz`` over HTTP at one listener, and the web page beside them.

Loaded only where an address is set: Prometheus' library takes as long to import as a fifth of all else. A
fault here is logged, and no server notices it: requests have deadlines, and texts a thread of their own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.stats import Histogram
from stapsrv.config.addresses import MetricsAddress
from stapsrv.errors import ConfigError
from stapsrv.observe.http import HttpLimits, HttpRequest, HttpServer, Page
from stapsrv.observe.metrics import CONTENT_TYPE, render
from stapsrv.observe.snapshot import Phase, Snapshot, TakeSnapshot, own_children, sample_lag
from stapsrv.supervisor.lifecycle import State, Wanted
from stapsrv.supervisor.server.listener import address_of as internet_address_of
from stapsrv.supervisor.server.listener import listen_at
from stapsrv.supervisor.state.lock import GROUP
from stapsrv.system.unix_socket import address_of, open_socket_file
from stapsrv.text import printable

if TYPE_CHECKING:
    from stapsrv.observe.web.site import WebSite

# The kernel completes so many connections while the loop is busy, or there is no room.
_BACKLOG = 128
_REMEDY = "give another address with --metrics or METRICS=, or off"
# A crowd that asks within this time gets the same text.
_FRESH_S = 0.5
_RETRY_S = 10.0


@attrs.frozen
class MetricsListener:
    """A listening, non-blocking socket, and its address for people."""

    socket: socket.socket
    name: str

    @contextlib.asynccontextmanager
    async def serve(
        self,
        take_snapshot: TakeSnapshot,
        *,
        log: Log,
        site: WebSite | None = None,
        limits: HttpLimits | None = None,
    ) -> AsyncIterator[None]:
        """Serve metrics and health, and the web page if there is one, for as long as the block runs."""
        log.info("metrics.listening", address=self.name)
        async with anyio.create_task_group() as tasks:
            server = _MetricsServer(self.socket, take_snapshot, site, log=log, limits=limits)
            tasks.start_soon(server.run)
            if site is not None:
                tasks.start_soon(site.keep_day, log)
            yield
            tasks.cancel_scope.cancel()


@contextlib.contextmanager
def open_metrics_listener(
    address: MetricsAddress, *, directory: Path | None = None
) -> Iterator[MetricsListener]:
    """Listen for as long as the block runs; a relative path begins at ``directory``.

    At a path, a stale socket is replaced.

    Raises:
        ConfigError: it is in use or cannot be listened on, or a relative path has no directory.
    """
    where = f"metrics address {address}"
    with contextlib.ExitStack() as held:
        try:
            if address.path is None:
                listener = listen_at(address.host or "", address.port, only=True, backlog=_BACKLOG)
                held.callback(listener.close)
                name = str(internet_address_of(listener))
            else:
                path = _absolute(address.path, directory, where)
                _check_free(path, where)
                listener = held.enter_context(open_socket_file(path, group=GROUP, backlog=_BACKLOG))
                name = str(MetricsAddress(path=path))
        except OSError as exc:
            taken = exc.errno == errno.EADDRINUSE
            problem = "is in use by another program" if taken else f"cannot be used: {exc.strerror}"
            raise ConfigError(problem, where=where, remedy=_REMEDY) from exc
        yield MetricsListener(listener, name)


def reasons_not_ready(snapshot: Snapshot) -> tuple[str, ...]:
    """Return why not every wanted server serves, a line for each reason; nothing when all do."""
    reasons = [] if snapshot.phase is Phase.RUNNING else [f"the process is {snapshot.phase}"]
    for server in snapshot.status.servers:
        if server.wanted is Wanted.UP and server.state is not State.SERVING:
            why = f": {server.reason}" if server.reason else ""
            reasons.append(f"server {server.nickname} is {server.state.value}{why}")
    reasons += [f"configuration refused: {fault}" for fault in snapshot.status.refused]
    return tuple(printable(reason) for reason in reasons)


class _MetricsServer:
    def __init__(
        self,
        listener: socket.socket,
        take_snapshot: TakeSnapshot,
        site: WebSite | None,
        *,
        log: Log,
        limits: HttpLimits | None,
    ) -> None:
        forms = () if site is None else site.forms
        self._server = HttpServer(listener, self._find, log=log, forms=forms, limits=limits or HttpLimits())
        self._take_snapshot = take_snapshot
        self._site = site
        self._log = log
        self._lag = Histogram()
        self._rendering = anyio.Lock()
        # Of its own: a pool of threads that compiles wait for may be busy for minutes.
        self._thread = anyio.CapacityLimiter(1)
        self._page = Page(HTTPStatus.OK, b"")
        self._fresh_until = -1.0

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sample_lag, self._lag)
            while True:
                try:
                    await self._server.serve()
                except* OSError as failure:
                    self._log.error("metrics.failed", reason=str(failure.exceptions[0]))
                except* Exception as crash:  # noqa: BLE001 - whatever it is, servers go on without metrics
                    self._log.exception("metrics.crashed", exc_info=crash)
                await anyio.sleep(_RETRY_S)

    async def _find(self, request: HttpRequest) -> Page:
        match request.path:
            case "/metrics":
                return await self._metrics()
            case "/livez":
                # That the loop got here is all that it says.
                return Page.of_lines(HTTPStatus.OK, "ok")
            case "/readyz":
                reasons = reasons_not_ready(self._take_snapshot())
                if reasons:
                    return Page.of_lines(HTTPStatus.SERVICE_UNAVAILABLE, *reasons)
                return Page.of_lines(HTTPStatus.OK, "ok")
        if self._site is not None:
            return await self._site.find(request)
        return Page.of_lines(HTTPStatus.NOT_FOUND, "there are /metrics, /livez and /readyz")

    async def _metrics(self) -> Page:
        async with self._rendering:
            if anyio.current_time() >= self._fresh_until:
                children = await anyio.to_thread.run_sync(own_children, limiter=self._thread)
                snapshot = attrs.evolve(self._take_snapshot(), lag=self._lag, children=children).frozen()
                text = await anyio.to_thread.run_sync(render, snapshot, limiter=self._thread)
                self._page = Page(HTTPStatus.OK, text, CONTENT_TYPE)
                self._fresh_until = anyio.current_time() + _FRESH_S
            return self._page


def _absolute(path: Path, directory: Path | None, where: str) -> Path:
    if path.is_absolute():
        return path
    if directory is None:
        raise ConfigError(
            "a single server has no directory of its own", where=where, remedy="give an absolute path"
        )
    return directory / path


def _check_free(path: Path, where: str) -> None:
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError("is no socket", where=where, remedy=_REMEDY)
    with socket.socket(socket.AF_UNIX) as probe, address_of(path) as address:
        probe.setblocking(False)  # noqa: FBT003 - positional in the standard library
        answer = probe.connect_ex(address)
    # EAGAIN: somebody listens, and has more to do than to accept.
    if answer in {0, errno.EAGAIN}:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
