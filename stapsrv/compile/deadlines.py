"""Bounded waits: what depends on a peer, or on others' work, ends in time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import anyio


@contextlib.contextmanager
def deadline(seconds: float, missed: str | None) -> Iterator[anyio.CancelScope]:
    """Bound a wait; when it is missed raise TimeoutError with a text, or leave it to the caller."""
    with anyio.move_on_after(seconds) as scope:
        yield scope
    if scope.cancelled_caught and missed is not None:
        raise TimeoutError(f"{missed} within {seconds:g} seconds")
