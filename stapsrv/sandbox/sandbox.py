"""How this host contains compiles: found out once, at start, by trying."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import attrs

from stapsrv.errors import ConfigError, TranslatorError
from stapsrv.process import Containment
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.cgroup import Delegation, RequestGroup
from stapsrv.sandbox.limits import ResourceLimits, count_processes
from stapsrv.sandbox.mount_plan import MountPlan
from stapsrv.sandbox.policy import SandboxPolicy, contained_environment, make_caches, request_view, tool_view

OFF = "off"
"""The setting that contains nothing."""
_SAID_BEFORE = re.compile(rb"(choom|nice|env|bwrap|setpriv|unshare|launcher|prlimit): .*")
"""The first line of a program that is there to contain another; stap's own errors begin otherwise."""


@attrs.frozen
class Sandbox:
    """What holds requests in.

    Attributes:
        mechanism: what is between a compile and the host; None: nothing, since the operator wants it so.
        containment: how a compile's process tree is held together.
        delegation: what requests get control groups of their own from; None: the host grants none.
    """

    mechanism: Backend | None
    containment: Containment = Containment.SESSION
    delegation: Delegation | None = None

    @property
    def name(self) -> str:
        """The mechanism's name, or ``off``."""
        return OFF if self.mechanism is None else self.mechanism.value

    @property
    def is_whole(self) -> bool:
        """Whether all that a compile starts is in namespaces of its own."""
        return self.mechanism is not None and self.mechanism.has_namespaces

    @property
    def cgroup(self) -> str | None:
        """What requests get control groups of their own from."""
        return None if self.delegation is None else self.delegation.description

    def view(self, needs: SandboxPolicy, directory: Path, *, start: Path) -> MountPlan:
        """Return what a request sees, and have what is kept from one request to the next be there.

        Args:
            needs: of its server.
            directory: its own.
            start: where its program starts.

        Raises:
            OSError: what it needs is not there and cannot be made.
        """
        if self.mechanism is None:
            return MountPlan(places=(), links=(), directory=start, network=True)
        make_caches(needs)
        return request_view(needs, directory, start=start)

    def tool_view(self, read: Iterable[Path], directory: Path) -> MountPlan:
        """Return what a program of the host sees that needs little else.

        Args:
            read: what it reads.
            directory: what it changes, and where it starts.
        """
        if self.mechanism is None:
            return MountPlan(places=(), links=(), directory=directory, network=True)
        return tool_view(read, directory)

    def command(
        self, view: MountPlan, resources: ResourceLimits, command: Sequence[str | bytes]
    ) -> list[str | bytes]:
        """Return the command that runs ``command`` contained, with that view and those bounds."""
        inner = [*resources.inner_command(others=0 if self.is_whole else count_processes()), *command]
        if self.mechanism is None:
            return [*resources.outer_command(), *self.containment.wrapper, *inner]
        return [*resources.outer_command(), *self.mechanism.command(view, inner)]

    def environment(
        self, environ: Mapping[bytes, bytes], *, temporary: Path, network: bool
    ) -> Mapping[bytes, bytes]:
        """Return what of ``environ`` a contained program gets; uncontained, all of it."""
        if self.mechanism is None:
            return environ
        return contained_environment(environ, temporary=temporary, network=network)

    @contextlib.asynccontextmanager
    async def request_group(self, name: str, resources: ResourceLimits) -> AsyncIterator[RequestGroup | None]:
        """Have a control group for as long as the context lasts; None where the host grants none.

        Args:
            name: no other request's at the same time.
            resources: its bounds.

        Raises:
            OSError: it cannot be made.

        Cancellation: what is left in it is ended, and its removal not left out.
        """
        if self.delegation is None:
            yield None
            return
        group = await anyio.to_thread.run_sync(self.delegation.make_group, name, resources)
        try:
            yield group
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(group.remove)

    def failure(self, status: int, stderr: bytes) -> str | None:
        """Say why a contained program was never started, as the programs before it said it.

        Args:
            status: what they all came to.
            stderr: what they said, or the program itself.
        """
        said = _SAID_BEFORE.match(stderr)
        return None if status == 0 or said is None else said[0].decode(errors="replace")

    def check(self, view: MountPlan) -> None:
        """See whether a view can be had.

        Raises:
            ConfigError: what is to be shown holds what is to be hidden, and the mechanism cannot do that.
        """
        if self.mechanism is None or self.mechanism.has_namespaces or not view.covered:
            return
        hidden = view.covered[0]
        shown = next(place.path for place in view.places if place.path in hidden.parents)
        raise ConfigError(
            f"holds {hidden}, which requests must not see, and {self.name} cannot hide a part of a directory",
            where=str(shown),
            remedy="move one of the two",
        )


def check_program(path: Path) -> None:
    """See that a program is there; the programs that contain it would report that in words of their own.

    Raises:
        TranslatorError: it is not.
    """
    try:
        os.close(os.open(path, os.O_PATH | os.O_CLOEXEC))
    except OSError as exc:
        raise TranslatorError(f"could not be started: {exc.strerror}", where=str(path)) from exc
