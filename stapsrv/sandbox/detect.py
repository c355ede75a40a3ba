"""Finds the way to contain compiles on this host: once, at the start, by trying each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from stapsrv.config.table import Limits
from stapsrv.errors import ConfigError, TranslatorError
from stapsrv.process import Containment, ExitReason, find_containment, run_process_tree
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.cgroup import find_delegation
from stapsrv.sandbox.limits import NO_LIMITS
from stapsrv.sandbox.mount_plan import MountPlan
from stapsrv.sandbox.policy import SandboxPolicy, request_mounts
from stapsrv.sandbox.sandbox import OFF, Sandbox
from stapsrv.system import trees
from stapsrv.system.blocking import BlockingCalls
from stapsrv.text import error_line

AUTO = "auto"  # the value of SANDBOX that takes the first backend that works
_TRIAL_S = 20.0
NAMESPACES_REMEDY = (
    "let users make user namespaces (sysctl user.max_user_namespaces, "
    "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
)
_REMEDY = (
    f"install bubblewrap and {NAMESPACES_REMEDY}, or run a kernel with "
    "Landlock; SANDBOX=off (--sandbox off) lets requests read whatever the server's user can, its keys too"
)


async def find_sandbox(
    wanted: str, stap: Path, environ: Mapping[str, str], *, home: Path, workspace: Path
) -> Sandbox:
    """Return the best sandbox that ``wanted``, the setting SANDBOX, allows and stap runs in here and now.

    ``environ`` and ``home`` are of the server and its user. The trials' files are in ``workspace`` meanwhile.

    Raises:
        ConfigError: none works, or the wanted one does not.
    """
    delegation = await anyio.to_thread.run_sync(find_delegation)
    if wanted == OFF:
        return Sandbox(None, await find_containment(), delegation)
    policy = SandboxPolicy(stap=stap, environ=environ, home=home)
    reasons: list[str] = []
    failures: list[str] = []
    for backend in Backend:
        if wanted in (AUTO, backend.value):
            reason = await _try(backend, policy, workspace)
            if reason is None:
                containment = Containment.NAMESPACE if backend.has_namespaces else Containment.DEATH_SIGNAL
                return Sandbox(backend, containment, delegation, tuple(failures))
            reasons.append(f"{backend.value}: {reason}")
            if backend.is_installed:
                failures.append(reasons[-1])
    problem = f"requests cannot be contained on this host ({'; '.join(reasons)})"
    raise ConfigError(problem, where=f"SANDBOX={wanted}", remedy=_REMEDY)


async def _try(backend: Backend, policy: SandboxPolicy, workspace: Path) -> str | None:
    # Runs stap contained, writes a file and reads a hidden one.
    trial = Path(tempfile.mkdtemp(prefix="trial.", dir=workspace))
    try:
        directory, secret = trial / "request", trial / "secret"
        directory.mkdir()
        secret.write_text("secret\n")
        try:
            # The paths that are looked up may be on a file system that hangs.
            lookup = partial(request_mounts, policy, directory)
            plan = await BlockingCalls(timeout_s=_TRIAL_S).run(lookup)
        except TimeoutError as exc:
            return f"the paths that requests see cannot be looked up: {exc.strerror}"
        reason = await _run(backend, plan, [str(policy.stap), "--version"], expected=0)
        if reason is not None:
            return reason
        copy = ["cp", "-t", str(directory), "/proc/self/status", str(secret)]
        reason = await _run(backend, plan, copy, expected=1)
        if (directory / secret.name).exists():
            return "it does not hide what it should"
        return reason if (directory / "status").exists() else reason or "it allows no file to be written"
    finally:
        await anyio.to_thread.run_sync(trees.remove, trial)


async def _run(backend: Backend, plan: MountPlan, command: Sequence[str], *, expected: int) -> str | None:
    env = {
        b"PATH": os.fsencode(os.environ.get("PATH", os.defpath)),
        # Even for its version stap makes its directory; one that cannot be made does not stop it.
        b"SYSTEMTAP_DIR": os.fsencode(os.devnull),
        b"LC_ALL": b"C",
    }
    try:
        contained = Sandbox(backend).command(plan, Limits({**NO_LIMITS.values, "nice": 1}), command)
        result = await run_process_tree(contained, deadline_s=_TRIAL_S, env=env)
    except TranslatorError as exc:
        return str(exc)
    if result.exit_reason is not ExitReason.EXITED:
        return f"it did not end within {_TRIAL_S:g} seconds"
    if result.status == expected:
        return None
    return error_line(result.stderr, default=f"status {result.status}")
