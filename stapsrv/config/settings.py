"""What one compile server is told to be, and the bounds that hold for each of its requests."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from stapsrv.config.kernels import ServedRelease, host_arch, host_release, normalise_arch, resolve_release
from stapsrv.config.log_format import LogFormat

DEFAULT_MAX_REQUEST_BYTES = 50_000
DEFAULT_MAX_COMPRESSED_BYTES = 5_000


@attrs.frozen(kw_only=True)
class Limits:
    """How long and how much: every wait and every buffer that a peer or a compile could stretch.

    Durations are in seconds of the event loop's clock. A cold compile takes 10 to 15 s on a small
    host and some scripts minutes, so ``compile_s`` is generous; all that depends on a peer is short.
    """

    connections: int = 512
    """Open connections of one server; more are reset before the handshake, so the client comes back."""
    queue_length: int = 256
    """Requests that may wait for a worker; real clients give up after some minutes anyway."""
    handshake_s: float = 10.0
    request_s: float = 30.0
    queue_s: float = 300.0
    compile_s: float = 600.0
    send_s: float = 60.0
    drain_s: float = 5.0
    """How long a stopping server lets running requests finish."""
    kill_grace_s: float = 2.0
    """Between the polite signal to a compile's process tree and the final one."""
    output_bytes: int = 16 * 1024 * 1024
    """Of each of stap's standard output and standard error."""
    answer_bytes: int = 64 * 1024 * 1024
    """Of all files of one answer, before compression."""


@attrs.frozen(kw_only=True)
class HostDefaults:
    """What holds for a server whose settings do not say.

    Attributes:
        arch: the host's architecture, normalised.
        release: the release of its kernel.
        user: whom servers run as.
        log: where they log.
    """

    arch: str
    release: str
    user: str
    log: Path


@attrs.frozen(kw_only=True)
class ServerSettings:
    """The options of one server, as typed or as configured (manual page, OPTIONS and CONFIGURATION).

    Attributes:
        arch: target architecture, normalised; None for the host's.
        releases: each a kernel release or an absolute build tree; empty for the host's release.
        build: ``-B``, given to make.
        define: ``-D``, given to the C preprocessor.
        include: ``-I``, further tapset directories.
        runtime: ``-R``, or None for stap's own.
        user: the run-as user, or None for the default one.
        nickname: how people refer to the server, or None for its id.
        log: the log file, or None for the default one.
        log_format: how lines of the log look, or None for the default.
        port: the TCP port, 0 for one that the kernel picks.
        ssl: the NSS database directory, or None for the user's own.
        max_threads: workers; 0 serves one request at a time, None means the number of cores.
        max_request_bytes: largest request after unpacking.
        max_compressed_bytes: largest request as sent.
        keep_temporary: ``-k``, temporary directories stay.
    """

    arch: str | None = attrs.field(default=None, converter=attrs.converters.optional(normalise_arch))
    releases: tuple[str, ...] = ()
    build: tuple[str, ...] = ()
    define: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    runtime: str | None = None
    user: str | None = None
    nickname: str | None = None
    log: Path | None = None
    log_format: LogFormat | None = None
    port: int = 0
    ssl: Path | None = None
    max_threads: int | None = None
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES
    max_compressed_bytes: int = DEFAULT_MAX_COMPRESSED_BYTES
    keep_temporary: bool = False
    limits: Limits = Limits()

    @property
    def workers(self) -> int:
        """Requests that may compile at the same time."""
        if self.max_threads is None:
            return len(os.sched_getaffinity(0))
        return max(1, self.max_threads)

    def resolved(self, defaults: HostDefaults) -> ServerSettings:
        """Fill in all that depends on the host, and drop releases named twice."""
        return attrs.evolve(
            self,
            arch=self.arch or defaults.arch,
            releases=tuple(dict.fromkeys(self.releases)) or (defaults.release,),
            user=self.user or defaults.user,
            log=self.log or defaults.log,
        )

    def identity(self, defaults: HostDefaults) -> ServerSettings:
        """Return what makes a server the same as another: starting it while that one runs changes nothing.

        The nickname does not count, nor does the order of releases, ``-k`` (which no file records) or
        the limits. Source: manual page, ``start``; PROTOCOL, the commands of the original.
        """
        resolved = self.resolved(defaults)
        return attrs.evolve(
            resolved,
            releases=tuple(sorted(resolved.releases)),
            nickname=None,
            keep_temporary=False,
            limits=Limits(),
        )

    def served_releases(self) -> tuple[ServedRelease, ...]:
        """Find the build tree of each release.

        Raises:
            ConfigError: a release has no usable build tree on this host.
        """
        arch = self.arch or host_arch()
        return tuple(resolve_release(name, arch=arch) for name in self.releases or (host_release(),))
