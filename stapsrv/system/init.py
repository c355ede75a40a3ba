"""Process 1 of a container: reaps every orphan, forwards signals to the daemon, and exits as it does."""

from __future__ import annotations

import contextlib
import os
import signal

_INIT = 1
_FORWARDED = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
_HANDLED = _FORWARDED | {signal.SIGCHLD}


def fork_as_init() -> None:
    """Return at once, in process 1 in a child; process 1 stays, and exits with the child's status.

    To be called before anything else runs in this process. A child that a signal ended makes the status 128
    and its number; what else is left in the container ends with process 1.
    """
    # The daemon runs as a child, so that it waits for its own children alone: orphans, which the kernel gives
    # to process 1, are never mistaken for one of them.
    if os.getpid() != _INIT:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    daemon = os.fork()
    if daemon == 0:
        _take_terminal()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        return
    # Not sys.exit(): clean-up and buffers are the child's.
    os._exit(_supervise(daemon))


def _supervise(daemon: int) -> int:
    """Forward signals and reap until the daemon has ended; return the status to exit with."""
    while True:
        number = signal.sigwait(_HANDLED)
        if number in _FORWARDED:
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon, number)
            continue
        status = _reap(daemon)
        if status is not None:
            return status if status >= 0 else 128 - status


def _reap(daemon: int) -> int | None:
    """Wait for all that have ended; return the daemon's status, if it is among them."""
    ended = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == daemon:
                ended = os.waitstatus_to_exitcode(status)
    return ended


def _take_terminal() -> None:
    # Ctrl-C goes to the foreground group: it comes once, and not through process 1 as well.
    os.setpgid(0, 0)
    ignored = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, ignored)
