"""What is announced follows what is wanted, whatever the network does; switched off, nothing is loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import attrs
import pytest
from kit.daemon import start
from kit.responder import ETHERNET, REFUSED, FakeMonitor, FakeNetwork, link, network
from kit.service import LogLines

from stapsrv.errors import AdvertiseError
from stapsrv.mdns import advertiser as module
from stapsrv.mdns import entries
from stapsrv.mdns.advertiser import Advertiser, AdvertiserStatistics
from stapsrv.mdns.interfaces import Network
from stapsrv.mdns.records import Advertisement, ResponderEvents

pytestmark = pytest.mark.anyio

NAME = "Systemtap Compile Server on build"
FIRST = Advertisement(sysinfo="6.1.0-1-amd64 x86_64", port=5001, version="4.8", serial="01:02")
SECOND = attrs.evolve(FIRST, sysinfo="6.1.0-2-amd64 x86_64")


class AllNames(set[str]):
    """The names of a host that claims every name."""

    def __contains__(self, name: object) -> bool:
        return True


@attrs.frozen
class Bench:
    """A running advertiser and its surroundings."""

    advertiser: Advertiser
    fake: FakeNetwork
    lines: LogLines
    monitor: FakeMonitor

    async def wait_announced(self, **texts: Advertisement) -> None:
        """Wait until just these are announced, by the ends of their names."""
        wanted = {NAME + end.replace("_", " #"): advertisement.text for end, advertisement in texts.items()}
        await self.fake.wait(
            lambda: {name: service.text for name, service in self.fake.announced.items()} == wanted
        )

    def lines_of(self, event: str) -> list[dict[str, object]]:
        return [entry for entry in self.lines.entries if entry["event"] == event]


@pytest.fixture
def fake() -> Iterator[FakeNetwork]:
    with contextlib.closing(FakeNetwork()) as made:
        yield made


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_RETRY_S", 0.01)


@contextlib.asynccontextmanager
async def advertising(fake: FakeNetwork, *, interfaces: tuple[str, ...] = ()) -> AsyncIterator[Bench]:
    lines, monitor = LogLines(), FakeMonitor()
    advertiser = Advertiser(
        "build",
        interfaces=interfaces,
        log=lines.log,
        open_responder=fake.open,
        read_network=fake.read_network,
        open_monitor=lambda: monitor,
        conflict_delay_s=lambda: 0,
    )
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            await tasks.start(advertiser.run)
            yield Bench(advertiser, fake, lines, monitor)
            tasks.cancel_scope.cancel()
    assert not fake.announced


async def test_no_responder_is_opened_before_something_is_wanted(fake):
    async with advertising(fake) as bench:
        await anyio.wait_all_tasks_blocked()
        assert fake.log == []
        assert bench.advertiser.statistics() == AdvertiserStatistics(
            host=None, links=(), services=(), problem=None
        )


async def test_each_release_is_a_service_with_its_own_name(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST, SECOND))
        bench.advertiser.set(2, (FIRST,))
        await bench.lines.wait("mdns.established", 3)
        assert {name: (service.port, service.host) for name, service in fake.announced.items()} == {
            NAME: (5001, "build"),
            f"{NAME} #2": (5001, "build"),
            f"{NAME} #3": (5001, "build"),
        }
        assert fake.calls("open") == ["eth0"]
        assert bench.advertiser.statistics() == AdvertiserStatistics(
            host="build",
            links=("eth0",),
            services=((1, NAME), (1, f"{NAME} #2"), (2, f"{NAME} #3")),
            problem=None,
        )
        assert bench.lines.events() == ["mdns.adding"] * 3 + ["mdns.established"] * 3


async def test_events_of_a_server_go_to_its_own_log(fake):
    own = LogLines()
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,), own.log)
        await own.wait("mdns.established")
        await bench.advertiser.withdraw(1)
    assert own.events() == ["mdns.adding", "mdns.established", "mdns.removing"]
    assert bench.lines.events() == []


async def test_changed_records_are_updated_under_the_same_name(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        renewed = attrs.evolve(FIRST, serial="03:04", moks=("aa:bb",))
        bench.advertiser.set(1, (renewed,))
        await bench.lines.wait("mdns.updated")
        await bench.wait_announced(**{"": renewed})
        assert fake.calls("announce") == [NAME]
        bench.advertiser.set(1, (renewed,))
        await anyio.wait_all_tasks_blocked()
        assert fake.calls("update") == [NAME]


async def test_change_during_the_announcement_is_announced_after_it(fake):
    fake.gate.clear()
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await fake.wait(lambda: fake.calls("claim") == [NAME])
        bench.advertiser.set(1, (attrs.evolve(FIRST, port=6001),))
        fake.gate.set()
        await fake.wait(lambda: [service.port for service in fake.announced.values()] == [6001])


async def test_omitted_options_are_logged(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (attrs.evolve(FIRST, options=("-Dx", "-B" + "y" * 300)),))
        await bench.lines.wait("mdns.omitted")
        assert bench.lines_of("mdns.omitted")[0]["omitted"] == "-B" + "y" * 300


async def test_withdraw_waits_for_the_goodbye(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST, SECOND))
        bench.advertiser.set(2, (FIRST,))
        await bench.lines.wait("mdns.established", 3)
        await bench.advertiser.withdraw(1)
        assert set(fake.announced) == {f"{NAME} #3"}


async def test_withdraw_during_the_announcement_leaves_nothing_announced(fake):
    fake.gate.clear()
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await fake.wait(lambda: fake.calls("claim") == [NAME])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.advertiser.withdraw, 1)
            await anyio.wait_all_tasks_blocked()
            fake.gate.set()
        assert not fake.announced


async def test_withdraw_is_bounded_even_when_cancelled(fake, monkeypatch):
    monkeypatch.setattr(module, "WITHDRAW_S", 0.05)
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        fake.gate.clear()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await bench.advertiser.withdraw(1)
        assert set(fake.announced) == {NAME}
        fake.gate.set()
        await bench.wait_announced()


async def test_withdraw_of_an_unknown_server_does_nothing(fake):
    async with advertising(fake) as bench:
        await bench.advertiser.withdraw(1)
        assert fake.log == []


async def test_server_that_comes_back_gets_its_name_again(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        bench.advertiser.set(2, (FIRST,))
        await bench.lines.wait("mdns.established", 2)
        await bench.advertiser.withdraw(1)
        bench.advertiser.set(1, (FIRST,))
        await bench.wait_announced(**{"": FIRST, "_2": FIRST})
        assert set(bench.advertiser.statistics().services) == {(1, NAME), (2, f"{NAME} #2")}


async def test_taken_names_are_skipped(fake):
    fake.taken |= {NAME, f"{NAME} #2"}
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        assert set(fake.announced) == {f"{NAME} #3"}
        assert [(line["name"], line["other"]) for line in bench.lines_of("mdns.renaming")] == [
            (NAME, f"{NAME} #2"),
            (f"{NAME} #2", f"{NAME} #3"),
        ]


async def test_contested_name_that_another_host_keeps_is_given_up(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        fake.taken.add(NAME)
        fake.responders[0].receive(ResponderEvents(contested=frozenset({NAME})))
        await bench.wait_announced(_2=FIRST)
        assert fake.calls("withdraw") == [NAME]


async def test_contested_name_that_another_host_gives_up_is_kept(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        fake.responders[0].receive(ResponderEvents(contested=frozenset({NAME})))
        await fake.wait(lambda: fake.calls("update") == [NAME])
        assert fake.calls("withdraw") == []


async def test_probing_for_a_host_name_pauses_after_fifteen_conflicts(fake, monkeypatch):
    monkeypatch.setattr(entries, "_DELAY_S", 1000.0)
    fake.taken = AllNames()
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.host_taken", 15)
        fake.taken = set(fake.calls("claim host"))
        # Whoever goes meanwhile does not wait.
        await bench.advertiser.withdraw(1)
    assert len(fake.calls("claim host")) == 15


async def test_probing_for_service_names_pauses_after_fifteen_conflicts(fake, monkeypatch):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        monkeypatch.setattr(entries, "_DELAY_S", 1000.0)
        fake.taken = AllNames()
        bench.advertiser.set(2, (FIRST, SECOND))
        await bench.lines.wait("mdns.renaming", 15)
        await bench.advertiser.withdraw(2)
        assert set(fake.announced) == {NAME}
        # The two may each have had a question under way.
        assert len(fake.calls("claim")) <= 1 + 16


async def test_taken_host_name_gets_a_number(fake):
    fake.taken.add("build")
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        assert [service.host for service in fake.announced.values()] == ["build-2"]
        fake.taken.add("build-2")
        fake.responders[0].receive(ResponderEvents(host_contested=True))
        await fake.wait(lambda: [service.host for service in fake.announced.values()] == ["build-3"])
        assert [(line["host"], line["other"]) for line in bench.lines_of("mdns.host_taken")] == [
            ("build", "build-2"),
            ("build-2", "build-3"),
        ]


async def test_changed_network_is_followed(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        fake.network = network(link("eth0", "192.0.2.1/24"), link("wlan0", "198.51.100.1/24", index=3))
        bench.monitor.notify()
        await fake.wait(lambda: fake.calls("update") == [NAME])
        assert fake.calls("move") == ["eth0,wlan0"]
        assert bench.advertiser.statistics().links == ("eth0", "wlan0")
        looks = fake.reads
        bench.monitor.notify()
        await fake.wait(lambda: fake.reads == looks + 1)
        fake.network = network(link("wlan0", "198.51.100.1/24", index=3))
        bench.monitor.notify()
        await fake.wait(lambda: fake.calls("update") == [NAME, NAME])
        assert fake.calls("move") == ["eth0,wlan0", "wlan0"]


async def test_advertising_resumes_when_the_network_is_back(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        fake.network = network(link("eth0", "192.0.2.1/24", up=False))
        bench.monitor.notify()
        await bench.lines.wait("mdns.failed")
        problem = "no network interface is up and has an address"
        assert bench.lines_of("mdns.failed")[0]["reason"] == problem
        assert bench.advertiser.statistics().problem == problem
        fake.network = ETHERNET
        bench.monitor.notify()
        await bench.lines.wait("mdns.established", 2)
        assert bench.advertiser.statistics().problem is None


async def test_missing_interface_is_logged_once(fake):
    async with advertising(fake, interfaces=("eth0", "elan0")) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        fake.network = network(link("eth0", "192.0.2.7/24"))
        bench.monitor.notify()
        await fake.wait(lambda: fake.calls("update") == [NAME])
        assert [line["interfaces"] for line in bench.lines_of("mdns.missing")] == ["elan0"]


async def test_error_names_the_missing_interfaces(fake):
    async with advertising(fake, interfaces=("eth7", "192.0.2.9")) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.failed")
        assert bench.lines.reasons("mdns.failed") == [
            "no network interface (eth7, 192.0.2.9) is up and has an address"
        ]


@pytest.mark.parametrize("kind", ["open", "claim host", "claim", "announce"])
async def test_failures_are_logged_once_and_retried(fake, kind):
    fake.faults[kind] = [REFUSED] * 3
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        assert bench.lines.reasons("mdns.failed") == [str(REFUSED)]
        # Each that was opened was closed again.
        assert len(fake.calls("close")) == (0 if kind == "open" else 3)


async def test_all_services_return_after_a_failure_of_one(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        fake.faults["announce"] = [REFUSED]
        bench.advertiser.set(2, (SECOND,))
        await bench.lines.wait("mdns.established", 3)
        assert set(fake.announced) == {NAME, f"{NAME} #2"}


async def test_crash_is_logged_and_retried(fake):
    fake.faults["announce"] = [ZeroDivisionError("oh")]
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        assert len(bench.lines_of("mdns.crashed")) == 1


async def test_refused_netlink_is_logged(fake):
    def refuse() -> Network:
        raise PermissionError(13, "Permission denied")

    lines = LogLines()
    advertiser = Advertiser(
        "build", log=lines.log, open_responder=fake.open, read_network=refuse, open_monitor=refuse
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(advertiser.run)
        advertiser.set(1, (FIRST,))
        await lines.wait("mdns.failed")
        tasks.cancel_scope.cancel()
    assert lines.reasons("mdns.no_monitor") == ["Permission denied"]
    assert lines.reasons("mdns.failed") == [
        "the kernel does not list its network interfaces: Permission denied"
    ]


async def test_responder_errors_are_logged(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        fake.responders[0].receive(ResponderEvents(errors=("Network is unreachable",)))
        await bench.lines.wait("mdns.responder_error")


async def test_failure_of_the_last_goodbye_is_ignored(fake):
    fake.faults["close"] = [AdvertiseError("too late")]
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
    assert fake.calls("close") == [""]


def sockets_of(pid: int, *tables: str) -> set[str]:
    """Return the inodes of a process's sockets that are in these tables of the kernel's."""
    process = Path(f"/proc/{pid}")
    held = set()
    for entry in (process / "fd").iterdir():
        # A file that it was just reading.
        with contextlib.suppress(FileNotFoundError):
            held.add(os.readlink(entry))
    rows = [line for table in tables for line in (process / "net" / table).read_text().splitlines()[1:]]
    return {row.split()[9] for row in rows if f"socket:[{row.split()[9]}]" in held}


@pytest.mark.parametrize(
    ("options", "switch"), [(["--no-mdns"], "yes"), ([], "no")], ids=["by option", "by environment"]
)
def test_daemon_without_mdns_loads_no_zeroconf(tmp_path, build_tree, identity, options, switch):
    environ = os.environ | {
        "SYSTEMTAP_DIR": str(tmp_path / "st"),
        "STAP_PR11197_OVERRIDE": "1",
        "STAPSRV_MDNS": switch,
    }
    with start(["-r", build_tree, "--ssl", identity, *options], environ) as server:
        assert "cryptography" in (maps := Path(f"/proc/{server.pid}/maps").read_text())
        assert "zeroconf" not in maps
        assert not sockets_of(server.pid, "udp", "udp6", "netlink")
        assert sockets_of(server.pid, "tcp", "tcp6")


def test_invalid_mdns_variable_is_a_one_line_error(tmp_path, build_tree, identity):
    environ = os.environ | {
        "SYSTEMTAP_DIR": str(tmp_path / "st"),
        "STAP_PR11197_OVERRIDE": "1",
        "STAPSRV_MDNS": "perhaps",
    }
    with pytest.raises(AssertionError, match=r"stap-serverd: STAPSRV_MDNS='perhaps': expected yes or no\n"):
        with start(["-r", build_tree, "--ssl", identity], environ):
            pass
