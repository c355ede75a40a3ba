"""Telling a service manager how things stand (sd_notify(3)): datagrams to ``$NOTIFY_SOCKET``.

Waiting for a daemon to say that it is ready, or why it will not be (sd_notify(3), as its receiver).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping

import anyio

from stapsrv.errors import StapsrvError


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


DAEMON = "stap-serverd"

_MESSAGE_BYTES = 4096
_UCRED = struct.Struct("iII")
"""Process, user and group of a datagram's sender (unix(7), SCM_CREDENTIALS)."""


class DaemonEnded(StapsrvError):
    """A daemon ended before it was ready.

    Attributes:
        status: what it exited with; negative for a signal.
    """

    def __init__(self, reason: str, *, status: int) -> None:
        super().__init__(reason or f"{DAEMON} ended with status {status}")
        self.status = status


class Notifications:
    """What a child says over its ``$NOTIFY_SOCKET``; made by :func:`open_notifications`.

    Attributes:
        address: the variable's value.
    """

    def __init__(self, receiver: socket.socket) -> None:
        self._receiver = receiver
        self.address = "@" + receiver.getsockname()[1:].decode("ascii")

    def wait_ready(self, daemon: subprocess.Popen[bytes], *, timeout_s: float) -> None:
        """Wait until a daemon is ready; then it is nobody's to wait for. One that does not come up is ended.

        Raises:
            DaemonEnded: it ended; the text is the reason that it gave.
            StapsrvError: it was not ready in time.
        """
        try:
            reason = self._wait(daemon, deadline=time.monotonic() + timeout_s)
        except TimeoutError as exc:
            _end(daemon)
            raise StapsrvError(f"{DAEMON} was not ready within {timeout_s:g} seconds and was ended") from exc
        except BaseException:
            _end(daemon)
            raise
        if reason is not None:
            raise DaemonEnded(reason, status=daemon.wait())
        # Popen would complain about a child that lives on.
        daemon.returncode = 0

    def _wait(self, daemon: subprocess.Popen[bytes], *, deadline: float) -> str | None:
        """Return None when the daemon is ready, or the reason it gave (perhaps empty) when it ended."""
        reason = ""
        pidfd = os.pidfd_open(daemon.pid)
        try:
            while True:
                left = max(0.0, deadline - time.monotonic())
                readable, _, _ = select.select([self._receiver.fileno(), pidfd], [], [], left)
                if self._receiver.fileno() in readable:
                    message = self._receive(daemon.pid)
                    if "READY=1" in message:
                        return None
                    reason = next((line[7:] for line in message if line.startswith("STATUS=")), reason)
                elif pidfd in readable:
                    return reason
                else:
                    raise TimeoutError
        finally:
            os.close(pidfd)

    def _receive(self, pid: int) -> list[str]:
        """Return the lines of the next message; none if another process than ``pid`` sent it."""
        data, ancillary, _, _ = self._receiver.recvmsg(_MESSAGE_BYTES, socket.CMSG_SPACE(_UCRED.size))
        senders = [
            _UCRED.unpack(credentials)[0]
            for level, kind, credentials in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
        ]
        return data.decode(errors="replace").split("\n") if senders == [pid] else []


@contextlib.contextmanager
def open_notifications() -> Iterator[Notifications]:
    """Hold a socket for one daemon to report to, whichever user it runs as.

    It has a name that the kernel picks in the abstract namespace, which needs no directory that both can
    reach; everybody may send there, so the kernel says with each message who did.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        receiver.bind("")
        yield Notifications(receiver)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.kill()
    daemon.wait()
