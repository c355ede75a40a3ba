"""Servers whose stap is a stand-in that a test tells what to answer, and the health of their releases."""

from __future__ import annotations

import contextlib
from pathlib import Path

import anyio

from stapsrv.compile.health import Health
from stapsrv.supervisor.advertise import advertisements
from stapsrv.supervisor.operations import ServerSpec
from stapsrv.supervisor.warmup import Warmup

from .stap import make_stap

MODULE = 'touch "$answer/x.ko"'
BROKEN = "echo 'In file included from x.c:1:' >&2; echo 'x.h:3: error: no such thing' >&2; exit 1"


class Kernel:
    """A stap whose answers a test decides, and which notes each run."""

    def __init__(self, bench, directory: Path) -> None:
        self.bench = bench
        self._script, self._runs = directory / "answer.sh", directory / "runs"
        self._runs.touch()
        self.answer(MODULE)
        make_stap(
            bench.runtime.engine.stap.path,
            f'echo "$*" >>{self._runs}; . {self._script}',
        )

    def answer(self, script: str) -> None:
        new = self._script.with_suffix(".new")
        new.write_text(script)
        new.replace(self._script)

    @property
    def runs(self) -> list[str]:
        return self._runs.read_text().splitlines()


class Healths:
    """Follows the health of releases."""

    def __init__(self, warmup: Warmup) -> None:
        self.seen: list[Health] = []
        self._changed = anyio.Event()
        self._changed_before = warmup.on_health_change
        warmup.on_health_change = self._note

    def _note(self, standing) -> None:
        self._changed_before(standing)
        self.seen.append(standing.health)
        self._changed.set()
        self._changed = anyio.Event()

    async def wait(self, health: Health, count: int = 1) -> None:
        with anyio.fail_after(60):
            while self.seen.count(health) < count:
                await self._changed.wait()


class Listener:
    """In an announcer's place: keeps which releases it was last told to say of a server."""

    def __init__(self) -> None:
        self.said: dict[int, list[str]] = {}

    async def run(self) -> None:
        await anyio.sleep_forever()

    def advertise(self, server_id, server) -> None:
        found = advertisements(server, serial="00", moks=())
        self.said[server_id] = [advertisement.sysinfo for advertisement in found]

    def retract(self, server_id) -> None:
        self.said.pop(server_id, None)

    async def withdraw(self, server_id) -> None:
        self.retract(server_id)


@contextlib.asynccontextmanager
async def started(bench, count: int = 1, advertiser: Listener | None = None, **settings):
    """Start servers of a new process; yields the supervisor, their status, and what follows their health."""
    bench.runtime = bench.new_runtime()
    async with bench.supervisor(advertiser=advertiser) as supervisor:
        healths = Healths(bench.runtime.warmup)
        specs = [
            ServerSpec(bench.settings(warmup=True, max_threads=number, **settings))
            for number in range(1, count + 1)
        ]
        outcomes = await supervisor.start(specs)
        assert [outcome.error for outcome in outcomes] == [None] * count
        yield supervisor, [outcome.server for outcome in outcomes], healths
