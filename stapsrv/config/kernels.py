"""Kernel releases, their build trees, and architecture names."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import attrs

from stapsrv.errors import ConfigError
from stapsrv.system.trees import is_directory

MODULES = Path("/lib/modules")

_ARCH_RULES = (
    (re.compile(r"i.86"), "i386"),
    (re.compile(r"sun4u"), "sparc64"),
    (re.compile(r"arm64|aarch64"), "arm64"),
    (re.compile(r"arm.*|sa110"), "arm"),
    (re.compile(r"s390x"), "s390"),
    (re.compile(r"riscv64"), "riscv"),
    (re.compile(r"ppc.*"), "powerpc"),
    (re.compile(r"mips.*"), "mips"),
    (re.compile(r"sh[234].*"), "sh"),
)
_UTS_RELEASE = re.compile(r'^#define UTS_RELEASE "([^"]*)"', re.MULTILINE)
_RELEASE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~:@-]*")


@attrs.frozen
class ServedRelease:
    """One kernel release that a server compiles for; its name is what ``uname -r`` shows."""

    name: str
    arch: str
    # For stap's -r: the name, or the build tree that the operator gave.
    argument: str
    build_tree: Path

    @property
    def sysinfo(self) -> str:
        """``RELEASE ARCH``, as a client states it (PROTOCOL, the request zip)."""
        return f"{self.name} {self.arch}"


def normalise_arch(machine: str) -> str:
    """Return the kernel's own name for what ``uname -m`` says (its ARCH: ``i386``, ``arm64`` …)."""
    for pattern, name in _ARCH_RULES:
        if pattern.fullmatch(machine):
            return name
    return machine


def host_arch() -> str:
    """Return the normalised architecture of this host."""
    return normalise_arch(os.uname().machine)


def host_release() -> str:
    """Return the release of the kernel that runs."""
    return os.uname().release


def is_release_name(text: str) -> bool:
    """Whether ``text`` has the form of a kernel release: no slash, no blank, no leading dash or dot."""
    return _RELEASE.fullmatch(text) is not None


def installed_releases() -> list[str]:
    """Return the releases that have a build tree under ``/lib/modules``, by name (``-i``)."""
    # A tree that this user may not read does not exist for him.
    try:
        entries = sorted(entry.name for entry in MODULES.iterdir())
    except (FileNotFoundError, PermissionError):
        return []
    return [name for name in entries if os.path.isdir(MODULES / name / "build")]  # noqa: PTH112 - never raises


def resolve_release(argument: str, *, arch: str) -> ServedRelease:
    """Find the build tree that ``-r ARGUMENT`` means: a release, or the absolute path of a build tree.

    Raises:
        ConfigError: there is no build tree, or it was never configured.
    """
    if argument.startswith("/"):
        tree = Path(argument)
        return ServedRelease(_release_of(tree), arch, str(tree), tree)
    if not is_release_name(argument):
        remedy = "give a release such as 6.1.0-56-amd64, or the absolute path of a kernel build tree"
        raise ConfigError("is not a kernel release", where=f"-r {argument!r}", remedy=remedy)
    tree = MODULES / argument / "build"
    try:
        found = is_directory(tree)
    except OSError as exc:
        problem = f"{tree} cannot be looked at: {exc.strerror}"
        remedy = "let the server's user read it; a service manager may hide it (ProtectKernelModules=)"
        raise ConfigError(problem, where=f"-r {argument}", remedy=remedy) from exc
    if not found:
        remedy = f"install the headers of that kernel (Debian: linux-headers-{argument})"
        if others := installed_releases():
            remedy += f", or serve one that is installed: {', '.join(others)}"
        raise ConfigError(f"{tree} is missing", where=f"-r {argument}", remedy=remedy)
    return ServedRelease(argument, arch, argument, tree)


def _release_of(tree: Path) -> str:
    # utsrelease.h has the release that modules built there are made for, and so what clients run. Debian's
    # packages state another name in kernel.release, that of the upstream version; a tree that has not been
    # prepared as far as its headers has that one alone.
    compiled = tree / "include" / "generated" / "utsrelease.h"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = _UTS_RELEASE.search(compiled.read_text(encoding="ascii"))
        if found is not None and is_release_name(found[1]):
            return found[1]
    stated = tree / "include" / "config" / "kernel.release"
    try:
        name = stated.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not text"
        problem = f"no kernel release in {stated} ({reason})"
        remedy = "give a configured and prepared kernel build tree (make modules_prepare)"
        raise ConfigError(problem, where=f"-r {tree}", remedy=remedy) from exc
    if not is_release_name(name):
        raise ConfigError(f"{stated} holds no kernel release", where=f"-r {tree}")
    return name
