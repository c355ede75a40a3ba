"""Where a compile runs: a job goes in, a result comes out, both made of bytes.

:class:`~stapsrv.compile.engine.cached.CachedEngine` wraps :class:`~stapsrv.compile.engine.local.LocalEngine`,
which runs stap on this host. An engine on other hosts can take its place: sessions, queue, cache and signing
stay on this side.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

import anyio
import attrs
import structlog
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.compile.protocol.options import Privilege, requested_privilege
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.protocol.response import ResponseFile
from stapsrv.compile.stats import RequestRecord
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings

T_co = TypeVar("T_co", covariant=True)


@attrs.frozen(kw_only=True)
class CompileJob:
    """One request, the release that it is compiled for, and the options of the server that it came to.

    Attributes:
        client: whose turn in the queue it takes.
        record: the engines add durations and the source of the answer.
        answered: set when the client has its answer.
        background: run at low priority; nobody waits for it.
        stap_cache: the directory of stap's own cache; None: where stap has it.
        deadline_s: seconds that the compile may take.
    """

    request: CompileRequest
    release: ServedRelease
    settings: ServerSettings
    client: str = ""
    log: Log = attrs.field(factory=structlog.get_logger, eq=False, repr=False)
    record: RequestRecord = attrs.field(factory=RequestRecord, eq=False, repr=False)
    answered: anyio.Event = attrs.field(factory=anyio.Event, eq=False, repr=False)
    background: bool = False
    stap_cache: Path | None = None
    deadline_s: float = attrs.field()

    @deadline_s.default
    def _compile_limit(self) -> float:
        return self.settings.limits.compile_s

    @property
    def privilege(self) -> Privilege | None:
        """What stap is held to; None where it is bound to refuse the arguments."""
        return requested_privilege(self.request.arguments)


@attrs.frozen
class CompileResult:
    """What stap made of a job; the same bytes may answer later requests.

    Attributes:
        status: stap's exit status; 128 + N when signal N ended it, as a shell says it.
        stdout: without this host's private paths; so is ``stderr``.
        files: what the answer carries.
        limit_met: the resource limit that stap met, as far as its end shows one.
    """

    status: int
    stdout: bytes
    stderr: bytes
    files: tuple[ResponseFile, ...]
    limit_met: str | None = None


@attrs.frozen
class Compiled:
    """A compile that has ended; what it left behind stays until it is released.

    Attributes:
        built: whether stap built the module; else it had it in its own cache.
        read_dependencies: returns the files that the module was built from, if it was; OSError: their list
            cannot be read in time.
        release: removes what the compile left behind; whoever has this object awaits it exactly once.
            TranslatorError: it could not be removed, or kept where that was wanted.
    """

    result: CompileResult
    built: bool
    read_dependencies: Callable[[], Awaitable[frozenset[str]]]
    release: Callable[[], Awaitable[None]]


class Engine(Protocol[T_co]):
    """Somewhere to compile."""

    async def compile(self, job: CompileJob) -> T_co:
        """Compile ``job``.

        Raises:
            TranslatorError: it could not be started, overran its deadline or made too much.
            RequestRejected: no worker was free for it.

        Cancellation: nothing of the compile is left running, or on disk.
        """
