"""What advertising needs of a responder and a monitor, and the threads in which responders may block.

Speaking to the network with one responder, until that fails.

One task compares what is wanted with what was said, and has the difference worked off, each service by
itself. Two others heed what other hosts say of our names, and how this host's network changes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread
import attrs
from anyio.abc import TaskGroup
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.mdns.entries import ConflictBackoff, Entry, EntryRegistry, Step, Surroundings
from stapsrv.mdns.interfaces import Network
from stapsrv.mdns.records import News, Service, host_label

_THREADS = 32
"""Services worked on at the same time: a thread only waits, 0.5 to 1.3 s for each."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class Responding(Protocol):
    """What :class:`stapsrv.mdns.responder.Responder` promises, and a test's stand-in; see there."""

    @property
    def news(self) -> int:
        """A descriptor that is readable while :meth:`take_news` has something to tell."""

    def claim_host(self, label: str) -> bool:
        """Ask for the host's name."""

    def claim(self, service: Service) -> bool:
        """Ask for a service's name."""

    def announce(self, service: Service) -> None:
        """Say that a service is there."""

    def update(self, service: Service) -> None:
        """Say what a service is now."""

    def withdraw(self, name: str) -> None:
        """Say that a service is gone."""

    def move(self, network: Network) -> None:
        """Go on with other links or addresses."""

    def take_news(self) -> News:
        """Return what was heard."""

    def close(self) -> None:
        """Say goodbye to all."""


class Monitoring(Protocol):
    """What :class:`stapsrv.mdns.interfaces.LinkMonitor` promises."""

    async def wait_changed(self) -> None:
        """Wait for a change of the network."""

    def close(self) -> None:
        """Hear no more."""


def open_responder(network: Network) -> Responding:
    """Open the real one; loading zeroconf takes 60 to 90 ms, once.

    Raises:
        AdvertiseError: there is no multicast to be had.
    """
    from stapsrv.mdns.responder import Responder  # noqa: PLC0415 - whoever never comes here never loads it

    return Responder(network)


class Workers:
    """Threads of their own, so that nobody else ever waits for one of these slow calls to end."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(_THREADS)

    async def run(self, blocking: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Return what ``blocking(*arguments)`` returns, from a thread.

        Cancellation: at once; what the thread does is left to end by itself, within a second or so.
        """
        return await anyio.to_thread.run_sync(
            blocking, *arguments, limiter=self._limiter, abandon_on_cancel=True
        )

    async def run_to_end(self, blocking: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Do the same, but wait for the end when cancelled: for what makes something to be closed."""
        return await anyio.to_thread.run_sync(blocking, *arguments, limiter=self._limiter)


SETTLE_S = 0.2
"""A network that changes says so several times; this long after the first it is looked at."""


class Signal:
    """Tells any number of tasks that something changed."""

    def __init__(self) -> None:
        self._next = anyio.Event()

    def ring(self) -> None:
        """Wake all that listen."""
        self._next.set()
        self._next = anyio.Event()

    def listen(self) -> anyio.Event:
        """Return what is set with the next ring; to be taken before one looks whether to wait at all."""
        return self._next


@attrs.frozen(kw_only=True)
class Manners:
    """How to go about it.

    Attributes:
        host: this host's name, one label.
        look: returns the network to speak on; may raise AdvertiseError.
        patience: returns how many seconds to wait before a contested name is asked for. Drawn at random, so
            that of two hosts that contest one, the first to ask gives it up and the other keeps it.
        log: hears of trouble; what concerns one server goes to its own log.
        monitor: tells of changes of the network, if anything does.
        workers: the threads to block in.
    """

    host: str
    look: Callable[[], Awaitable[Network]]
    patience: Callable[[], float]
    log: Log
    monitor: Monitoring | None
    workers: Workers


class Session:
    """One responder at work.

    Args:
        responder: open; whoever opened it closes it.
        network: what it speaks on.
        registry: what is wanted, and what was said.
        bell: rung when the registry changed, by whomever.
        manners: how to go about it.

    Attributes:
        network: what is spoken on now.
        surroundings: what is said of this host now.
    """

    def __init__(
        self,
        responder: Responding,
        network: Network,
        registry: EntryRegistry,
        *,
        signal: Signal,
        manners: Manners,
    ) -> None:
        self.network = network
        self.surroundings = Surroundings(manners.host, 0)
        self._responder = responder
        self._registry = registry
        self._bell = signal
        self._host = manners.host
        self._host_number = 1
        self._look = manners.look
        self._looking = anyio.Lock()
        self._contests = ConflictBackoff(anyio.current_time)
        self._patience = manners.patience
        self._log = manners.log
        self._monitor = manners.monitor
        self._run = manners.workers.run

    async def hold(self) -> NoReturn:
        """Keep what is said in line with what is wanted, until cancelled.

        Raises:
            AdvertiseError: the responder failed, or there is no network any more; perhaps in a group.
        """
        await self._claim_host()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._hear)
            if self._monitor is not None:
                tasks.start_soon(self._follow_network, self._monitor)
            await self._reconcile(tasks)
        raise AssertionError("the reconciling never ends by itself")

    async def _reconcile(self, tasks: TaskGroup) -> NoReturn:
        """Have every entry worked on that is not as it is wanted, whenever something changed."""
        while True:
            changed = self._bell.listen()
            for entry in self._registry:
                if not entry.busy and entry.next_step(self.surroundings) is not None:
                    entry.busy = True
                    # Here, so that names go by who came first; tasks begin in any order.
                    self._registry.name(entry)
                    tasks.start_soon(self._work, entry)
            await changed.wait()

    async def _work(self, entry: Entry) -> None:
        """Take one entry from step to step, until it is as wanted."""
        while (step := entry.next_step(self.surroundings)) is not None:
            match step:
                case Step.ANNOUNCE:
                    await self._announce(entry)
                case Step.VERIFY:
                    await self._verify(entry)
                case Step.UPDATE:
                    await self._update(entry)
                case Step.WITHDRAW:
                    await self._withdraw(entry)
                case Step.FORGET:
                    self._registry.forget(entry)
                    return
        entry.busy = False

    async def _announce(self, entry: Entry) -> None:
        await self._wait_while_wanted(entry, self._contests.pause_s)
        name, surroundings = self._registry.name(entry), self.surroundings
        service = entry.service(name, surroundings)
        if service is None:
            return
        entry.log.info("mdns.adding", name=name)
        if not await self._run(self._responder.claim, service):
            self._rename(entry)
        elif entry.wanted is not None:
            entry.said, entry.said_at = service, surroundings.age
            await self._run(self._responder.announce, service)
            entry.log.info("mdns.established", name=name)
            _warn_of_omissions(entry)

    async def _update(self, entry: Entry) -> None:
        before, surroundings = entry.said, self.surroundings
        service = entry.service(self._registry.name(entry), surroundings)
        if before is None or service is None:
            return
        entry.said, entry.said_at = service, surroundings.age
        await self._run(self._responder.update, service)
        if service.text != before.text:
            entry.log.info("mdns.updated", name=service.name)
            _warn_of_omissions(entry)

    async def _withdraw(self, entry: Entry) -> None:
        if entry.said is not None:
            entry.log.info("mdns.removing", name=entry.said.name)
            await self._run(self._responder.withdraw, entry.said.name)
            entry.said = None
            self._bell.ring()

    async def _verify(self, entry: Entry) -> None:
        """See who keeps a contested name: the other host has heard of us, too, and may yield."""
        await self._wait_while_wanted(entry, self._patience() + self._contests.pause_s)
        if entry.said is None or entry.wanted is None:
            return
        entry.contested = False
        if await self._run(self._responder.claim, entry.said):
            # Said again, so that everybody forgets what the other host said.
            await self._run(self._responder.update, entry.said)
        else:
            # With a goodbye, lest nobody has the name if both give it up; who keeps it takes that back.
            await self._run(self._responder.withdraw, entry.said.name)
            self._rename(entry)

    async def _wait_while_wanted(self, entry: Entry, seconds: float) -> None:
        """Wait before a name is asked for, but not for an entry that is not wanted any more."""
        with anyio.move_on_after(seconds):
            while entry.wanted is not None:
                await self._bell.listen().wait()

    def _rename(self, entry: Entry) -> None:
        self._contests.note()
        before = entry.name
        entry.log.warning("mdns.renaming", name=before, other=self._registry.rename(entry))

    async def _hear(self) -> NoReturn:
        """Heed what others say of our names."""
        while True:
            await anyio.wait_readable(self._responder.news)
            news = self._responder.take_news()
            for trouble in news.troubles:
                self._log.warning("mdns.trouble", reason=trouble)
            self._registry.contest(news.contested)
            self._bell.ring()
            if news.host_contested:
                await anyio.sleep(self._patience())
                # It may be an address that is ours since a moment ago.
                await self._look_again()
                await self._claim_host()

    async def _claim_host(self) -> None:
        """Have a name for this host that no other has: the one that it had before, or a further one."""
        label = host_label(self._host, self._host_number)
        while not await self._run(self._responder.claim_host, label):
            self._contests.note()
            self._host_number += 1
            taken, label = label, host_label(self._host, self._host_number)
            self._log.warning("mdns.host_taken", host=taken, other=label)
            await anyio.sleep(self._contests.pause_s)
        self._surround(label)

    async def _follow_network(self, monitor: Monitoring) -> NoReturn:
        while True:
            await monitor.wait_changed()
            await anyio.sleep(SETTLE_S)
            await self._look_again()

    async def _look_again(self) -> None:
        """Go on with the network as it is now."""
        async with self._looking:
            before, self.network = self.network, await self._look()
            if self.network != before:
                await self._run(self._responder.move, self.network)
            if self.network.links != before.links:
                self._surround(self.surroundings.host)

    def _surround(self, host: str) -> None:
        """Have everything said again, with this name of the host."""
        self.surroundings = Surroundings(host, self.surroundings.age + 1)
        self._bell.ring()


def _warn_of_omissions(entry: Entry) -> None:
    if entry.wanted is not None and entry.wanted.omitted:
        entry.log.warning("mdns.omitted", name=entry.name, omitted=" ".join(entry.wanted.omitted))
