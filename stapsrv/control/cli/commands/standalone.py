"""``stap-start-server`` and ``stap-stop-server``: one server in the background, by its process id.

Its readiness comes over a notification socket, its end over a pidfd.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stapsrv.control.cli.commands.common import guarded
from stapsrv.control.client.launch import DAEMON
from stapsrv.errors import StapsrvError, UsageError
from stapsrv.system.environ import started_environ
from stapsrv.system.sd_notify import DaemonEnded, open_notifications

# A first start makes a certificate, which takes seconds on a slow host.
_START_S = 60.0
# As long as the original's command waits.
_STOP_S = 10.0

_START_USAGE = """\
usage: stap-start-server [options of stap-serverd]

Start a stap-serverd in the background, print its process id once it accepts connections.

example:
  stap-start-server -r 6.1.0-56-amd64 --port 5001 --log /tmp/stap-server.log
"""
_STOP_USAGE = """\
usage: stap-stop-server PID

End the stap-serverd with this process id, and return when it has ended.

example:
  stap-stop-server 4711
"""


@guarded("stap-start-server", usage=_START_USAGE)
def start_server(argv: Sequence[str]) -> int:
    """Start a ``stap-serverd`` with this program's arguments; print its process id once it accepts."""
    # Python does not unwind on these by itself, and a server that is not ready yet is to be ended.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    with open_notifications(DAEMON) as notifications:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "stapsrv.daemon", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=started_environ(os.environ) | {"NOTIFY_SOCKET": notifications.address},
        )
        try:
            notifications.wait_ready(server, timeout_s=_START_S)
        except DaemonEnded as exc:
            # The options are the server's, so is what was wrong with them.
            if exc.status == UsageError.exit_status:
                raise UsageError(exc.problem) from exc
            raise
    sys.stdout.write(f"{server.pid}\n")
    return 0


@guarded("stap-stop-server", usage=_STOP_USAGE)
def stop_server(argv: Sequence[str]) -> int:
    """End the ``stap-serverd`` with the given process id; exits 1 if it is none, or does not end."""
    if len(argv) != 1:
        raise UsageError("one process id is needed", remedy="usage: stap-stop-server PID")
    pid = int(argv[0]) if argv[0].isascii() and argv[0].isdigit() else 0
    with contextlib.ExitStack() as cleanup:
        try:
            pidfd = os.pidfd_open(pid)
            cleanup.callback(os.close, pidfd)
            # Asked after the descriptor is open, so that the name is that of the process it stands for.
            is_server = _process_name(pid) == DAEMON and not _has_ended(pidfd)
        except (OSError, OverflowError):
            is_server = False
        # A number that was reused for another program must not get the signal.
        if not is_server:
            raise StapsrvError(f"{argv[0]} is not a systemtap server")
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        except ProcessLookupError:
            return 0
        except PermissionError as exc:
            raise StapsrvError(
                f"server {pid} belongs to another user", remedy="stop it as that user, or as root"
            ) from exc
        if not _has_ended(pidfd, within_s=_STOP_S):
            raise StapsrvError(
                f"{pid} not shutting down: it is still there after {_STOP_S:g} seconds",
                remedy="stop it again to end its requests at once",
            )
    return 0


def _has_ended(pidfd: int, *, within_s: float = 0.0) -> bool:
    """Whether a process ends within a time, reaped or not."""
    return bool(select.select([pidfd], [], [], within_s)[0])


def _process_name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").rstrip("\n")
