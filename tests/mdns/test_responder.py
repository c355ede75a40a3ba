"""Names are asked for and watched; zeroconf itself is stood in for, so no packet is sent."""

from __future__ import annotations

import concurrent.futures
import ipaddress
import select
from collections.abc import Callable, Iterator

import attrs
import pytest
from kit.responder import ETHERNET, link, network
from zeroconf import EventLoopBlocked, RecordUpdate, ServiceInfo
from zeroconf._dns import DNSAddress, DNSPointer, DNSRecord, DNSService

from stapsrv.errors import AdvertiseError
from stapsrv.mdns import responder as module
from stapsrv.mdns.records import SERVICE_TYPE, News, Service
from stapsrv.mdns.responder import Responder

NAME = "Systemtap Compile Server on build"
FULL = f"{NAME}.{SERVICE_TYPE}"
SERVICE = Service(name=NAME, host="build", port=5001, text=b"\x01a")


class Loop:
    """Runs at once what zeroconf's loop would run soon."""

    def call_soon_threadsafe(self, action: Callable[[], None]) -> None:
        action()


class FakeZeroconf:
    """Takes what is said, and has ``hear`` called by each question."""

    def __init__(self, links, trouble) -> None:
        self.links = links
        self.trouble = trouble
        self.speaks = True
        self.loop = Loop()
        self.done: list[tuple[str, object]] = []
        self.questions: list[object] = []
        self.answers: list[DNSRecord] = []
        self.fault: Exception | None = None
        self.narrowed = 0
        self.limits: dict[str, frozenset[bytes] | None] = {}

    def add_listener(self, listener, question) -> None:
        self.listener = listener

    def hear(self, *records: DNSRecord) -> None:
        self.listener.async_update_records(self, 0.0, [RecordUpdate(record) for record in records])

    def send(self, out) -> None:
        self.questions.append(out)
        self.hear(*self.answers)

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

    def move(self, links) -> None:
        self._do("move", tuple(each.name for each in links))

    def hear_links_only(self) -> None:
        self.narrowed += 1

    def keep_host(self, key: str) -> None:
        self._do("keep", key)

    def yield_host(self, key: str) -> None:
        self._do("yield", key)

    def limit(self, key: str, addresses: frozenset[bytes] | None) -> None:
        self.limits[key] = addresses

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
    def has_news(self) -> bool:
        return bool(select.select([self.responder.news], [], [], 0)[0])


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(module, "_PROBE_INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "LinkwiseZeroconf", FakeZeroconf)
    made = Responder(ETHERNET)
    yield Bench(made, made._zeroconf)
    made._zeroconf.fault = None
    if made.news >= 0:
        made.close()


def srv(host: str = "other.local.", port: int = 5001, *, ttl: int = 120, name: str = FULL) -> DNSService:
    return DNSService(name, 33, 0x8001, ttl, 0, 0, port, host, 0.0)


def address(text: str, *, ttl: int = 120, host: str = "build.local.") -> DNSAddress:
    found = ipaddress.ip_address(text)
    return DNSAddress(host, 1 if found.version == 4 else 28, 0x8001, ttl, found.packed, created=0.0)


def test_free_name_is_asked_for_three_times(bench):
    assert bench.responder.claim(SERVICE)
    assert [[(q.name, q.type) for q in out.questions] for out in bench.zeroconf.questions] == [
        [(FULL, 255)]
    ] * 3
    # What makes it a probe, which is answered at once.
    (claim,) = bench.zeroconf.questions[0].authorities
    assert (claim.server, claim.port) == ("build.local.", 5001)


def test_a_service_is_said_only_where_it_listens(bench):
    here = frozenset({bytes([192, 0, 2, 1])})
    assert bench.responder.claim(attrs.evolve(SERVICE, addresses=here))
    assert bench.zeroconf.limits == {FULL.lower(): here}


def test_taken_name_is_given_up_at_the_first_answer(bench):
    bench.zeroconf.answers = [srv()]
    assert not bench.responder.claim(SERVICE)
    assert len(bench.zeroconf.questions) == 1
    # It is none of ours from then on.
    bench.responder.take_news()
    bench.zeroconf.hear(srv())
    assert not bench.has_news


def test_defence_counts_though_news_are_taken_while_it_is_waited_for(bench, monkeypatch):
    """Else a name would be taken from the host that has it, until the two noticed."""
    heard = bench.zeroconf.hear

    def hear(*records: DNSRecord) -> None:
        heard(*records)
        bench.responder.take_news()

    monkeypatch.setattr(bench.zeroconf, "hear", hear)
    bench.zeroconf.answers = [srv()]
    assert not bench.responder.claim(SERVICE)
    # What was said of it before it was asked for again is of no account.
    bench.zeroconf.answers = []
    heard(srv())
    assert bench.responder.claim(SERVICE)


def test_answers_of_our_own_are_no_conflict(bench):
    bench.zeroconf.answers = [srv("build.local."), srv("BUILD.local."), srv(name=f"Other.{SERVICE_TYPE}")]
    assert bench.responder.claim(SERVICE)
    bench.responder.announce(SERVICE)
    bench.responder.update(attrs.evolve(SERVICE, host="build-2", port=6001))
    # Late, and of before the update.
    bench.zeroconf.hear(srv("build.local."), srv("build-2.local.", 6001), srv(ttl=0))
    assert not bench.has_news
    assert bench.responder.take_news() == News()


def test_conflict_is_told_once(bench):
    bench.responder.announce(SERVICE)
    bench.zeroconf.hear(srv(), srv())
    assert bench.has_news
    assert bench.responder.take_news() == News(contested=frozenset({NAME}))
    assert not bench.has_news
    assert bench.responder.take_news() == News()


def test_what_zeroconf_forgets_is_no_conflict(bench):
    bench.responder.announce(SERVICE)
    forgotten = srv()
    bench.zeroconf.listener.async_update_records(bench.zeroconf, 0.0, [RecordUpdate(forgotten, forgotten)])
    assert not bench.has_news


def test_conflict_during_the_announcement_is_told(bench):
    """Two that start at once hear of each other just then."""
    assert bench.responder.claim(SERVICE)
    bench.zeroconf.hear(srv())
    assert bench.responder.take_news() == News(contested=frozenset({NAME}))


def test_goodbye_that_another_host_says_to_a_name_of_ours_is_taken_back(bench):
    bench.responder.announce(SERVICE)
    goodbye = DNSPointer(SERVICE_TYPE, 12, 1, 0, FULL, 0.0)
    bench.zeroconf.hear(goodbye, srv(ttl=0))
    assert bench.zeroconf.done[1:] == [("send", FULL)]
    assert not bench.has_news
    # But not our own, which is heard, too.
    bench.responder.withdraw(NAME)
    bench.zeroconf.hear(goodbye)
    assert bench.zeroconf.done[2:] == [("unregister", FULL)]


def test_name_is_compared_as_names_are(bench):
    bench.responder.announce(SERVICE)
    bench.zeroconf.hear(srv(name=FULL.upper()))
    assert bench.responder.take_news() == News(contested=frozenset({NAME}))


def test_withdrawn_services_are_watched_no_more(bench):
    bench.responder.announce(SERVICE)
    bench.responder.withdraw(NAME)
    bench.responder.withdraw(NAME)
    other = attrs.evolve(SERVICE, name=f"{NAME} #2")
    bench.responder.announce(other)
    bench.responder.withdraw(other.name)
    bench.zeroconf.hear(srv(), srv(name=f"{NAME} #2.{SERVICE_TYPE}"))
    assert not bench.has_news
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
def test_host_s_name(bench, answers, free):
    bench.zeroconf.answers = answers
    assert bench.responder.claim_host("build") is free
    assert [(q.name, q.type) for q in bench.zeroconf.questions[0].questions] == [
        ("build.local.", 1),
        ("build.local.", 28),
    ]
    assert bench.zeroconf.done == [("keep" if free else "yield", "build.local.")]


def test_host_s_name_that_is_claimed_later(bench):
    bench.responder.claim_host("build")
    bench.zeroconf.hear(address("192.0.2.9"))
    assert bench.responder.take_news() == News(host_contested=True)
    # An address that this host has by now.
    bench.responder.move(network(link("eth0", "192.0.2.9/24")))
    bench.zeroconf.hear(address("192.0.2.9"))
    assert not bench.has_news


def test_moving_takes_the_addresses_along(bench):
    bench.responder.announce(SERVICE)
    bench.responder.move(network(link("wlan0", "198.51.100.1/24", "2001:db8::1/64")))
    info = bench.responder._infos[NAME]
    assert info.parsed_addresses() == ["198.51.100.1", "2001:db8::1"]
    assert bench.zeroconf.done[1:] == [("leave", ("wlan0",)), ("move", ("wlan0",))]
    # Once for the first sockets, once for the new ones.
    assert bench.zeroconf.narrowed == 2


def test_trouble_is_news(bench):
    for number in range(20):
        bench.zeroconf.trouble(f"trouble {number}")
    assert bench.responder.take_news().troubles == tuple(f"trouble {number}" for number in range(10, 20))
    assert bench.responder.take_news() == News()


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (PermissionError(1, "Operation not permitted"), "multicast DNS is refused: Operation not permitted"),
        (EventLoopBlocked(), "python-zeroconf: EventLoopBlocked"),
        (RuntimeError("No adapter found for index 7"), "python-zeroconf: No adapter found for index 7"),
        (concurrent.futures.CancelledError(), "python-zeroconf: CancelledError"),
    ],
)
def test_failures_are_of_our_kind(bench, fault, text):
    bench.zeroconf.fault = fault
    with pytest.raises(AdvertiseError) as caught:
        bench.responder.announce(SERVICE)
    assert str(caught.value) == text


def test_links_that_take_no_multicast(bench, monkeypatch):
    bench.zeroconf.speaks = False
    with pytest.raises(AdvertiseError, match=r"^no network interface takes multicast$"):
        bench.responder.move(ETHERNET)

    closed = []

    class Mute(FakeZeroconf):
        def __init__(self, links, trouble) -> None:
            super().__init__(links, trouble)
            self.speaks = False

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(module, "LinkwiseZeroconf", Mute)
    with pytest.raises(AdvertiseError, match=r"^no network interface takes multicast$"):
        Responder(ETHERNET)
    assert len(closed) == 1


def test_socket_that_is_refused(monkeypatch):
    def refuse(_links, _trouble):
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(module, "LinkwiseZeroconf", refuse)
    with pytest.raises(AdvertiseError, match=r"^multicast DNS is refused: Address already in use$"):
        Responder(ETHERNET)


def test_loop_that_is_stuck(bench, monkeypatch):
    monkeypatch.setattr(module, "_LOOP_S", 0.01)
    bench.responder.announce(SERVICE)
    bench.zeroconf.loop.call_soon_threadsafe = lambda _action: None
    with pytest.raises(AdvertiseError, match=r"^python-zeroconf: its loop is stuck$"):
        bench.responder.move(ETHERNET)


def test_what_is_heard_after_the_end_is_lost(bench):
    bench.responder.announce(SERVICE)
    zeroconf = bench.zeroconf
    bench.responder.close()
    zeroconf.hear(srv())
    zeroconf.trouble("late")


def test_claims_of_several_threads(bench):
    names = [f"{NAME} #{number}" for number in range(2, 30)]
    services = [attrs.evolve(SERVICE, name=name) for name in names]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(bench.responder.claim, services))
        list(pool.map(bench.responder.announce, services))
    bench.zeroconf.hear(srv(name=f"{names[3]}.{SERVICE_TYPE}"))
    assert bench.responder.take_news() == News(contested=frozenset({names[3]}))
