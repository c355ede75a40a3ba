"""The one place that drives python-zeroconf: services come and go here, and conflicts are heard.

Importing it takes 60 to 90 ms, so it is imported late, in a worker thread. Every method of a responder
blocks, for some milliseconds up to a second, and may be called from any thread but an event loop's.

zeroconf takes a service's name for free unless the type's listing has it, and never looks again. So names
are probed for and watched here (RFC 6762, 8.1 and 9), and the host's own with them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ipaddress
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from zeroconf import Error, RecordUpdate, RecordUpdateListener, ServiceInfo, Zeroconf
from zeroconf._dns import DNSAddress, DNSPointer, DNSQuestion, DNSRecord, DNSService
from zeroconf._protocol.outgoing import DNSOutgoing

from stapsrv.errors import AdvertiseError
from stapsrv.mdns.interfaces import Network
from stapsrv.mdns.records import SERVICE_TYPE, News, Service
from stapsrv.mdns.zeroconf_per_link import LinkwiseZeroconf

_QUERY = 0
_IN = 1
_A, _AAAA, _ANY = 1, 28, 255

_PROBES = 3
_PROBE_INTERVAL_S = 0.25
"""RFC 6762, 8.1: a name that nobody defends against three probes, a quarter of a second apart, is free."""
_LOOP_S = 5.0
"""Within which zeroconf's thread does a small thing; it never does anything for long."""
_TROUBLES = 10
"""Kept until somebody asks; where there are more, the first say what the rest would."""
_NO_MULTICAST = "no network interface takes multicast"


class Responder:
    """Says on a network which services this host has, and hears who else claims their names.

    Args:
        network: on whose links; addresses of its own are never a conflict.

    Raises:
        AdvertiseError: there is no multicast to be had.
    """

    def __init__(self, network: Network) -> None:
        silence_library()
        self._network = network
        self._host_key: str | None = None
        self._infos: dict[str, ServiceInfo] = {}
        # All that was ever said of a name: an answer of ours that comes back late is no conflict.
        self._said: dict[str, set[tuple[str | None, int | None]]] = {}
        self._names: dict[str, str] = {}
        self._contested: set[str] = set()
        # Names that are asked for, and whether somebody has defended them: news are taken meanwhile.
        self._probed: dict[str, bool] = {}
        self._troubles: deque[str] = deque(maxlen=_TROUBLES)
        self._heard = threading.Condition()
        self.news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """A descriptor that is readable while :meth:`take_news` has something to tell."""
        try:
            with translated():
                self._zeroconf = LinkwiseZeroconf(network.links, self._note_trouble)
        except AdvertiseError:
            os.close(self.news)
            raise
        if not self._zeroconf.speaks:
            self.close()
            raise AdvertiseError(_NO_MULTICAST)
        self._zeroconf.hear_links_only()
        self._zeroconf.add_listener(_Listener(self._hear), None)

    def claim_host(self, label: str) -> bool:
        """Ask for ``LABEL.local`` as this host's name, for 0.75 s; False when another host has it.

        Then that one is let have it at once: it may ask in its turn, and one of the two is to keep it.
        """
        host = _host(label)
        self._host_key = host.lower()
        # Two questions: zeroconf elsewhere does not answer one for any record of a host's.
        if self._probe(host, (_A, _AAAA), self._info(SERVICE_TYPE, host, 0, b"").dns_addresses()):
            self._zeroconf.keep_host(self._host_key)
            return True
        self._zeroconf.yield_host(self._host_key)
        return False

    def claim(self, service: Service) -> bool:
        """Ask for a service's name, for 0.75 s; False when another host has it."""
        info = self._remembered(service)
        free = self._probe(info.name, (_ANY,), [info.dns_service()])
        if not free and service.name not in self._infos:
            self._forget(service.name)
        return free

    def announce(self, service: Service) -> None:
        """Say for the first time that a service is there; its name was claimed. Takes 0.5 s.

        Raises:
            AdvertiseError: zeroconf gave up.
        """
        info = self._remembered(service)
        with translated():
            # "Cooperating" in zeroconf's words: the name is ours, do not ask for it.
            self._zeroconf.register_service(info, cooperating_responders=True)
        self._infos[service.name] = info

    def update(self, service: Service) -> None:
        """Say what a service, announced before, is now. Takes 0.5 s.

        Raises:
            AdvertiseError: zeroconf gave up.
        """
        info = self._remembered(service)
        with translated():
            self._zeroconf.update_service(info)
        self._infos[service.name] = info

    def withdraw(self, name: str) -> None:
        """Say that a service is gone: at once, and twice more within 0.25 s, for which this does not wait.

        Raises:
            AdvertiseError: zeroconf gave up.
        """
        info = self._forget(name)
        if info is not None:
            with translated():
                self._zeroconf.unregister_service(info)

    def move(self, network: Network) -> None:
        """Go on with other links or addresses; takes up to 0.5 s. Every service is to be updated after it.

        Raises:
            AdvertiseError: no link took multicast, or zeroconf gave up.
        """
        self._network = network
        addresses = self._addresses()

        def prepare() -> None:
            self._zeroconf.async_leave(network.links)
            for info in tuple(self._infos.values()):
                info.addresses = addresses

        self._in_loop(prepare)
        with translated():
            self._zeroconf.move(network.links)
        self._zeroconf.hear_links_only()
        if not self._zeroconf.speaks:
            raise AdvertiseError(_NO_MULTICAST)

    def take_news(self) -> News:
        """Return what was heard since the last time."""
        with self._heard:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.news)
            contested, self._contested = self._contested, set()
            troubles = tuple(self._troubles)
            self._troubles.clear()
        # Not only what is announced: a name may be lost while it is being announced.
        names = frozenset(name for key, name in tuple(self._names.items()) if key in contested)
        return News(host_contested=self._host_key in contested, contested=names, troubles=troubles)

    def close(self) -> None:
        """Say goodbye for all that is announced, and be silent; takes 0.3 s and more.

        Raises:
            AdvertiseError: zeroconf gave up.
        """
        try:
            with translated():
                self._zeroconf.close()
        finally:
            with self._heard:
                os.close(self.news)
                self.news = -1

    def _probe(self, name: str, types: Sequence[int], claims: Sequence[DNSRecord]) -> bool:
        """Ask whether a name is taken; whoever has it defends it at once."""
        key = name.lower()
        with self._heard:
            self._contested.discard(key)
            self._probed[key] = False
        try:
            return self._ask_for(name, types, claims)
        finally:
            with self._heard:
                del self._probed[key]

    def _ask_for(self, name: str, types: Sequence[int], claims: Sequence[DNSRecord]) -> bool:
        key = name.lower()
        for _ in range(_PROBES):
            question = DNSOutgoing(_QUERY)
            # Not such that want an answer to this host alone (RFC 6762, 5.4): of the programs that share
            # the port one gets it, and it might be another one.
            for type_ in types:
                question.add_question(DNSQuestion(name, type_, _IN))
            question.authorities = list(claims)  # type: ignore[arg-type] # it takes any record
            self._zeroconf.send(question)
            with self._heard:
                if self._heard.wait_for(lambda: self._probed[key], _PROBE_INTERVAL_S):
                    self._contested.discard(key)
                    return False
        return True

    def _hear(self, record: DNSRecord) -> None:
        """Note a conflict; called in zeroconf's thread for everything that is said, by us, too."""
        if record.ttl == 0:
            self._rescue(record)
            return
        if isinstance(record, DNSService):
            said = self._said.get(record.key)
            conflict = said is not None and (record.server_key, record.port) not in said
        elif isinstance(record, DNSAddress):
            own = record.key != self._host_key or ipaddress.ip_address(record.address) in self._network.own
            conflict = not own
        else:
            return
        if conflict:
            with self._heard:
                self._contested.add(record.key)
                if record.key in self._probed:
                    self._probed[record.key] = True
                self._tell()

    def _rescue(self, goodbye: DNSRecord) -> None:
        """Take back a goodbye to a name of ours: a host that gave it up to us has said it."""
        if isinstance(goodbye, DNSPointer) and goodbye.alias_key in self._names:
            info = self._infos.get(self._names[goodbye.alias_key])
            if info is not None:
                self._zeroconf.async_send(self._zeroconf.generate_service_broadcast(info, None))

    def _note_trouble(self, text: str) -> None:
        with self._heard:
            self._troubles.append(text)
            self._tell()

    def _tell(self) -> None:
        self._heard.notify_all()
        if self.news >= 0:
            os.eventfd_write(self.news, 1)

    def _remembered(self, service: Service) -> ServiceInfo:
        info = self._info(_full(service.name), _host(service.host), service.port, service.text)
        self._names[info.key] = service.name
        self._zeroconf.limit(info.key, service.addresses)
        # A new set: zeroconf's thread may be looking at the old one.
        self._said[info.key] = self._said.get(info.key, set()) | {(info.server_key, info.port)}
        return info

    def _info(self, name: str, host: str, port: int, text: bytes) -> ServiceInfo:
        return ServiceInfo(
            SERVICE_TYPE, name, port=port, properties=text, server=host, addresses=self._addresses()
        )

    def _forget(self, name: str) -> ServiceInfo | None:
        key = _full(name).lower()
        self._names.pop(key, None)
        self._said.pop(key, None)
        return self._infos.pop(name, None)

    def _addresses(self) -> list[bytes]:
        links = self._network.links
        return list(dict.fromkeys(address.packed for link in links for address in link.announced))

    def _in_loop(self, action: Callable[[], None]) -> None:
        """Run something small in zeroconf's thread, where its registry may be touched."""
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        with translated():
            if self._zeroconf.loop is None:
                raise RuntimeError("it has no loop")
            self._zeroconf.loop.call_soon_threadsafe(act)
            if not done.wait(_LOOP_S):
                raise RuntimeError("its loop is stuck")


class _Listener(RecordUpdateListener):
    """Hands on every record that is heard."""

    def __init__(self, hear: Callable[[DNSRecord], None]) -> None:
        super().__init__()
        self._hear = hear

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:  # noqa: ARG002
        for update in records:
            # What zeroconf forgets, once it is expired, is told as well: as both.
            if update.new is not update.old:
                self._hear(update.new)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn whatever zeroconf fails with into an error of ours."""
    try:
        yield
    except OSError as exc:
        raise AdvertiseError(f"multicast DNS is refused: {exc.strerror or exc}") from exc
    except (Error, RuntimeError, concurrent.futures.CancelledError) as exc:
        raise AdvertiseError(f"python-zeroconf: {str(exc) or type(exc).__name__}") from exc


def silence_library() -> None:
    """Keep zeroconf's log, which knows nothing of ours, off the terminal; what fails is raised as well."""
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)


def _full(name: str) -> str:
    return f"{name}.{SERVICE_TYPE}"


def _host(label: str) -> str:
    return f"{label}.local."
