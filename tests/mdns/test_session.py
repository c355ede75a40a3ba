"""A session announces what is wanted, also where others claim the names."""

from __future__ import annotations

import anyio
import attrs
import pytest
from kit.advertising import FIRST, NAME, SECOND, AllNames, advertising
from kit.responder import link, network
from kit.service import LogLines

from stapsrv.mdns import entries
from stapsrv.mdns.records import ResponderEvents

pytestmark = pytest.mark.anyio


async def test_each_release_is_a_service_with_its_own_name(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST, SECOND))
        bench.advertiser.set(2, (FIRST,))
        await bench.lines.wait("mdns.established", 3)
        assert {
            name: (service.advertisement.port, service.host) for name, service in fake.announced.items()
        } == {
            NAME: (5001, "build"),
            f"{NAME} #2": (5001, "build"),
            f"{NAME} #3": (5001, "build"),
        }
        assert fake.calls("open") == ["eth0"]
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
        await fake.wait(lambda: [service.advertisement.port for service in fake.announced.values()] == [6001])


async def test_omitted_options_are_logged(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (attrs.evolve(FIRST, options=("-Dx", "-B" + "y" * 300)),))
        await bench.lines.wait("mdns.omitted")
        assert bench.lines_of("mdns.omitted")[0]["omitted"] == "-B" + "y" * 300


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


async def test_server_that_comes_back_gets_its_name_again(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        bench.advertiser.set(2, (attrs.evolve(FIRST, port=6001),))
        await bench.lines.wait("mdns.established", 2)
        await bench.advertiser.withdraw(1)
        bench.advertiser.set(1, (FIRST,))
        await bench.wait_announced(**{"": FIRST, "_2": FIRST})
        ports = {name: service.advertisement.port for name, service in fake.announced.items()}
        assert ports == {NAME: 5001, f"{NAME} #2": 6001}


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
        # A server that goes meanwhile does not wait.
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
        looks = fake.reads
        bench.monitor.notify()
        await fake.wait(lambda: fake.reads == looks + 1)
        fake.network = network(link("wlan0", "198.51.100.1/24", index=3))
        bench.monitor.notify()
        await fake.wait(lambda: fake.calls("update") == [NAME, NAME])
        assert fake.calls("move") == ["eth0,wlan0", "wlan0"]


async def test_responder_errors_are_logged(fake):
    async with advertising(fake) as bench:
        bench.advertiser.set(1, (FIRST,))
        await bench.lines.wait("mdns.established")
        fake.responders[0].receive(ResponderEvents(errors=("Network is unreachable",)))
        await bench.lines.wait("mdns.responder_error")
