"""Finds out in the background what clients' compiles had to find out for themselves, and makes plans.

What stap finds out for a client's compile is not kept: no client's compile changes another's. Instead the
same is found out once more with a script of the server's own, and kept for all compiles.
"""

from __future__ import annotations

import anyio
import attrs
from anyio.abc import TaskGroup

from stapsrv.compile.cache.stap_cache import Finding
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.compile.engine.prepared.stand_in import PREPARED
from stapsrv.compile.engine.prepared.store import (
    ANOTHER_MAKEFILE,
    FEATURES_UNKNOWN,
    NOT_PREPARED,
    lacks_plan,
)
from stapsrv.compile.engine.prepared.variants import plan_options, plan_scripts
from stapsrv.errors import RequestRejected, StapsrvError, TranslatorError
from stapsrv.supervisor.own_compiles import SHORTEST, BuildKey, OwnCompiles, own_job
from stapsrv.system.changes import ChangeCount
from stapsrv.text import error_line

_PLAN = "plan"
# Until the same is found out again, where a client's compile still did not have it.
_FIND_AGAIN_S = 600.0
# What waits to be found out; clients can ask for ever new plans.
_MAX_WAITING = 8


@attrs.define(eq=False)
class Findings:
    """Finds out what the engine reports as missing, while it has ``tasks`` to do so in."""

    _own: OwnCompiles
    # Not set while nothing can be found out.
    tasks: TaskGroup | None = attrs.field(init=False, default=None)
    # What was found out, and when that began.
    _begun: dict[tuple[object, ...], float] = attrs.field(init=False, factory=dict)
    # What is being found out, or waits for that.
    _waiting: list[str] = attrs.field(init=False, factory=list)
    _changes: ChangeCount = attrs.field(init=False, factory=ChangeCount)

    def __attrs_post_init__(self) -> None:
        self._own.engine.on_findings = self.find
        self._own.engine.on_unplanned = self.plan

    async def wait_found(self) -> None:
        """Wait until nothing is being found out that a compile would have to find out for itself.

        Plans are not waited for: modules are built without them, too.
        """
        while set(self._waiting) - {_PLAN}:
            await self._changes.wait_beyond(self._changes.count)

    def find(self, job: CompileJob, findings: frozenset[Finding]) -> None:
        """Find out what a client's compile had to find out for itself."""
        # stap keeps it for each of its modes.
        is_guru = any(name == "g" for name, _value in job.options.options)
        for finding in findings:
            arguments = ((b"-g",) if is_guru else ()) + SHORTEST[finding]
            self._begin(job, finding.name.lower(), arguments)
            if finding is Finding.FEATURES and job.record.build not in {None, NOT_PREPARED}:
                # It comes after its features, in the order of the turns.
                self._begin(job, _PLAN, arguments)

    def plan(self, job: CompileJob, result: CompileResult, known: frozenset[Finding]) -> None:
        """Make a plan for builds like that of a client's compile."""
        sources = (file.data for file in result.files if file.path.endswith((".c", ".h")))
        # Only who knows the kernel's tracepoints can have asked for them; to find them out takes minutes.
        traced = job.record.build == ANOTHER_MAKEFILE and Finding.TRACEPOINTS in known
        for script in plan_scripts(sources, traced=traced):
            self._begin(job, _PLAN, (*plan_options(job.options), b"-p4", b"-e", script))

    def plan_after(self, job: CompileJob) -> None:
        """Make the plan that the first compile for a release lacked: one of its own, with the same script."""
        # The first compile of all finds the features out, for which a plan is made.
        if job.record.build == FEATURES_UNKNOWN or lacks_plan(job.record.build):
            # In a build of its own, whose failure says nothing of the release.
            self._begin(job, _PLAN, job.request.arguments)

    def _begin(self, job: CompileJob, what: str, arguments: tuple[bytes, ...]) -> None:
        now = anyio.current_time()
        self._begun = {key: began for key, began in self._begun.items() if now - began < _FIND_AGAIN_S}
        key = (BuildKey.of(job.settings, job.release), job.toolchain, what, arguments)
        if self.tasks is not None and key not in self._begun and len(self._waiting) < _MAX_WAITING:
            self._begun[key] = now
            self._waiting.append(what)
            own = own_job(job.release, job.settings, arguments, log=job.log, makes_plan=what == _PLAN)
            self.tasks.start_soon(self._find_out, own, what)

    async def _find_out(self, job: CompileJob, what: str) -> None:
        facts = {"release": job.release.name, "what": what}
        began = anyio.current_time()
        try:
            async with self._own.turn:
                result = await self._own.run(job)
            if not result.succeeded:
                job.log.warning("release.unfound", **facts, reason=error_line(result.stderr))
            elif job.makes_plan and job.record.build != PREPARED:
                job.log.info("prepared.none", release=job.release.name, reason=job.record.build)
            else:
                job.log.info("release.found", **facts, seconds=round(anyio.current_time() - began, 1))
        except (OSError, RequestRejected, TranslatorError) as exc:
            fault = exc.problem if isinstance(exc, StapsrvError) else str(exc)
            job.log.warning("release.unfound", **facts, reason=fault)
        except Exception:
            job.log.exception("release.crashed", release=job.release.name)
        finally:
            self._waiting.remove(what)
            self._changes.note()
