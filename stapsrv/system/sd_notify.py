"""The sd_notify(3) protocol, both ends: a daemon reports over ``$NOTIFY_SOCKET``, its starter waits."""

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

_MESSAGE_BYTES = 4096
# Process, user and group of a datagram's sender (unix(7), SCM_CREDENTIALS).
_UCRED = struct.Struct("iII")


class Notifier:
    """Reports to the service manager at ``$NOTIFY_SOCKET``, if there is one; never fails and never waits."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self, status: str) -> None:
        """Report that everything is up."""
        self._send("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        """Report that the shutdown has begun."""
        self._send("STOPPING=1")

    def reloading(self) -> None:
        """Report that the configuration is being read again; :meth:`ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def alive(self) -> None:
        """Report that the event loop works (the service manager's watchdog)."""
        self._send("WATCHDOG=1")

    def failed(self, reason: str) -> None:
        """Report that the start has failed."""
        self._send(f"STATUS={reason}", "ERRNO=1")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        text = "\n".join(assignment.replace("\n", " ") for assignment in assignments)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # noqa: FBT003 - positional in the standard library
            sender.sendto(text.encode("utf-8", "backslashreplace"), self._address)


async def feed_watchdog(notifier: Notifier, environ: Mapping[str, str]) -> None:
    """Call :meth:`Notifier.alive` as often as the service manager wants (``$WATCHDOG_USEC``), if it does."""
    allowed, pid = environ.get("WATCHDOG_USEC", ""), str(os.getpid())
    if not (allowed.isascii() and allowed.isdigit()) or environ.get("WATCHDOG_PID", pid) != pid:
        return
    # Twice as often as allowed, as sd_watchdog_enabled(3) recommends.
    while interval_s := int(allowed) / 2_000_000:
        notifier.alive()
        await anyio.sleep(interval_s)


class DaemonEnded(StapsrvError):
    """A daemon ended before it was ready; ``status`` is negative for a signal."""

    def __init__(self, reason: str, *, status: int) -> None:
        super().__init__(reason)
        self.status = status


class Notifications:
    """Receives the reports of one daemon, whose ``$NOTIFY_SOCKET`` is ``address``."""

    def __init__(self, receiver: socket.socket, program: str) -> None:
        self._receiver = receiver
        self._program = program
        self.address = "@" + receiver.getsockname()[1:].decode("ascii")

    def wait_ready(self, daemon: subprocess.Popen[bytes], *, timeout_s: float) -> None:
        """Wait until a daemon is ready, and leave it to itself then; it is killed if it does not get there.

        Raises:
            DaemonEnded: it ended; the text is the reason that it gave.
            StapsrvError: it was not ready in time.
        """
        try:
            reason = self._wait(daemon, timeout_s)
        except BaseException:
            daemon.kill()
            daemon.wait()
            raise
        if reason is not None:
            status = daemon.wait()
            raise DaemonEnded(reason or f"{self._program} ended with status {status}", status=status)
        # Popen would warn about a child that is still running.
        daemon.returncode = 0

    def _wait(self, daemon: subprocess.Popen[bytes], timeout_s: float) -> str | None:
        """Return None when the daemon is ready, or the reason it gave (perhaps empty) when it ended."""
        deadline = time.monotonic() + timeout_s
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
                    text = f"{self._program} was not ready within {timeout_s:g} seconds and was ended"
                    raise StapsrvError(text)
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
def open_notifications(program: str) -> Iterator[Notifications]:
    """Hold a socket for one daemon to report to, whichever user it runs as; errors name it ``program``."""
    # An abstract name that the kernel picks needs no directory that both users can reach. Everybody may
    # send there, so the kernel adds the sender's process id to each message.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        receiver.bind("")
        yield Notifications(receiver, program)
