"""Stand-ins for the responder, the network that it announces on, and the monitor of link changes."""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Callable

import anyio
import attrs

from stapsrv.errors import AdvertiseError
from stapsrv.mdns.interfaces import Network, NetworkLink
from stapsrv.mdns.records import ResponderEvents, Service

REFUSED = AdvertiseError("multicast DNS is refused: Address already in use")


def link(name: str, *addresses: str, index: int = 2, **facts: bool) -> NetworkLink:
    """Return a link that is up and can multicast, unless ``facts`` differ."""
    usual = {"up": True, "multicast": True, "loopback": False, "point_to_point": False}
    return NetworkLink(
        index=index,
        name=name,
        addresses=tuple(ipaddress.ip_interface(address) for address in addresses),
        **{**usual, **facts},
    )


def network(*links: NetworkLink) -> Network:
    return Network(links, frozenset(each.ip for one in links for each in one.addresses))


ETHERNET = network(link("eth0", "192.0.2.1/24"))


@attrs.define
class FakeNetwork:
    """A network in memory: what is announced on it, and which names other hosts have.

    Attributes:
        network: the host's links, as the kernel would list them.
        announced: the services that are announced now, by name.
        log: every call to a responder, in order.
        taken: names, of services and hosts, that other hosts have.
        faults: raised by the next calls of a kind, one each.
        gate: while clear, announcing and withdrawing wait.
        on_withdraw: called with the service before it is withdrawn.
        reads: how often the links were read.
    """

    network: Network = ETHERNET
    announced: dict[str, Service] = attrs.field(factory=dict)
    log: list[tuple[str, str]] = attrs.field(factory=list)
    taken: set[str] = attrs.field(factory=set)
    faults: dict[str, list[Exception]] = attrs.field(factory=dict)
    gate: threading.Event = attrs.field(factory=threading.Event)
    on_withdraw: Callable[[Service], None] = lambda _service: None
    responders: list[FakeResponder] = attrs.field(factory=list)
    reads: int = 0
    _changed: int = attrs.field(factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def __attrs_post_init__(self) -> None:
        self.gate.set()

    def read_network(self) -> Network:
        """Return the network, as the kernel would."""
        self.reads += 1
        self.notify()
        return self.network

    def open(self, network: Network) -> FakeResponder:
        self.record("open", ",".join(each.name for each in network.links))
        responder = FakeResponder(self)
        self.responders.append(responder)
        return responder

    def record(self, kind: str, argument: str) -> None:
        """Record a call; raises if a fault of this kind is left."""
        self.log.append((kind, argument))
        self.notify()
        if self.faults.get(kind):
            raise self.faults[kind].pop(0)

    def notify(self) -> None:
        """Wake the waiting test."""
        os.eventfd_write(self._changed, 1)

    def calls(self, kind: str) -> list[str]:
        return [argument for called, argument in self.log if called == kind]

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; it is checked after each call and each read."""
        with anyio.fail_after(60):
            while not condition():
                await anyio.wait_readable(self._changed)
                os.eventfd_read(self._changed)

    def close(self) -> None:
        """Open the gate for good, and close the descriptor."""
        self.gate.set()
        os.close(self._changed)


class FakeResponder:
    """Announces on a fake network."""

    def __init__(self, fake: FakeNetwork) -> None:
        self._fake = fake
        self._events = ResponderEvents()
        self.events_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def claim_host(self, label: str) -> bool:
        self._fake.record("claim host", label)
        return label not in self._fake.taken

    def claim(self, service: Service) -> bool:
        self._fake.record("claim", service.name)
        return service.name not in self._fake.taken

    def announce(self, service: Service) -> None:
        assert service.name not in self._fake.announced
        self._announce("announce", service)

    def update(self, service: Service) -> None:
        assert service.name in self._fake.announced
        self._announce("update", service)

    def withdraw(self, name: str) -> None:
        assert self._fake.gate.wait(60)
        self._fake.record("withdraw", name)
        self._fake.on_withdraw(self._fake.announced[name])
        del self._fake.announced[name]
        self._fake.notify()

    def move(self, network: Network) -> None:
        self._fake.record("move", ",".join(each.name for each in network.links))

    def take_events(self) -> ResponderEvents:
        os.eventfd_read(self.events_fd)
        return self._events

    def receive(self, events: ResponderEvents) -> None:
        """Have the next :meth:`take_events` return ``events``."""
        self._events = events
        os.eventfd_write(self.events_fd, 1)

    def close(self) -> None:
        self._fake.announced.clear()
        os.close(self.events_fd)
        self._fake.record("close", "")

    def _announce(self, kind: str, service: Service) -> None:
        assert self._fake.gate.wait(60)
        # The effect before the record: a test that waits for the call may look at once.
        if not self._fake.faults.get(kind):
            self._fake.announced[service.name] = service
        self._fake.record(kind, service.name)


class FakeMonitor:
    """Reports a change when a test calls :meth:`notify`."""

    def __init__(self) -> None:
        self._changed = anyio.Event()

    async def wait_changed(self) -> None:
        await self._changed.wait()
        self._changed = anyio.Event()

    def close(self) -> None:
        pass

    def notify(self) -> None:
        self._changed.set()
