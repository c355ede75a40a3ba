"""An advertiser at work on a fake network."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from unittest import mock

import anyio
import attrs

from stapsrv.mdns import session
from stapsrv.mdns.advertiser import Advertiser
from stapsrv.mdns.records import Advertisement

from .responder import FakeMonitor, FakeNetwork
from .service import LogLines

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
            lambda: (
                {name: service.advertisement.text for name, service in self.fake.announced.items()} == wanted
            )
        )

    def lines_of(self, event: str) -> list[dict[str, object]]:
        return [entry for entry in self.lines.entries if entry["event"] == event]


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
    )
    with anyio.fail_after(60), mock.patch.object(session, "_MAX_CONFLICT_DELAY_S", 0):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(advertiser.run)
            yield Bench(advertiser, fake, lines, monitor)
            tasks.cancel_scope.cancel()
    assert not fake.announced
