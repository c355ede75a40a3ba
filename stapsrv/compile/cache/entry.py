"""One cache entry: a result, whether it is stored, what is made of it for clients, and its memory."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import attrs

from stapsrv.compile.cache.key import NOT_SCANNED
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.compile.memory import MemoryBudget
from stapsrv.compile.protocol.response import ResponseFile


@attrs.define(eq=False)
class CacheEntry:
    """A result, which all requests for it share, and what is made of it."""

    result: CompileResult
    # Why it is not stored, in a word; None if it is. Final once ``stored`` is set.
    reason: str | None = NOT_SCANNED
    # Set when it is stored, or is not going to be.
    stored: anyio.Event = attrs.field(factory=anyio.Event)
    stdout: ResponseFile = attrs.field(init=False)
    stderr: ResponseFile = attrs.field(init=False)
    # The last signer, and the result's files with its signatures: the next request may want the same.
    signed: tuple[object, tuple[ResponseFile, ...]] | None = None
    _holders: int = 0
    _release_memory: Callable[[], None] | None = None
    _claiming: anyio.Lock = attrs.field(factory=anyio.Lock)

    def __attrs_post_init__(self) -> None:
        self.stdout = ResponseFile("stdout", self.result.stdout)
        self.stderr = ResponseFile("stderr", self.result.stderr)

    @classmethod
    def final(cls, result: CompileResult, reason: str | None = None) -> CacheEntry:
        """Return an entry that is stored, or never will be."""
        entry = cls(result)
        entry.finish(reason)
        return entry

    def finish(self, reason: str | None) -> None:
        """Mark it as stored, or say why it is not."""
        self.reason = reason
        self.stored.set()

    @property
    def size(self) -> int:
        """In bytes, without what it is deflated to, which is no larger."""
        result = self.result
        return len(result.stdout) + len(result.stderr) + sum(len(file.data) for file in result.files)

    async def hold(self, memory: MemoryBudget, job: CompileJob) -> None:
        """Hold the memory of the entry, once for all who hold it, until :meth:`release`.

        Raises:
            RequestRejected: there was none within the time that a request may wait.
        """
        async with self._claiming:
            if self._release_memory is None:
                wait_s = job.settings.limits.queue_s
                self._release_memory = await memory.claim(job.client, 2 * self.size, wait_s=wait_s)
            self._holders += 1

    def release(self) -> None:
        """Hold the entry no longer; the last to do so gives its memory back."""
        self._holders -= 1
        if not self._holders and self._release_memory is not None:
            self._release_memory()
            self._release_memory = None
