"""How this host contains compiles: found out once, at start, by trying."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from stapsrv.errors import ConfigError, TranslatorError
from stapsrv.process import Containment, ExitReason, find_containment, run_tree
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.cgroup import find_delegation
from stapsrv.sandbox.limits import ResourceLimits
from stapsrv.sandbox.mount_plan import MountPlan
from stapsrv.sandbox.policy import SandboxPolicy, request_view
from stapsrv.sandbox.sandbox import OFF, Sandbox
from stapsrv.system.blocking import BlockingCalls
from stapsrv.text import error_line

AUTO = "auto"
"""The setting that takes the first that works."""
_TRIAL_S = 20.0
_REMEDY = (
    "install bubblewrap and let users make user namespaces (sysctl user.max_user_namespaces, "
    "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), or run a kernel with "
    "Landlock; SANDBOX=off (--sandbox off) lets requests read whatever the server's user can, its keys too"
)


async def find_sandbox(
    wanted: str, stap: Path, environ: Mapping[str, str], *, home: Path, workspace: Path
) -> Sandbox:
    """Find the best way to contain compiles that works on this host, for this user, now.

    Args:
        wanted: the setting SANDBOX.
        stap: the program that has to run in it.
        environ: the server's environment.
        home: its user's home directory.
        workspace: a directory for what the trials leave, which is removed.

    Raises:
        ConfigError: none works, or the wanted one does not.
    """
    delegation = await anyio.to_thread.run_sync(find_delegation)
    if wanted == OFF:
        return Sandbox(None, await find_containment(), delegation)
    needs = SandboxPolicy(stap=stap, environ=environ, home=home, build_trees=(), releases=())
    reasons = []
    for mechanism in Backend:
        if wanted in (AUTO, mechanism.value):
            reason = await _try(mechanism, needs, workspace)
            if reason is None:
                held = Containment.NAMESPACE if mechanism.has_namespaces else Containment.DEATH_SIGNAL
                return Sandbox(mechanism, held, delegation)
            reasons.append(f"{mechanism.value}: {reason}")
    raise ConfigError(
        f"requests cannot be contained on this host ({'; '.join(reasons)})",
        where=f"SANDBOX={wanted}",
        remedy=_REMEDY,
    )


async def _try(mechanism: Backend, needs: SandboxPolicy, workspace: Path) -> str | None:
    """Let stap run, let a file be written, and one not be read; return why that went wrong, if it did."""
    place = Path(tempfile.mkdtemp(prefix="trial.", dir=workspace))
    try:
        directory, secret = place / "request", place / "secret"
        directory.mkdir()
        secret.write_text("secret\n")
        try:
            view = await BlockingCalls(timeout_s=_TRIAL_S).run(partial(request_view, needs, directory))
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


async def _run(mechanism: Backend, view: MountPlan, command: Sequence[str], *, expected: int) -> str | None:
    """Run a command contained; return what kept it from ending as expected."""
    env = {
        b"PATH": os.fsencode(os.environ.get("PATH", os.defpath)),
        # Even to say its version stap makes its directory; one that cannot be made is no hindrance to it.
        b"SYSTEMTAP_DIR": os.fsencode(os.devnull),
        b"LC_ALL": b"C",
    }
    try:
        whole = Sandbox(mechanism).command(view, ResourceLimits(nice=1), command)
        outcome = await run_tree(whole, deadline_s=_TRIAL_S, env=env)
    except TranslatorError as exc:
        return str(exc)
    if outcome.ending is not ExitReason.EXITED:
        return f"it did not end within {_TRIAL_S:g} seconds"
    if outcome.status == expected:
        return None
    return error_line(outcome.stderr, default=f"status {outcome.status}")
