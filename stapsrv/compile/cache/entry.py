"""One cache entry: a result, whether it is stored, and the responses that were made of it."""

from __future__ import annotations

import anyio
import attrs

from stapsrv.compile.cache.key import NOT_SCANNED
from stapsrv.compile.engine.base import CompileResult

# Clients of one kind ask for one or two of them: signed or not, compressed or not.
_MAX_RESPONSES = 3


@attrs.frozen
class ResponseVariant:
    """What a response is made for, beside the result and who signs it."""

    deflate: bool
    signed: bool  # by the certificate's key
    messages: tuple[str, ...]  # the server's own


@attrs.define(eq=False)
class CacheEntry:
    """A result, and the responses that were made of it."""

    result: CompileResult
    # Why it is not stored, in a word; None if it is. Final once ``stored`` is set.
    reason: str | None = NOT_SCANNED
    # When its file was last marked as used, by the monotonic clock.
    touched: float = 0.0
    # Set when it is stored, or is not going to be.
    stored: anyio.Event = attrs.field(factory=anyio.Event)
    _responses: dict[ResponseVariant, tuple[object, bytes]] = attrs.field(factory=dict)

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
        """In bytes, without its responses, which are no larger."""
        result = self.result
        return len(result.stdout) + len(result.stderr) + sum(len(file.data) for file in result.files)

    def response_for(self, signer: object, variant: ResponseVariant | None) -> bytes | None:
        """Return the response that was made for this signer and variant before, if there is one."""
        made = None if variant is None else self._responses.get(variant)
        return made[1] if made is not None and made[0] is signer else None

    def keep_response(self, signer: object, variant: ResponseVariant | None, response: bytes) -> None:
        """Keep a response for the next request of its variant; only the last signer's is kept."""
        if variant is None:
            return
        if len(self._responses) >= _MAX_RESPONSES:
            self._responses.clear()
        self._responses[variant] = (signer, response)
