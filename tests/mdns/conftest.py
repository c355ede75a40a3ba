"""A fake network to advertise on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from kit.responder import FakeNetwork


@pytest.fixture
def fake() -> Iterator[FakeNetwork]:
    with contextlib.closing(FakeNetwork()) as made:
        yield made
