"""Advertises the servers of one supervisor on the network, for as long as there is a network.

Callers never wait for the network, and no failure here is a server's failure: it is logged, and the next
attempt follows after a growing delay, or as soon as the network changes.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import anyio
import attrs
from anyio.abc import TaskStatus
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.errors import AdvertiseError
from stapsrv.mdns.entries import EntryRegistry
from stapsrv.mdns.interfaces import LinkMonitor, Network, read_network
from stapsrv.mdns.records import Advertisement
from stapsrv.mdns.session import SETTLE_S, Session, Signal, Workers

if TYPE_CHECKING:
    from stapsrv.mdns.responder import Responder

# A goodbye takes some milliseconds, or 0.5 s while the service is being announced.
WITHDRAW_S = 1.0
_CLOSE_S = 2.0
# Several times as long as it takes to probe for a name and to give it up.
_MAX_CONFLICT_DELAY_S = 1.5
_FIRST_RETRY_S = 2.0
_MAX_RETRY_S = 300.0
# A session of this length resets the retry delay.
_HEALTHY_S = 60.0
# The same failure is logged again after this time.
_REPEAT_LOG_S = 3600.0


def open_responder(network: Network) -> Responder:
    """Open the real responder.

    Raises:
        AdvertiseError: multicast is not available.
    """
    # Here, in a worker thread: it takes 60 to 90 ms, which a host that advertises nothing never pays.
    from stapsrv.mdns.responder import Responder  # noqa: PLC0415

    return Responder(network)


@attrs.frozen(kw_only=True)
class AdvertiserStatistics:
    """What is advertised at one moment.

    Attributes:
        host: the host's label on the network; None while nothing can be announced.
        links: the names of the interfaces in use.
        services: the server's id and the service's name, for each announced service.
        problem: why nothing can be announced, or None.
    """

    host: str | None
    links: tuple[str, ...]
    services: tuple[tuple[int, str], ...]
    problem: str | None


class Advertiser:
    """Advertises the servers of one supervisor.

    Args:
        host: the host's name, one label; services are named after it.
        interfaces: names and addresses to advertise on; empty for all that can multicast.
        log: for events of no single server.
        open_responder: called in a worker thread.
        read_network: called in a worker thread.
        open_monitor: opens the monitor of link changes; may raise OSError.
        conflict_delay_s: see :class:`stapsrv.mdns.session.Session`.
    """

    def __init__(
        self,
        host: str,
        *,
        interfaces: Sequence[str] = (),
        log: Log,
        open_responder: Callable[[Network], Responder] = open_responder,
        read_network: Callable[[], Network] = read_network,
        open_monitor: Callable[[], LinkMonitor] = LinkMonitor,
        conflict_delay_s: Callable[[], float] = lambda: random.uniform(0, _MAX_CONFLICT_DELAY_S),  # noqa: S311
    ) -> None:
        self._host = host
        self._interfaces = tuple(interfaces)
        self._log = log
        self._open_responder = open_responder
        self._read_all = read_network
        self._open_monitor = open_monitor
        self._conflict_delay_s = conflict_delay_s
        self._registry = EntryRegistry(host)
        self._changed = Signal()
        self._workers = Workers()
        self._session: Session | None = None
        self._problem: str | None = None
        self._failures = 0
        self._missing: tuple[str, ...] = ()
        self._logged: tuple[str, float] | None = None

    def set(self, server_id: int, advertisements: Sequence[Advertisement], log: Log | None = None) -> None:
        """Want these advertisements of a server, one for each release, and no others; never waits."""
        self._registry.set(server_id, advertisements, log or self._log)
        self._changed.notify()

    async def withdraw(self, server_id: int) -> None:
        """Withdraw a server, and wait until the goodbye is sent, for a second at most.

        Cancellation: waits all the same, because this is called while shutting down.
        """
        self._registry.withdraw(server_id)
        self._changed.notify()
        with anyio.move_on_after(WITHDRAW_S, shield=True):
            await self._changed.wait_until(lambda: not self._registry.is_announced(server_id))

    def statistics(self) -> AdvertiserStatistics:
        """Return a snapshot."""
        session = self._session
        announced = [(each.server_id, each.announced.name) for each in self._registry if each.announced]
        return AdvertiserStatistics(
            host=session.host_state.label if session else None,
            links=tuple(link.name for link in session.network.links) if session else (),
            services=tuple(announced),
            problem=self._problem,
        )

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Advertise until cancelled.

        Cancellation: says goodbye for all services, within two seconds.
        """
        with self._monitor() as monitor:
            task_status.started()
            while True:
                await self._changed.wait_until(lambda: self._registry.has_wanted)
                began = anyio.current_time()
                try:
                    await self._run_session(monitor)
                except* AdvertiseError as group:
                    self._problem = str(_first_leaf(group))
                except* Exception as crash:  # noqa: BLE001 - the one net below advertising
                    self._problem = repr(_first_leaf(crash))
                    self._log.exception("mdns.crashed", exc_info=crash)
                self._failures = 1 if anyio.current_time() - began >= _HEALTHY_S else self._failures + 1
                await self._wait_retry(monitor)

    async def _run_session(self, monitor: LinkMonitor | None) -> None:
        network = await self._read_network()
        try:
            async with self._responder(network) as responder:
                self._problem = None
                self._session = Session(
                    responder=responder,
                    network=network,
                    registry=self._registry,
                    changed=self._changed,
                    host=self._host,
                    read_network=self._read_network,
                    conflict_delay_s=self._conflict_delay_s,
                    log=self._log,
                    monitor=monitor,
                    workers=self._workers,
                )
                await self._session.run()
        finally:
            self._session = None
            self._registry.reset()
            self._changed.notify()

    @contextlib.asynccontextmanager
    async def _responder(self, network: Network) -> AsyncIterator[Responder]:
        responder = await self._workers.run_to_end(self._open_responder, network)
        try:
            yield responder
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True), contextlib.suppress(AdvertiseError):
                await self._workers.run(responder.close)

    async def _read_network(self) -> Network:
        """Return the links to advertise on.

        Raises:
            AdvertiseError: there is none now.
        """
        try:
            network = await self._workers.run(self._read_all)
        except OSError as exc:
            raise AdvertiseError(f"the kernel does not list its network interfaces: {exc.strerror}") from exc
        network = network.select(self._interfaces)
        if not network.links:
            which = f" ({', '.join(self._interfaces)})" if self._interfaces else ""
            raise AdvertiseError(f"no network interface{which} is up and has an address")
        before, self._missing = self._missing, network.missing
        if network.missing and network.missing != before:
            self._log.warning("mdns.missing", interfaces=" ".join(network.missing))
        return network

    @contextlib.contextmanager
    def _monitor(self) -> Iterator[LinkMonitor | None]:
        try:
            monitor = self._open_monitor()
        except OSError as exc:
            self._log.warning("mdns.no_monitor", reason=exc.strerror)
            yield None
            return
        with contextlib.closing(monitor):
            yield monitor

    async def _wait_retry(self, monitor: LinkMonitor | None) -> None:
        """Wait before the next attempt, or until the network changes."""
        # The exponent is bounded: a float overflows after a thousand failures.
        delay_s = min(_FIRST_RETRY_S * 2 ** min(self._failures - 1, 10), _MAX_RETRY_S)
        problem, now = str(self._problem), anyio.current_time()
        if self._logged is None or self._logged[0] != problem or now - self._logged[1] >= _REPEAT_LOG_S:
            self._logged = (problem, now)
            self._log.warning("mdns.failed", reason=problem, seconds=round(delay_s))
        with anyio.move_on_after(delay_s):
            if monitor is None:
                await anyio.sleep_forever()
            else:
                await monitor.wait_changed()
                await anyio.sleep(SETTLE_S)


def _first_leaf(group: BaseExceptionGroup[Exception]) -> Exception:
    first = group.exceptions[0]
    return _first_leaf(first) if isinstance(first, BaseExceptionGroup) else first
