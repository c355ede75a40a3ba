"""Which releases have been compiled for, as one user's servers compile for them: kept over restarts.

stap keeps what it has found out about a kernel, so whoever has compiled for it once finds it warm. That
is remembered by a digest of all that it depends on; a file that is lost costs one compile for each release.

First compiles: the shortest script, for each release that is served, in the background.

stap needs ten seconds to get to know a kernel, and keeps what it has found out. So that no client waits
for that, each release is compiled for once when its first server has started: with low priority, one
release at a time over the whole process, without a worker, and not at all where it is known to be warm.

That shows as well whether the release can be compiled for at all. One that cannot is unhealthy until a
compile succeeds: the next first compile, after a change of the kernel's build tree or of the runtime, or
after some time; or that of a client, whose requests are attempted all the same.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeGuard

import anyio
import attrs
from anyio.abc import TaskGroup
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.result_cache import ResultCache
from stapsrv.compile.context import CompileService
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.compile.engine.local import LocalEngine
from stapsrv.compile.engine.signing import has_modules
from stapsrv.compile.engine.stap import StapProgram
from stapsrv.compile.health import Health, ReleaseHealth
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import RequestRejected, StapsrvError, TranslatorError
from stapsrv.supervisor.state.json_file import JsonFile, with_fact
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.directory_watcher import DirectoryWatcher
from stapsrv.text import error_line

_TREE_FILES = (
    *("Makefile", ".config", "Module.symvers", "include/config/kernel.release"),
    *("include/generated/autoconf.h", "include/generated/utsrelease.h", "scripts/mod/modpost"),
)
"""What changes when a kernel's build tree is configured, built or installed anew."""
_DEFAULT_RUNTIME = Path("/usr/share/systemtap/runtime")


@attrs.frozen
class WarmupKey:
    """A release, and how it is compiled for: what one of two equal ones has shown holds for the other."""

    release: ServedRelease
    arch: str | None
    build: tuple[str, ...]
    define: tuple[str, ...]
    include: tuple[str, ...]
    runtime: str | None

    @classmethod
    def of(cls, settings: ServerSettings, release: ServedRelease) -> WarmupKey:
        """Return how a server with such settings compiles for a release."""
        return cls(
            release, settings.arch, settings.build, settings.define, settings.include, settings.runtime
        )

    @property
    def places(self) -> tuple[Path, ...]:
        """The directories whose contents decide whether it can be compiled for."""
        runtime = _DEFAULT_RUNTIME if self.runtime is None else Path(self.runtime)
        return (self.release.build_tree, runtime, *map(Path, self.include))


class WarmMemory:
    """What has been compiled for.

    Args:
        file: where that is kept; made when there is something to keep.
        cache: stap's own; when that is gone, nothing is warm any more.
    """

    def __init__(self, file: Path, cache: Path) -> None:
        self._memory = JsonFile(file, _is_identity)
        self._cache = cache

    def is_warm(self, digest: str) -> bool:
        """Whether this has been compiled for, and stap's cache is still the same; reads files."""
        cache = _identity(self._cache)
        return cache is not None and self._memory.read().get(digest) == cache

    def remember(self, digest: str) -> None:
        """Keep that this has been compiled for; writes files. A disk that is full costs the memory alone."""
        cache = _identity(self._cache)
        if cache is not None:
            self._memory.write(with_fact(self._memory.read(), digest, cache))


def digest_of(key: WarmupKey, stap: StapProgram) -> str:
    """Return what changes when another compile for the subject may come out differently; reads files."""
    sha = hashlib.sha256()
    for part in (stap.version, _stamp(stap.path), repr(key), *_stamps(key)):
        sha.update(f"{part}\n".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()[:32]


def _stamps(key: WarmupKey) -> Iterator[str]:
    tree, *others = key.places
    yield os.path.realpath(tree)
    yield from map(_stamp, (tree / name for name in _TREE_FILES))
    for place in others:
        yield from map(_stamp, _files(place))


def _files(place: Path) -> Iterable[Path]:
    """Return the files of a directory of SystemTap's own kind: some hundreds."""
    return (Path(parent, name) for parent, _, names in sorted(os.walk(place)) for name in sorted(names))


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return f"{path} -"
    return f"{path} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _identity(directory: Path) -> str | None:
    """Return what tells a directory from another one that is made in its place; None if it is missing."""
    try:
        status = directory.stat()
    except OSError:
        return None
    return f"{status.st_dev}:{status.st_ino}"


def _is_identity(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


_ARGUMENTS = (b"-p4", b"-e", b"probe begin { exit() }")
_FIRST_DELAY_S, _MOST_DELAY_S = 60.0, 3600.0
_SETTLE_S = 2.0
"""A package comes in many files; this long after the first change the next attempt begins."""


@attrs.define(eq=False)
class WarmupTarget:
    """A subject, whoever serves it, and what becomes of it."""

    key: WarmupKey
    health: ReleaseHealth
    settings: ServerSettings
    log: Log
    wanted_by: set[int] = attrs.field(factory=set)
    digest: str = ""
    scope: anyio.CancelScope | None = None


class Warmup:
    """Looks after the releases that the servers of one process serve.

    Args:
        engine: compiles.
        cache: chooses stap's own cache for that; None where stap has only one.
        memory: of what is warm.
        first_delay_s: until a release that cannot be compiled for is tried again; doubled each time.
    """

    def __init__(
        self,
        engine: LocalEngine,
        memory: WarmMemory,
        *,
        cache: ResultCache | None = None,
        first_delay_s: float = _FIRST_DELAY_S,
    ) -> None:
        self._cache = cache
        self._engine = engine
        self._memory = memory
        self._first_delay_s = first_delay_s
        self._targets: dict[WarmupKey, WarmupTarget] = {}
        self._one_at_a_time = anyio.Lock()
        self._files = BlockingCalls()
        self._tasks: TaskGroup | None = None
        self._listeners: list[Callable[[ReleaseHealth], None]] = []

    def on_health_change(self, changed: Callable[[ReleaseHealth], None]) -> None:
        """Have ``changed`` called after each change of a release's health."""
        self._listeners.append(changed)

    async def run(self) -> None:
        """Look after what is wanted until cancelled.

        Cancellation: no compile is left running.
        """
        async with anyio.create_task_group() as self._tasks:
            for target in self._targets.values():
                self._begin(target)
            await anyio.sleep_forever()

    def health(self, settings: ServerSettings, release: ServedRelease, log: Log) -> ReleaseHealth:
        """Return the standing of a release for a server with such settings; equal servers share it.

        Args:
            settings: of the server.
            release: one that it serves.
            log: hears of it if the server is the first of its kind.
        """
        key = WarmupKey.of(settings, release)
        target = self._targets.get(key)
        if target is None:
            target = self._targets[key] = WarmupTarget(key, ReleaseHealth(self._notify), settings, log)
        return target.health

    def add(self, server_id: int, service: CompileService) -> None:
        """Have a server's releases looked after from now on, unless it does not want that."""
        if not service.settings.limits.warmup:
            return
        for target in self._targets_of(service):
            if server_id in target.wanted_by:
                continue
            if not target.wanted_by and target.health.health is Health.HEALTHY:
                # Of an earlier life of the server: the kernel's headers may be others now.
                target.health.set(Health.UNTRIED)
            target.wanted_by.add(server_id)
            self._begin(target)

    def remove(self, server_id: int) -> None:
        """Look after a server's releases no longer, but for those that others serve, too."""
        for target in list(self._targets.values()):
            target.wanted_by.discard(server_id)
            if not target.wanted_by and target.scope is not None:
                target.scope.cancel()
                target.scope = None

    def _targets_of(self, service: CompileService) -> list[WarmupTarget]:
        healths = {id(health) for health in service.release_health.values()}
        return [target for target in self._targets.values() if id(target.health) in healths]

    def _notify(self, health: ReleaseHealth) -> None:
        for listener in self._listeners:
            listener(health)

    def _begin(self, target: WarmupTarget) -> None:
        """Start looking after a case, if somebody wants that and it has not been done yet."""
        if self._tasks is not None and target.wanted_by and target.scope is None:
            target.scope = anyio.CancelScope()
            self._tasks.start_soon(self._look_after, target, target.scope)

    async def _look_after(self, target: WarmupTarget, scope: anyio.CancelScope) -> None:
        """Compile for a release until that succeeds, here or for a client."""
        delay_s = self._first_delay_s
        try:
            with scope:
                while not await self._try(target):
                    if await self._wait_for_change(target, delay_s):
                        delay_s = self._first_delay_s
                    else:
                        delay_s = min(2 * delay_s, _MOST_DELAY_S)
        except Exception:
            target.log.exception("release.crashed", release=target.key.release.name)
        if target.scope is scope:
            target.scope = None

    async def _try(self, target: WarmupTarget) -> bool:
        """See whether a release can be compiled for; returns whether it can."""
        async with self._one_at_a_time:
            try:
                target.digest = await self._digest(target)
                known = await self._files.run(functools.partial(self._memory.is_warm, target.digest))
                if not known and target.health.health is not Health.HEALTHY:
                    await self._compile(target)
                if not known:
                    await self._files.run(functools.partial(self._memory.remember, target.digest))
            except (OSError, RequestRejected, TranslatorError) as exc:
                fault = exc.problem if isinstance(exc, StapsrvError) else str(exc)
                target.log.warning("release.unhealthy", release=target.key.release.name, reason=fault)
                target.health.set(Health.UNHEALTHY, fault)
                return False
        target.health.set(Health.HEALTHY)
        return True

    async def _digest(self, target: WarmupTarget) -> str:
        return await self._files.run(functools.partial(digest_of, target.key, self._engine.stap))

    async def _compile(self, target: WarmupTarget) -> None:
        """Compile the shortest script, until done or until a client's request has shown that it can be done.

        Raises:
            TranslatorError, RequestRejected: it cannot be done; the text is the compiler's, if it has one.
        """
        release = target.key.release
        request = CompileRequest(release=release.name, arch=release.arch, arguments=_ARGUMENTS)
        settings = attrs.evolve(target.settings, keep_temporary=False)
        job = CompileJob(request=request, release=release, settings=settings, background=True)
        if target.health.health is Health.UNTRIED:
            target.health.set(Health.WARMING)
        began = anyio.current_time()
        result: CompileResult | None = None
        with anyio.CancelScope() as scope, target.health.when_healthy(scope.cancel):
            if self._cache is not None and settings.limits.result_cache:
                result = await self._cache.run(job, self._engine)
            else:
                result = await self._engine.run(job)
        if result is None:
            return
        if result.status != 0 or not has_modules(result.files):
            raise TranslatorError(error_line(result.stderr))
        seconds = round(anyio.current_time() - began, 1)
        target.log.info("release.healthy", release=release.name, seconds=seconds)

    async def _wait_for_change(self, target: WarmupTarget, delay_s: float) -> bool:
        """Wait until another attempt is worth it; returns whether something has changed."""
        changed = False
        with contextlib.ExitStack() as watching, anyio.move_on_after(delay_s) as scope:
            watching.enter_context(target.health.when_healthy(scope.cancel))
            watcher = await self._watch(target)
            async with anyio.create_task_group() as tasks:
                if watcher is not None:
                    watching.callback(watcher.close)
                    tasks.start_soon(_cancel_when_changed, watcher, tasks.cancel_scope)
                # What changed while it was compiled was not heard.
                with contextlib.suppress(OSError):
                    if await self._digest(target) != target.digest:
                        tasks.cancel_scope.cancel()
                await anyio.sleep_forever()
            changed = True
            await anyio.sleep(_SETTLE_S)
        return changed

    async def _watch(self, target: WarmupTarget) -> DirectoryWatcher[WarmupKey] | None:
        """Watch what decides on a case; what hangs, or cannot be watched, only time will tell of."""
        try:
            watch = functools.partial(_watch, target.key)
            return await self._files.run(watch, cleanup=DirectoryWatcher.close)
        except OSError:
            return None


def _watch(key: WarmupKey) -> DirectoryWatcher[WarmupKey]:
    """Watch directories with all below them; where one cannot be watched, only time will tell."""
    watcher = DirectoryWatcher[WarmupKey]()
    below = (
        Path(parent, name) for place in key.places for parent, names, _ in os.walk(place) for name in names
    )
    with contextlib.suppress(OSError):
        watcher.watch_directories(key, itertools.chain(key.places, below))
    return watcher


async def _cancel_when_changed(watcher: DirectoryWatcher[WarmupKey], scope: anyio.CancelScope) -> None:
    await watcher.wait_changed()
    scope.cancel()
