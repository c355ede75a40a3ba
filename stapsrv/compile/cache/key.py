"""The cache key: a digest of all that a result depends on. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import attrs

from stapsrv.compile.protocol.request import CompileRequest

# Why a result is not stored: some of its inputs were being scanned.
NOT_SCANNED = "unknown yet"
# Locales in which stap, make and the compiler do the same: messages are English (stap's catalogue for it
# changes none), and so are decimal points, letters and their order. Quotes in the compiler's may differ.
_USUAL_LOCALE = re.compile(r"(|(C|POSIX|en_[A-Z]{2})(\.[A-Za-z0-9-]+)?)")
# Part of each entry's name: entries of another version are never found.
_VERSION = b"1"


@attrs.frozen
class CacheKey:
    """The cache key of a job, or the reason it has none."""

    request_digest: bytes  # of what stap is given by the client
    common_digest: bytes | None = None  # the same without the locale; None where that is an unusual one
    environment_digest: bytes | None = None  # of all else that the result depends on
    # Names stap's own cache, which takes no notice of this part of the environment.
    toolchain_digest: bytes = b""
    generation: tuple[int, int] = (0, 0)  # changes of the tapsets, and of the toolchain, so far
    rc_stamp: bytes = b""
    host_state: bytes | None = None  # of the environment, what is read anew each time
    elsewhere: bool = False  # the environment is that of other hosts
    reason: str | None = None  # why there is no environment digest, in a word

    @property
    def flight_key(self) -> tuple[bytes, bytes | None, tuple[int, int], bytes]:
        """Single-flight key: equal for requests that can share one compile."""
        return self.request_digest, self.environment_digest, self.generation, self.rc_stamp

    @property
    def name(self) -> str:
        """The name of the entry in the store; of use only where the environment is known."""
        return digest((_VERSION, self.request_digest, self.environment_digest or b"")).hex()

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which its entry may be stored."""
        if self.environment_digest is None:
            return ()
        return (self.name,) if self.common_name is None else (self.name, self.common_name)

    @property
    def common_name(self) -> str | None:
        """The name of an entry for all usual locales; None for a request with another one."""
        if self.common_digest is None:
            return None
        return digest((_VERSION, b"common", self.common_digest, self.environment_digest or b"")).hex()

    @classmethod
    def of(cls, request: CompileRequest, *, elsewhere: bool = False) -> CacheKey:
        """Return the part of a key that the request alone decides."""
        is_usual = all(_USUAL_LOCALE.fullmatch(value) for _name, value in request.environment)
        common = request_digest(attrs.evolve(request, environment=())) if is_usual else None
        return cls(request_digest(request), common, elsewhere=elsewhere)


def request_digest(request: CompileRequest) -> bytes:
    """Return a digest that is equal for two requests only if stap is given the same by both.

    A client's version, and what its answer is signed for, do not count.
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
        # With their lengths, no two lists of parts are confused.
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.digest()
