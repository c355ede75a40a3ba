"""What makes two requests equal.

Pure. Only what stap is given counts: a client's version, and what the answer is signed for, do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from stapsrv.compile.wire import CompileRequest


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
