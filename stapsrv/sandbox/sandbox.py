"""The sandbox of this server: the command, environment, mounts and control group of contained programs."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import attrs

from stapsrv.config.table import Limits
from stapsrv.errors import ConfigError
from stapsrv.process import Containment
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.cgroup import Delegation, RequestGroup
from stapsrv.sandbox.limits import count_processes, limit_command, priority_command
from stapsrv.sandbox.mount_plan import MountPlan
from stapsrv.sandbox.policy import SandboxPolicy, make_caches, request_mounts, tool_mounts

OFF = "off"  # the value of SANDBOX that contains nothing
# The first line of a wrapper's own error; stap's errors begin otherwise.
_WRAPPER_ERROR = re.compile(rb"(choom|nice|env|bwrap|setpriv|unshare|launcher|prlimit): .{0,1000}")
# What stap and the programs that it starts may need of the server's environment.
_KEPT_VARIABLES = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_[A-Z]+|TZ|LD_LIBRARY_PATH|SYSTEMTAP_\w+|DEBUGINFOD_\w+"
    r"|XDG_CACHE_HOME|XDG_DATA_DIRS|CCACHE_\w+|SOURCE_DATE_EPOCH|KBUILD_\w+"
)
_PROXY_VARIABLES = re.compile(r"(https?|all|no)_proxy", re.IGNORECASE)


@attrs.frozen
class Sandbox:
    """How compiles are contained on this host; ``backend`` is None where the operator wants none."""

    backend: Backend | None
    containment: Containment = Containment.SESSION
    # The control group to divide among requests, where the host delegates one.
    delegation: Delegation | None = None
    # The better backends that are installed and do not work, a line each.
    failures: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The backend's name, or ``off``."""
        return OFF if self.backend is None else self.backend.value

    @property
    def has_namespaces(self) -> bool:
        """Whether all that a compile starts is in namespaces of its own."""
        return self.backend is not None and self.backend.has_namespaces

    @property
    def cgroup(self) -> str | None:
        """The description of the delegated control group, if there is one."""
        return None if self.delegation is None else self.delegation.description

    def request_mounts(self, policy: SandboxPolicy, directory: Path, *, cwd: Path) -> MountPlan:
        """Plan the mounts of the request in ``directory``, and make the shared caches.

        Raises:
            OSError: a cache is missing and cannot be made.
        """
        if self.backend is None:
            return _uncontained(cwd)
        make_caches(policy)
        return request_mounts(policy, directory, cwd=cwd)

    def tool_mounts(self, read: Iterable[Path], directory: Path) -> MountPlan:
        """Plan the mounts of a program that reads ``read`` and the system, and works in ``directory``."""
        if self.backend is None:
            return _uncontained(directory)
        return tool_mounts(read, directory)

    def command(self, plan: MountPlan, limits: Limits, command: Sequence[str | bytes]) -> list[str | bytes]:
        """Return the command that runs ``command`` contained, with those mounts and limits."""
        inner = [*limit_command(limits, others=0 if self.has_namespaces else count_processes()), *command]
        if self.backend is None:
            return [*priority_command(limits), *self.containment.wrapper, *inner]
        return [*priority_command(limits), *self.backend.command(plan, inner)]

    def environment(
        self, environ: Mapping[bytes, bytes], *, temporary: Path, network: bool
    ) -> Mapping[bytes, bytes]:
        """Return the part of ``environ`` that a contained program gets; uncontained, it gets all of it.

        ``TMPDIR`` is ``temporary`` either way: compilers and make leave files there when they are killed.
        """
        kept = {
            name: value
            for name, value in environ.items()
            if self.backend is None
            or _KEPT_VARIABLES.fullmatch(text := os.fsdecode(name))
            or (network and _PROXY_VARIABLES.fullmatch(text))
        }
        return kept | {b"TMPDIR": os.fsencode(temporary)}

    @contextlib.asynccontextmanager
    async def request_cgroup(self, name: str, limits: Limits) -> AsyncIterator[RequestGroup | None]:
        """Hold a control group for the block; None without delegation. No other request has ``name`` now.

        Raises:
            OSError: it cannot be made.

        Cancellation: every process left in the group is killed, and the group removed.
        """
        if self.delegation is None:
            yield None
            return
        group = await anyio.to_thread.run_sync(self.delegation.make_group, name, limits)
        try:
            yield group
        finally:
            # A request that is cancelled still ends all of its processes.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(group.remove)

    def setup_error(self, status: int, stderr: bytes) -> str | None:
        """Return why a contained program was never started, in the words of the wrapper that failed."""
        error = _WRAPPER_ERROR.match(stderr)
        return None if status == 0 or error is None else error[0].decode(errors="replace")

    def check_plan(self, plan: MountPlan) -> None:
        """Raise a ConfigError if a plan shows a directory without a part that the backend cannot hide."""
        if self.backend is None or self.has_namespaces or not plan.hidden:
            return
        hidden = plan.hidden[0]
        shown = next(path for path in plan.mounts if path in hidden.parents)
        reason = f"{self.name} cannot hide a part of a directory"
        problem = f"holds {hidden}, which requests must not see, and {reason}"
        raise ConfigError(problem, where=str(shown), remedy="move one of the two")


def _uncontained(cwd: Path) -> MountPlan:
    return MountPlan(mounts={}, links=(), directory=cwd, network=True)
