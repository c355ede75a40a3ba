"""A spawned child: its session, its outputs, the descriptor that tells of its end.

The spawn and the waiting are our own and not anyio's: a child's death signal is tied to the *thread*
that forked it, and Trio forks in a worker thread that ends after ten idle seconds, taking the child
along. Here the fork happens in the event loop's thread, and a pidfd tells of the end on both backends.

One child process tree: spawn, drain, time out, and end the whole of it.

A compile is a tree: stap starts make, make starts the compiler, and any of them may hang or flood.
The tree's leader gets a session of its own, so that a signal reaches all that did not leave it on
purpose; where the host allows user namespaces it also gets a process-id namespace, which dies as a
whole with its leader, even when this process is killed with -9.
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
from typing import Protocol

import anyio
import anyio.to_thread
import attrs

from stapsrv.errors import RequestRejected, TranslatorError

_READ_BYTES = 65536
_LOWEST_PRIORITY = 19
_REAP_S = 5.0
"""How long a killed process may take to be gone; only one stuck in the kernel takes longer."""


class ControlGroup(Protocol):
    """A control group that a tree can be moved into."""

    @property
    def directory(self) -> Path:
        """Where it is."""

    def adopt(self, pid: int) -> None:
        """Move a process and its children into it.

        Raises:
            OSError: they cannot be moved.
        """


class Pipe:
    """The reading end of one of the child's outputs."""

    def __init__(self) -> None:
        self.fd, self.child_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)
        self.data = bytearray()
        self.flooded = False

    @classmethod
    def open(cls, undo: contextlib.ExitStack, child_ends: contextlib.ExitStack) -> Pipe:
        """Make a pipe whose two ends are closed by these two."""
        pipe = cls()
        undo.callback(pipe.close)
        child_ends.callback(os.close, pipe.child_fd)
        return pipe

    async def drain(self, limit: int, scope: anyio.CancelScope) -> None:
        """Collect until end of file; more than ``limit`` bytes cancel ``scope``."""
        while True:
            try:
                chunk = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self.fd)
                continue
            if not chunk:
                return
            self.data += chunk
            if len(self.data) > limit:
                del self.data[limit:]
                self.flooded = True
                scope.cancel()
                return

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


class Tree:
    """A spawned child, with all that it starts: to be ended by :meth:`end`.

    Attributes:
        stdout: what it says.
        stderr: likewise.
    """

    def __init__(self, child: subprocess.Popen[bytes], pidfd: int, stdout: Pipe, stderr: Pipe) -> None:
        self._child = child
        self._pidfd = pidfd
        self.stdout = stdout
        self.stderr = stderr
        self._is_over = False

    @classmethod
    def spawn(
        cls,
        command: Sequence[str | bytes],
        *,
        cwd: Path | None,
        env: Mapping[bytes, bytes] | None,
    ) -> Tree:
        """Start a command in a session of its own; called in the event loop's thread.

        Args:
            command: the program and its arguments; no shell is involved.
            cwd: the working directory, or None for this process's.
            env: the whole environment, or None for this process's.

        Raises:
            TranslatorError: it could not be started.
            RequestRejected: the arguments are too long for the system.
        """
        with contextlib.ExitStack() as undo:
            try:
                with contextlib.ExitStack() as child_ends:
                    stdout, stderr = (Pipe.open(undo, child_ends) for _ in range(2))
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
                undo.callback(_kill, child)
                pidfd = os.pidfd_open(child.pid)
            except OSError as exc:
                if exc.errno == errno.E2BIG:
                    raise RequestRejected("The arguments are longer than a program can take") from exc
                raise TranslatorError(f"could not be started: {exc.strerror}", where=_name(command)) from exc
            undo.pop_all()
        return cls(child, pidfd, stdout, stderr)

    @property
    def pid(self) -> int:
        """The leader's process id; another's, perhaps, once it was waited for."""
        return self._child.pid

    @property
    def status(self) -> int:
        """The leader's exit status, once it has ended; KILL's where even that could not end it in time."""
        return -signal.SIGKILL if self._child.returncode is None else self._child.returncode

    async def wait(self) -> None:
        """Wait until the leader has ended, and reap it."""
        while self._child.poll() is None:
            await anyio.wait_readable(self._pidfd)

    async def join(self, group: ControlGroup) -> None:
        """Put all that there is of the tree into a control group.

        Raises:
            TranslatorError: it does not go.
        """
        try:
            # The kernel may take a while to move a process.
            await anyio.to_thread.run_sync(group.adopt, self._child.pid)
        except ProcessLookupError:
            return
        except OSError as exc:
            raise TranslatorError(
                f"could not be started in a control group: {exc.strerror}", where=str(group.directory)
            ) from exc

    def lower_priority(self) -> None:
        """Give the tree the lowest priority, if it may have it."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PGRP, self._child.pid, _LOWEST_PRIORITY)
        # Where the kernel groups processes by session, niceness counts within the session's group alone, and
        # the group has one of its own (sched(7), the autogroup feature).
        with contextlib.suppress(OSError):
            Path(f"/proc/{self._child.pid}/autogroup").write_text(f"{_LOWEST_PRIORITY}", encoding="ascii")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of the session that are left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, number)

    async def end(self, grace_s: float) -> None:
        """End what is left of the tree, politely first, and give its descriptors back; more than once, too.

        Args:
            grace_s: between TERM and KILL; 0 for KILL alone.
        """
        if self._is_over:
            return
        self._is_over = True
        if self._child.returncode is None and grace_s > 0.0:
            self.signal(signal.SIGTERM)
            with anyio.move_on_after(grace_s):
                await self.wait()
        self.signal(signal.SIGKILL)
        with anyio.move_on_after(_REAP_S):
            await self.wait()
        os.close(self._pidfd)
        self.stdout.close()
        self.stderr.close()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a child that nobody can wait for: it is of this moment, so its tree is hardly more than itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=_REAP_S)


def _name(command: Sequence[str | bytes]) -> str:
    return os.fsdecode(command[0])


_DEATH_SIGNAL = ("setpriv", "--pdeathsig", "KILL", "--")
_NAMESPACE = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    *("unshare", "--user", "--map-current-user", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
)


class Containment(enum.Enum):
    """How a child's tree is held together, the strongest first."""

    NAMESPACE = "process-id namespace"
    """Nothing escapes: the tree ends with its leader, and the leader with this process."""
    DEATH_SIGNAL = "session with a death signal"
    """The leader ends with this process; what left its session on purpose does not."""
    SESSION = "session"
    """Ended by this process only."""

    @property
    def wrapper(self) -> tuple[str, ...]:
        """The util-linux command in front of the child's own."""
        return _WRAPPERS[self]


_WRAPPERS: Mapping[Containment, tuple[str, ...]] = {
    Containment.NAMESPACE: _NAMESPACE,
    Containment.DEATH_SIGNAL: _DEATH_SIGNAL,
    Containment.SESSION: (),
}


class ExitReason(enum.Enum):
    """Why a child tree ended."""

    EXITED = enum.auto()
    TIMED_OUT = enum.auto()
    OUTPUT_LIMIT = enum.auto()


@attrs.frozen
class ProcessResult:
    """What came of a child tree.

    Attributes:
        ending: whether it ended by itself, or what it was ended for.
        status: the leader's exit status; ``-N`` when signal N ended it.
        stdout: at most the bytes that were allowed.
        stderr: likewise.
    """

    ending: ExitReason
    status: int
    stdout: bytes
    stderr: bytes


async def find_containment() -> Containment:
    """Return the strongest containment that works on this host, for this user, now."""
    for containment in (Containment.NAMESPACE, Containment.DEATH_SIGNAL):
        with contextlib.suppress(TranslatorError):
            outcome = await run_tree(["true"], deadline_s=10.0, containment=containment)
            if outcome.ending is ExitReason.EXITED and outcome.status == 0:
                return containment
    return Containment.SESSION


async def run_tree(
    command: Sequence[str | bytes],
    *,
    deadline_s: float,
    containment: Containment = Containment.SESSION,
    cwd: Path | None = None,
    env: Mapping[bytes, bytes] | None = None,
    grace_s: float = 2.0,
    output_bytes: int = 1 << 20,
    group: ControlGroup | None = None,
    background: bool = False,
) -> ProcessResult:
    """Run ``command`` with standard input from /dev/null until its tree is gone.

    Args:
        command: the program and its arguments; no shell is involved.
        deadline_s: seconds after which the tree is ended as TIMED_OUT.
        containment: how the tree is held together.
        cwd: the working directory, or None for this process's.
        env: the whole environment, or None for this process's.
        grace_s: seconds between TERM and KILL to the tree.
        output_bytes: of standard output and of standard error each; more ends the tree as OUTPUT_LIMIT.
        group: the control group that it is to be in; its owner ends what this cannot.
        background: leave the processors to others.

    Raises:
        TranslatorError: the program could not be started, or not be put into its group.
        RequestRejected: the arguments are too long for the system.

    Cancellation: the tree is ended, TERM first and KILL after the grace, before this returns.
    """
    tree = Tree.spawn([*containment.wrapper, *command], cwd=cwd, env=env)
    ending = ExitReason.EXITED
    try:
        if group is not None:
            await tree.join(group)
        if background:
            tree.lower_priority()
        async with anyio.create_task_group() as drains:
            for pipe in (tree.stdout, tree.stderr):
                drains.start_soon(pipe.drain, output_bytes, drains.cancel_scope)
            with anyio.move_on_after(deadline_s) as timer:
                await tree.wait()
            if timer.cancelled_caught:
                ending = ExitReason.TIMED_OUT
                drains.cancel_scope.cancel()
            else:
                # Whoever was left behind in the session may hold the pipes open for ever.
                tree.signal(signal.SIGKILL)
                drains.cancel_scope.deadline = anyio.current_time() + grace_s
        if tree.stdout.flooded or tree.stderr.flooded:
            ending = ExitReason.OUTPUT_LIMIT
    finally:
        with anyio.CancelScope(shield=True):
            await tree.end(grace_s)
    return ProcessResult(ending, tree.status, bytes(tree.stdout.data), bytes(tree.stderr.data))
