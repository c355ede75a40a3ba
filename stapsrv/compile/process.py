"""One child process tree: spawn, drain, time out, and end the whole of it.

A compile is a tree: stap starts make, make starts the compiler, and any of them may hang or flood.
The tree's leader gets a session of its own, so that a signal reaches all that did not leave it on
purpose; where the host allows user namespaces it also gets a process-id namespace, which dies as a
whole with its leader, even when this process is killed with -9.
"""

from __future__ import annotations

import contextlib
import enum
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import attrs

from stapsrv.compile.tree import Tree
from stapsrv.errors import TranslatorError
from stapsrv.sandbox.cgroup import RequestGroup
from stapsrv.sandbox.waiting import told

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


class Ending(enum.Enum):
    """Why a child tree ended."""

    EXITED = enum.auto()
    OVERDUE = enum.auto()
    FLOODED = enum.auto()


@attrs.frozen
class Outcome:
    """What came of a child tree.

    Attributes:
        ending: whether it ended by itself, or what it was ended for.
        status: the leader's exit status; ``-N`` when signal N ended it.
        stdout: at most the bytes that were allowed.
        stderr: likewise.
    """

    ending: Ending
    status: int
    stdout: bytes
    stderr: bytes


async def find_containment() -> Containment:
    """Return the strongest containment that works on this host, for this user, now."""
    for containment in (Containment.NAMESPACE, Containment.DEATH_SIGNAL):
        with contextlib.suppress(TranslatorError):
            outcome = await run_tree(["true"], deadline_s=10.0, containment=containment)
            if outcome.ending is Ending.EXITED and outcome.status == 0:
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
    group: RequestGroup | None = None,
    background: bool = False,
    standby: Tree | None = None,
) -> Outcome:
    """Run ``command`` with standard input from /dev/null until its tree is gone.

    Args:
        command: the program and its arguments; no shell is involved.
        deadline_s: seconds after which the tree is ended as OVERDUE.
        containment: how the tree is held together.
        cwd: the working directory, or None for this process's.
        env: the whole environment, or None for this process's.
        grace_s: seconds between TERM and KILL to the tree.
        output_bytes: of standard output and of standard error each; more ends the tree as FLOODED.
        group: the control group that it is to be in; its owner ends what this cannot.
        background: leave the processors to others.
        standby: a tree that waits for a command (:mod:`stapsrv.sandbox.waiter`) and has room for this one: it
            is told ``command`` and ``env``, where no other is started, and ends here.

    Raises:
        TranslatorError: the program could not be started, or not be put into its group.
        RequestRejected: the arguments are too long for the system.

    Cancellation: the tree is ended, TERM first and KILL after the grace, before this returns.
    """
    tree = standby or Tree.spawn([*containment.wrapper, *command], cwd=cwd, env=env)
    ending = Ending.EXITED
    try:
        if group is not None:
            await tree.join(group)
        if background:
            tree.step_back()
        if standby is not None:
            standby.tell(told(command, env or {}))
        async with anyio.create_task_group() as drains:
            for pipe in (tree.stdout, tree.stderr):
                drains.start_soon(pipe.drain, output_bytes, drains.cancel_scope)
            with anyio.move_on_after(deadline_s) as timer:
                await tree.wait()
            if timer.cancelled_caught:
                ending = Ending.OVERDUE
                drains.cancel_scope.cancel()
            else:
                # Whoever was left behind in the session may hold the pipes open for ever.
                tree.signal(signal.SIGKILL)
                drains.cancel_scope.deadline = anyio.current_time() + grace_s
        if tree.stdout.flooded or tree.stderr.flooded:
            ending = Ending.FLOODED
    finally:
        with anyio.CancelScope(shield=True):
            await tree.end(grace_s)
    return Outcome(ending, tree.status, bytes(tree.stdout.data), bytes(tree.stderr.data))
