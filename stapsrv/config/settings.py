"""The settings of one server, as values with types."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import attrs

from stapsrv.config.compilation import LOCAL, Compilation
from stapsrv.config.kernels import ServedRelease, host_arch, host_release, normalise_arch, resolve_release
from stapsrv.config.kinds import LogFormat
from stapsrv.config.table import Description, Limits, NetworkAccess
from stapsrv.config.tuning import NOTHING_SET, Tuning

_NOT_IDENTIFYING = {row.attribute: row.default for row in Description.rows if not row.identifies}


@attrs.frozen(kw_only=True)
class HostDefaults:
    """The defaults of servers; ``tuning`` is of the global configuration."""

    arch: str = attrs.field(factory=host_arch)
    release: str = attrs.field(factory=host_release)
    user: str
    log: Path
    tuning: Tuning = NOTHING_SET


@attrs.frozen(kw_only=True)
class ServerSettings:
    """The settings of one server; None, or an empty tuple, for what the host decides.

    The fields are the rows of :class:`~stapsrv.config.table.Description`, ``-k``, and what is set of the
    other rows; :attr:`limits`, :attr:`access` and :attr:`compilation` have the defaults filled in.
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
    port: int = Description.port.default
    ssl: Path | None = None
    max_threads: int | None = None
    max_request_bytes: int = Description.max_request_bytes.default
    max_compressed_bytes: int = Description.max_compressed_bytes.default
    keep_temporary: bool = False
    tuning: Tuning = attrs.field(default=NOTHING_SET, converter=Tuning)

    @cached_property
    def limits(self) -> Limits:
        """The bounds of its requests."""
        return Limits(self.tuning)

    @cached_property
    def access(self) -> NetworkAccess:
        """The addresses it listens on, and the clients it admits."""
        return NetworkAccess(self.tuning)

    @cached_property
    def compilation(self) -> Compilation:
        """The engine that compiles its requests."""
        return Compilation(self.tuning)

    @property
    def compiles_here(self) -> bool:
        """Whether its requests are compiled on this host, which then needs the headers."""
        return self.compilation.engine == LOCAL

    @property
    def workers(self) -> int:
        """Requests that may compile at the same time."""
        if self.max_threads is None:
            return len(os.sched_getaffinity(0))
        return max(1, self.max_threads)

    def resolved(self, defaults: HostDefaults) -> ServerSettings:
        """Fill in all that depends on the host, and drop releases named twice.

        None named are the host's own, or all that the hosts have which compile in its place.
        """
        resolved = attrs.evolve(
            self,
            arch=self.arch or defaults.arch,
            releases=tuple(dict.fromkeys(self.releases)),
            user=self.user or defaults.user,
            log=self.log or defaults.log,
            tuning=self.tuning.over(defaults.tuning),
        )
        if not resolved.releases and resolved.compiles_here:
            resolved = attrs.evolve(resolved, releases=(defaults.release,))
        return resolved

    def identity(self, defaults: HostDefaults) -> ServerSettings:
        """Return what two servers have in common if they are the same one: to start one changes nothing then.

        The nickname does not count, nor do the order of releases, ``-k`` and what can be tuned while a server
        runs. Source: manual page, ``start``.
        """
        resolved = self.resolved(defaults)
        return attrs.evolve(
            resolved,
            **_NOT_IDENTIFYING,
            releases=tuple(sorted(resolved.releases)),
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
