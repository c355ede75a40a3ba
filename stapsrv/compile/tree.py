"""A spawned child: its session, its outputs, the descriptor that tells of its end.

The spawn and the waiting are our own and not anyio's: a child's death signal is tied to the *thread*
that forked it, and Trio forks in a worker thread that ends after ten idle seconds, taking the child
along. Here the fork happens in the event loop's thread, and a pidfd tells of the end on both backends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from stapsrv.errors import RequestRejected, TranslatorError
from stapsrv.sandbox.cgroup import RequestGroup

_READ_BYTES = 65536
_LOWEST_PRIORITY = 19
_REAP_S = 5.0
"""How long a killed process may take to be gone; only one stuck in the kernel takes longer."""


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
        is_told_more: bool = False,
    ) -> Tree:
        """Start a command in a session of its own; called in the event loop's thread.

        Args:
            command: the program and its arguments; no shell is involved.
            cwd: the working directory, or None for this process's.
            env: the whole environment, or None for this process's.
            is_told_more: its standard input is what :meth:`tell` says; else it is /dev/null.

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
                        stdin=subprocess.PIPE if is_told_more else subprocess.DEVNULL,
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

    @property
    def has_ended(self) -> bool:
        """Whether the leader has ended, now; it is not reaped, lest another gets its number."""
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        return bool(ended.poll(0))

    def has_said(self, word: bytes) -> bool:
        """Whether ``word`` is what comes next on its standard output, now; then it is taken from there."""
        try:
            return os.read(self.stdout.fd, len(word)) == word
        except BlockingIOError:
            return False

    def has_room_for(self, text: bytes) -> bool:
        """Whether ``text`` can be told, without waiting for anybody to take it."""
        hears = self._child.stdin
        return hears is not None and len(text) <= fcntl.fcntl(hears, fcntl.F_GETPIPE_SZ)

    def tell(self, text: bytes) -> None:
        """Say ``text``, for which there is room, on its standard input, and close that.

        Who has ended meanwhile hears nothing; its status tells of that.
        """
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.write(text)
            self._child.stdin.close()

    async def wait(self) -> None:
        """Wait until the leader has ended, and reap it."""
        while self._child.poll() is None:
            await anyio.wait_readable(self._pidfd)

    async def join(self, group: RequestGroup) -> None:
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

    def step_back(self) -> None:
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
        if self._child.stdin is not None:
            self._child.stdin.close()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a child that nobody can wait for: it is of this moment, so its tree is hardly more than itself."""
    if child.stdin is not None:
        child.stdin.close()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=_REAP_S)


def _name(command: Sequence[str | bytes]) -> str:
    return os.fsdecode(command[0])
