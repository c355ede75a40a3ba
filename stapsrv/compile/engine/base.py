"""The seam where a compile runs: a job goes in, a result comes out, both made of bytes.

The engine of :mod:`stapsrv.compile.engine.local` runs stap on this host. One on other hosts can join here:
sessions, queues, signing and caches stay on this side of the seam.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import attrs

from stapsrv.compile.cache.depfile import Build
from stapsrv.compile.protocol.options import Privilege, requested_privilege
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.protocol.response import AnswerFile
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings


@attrs.frozen(kw_only=True)
class CompileJob:
    """One request, the release that it is compiled for, and the options of the server that it came to.

    Attributes:
        request: what to compile.
        release: the kernel to compile for.
        settings: the server's.
        background: nobody waits for it: it leaves the processors to others.
        anew: stap is to build everything, whatever its own cache holds.
    """

    request: CompileRequest
    release: ServedRelease
    settings: ServerSettings
    background: bool = False
    anew: bool = False

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
        limit_met: the bound that stap met, as far as its end shows one.
    """

    status: int
    stdout: bytes
    stderr: bytes
    files: tuple[AnswerFile, ...]
    limit_met: str | None = None


@attrs.frozen
class Compiled:
    """A compile that has ended, as long as what it left behind is there.

    Attributes:
        result: what stap made of the job.
        built: whether stap built the module; else it had it in its own cache.
        read_build: returns what the module was built from, if it was.
            Raises OSError: that cannot be read, or not in time.
    """

    result: CompileResult
    built: bool
    read_build: Callable[[], Awaitable[Build]]


class Engine(Protocol):
    """Somewhere to compile."""

    def compiled(
        self, job: CompileJob, *, deadline_s: float, kept: Callable[[Path], None] | None = None
    ) -> AbstractAsyncContextManager[Compiled]:
        """Compile ``job`` within ``deadline_s`` seconds; what it leaves behind is there while the block runs.

        Args:
            job: what to compile.
            deadline_s: counts from now.
            kept: told where the job's directory stays, if it does (``-k``).

        Raises:
            TranslatorError: it could not be started, overran the deadline or made too much; after the block,
                what it left behind could not be kept.

        Cancellation: nothing of the compile is left running.
        """
