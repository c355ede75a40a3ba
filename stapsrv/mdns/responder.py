"""The one user of python-zeroconf for advertising: registers services, and detects name conflicts.

zeroconf checks a name only against the answers that list its type, and never again. So names are probed for
and watched here (RFC 6762, 8.1 and 9), the host's own included.

Every method of a responder blocks, for some milliseconds up to a second, and may be called from any thread
but an event loop's. Importing this module takes 60 to 90 ms, so it is imported late, in a worker thread.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ipaddress
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence

from zeroconf import (
    DNSAddress,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSRecord,
    DNSService,
    Error,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    Zeroconf,
)

from stapsrv.errors import AdvertiseError
from stapsrv.mdns.interfaces import Network
from stapsrv.mdns.records import SERVICE_TYPE, ResponderEvents, Service
from stapsrv.mdns.zeroconf_per_link import PerLinkZeroconf

_QUERY = 0
_IN = 1
_A, _AAAA, _ANY = 1, 28, 255

# RFC 6762, 8.1: a name that nobody defends against three probes, a quarter of a second apart, is free.
_PROBES = 3
_PROBE_INTERVAL_S = 0.25
# zeroconf's thread never does anything for long.
_LOOP_TIMEOUT_S = 5.0
# Kept until somebody asks; further ones only repeat them.
_MAX_ERRORS = 10
_NO_MULTICAST = "no network interface takes multicast"


class Responder(RecordUpdateListener):
    """Announces services on a network's links, and detects hosts that claim their names.

    An address of this host is never a conflict.

    Raises:
        AdvertiseError: no network interface takes multicast; from its methods, also that zeroconf failed.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        silence_library()
        self._network = network
        self._host_key: str | None = None
        self._infos: dict[str, ServiceInfo] = {}
        # All that was ever announced by a name: our own answer that comes back late is no conflict.
        self._announced: dict[str, set[tuple[str | None, int | None]]] = {}
        self._names: dict[str, str] = {}
        self._contested: set[str] = set()
        # Names that are being probed, and whether somebody defended them. Separate from the contested ones,
        # which may be taken by take_events meanwhile.
        self._probes: dict[str, bool] = {}
        self._errors: deque[str] = deque(maxlen=_MAX_ERRORS)
        self._received = threading.Condition()
        # Readable while take_events has something to return.
        self.events_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with translated():
                self._zeroconf = PerLinkZeroconf(network.links, self._add_error)
        except AdvertiseError:
            os.close(self.events_fd)
            raise
        if not self._zeroconf.can_send:
            self.close()
            raise AdvertiseError(_NO_MULTICAST)
        self._zeroconf.filter_receivers()
        self._zeroconf.add_listener(self, None)

    def claim_host(self, label: str) -> bool:
        """Probe for ``LABEL.local`` as this host's name, for 0.75 s; False if another host has it."""
        host = _host(label)
        self._host_key = host.lower()
        # Two questions: zeroconf on other hosts does not answer ANY for a host's records.
        if self._probe(host, (_A, _AAAA), self._info(SERVICE_TYPE, host, 0, b"").dns_addresses()):
            self._zeroconf.suppressed_hosts -= {self._host_key}
            return True
        # At once, before the other probes in its turn: one of the two is to keep the name.
        self._zeroconf.suppressed_hosts |= {self._host_key}
        return False

    def claim(self, service: Service) -> bool:
        """Probe for a service's name, for 0.75 s; False if another host has it."""
        info = self._remember(service)
        free = self._probe(info.name, (_ANY,), [info.dns_service()])
        if not free and info.key not in self._infos:
            self._forget(service.name)
        return free

    def announce(self, service: Service) -> None:
        """Announce a service whose name was claimed; takes 0.5 s."""
        info = self._remember(service)
        with translated():
            # This makes zeroconf skip its own probing.
            self._zeroconf.register_service(info, cooperating_responders=True)
        self._infos[info.key] = info

    def update(self, service: Service) -> None:
        """Announce the new data of a service that was announced before; takes 0.5 s."""
        info = self._remember(service)
        with translated():
            self._zeroconf.update_service(info)
        self._infos[info.key] = info

    def withdraw(self, name: str) -> None:
        """Say goodbye for a service, once before this returns and twice more within 0.25 s."""
        info = self._forget(name)
        if info is not None:
            with translated():
                self._zeroconf.unregister_service(info)

    def move(self, network: Network) -> None:
        """Change links or addresses; takes up to 0.5 s. Every service has to be updated after it."""
        self._network = network
        addresses = self._addresses()

        prepared = threading.Event()

        def prepare() -> None:
            self._zeroconf.async_leave(network.links)
            for info in tuple(self._infos.values()):
                info.addresses = addresses
            prepared.set()

        with translated():
            if self._zeroconf.loop is None:
                raise RuntimeError("it has no loop")
            # The only thread that may touch its registry.
            self._zeroconf.loop.call_soon_threadsafe(prepare)
            if not prepared.wait(_LOOP_TIMEOUT_S):
                raise RuntimeError("its loop is stuck")
            self._zeroconf.set_links(network.links)
        self._zeroconf.filter_receivers()
        if not self._zeroconf.can_send:
            raise AdvertiseError(_NO_MULTICAST)

    def take_events(self) -> ResponderEvents:
        """Return what happened since the last call."""
        with self._received:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.events_fd)
            contested, self._contested = self._contested, set()
            errors = tuple(self._errors)
            self._errors.clear()
        # Not only of announced services: a name may be lost while it is being announced.
        names = frozenset(name for key, name in tuple(self._names.items()) if key in contested)
        return ResponderEvents(host_contested=self._host_key in contested, contested=names, errors=errors)

    def close(self) -> None:
        """Say goodbye for all services and close the sockets; takes 0.3 s or more."""
        try:
            with translated():
                self._zeroconf.close()
        finally:
            with self._received:
                os.close(self.events_fd)
                self.events_fd = -1

    def _probe(self, name: str, types: Sequence[int], claims: Sequence[DNSRecord]) -> bool:
        key = name.lower()
        with self._received:
            self._contested.discard(key)
            self._probes[key] = False
        try:
            for _ in range(_PROBES):
                query = DNSOutgoing(_QUERY)
                # Without the bit for a unicast answer (RFC 6762, 5.4): only one of the programs that share
                # the port would receive that, perhaps another one.
                for type_ in types:
                    query.add_question(DNSQuestion(name, type_, _IN))
                query.authorities = list(claims)  # type: ignore[arg-type] # it takes any record
                self._zeroconf.send(query)
                with self._received:
                    # A name's owner defends it at once.
                    if self._received.wait_for(lambda: self._probes[key], _PROBE_INTERVAL_S):
                        self._contested.discard(key)
                        return False
        finally:
            with self._received:
                del self._probes[key]
        return True

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:  # noqa: ARG002
        """Take the records that zeroconf received, our own included; it calls this in its thread."""
        for update in records:
            # A record that expires from zeroconf's cache is passed as both.
            if update.new is not update.old:
                self._detect_conflict(update.new)

    def _detect_conflict(self, record: DNSRecord) -> None:
        if record.ttl == 0:
            self._revoke_goodbye(record)
            return
        if isinstance(record, DNSService):
            announced = self._announced.get(record.key)
            conflict = announced is not None and (record.server_key, record.port) not in announced
        elif isinstance(record, DNSAddress):
            own = record.key != self._host_key or ipaddress.ip_address(record.address) in self._network.own
            conflict = not own
        else:
            return
        if conflict:
            with self._received:
                self._contested.add(record.key)
                if record.key in self._probes:
                    self._probes[record.key] = True
                self._notify()

    # Another host has just given up the name of a service of ours, with a goodbye.
    def _revoke_goodbye(self, goodbye: DNSRecord) -> None:
        if isinstance(goodbye, DNSPointer) and (info := self._infos.get(goodbye.alias_key)) is not None:
            self._zeroconf.async_send(self._zeroconf.generate_service_broadcast(info, None))

    def _add_error(self, text: str) -> None:
        with self._received:
            self._errors.append(text)
            self._notify()

    def _notify(self) -> None:
        self._received.notify_all()
        # zeroconf's thread may still call this after close().
        if self.events_fd >= 0:
            os.eventfd_write(self.events_fd, 1)

    def _remember(self, service: Service) -> ServiceInfo:
        wanted = service.advertisement
        info = self._info(_full_name(service.name), _host(service.host), wanted.port, wanted.text)
        self._names[info.key] = service.name
        self._zeroconf.restrict(info.key, wanted.addresses)
        # A new set: zeroconf's thread may be reading the old one.
        self._announced[info.key] = self._announced.get(info.key, set()) | {(info.server_key, info.port)}
        return info

    def _info(self, name: str, host: str, port: int, text: bytes) -> ServiceInfo:
        return ServiceInfo(
            SERVICE_TYPE, name, port=port, properties=text, server=host, addresses=self._addresses()
        )

    def _forget(self, name: str) -> ServiceInfo | None:
        key = _full_name(name).lower()
        self._names.pop(key, None)
        self._announced.pop(key, None)
        return self._infos.pop(key, None)

    def _addresses(self) -> list[bytes]:
        links = self._network.links
        return list(dict.fromkeys(address.packed for link in links for address in link.announced))


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise zeroconf's errors, and OSError, as AdvertiseError."""
    try:
        yield
    except OSError as exc:
        raise AdvertiseError(f"multicast DNS is refused: {exc.strerror or exc}") from exc
    except (Error, RuntimeError, concurrent.futures.CancelledError) as exc:
        raise AdvertiseError(f"python-zeroconf: {str(exc) or type(exc).__name__}") from exc


def silence_library() -> None:
    """Keep zeroconf's own log off the terminal; its errors are raised as well."""
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)


def _full_name(name: str) -> str:
    return f"{name}.{SERVICE_TYPE}"


def _host(label: str) -> str:
    return f"{label}.local."
