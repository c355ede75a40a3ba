"""Bounded waits: what depends on a peer, or on others' work, ends in time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import anyio

from stapsrv.refusal import Refusal


class Overdue(TimeoutError):
    """A peer did not do its part in time.

    Attributes:
        refusal: the deadline that it missed.
    """

    def __init__(self, text: str, refusal: Refusal) -> None:
        super().__init__(text)
        self.refusal = refusal


@contextlib.contextmanager
def deadline(seconds: float, missed: str, refusal: Refusal) -> Iterator[None]:
    """Bound a wait.

    Raises:
        Overdue: it took longer; the text says that ``missed`` was so within these seconds.
    """
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise Overdue(f"{missed} within {seconds:g} seconds", refusal)
