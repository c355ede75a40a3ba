"""The inputs of a compile besides the request and the server's options: paths, packages, environment.

They are what stap, make, the compiler and the linker were seen to read (strace(1) of SystemTap 4.8, 5.1 and
5.6, with Linux 6.1, 6.12 and 7.2): tapsets, runtime, the kernel's build tree with all that it leads to, its
modules, symbol map and debugging information; the programs on the path, the compiler's own files, libraries,
locales; stap's ``rc`` file; the environment.
"""

from __future__ import annotations

import contextlib
import os
import re
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from stapsrv.compile.cache.cacheable import is_rc_cacheable
from stapsrv.compile.cache.fingerprint import WatchedPath, stamp
from stapsrv.compile.cache.key import digest
from stapsrv.compile.engine.stap import StapProgram
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings

_COMPILERS = ("/usr/lib/gcc", "/usr/libexec/gcc", "/usr/lib/gcc-cross")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_DEBUG = (
    *("/usr/lib/debug", "/usr/lib/.build-id", "/var/cache/abrt-di"),
    # stap runs it where it is, to have debugging information installed.
    "/usr/libexec/abrt-action-install-debuginfo-to-abrt-cache",
)
# make looks there for each makefile that it includes by a relative path; and the compiler, where the kernel's
# build asks what it is capable of, for <stdc-predef.h>.
_INCLUDED = ("/usr/gnu/include", "/usr/local/include", "/usr/include")
# Of what the programs print; translations come with packages.
_LOCALES = "/usr/lib/locale"
# One of these changes with every package that is installed, removed or brought up to date.
_PACKAGES = (
    *("/var/lib/dpkg/status", "/var/lib/rpm/rpmdb.sqlite", "/usr/lib/sysimage/rpm/rpmdb.sqlite"),
    *("/var/lib/rpm/Packages", "/lib/apk/db/installed", "/var/lib/pacman/local"),
    *("/etc/ld.so.cache", "/etc/ld.so.preload"),
)
# Whether the kernel that runs takes unsigned modules. These files have no times, and report no change.
_LOCKDOWN = (
    *("/sys/kernel/security/lockdown", "/sys/kernel/security/securelevel"),
    "/sys/module/module/parameters/sig_enforce",
)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MODULES = Path("/proc/modules")

_INCLUDED_MAKEFILE = re.compile(r"^include\s+(/\S+)/Makefile\s*$", re.MULTILINE)

# A path in one of these sends make, the compiler or the dynamic linker to files that are not watched.
_PATH_VARIABLES = """
    COMPILER_PATH CPATH CROSS_COMPILE C_INCLUDE_PATH GCC_EXEC_PREFIX GNUMAKEFLAGS KAFLAGS KBUILD_EXTRA_SYMBOLS
    KBUILD_OUTPUT KCFLAGS KCPPFLAGS LD_AUDIT LD_PRELOAD LLVM MAKEFILES MAKEFLAGS
"""
# Of the process and not of what it compiles; some differ with each start.
IGNORED_VARIABLES = """
    _ HOME HOSTNAME INVOCATION_ID JOURNAL_STREAM LOGNAME MAIL MANAGERPID OLDPWD PWD RUNTIME_DIRECTORY SHLVL
    SSH_CLIENT SSH_CONNECTION SSH_TTY STATE_DIRECTORY SYSTEMD_EXEC_PID TERM TMPDIR USER XDG_RUNTIME_DIR
    XDG_SESSION_ID PYTEST_CURRENT_TEST
"""


@attrs.frozen
class InputPaths:
    """The paths that a compile depends on: those of tapsets, and what modules are built with and from."""

    tapsets: tuple[WatchedPath, ...]
    toolchain: tuple[WatchedPath, ...]

    @property
    def all(self) -> tuple[WatchedPath, ...]:
        """Both together."""
        return self.tapsets + self.toolchain


@attrs.frozen
class RcFile:
    """stap's ``rc`` file at one moment: its stamp, and whether results may depend on all its options."""

    stamp: bytes
    is_cacheable: bool


UNREAD_RC = RcFile(b"unread", is_cacheable=False)


class HostInputs:
    """The inputs that every compile of this process shares.

    ``directory`` is ``$SYSTEMTAP_DIR``. ``contained`` says how requests are contained, which decides on what
    they see.
    """

    def __init__(
        self, stap: StapProgram, environ: Mapping[str, str], directory: Path, *, contained: str = ""
    ) -> None:
        self._stap = stap.path
        self._program = Path(os.path.realpath(stap.path))
        self._prefix = self._program.parent.parent
        self._data = self._prefix / "share" / "systemtap"
        self._environ = environ
        self._rc_path = directory / "rc"
        # What read_rc() returned last, as the caller sets it.
        self.rc = UNREAD_RC
        self._version = stap.version
        ignored = IGNORED_VARIABLES.split()
        counted = sorted(f"{name}={value}" for name, value in environ.items() if name not in ignored)
        self._environment = digest(map(os.fsencode, (contained, *counted)))
        self._boot = _read(_BOOT_ID)
        # Now, while there are descriptors: Python reads a module of its own for that.
        self._multiarch = sysconfig.get_config_var("MULTIARCH")
        self._fault = self._find_fault()
        self._paths: dict[object, InputPaths] = {}

    @property
    def fault(self) -> str | None:
        """Why no result of this host can be cached, in a word; or None."""
        # Another stap, by another link, has tapsets of its own; they are found at the next start.
        is_moved = os.path.realpath(self._stap) != str(self._program)
        return "program" if self._fault is None and is_moved else self._fault

    def paths(self, release: ServedRelease, settings: ServerSettings) -> InputPaths:
        """Return the paths that compiles for a release depend on, on a server with these settings."""
        key = (release, settings.include, settings.runtime)
        if key not in self._paths:
            self._paths[key] = InputPaths(
                tuple(dict.fromkeys(_watched(self._tapsets(settings)))),
                tuple(dict.fromkeys(_watched(self._toolchain(release, settings)))),
            )
        return self._paths[key]

    def read_rc(self) -> RcFile:
        """Return stap's ``rc`` file as it is; it may block, since a user's file system may hang."""
        now = stamp(self._rc_path)
        if now == self.rc.stamp:
            return self.rc
        return RcFile(now, is_cacheable=is_rc_cacheable(_read(self._rc_path).decode("utf-8", "replace")))

    def state_digest(self, release: ServedRelease) -> bytes | None:
        """Return a digest of all that is read anew for each request; None if ``rc`` is not cacheable."""
        if not self.rc.is_cacheable:
            return None
        parts = [self._environment, self.rc.stamp, self._version.encode(), stamp(self._program)]
        parts += map(stamp, _PACKAGES)
        parts += [_read(Path(path)) for path in _LOCKDOWN]
        if release.name == os.uname().release:
            # Its symbols may be read from the kernel that runs, and those of its modules.
            loaded = sorted(line.split(b" ", 1)[0] for line in _read(_MODULES).splitlines())
            parts += [self._boot, *loaded]
        return digest(parts)

    def _find_fault(self) -> str | None:
        if self._environ.get("DEBUGINFOD_URLS"):
            return "debuginfod"
        if any("/" in self._environ.get(name, "") for name in _PATH_VARIABLES.split()):
            return "environment"
        if not (self._data / "tapset").is_dir() and "SYSTEMTAP_TAPSET" not in self._environ:
            return "tapsets"
        # A script around stap may send it anywhere.
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

    def _toolchain(
        self, release: ServedRelease, settings: ServerSettings
    ) -> Iterator[str | WatchedPath | None]:
        yield settings.runtime or self._environ.get("SYSTEMTAP_RUNTIME")
        yield from (str(self._data / "runtime"), str(release.build_tree))
        yield from kernel_sources(release.build_tree)
        # Where a client names its release, stap reads that tree instead.
        yield from kernel_sources(Path("/lib/modules", release.name, "build"))
        yield f"/lib/modules/{release.name}"
        yield WatchedPath("/boot", recursive=False)
        # Beside an image, as beside a module.
        yield from ("/boot/.debug", "/boot/build")
        yield WatchedPath("/usr/src", recursive=False)
        yield from _DEBUG
        for directory in self._environ.get("SYSTEMTAP_DEBUGINFO_PATH", "").split(":"):
            yield directory.lstrip("+-")
        yield from _COMPILERS
        searched = (self._environ.get("PATH", os.defpath), self._environ.get("LD_LIBRARY_PATH", ""))
        for directory in ":".join(searched).split(":"):
            yield WatchedPath(directory, recursive=False) if directory.startswith("/") else None
        libraries = f"/usr/lib/{self._multiarch}"
        for directory in (*_LIBRARIES, libraries, f"/lib/{self._multiarch}"):
            yield WatchedPath(directory, recursive=False)
        for directory in _INCLUDED:
            yield WatchedPath(directory, recursive=False)
            yield WatchedPath(f"{directory}/{self._multiarch}", recursive=False)
        # gcc searches it first for the assembler and its specs; nm and ld load plugins.
        yield from (f"/usr/{self._multiarch}", "/usr/lib/bfd-plugins", f"{libraries}/bfd-plugins")
        yield from (_LOCALES, f"{libraries}/gconv")
        yield from (f"{self._prefix}/libexec/systemtap", f"{self._prefix}/lib/systemtap")


def kernel_sources(build_tree: Path) -> Iterator[str]:
    """Return where the kernel's sources are, if its build tree only refers to them."""
    makefile = _read(build_tree / "Makefile").decode("utf-8", "replace")
    yield from _INCLUDED_MAKEFILE.findall(makefile)
    yield str(build_tree / "source")


def _watched(paths: Iterator[str | None] | Iterator[str | WatchedPath | None]) -> Iterator[WatchedPath]:
    for path in paths:
        if isinstance(path, WatchedPath):
            yield path
        elif path and path.startswith("/"):
            # After a symbolic link ".." leads elsewhere than its text says.
            yield WatchedPath(path if ".." in path.split("/") else os.path.normpath(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
