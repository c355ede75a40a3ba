"""Advertises the servers of one supervisor on the network, for as long as there is a network.

Callers never wait for the network, and no failure here is a server's failure: it is logged, and the next
attempt follows after a growing delay, or as soon as the network changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.errors import AdvertiseError, first_error
from stapsrv.mdns.entries import EntryRegistry
from stapsrv.mdns.interfaces import LinkMonitor, Network, read_network
from stapsrv.mdns.records import Advertisement
from stapsrv.mdns.session import SETTLE_S, Session, Signal, Workers

if TYPE_CHECKING:
    from stapsrv.mdns.responder import Responder

# A goodbye takes some milliseconds, or 0.5 s while the service is being announced.
WITHDRAW_S = 1.0
_CLOSE_S = 2.0
_FIRST_RETRY_S = 2.0
_MAX_RETRY_S = 300.0
# After a session of this length all is well: the next failure is a new one, retried soon and logged.
_HEALTHY_S = 60.0
# The same failure is logged again after this time.
_REPEAT_LOG_S = 3600.0


def open_responder(network: Network) -> Responder:
    """Open the real responder, which the caller closes; to be called in a worker thread.

    Raises:
        AdvertiseError: multicast is not available.
    """
    # Here, in a worker thread: it takes 60 to 90 ms, which a host that advertises nothing never pays.
    from stapsrv.mdns.responder import Responder  # noqa: PLC0415

    return Responder(network)


@attrs.define(eq=False)
class Advertiser:
    """Advertises servers as ``host``, one label, on the given interfaces or on all that can multicast.

    Interfaces are given by name or by address. The log gets what concerns no single server. The responder is
    opened, and the network read, in worker threads; ``open_monitor`` may raise OSError.
    """

    _host: str
    _interfaces: Sequence[str] = attrs.field(kw_only=True, default=())
    _log: Log = attrs.field(kw_only=True)
    _open_responder: Callable[[Network], Responder] = attrs.field(kw_only=True, default=open_responder)
    _read_all: Callable[[], Network] = attrs.field(kw_only=True, default=read_network, alias="read_network")
    _open_monitor: Callable[[], LinkMonitor] = attrs.field(kw_only=True, default=LinkMonitor)
    _registry: EntryRegistry = attrs.field(init=False)
    _changed: Signal = attrs.field(init=False, factory=Signal)
    _workers: Workers = attrs.field(init=False, factory=Workers)
    _failures: int = attrs.field(init=False, default=0)
    _missing: tuple[str, ...] = attrs.field(init=False, default=())
    _logged: tuple[str, float] | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._registry = EntryRegistry(self._host)

    def set(self, server_id: int, advertisements: Sequence[Advertisement], log: Log | None = None) -> None:
        """Want these advertisements of a server, one for each release, and no others; never waits."""
        self._registry.set(server_id, advertisements, log or self._log)
        self._changed.notify()

    async def withdraw(self, server_id: int) -> None:
        """Withdraw a server, and wait until the goodbye is sent, for a second at most, even if cancelled."""
        self._registry.withdraw(server_id)
        self._changed.notify()
        # Shielded, because this is called while shutting down.
        with anyio.move_on_after(WITHDRAW_S, shield=True):
            await self._changed.wait_until(lambda: not self._registry.is_announced(server_id))

    async def run(self) -> None:
        """Advertise until cancelled, then say goodbye for all services within two seconds."""
        with self._monitor() as monitor:
            while True:
                await self._changed.wait_until(lambda: self._registry.has_wanted)
                began = anyio.current_time()
                try:
                    await self._run_session(monitor)
                except* AdvertiseError as group:
                    problem = str(first_error(group))
                except* Exception as crash:  # noqa: BLE001 - the one net below advertising
                    problem = repr(first_error(crash))
                    self._log.exception("mdns.crashed", exc_info=crash)
                if anyio.current_time() - began >= _HEALTHY_S:
                    self._failures, self._logged = 0, None
                self._failures += 1
                await self._wait_retry(monitor, problem)

    async def _run_session(self, monitor: LinkMonitor | None) -> None:
        network = await self._read_network()
        # To its end even if cancelled: what was opened has to be closed.
        responder = await self._workers.run(self._open_responder, network, abandon=False)
        try:
            try:
                session = Session(
                    responder=responder,
                    network=network,
                    registry=self._registry,
                    changed=self._changed,
                    host=self._host,
                    read_network=self._read_network,
                    log=self._log,
                    monitor=monitor,
                    workers=self._workers,
                )
                await session.run()
            finally:
                with anyio.move_on_after(_CLOSE_S, shield=True), contextlib.suppress(AdvertiseError):
                    await self._workers.run(responder.close)
        finally:
            self._registry.reset()
            self._changed.notify()

    async def _read_network(self) -> Network:
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

    async def _wait_retry(self, monitor: LinkMonitor | None, problem: str) -> None:
        # The exponent is bounded: a float overflows after a thousand failures.
        delay_s = min(_FIRST_RETRY_S * 2 ** min(self._failures - 1, 10), _MAX_RETRY_S)
        now = anyio.current_time()
        if self._logged is None or self._logged[0] != problem or now - self._logged[1] >= _REPEAT_LOG_S:
            self._logged = (problem, now)
            self._log.warning("mdns.failed", reason=problem, seconds=round(delay_s))
        with anyio.move_on_after(delay_s):
            if monitor is None:
                await anyio.sleep_forever()
            else:
                await monitor.wait_changed()
                await anyio.sleep(SETTLE_S)
