"""The files of this host that stap needs: the policy of a server, and a request's mounts.

The policy names paths as people write them. They are looked up for each request, links and all, so that a
contained program finds under each name what the host has there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from stapsrv.config.kernels import ServedRelease
from stapsrv.sandbox.mount_plan import Access, MountPlan, plan_mounts
from stapsrv.system.symlinks import Link, follow

# Programs, libraries, compilers, tapsets, kernel headers, debug information: the same for everybody.
SYSTEM = ("/usr", "/opt", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# What the dynamic linker, the C library, and stap for the running kernel read.
SYSTEM_FILES = (
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload"),
    *("/etc/localtime", "/etc/locale.alias", "/etc/selinux/config"),
    *("/sys/devices/system/cpu", "/sys/kernel/btf", "/sys/kernel/notes", "/sys/module"),
    *("/var/cache/debuginfod", "/var/cache/abrt-di"),
)
# What debuginfod's client needs beside: names and certificates.
NETWORK_FILES = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf"),
    *("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/ca-certificates", "/etc/pki"),
)
# Of a release, in /boot.
KERNEL_FILES = ("System.map", "config", "vmlinux", "vmlinuz")

_PATH_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMTAP_TAPSET", "SYSTEMTAP_RUNTIME")
_INCLUDED_MAKEFILE = re.compile(r"^(?:-?include|MAKEARGS\s*:?=\s*-C)\s+(/\S+)", re.MULTILINE)
_MAKEFILE_BYTES = 4096
# What an installed SystemTap has below its prefix.
_INSTALLED = ("bin", "lib", "lib64", "libexec", "share/systemtap", "share/locale")


@attrs.frozen(kw_only=True)
class SandboxPolicy:
    """The files that requests of one server may see and change, beside those of every request."""

    stap: Path
    environ: Mapping[str, str]
    home: Path
    release: ServedRelease | None = None
    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    # Hidden even where they lie in something that is shown.
    secret: tuple[Path, ...] = ()
    # Shown even there.
    known: tuple[Path, ...] = ()

    @property
    def network(self) -> bool:
        """Whether stap is to fetch debug information (debuginfod)."""
        return bool(self.environ.get("DEBUGINFOD_URLS", "").strip())

    @property
    def systemtap_directory(self) -> Path:
        """The directory of stap, as stap finds it."""
        return Path(self.environ.get("SYSTEMTAP_DIR") or self.home / ".systemtap").absolute()


def request_mounts(policy: SandboxPolicy, directory: Path, *, cwd: Path | None = None) -> MountPlan:
    """Plan the mounts of the request in ``directory``, which is also the default of ``cwd``; takes 1 ms."""
    wanted = [
        *((path, Access.READ) for path in _readable(policy)),
        *((path, Access.WRITE) for path in policy.write),
        *((path, Access.WRITE) for path in (_debuginfo_caches(policy) if policy.network else ())),
        *((path, Access.EMPTY_DIRECTORY) for path in (policy.systemtap_directory, *policy.secret)),
        # The last of several counts: these are there whatever the policy hides.
        (policy.systemtap_directory / "rc", Access.READ),
        *((path, Access.READ) for path in policy.known),
        (directory, Access.WRITE),
    ]
    return _resolve(wanted, cwd or directory, network=policy.network)


def tool_mounts(read: Iterable[Path], directory: Path) -> MountPlan:
    """Plan the mounts of a program that reads ``read`` and the system, and works in ``directory``."""
    shown = (*map(Path, (*SYSTEM, *SYSTEM_FILES, "/etc/ssl/openssl.cnf")), *read)
    return _resolve(
        [*((path, Access.READ) for path in shown), (directory, Access.WRITE)], directory, network=False
    )


def _resolve(wanted: Iterable[tuple[Path, Access]], cwd: Path, *, network: bool) -> MountPlan:
    # The last of several at one path counts.
    mounts: dict[Path, Access] = {}
    links: list[Link] = []
    for path, access in wanted:
        real, followed = follow(path)
        if real is None:
            continue
        hidden_file = access is Access.EMPTY_DIRECTORY and not real.is_dir()
        mounts[real] = Access.EMPTY_FILE if hidden_file else access
        if not access.is_hidden:
            links += followed
    return plan_mounts(mounts, links, directory=cwd, network=network)


def make_caches(policy: SandboxPolicy) -> None:
    """Make the cache that debuginfod's client would make itself, were it not contained; may raise OSError."""
    if policy.network and not any(path.is_dir() for path in _debuginfo_caches(policy)):
        next(_debuginfo_caches(policy)).mkdir(parents=True, exist_ok=True)


def _readable(policy: SandboxPolicy) -> Iterator[Path]:
    yield from map(Path, (*SYSTEM, *SYSTEM_FILES, *(NETWORK_FILES if policy.network else ())))
    yield from _paths_in(policy.environ)
    yield policy.stap
    if policy.stap.parent.name == "bin":
        yield from (policy.stap.parent.parent / name for name in _INSTALLED)
    if policy.release is not None:
        yield from (Path("/boot", f"{name}-{policy.release.name}") for name in KERNEL_FILES)
        yield Path("/lib/modules", policy.release.name)
        yield from _build_tree(policy.release.build_tree)
    yield from policy.read
    yield from _debuginfo_caches(policy)


def _debuginfo_caches(policy: SandboxPolicy) -> Iterator[Path]:
    # debuginfod's client uses the first of them that exists.
    named = policy.environ.get("DEBUGINFOD_CACHE_PATH")
    if named:
        yield Path(named)
        return
    base = policy.environ.get("XDG_CACHE_HOME")
    yield (Path(base) if base else policy.home / ".cache") / "debuginfod_client"
    yield policy.home / ".debuginfod_client_cache"


def _paths_in(environ: Mapping[str, str]) -> Iterator[Path]:
    for variable in _PATH_VARIABLES:
        yield from _absolute(environ.get(variable, "").split(":"))
    # A sign before an entry says how its checksums count.
    debuginfo = environ.get("SYSTEMTAP_DEBUGINFO_PATH", "").split(":")
    yield from _absolute(entry.lstrip("+-") for entry in debuginfo)
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
    # A tree that was made with O= has little more than a Makefile that includes the source's.
    with contextlib.suppress(OSError):
        with (tree / "Makefile").open("rb") as makefile:
            beginning = makefile.read(_MAKEFILE_BYTES).decode("utf-8", "replace")
        for named in _INCLUDED_MAKEFILE.findall(beginning):
            path = Path(named)
            yield path.parent if path.name.startswith("Makefile") else path
