"""A network that is only told of: stand-ins for what speaks to it, and for what tells of its changes."""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Callable

import anyio
import attrs

from stapsrv.errors import AdvertiseError
from stapsrv.mdns.interfaces import Network, NetworkLink
from stapsrv.mdns.records import News, Service


def link(name: str, *addresses: str, index: int = 2, **facts: bool) -> NetworkLink:
    """Return a link; up and able to multicast unless said otherwise."""
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
class Air:
    """What is heard on a network, and who else is there.

    Attributes:
        network: the host's links, as the kernel would tell them.
        heard: the services that are announced now, by name.
        done: every call to a responder, in order.
        others: names, of services and hosts, that other hosts have.
        faults: raised by the next calls of a kind, one each.
        gate: while clear, announcing and withdrawing wait.
        on_withdraw: called with the service before it is withdrawn.
        looks: how often the network was looked at.
    """

    network: Network = ETHERNET
    heard: dict[str, Service] = attrs.field(factory=dict)
    done: list[tuple[str, str]] = attrs.field(factory=list)
    others: set[str] = attrs.field(factory=set)
    faults: dict[str, list[Exception]] = attrs.field(factory=dict)
    gate: threading.Event = attrs.field(factory=threading.Event)
    on_withdraw: Callable[[Service], None] = lambda _service: None
    responders: list[FakeResponder] = attrs.field(factory=list)
    looks: int = 0
    _told: int = attrs.field(factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def __attrs_post_init__(self) -> None:
        self.gate.set()

    def look(self) -> Network:
        """Return the network, as the kernel would."""
        self.looks += 1
        self.tell()
        return self.network

    def open(self, network: Network) -> FakeResponder:
        self.note("open", ",".join(each.name for each in network.links))
        responder = FakeResponder(self)
        self.responders.append(responder)
        return responder

    def note(self, kind: str, what: str) -> None:
        """Record a call; it fails if that was asked for."""
        self.done.append((kind, what))
        self.tell()
        if self.faults.get(kind):
            raise self.faults[kind].pop(0)

    def tell(self) -> None:
        """Wake whoever waits."""
        os.eventfd_write(self._told, 1)

    def calls(self, kind: str) -> list[str]:
        return [what for done, what in self.done if done == kind]

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; asked again after each call and each look."""
        with anyio.fail_after(20):
            while not condition():
                await anyio.wait_readable(self._told)
                os.eventfd_read(self._told)

    def close(self) -> None:
        """End those that wait at the gate, and tell no more."""
        self.gate.set()
        os.close(self._told)


class FakeResponder:
    """Speaks to the air."""

    def __init__(self, air: Air) -> None:
        self._air = air
        self._news = News()
        self.news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def claim_host(self, label: str) -> bool:
        self._air.note("claim host", label)
        return label not in self._air.others

    def claim(self, service: Service) -> bool:
        self._air.note("claim", service.name)
        return service.name not in self._air.others

    def announce(self, service: Service) -> None:
        assert service.name not in self._air.heard
        self._say("announce", service)

    def update(self, service: Service) -> None:
        assert service.name in self._air.heard
        self._say("update", service)

    def withdraw(self, name: str) -> None:
        assert self._air.gate.wait(20)
        self._air.note("withdraw", name)
        self._air.on_withdraw(self._air.heard[name])
        del self._air.heard[name]
        self._air.tell()

    def move(self, network: Network) -> None:
        self._air.note("move", ",".join(each.name for each in network.links))

    def take_news(self) -> News:
        os.eventfd_read(self.news)
        return self._news

    def tell(self, news: News) -> None:
        """Have something heard."""
        self._news = news
        os.eventfd_write(self.news, 1)

    def close(self) -> None:
        self._air.heard.clear()
        os.close(self.news)
        self._air.note("close", "")

    def _say(self, kind: str, service: Service) -> None:
        assert self._air.gate.wait(20)
        # Whoever waits for the call is told of it when it has had its effect.
        if not self._air.faults.get(kind):
            self._air.heard[service.name] = service
        self._air.note(kind, service.name)


class FakeMonitor:
    """Tells of a change when it is told of one."""

    def __init__(self) -> None:
        self._changed = anyio.Event()

    async def wait_changed(self) -> None:
        await self._changed.wait()
        self._changed = anyio.Event()

    def close(self) -> None:
        pass

    def tell(self) -> None:
        self._changed.set()


REFUSED = AdvertiseError("multicast DNS is refused: Address already in use")
