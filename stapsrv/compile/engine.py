"""The seam where a compile runs: a job goes in, a result comes out, both made of bytes.

The local engine runs stap on this host. An engine on other hosts can join here: sessions, queues,
signing and caches stay on this side of the seam.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Protocol

import anyio
import attrs

from stapsrv.compile.options import Privilege, requested_privilege
from stapsrv.compile.process import Containment, Ending, Outcome, run_tree
from stapsrv.compile.translator import (
    StapProgram,
    collect,
    lay_out,
    private_paths,
    redact,
    stap_command,
    stap_environment,
)
from stapsrv.compile.wire import ANSWER_DIRECTORY, AnswerFile, CompileRequest
from stapsrv.compile.workspace import Workspace
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import TranslatorError
from stapsrv.refusal import Refusal

_REMOVAL_S = 10.0
"""How long a request waits for its directory to be gone."""


@attrs.frozen(kw_only=True)
class CompileJob:
    """One request, the release that it is compiled for, and the options of the server that it came to."""

    request: CompileRequest
    release: ServedRelease
    settings: ServerSettings

    @property
    def privilege(self) -> Privilege | None:
        """What stap is held to; None where it is bound to refuse the arguments."""
        return requested_privilege(self.request.arguments)


@attrs.frozen
class CompileResult:
    """What stap made of a job.

    Attributes:
        status: stap's exit status; 128 + N when signal N ended it, as a shell says it.
        stdout: without this host's private paths.
        stderr: likewise.
        files: what the answer carries.
    """

    status: int
    stdout: bytes
    stderr: bytes
    files: tuple[AnswerFile, ...]


class Engine(Protocol):
    """Somewhere to compile."""

    async def run(self, job: CompileJob, *, deadline_s: float) -> CompileResult:
        """Compile ``job`` within ``deadline_s`` seconds.

        Raises:
            TranslatorError: it could not be started, overran the deadline or made too much.

        Cancellation: nothing of the compile is left running.
        """


class LocalEngine:
    """Runs stap on this host, each job in a directory of its own that is gone afterwards.

    Args:
        stap: the translator.
        containment: how a compile's process tree is held together.
        workspace: where the directories are made.
        environ: the environment that compiles inherit.
        home: the home directory of the server's user, which answers do not mention.
    """

    def __init__(
        self,
        stap: StapProgram,
        containment: Containment,
        workspace: Workspace,
        *,
        environ: Mapping[str, str],
        home: Path,
    ) -> None:
        self.stap = stap
        self.containment = containment
        self.workspace = workspace
        self._environ = {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}
        self._private = private_paths(environ, home)

    async def run(self, job: CompileJob, *, deadline_s: float) -> CompileResult:
        """Compile ``job``: directories, command line, stap, files (see :class:`Engine`)."""
        limits = job.settings.limits
        try:
            async with request_directory(self.workspace, keep=job.settings.keep_temporary) as directory:
                root, answer = directory / "request", directory / "response" / ANSWER_DIRECTORY
                work = self.workspace.files
                await work.run(functools.partial(_prepare, job.request, root, answer))
                outcome = await self._run_stap(job, root, answer, deadline_s)
                _check_ending(outcome, deadline_s=deadline_s, output_bytes=limits.output_bytes)
                files = await work.run(functools.partial(collect, answer, max_bytes=limits.answer_bytes))
                hidden = (*self._private, directory / "response", directory)
        except OSError as exc:
            raise TranslatorError(
                f"The server has trouble with its temporary directory: {exc.strerror}",
                where=str(self.workspace.path),
            ) from exc
        status = 128 - outcome.status if outcome.status < 0 else outcome.status
        return CompileResult(status, redact(outcome.stdout, hidden), redact(outcome.stderr, hidden), files)

    async def _run_stap(self, job: CompileJob, root: Path, answer: Path, deadline_s: float) -> Outcome:
        limits = job.settings.limits
        command = stap_command(
            self.stap,
            job.settings,
            job.release,
            job.request.arguments,
            privilege=job.privilege,
            answer=answer,
        )
        try:
            return await run_tree(
                command,
                cwd=root,
                env=stap_environment(self._environ, job.request.environment),
                deadline_s=deadline_s,
                grace_s=limits.kill_grace_s,
                output_bytes=limits.output_bytes,
                containment=self.containment,
            )
        except TranslatorError as exc:
            raise TranslatorError(f"The compile {exc.problem}", where=exc.where) from exc


@contextlib.asynccontextmanager
async def request_directory(workspace: Workspace, *, keep: bool) -> AsyncIterator[Path]:
    """Have a directory of ``workspace`` for as long as the context lasts, and longer with ``keep`` (``-k``).

    Raises:
        OSError: none can be made, or not in time.

    Cancellation: its removal is not left out; where it takes long, nobody waits for its end.
    """
    discard = functools.partial(workspace.discard, keep=keep)
    path = await workspace.files.run(workspace.make_request_directory, undo=discard)
    try:
        yield path
    finally:
        with anyio.CancelScope(shield=True), contextlib.suppress(TimeoutError):
            await workspace.files.run(functools.partial(discard, path), patience_s=_REMOVAL_S)


def _prepare(request: CompileRequest, root: Path, answer: Path) -> None:
    answer.mkdir(mode=0o700, parents=True)
    root.mkdir(mode=0o700)
    lay_out(request, root)


def _check_ending(outcome: Outcome, *, deadline_s: float, output_bytes: int) -> None:
    if outcome.ending is Ending.OVERDUE:
        raise TranslatorError(
            f"The compile was ended: it took longer than {deadline_s:g} seconds",
            refusal=Refusal.COMPILE_TIMEOUT,
        )
    if outcome.ending is Ending.FLOODED:
        raise TranslatorError(
            f"The compile was ended: it printed more than {output_bytes} bytes", refusal=Refusal.OUTPUT_SIZE
        )
