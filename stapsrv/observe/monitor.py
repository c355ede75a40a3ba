"""Whether a process is ready to serve, and if not, why. Pure.

Metrics and health over HTTP: ``/metrics``, ``/livez`` and ``/readyz``.

They have a listener, deadlines and a thread of their own. What goes wrong here is logged, and no server
notices. Loaded only where somebody asks for it (:mod:`stapsrv.observe.metrics_server`): with Prometheus'
library
that takes as long as a fifth of all else.
"""

from __future__ import annotations

import socket
from http import HTTPStatus

import anyio
import anyio.to_thread
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.stats import Histogram
from stapsrv.observe.http import HttpLimits, HttpServer, Page
from stapsrv.observe.metrics import Exposition
from stapsrv.observe.snapshot import Look, Phase, Snapshot, own_children, sample_lag
from stapsrv.supervisor.lifecycle import State, Wanted
from stapsrv.text import printable


def reasons_not_ready(facts: Snapshot) -> tuple[str, ...]:
    """Return why not every wanted server serves, a line for each reason; nothing when all do."""
    reasons = [] if facts.phase is Phase.RUNNING else [f"the process is {facts.phase}"]
    for server in facts.status.servers:
        if server.wanted is Wanted.UP and server.state is not State.SERVING:
            why = f": {server.reason}" if server.reason else ""
            reasons.append(f"server {server.nickname} is {server.state.value}{why}")
    reasons += [f"configuration refused: {fault}" for fault in facts.faults]
    return tuple(printable(reason) for reason in reasons)


_FRESH_S = 0.5
"""How long a text serves: a crowd that asks at once is told the same."""
_PAUSE_S = 10.0
"""After a failure of the listener."""


class Monitor:
    """What is told of this process over one listener.

    Args:
        listener: listening and non-blocking; its owner closes it.
        look: looks at the process.
        log: the process's own.
        limits: of clients; other ones than the default.
    """

    def __init__(
        self, listener: socket.socket, look: Look, *, log: Log, limits: HttpLimits | None = None
    ) -> None:
        self._server = HttpServer(listener, self._find, log=log, limits=limits)
        self._look = look
        self._log = log
        self._lag = Histogram()
        self._exposition = Exposition()
        self._rendering = anyio.Lock()
        self._thread = anyio.CapacityLimiter(1)
        self._page = Page(HTTPStatus.OK, b"")
        self._fresh_until = -1.0

    async def run(self) -> None:
        """Tell whoever asks, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sample_lag, self._lag)
            while True:
                await self._serve()

    async def _serve(self) -> None:
        try:
            await self._server.serve()
        except* OSError as failure:
            self._log.error("metrics.failed", reason=str(failure.exceptions[0]))
        except* Exception as crash:  # noqa: BLE001 - whatever it is, servers go on without metrics
            self._log.exception("metrics.crashed", exc_info=crash)
        await anyio.sleep(_PAUSE_S)

    async def _find(self, path: str) -> Page:
        match path:
            case "/metrics":
                return await self._metrics()
            case "/livez":
                # That this is answered is what it says.
                return Page.of_lines(HTTPStatus.OK, "ok")
            case "/readyz":
                reasons = reasons_not_ready(self._look())
                if reasons:
                    return Page.of_lines(HTTPStatus.SERVICE_UNAVAILABLE, *reasons)
                return Page.of_lines(HTTPStatus.OK, "ok")
        return Page.of_lines(HTTPStatus.NOT_FOUND, "there are /metrics, /livez and /readyz")

    async def _metrics(self) -> Page:
        async with self._rendering:
            if anyio.current_time() >= self._fresh_until:
                # First, so that what begins to stand by meanwhile is not taken for a compile.
                children = await anyio.to_thread.run_sync(own_children, limiter=self._thread)
                facts = attrs.evolve(self._look(), lag=self._lag, children=children).frozen()
                text = await anyio.to_thread.run_sync(self._exposition.text, facts, limiter=self._thread)
                self._page = Page(HTTPStatus.OK, text, self._exposition.content_type)
                self._fresh_until = anyio.current_time() + _FRESH_S
            return self._page
