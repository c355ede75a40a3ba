"""The engine that runs stap on this host, contained: directories, command line, environment, files."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from stapsrv.compile.cache.depfile import read_dependencies
from stapsrv.compile.cache.stap_cache import Finding, StapCache, found_in
from stapsrv.compile.engine.base import Compiled, CompileJob, CompileResult
from stapsrv.compile.engine.hidden_paths import hidden_paths
from stapsrv.compile.engine.prepared.store import (
    FOLLOW,
    NOT_PREPARED,
    PLANS_DIRECTORY,
    PROGRAM,
    RECORD,
    PlanStore,
    SeenFiles,
    lacks_plan,
    read_report,
)
from stapsrv.compile.engine.stap import (
    StapProgram,
    read_answer,
    redact,
    stap_command,
    stap_environment,
    write_request,
)
from stapsrv.compile.engine.temp_quota import TempQuota
from stapsrv.compile.engine.workspace import Workspace
from stapsrv.compile.protocol.response import RESPONSE_DIRECTORY
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.config.tuning import NOTHING_SET
from stapsrv.errors import ConfigError, TranslatorError
from stapsrv.process import ExitReason, ProcessResult, check_program, run_process_tree
from stapsrv.rejection import RejectReason
from stapsrv.sandbox.limits import explain_limit
from stapsrv.sandbox.mount_plan import MountPlan
from stapsrv.sandbox.policy import SandboxPolicy
from stapsrv.sandbox.rc_limits import RcLimits, apply_rc
from stapsrv.sandbox.sandbox import Sandbox
from stapsrv.system import trees

# In a job's directory: what the client sent, what it gets, the compiler's own files, and stap's.
_REQUEST = Path("request")
_ANSWER = Path("response", RESPONSE_DIRECTORY)
_TEMPORARY = Path("tmp")
_SYSTEMTAP = Path("systemtap")
_CACHE = _SYSTEMTAP / "cache"
_PLAN = _SYSTEMTAP / "plan"


class LocalEngine:
    """Runs stap on this host, contained, each job in a directory of its own that is removed afterwards."""

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
        systemtap = environ.get("SYSTEMTAP_DIR")
        self._systemtap = Path(systemtap or home / ".systemtap").absolute()
        # No client needs to read about these.
        self._private = (home, Path(systemtap)) if systemtap else (home,)
        self._secret = (*secret, workspace.path)
        self._temp_quota = temp_quota or TempQuota(NOTHING_SET.effective("total_temp_bytes"))
        self._seen = SeenFiles()
        # Called with what the compile of a request had to find out for itself.
        self.on_findings: Callable[[CompileJob, frozenset[Finding]], None] = lambda _job, _found: None
        # Called with a request whose module was built by make, since there is no plan for such builds, and
        # with what its compile knew at its end.
        self.on_unplanned: Callable[[CompileJob, CompileResult, frozenset[Finding]], None] = (
            lambda _job, _result, _known: None
        )

    def policy(self, settings: ServerSettings, release: ServedRelease, *known: Path) -> SandboxPolicy:
        """Return what the jobs of a server may see of this host; beside it, what is ``known`` to stap."""
        read = [*settings.include, *settings.limits.sandbox_read]
        if settings.runtime is not None:
            read.append(settings.runtime)
        farm_key = settings.compilation.farm_key
        own = (settings.ssl, settings.log, None if farm_key is None else Path(farm_key))
        return SandboxPolicy(
            stap=self.stap.path,
            environ=self._variables,
            home=self._home,
            release=release,
            read=tuple(map(Path, read)),
            write=tuple(map(Path, settings.limits.sandbox_write)),
            secret=(*self._secret, *(path for path in own if path is not None)),
            known=known,
        )

    def check(self, settings: ServerSettings, release: ServedRelease) -> None:
        """Raise a ConfigError if jobs of a server cannot be contained; blocks on files."""
        policy = self.policy(settings, release)
        try:
            plan = self.sandbox.request_mounts(policy, self.workspace.path, cwd=self.workspace.path)
        except OSError as exc:
            problem = f"cannot be made: {exc.strerror}"
            remedy = "point DEBUGINFOD_CACHE_PATH to a directory that the server's user may write to"
            raise ConfigError(problem, where=str(exc.filename), remedy=remedy) from exc
        self.sandbox.check_plan(plan)

    async def run(self, job: CompileJob) -> CompileResult:
        """Compile ``job``, of a script of the server's own, and return the result; nothing else is left.

        But for what stap found out about the toolchain, where the job is to find that out (``own``).
        """
        compiled = await self.compile(job)
        return await compiled.finish(keep=lambda: job.own)

    async def compile(self, job: CompileJob) -> Compiled:
        """Compile ``job`` in a directory of its own (see :class:`Engine`)."""
        async with contextlib.AsyncExitStack() as leaving:
            directory = await leaving.enter_async_context(
                self.workspace.request_directory(keep=job.settings.keep_temporary, log=job.log)
            )
            with self.workspace.translate_errors():
                result = await self._compile(job, directory)
            read = functools.partial(read_dependencies, directory, _ANSWER, job.release.build_tree)
            keep = functools.partial(self._keep, job, directory)
            on_files = functools.partial(functools.partial, self.workspace.files.run)
            # From here on the directory is the caller's to remove.
            return Compiled(result, on_files(read), on_files(keep), leaving.pop_all().aclose)

    async def _compile(self, job: CompileJob, directory: Path) -> CompileResult:
        limits, files, answer = job.settings.limits, self.workspace.files, directory / _ANSWER
        plan, rc = await files.run(functools.partial(self._prepare, job, directory))
        run = functools.partial(self._run_stap, job, plan, rc, directory)
        ended, limit_met = await self._temp_quota.enforce(
            directory, run, most_bytes=limits.temp_bytes, files=files
        )
        _check_exit(ended, deadline_s=job.deadline_s, output_bytes=limits.output_bytes)

        known = self._cache_for(job)
        hidden = (*self._private, answer.parent, directory, directory / _SYSTEMTAP)
        status = 128 - ended.status if ended.status < 0 else ended.status

        def read() -> tuple[CompileResult, frozenset[Finding], frozenset[Finding], str | None]:
            # The compile could have put a link there.
            with trees.open_directory(directory, _ANSWER) as opened:
                answered = read_answer(opened, max_bytes=limits.answer_bytes)
            stdout, stderr = redact(ended.stdout, hidden), redact(ended.stderr, hidden)
            hidden_from_it = hidden_paths(job.request, job.options, plan) if status else ()
            result = CompileResult(status, stdout, stderr, answered, limit_met, hidden_from_it)
            build = read_report(directory / _SYSTEMTAP) if _planned(job) else NOT_PREPARED
            cache = directory / _CACHE
            return result, known.missed_by(cache), found_in(cache), build

        result, missed, found, job.record.build = await files.run(read)
        if missed and not job.own:
            self.on_findings(job, missed)
        if lacks_plan(job.record.build) and not job.own:
            self.on_unplanned(job, result, found)
        return result

    def _cache_for(self, job: CompileJob) -> StapCache:
        return StapCache.of(self._systemtap, job.toolchain)

    def _plans_for(self, job: CompileJob) -> PlanStore:
        return PlanStore(self._cache_for(job).path / PLANS_DIRECTORY, self._seen)

    def _keep(self, job: CompileJob, directory: Path) -> None:
        if not job.makes_plan:
            self._cache_for(job).keep(directory / _CACHE)
        elif _planned(job):
            # Nothing else: it has options of a client's request, which can change what stap finds out.
            self._plans_for(job).keep(directory / _PLAN)

    def rc_limits(self, settings: ServerSettings) -> RcLimits:
        """Return the limits of the requests of a server, as stap's ``rc`` file is now; blocks on files."""
        try:
            text = (self._systemtap / "rc").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            # One that we cannot read, stap cannot either.
            text = ""
        return apply_rc(text, settings.tuning)

    def _prepare(self, job: CompileJob, directory: Path) -> tuple[MountPlan, RcLimits]:
        with _compile_errors():
            check_program(self.stap.path)
        (directory / _ANSWER).mkdir(mode=0o700, parents=True)
        (directory / _TEMPORARY).mkdir(mode=0o700)
        root = directory / _REQUEST
        root.mkdir(mode=0o700)
        write_request(job.request, root)
        known = self._cache_for(job)
        policy = self.policy(job.settings, job.release, known.path, *PROGRAM)
        # stap has its cache in $SYSTEMTAP_DIR/cache, and nowhere else.
        (directory / _SYSTEMTAP).mkdir(mode=0o700)
        rc = self.rc_limits(job.settings)
        own_rc = directory / _SYSTEMTAP / "rc"
        if rc.text is None:
            own_rc.symlink_to(policy.systemtap_directory / "rc")
        else:
            own_rc.write_text(rc.text, encoding="utf-8", errors="surrogateescape")
        known.lend(directory / _CACHE)
        return self.sandbox.request_mounts(policy, directory, cwd=root), rc

    def _stand_in(self, job: CompileJob, directory: Path) -> Path | None:
        """Return the directory of what stands in for make; None where make does its work itself."""
        plans = self._plans_for(job)
        try:
            if job.makes_plan:
                (directory / _PLAN).mkdir(mode=0o700)
                return plans.stand_in(RECORD, directory / _PLAN)
            plans.check()
            return plans.stand_in(FOLLOW, plans.plans)
        except OSError as exc:
            job.log.warning("prepared.unusable", reason=exc.strerror)
            return None

    async def _run_stap(
        self, job: CompileJob, plan: MountPlan, rc: RcLimits, directory: Path
    ) -> tuple[ProcessResult, str | None]:
        limits = rc.limits
        command = stap_command(self.stap, job, directory / _ANSWER)
        environ = self.sandbox.environment(
            self._environ, temporary=directory / _TEMPORARY, network=plan.network
        )
        environ = stap_environment(environ, job.request.environment)
        if _planned(job):
            stand_in = await self.workspace.files.run(functools.partial(self._stand_in, job, directory))
            if stand_in is not None:
                # Not for the programs of the sandbox, which call the real env.
                searched = os.fsencode(stand_in) + b":" + environ.get(b"PATH", os.fsencode(os.defpath))
                command = [b"env", b"PATH=" + searched, *command]
        environ[b"SYSTEMTAP_DIR"] = os.fsencode(directory / _SYSTEMTAP)
        async with self.sandbox.request_cgroup(directory.name, limits) as group:
            with _compile_errors():
                result = await run_process_tree(
                    self.sandbox.command(plan, limits, command),
                    cwd=plan.directory,
                    env=environ,
                    deadline_s=job.deadline_s,
                    grace_s=limits.kill_grace_s,
                    output_bytes=limits.output_bytes,
                    group=group,
                    background=job.background,
                )
            exceeded = None if group is None else group.exceeded
        error = self.sandbox.setup_error(result.status, result.stderr)
        if error is not None:
            raise TranslatorError("The compile could not be started", where=error)
        met = explain_limit(limits, result.status, result.stderr, exceeded=exceeded, stated=rc.stated)
        return result, met


def _planned(job: CompileJob) -> bool:
    # Plans are of one state of the toolchain: of what nobody watches there are none.
    return job.settings.limits.prepared and bool(job.toolchain)


@contextlib.contextmanager
def _compile_errors() -> Iterator[None]:
    # Makes whole sentences for the client of the errors of stapsrv.process.
    try:
        yield
    except TranslatorError as exc:
        raise TranslatorError(f"The compile {exc.problem}", where=exc.where) from exc


def _check_exit(result: ProcessResult, *, deadline_s: float, output_bytes: int) -> None:
    if result.exit_reason is ExitReason.TIMED_OUT:
        problem = f"The compile was ended: it took longer than {deadline_s:g} seconds"
        raise TranslatorError(problem, reject_reason=RejectReason.COMPILE_TIMEOUT)
    if result.exit_reason is ExitReason.OUTPUT_LIMIT:
        problem = f"The compile was ended: it printed more than {output_bytes} bytes"
        raise TranslatorError(problem, reject_reason=RejectReason.OUTPUT_SIZE)
