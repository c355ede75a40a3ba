"""The servers that serve are advertised, each with its present certificate and keys."""

from __future__ import annotations

import contextlib
import errno
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import anyio
import attrs
import pytest
from kit.moks import no_trial
from kit.responder import FakeMonitor, FakeNetwork
from kit.service import LogLines

from stapsrv.compile.engine.base import EngineStatus
from stapsrv.compile.health import Health, ReleaseHealth
from stapsrv.config.global_settings import GlobalSettings
from stapsrv.config.kernels import ServedRelease
from stapsrv.identity.certificate import load_or_create_identity
from stapsrv.identity.mok import create_mok
from stapsrv.mdns.advertiser import Advertiser
from stapsrv.mdns.records import parse_text
from stapsrv.supervisor import advertise, managed_server, runtime
from stapsrv.supervisor.advertise import ServerAdvertiser
from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.operations import ServerSpec

pytestmark = pytest.mark.anyio

NAME = "Systemtap Compile Server on build"


@pytest.fixture
def fake() -> Iterator[FakeNetwork]:
    with contextlib.closing(FakeNetwork()) as made:
        yield made


def advertiser(fake: FakeNetwork, lines: LogLines) -> ServerAdvertiser:
    advertiser = Advertiser(
        "build",
        log=lines.log,
        open_responder=fake.open,
        read_network=fake.read_network,
        open_monitor=FakeMonitor,
    )
    return ServerAdvertiser(advertiser, log=lines.log)


@contextlib.asynccontextmanager
async def serving(bench, fake, *changes):
    """Have servers that differ by these settings serve and be heard of."""
    async with bench.supervisor(advertiser=advertiser(fake, bench.lines)) as supervisor:
        specs = [ServerSpec(bench.settings(**change)) for change in changes or ({},)]
        outcomes = await supervisor.start(specs)
        await fake.wait(lambda: len(fake.announced) == len(specs))
        yield supervisor, [outcome.server for outcome in outcomes]


def texts(fake: FakeNetwork) -> list[dict[str, list[str]]]:
    return [parse_text(said.advertisement.text) for said in fake.announced.values()]


async def test_server_on_loopback_is_not_advertised(bench, fake):
    changes = ({"tuning": {"listen": ("127.0.0.1", "::1")}}, {"tuning": {"listen": ("127.0.0.1", "0.0.0.0")}})
    async with bench.supervisor(advertiser=advertiser(fake, bench.lines)) as supervisor:
        hidden, heard = await supervisor.start([ServerSpec(bench.settings(**change)) for change in changes])
        assert (hidden.error, heard.error) == (None, None)
        await fake.wait(lambda: len(fake.announced) == 1)
        (said,) = fake.announced.values()
        assert (said.advertisement.port, said.advertisement.addresses) == (
            heard.server.port,
            frozenset({bytes(4)}),
        )


async def test_serving_servers_are_advertised(bench, fake):
    given = {"define": ("A=1", "B=2"), "include": ("/tmp",), "build": ("X=x y",), "runtime": "/var"}
    async with serving(bench, fake, given) as (_, servers):
        (said,) = fake.announced.values()
        identity = await bench.runtime.identities.get(bench.identity, bench.lines.log)
        assert (said.name, said.host, said.advertisement.port) == (NAME, "build", servers[0].port)
        assert texts(fake) == [
            {
                "sysinfo": ["6.1.0-test x86_64"],
                "optinfo": ["-R/var -BX=x y -DA=1 -DB=2 -I/tmp"],
                "version": ["4.8"],
                "certinfo": [identity.loaded.serial],
            }
        ]
    assert not fake.announced


async def test_goodbye_is_said_before_the_listener_closes(bench, fake):
    reached = []

    def reach(service):
        with socket.create_connection(("127.0.0.1", service.advertisement.port), 5):
            reached.append(service.advertisement.port)

    fake.on_withdraw = reach
    async with serving(bench, fake, {}, {"max_threads": 1}) as (supervisor, servers):
        (outcome,) = await supervisor.stop([servers[0].id])
        assert outcome.error is None
        assert reached == [servers[0].port]
        assert [said.advertisement.port for said in fake.announced.values()] == [servers[1].port]
    assert reached == [server.port for server in servers]


async def test_draining_servers_are_not_advertised(bench, fake):
    async with serving(bench, fake) as (supervisor, servers):
        await supervisor.drain([servers[0].id])
        await fake.wait(lambda: not fake.announced)
        await supervisor.undrain([servers[0].id])
        await fake.wait(lambda: list(fake.announced) == [NAME])


async def test_crashed_servers_are_not_advertised(bench, fake, monkeypatch):
    monkeypatch.setattr(managed_server, "back_off_s", lambda _crashes: 0.2)
    async with serving(bench, fake) as (supervisor, servers):
        # Accepting fails from now on.
        supervisor._servers[servers[0].id].server._listeners[0].shutdown(socket.SHUT_RDWR)
        await bench.lines.wait("server.crashed")
        await fake.wait(lambda: not fake.announced)
        await fake.wait(lambda: list(fake.announced) == [NAME])
        assert [server.state for server in supervisor.status().servers] == [State.SERVING]


async def test_renewed_certificate_is_advertised(bench, fake, tmp_path):
    async with serving(bench, fake, {}, {"max_threads": 1}):
        live = await bench.runtime.identities.get(bench.identity, bench.lines.log)
        other = await load_or_create_identity(tmp_path / "other", log=bench.lines.log)
        renewed = attrs.evolve(other, directory=live.loaded.directory)
        live.replace(renewed)
        await fake.wait(lambda: [text["certinfo"] for text in texts(fake)] == [[renewed.serial]] * 2)
        assert sorted(fake.calls("announce")) == [NAME, f"{NAME} #2"]


async def test_replaced_database_is_advertised(bench, fake, tmp_path):
    """No client has come by, and the clock's minute is not over."""
    async with serving(bench, fake), anyio.create_task_group() as background:
        background.start_soon(bench.runtime.identities.maintain, bench.lines.log)
        other = await load_or_create_identity(tmp_path / "other", log=bench.lines.log)
        for path in other.directory.iterdir():
            shutil.copy(path, bench.identity / path.name)
        await fake.wait(lambda: [text["certinfo"] for text in texts(fake)] == [[other.serial]])
        background.cancel_scope.cancel()


async def test_machine_owner_keys_are_followed(bench, fake):
    moks = bench.identity / "moks"
    async with serving(bench, fake):
        assert "mok_info" not in texts(fake)[0]
        mok = await create_mok(moks, log=bench.lines.log, trial=no_trial)
        await fake.wait(lambda: [text.get("mok_info") for text in texts(fake)] == [[mok.fingerprint]])
        shutil.rmtree(mok.directory)
        await fake.wait(lambda: "mok_info" not in texts(fake)[0])


async def test_unreadable_keys_keep_what_was_advertised(bench, fake, monkeypatch):
    """What was found before is said on, and the server that comes now is heard of."""

    def fail(_directory):
        raise OSError(errno.EAGAIN, "no thread can be started")

    moks = bench.identity / "moks"
    mok = await create_mok(moks, log=bench.lines.log, trial=no_trial)
    async with serving(bench, fake) as (supervisor, _):
        monkeypatch.setattr(advertise, "load_moks", fail)
        shutil.rmtree(mok.directory)
        await bench.lines.wait("identity.unwatched")
        (second,) = await supervisor.start([ServerSpec(bench.settings(max_threads=1))])
        assert second.error is None
        await fake.wait(lambda: len(fake.announced) == 2)
        assert [text["mok_info"] for text in texts(fake)] == [[mok.fingerprint]] * 2


async def test_crash_of_the_advertiser_leaves_servers_alone(bench, fake, monkeypatch):
    def fail(_directory):
        raise ZeroDivisionError

    monkeypatch.setattr(advertise, "load_moks", fail)
    async with bench.supervisor(advertiser=advertiser(fake, bench.lines)) as supervisor:
        (first,) = await supervisor.start([ServerSpec(bench.settings())])
        await bench.lines.wait("mdns.crashed")
        (second,) = await supervisor.start([ServerSpec(bench.settings(max_threads=1))])
        assert (first.error, second.error) == (None, None)
        outcomes = await supervisor.stop([first.server.id, second.server.id])
        assert [outcome.error for outcome in outcomes] == [None, None]


async def test_nothing_is_advertised_when_mdns_is_off(bench):
    quiet = ServerAdvertiser.from_settings(GlobalSettings(mdns_enabled=False), log=bench.lines.log)
    async with bench.supervisor(advertiser=quiet) as supervisor:
        (outcome,) = await supervisor.start([ServerSpec(bench.settings())])
        await supervisor.drain([outcome.server.id])
        await supervisor.stop([outcome.server.id])
        assert not any(str(event).startswith("mdns.") for event in bench.lines.events())


class Elsewhere:
    """An engine on other hosts, whose releases come and go."""

    def __init__(self, changed):
        self.releases, self.release_health = {}, {}
        self._changed = changed

    def offer(self, name):
        self.releases[name] = ServedRelease(name, "x86_64", name, Path("/nowhere"))
        health = self.release_health[name] = ReleaseHealth(self._changed)
        health.set(Health.HEALTHY)

    def withdraw(self, name):
        self.release_health[name].set(Health.UNHEALTHY, "nobody has it")
        del self.releases[name], self.release_health[name]

    def join(self, pool):
        pool.resize(7)

    def promise(self, _job):
        return b""

    def status(self):
        return EngineStatus(
            name="cloud", address="cloud.example", connected=True, since=datetime(2030, 1, 1, tzinfo=UTC)
        )


async def test_releases_of_other_hosts_are_advertised_as_they_come_and_go(bench, fake, monkeypatch):
    engine = Elsewhere(lambda health: bench.runtime.warmup.on_health_change(health))
    engine.offer("6.1")

    async def open_engine(_settings, _host):
        return engine

    def announced(*names):
        return lambda: (
            sorted(text["sysinfo"] for text in texts(fake)) == [[f"{name} x86_64"] for name in names]
        )

    monkeypatch.setattr(runtime, "open_engine", open_engine)
    async with serving(bench, fake) as (supervisor, _):
        await fake.wait(announced("6.1"))
        engine.offer("6.6")
        await fake.wait(announced("6.1", "6.6"))
        engine.withdraw("6.1")
        await fake.wait(announced("6.6"))
        (server,) = supervisor.status().servers
        assert server.work.engine == engine.status()
        assert server.work.workers == 7
        assert [release.name for release in server.work.releases] == ["6.6"]
