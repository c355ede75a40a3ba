"""What stap needs of this host, found out and described: the view that one request gets.

Named are paths as people write them. What they stand for is looked up each time, links and all, so that a
contained program finds under each name what the host has there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from stapsrv.sandbox.mount_plan import Access, MountPlan, MountPoint, plan_mounts
from stapsrv.system.symlinks import Link, follow

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Programs, libraries, compilers, tapsets, kernel headers, debug information: the same for everybody."""
SYSTEM_FILES = (
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload"),
    *("/etc/localtime", "/etc/locale.alias", "/etc/selinux/config"),
    *("/sys/devices/system/cpu", "/sys/kernel/btf", "/sys/kernel/notes", "/sys/module"),
    *("/var/cache/debuginfod", "/var/cache/abrt-di"),
)
"""What the dynamic linker, the C library, and stap for the running kernel look at."""
NETWORK_FILES = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf"),
    *("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/ca-certificates", "/etc/pki"),
)
"""What fetching debug information takes beside."""
KERNEL_FILES = ("System.map", "config", "vmlinux", "vmlinuz")
"""Of a release, in /boot."""

_KEPT_VARIABLES = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_[A-Z]+|TZ|LD_LIBRARY_PATH|SYSTEMTAP_\w+|DEBUGINFOD_\w+"
    r"|XDG_CACHE_HOME|XDG_DATA_DIRS|CCACHE_\w+|SOURCE_DATE_EPOCH|KBUILD_\w+"
)
_PROXY_VARIABLES = re.compile(r"(https?|all|no)_proxy", re.IGNORECASE)
_NAMED_BY_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMTAP_TAPSET", "SYSTEMTAP_RUNTIME")
_INCLUDED_MAKEFILE = re.compile(r"^(?:-?include|MAKEARGS\s*:?=\s*-C)\s+(/\S+)", re.MULTILINE)
_MAKEFILE_BYTES = 4096
_INSTALLED = ("bin", "lib", "lib64", "libexec", "share/systemtap", "share/locale")
"""What an installed SystemTap has below its prefix."""


@attrs.frozen(kw_only=True)
class SandboxPolicy:
    """What one server's requests need, beside what every one needs.

    Attributes:
        stap: the translator.
        environ: the server's environment.
        home: its user's home directory.
        build_trees: of the kernels that it serves.
        releases: their names.
        read: further paths: its tapsets and runtime, what the operator adds.
        write: further paths that requests may change.
        secret: what no request may see, even where it lies in something that is shown.
    """

    stap: Path
    environ: Mapping[str, str]
    home: Path
    build_trees: tuple[Path, ...]
    releases: tuple[str, ...]
    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    secret: tuple[Path, ...] = ()

    @property
    def network(self) -> bool:
        """Whether stap is to fetch debug information (debuginfod)."""
        return bool(self.environ.get("DEBUGINFOD_URLS", "").strip())

    @property
    def systemtap_directory(self) -> Path:
        """The directory of stap, as stap finds it."""
        return Path(self.environ.get("SYSTEMTAP_DIR") or self.home / ".systemtap").absolute()

    @property
    def stap_cache(self) -> Path:
        """What stap keeps from one request to the next."""
        return self.systemtap_directory / "cache"


def request_view(needs: SandboxPolicy, directory: Path, *, start: Path | None = None) -> MountPlan:
    """Describe what a request sees; reads some directories and links, for a millisecond.

    Args:
        needs: of the server.
        directory: the request's own.
        start: where stap starts; by default there.
    """
    wishes = [
        *((path, Access.READ) for path in _shown(needs)),
        *((path, Access.WRITE) for path in (*needs.write, *_caches(needs))),
        *((path, Access.EMPTY_DIRECTORY) for path in (needs.systemtap_directory, *needs.secret)),
        # Said last: what is kept from one request to the next, and the request itself, are there in any case.
        (needs.systemtap_directory / "rc", Access.READ),
        (needs.stap_cache, Access.WRITE),
        (directory, Access.WRITE),
    ]
    return _view(wishes, start or directory, network=needs.network)


def tool_view(read: Iterable[Path], directory: Path) -> MountPlan:
    """Describe what a program of the host sees that needs little else.

    Args:
        read: what it reads.
        directory: what it changes, and where it starts.
    """
    shown = (*map(Path, (*SYSTEM, *SYSTEM_FILES, "/etc/ssl/openssl.cnf")), *read)
    wishes = [*((path, Access.READ) for path in shown), (directory, Access.WRITE)]
    return _view(wishes, directory, network=False)


def _view(wishes: Iterable[tuple[Path, Access]], start: Path, *, network: bool) -> MountPlan:
    """Look up what the wishes stand for."""
    places: list[MountPoint] = []
    links: list[Link] = []
    for path, access in wishes:
        real, way = follow(path)
        if real is None:
            continue
        hidden_file = access is Access.EMPTY_DIRECTORY and not real.is_dir()
        places.append(MountPoint(real, Access.EMPTY_FILE if hidden_file else access))
        if not access.is_hidden:
            links += way
    return plan_mounts(places, links, directory=start, network=network)


def make_caches(needs: SandboxPolicy) -> None:
    """Make the directories that stap would make itself, were it not contained.

    Raises:
        OSError: one cannot be made.
    """
    needs.stap_cache.mkdir(parents=True, exist_ok=True)
    if needs.network and not any(path.is_dir() for path in _debuginfo_caches(needs)):
        next(_debuginfo_caches(needs)).mkdir(parents=True, exist_ok=True)


def contained_environment(
    environ: Mapping[bytes, bytes], *, temporary: Path, network: bool
) -> dict[bytes, bytes]:
    """Return what a contained program gets of ``environ``.

    Args:
        environ: the whole.
        temporary: its ``TMPDIR``.
        network: whether it is on the network, and so in need of proxies.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if _KEPT_VARIABLES.fullmatch(text := os.fsdecode(name))
        or (network and _PROXY_VARIABLES.fullmatch(text))
    }
    return kept | {b"TMPDIR": os.fsencode(temporary)}


def _shown(needs: SandboxPolicy) -> Iterator[Path]:
    """Give what can be read."""
    yield from map(Path, (*SYSTEM, *SYSTEM_FILES, *(NETWORK_FILES if needs.network else ())))
    yield from _named_by(needs.environ)
    yield needs.stap
    if needs.stap.parent.name == "bin":
        yield from (needs.stap.parent.parent / name for name in _INSTALLED)
    for release in needs.releases:
        yield from (Path("/boot", f"{name}-{release}") for name in KERNEL_FILES)
        yield Path("/lib/modules", release)
    for tree in needs.build_trees:
        yield from _build_tree(tree)
    yield from needs.read
    yield from _debuginfo_caches(needs)


def _caches(needs: SandboxPolicy) -> Iterator[Path]:
    if needs.network:
        yield from _debuginfo_caches(needs)


def _debuginfo_caches(needs: SandboxPolicy) -> Iterator[Path]:
    """Give where debuginfod's client keeps what it fetched; the first that exists is the one that it uses."""
    named = needs.environ.get("DEBUGINFOD_CACHE_PATH")
    if named:
        yield Path(named)
        return
    base = needs.environ.get("XDG_CACHE_HOME")
    yield (Path(base) if base else needs.home / ".cache") / "debuginfod_client"
    yield needs.home / ".debuginfod_client_cache"


def _named_by(environ: Mapping[str, str]) -> Iterator[Path]:
    """Give the absolute paths in the variables that stap and the linker look at."""
    for variable in _NAMED_BY_VARIABLES:
        yield from _absolute(environ.get(variable, "").split(":"))
    yield from _absolute(
        entry.lstrip("+-") for entry in environ.get("SYSTEMTAP_DEBUGINFO_PATH", "").split(":")
    )
    for directory in _absolute(environ.get("XDG_DATA_DIRS", "").split(":")):
        yield directory / "systemtap"


def _absolute(entries: Iterable[str]) -> Iterator[Path]:
    return (Path(entry) for entry in entries if entry.startswith("/") and entry.strip("/"))


def _build_tree(tree: Path) -> Iterator[Path]:
    """Give a kernel's build tree, and those that it leads to: by links, or by a line of its Makefile."""
    yield tree
    yield tree.parent / "source"  # beside /lib/modules/RELEASE/build
    with contextlib.suppress(OSError):
        yield from (entry for entry in tree.iterdir() if entry.is_symlink())
    with contextlib.suppress(OSError):
        with (tree / "Makefile").open("rb") as makefile:
            beginning = makefile.read(_MAKEFILE_BYTES).decode("utf-8", "replace")
        for named in _INCLUDED_MAKEFILE.findall(beginning):
            path = Path(named)
            yield path.parent if path.name.startswith("Makefile") else path
