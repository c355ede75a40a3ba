"""What makes two requests equal.

Pure. Only what stap is given counts: a client's version, and what the answer is signed for, do not.

What is known of results: the questions that they answer, the answers made of them, and their counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import attrs

from stapsrv.compile.protocol.request import CompileRequest


def request_digest(request: CompileRequest) -> bytes:
    """Return a digest that is equal for two requests only if stap is given the same by both.

    Every part is preceded by its length, so no two lists of parts are confused.
    """
    files = sorted((file.path, file.data) for file in request.files)
    return digest(
        (
            request.release.encode(),
            request.arch.encode(),
            digest(request.arguments),
            digest(f"{name}={value}".encode() for name, value in sorted(request.environment)),
            digest(part for path, data in files for part in (path, data)),
            digest(sorted(request.directories)),
        )
    )


def digest(parts: Iterable[bytes]) -> bytes:
    """Return a digest of a list of parts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.digest()


_VERSION = b"1"
UNKNOWN = "unknown yet"
"""Why a result is not kept of which nobody can say, or can say yet, whether it may be."""


@attrs.frozen
class CacheKey:
    """A job, as far as its answer may be known.

    Attributes:
        request: the digest of the request.
        premise: the digest of all else that the answer depends on; None if that is not known.
        means: the digest of that part of it that stap's own cache takes little notice of.
        changes: how many changes of the tapsets and of the means were heard of by then.
        rc: what tells stap's ``rc`` file from what it was.
        reason: why not, in a word.
    """

    request: bytes
    premise: bytes | None = None
    means: bytes = b""
    changes: tuple[int, int] = (0, 0)
    rc: bytes = b""
    reason: str | None = None

    @property
    def flight(self) -> tuple[bytes, bytes | None, tuple[int, int], bytes]:
        """What is equal for requests that one compile suits: nothing has changed between them."""
        return self.request, self.premise, self.changes, self.rc

    @property
    def name(self) -> str:
        """What the answer is kept under, if all that it depends on is known."""
        return digest((_VERSION, self.request, self.premise or b"")).hex()
