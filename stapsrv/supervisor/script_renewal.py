"""Compiles scripts of collections again when what they depend on has changed, before anybody asks for them.

What may change is a script, a release's headers, tapsets, the runtime, or which releases there are: of a
server, of its farm, or below /lib/modules. Then each script is checked again, and compiled if its result is
not cached.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.cache.result_cache import ResultCache
from stapsrv.config.kernels import MODULES, installed_releases
from stapsrv.supervisor.script_checks import ScriptChecks
from stapsrv.supervisor.warmup import Warmup
from stapsrv.system import inotify
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.changes import ChangeCount
from stapsrv.system.directory_watcher import DirectoryWatcher

# A package comes in many files; this long after a change it is looked what there is.
_SETTLE_S = 2.0
_READY_S = 600.0


@attrs.define(eq=False)
class ScriptRenewal:
    """Follows changes for the checks of one process; ``changes`` are those of its servers."""

    _checks: ScriptChecks
    _cache: ResultCache | None
    _changes: ChangeCount
    _warmup: Warmup
    _log: Log
    _installed: Callable[[], list[str]] = attrs.field(kw_only=True, default=installed_releases)
    _modules: Path = attrs.field(kw_only=True, default=MODULES)
    _settle_s: float = attrs.field(kw_only=True, default=_SETTLE_S)
    _due: ChangeCount = attrs.field(init=False, factory=ChangeCount)
    _known: frozenset[str] | None = attrs.field(init=False, default=None)
    _files: BlockingCalls = attrs.field(init=False, factory=BlockingCalls)

    async def run(self) -> None:
        """Renew until cancelled; a host that lets nothing be watched costs the watching alone."""
        try:
            directories: DirectoryWatcher[str] = DirectoryWatcher(inotify.CHANGE | inotify.MODIFY)
        except OSError as exc:
            self._log.warning("scripts.unwatched", reason=exc.strerror)
            return
        async with anyio.create_task_group() as tasks:
            with contextlib.closing(directories):
                tasks.start_soon(self._follow_servers)
                tasks.start_soon(self._follow_directories, directories)
                if self._cache is not None:
                    tasks.start_soon(self._follow_inputs, self._cache.input_changes)
                while True:
                    seen = self._due.count
                    await self._look(directories)
                    await self._due.wait_beyond(seen)
                    await anyio.sleep(self._settle_s)

    async def _look(self, directories: DirectoryWatcher[str]) -> None:
        self._checks.forget_unserved()
        if not self._checks.directories():
            return
        try:
            await self._files.run(partial(self._watch, directories))
            await self._note_installed()
        except OSError as exc:
            self._log.warning("scripts.unwatched", reason=exc.strerror)
        with anyio.move_on_after(_READY_S):
            for release, settings in self._checks.watched():
                # Else each script's compile would find out about the kernel for itself.
                await self._warmup.wait_tried(settings, release, self._log)
                if self._cache is not None:
                    # A check would wait for a while only, and take what is not scanned yet for unknown.
                    await self._cache.wait_scanned(release, settings)
        try:
            await self._checks.renew()
        except OSError as exc:
            # Where its file system hangs, say; whatever changes next has it tried again.
            self._log.warning("scripts.unremembered", reason=exc.strerror or exc)

    def _watch(self, directories: DirectoryWatcher[str]) -> None:
        wanted = [Path(directory) for directory in self._checks.directories()]
        directories.watch_directories("scripts", wanted)
        directories.watch_directories("modules", [self._modules])

    async def _note_installed(self) -> None:
        """Have releases checked that appeared since the start, also those that no server serves yet."""
        found = frozenset(await self._files.run(self._installed))
        new = sorted(found - (found if self._known is None else self._known))
        for name in new:
            self._log.info("scripts.arrived", release=name)
        outcomes = self._checks.outcomes
        outcomes.note_arrived(tuple(name for name in (*outcomes.arrived, *new) if name in found))
        self._known = found

    async def _follow_servers(self) -> None:
        served = self._checks.served()
        while True:
            seen = self._changes.count
            now = self._checks.served()
            if now != served:
                served = now
                self._due.note()
            await self._changes.wait_beyond(seen)
            # Each request is such a change: several are handled at once.
            await anyio.sleep(self._settle_s)

    async def _follow_inputs(self, changes: ChangeCount) -> None:
        while True:
            seen = changes.count
            await changes.wait_beyond(seen)
            self._due.note()

    async def _follow_directories(self, directories: DirectoryWatcher[str]) -> None:
        while True:
            await directories.wait_changed()
            self._due.note()
