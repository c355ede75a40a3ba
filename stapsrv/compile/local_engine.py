"""The engine that runs stap on this host: directories, command line, environment, files."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping
from pathlib import Path

import anyio

from stapsrv.compile.containing import Sandbox, check_program
from stapsrv.compile.engine import Compiled, CompileJob, CompileResult
from stapsrv.compile.kbuild import has_build, read_build
from stapsrv.compile.process import Ending, Outcome, run_tree
from stapsrv.compile.space import TemporarySpace
from stapsrv.compile.standby import Kind, Standby, Standbys, footing
from stapsrv.compile.translator import (
    StapProgram,
    collect,
    lay_out,
    private_paths,
    redact,
    stap_command,
    stap_environment,
)
from stapsrv.compile.tree import Tree
from stapsrv.compile.wire import ANSWER_DIRECTORY, AnswerFile
from stapsrv.compile.workspace import Workspace
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.config.tunables import NOTHING_SET
from stapsrv.errors import ConfigError, TranslatorError
from stapsrv.refusal import Refusal
from stapsrv.sandbox.resources import Resources
from stapsrv.sandbox.surroundings import Needs
from stapsrv.sandbox.view import View
from stapsrv.sandbox.waiting import can_wait, told, waiting_command

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
        most_standbys: how many processes may stand by for compiles.

    Attributes:
        standbys: they stand by while its ``run`` does.
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
        space: TemporarySpace | None = None,
        most_standbys: int = 0,
    ) -> None:
        self.stap = stap
        self.sandbox = sandbox
        self.workspace = workspace
        self._variables = dict(environ)
        self._environ = {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}
        self._home = home
        self._private = private_paths(environ, home)
        self._secret = (*secret, workspace.path)
        self.space = space or TemporarySpace(NOTHING_SET.effective("total_temp_bytes"))
        self._waiter = waiting_command()
        self.standbys = Standbys(
            most_standbys if sandbox.is_whole else 0,
            prepare=self._stand_by,
            discard=self._discard,
            processors=len(os.sched_getaffinity(0)),
        )

    def needs(self, settings: ServerSettings, release: ServedRelease) -> Needs:
        """Return what a job of a server needs to see of this host."""
        own = (*settings.include, *((settings.runtime,) if settings.runtime is not None else ()))
        secret = (settings.ssl, settings.log)
        return Needs(
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
        needs = self.needs(settings, release)
        try:
            view = self.sandbox.view(needs, self.workspace.path, start=self.workspace.path)
        except OSError as exc:
            raise ConfigError(
                f"cannot be made: {exc.strerror}",
                where=str(needs.stap_cache),
                remedy="point SYSTEMTAP_DIR to a directory that the server's user may write to",
            ) from exc
        self.sandbox.check(view)

    async def run(self, job: CompileJob, *, deadline_s: float) -> CompileResult:
        """Compile ``job``; return what stap made of it when all else is gone (see :class:`Engine`)."""
        async with self.compiled(job, deadline_s=deadline_s) as compiled:
            return compiled.result

    @contextlib.asynccontextmanager
    async def compiled(
        self, job: CompileJob, *, deadline_s: float, kept: Callable[[Path], None] | None = None
    ) -> AsyncIterator[Compiled]:
        """Compile ``job``: directories, command line, stap, files (see :class:`Engine`)."""
        keep, kind = job.settings.keep_temporary, Kind(job.release, job.settings)
        async with (
            self.standbys.at_work(kind, takes=not job.background) as standby,
            request_directory(
                self.workspace, keep=keep, kept=kept, ready=standby.directory if standby else None
            ) as directory,
        ):
            answer = directory / _ANSWER
            with _trouble_told(self.workspace):
                result, built = await self._compile(job, directory, standby, deadline_s=deadline_s)
            read = functools.partial(read_build, answer, job.release.build_tree)
            yield Compiled(result, built, functools.partial(self.workspace.files.run, read))

    def retire(self, settings: ServerSettings) -> None:
        """Have nothing stand by for a server that has stopped (see :class:`Engine`)."""
        self.standbys.retire(settings)

    async def _compile(
        self, job: CompileJob, directory: Path, standby: Standby | None, *, deadline_s: float
    ) -> tuple[CompileResult, bool]:
        """Compile a job in its directory; return what stap made of it, and whether it built the module."""
        limits, work, answer = job.settings.limits, self.workspace.files, directory / _ANSWER
        view, suits = await work.run(functools.partial(self._prepare, job, directory, standby))
        tree = standby.tree if standby is not None and suits else None
        outcome, limit_met = await self.space.bounded(
            directory,
            functools.partial(self._run_stap, job, view, answer, tree, deadline_s=deadline_s),
            most_bytes=limits.temp_bytes,
            files=work,
        )
        _check_ending(outcome, deadline_s=deadline_s, output_bytes=limits.output_bytes)
        collected = functools.partial(_collect, answer, max_bytes=limits.answer_bytes)
        files, built = await work.run(collected)
        hidden = (*self._private, directory / "response", directory)
        status = 128 - outcome.status if outcome.status < 0 else outcome.status
        stdout, stderr = redact(outcome.stdout, hidden), redact(outcome.stderr, hidden)
        return CompileResult(status, stdout, stderr, files, limit_met), built

    def _prepare(self, job: CompileJob, directory: Path, standby: Standby | None) -> tuple[View, bool]:
        """Make a job's directories and files; return what it sees, and whether ``standby`` sees just that.

        Raises:
            TranslatorError: stap is gone.
            OSError: there is no room, or what the job needs is not there.
        """
        try:
            check_program(self.stap.path)
        except TranslatorError as exc:
            raise TranslatorError(f"The compile {exc.problem}", where=exc.where) from exc
        if standby is None or standby.directory != directory:
            _make_directories(directory)
            standby = None
        root = directory / _ROOT
        lay_out(job.request, root)
        view = self.sandbox.view(self.needs(job.settings, job.release), directory, start=root)
        if standby is None:
            return view, False
        same_start = standby.command == self._waiting(view, job.settings)
        return view, same_start and standby.footing == footing(view)

    async def _stand_by(self, kind: Kind) -> Standby | None:
        """Start a process that waits for a job; None where that cannot be."""
        work = self.workspace.files
        discard = functools.partial(self.workspace.discard, keep=False)
        directory = await work.run(self.workspace.make_request_directory, undo=discard)
        tree: Tree | None = None
        try:
            prepared = await work.run(functools.partial(self._prepare_to_wait, kind, directory))
            if prepared is None:
                return None
            command, view, stood_on = prepared
            environ = self.sandbox.environment(
                self._environ, temporary=directory / _TEMPORARY, network=view.network
            )
            tree = Tree.spawn(command, cwd=view.directory, env=environ, is_told_more=True)
        finally:
            if tree is None:
                with anyio.CancelScope(shield=True):
                    await self._discard(directory)
        return Standby(directory=directory, command=command, footing=stood_on, tree=tree)

    def _prepare_to_wait(
        self, kind: Kind, directory: Path
    ) -> tuple[list[str | bytes], View, Hashable] | None:
        """Make the directories of a job to come; return how to wait for it, or None if that cannot be."""
        _make_directories(directory)
        needs = self.needs(kind.settings, kind.release)
        view = self.sandbox.view(needs, directory, start=directory / _ROOT)
        return (self._waiting(view, kind.settings), view, footing(view)) if can_wait(view) else None

    def _waiting(self, view: View, settings: ServerSettings) -> list[str | bytes]:
        """Return the command that waits, contained and bounded, for a job with that view."""
        return self.sandbox.command(view, Resources.of(settings.limits), self._waiter)

    async def _discard(self, directory: Path) -> None:
        """Remove a directory, if it is there; what cannot be is left to the closing of the workspace."""
        with contextlib.suppress(OSError):
            discard = functools.partial(self.workspace.discard, directory, keep=False)
            await self.workspace.files.run(discard, patience_s=_REMOVAL_S)

    async def _run_stap(
        self, job: CompileJob, view: View, answer: Path, standby: Tree | None, *, deadline_s: float
    ) -> tuple[Outcome, str | None]:
        """Run stap; return what came of it, and the bound that it met, if that can be seen."""
        limits = job.settings.limits
        resources = Resources.of(limits)
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
            self._environ, temporary=answer.parents[1] / _TEMPORARY, network=view.network
        )
        environ = stap_environment(environ, job.request.environment)
        if standby is None or not standby.has_room_for(told(command, environ)):
            standby, command = None, self.sandbox.command(view, resources, command)
        async with self.sandbox.request_group(answer.parents[1].name, resources) as group:
            try:
                outcome = await run_tree(
                    command,
                    cwd=view.directory,
                    env=environ,
                    deadline_s=deadline_s,
                    grace_s=limits.kill_grace_s,
                    output_bytes=limits.output_bytes,
                    group=group,
                    background=job.background,
                    standby=standby,
                )
            except TranslatorError as exc:
                raise TranslatorError(f"The compile {exc.problem}", where=exc.where) from exc
            exceeded = None if group is None else group.exceeded
        failure = self.sandbox.failure(outcome.status, outcome.stderr)
        if failure is not None:
            raise TranslatorError("The compile could not be started", where=failure)
        return outcome, resources.explain(outcome.status, outcome.stderr, exceeded=exceeded)


@contextlib.asynccontextmanager
async def request_directory(
    workspace: Workspace,
    *,
    keep: bool,
    kept: Callable[[Path], None] | None = None,
    ready: Path | None = None,
) -> AsyncIterator[Path]:
    """Have a directory of ``workspace`` for as long as the context lasts, and longer with ``keep`` (``-k``).

    Args:
        workspace: where it is made.
        keep: let it stay.
        kept: told where it stays.
        ready: one that was made before; taken if it is still there.

    Raises:
        TranslatorError: none can be made, or not in time; or it cannot be kept.

    Cancellation: its removal is not left out; where it takes long, nobody waits for its end.
    """
    discard = functools.partial(workspace.discard, keep=keep)
    with _trouble_told(workspace):
        make = functools.partial(workspace.make_request_directory, ready)
        path = await workspace.files.run(make, undo=discard)
    try:
        yield path
    finally:
        with anyio.CancelScope(shield=True), _trouble_told(workspace), contextlib.suppress(TimeoutError):
            place = await workspace.files.run(functools.partial(discard, path), patience_s=_REMOVAL_S)
            if place is not None and kept is not None:
                kept(place)


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
    return collect(answer, max_bytes=max_bytes), has_build(answer)


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
