"""The health of a kernel release: whether it can be compiled for, as far as this process knows. Pure.

Servers that compile for a release in the same way share one :class:`ReleaseHealth`: what a first compile, or
a client's request, has shown for one of them holds for all.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Collection, Iterator


class Health(enum.StrEnum):
    """The health of a release, as far as it is known."""

    UNTRIED = "untried"
    WARMING = "warming"  # a first compile is running
    HEALTHY = "healthy"  # a module was made for it
    UNHEALTHY = "unhealthy"  # not even the shortest script could be compiled for it


class ReleaseHealth:
    """The health of a release; ``changed`` is called after each change."""

    def __init__(self, changed: Callable[[ReleaseHealth], None] | None = None) -> None:
        self.health = Health.UNTRIED
        self.reason: str | None = None  # the compiler's first error while it is unhealthy
        self._listeners: list[Callable[[], None]] = []
        if changed is not None:
            self._listeners.append(lambda: changed(self))

    @property
    def is_usable(self) -> bool:
        """Whether to advertise it."""
        # A release that was not tried yet may well be fine.
        return self.health is not Health.UNHEALTHY

    def set(self, health: Health, reason: str | None = None) -> None:
        """Set the health, and call the listeners if it has changed."""
        if (health, reason) != (self.health, self.reason):
            self.health, self.reason = health, reason
            for listener in list(self._listeners):
                listener()

    @contextlib.contextmanager
    def when_healthy(self, then: Callable[[], None]) -> Iterator[None]:
        """Call ``then`` whenever the release becomes healthy, until the block ends; at once if it is."""
        with self._when({Health.HEALTHY}, then):
            yield

    @contextlib.contextmanager
    def when_tried(self, then: Callable[[], None]) -> Iterator[None]:
        """Call ``then`` whenever an attempt to compile has ended, until the block ends; at once after one."""
        with self._when({Health.HEALTHY, Health.UNHEALTHY}, then):
            yield

    @contextlib.contextmanager
    def _when(self, wanted: Collection[Health], then: Callable[[], None]) -> Iterator[None]:
        def check() -> None:
            if self.health in wanted:
                then()

        check()
        self._listeners.append(check)
        try:
            yield
        finally:
            self._listeners.remove(check)
