"""What is made of names that other hosts list; none of them is really asked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from zeroconf import ServiceInfo

from stapsrv.mdns import browser as module
from stapsrv.mdns.records import SERVICE_TYPE

KNOWN = f"known.{SERVICE_TYPE}"
SILENT = [f"silent {number}.{SERVICE_TYPE}" for number in range(1000)]


@pytest.fixture
def asked_ms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The wait for each service whose records are not cached."""
    waits: list[float] = []

    class Info(ServiceInfo):
        def load_from_cache(self, _zeroconf, now=None):
            return self.name == KNOWN

        def request(self, _zeroconf, timeout):
            waits.append(timeout)
            return False

    monkeypatch.setattr(module, "ServiceInfo", Info)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: sum(waits) / 1000))
    return waits


def resolve(*names: str) -> list[str]:
    return [info.name for info in module._resolve(None, names)]


def test_services_of_other_types_are_skipped(asked_ms):
    assert resolve("x._evil._tcp.local.", "plain.local.", SERVICE_TYPE, KNOWN) == [KNOWN]


def test_wait_for_silent_services_is_bounded_in_all(asked_ms):
    assert resolve(*SILENT, KNOWN) == [KNOWN]
    assert asked_ms == [1000, 1000, 1000]
