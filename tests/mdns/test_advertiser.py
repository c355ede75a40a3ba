"""What is announced follows what is wanted, whatever the network does; switched off, nothing is loaded."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import anyio
import attrs
import pytest
from kit.advertising import FIRST, NAME, SECOND, advertising
from kit.daemon import start
from kit.responder import ETHERNET, REFUSED, link, network
from kit.service import LogLines

from stapsrv.errors import AdvertiseError
from stapsrv.mdns import advertiser as module
from stapsrv.mdns.advertiser import Advertiser
from stapsrv.mdns.interfaces import Network

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_RETRY_S", 0.01)


async def test_no_responder_is_opened_before_something_is_wanted(fake):
    async with advertising(fake):
        await anyio.wait_all_tasks_blocked()
        assert fake.log == []


async def test_withdraw_waits_for_the_goodbye(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST, SECOND))
        bench.advertiser.set(2, (FIRST,))
        await bench.lines.wait("mdns.established", 3)
        await bench.advertiser.withdraw(1)
        assert set(fake.announced) == {f"{NAME} #3"}


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


async def test_advertising_resumes_when_the_network_is_back(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        fake.network = network(link("eth0", "192.0.2.1/24", up=False))
        bench.monitor.notify()
        await bench.lines.wait("mdns.failed")
        problem = "no network interface is up and has an address"
        assert bench.lines_of("mdns.failed")[0]["reason"] == problem
        await fake.wait(lambda: not fake.announced)
        fake.network = ETHERNET
        bench.monitor.notify()
        await bench.lines.wait("mdns.established", 2)
        await bench.wait_announced(**{"": FIRST})
        assert fake.calls("open") == ["eth0", "eth0"]
        assert len(bench.lines_of("mdns.failed")) == 1


@pytest.mark.parametrize(("healthy_s", "reports"), [(0.0, 2), (1e6, 1)])
async def test_problem_is_reported_again_only_after_a_recovery(fake, monkeypatch, healthy_s, reports):
    monkeypatch.setattr(module, "_HEALTHY_S", healthy_s)
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        for outages in (1, 2):
            await bench.lines.wait("mdns.established", outages)
            fake.faults["update"] = [REFUSED]
            bench.advertiser.set(1, (attrs.evolve(FIRST, port=5001 + outages),))
        await bench.lines.wait("mdns.established", 3)
        assert bench.lines.reasons("mdns.failed") == [str(REFUSED)] * reports


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
        tasks.start_soon(advertiser.run)
        advertiser.set(1, (FIRST,))
        await lines.wait("mdns.failed")
        tasks.cancel_scope.cancel()
    assert lines.reasons("mdns.no_monitor") == ["Permission denied"]
    assert lines.reasons("mdns.failed") == [
        "the kernel does not list its network interfaces: Permission denied"
    ]


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
