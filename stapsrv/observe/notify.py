"""Telling a service manager how things stand (sd_notify(3)): datagrams to ``$NOTIFY_SOCKET``."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

import anyio


class Notifier:
    """Speaks to the service manager, if there is one; never fails and never waits.

    Args:
        address: ``$NOTIFY_SOCKET``: a path, or ``@NAME`` in the abstract namespace; None for nobody.
    """

    def __init__(self, address: str | None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Notifier:
        """Return a notifier for whoever started this process."""
        return cls(environ.get("NOTIFY_SOCKET"))

    @staticmethod
    def watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
        """Return how often :meth:`alive` is to be called, half of what is allowed; None for never."""
        allowed = environ.get("WATCHDOG_USEC", "")
        if not (allowed.isascii() and allowed.isdigit()) or int(allowed) == 0:
            return None
        if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            return None
        return int(allowed) / 2_000_000

    def ready(self, status: str) -> None:
        """All that was asked for is up."""
        self._send("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        """The way down has begun."""
        self._send("STOPPING=1")

    def reloading(self) -> None:
        """The configuration is being read again; :meth:`ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def alive(self) -> None:
        """The loop that does the work goes round (the service manager's watchdog)."""
        self._send("WATCHDOG=1")

    def failed(self, reason: str) -> None:
        """It will not come up, and why."""
        self._send(f"STATUS={reason}", "ERRNO=1")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        text = "\n".join(assignment.replace("\n", " ") for assignment in assignments)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # noqa: FBT003 - positional in the standard library
            sender.sendto(text.encode("utf-8", "backslashreplace"), self._address)


async def feed_watchdog(notifier: Notifier, environ: Mapping[str, str]) -> None:
    """Tell the service manager that the event loop goes round, as often as it wants, until cancelled."""
    interval_s = Notifier.watchdog_interval_s(environ)
    while interval_s is not None:
        notifier.alive()
        await anyio.sleep(interval_s)
