"""What one compile server is told to be, and the bounds that hold for each of its requests."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from stapsrv.config.kernels import ServedRelease, host_arch, host_release, normalise_arch, resolve_release
from stapsrv.config.log_format import LogFormat
from stapsrv.config.tunables import BY_ATTRIBUTE, NOTHING_SET, Tuning

DEFAULT_MAX_REQUEST_BYTES = 50_000
DEFAULT_MAX_COMPRESSED_BYTES = 5_000


def _tunable(attribute: str) -> Any:  # noqa: ANN401 - the annotation beside each use says the type
    """Return the attrs field of a tunable, with the table's default."""
    return attrs.field(default=BY_ATTRIBUTE[attribute].default)


@attrs.frozen(kw_only=True)
class Limits:
    """How long and how much: every wait and every buffer that a peer or a compile could stretch.

    Durations are in seconds of the event loop's clock, sizes in bytes. What each is, and its default, is in
    the table (:mod:`stapsrv.config.tunables`). A cold compile takes 10 to 15 s on a small host and some
    scripts minutes, so ``compile_s`` is generous; all that depends on a peer is short.
    """

    connections: int = _tunable("connections")
    connections_per_address: int = _tunable("connections_per_address")
    queue_length: int = _tunable("queue_length")
    handshake_s: float = _tunable("handshake_s")
    request_s: float = _tunable("request_s")
    queue_s: float = _tunable("queue_s")
    compile_s: float = _tunable("compile_s")
    send_s: float = _tunable("send_s")
    drain_s: float = _tunable("drain_s")
    kill_grace_s: float = _tunable("kill_grace_s")
    output_bytes: int = _tunable("output_bytes")
    answer_bytes: int = _tunable("answer_bytes")
    temp_bytes: int = _tunable("temp_bytes")
    result_cache: bool = _tunable("result_cache")
    cpu_s: float = _tunable("cpu_s")
    memory_bytes: int = _tunable("memory_bytes")
    file_bytes: int = _tunable("file_bytes")
    processes: int = _tunable("processes")
    cores: int = _tunable("cores")
    nice: int = _tunable("nice")
    sandbox_read: tuple[str, ...] = _tunable("sandbox_read")
    sandbox_write: tuple[str, ...] = _tunable("sandbox_write")
    warmup: bool = _tunable("warmup")


@attrs.frozen(kw_only=True)
class NetworkAccess:
    """Where a server listens, and whom it lets in (:mod:`stapsrv.config.networks` has the forms).

    Attributes:
        listen: addresses; none for all of the host's.
        allow: networks; none for everybody.
        deny: networks; they go before those allowed.
    """

    listen: tuple[str, ...] = _tunable("listen")
    allow: tuple[str, ...] = _tunable("allow")
    deny: tuple[str, ...] = _tunable("deny")


@attrs.frozen(kw_only=True)
class HostDefaults:
    """What holds for a server whose settings do not say.

    Attributes:
        arch: the host's architecture, normalised.
        release: the release of its kernel.
        user: whom servers run as.
        log: where they log.
        tuning: what the global configuration sets for all of them.
    """

    arch: str
    release: str
    user: str
    log: Path
    tuning: Tuning = NOTHING_SET


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
        tuning: what is set of the table of tunables; :attr:`limits` has the defaults filled in.
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
    tuning: Tuning = attrs.field(default=NOTHING_SET, converter=Tuning)

    @cached_property
    def limits(self) -> Limits:
        """The bounds that hold for it."""
        return Limits(**_effective(self.tuning, Limits))

    @cached_property
    def reach(self) -> NetworkAccess:
        """Where it listens, and whom it lets in."""
        return NetworkAccess(**_effective(self.tuning, NetworkAccess))

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
            tuning=self.tuning.over(defaults.tuning),
        )

    def identity(self, defaults: HostDefaults) -> ServerSettings:
        """Return what makes a server the same as another: starting it while that one runs changes nothing.

        The nickname does not count, nor does the order of releases, ``-k`` (which no file records) or
        what can be tuned while it runs. Source: manual page, ``start``; PROTOCOL, the commands of the
        original.
        """
        resolved = self.resolved(defaults)
        return attrs.evolve(
            resolved,
            releases=tuple(sorted(resolved.releases)),
            nickname=None,
            keep_temporary=False,
            tuning=resolved.tuning.identifying(),
        )

    def served_releases(self) -> tuple[ServedRelease, ...]:
        """Find the build tree of each release.

        Raises:
            ConfigError: a release has no usable build tree on this host.
        """
        arch = self.arch or host_arch()
        return tuple(resolve_release(name, arch=arch) for name in self.releases or (host_release(),))


def total_compiles(tuning: Tuning) -> int:
    """Return how many requests may compile at the same time, over all servers of a process."""
    wanted: int | None = tuning.effective("total_compiles")
    return wanted or len(os.sched_getaffinity(0))


def _effective(tuning: Tuning, group: type[attrs.AttrsInstance]) -> dict[str, Any]:
    """Return the values of all fields of a class of tunables."""
    return {field.name: tuning.effective(field.name) for field in attrs.fields(group)}
