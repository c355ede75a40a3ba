"""What advertising needs of a responder and a monitor, and the threads in which responders may block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

from stapsrv.mdns.links import Network
from stapsrv.mdns.records import News, Service

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
    """What :class:`stapsrv.mdns.netlink.LinkMonitor` promises."""

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
