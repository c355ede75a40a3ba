"""Has the network hear what the supervisor wants said, for as long as there is a network.

Whoever wants something said does not wait, and learns of trouble from the log alone: nothing of this is
ever a server's failure. zeroconf is loaded when there is first something to say, in a worker thread. A
responder that fails is replaced, after a delay that grows, or as soon as the network changes.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import anyio
import attrs
from anyio.abc import TaskStatus
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.errors import AdvertiseError
from stapsrv.mdns.entries import EntryRegistry
from stapsrv.mdns.interfaces import LinkMonitor, Network, read_network
from stapsrv.mdns.records import Advertisement
from stapsrv.mdns.session import (
    SETTLE_S,
    Manners,
    Monitoring,
    Responding,
    Session,
    Signal,
    Workers,
    open_responder,
)

WITHDRAW_S = 1.0
"""A stopping server's wait for its goodbye: some milliseconds, or 0.5 s where it is just being announced."""
_CLOSE_S = 2.0
_PATIENCE_S = 1.5
"""The longest: several times what it takes to ask for a name and to give it up."""
_FIRST_DELAY_S = 2.0
_LONGEST_DELAY_S = 300.0
_HEALTHY_S = 60.0
"""Speaking for so long forgives earlier failures."""
_REMIND_S = 3600.0
"""The same failure is not logged more often."""


@attrs.frozen(kw_only=True)
class AdvertiserStatistics:
    """What is advertised at one moment.

    Attributes:
        host: the host's name on the network, one label; None while nothing can be said.
        links: the names of the interfaces on which it is said.
        services: each service that was announced: its server's id and its name.
        problem: why nothing can be said, or None.
    """

    host: str | None
    links: tuple[str, ...]
    services: tuple[tuple[int, str], ...]
    problem: str | None


class Advertiser:
    """Advertises the servers of one supervisor.

    Args:
        host: the host's name, one label; services are called after it.
        interfaces: names and addresses to advertise on; empty for all that can multicast.
        log: hears of trouble; what concerns one server goes to its own log.
        open_responder: makes what speaks to the network; called in a worker thread.
        read_network: returns the host's links and addresses; called in a worker thread.
        open_monitor: makes what tells of their changes; may raise OSError.
        patience: see :class:`stapsrv.mdns.session.Manners`.
    """

    def __init__(
        self,
        host: str,
        *,
        interfaces: Sequence[str] = (),
        log: Log,
        open_responder: Callable[[Network], Responding] = open_responder,
        read_network: Callable[[], Network] = read_network,
        open_monitor: Callable[[], Monitoring] = LinkMonitor,
        patience: Callable[[], float] = lambda: random.uniform(0, _PATIENCE_S),  # noqa: S311 - no secret
    ) -> None:
        self._host = host
        self._interfaces = tuple(interfaces)
        self._log = log
        self._open_responder = open_responder
        self._read_network = read_network
        self._open_monitor = open_monitor
        self._patience = patience
        self._registry = EntryRegistry(host)
        self._bell = Signal()
        self._workers = Workers()
        self._conversation: Session | None = None
        self._problem: str | None = None
        self._failures = 0
        self._absent: tuple[str, ...] = ()
        self._warned: tuple[str, float] | None = None

    def set(self, server_id: int, advertisements: Sequence[Advertisement], log: Log | None = None) -> None:
        """Want these advertisements of a server, and no others; never waits.

        Args:
            server_id: the server's.
            advertisements: one for each release; empty for a server that is not to be heard of.
            log: the server's own.
        """
        self._registry.set(server_id, advertisements, log or self._log)
        self._bell.ring()

    async def withdraw(self, server_id: int) -> None:
        """Have a server heard of no more, and wait until its goodbye is said, for a second at most.

        Cancellation: waits all the same; it is on the way down that this is called.
        """
        self._registry.withdraw(server_id)
        self._bell.ring()
        with anyio.move_on_after(WITHDRAW_S, shield=True):
            while True:
                changed = self._bell.listen()
                if not self._registry.is_announced(server_id):
                    return
                await changed.wait()

    def statistics(self) -> AdvertiserStatistics:
        """Return a snapshot."""
        speaking = self._conversation
        said = [(entry.server_id, entry.said.name) for entry in self._registry if entry.said is not None]
        return AdvertiserStatistics(
            host=speaking.surroundings.host if speaking else None,
            links=tuple(link.name for link in speaking.network.links) if speaking else (),
            services=tuple(said),
            problem=self._problem,
        )

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Advertise until cancelled.

        Cancellation: goodbye is said to all that is announced, within two seconds.
        """
        with self._monitor() as monitor:
            manners = Manners(
                host=self._host,
                look=self._look,
                patience=self._patience,
                log=self._log,
                monitor=monitor,
                workers=self._workers,
            )
            task_status.started()
            while True:
                await self._wait_wanted()
                began = anyio.current_time()
                try:
                    await self._converse(manners)
                except* AdvertiseError as group:
                    self._problem = str(_leaf(group))
                except* Exception as crash:  # noqa: BLE001 - the one net below advertising
                    self._problem = repr(_leaf(crash))
                    self._log.exception("mdns.crashed", exc_info=crash)
                self._failures = 1 if anyio.current_time() - began >= _HEALTHY_S else self._failures + 1
                await self._back_off(monitor)

    async def _wait_wanted(self) -> None:
        while True:
            changed = self._bell.listen()
            if self._registry.is_wanted:
                return
            await changed.wait()

    async def _converse(self, manners: Manners) -> None:
        """Advertise with one responder, until it fails.

        Raises:
            AdvertiseError: it did, alone or in a group.
        """
        network = await self._look()
        try:
            async with self._responder(network) as responder:
                self._problem = None
                self._conversation = Session(
                    responder, network, self._registry, signal=self._bell, manners=manners
                )
                await self._conversation.hold()
        finally:
            self._conversation = None
            self._registry.lose_all()
            self._bell.ring()

    @contextlib.asynccontextmanager
    async def _responder(self, network: Network) -> AsyncIterator[Responding]:
        responder = await self._workers.run_to_end(self._open_responder, network)
        try:
            yield responder
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True), contextlib.suppress(AdvertiseError):
                await self._workers.run(responder.close)

    async def _look(self) -> Network:
        """Return the network as far as servers are to be advertised there.

        Raises:
            AdvertiseError: there is none now.
        """
        try:
            network = await self._workers.run(self._read_network)
        except OSError as exc:
            raise AdvertiseError(f"the kernel does not tell its network interfaces: {exc.strerror}") from exc
        network = network.choose(self._interfaces)
        if not network.links:
            which = f" ({', '.join(self._interfaces)})" if self._interfaces else ""
            raise AdvertiseError(f"no network interface{which} is up and has an address")
        before, self._absent = self._absent, network.absent
        if network.absent and network.absent != before:
            self._log.warning("mdns.absent", interfaces=" ".join(network.absent))
        return network

    @contextlib.contextmanager
    def _monitor(self) -> Iterator[Monitoring | None]:
        try:
            monitor = self._open_monitor()
        except OSError as exc:
            self._log.warning("mdns.blind", reason=exc.strerror)
            yield None
            return
        with contextlib.closing(monitor):
            yield monitor

    async def _back_off(self, monitor: Monitoring | None) -> None:
        """Wait before the next attempt, or until the network changes."""
        delay_s = min(_FIRST_DELAY_S * 2 ** min(self._failures - 1, 10), _LONGEST_DELAY_S)
        problem, now = str(self._problem), anyio.current_time()
        if self._warned is None or self._warned[0] != problem or now - self._warned[1] >= _REMIND_S:
            self._warned = (problem, now)
            self._log.warning("mdns.failed", reason=problem, seconds=round(delay_s))
        with anyio.move_on_after(delay_s):
            if monitor is None:
                await anyio.sleep_forever()
            else:
                await monitor.wait_changed()
                await anyio.sleep(SETTLE_S)


def _leaf(group: BaseExceptionGroup[Exception]) -> Exception:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first
