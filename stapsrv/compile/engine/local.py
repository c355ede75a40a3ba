"""The engine that runs stap on this host: directories, command line, environment, files."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import anyio
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.depfile import has_build, read_dependencies
from stapsrv.compile.engine.base import Compiled, CompileJob, CompileResult
from stapsrv.compile.engine.stap import (
    StapProgram,
    private_paths,
    read_answer,
    redact,
    stap_command,
    stap_environment,
    write_request,
)
from stapsrv.compile.engine.temp_quota import TempQuota
from stapsrv.compile.engine.workspace import Workspace
from stapsrv.compile.protocol.response import ANSWER_DIRECTORY, AnswerFile
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.config.tunables import NOTHING_SET
from stapsrv.errors import ConfigError, TranslatorError
from stapsrv.process import ExitReason, ProcessResult, check_program, run_process_tree
from stapsrv.rejection import RejectReason
from stapsrv.sandbox.limits import ResourceLimits
from stapsrv.sandbox.mount_plan import MountPlan
from stapsrv.sandbox.policy import SandboxPolicy
from stapsrv.sandbox.sandbox import Sandbox

_ROOT = Path("request")
_ANSWER = Path("response", ANSWER_DIRECTORY)
_TEMPORARY = Path("tmp")
"""Of a job's directory: what the client sent, what it gets, and the compiler's own files."""

_REMOVAL_S = 10.0
"""How long a request waits for its directory to be gone."""


class LocalEngine:
    """Runs stap on this host, contained, each job in a directory of its own that is gone afterwards.

    Args:
        stap: the translator.
        sandbox: how compiles are contained.
        workspace: where the directories are made.
        environ: the environment that compiles inherit.
        home: the home directory of the server's user, which answers do not mention.
        secret: what no compile may see, wherever it lies.
        space: bounds the temporary space of all compiles; None for the usual bound.
    """

    def __init__(
        self,
        stap: StapProgram,
        sandbox: Sandbox,
        workspace: Workspace,
        *,
        environ: Mapping[str, str],
        home: Path,
        secret: tuple[Path, ...] = (),
        temp_quota: TempQuota | None = None,
    ) -> None:
        self.stap = stap
        self.sandbox = sandbox
        self.workspace = workspace
        self._variables = dict(environ)
        self._environ = {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}
        self._home = home
        self._private = private_paths(environ, home)
        self._secret = (*secret, workspace.path)
        self.temp_quota = temp_quota or TempQuota(NOTHING_SET.effective("total_temp_bytes"))

    def policy(self, settings: ServerSettings, release: ServedRelease) -> SandboxPolicy:
        """Return what a job of a server needs to see of this host."""
        own = (*settings.include, *((settings.runtime,) if settings.runtime is not None else ()))
        secret = (settings.ssl, settings.log)
        return SandboxPolicy(
            stap=self.stap.path,
            environ=self._variables,
            home=self._home,
            build_trees=(release.build_tree,),
            releases=(release.name,),
            read=tuple(map(Path, (*own, *settings.limits.sandbox_read))),
            write=tuple(map(Path, settings.limits.sandbox_write)),
            secret=(*self._secret, *(path for path in secret if path is not None)),
        )

    def check(self, settings: ServerSettings, release: ServedRelease) -> None:
        """See whether jobs of a server can be contained; looks at directories.

        Raises:
            ConfigError: they cannot be.
        """
        policy = self.policy(settings, release)
        try:
            plan = self.sandbox.request_mounts(policy, self.workspace.path, cwd=self.workspace.path)
        except OSError as exc:
            raise ConfigError(
                f"cannot be made: {exc.strerror}",
                where=str(policy.stap_cache),
                remedy="point SYSTEMTAP_DIR to a directory that the server's user may write to",
            ) from exc
        self.sandbox.check_plan(plan)

    async def run(self, job: CompileJob) -> CompileResult:
        """Compile ``job``, remove what the compile left behind, and return the result."""
        compiled = await self.compile(job)
        await compiled.release()
        return compiled.result

    async def compile(self, job: CompileJob) -> Compiled:
        """Compile ``job``: directories, command line, stap, files (see :class:`Engine`)."""
        async with contextlib.AsyncExitStack() as leaving:
            directory = await leaving.enter_async_context(
                request_directory(self.workspace, keep=job.settings.keep_temporary, log=job.log)
            )
            answer = directory / _ANSWER
            with _trouble_told(self.workspace):
                result, built = await self._compile(job, directory)
            read = functools.partial(read_dependencies, answer, job.release.build_tree)
            # From here on the directory is the caller's to remove.
            return Compiled(
                result, built, functools.partial(self.workspace.files.run, read), leaving.pop_all().aclose
            )

    async def _compile(self, job: CompileJob, directory: Path) -> tuple[CompileResult, bool]:
        """Compile a job in its directory; return what stap made of it, and whether it built the module."""
        limits, work, answer = job.settings.limits, self.workspace.files, directory / _ANSWER
        plan = await work.run(functools.partial(self._prepare, job, directory))
        result, limit_met = await self.temp_quota.enforce(
            directory,
            functools.partial(self._run_stap, job, plan, answer),
            most_bytes=limits.temp_bytes,
            files=work,
        )
        _check_ending(result, deadline_s=job.deadline_s, output_bytes=limits.output_bytes)
        collected = functools.partial(_collect, answer, max_bytes=limits.answer_bytes)
        files, built = await work.run(collected)
        hidden = (*self._private, directory / "response", directory)
        status = 128 - result.status if result.status < 0 else result.status
        stdout, stderr = redact(result.stdout, hidden), redact(result.stderr, hidden)
        return CompileResult(status, stdout, stderr, files, limit_met), built

    def _prepare(self, job: CompileJob, directory: Path) -> MountPlan:
        """Make a job's directories and files; return what it sees.

        Raises:
            TranslatorError: stap is gone.
            OSError: there is no room, or what the job needs is not there.
        """
        try:
            check_program(self.stap.path)
        except TranslatorError as exc:
            raise TranslatorError(f"The compile {exc.problem}", where=exc.where) from exc
        _make_directories(directory)
        root = directory / _ROOT
        write_request(job.request, root)
        return self.sandbox.request_mounts(self.policy(job.settings, job.release), directory, cwd=root)

    async def _run_stap(
        self, job: CompileJob, plan: MountPlan, answer: Path
    ) -> tuple[ProcessResult, str | None]:
        """Run stap; return what came of it, and the bound that it met, if that can be seen."""
        limits = job.settings.limits
        resources = ResourceLimits.of(limits)
        command: list[str | bytes] = list(
            stap_command(
                self.stap,
                job.settings,
                job.release,
                job.request.arguments,
                privilege=job.privilege,
                answer=answer,
                anew=job.anew,
            )
        )
        environ = self.sandbox.environment(
            self._environ, temporary=answer.parents[1] / _TEMPORARY, network=plan.network
        )
        environ = stap_environment(environ, job.request.environment)
        command = self.sandbox.command(plan, resources, command)
        async with self.sandbox.request_cgroup(answer.parents[1].name, resources) as group:
            try:
                result = await run_process_tree(
                    command,
                    cwd=plan.directory,
                    env=environ,
                    deadline_s=job.deadline_s,
                    grace_s=limits.kill_grace_s,
                    output_bytes=limits.output_bytes,
                    group=group,
                    background=job.background,
                )
            except TranslatorError as exc:
                raise TranslatorError(f"The compile {exc.problem}", where=exc.where) from exc
            exceeded = None if group is None else group.exceeded
        failure = self.sandbox.setup_error(result.status, result.stderr)
        if failure is not None:
            raise TranslatorError("The compile could not be started", where=failure)
        return result, resources.explain(result.status, result.stderr, exceeded=exceeded)


@contextlib.asynccontextmanager
async def request_directory(
    workspace: Workspace,
    *,
    keep: bool,
    log: Log | None = None,
) -> AsyncIterator[Path]:
    """Have a directory of ``workspace`` for as long as the context lasts, and longer with ``keep`` (``-k``).

    Args:
        workspace: where it is made.
        keep: let it stay.
        log: told where it stays.

    Raises:
        TranslatorError: none can be made, or not in time; or it cannot be kept.

    Cancellation: its removal is not left out; where it takes long, nobody waits for its end.
    """
    discard = functools.partial(workspace.discard, keep=keep)
    with _trouble_told(workspace):
        path = await workspace.files.run(workspace.make_request_directory, cleanup=discard)
    try:
        yield path
    finally:
        with anyio.CancelScope(shield=True), _trouble_told(workspace), contextlib.suppress(TimeoutError):
            place = await workspace.files.run(functools.partial(discard, path), timeout_s=_REMOVAL_S)
            if place is not None and log is not None:
                log.info("request.kept", directory=place)


def _make_directories(directory: Path) -> None:
    """Make the directories of a job in its own, which is empty."""
    (directory / _ANSWER).mkdir(mode=0o700, parents=True)
    (directory / _TEMPORARY).mkdir(mode=0o700)
    (directory / _ROOT).mkdir(mode=0o700)


@contextlib.contextmanager
def _trouble_told(workspace: Workspace) -> Iterator[None]:
    """Say of what goes wrong with files that it is the temporary directory's trouble."""
    try:
        yield
    except OSError as exc:
        raise TranslatorError(
            f"The server has trouble with its temporary directory: {exc.strerror}", where=str(workspace.path)
        ) from exc


def _collect(answer: Path, *, max_bytes: int) -> tuple[tuple[AnswerFile, ...], bool]:
    """Read what a client is sent; return it, and whether stap built the module.

    Raises:
        TranslatorError: it is larger than ``max_bytes``.
        OSError: it cannot be read.
    """
    return read_answer(answer, max_bytes=max_bytes), has_build(answer)


def _check_ending(result: ProcessResult, *, deadline_s: float, output_bytes: int) -> None:
    if result.exit_reason is ExitReason.TIMED_OUT:
        raise TranslatorError(
            f"The compile was ended: it took longer than {deadline_s:g} seconds",
            refusal=RejectReason.COMPILE_TIMEOUT,
        )
    if result.exit_reason is ExitReason.OUTPUT_LIMIT:
        raise TranslatorError(
            f"The compile was ended: it printed more than {output_bytes} bytes",
            refusal=RejectReason.OUTPUT_SIZE,
        )
