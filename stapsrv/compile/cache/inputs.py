"""What of this host a result of stap's depends on, besides the request and the server's options.

These are the places that stap, make, the compiler and the linker were seen to look at (strace(1) of
SystemTap 4.8 on Linux 6.1): tapsets, runtime, the kernel's build tree with what it leads to, its modules,
symbol map and debugging information; the programs on the path, the compiler's own files, libraries; stap's
``rc`` file; the environment.
"""

from __future__ import annotations

import contextlib
import os
import re
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from stapsrv.compile.cache.cacheable import rc_is_known
from stapsrv.compile.cache.fingerprint import WatchedPath, stamp
from stapsrv.compile.cache.key import digest
from stapsrv.compile.engine.stap import StapProgram
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings

_COMPILERS = ("/usr/lib/gcc", "/usr/libexec/gcc", "/usr/lib/gcc-cross")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_DEBUG = ("/usr/lib/debug", "/var/cache/abrt-di")
# One of these changes with every package that is installed, removed or brought up to date.
_PACKAGES = (
    *("/var/lib/dpkg/status", "/var/lib/rpm/rpmdb.sqlite", "/usr/lib/sysimage/rpm/rpmdb.sqlite"),
    *("/var/lib/rpm/Packages", "/lib/apk/db/installed", "/var/lib/pacman/local"),
    *("/etc/ld.so.cache", "/etc/ld.so.preload"),
)
_LOCKDOWN = ("/sys/kernel/security/lockdown", "/sys/module/module/parameters/sig_enforce")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MODULES = Path("/proc/modules")

_INCLUDED_MAKEFILE = re.compile(r"^include\s+(/\S+)/Makefile\s*$", re.MULTILINE)

# By a path in one of these, make, the compiler or the dynamic linker are sent where nobody watches.
_WAYS = frozenset(
    {
        "COMPILER_PATH",
        "CPATH",
        "CROSS_COMPILE",
        "C_INCLUDE_PATH",
        "GCC_EXEC_PREFIX",
        "GNUMAKEFLAGS",
        "KAFLAGS",
    }
    | {"KBUILD_EXTRA_SYMBOLS", "KBUILD_OUTPUT", "KCFLAGS", "KCPPFLAGS", "LD_AUDIT", "LD_PRELOAD", "LLVM"}
    | {"MAKEFILES", "MAKEFLAGS"}
)

# Of the process and not of what it compiles; some differ with each start.
_IMMATERIAL = frozenset(
    {"_", "HOME", "HOSTNAME", "INVOCATION_ID", "JOURNAL_STREAM", "LOGNAME", "MAIL", "MANAGERPID", "OLDPWD"}
    | {"PWD", "RUNTIME_DIRECTORY", "SHLVL", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY", "STATE_DIRECTORY"}
    | {
        "SYSTEMD_EXEC_PID",
        "TERM",
        "TMPDIR",
        "USER",
        "XDG_RUNTIME_DIR",
        "XDG_SESSION_ID",
        "PYTEST_CURRENT_TEST",
    }
)


@attrs.frozen
class InputPaths:
    """The premises of one job.

    Attributes:
        tapsets: where scripts come from.
        means: what modules are built with, and from.
    """

    tapsets: tuple[WatchedPath, ...]
    means: tuple[WatchedPath, ...]

    @property
    def places(self) -> tuple[WatchedPath, ...]:
        """All of them."""
        return self.tapsets + self.means


@attrs.frozen
class Rc:
    """stap's ``rc`` file at one moment.

    Attributes:
        stamp: what tells it from what it was.
        is_known: whether all its options are such as results can depend on.
    """

    stamp: bytes
    is_known: bool


UNSEEN = Rc(b"unseen", is_known=False)


class HostInputs:
    """What holds for every job of this process.

    Args:
        stap: the translator.
        environ: the environment that it gets.
        directory: stap's own, ``$SYSTEMTAP_DIR``.
        contained: how requests are contained, which decides on what they see.

    Attributes:
        stap_cache: stap's own cache.
        rc: what :meth:`look_at_rc` returned last.
    """

    def __init__(
        self, stap: StapProgram, environ: Mapping[str, str], directory: Path, *, contained: str = ""
    ) -> None:
        self._stap = stap.path
        self._program = Path(os.path.realpath(stap.path))
        self._prefix = self._program.parent.parent
        self._data = self._prefix / "share" / "systemtap"
        self._environ = environ
        self._rc_file = directory / "rc"
        self.rc = UNSEEN
        self.stap_cache = directory / "cache"
        self._version = stap.version
        kept = sorted(f"{name}={value}" for name, value in environ.items() if name not in _IMMATERIAL)
        self._environment = digest(map(os.fsencode, (contained, *kept)))
        self._boot = _read(_BOOT_ID)
        # Now, while there are descriptors: Python reads a module of its own for that.
        self._multiarch = sysconfig.get_config_var("MULTIARCH")
        self._fault = self._find_fault()
        self._premises: dict[object, InputPaths] = {}

    @property
    def fault(self) -> str | None:
        """Why nothing can be known, in a word; or None."""
        # Another stap, by another link, has tapsets of its own; it is met at the next start.
        is_moved = os.path.realpath(self._stap) != str(self._program)
        return "program" if self._fault is None and is_moved else self._fault

    def premises(self, release: ServedRelease, settings: ServerSettings) -> InputPaths:
        """Return the premises of jobs for a release, on a server."""
        key = (release, settings.include, settings.runtime)
        found = self._premises.get(key)
        if found is None:
            found = self._premises[key] = InputPaths(
                tuple(dict.fromkeys(_places(self._tapsets(settings)))),
                tuple(dict.fromkeys(_places(self._means(release, settings)))),
            )
        return found

    def look_at_rc(self) -> Rc:
        """Return stap's ``rc`` file as it is; reads a user's file, whose file system may hang."""
        now = stamp(self._rc_file)
        if now == self.rc.stamp:
            return self.rc
        return Rc(now, is_known=rc_is_known(_read(self._rc_file).decode("utf-8", "replace")))

    def state(self, release: ServedRelease) -> bytes | None:
        """Return a digest of what is looked at anew each time; None if it is not known to suffice."""
        if not self.rc.is_known:
            return None
        parts = [self._environment, self.rc.stamp, self._version.encode(), stamp(self._program)]
        parts += map(stamp, _PACKAGES)
        if release.name == os.uname().release:
            # Its symbols may be read from the kernel that runs, and those of its modules.
            loaded = sorted(line.split(b" ", 1)[0] for line in _read(_MODULES).splitlines())
            parts += [self._boot, *loaded]
        return digest(parts)

    def _find_fault(self) -> str | None:
        if self._environ.get("DEBUGINFOD_URLS"):
            return "debuginfod"
        if any("/" in self._environ.get(name, "") for name in _WAYS):
            return "environment"
        if not (self._data / "tapset").is_dir() and "SYSTEMTAP_TAPSET" not in self._environ:
            return "tapsets"
        with contextlib.suppress(OSError), self._program.open("rb") as program:
            if program.read(4) == b"\x7fELF":
                return None
        return "program"

    def _tapsets(self, settings: ServerSettings) -> Iterator[str | None]:
        yield self._environ.get("SYSTEMTAP_TAPSET")
        yield str(self._data / "tapset")
        yield from settings.include
        home = self._environ.get("XDG_DATA_HOME") or f"{self._environ.get('HOME', '')}/.local/share"
        for directory in (home, *self._environ.get("XDG_DATA_DIRS", "").split(":")):
            yield f"{directory}/systemtap/tapset" if directory else None

    def _means(self, release: ServedRelease, settings: ServerSettings) -> Iterator[str | WatchedPath | None]:
        yield settings.runtime or self._environ.get("SYSTEMTAP_RUNTIME")
        yield str(self._data / "runtime")
        yield str(release.build_tree)
        yield from _sources(release.build_tree)
        # Where a client names its release, stap goes there instead.
        yield from _sources(Path("/lib/modules", release.name, "build"))
        yield f"/lib/modules/{release.name}"
        yield WatchedPath("/boot", below=False)
        # Beside an image, as beside a module.
        yield from ("/boot/.debug", "/boot/build")
        yield WatchedPath("/usr/src", below=False)
        yield from _DEBUG
        for directory in self._environ.get("SYSTEMTAP_DEBUGINFO_PATH", "").split(":"):
            yield directory.lstrip("+-")
        yield from _COMPILERS
        searched = (self._environ.get("PATH", os.defpath), self._environ.get("LD_LIBRARY_PATH", ""))
        for directory in ":".join(searched).split(":"):
            yield WatchedPath(directory, below=False) if directory.startswith("/") else None
        multiarch = self._multiarch
        for directory in (*_LIBRARIES, f"/usr/lib/{multiarch}", f"/lib/{multiarch}"):
            yield WatchedPath(directory, below=False)
        # There gcc looks first, for the assembler and its specs; and nm and ld load plugins.
        yield f"/usr/{multiarch}"
        yield from (f"{directory}/bfd-plugins" for directory in ("/usr/lib", f"/usr/lib/{multiarch}"))
        yield from _LOCKDOWN
        yield str(self._prefix / "libexec" / "systemtap")
        yield str(self._prefix / "lib" / "systemtap")


def _sources(build_tree: Path) -> Iterator[str]:
    """Return where the kernel's sources are, if its build tree only points there."""
    makefile = _read(build_tree / "Makefile").decode("utf-8", "replace")
    yield from _INCLUDED_MAKEFILE.findall(makefile)
    yield str(build_tree / "source")


def _places(named: Iterator[str | None] | Iterator[str | WatchedPath | None]) -> Iterator[WatchedPath]:
    for place in named:
        if isinstance(place, WatchedPath):
            yield place
        elif place and place.startswith("/"):
            # What ".." leads to is another place where a link comes before it.
            yield WatchedPath(place if ".." in place.split("/") else os.path.normpath(place))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
