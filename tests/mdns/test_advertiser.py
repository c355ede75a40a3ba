"""What is said is kept in line with what is wanted, whatever the network does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import anyio
import attrs
import pytest
from kit.responder import ETHERNET, REFUSED, Air, FakeMonitor, link, network
from kit.service import LogLines

from stapsrv.errors import AdvertiseError
from stapsrv.mdns import advertiser as module
from stapsrv.mdns import entries
from stapsrv.mdns.advertiser import Advertiser, AdvertiserStatistics
from stapsrv.mdns.interfaces import Network
from stapsrv.mdns.records import Advertisement, News

pytestmark = pytest.mark.anyio

NAME = "Systemtap Compile Server on build"
FIRST = Advertisement(sysinfo="6.1.0-1-amd64 x86_64", port=5001, version="4.8", serial="01:02")
SECOND = attrs.evolve(FIRST, sysinfo="6.1.0-2-amd64 x86_64")


class AllNames(set[str]):
    """The names of a host that claims whatever it hears of."""

    def __contains__(self, name: object) -> bool:
        return True


@attrs.frozen
class Bench:
    """An advertiser at work, and all that is around it."""

    advertiser: Advertiser
    air: Air
    lines: LogLines
    monitor: FakeMonitor

    async def heard(self, **texts: Advertisement) -> None:
        """Wait until just these are heard, by the ends of their names."""
        wanted = {NAME + end.replace("_", " #"): advertisement.text for end, advertisement in texts.items()}
        await self.air.wait(lambda: {name: said.text for name, said in self.air.heard.items()} == wanted)

    def lines_of(self, event: str) -> list[dict[str, object]]:
        return [entry for entry in self.lines.entries if entry["event"] == event]


@pytest.fixture
def air() -> Iterator[Air]:
    with contextlib.closing(Air()) as made:
        yield made


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_DELAY_S", 0.01)


@contextlib.asynccontextmanager
async def advertising(air: Air, *, interfaces: tuple[str, ...] = ()) -> AsyncIterator[Bench]:
    lines, monitor = LogLines(), FakeMonitor()
    advertiser = Advertiser(
        "build",
        interfaces=interfaces,
        log=lines.log,
        open_responder=air.open,
        read_network=air.look,
        open_monitor=lambda: monitor,
        patience=lambda: 0,
    )
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            await tasks.start(advertiser.run)
            yield Bench(advertiser, air, lines, monitor)
            tasks.cancel_scope.cancel()
    assert not air.heard


async def test_nothing_is_opened_before_something_is_wanted(air):
    async with advertising(air) as bench:
        await anyio.wait_all_tasks_blocked()
        assert air.done == []
        assert bench.advertiser.statistics() == AdvertiserStatistics(
            host=None, links=(), services=(), problem=None
        )


async def test_each_release_is_a_service_of_a_name_of_its_own(air):
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST, SECOND))
        bench.advertiser.set(2, (FIRST,))
        await bench.lines.wait("mdns.established", 3)
        assert {name: (said.port, said.host) for name, said in air.heard.items()} == {
            NAME: (5001, "build"),
            f"{NAME} #2": (5001, "build"),
            f"{NAME} #3": (5001, "build"),
        }
        assert air.calls("open") == ["eth0"]
        assert bench.advertiser.statistics() == AdvertiserStatistics(
            host="build",
            links=("eth0",),
            services=((1, NAME), (1, f"{NAME} #2"), (2, f"{NAME} #3")),
            problem=None,
        )
        assert bench.lines.events() == ["mdns.adding"] * 3 + ["mdns.established"] * 3


async def test_lines_go_to_the_server_s_own_log(air):
    own = LogLines()
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,), own.log)
        await own.wait("mdns.established")
        await bench.advertiser.withdraw(1)
    assert own.events() == ["mdns.adding", "mdns.established", "mdns.removing"]
    assert bench.lines.events() == []


async def test_changed_records_are_said_under_the_same_name(air):
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        renewed = attrs.evolve(FIRST, serial="03:04", moks=("aa:bb",))
        bench.advertiser.set(1, (renewed,))
        await bench.lines.wait("mdns.updated")
        await bench.heard(**{"": renewed})
        assert air.calls("announce") == [NAME]
        bench.advertiser.set(1, (renewed,))
        await anyio.wait_all_tasks_blocked()
        assert air.calls("update") == [NAME]


async def test_records_that_change_during_the_announcement(air):
    air.gate.clear()
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await air.wait(lambda: air.calls("claim") == [NAME])
        bench.advertiser.set(1, (attrs.evolve(FIRST, port=6001),))
        air.gate.set()
        await air.wait(lambda: [said.port for said in air.heard.values()] == [6001])


async def test_what_has_no_room_is_told(air):
    async with advertising(air) as bench:
        bench.advertiser.set(1, (attrs.evolve(FIRST, options=("-Dx", "-B" + "y" * 300)),))
        await bench.lines.wait("mdns.omitted")
        assert bench.lines_of("mdns.omitted")[0]["omitted"] == "-B" + "y" * 300


async def test_withdrawing_waits_for_the_goodbye(air):
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST, SECOND))
        bench.advertiser.set(2, (FIRST,))
        await bench.lines.wait("mdns.established", 3)
        await bench.advertiser.withdraw(1)
        assert set(air.heard) == {f"{NAME} #3"}


async def test_withdrawing_during_the_announcement(air):
    air.gate.clear()
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await air.wait(lambda: air.calls("claim") == [NAME])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.advertiser.withdraw, 1)
            await anyio.wait_all_tasks_blocked()
            air.gate.set()
        assert not air.heard


async def test_withdrawing_is_bounded_even_when_cancelled(air, monkeypatch):
    monkeypatch.setattr(module, "WITHDRAW_S", 0.05)
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        air.gate.clear()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await bench.advertiser.withdraw(1)
        assert set(air.heard) == {NAME}
        air.gate.set()
        await bench.heard()


async def test_withdrawing_what_nobody_advertises(air):
    async with advertising(air) as bench:
        await bench.advertiser.withdraw(1)
        assert air.done == []


async def test_server_that_comes_back_has_its_name_again(air):
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        bench.advertiser.set(2, (FIRST,))
        await bench.lines.wait("mdns.established", 2)
        await bench.advertiser.withdraw(1)
        bench.advertiser.set(1, (FIRST,))
        await bench.heard(**{"": FIRST, "_2": FIRST})
        assert set(bench.advertiser.statistics().services) == {(1, NAME), (2, f"{NAME} #2")}


async def test_names_of_other_hosts_are_left_to_them(air):
    air.others |= {NAME, f"{NAME} #2"}
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        assert set(air.heard) == {f"{NAME} #3"}
        assert [(line["name"], line["other"]) for line in bench.lines_of("mdns.renaming")] == [
            (NAME, f"{NAME} #2"),
            (f"{NAME} #2", f"{NAME} #3"),
        ]


async def test_name_that_another_host_claims_later_and_keeps(air):
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        air.others.add(NAME)
        air.responders[0].tell(News(contested=frozenset({NAME})))
        await bench.heard(_2=FIRST)
        assert air.calls("withdraw") == [NAME]


async def test_name_that_another_host_claims_later_and_gives_up(air):
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        air.responders[0].tell(News(contested=frozenset({NAME})))
        await air.wait(lambda: air.calls("update") == [NAME])
        assert air.calls("withdraw") == []


async def test_host_that_claims_every_name_is_not_asked_without_end(air, monkeypatch):
    monkeypatch.setattr(entries, "_PAUSE_S", 1000.0)
    air.others = AllNames()
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.host_taken", 15)
        air.others = set(air.calls("claim host"))
        # Whoever goes meanwhile does not wait.
        await bench.advertiser.withdraw(1)
    assert len(air.calls("claim host")) == 15


async def test_names_that_are_all_taken_are_not_asked_for_without_end(air, monkeypatch):
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        monkeypatch.setattr(entries, "_PAUSE_S", 1000.0)
        air.others = AllNames()
        bench.advertiser.set(2, (FIRST, SECOND))
        await bench.lines.wait("mdns.renaming", 15)
        await bench.advertiser.withdraw(2)
        assert set(air.heard) == {NAME}
        # The two may each have had a question under way.
        assert len(air.calls("claim")) <= 1 + 16


async def test_host_s_name_that_another_host_has(air):
    air.others.add("build")
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        assert [said.host for said in air.heard.values()] == ["build-2"]
        air.others.add("build-2")
        air.responders[0].tell(News(host_contested=True))
        await air.wait(lambda: [said.host for said in air.heard.values()] == ["build-3"])
        assert [(line["host"], line["other"]) for line in bench.lines_of("mdns.host_taken")] == [
            ("build", "build-2"),
            ("build-2", "build-3"),
        ]


async def test_network_that_changes_is_followed(air):
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        air.network = network(link("eth0", "192.0.2.1/24"), link("wlan0", "198.51.100.1/24", index=3))
        bench.monitor.tell()
        await air.wait(lambda: air.calls("update") == [NAME])
        assert air.calls("move") == ["eth0,wlan0"]
        assert bench.advertiser.statistics().links == ("eth0", "wlan0")
        looks = air.looks
        bench.monitor.tell()
        await air.wait(lambda: air.looks == looks + 1)
        air.network = network(link("wlan0", "198.51.100.1/24", index=3))
        bench.monitor.tell()
        await air.wait(lambda: air.calls("update") == [NAME, NAME])
        assert air.calls("move") == ["eth0,wlan0", "wlan0"]


async def test_network_that_goes_and_comes(air):
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        air.network = network(link("eth0", "192.0.2.1/24", up=False))
        bench.monitor.tell()
        await bench.lines.wait("mdns.failed")
        problem = "no network interface is up and has an address"
        assert bench.lines_of("mdns.failed")[0]["reason"] == problem
        assert bench.advertiser.statistics().problem == problem
        air.network = ETHERNET
        bench.monitor.tell()
        await bench.lines.wait("mdns.established", 2)
        assert bench.advertiser.statistics().problem is None


async def test_interface_that_is_not_there_is_named_once(air):
    async with advertising(air, interfaces=("eth0", "elan0")) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        air.network = network(link("eth0", "192.0.2.7/24"))
        bench.monitor.tell()
        await air.wait(lambda: air.calls("update") == [NAME])
        assert [line["interfaces"] for line in bench.lines_of("mdns.absent")] == ["elan0"]


async def test_interfaces_that_are_not_there_are_named(air):
    async with advertising(air, interfaces=("eth7", "192.0.2.9")) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.failed")
        assert bench.lines.reasons("mdns.failed") == [
            "no network interface (eth7, 192.0.2.9) is up and has an address"
        ]


@pytest.mark.parametrize("kind", ["open", "claim host", "claim", "announce"])
async def test_failures_are_told_once_and_tried_again(air, kind):
    air.faults[kind] = [REFUSED] * 3
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        assert bench.lines.reasons("mdns.failed") == [str(REFUSED)]
        # Each that was opened was closed again.
        assert len(air.calls("close")) == (0 if kind == "open" else 3)


async def test_failure_of_one_service_takes_none_away_for_good(air):
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        air.faults["announce"] = [REFUSED]
        bench.advertiser.set(2, (SECOND,))
        await bench.lines.wait("mdns.established", 3)
        assert set(air.heard) == {NAME, f"{NAME} #2"}


async def test_mistake_of_ours_is_logged_and_tried_again(air):
    air.faults["announce"] = [ZeroDivisionError("oh")]
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        assert len(bench.lines_of("mdns.crashed")) == 1


async def test_kernel_that_does_not_tell_of_links(air):
    def refuse() -> Network:
        raise PermissionError(13, "Permission denied")

    lines = LogLines()
    advertiser = Advertiser(
        "build", log=lines.log, open_responder=air.open, read_network=refuse, open_monitor=refuse
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(advertiser.run)
        advertiser.set(1, (FIRST,))
        await lines.wait("mdns.failed")
        tasks.cancel_scope.cancel()
    assert lines.reasons("mdns.blind") == ["Permission denied"]
    assert lines.reasons("mdns.failed") == [
        "the kernel does not tell its network interfaces: Permission denied"
    ]


async def test_trouble_in_the_library_is_told(air):
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        air.responders[0].tell(News(troubles=("Network is unreachable",)))
        await bench.lines.wait("mdns.trouble")


async def test_goodbye_that_fails_at_the_end_is_no_error(air):
    air.faults["close"] = [AdvertiseError("too late")]
    async with advertising(air) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
    assert air.calls("close") == [""]
