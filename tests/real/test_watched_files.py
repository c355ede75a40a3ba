"""What the real stap, make and compiler look at on a host is watched wherever the result may be stored."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from kit.real import PATIENCE_S, Stap
from kit.tracing import Watched, trace

from stapsrv.compile.cache.cacheable import request_uncacheable_reason
from stapsrv.compile.cache.inputs import HostInputs, InputPaths
from stapsrv.compile.cache.script_scan import scan_tapsets
from stapsrv.compile.engine.stap import StapProgram
from stapsrv.compile.protocol.options import parse_options
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.config.kernels import ServedRelease, host_release
from stapsrv.config.settings import ServerSettings

# What no result depends on, and what is read anew for each request; each with the reason.
ALLOWED = {
    "part of the key of each request": r"/etc/ld\.so\.(cache|preload)"
    r"|/sys/kernel/security/(lockdown|securelevel)|/sys/module/module/parameters/sig_enforce",
    "translations come with packages, whose database is part of the key": r"/usr/share/locale/.*",
    "the processes of the compile": r"/proc|/proc/(self|\d+)(/.*)?",
    "of the C library, on how to allot memory": r"/proc/sys/vm/overcommit_memory",
    "devices": r"/dev(/null(\.gch)?)?",
    "how many processors there are, for make's jobs": r"/sys/devices/system/cpu/online|/proc/(mounts|cpuinfo)"
    r"|/sys/fs/cgroup(/.*)?",
    "labels of new files": r"/proc/filesystems|/selinux|/sys/fs/selinux|/etc/selinux/config",
    "for the network, which a stored result has not used": r"/etc/gnutls/config",
    "the time in stap's own log of its cache": r"/etc/localtime",
    "make looks there for the first step of each path": r"/",
    "the shell takes sed's expression in a makefile of the kernel's for a pattern": r"/\^arm64.*",
}

# Where a compile is for the kernel that runs, its boot and its modules are part of the key.
RUNNING = r"/proc/(kallsyms|modules)|/sys/kernel/notes|/sys/module/.*"

CASES = {
    "all passes": ("-p4", "-e", "probe begin { println(4801) exit() }"),
    "all passes, netfilter": ("-p4", "-e", "probe netfilter.ip.pre_routing { println(saddr) }"),
    "types of a header": (
        "-p3",
        "-e",
        '@define number(inode) %( @cast(@inode, "inode", "kernel<linux/fs.h>")->i_ino %)\n'
        "probe begin { println(@number(0)) }",
    ),
    "backtrace with a module's symbols": (
        "-p3",
        "-d",
        "ext4",
        "-e",
        "probe timer.profile { print_backtrace() }",
    ),
}


@attrs.frozen
class Compile:
    """The files that a compile looked for and nothing watches, and why its result may not be stored."""

    unwatched: tuple[str, ...]
    uncacheable: str | None


@pytest.fixture(scope="module")
def installed() -> StapProgram:
    return StapProgram(Path("/usr/bin/stap"), "of this host")


@pytest.fixture
def compiling(stap: Stap, installed: StapProgram, tmp_path: Path) -> Callable[..., Compile]:
    """Compile with stap's command line as the server has it, and see what that looks at."""
    release = stap.installation.release
    served = ServedRelease(release, os.uname().machine, release, Path("/lib/modules", release, "build"))
    settings = ServerSettings(runtime=str(stap.installation.runtime))
    inputs = HostInputs(installed, stap.environ(), stap.directory)
    paths: InputPaths = inputs.paths(served, settings)
    own = tuple(str(path) for path in (stap.directory, stap.place, tmp_path))
    allowed = "|".join((*ALLOWED.values(), *([RUNNING] if release == host_release() else [])))

    def is_own(path: str) -> bool:
        path = os.path.normpath(path)
        return any(
            f"{directory}/".startswith(f"{path}/") or path.startswith(f"{directory}/") for directory in own
        )

    def run(*arguments: str) -> Compile:
        assert inputs.fault is None
        command = ["stap", "-r", release, "-R", settings.runtime or "", *arguments]
        ran, looks = trace(
            command, log=tmp_path / "log", cwd=stap.place, env=stap.environ(), timeout_s=PATIENCE_S
        )
        assert ran.returncode == 0, ran.stderr
        # A module that stap has in its cache would show nothing.
        assert "-p4" not in arguments or any(look.path.endswith("/cc1") for look in looks)
        watched = Watched(paths.all)
        unwatched = {
            look.path
            for look in looks
            if not is_own(look.path) and re.fullmatch(allowed, look.path) is None and not watched.covers(look)
        }
        stored = tuple(os.fsencode("-p4" if argument == "-p3" else argument) for argument in arguments)
        request = CompileRequest(release=release, arch=served.arch, arguments=stored)
        names = scan_tapsets(paths.tapsets)
        reason = request_uncacheable_reason(request, parse_options(stored), names)
        return Compile(tuple(sorted(unwatched)), reason)

    return run


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_a_result_that_may_be_stored_depends_on_watched_files_alone(compiling, arguments):
    assert compiling(*arguments) == Compile((), None)


def test_a_result_that_depends_on_other_files_may_not_be_stored(compiling):
    """Which shows as well that what nothing watches is seen here."""
    found = compiling("-p3", "-e", 'probe begin { println(@cast(0, "timespec", "<time.h>")->tv_sec) }')
    assert found.uncacheable == "header"
    assert any(path.startswith("/usr/include/") and "/bits/" in path for path in found.unwatched), found


def test_a_result_with_the_symbols_of_the_kernel_that_runs_may_not_be_stored(compiling):
    """Not every version of stap reads them for another release."""
    found = compiling("-p3", "-d", "kernel", "-e", "probe timer.profile { print_backtrace() }")
    assert found.uncacheable == "option"
    assert set(found.unwatched) <= {"/proc/kallsyms"}
