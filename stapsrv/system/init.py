"""Process 1 of a container: waits for every orphan, hands signals on to the daemon, and ends as it does.

The daemon itself runs as a child. So it waits for its own children alone, as its libraries expect, and a
process that lost its parent, which the kernel gives to process 1, is never mistaken for one of them.
"""

from __future__ import annotations

import contextlib
import os
import signal

_INIT = 1
_HANDED_ON = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
_HEARD = _HANDED_ON | {signal.SIGCHLD}


def fork_as_init() -> None:
    """Return at once in any process but process 1; there, return in a child, and stay to look after it.

    To be called before anything else runs in this process. Process 1 leaves with the child's exit status,
    or 128 and the number of the signal that ended it; what is left in the container then ends with it.
    """
    if os.getpid() != _INIT:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    daemon = os.fork()
    if daemon == 0:
        _take_terminal()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        return
    # Neither clean-up nor buffers of the child's are ours.
    os._exit(_look_after(daemon))


def _look_after(daemon: int) -> int:
    """Hand signals on and reap until the daemon has ended; return what to exit with."""
    while True:
        number = signal.sigwait(_HEARD)
        if number in _HANDED_ON:
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon, number)
            continue
        status = _reap(daemon)
        if status is not None:
            return status if status >= 0 else 128 - status


def _reap(daemon: int) -> int | None:
    """Wait for all that have ended; return how the daemon did, if it is among them."""
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
    """Be the group that Ctrl-C is for, so that it comes once, and not through process 1, too."""
    os.setpgid(0, 0)
    ignored = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, ignored)
