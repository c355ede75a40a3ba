"""Names are probed for and watched. A fake zeroconf takes the packets, so none is sent."""

from __future__ import annotations

import concurrent.futures
import ipaddress
import select
from collections.abc import Callable, Iterator

import attrs
import pytest
from kit.responder import ETHERNET, link, network
from zeroconf import (
    DNSAddress,
    DNSPointer,
    DNSRecord,
    DNSService,
    EventLoopBlocked,
    RecordUpdate,
    ServiceInfo,
)

from stapsrv.errors import AdvertiseError
from stapsrv.mdns import responder as module
from stapsrv.mdns.records import SERVICE_TYPE, Advertisement, ResponderEvents, Service
from stapsrv.mdns.responder import Responder

NAME = "Systemtap Compile Server on build"
FULL = f"{NAME}.{SERVICE_TYPE}"
WANTED = Advertisement(sysinfo="6.1 x86_64", port=5001, version="4.8", serial="01")
SERVICE = Service(name=NAME, host="build", generation=1, advertisement=WANTED)


class Loop:
    """Runs at once what zeroconf's loop would run soon."""

    def call_soon_threadsafe(self, action: Callable[[], None]) -> None:
        action()


class FakeZeroconf:
    """Takes what is sent, and answers each query with ``answers``."""

    def __init__(self, links, on_error) -> None:
        self.links = links
        self.on_error = on_error
        self.can_send = True
        self.loop = Loop()
        self.done: list[tuple[str, object]] = []
        self.questions: list[object] = []
        self.answers: list[DNSRecord] = []
        self.fault: Exception | None = None
        self.filtered = 0
        self.suppressed_hosts: frozenset[str] = frozenset()
        self.restrictions: dict[str, frozenset[bytes] | None] = {}

    def add_listener(self, listener, question) -> None:
        self.listener = listener

    def receive(self, *records: DNSRecord) -> None:
        self.listener.async_update_records(self, 0.0, [RecordUpdate(record) for record in records])

    def send(self, out) -> None:
        self.questions.append(out)
        self.receive(*self.answers)

    def register_service(self, info: ServiceInfo, *, cooperating_responders: bool) -> None:
        assert cooperating_responders
        self._do("register", info.name)

    def update_service(self, info: ServiceInfo) -> None:
        self._do("update", info.port)

    def unregister_service(self, info: ServiceInfo) -> None:
        self._do("unregister", info.name)

    def generate_service_broadcast(self, info: ServiceInfo, ttl: int | None) -> str:
        assert ttl is None
        return info.name

    def async_send(self, out: object) -> None:
        self._do("send", out)

    def async_leave(self, links) -> None:
        self._do("leave", tuple(each.name for each in links))

    def set_links(self, links) -> None:
        self._do("move", tuple(each.name for each in links))

    def filter_receivers(self) -> None:
        self.filtered += 1

    def restrict(self, key: str, addresses: frozenset[bytes] | None) -> None:
        self.restrictions[key] = addresses

    def close(self) -> None:
        self._do("close", None)

    def _do(self, kind: str, what: object) -> None:
        self.done.append((kind, what))
        if self.fault is not None:
            raise self.fault


@attrs.frozen
class Bench:
    responder: Responder
    zeroconf: FakeZeroconf

    @property
    def has_events(self) -> bool:
        return bool(select.select([self.responder.events_fd], [], [], 0)[0])


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(module, "_PROBE_INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "PerLinkZeroconf", FakeZeroconf)
    made = Responder(ETHERNET)
    yield Bench(made, made._zeroconf)
    made._zeroconf.fault = None
    if made.events_fd >= 0:
        made.close()


def srv(host: str = "other.local.", port: int = 5001, *, ttl: int = 120, name: str = FULL) -> DNSService:
    return DNSService(name, 33, 0x8001, ttl, 0, 0, port, host, 0.0)


def address(text: str, *, ttl: int = 120, host: str = "build.local.") -> DNSAddress:
    found = ipaddress.ip_address(text)
    return DNSAddress(host, 1 if found.version == 4 else 28, 0x8001, ttl, found.packed, created=0.0)


def test_free_name_is_probed_for_three_times(bench):
    assert bench.responder.claim(SERVICE)
    assert [[(q.name, q.type) for q in out.questions] for out in bench.zeroconf.questions] == [
        [(FULL, 255)]
    ] * 3
    # What makes it a probe, which is answered at once.
    (claim,) = bench.zeroconf.questions[0].authorities
    assert (claim.server, claim.port) == ("build.local.", 5001)


def test_claim_restricts_a_service_to_the_addresses_that_it_listens_on(bench):
    here = frozenset({bytes([192, 0, 2, 1])})
    assert bench.responder.claim(attrs.evolve(SERVICE, advertisement=attrs.evolve(WANTED, addresses=here)))
    assert bench.zeroconf.restrictions == {FULL.lower(): here}


def test_claim_fails_at_the_first_defence_and_forgets_the_name(bench):
    bench.zeroconf.answers = [srv()]
    assert not bench.responder.claim(SERVICE)
    assert len(bench.zeroconf.questions) == 1
    # It is none of ours from then on.
    bench.responder.take_events()
    bench.zeroconf.receive(srv())
    assert not bench.has_events


def test_defence_counts_although_events_are_taken_during_the_probing(bench, monkeypatch):
    """Else a name would be taken from the host that has it, until the two noticed."""
    deliver = bench.zeroconf.receive

    def receive(*records: DNSRecord) -> None:
        deliver(*records)
        bench.responder.take_events()

    monkeypatch.setattr(bench.zeroconf, "receive", receive)
    bench.zeroconf.answers = [srv()]
    assert not bench.responder.claim(SERVICE)
    # A conflict from before the probing does not count.
    bench.zeroconf.answers = []
    deliver(srv())
    assert bench.responder.claim(SERVICE)


def test_own_records_are_no_conflict(bench):
    bench.zeroconf.answers = [srv("build.local."), srv("BUILD.local."), srv(name=f"Other.{SERVICE_TYPE}")]
    assert bench.responder.claim(SERVICE)
    bench.responder.announce(SERVICE)
    moved = attrs.evolve(WANTED, port=6001)
    bench.responder.update(attrs.evolve(SERVICE, host="build-2", advertisement=moved))
    # Late, and of before the update.
    bench.zeroconf.receive(srv("build.local."), srv("build-2.local.", 6001), srv(ttl=0))
    assert not bench.has_events
    assert bench.responder.take_events() == ResponderEvents()


def test_conflict_is_reported_once(bench):
    bench.responder.announce(SERVICE)
    bench.zeroconf.receive(srv(), srv())
    assert bench.has_events
    assert bench.responder.take_events() == ResponderEvents(contested=frozenset({NAME}))
    assert not bench.has_events
    assert bench.responder.take_events() == ResponderEvents()


def test_expired_record_is_no_conflict(bench):
    bench.responder.announce(SERVICE)
    forgotten = srv()
    bench.zeroconf.listener.async_update_records(bench.zeroconf, 0.0, [RecordUpdate(forgotten, forgotten)])
    assert not bench.has_events


def test_conflict_during_the_announcement_is_reported(bench):
    """Two hosts that start at once receive each other's records just then."""
    assert bench.responder.claim(SERVICE)
    bench.zeroconf.receive(srv())
    assert bench.responder.take_events() == ResponderEvents(contested=frozenset({NAME}))


def test_goodbye_of_another_host_for_our_name_is_revoked(bench):
    bench.responder.announce(SERVICE)
    goodbye = DNSPointer(SERVICE_TYPE, 12, 1, 0, FULL, 0.0)
    bench.zeroconf.receive(goodbye, srv(ttl=0))
    assert bench.zeroconf.done[1:] == [("send", FULL)]
    assert not bench.has_events
    # But not our own, which is received, too.
    bench.responder.withdraw(NAME)
    bench.zeroconf.receive(goodbye)
    assert bench.zeroconf.done[2:] == [("unregister", FULL)]


def test_names_are_compared_without_case(bench):
    bench.responder.announce(SERVICE)
    bench.zeroconf.receive(srv(name=FULL.upper()))
    assert bench.responder.take_events() == ResponderEvents(contested=frozenset({NAME}))


def test_withdrawn_services_are_not_watched(bench):
    bench.responder.announce(SERVICE)
    bench.responder.withdraw(NAME)
    bench.responder.withdraw(NAME)
    other = attrs.evolve(SERVICE, name=f"{NAME} #2")
    bench.responder.announce(other)
    bench.responder.withdraw(other.name)
    bench.zeroconf.receive(srv(), srv(name=f"{NAME} #2.{SERVICE_TYPE}"))
    assert not bench.has_events
    assert bench.zeroconf.done == [
        ("register", FULL),
        ("unregister", FULL),
        ("register", f"{NAME} #2.{SERVICE_TYPE}"),
        ("unregister", f"{NAME} #2.{SERVICE_TYPE}"),
    ]


@pytest.mark.parametrize(
    ("answers", "free"),
    [
        pytest.param([], True, id="nobody"),
        pytest.param([address("192.0.2.1")], True, id="avahi on this host"),
        pytest.param([address("192.0.2.9", host="other.local.")], True, id="another host's other name"),
        pytest.param([address("192.0.2.9", ttl=0)], True, id="a goodbye"),
        pytest.param([address("192.0.2.9")], False, id="another host"),
        pytest.param([address("192.0.2.1"), address("2001:db8::9")], False, id="another host by IPv6"),
    ],
)
def test_claim_of_host_name(bench, answers, free):
    bench.zeroconf.answers = answers
    bench.zeroconf.suppressed_hosts = frozenset({"build.local."} if free else ())
    assert bench.responder.claim_host("build") is free
    assert [(q.name, q.type) for q in bench.zeroconf.questions[0].questions] == [
        ("build.local.", 1),
        ("build.local.", 28),
    ]
    assert bench.zeroconf.suppressed_hosts == (set() if free else {"build.local."})


def test_host_name_claimed_by_another_host_later_is_contested(bench):
    bench.responder.claim_host("build")
    bench.zeroconf.receive(address("192.0.2.9"))
    assert bench.responder.take_events() == ResponderEvents(host_contested=True)
    # An address that this host has by now.
    bench.responder.move(network(link("eth0", "192.0.2.9/24")))
    bench.zeroconf.receive(address("192.0.2.9"))
    assert not bench.has_events


def test_move_changes_the_addresses_of_services(bench):
    bench.responder.announce(SERVICE)
    bench.responder.move(network(link("wlan0", "198.51.100.1/24", "2001:db8::1/64")))
    info = bench.responder._infos[FULL.lower()]
    assert info.parsed_addresses() == ["198.51.100.1", "2001:db8::1"]
    assert bench.zeroconf.done[1:] == [("leave", ("wlan0",)), ("move", ("wlan0",))]
    # Once for the first sockets, once for the new ones.
    assert bench.zeroconf.filtered == 2


def test_only_the_latest_errors_are_kept(bench):
    for number in range(20):
        bench.zeroconf.on_error(f"on_error {number}")
    assert bench.responder.take_events().errors == tuple(f"on_error {number}" for number in range(10, 20))
    assert bench.responder.take_events() == ResponderEvents()


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (PermissionError(1, "Operation not permitted"), "multicast DNS is refused: Operation not permitted"),
        (EventLoopBlocked(), "python-zeroconf: EventLoopBlocked"),
        (RuntimeError("No adapter found for index 7"), "python-zeroconf: No adapter found for index 7"),
        (concurrent.futures.CancelledError(), "python-zeroconf: CancelledError"),
    ],
)
def test_zeroconf_errors_are_translated(bench, fault, text):
    bench.zeroconf.fault = fault
    with pytest.raises(AdvertiseError) as caught:
        bench.responder.announce(SERVICE)
    assert str(caught.value) == text


def test_links_without_multicast_are_an_error(bench, monkeypatch):
    bench.zeroconf.can_send = False
    with pytest.raises(AdvertiseError, match=r"^no network interface takes multicast$"):
        bench.responder.move(ETHERNET)

    closed = []

    class Mute(FakeZeroconf):
        def __init__(self, links, on_error) -> None:
            super().__init__(links, on_error)
            self.can_send = False

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(module, "PerLinkZeroconf", Mute)
    with pytest.raises(AdvertiseError, match=r"^no network interface takes multicast$"):
        Responder(ETHERNET)
    assert len(closed) == 1


def test_refused_socket_is_an_error(monkeypatch):
    def refuse(_links, _trouble):
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(module, "PerLinkZeroconf", refuse)
    with pytest.raises(AdvertiseError, match=r"^multicast DNS is refused: Address already in use$"):
        Responder(ETHERNET)


def test_stuck_loop_is_an_error(bench, monkeypatch):
    monkeypatch.setattr(module, "_LOOP_TIMEOUT_S", 0.01)
    bench.responder.announce(SERVICE)
    bench.zeroconf.loop.call_soon_threadsafe = lambda _action: None
    with pytest.raises(AdvertiseError, match=r"^python-zeroconf: its loop is stuck$"):
        bench.responder.move(ETHERNET)


def test_records_after_close_are_ignored(bench):
    bench.responder.announce(SERVICE)
    zeroconf = bench.zeroconf
    bench.responder.close()
    zeroconf.receive(srv())
    zeroconf.on_error("late")


def test_claims_from_several_threads_are_independent(bench):
    names = [f"{NAME} #{number}" for number in range(2, 30)]
    services = [attrs.evolve(SERVICE, name=name) for name in names]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(bench.responder.claim, services))
        list(pool.map(bench.responder.announce, services))
    bench.zeroconf.receive(srv(name=f"{names[3]}.{SERVICE_TYPE}"))
    assert bench.responder.take_events() == ResponderEvents(contested=frozenset({names[3]}))
