"""How this host contains compiles: found out once, at start, by trying."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import attrs

from stapsrv.compile.process import Containment, Ending, find_containment, run_tree
from stapsrv.compile.translator import StapProgram
from stapsrv.errors import ConfigError, TranslatorError
from stapsrv.filework import FileWork
from stapsrv.sandbox.cgroup import Delegation, RequestGroup, find_delegation
from stapsrv.sandbox.mechanisms import Mechanism
from stapsrv.sandbox.resources import Resources, count_processes
from stapsrv.sandbox.surroundings import Needs, contained_environment, make_caches, request_view, tool_view
from stapsrv.sandbox.view import View

AUTO = "auto"
OFF = "off"
"""Settings that are no mechanism's name: the first that works, and none."""
_SAID_BEFORE = re.compile(rb"(choom|nice|env|bwrap|setpriv|unshare|launcher|prlimit|waiter): .*")
"""The first line of a program that is there to contain another; stap's own errors begin otherwise."""
_TRIAL_S = 20.0
_REMEDY = (
    "install bubblewrap and let users make user namespaces (sysctl user.max_user_namespaces, "
    "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), or run a kernel with "
    "Landlock; SANDBOX=off (--sandbox off) lets requests read whatever the server's user can, its keys too"
)


@attrs.frozen
class Sandbox:
    """What holds requests in.

    Attributes:
        mechanism: what is between a compile and the host; None: nothing, since the operator wants it so.
        containment: how a compile's process tree is held together.
        delegation: what requests get control groups of their own from; None: the host grants none.
    """

    mechanism: Mechanism | None
    containment: Containment = Containment.SESSION
    delegation: Delegation | None = None

    @property
    def name(self) -> str:
        """The mechanism's name, or ``off``."""
        return OFF if self.mechanism is None else self.mechanism.value

    @property
    def is_whole(self) -> bool:
        """Whether all that a compile starts is in namespaces of its own."""
        return self.mechanism is not None and self.mechanism.ends_whole

    @property
    def cgroup(self) -> str | None:
        """What requests get control groups of their own from."""
        return None if self.delegation is None else self.delegation.description

    def view(self, needs: Needs, directory: Path, *, start: Path) -> View:
        """Return what a request sees, and have what is kept from one request to the next be there.

        Args:
            needs: of its server.
            directory: its own.
            start: where its program starts.

        Raises:
            OSError: what it needs is not there and cannot be made.
        """
        if self.mechanism is None:
            return View(places=(), links=(), directory=start, network=True)
        make_caches(needs)
        return request_view(needs, directory, start=start)

    def tool_view(self, read: Iterable[Path], directory: Path) -> View:
        """Return what a program of the host sees that needs little else.

        Args:
            read: what it reads.
            directory: what it changes, and where it starts.
        """
        if self.mechanism is None:
            return View(places=(), links=(), directory=directory, network=True)
        return tool_view(read, directory)

    def command(self, view: View, resources: Resources, command: Sequence[str | bytes]) -> list[str | bytes]:
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
    async def request_group(self, name: str, resources: Resources) -> AsyncIterator[RequestGroup | None]:
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

    def check(self, view: View) -> None:
        """See whether a view can be had.

        Raises:
            ConfigError: what is to be shown holds what is to be hidden, and the mechanism cannot do that.
        """
        if self.mechanism is None or self.mechanism.covers or not view.covered:
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


async def find_sandbox(
    wanted: str, stap: StapProgram, environ: Mapping[str, str], *, home: Path, workspace: Path
) -> Sandbox:
    """Find the best way to contain compiles that works on this host, for this user, now.

    Args:
        wanted: the setting SANDBOX.
        stap: has to run in it.
        environ: the server's environment.
        home: its user's home directory.
        workspace: a directory for what the trials leave, which is removed.

    Raises:
        ConfigError: none works, or the wanted one does not.
    """
    delegation = await anyio.to_thread.run_sync(find_delegation)
    if wanted == OFF:
        return Sandbox(None, await find_containment(), delegation)
    needs = Needs(stap=stap.path, environ=environ, home=home, build_trees=(), releases=())
    reasons = []
    for mechanism in Mechanism:
        if wanted in (AUTO, mechanism.value):
            reason = await _try(mechanism, needs, workspace)
            if reason is None:
                held = Containment.NAMESPACE if mechanism.ends_whole else Containment.DEATH_SIGNAL
                return Sandbox(mechanism, held, delegation)
            reasons.append(f"{mechanism.value}: {reason}")
    raise ConfigError(
        f"requests cannot be contained on this host ({'; '.join(reasons)})",
        where=f"SANDBOX={wanted}",
        remedy=_REMEDY,
    )


async def _try(mechanism: Mechanism, needs: Needs, workspace: Path) -> str | None:
    """Let stap run, let a file be written, and one not be read; return why that went wrong, if it did."""
    place = Path(tempfile.mkdtemp(prefix="trial.", dir=workspace))
    try:
        directory, secret = place / "request", place / "secret"
        directory.mkdir()
        secret.write_text("secret\n")
        try:
            view = await FileWork(patience_s=_TRIAL_S).run(partial(request_view, needs, directory))
        except TimeoutError as exc:
            return f"what requests see cannot be looked at: {exc.strerror}"
        reason = await _run(mechanism, view, [str(needs.stap), "--version"], expected=0)
        if reason is not None:
            return reason
        copy = ["cp", "-t", str(directory), "/proc/self/status", str(secret)]
        reason = await _run(mechanism, view, copy, expected=1)
        if (directory / secret.name).exists():
            return "it does not hide what it should"
        return reason if (directory / "status").exists() else reason or "it allows no file to be written"
    finally:
        await anyio.to_thread.run_sync(shutil.rmtree, place, True)  # noqa: FBT003 - ignore_errors


async def _run(mechanism: Mechanism, view: View, command: Sequence[str], *, expected: int) -> str | None:
    """Run a command contained; return what kept it from ending as expected."""
    env = {
        b"PATH": os.fsencode(os.environ.get("PATH", os.defpath)),
        # Even to say its version stap makes its directory; one that cannot be made is no hindrance to it.
        b"SYSTEMTAP_DIR": os.fsencode(os.devnull),
        b"LC_ALL": b"C",
    }
    try:
        whole = Sandbox(mechanism).command(view, Resources(nice=1), command)
        outcome = await run_tree(whole, deadline_s=_TRIAL_S, env=env)
    except TranslatorError as exc:
        return str(exc)
    if outcome.ending is not Ending.EXITED:
        return f"it did not end within {_TRIAL_S:g} seconds"
    if outcome.status == expected:
        return None
    said = outcome.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"status {outcome.status}"
