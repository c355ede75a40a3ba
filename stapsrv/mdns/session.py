"""One responder's time on the network: announces the entries that are wanted, until the responder fails.

One task compares each entry with what was announced, and starts a task for each difference. Two others handle
the conflicts that other hosts cause and the changes of this host's network.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread
import attrs
from anyio.abc import TaskGroup
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.mdns.entries import ConflictBackoff, Entry, EntryRegistry, HostState, Step
from stapsrv.mdns.interfaces import LinkMonitor, Network
from stapsrv.mdns.records import Service, host_label
from stapsrv.system.readiness import wait_readable

if TYPE_CHECKING:
    # At run time only the advertiser imports it, late: it loads zeroconf.
    from stapsrv.mdns.responder import Responder

# Services worked on at the same time: a thread only waits, 0.5 to 1.3 s for each.
_THREADS = 32
# A change of the network arrives as several notices; it is read this long after the first.
SETTLE_S = 0.2
# Several times as long as it takes to probe for a name and to give it up.
_MAX_CONFLICT_DELAY_S = 1.5

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class Workers:
    """Worker threads of their own, so that nothing else waits for a slot behind these slow calls."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(_THREADS)

    async def run(self, blocking: Callable[[*_Ts], _T], *arguments: *_Ts, abandon: bool = True) -> _T:
        """Return what ``blocking(*arguments)`` returns; if cancelled, at once unless ``abandon`` is false."""
        # One that is left to itself ends within a second or so.
        return await anyio.to_thread.run_sync(
            blocking, *arguments, limiter=self._limiter, abandon_on_cancel=abandon
        )


class Signal:
    """Wakes any number of tasks when something changed."""

    def __init__(self) -> None:
        self._next = anyio.Event()

    def notify(self) -> None:
        """Wake all waiting tasks."""
        self._next.set()
        self._next = anyio.Event()

    async def wait(self) -> None:
        """Wait for the next notification."""
        await self._next.wait()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; it is checked now and after each notification."""
        # Nothing awaits between the check and the wait, so no notification is missed.
        while not condition():
            await self._next.wait()


@attrs.define(kw_only=True)
class Session:
    """A responder at work; its opener closes it."""

    responder: Responder
    network: Network
    registry: EntryRegistry
    # Notified when the registry changes, by the session too.
    changed: Signal
    host: str
    # May raise AdvertiseError.
    read_network: Callable[[], Awaitable[Network]]
    # For events of no single server.
    log: Log
    monitor: LinkMonitor | None
    workers: Workers
    # The host's name as announced now.
    host_state: HostState = attrs.field(init=False)
    _host_number: int = attrs.field(init=False, default=1)
    _backoff: ConflictBackoff = attrs.field(init=False, factory=lambda: ConflictBackoff(anyio.current_time))
    _network_lock: anyio.Lock = attrs.field(init=False, factory=anyio.Lock)

    def __attrs_post_init__(self) -> None:
        self.host_state = HostState(self.host, 0)

    async def run(self) -> None:
        """Keep what is announced equal to what is wanted, until cancelled; nothing is withdrawn then.

        Raises:
            AdvertiseError: the responder failed, or there is no network any more; perhaps in a group.
        """
        await self._claim_host()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._handle_events)
            if self.monitor is not None:
                tasks.start_soon(self._follow_network, self.monitor)
            await self._reconcile(tasks)

    async def _reconcile(self, tasks: TaskGroup) -> NoReturn:
        while True:
            for entry in self.registry:
                if not entry.busy and entry.next_step(self.host_state) is not None:
                    entry.busy = True
                    # Named here, in the order of arrival: tasks start in any order.
                    self.registry.assign_name(entry)
                    tasks.start_soon(self._process, entry)
            # No notification is missed: nothing above awaits.
            await self.changed.wait()

    async def _process(self, entry: Entry) -> None:
        while (step := entry.next_step(self.host_state)) is not None:
            match step:
                case Step.ANNOUNCE:
                    await self._announce(entry)
                case Step.VERIFY:
                    await self._verify(entry)
                case Step.UPDATE:
                    await self._update(entry)
                case Step.WITHDRAW:
                    await self._withdraw(entry)
                case Step.REMOVE:
                    self.registry.remove(entry)
                    return
        entry.busy = False

    async def _announce(self, entry: Entry) -> None:
        await self._wait_while_wanted(entry, self._backoff.delay_s)
        service = entry.service(self.registry.assign_name(entry), self.host_state)
        if service is None:
            return
        entry.log.info("mdns.adding", name=service.name)
        if not await self.workers.run(self.responder.claim, service):
            self._rename(entry)
        elif entry.wanted is not None:
            # Before the call: a failure or a withdrawal in the middle has something to say goodbye to.
            entry.announced = service
            await self.workers.run(self.responder.announce, service)
            entry.log.info("mdns.established", name=service.name)
            _report_omitted(service, entry.log)

    async def _update(self, entry: Entry) -> None:
        before = entry.announced
        service = entry.service(self.registry.assign_name(entry), self.host_state)
        if before is None or service is None:
            return
        entry.announced = service
        await self.workers.run(self.responder.update, service)
        if service.advertisement.text != before.advertisement.text:
            entry.log.info("mdns.updated", name=service.name)
            _report_omitted(service, entry.log)

    async def _withdraw(self, entry: Entry) -> None:
        if entry.announced is not None:
            entry.log.info("mdns.removing", name=entry.announced.name)
            await self.workers.run(self.responder.withdraw, entry.announced.name)
            entry.announced = None
            self.changed.notify()

    async def _verify(self, entry: Entry) -> None:
        """Find out who keeps a contested name: the other host noticed the conflict too, and may yield."""
        await self._wait_while_wanted(entry, _conflict_delay_s() + self._backoff.delay_s)
        if entry.announced is None or entry.wanted is None:
            return
        entry.contested = False
        if await self.workers.run(self.responder.claim, entry.announced):
            # Announced again, so that all caches drop the other host's records.
            await self.workers.run(self.responder.update, entry.announced)
        else:
            # With a goodbye, because both may give the name up; a host that keeps it revokes the goodbye.
            await self.workers.run(self.responder.withdraw, entry.announced.name)
            self._rename(entry)

    async def _wait_while_wanted(self, entry: Entry, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self.changed.wait_until(lambda: entry.wanted is None)

    def _rename(self, entry: Entry) -> None:
        self._backoff.add_conflict()
        before = entry.name
        entry.log.warning("mdns.renaming", name=before, other=self.registry.rename(entry))

    async def _handle_events(self) -> NoReturn:
        while True:
            await wait_readable(self.responder.events_fd)
            events = self.responder.take_events()
            for error in events.errors:
                self.log.warning("mdns.responder_error", reason=error)
            self.registry.mark_contested(events.contested)
            self.changed.notify()
            if events.host_contested:
                await anyio.sleep(_conflict_delay_s())
                # The contested address may have become this host's own a moment ago.
                await self._refresh_network()
                await self._claim_host()

    async def _claim_host(self) -> None:
        label = host_label(self.host, self._host_number)
        while not await self.workers.run(self.responder.claim_host, label):
            self._backoff.add_conflict()
            self._host_number += 1
            taken, label = label, host_label(self.host, self._host_number)
            self.log.warning("mdns.host_taken", host=taken, other=label)
            await anyio.sleep(self._backoff.delay_s)
        self._set_host(label)

    async def _follow_network(self, monitor: LinkMonitor) -> NoReturn:
        while True:
            await monitor.wait_changed()
            await anyio.sleep(SETTLE_S)
            await self._refresh_network()

    async def _refresh_network(self) -> None:
        async with self._network_lock:
            before, self.network = self.network, await self.read_network()
            if self.network != before:
                await self.workers.run(self.responder.move, self.network)
            if self.network.links != before.links:
                self._set_host(self.host_state.label)

    # The new generation has every service announced again.
    def _set_host(self, label: str) -> None:
        self.host_state = HostState(label, self.host_state.generation + 1)
        self.changed.notify()


def _conflict_delay_s() -> float:
    # Before a contested name is probed for again. Random, so that of two hosts the first to probe gives the
    # name up and the other keeps it.
    return random.uniform(0, _MAX_CONFLICT_DELAY_S)  # noqa: S311 - no secret


def _report_omitted(service: Service, log: Log) -> None:
    if omitted := service.advertisement.omitted:
        log.warning("mdns.omitted", name=service.name, omitted=" ".join(omitted))
