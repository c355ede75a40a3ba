"""Runs a program as one process tree: start it, read its output, end all of it in time.

A compile is a tree: stap starts make, make starts the compiler, and any of them may hang or print without
end. The first process of the tree gets a session of its own, so that a signal reaches all that did not leave
it on purpose; where the host allows user namespaces it also gets a process-id namespace, which dies as a
whole with its first process, even when this process is killed with -9.

The spawn and the waiting are our own and not anyio's: a child's death signal is tied to the *thread* that
forked it, and Trio forks in a worker thread that ends after ten idle seconds, taking the child along. Here
the fork happens in the event loop's thread, and a pidfd reports the end on both backends.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs

from stapsrv.errors import RequestRejected, TranslatorError
from stapsrv.system.readiness import wait_readable

if TYPE_CHECKING:
    from stapsrv.sandbox.cgroup import RequestGroup

_READ_BYTES = 65536
# A tenth of what a request gets: with the lowest niceness it would never end on a busy host.
_BACKGROUND_NICENESS = 10
_AUTOGROUP_INTERVAL_S = 0.1
_AUTOGROUP_ATTEMPTS = 20
# How long a killed process may take to be gone; only one that is stuck in the kernel takes longer.
_REAP_S = 5.0


class Containment(enum.Enum):
    """The means that hold a process tree together, the strongest first."""

    # Nothing escapes: the tree ends with its first process, and that with this process.
    NAMESPACE = "process-id namespace"
    # The first process ends with this process; what left its session on purpose does not.
    DEATH_SIGNAL = "session with a death signal"
    SESSION = "session"  # ended by this process only

    @property
    def wrapper(self) -> tuple[str, ...]:
        """The util-linux command in front of the program."""
        return _WRAPPERS[self]


_WRAPPERS: Mapping[Containment, tuple[str, ...]] = {
    Containment.NAMESPACE: (
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("unshare", "--user", "--map-current-user", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
    ),
    Containment.DEATH_SIGNAL: ("setpriv", "--pdeathsig", "KILL", "--"),
    Containment.SESSION: (),
}


class ExitReason(enum.Enum):
    """Why a process tree ended."""

    EXITED = enum.auto()
    TIMED_OUT = enum.auto()
    OUTPUT_LIMIT = enum.auto()


@attrs.frozen
class ProcessResult:
    """The end of a process tree; ``status`` is its first process's, ``-N`` when signal N ended that."""

    exit_reason: ExitReason
    status: int
    stdout: bytes
    stderr: bytes


def check_program(path: Path) -> None:
    """Raise a TranslatorError if a program is missing: one in front of it would say that in its own words."""
    try:
        os.close(os.open(path, os.O_PATH | os.O_CLOEXEC))
    except OSError as exc:
        raise TranslatorError(f"could not be started: {exc.strerror}", where=str(path)) from exc


async def find_containment() -> Containment:
    """Return the strongest containment that works on this host, for this user, now."""
    for containment in (Containment.NAMESPACE, Containment.DEATH_SIGNAL):
        with contextlib.suppress(TranslatorError):
            result = await run_process_tree(["true"], deadline_s=10.0, containment=containment)
            if result.exit_reason is ExitReason.EXITED and result.status == 0:
                return containment
    return Containment.SESSION


async def run_process_tree(
    command: Sequence[str | bytes],
    *,
    deadline_s: float,
    containment: Containment = Containment.SESSION,
    cwd: Path | None = None,
    env: Mapping[bytes, bytes] | None = None,
    grace_s: float = 2.0,
    output_bytes: int = 1 << 20,
    group: RequestGroup | None = None,
    background: bool = False,
) -> ProcessResult:
    """Run ``command`` with standard input from /dev/null until its process tree is gone.

    No shell is involved. After ``deadline_s`` the tree is ended as TIMED_OUT, and by more than
    ``output_bytes`` on either output as OUTPUT_LIMIT; ``grace_s`` lies between TERM and KILL. The tree is
    moved into ``group``, whose owner ends what this cannot; ``background`` is a low priority.

    Raises:
        TranslatorError: the program could not be started, or not be moved into its group.
        RequestRejected: the arguments are too long for the system.

    Cancellation: the tree is ended, TERM first and KILL after the grace, before this returns.
    """
    tree = ProcessTree.spawn([*containment.wrapper, *command], cwd=cwd, env=env)
    exit_reason = ExitReason.EXITED
    try:
        if group is not None:
            await tree.move_to_cgroup(group)
        if background:
            await tree.lower_priority()
        async with anyio.create_task_group() as readers:
            for pipe in (tree.stdout, tree.stderr):
                readers.start_soon(pipe.read_all, output_bytes, readers.cancel_scope)
            with anyio.move_on_after(deadline_s) as timer:
                await tree.wait()
            if timer.cancelled_caught:
                exit_reason = ExitReason.TIMED_OUT
                readers.cancel_scope.cancel()
            else:
                # A process that was left behind in the session may hold the pipes open for ever.
                tree.signal(signal.SIGKILL)
                readers.cancel_scope.deadline = anyio.current_time() + grace_s
        if tree.stdout.over_limit or tree.stderr.over_limit:
            exit_reason = ExitReason.OUTPUT_LIMIT
    finally:
        with anyio.CancelScope(shield=True):
            await tree.end(grace_s)
    return ProcessResult(exit_reason, tree.status, bytes(tree.stdout.data), bytes(tree.stderr.data))


@attrs.frozen
class ProcessTree:
    """A child with all that it starts; to be ended by :meth:`end`."""

    _child: subprocess.Popen[bytes]
    _pidfd: int
    stdout: OutputPipe
    stderr: OutputPipe

    @classmethod
    def spawn(
        cls, command: Sequence[str | bytes], *, cwd: Path | None, env: Mapping[bytes, bytes] | None
    ) -> ProcessTree:
        """Start a command in a session of its own; to be called in the event loop's thread.

        No shell is involved. None for ``cwd`` or ``env`` means this process's.

        Raises:
            TranslatorError: it could not be started.
            RequestRejected: the arguments are too long for the system.
        """
        with contextlib.ExitStack() as on_failure:
            try:
                with contextlib.ExitStack() as child_ends:
                    stdout, stderr = (OutputPipe(on_failure, child_ends) for _ in range(2))
                    child = subprocess.Popen(
                        command,
                        cwd=cwd,
                        env=env,
                        stdin=subprocess.DEVNULL,
                        stdout=stdout.child_fd,
                        stderr=stderr.child_fd,
                        start_new_session=True,
                        bufsize=0,
                    )
                on_failure.callback(_kill, child)
                pidfd = os.pidfd_open(child.pid)
            except OSError as exc:
                if exc.errno == errno.E2BIG:
                    raise RequestRejected("The arguments are longer than a program can take") from exc
                program = os.fsdecode(command[0])
                raise TranslatorError(f"could not be started: {exc.strerror}", where=program) from exc
            on_failure.pop_all()
        return cls(child, pidfd, stdout, stderr)

    @property
    def status(self) -> int:
        """The exit status of the first process, once it has ended; KILL's where even that did not end it."""
        return -signal.SIGKILL if self._child.returncode is None else self._child.returncode

    async def wait(self) -> None:
        """Wait until the first process has ended, and reap it."""
        while self._child.poll() is None:
            await wait_readable(self._pidfd)

    async def move_to_cgroup(self, group: RequestGroup) -> None:
        """Move all processes of the tree into a control group; raises TranslatorError if they cannot go."""
        try:
            # The kernel may take a while to move a process.
            await anyio.to_thread.run_sync(group.add_tree, self._child.pid)
        except ProcessLookupError:
            return
        except OSError as exc:
            raise TranslatorError(
                f"could not be started in a control group: {exc.strerror}", where=str(group.directory)
            ) from exc

    async def lower_priority(self) -> None:
        """Give the tree a low priority, if the kernel allows it."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PGRP, self._child.pid, _BACKGROUND_NICENESS)
        # Where the kernel groups processes by session, niceness counts within the session's group alone, and
        # the group has one of its own (sched(7), the autogroup feature). Users without privileges may set
        # that ten times a second, all together: then the kernel says to try again.
        group = Path(f"/proc/{self._child.pid}/autogroup")
        for _ in range(_AUTOGROUP_ATTEMPTS):
            try:
                group.write_text(f"{_BACKGROUND_NICENESS}", encoding="ascii")  # noqa: ASYNC240 - no disk
            except BlockingIOError:
                await anyio.sleep(_AUTOGROUP_INTERVAL_S)
            except OSError:
                return
            else:
                return

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes that are left of the session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, number)

    async def end(self, grace_s: float) -> None:
        """End the tree by TERM, after ``grace_s`` by KILL, and close its descriptors; to be called once."""
        if self._child.returncode is None and grace_s > 0.0:
            self.signal(signal.SIGTERM)
            with anyio.move_on_after(grace_s):
                await self.wait()
        self.signal(signal.SIGKILL)
        with anyio.move_on_after(_REAP_S):
            await self.wait()
        for fd in (self._pidfd, self.stdout.fd, self.stderr.fd):
            os.close(fd)


class OutputPipe:
    """One of the child's outputs: ``data`` grows while :meth:`read_all` runs."""

    # Not subprocess.PIPE: Popen of Python 3.11 leaks the first pipe when the second cannot be made.
    def __init__(self, on_failure: contextlib.ExitStack, child_ends: contextlib.ExitStack) -> None:
        """Make a pipe whose two ends are closed by these two."""
        self.fd, self.child_fd = os.pipe2(os.O_CLOEXEC)
        on_failure.callback(os.close, self.fd)
        child_ends.callback(os.close, self.child_fd)
        os.set_blocking(self.fd, False)
        self.data = bytearray()
        self.over_limit = False

    async def read_all(self, limit: int, scope: anyio.CancelScope) -> None:
        """Read until end of file; more than ``limit`` bytes cancel ``scope``."""
        while True:
            # Before each: a child that prints without end must not keep everybody else from their turn.
            await wait_readable(self.fd)
            try:
                chunk = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                continue
            if not chunk:
                return
            self.data += chunk
            if len(self.data) > limit:
                del self.data[limit:]
                self.over_limit = True
                scope.cancel()
                return


def _kill(child: subprocess.Popen[bytes]) -> None:
    # It has only just started, so its tree is hardly more than itself.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=_REAP_S)
