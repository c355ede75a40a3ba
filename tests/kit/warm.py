"""A stap that has compiled before, for tests: a first compile takes ten seconds and more."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .real import PATIENCE_S, Installation, Stap, serving

USER = "stap-server"
# Of two releases, and of one with -g, with the runtime of today and another.
_KEPT = 6
# The server's own compiles give way to everything else on the machine.
PLAN_S = 1200.0
SCRIPT = 'probe begin { println("hello") exit() }'


def warm_up(stap: Stap, releases: Sequence[str]) -> None:
    """Compile for these releases, with what stap found out about their kernels in an earlier run of tests.

    That is kept in the home of this process's user. stap itself sees whether it is of today's kernel and
    runtime.
    """
    with _kept_findings() as kept:
        _compile(stap, releases, kept)


def warm_up_servers(stap: Stap, releases: Sequence[str]) -> None:
    """Let stap and all servers of its user know these kernels, and servers have a plan for the first.

    A server takes what stap has found out for the first toolchain that it meets alone, and nothing that a
    client's compile finds out: without this, each compile of many tests would find out all of it. Of the
    processes of one run of the suite the first does it, and the others take a copy of all that it made.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    with _kept_findings() as kept:
        shared = kept / "shared" / str(run)
        if shared.exists():
            shutil.copytree(shared, stap.directory, dirs_exist_ok=True)
            return
        _compile(stap, releases, kept)
        _teach_servers(stap, releases)
        if run is not None:
            # Of a run before, or half made.
            shutil.rmtree(shared.parent, ignore_errors=True)
            new = shared.with_suffix(".new")
            shutil.copytree(stap.directory, new)
            new.rename(shared)


@contextlib.contextmanager
def _kept_findings() -> Iterator[Path]:
    """Hold the directory of what earlier runs and other processes found out; they wait meanwhile."""
    kept = Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".cache" / "stapsrv-tests"
    # A copy has keys in it.
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield kept


def _compile(stap: Stap, releases: Sequence[str], kept: Path) -> None:
    cache, old = stap.directory / "cache", kept / "cache"
    if old.exists():
        shutil.copytree(old, cache)
    before = _features(cache)
    # For -g stap finds them out, and keeps them, once more.
    for options in [("-r", releases[0], "-g"), *(("-r", release) for release in releases)]:
        ran = stap.local(*options, "-p4", "-e", "probe begin { exit() }")
        assert ran.status == 0, ran.stderr
    if _features(cache) != before:
        _keep(cache, old)


def _teach_servers(stap: Stap, releases: Sequence[str]) -> None:
    # From SystemTap 5.1 on others may write there, and servers take nothing from such a place.
    for path in (stap.directory / "cache").rglob("*"):
        path.chmod(path.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))
    options = [word for release in releases[1:] for word in ("-r", release)]
    with serving(stap, *options, "--prepared=yes") as server:
        server.log.wait(": Result cache on; ")
        for release in releases:
            ran = stap.via(server.port, "-p1", "-e", "probe begin { exit() }", release=release)
            assert ran.status == 0, ran.stderr
        toolchains = list((stap.directory / "server-toolchains").iterdir())
        (known,) = (each for each in toolchains if any(each.glob("*/stapconf_*")))
        for other in toolchains:
            if other != known:
                shutil.copytree(known, other, ignore=shutil.ignore_patterns("prepared"), dirs_exist_ok=True)
        ran = stap.via(server.port, "-p4", "-e", "probe begin { exit() }")
        assert ran.status == 0, ran.stderr
        server.log.wait("Found out the plan of kernel release", timeout_s=PLAN_S)


def copy_runtime(stap: Stap, runtime: Path) -> None:
    """Copy a warm stap's runtime, for a test that has stap find out a kernel's features from it.

    Each is a question to the compiler, a short source of the runtime's. Those that are known to be answered
    with yes are answered so by next to nothing in the copy: that halves the work.
    """
    shutil.copytree(stap.installation.runtime, runtime)
    known = [
        set(
            re.findall(
                "^#define STAPCONF_(.*) 1$", (stap.directory / "cache" / path).read_text(), re.MULTILINE
            )
        )
        for path in _features(stap.directory / "cache")
    ]
    for question in runtime.glob("linux/autoconf-*.c"):
        feature = question.stem.removeprefix("autoconf-").upper().replace("-", "_")
        if all(feature in features for features in known):
            question.write_text("int known;\n")


def _features(cache: Path) -> set[Path]:
    return {path.relative_to(cache) for path in cache.glob("*/stapconf_*.h")}


def _keep(cache: Path, target: Path) -> None:
    """Replace ``target`` by the newest features in a cache; one that is killed meanwhile leaves none."""
    shutil.rmtree(target, ignore_errors=True)
    newest = sorted(_features(cache), key=lambda path: (cache / path).stat().st_mtime)[-_KEPT:]
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        copy = Path(name) / "cache"
        for path in newest:
            (copy / path.parent).mkdir(parents=True)
            shutil.copy2(cache / path, copy / path)
        copy.rename(target)


@contextlib.contextmanager
def open_warm_stap() -> Iterator[Stap]:
    """Make a stap of :data:`USER`'s that has compiled for the newest release, for tests that root runs."""
    with tempfile.TemporaryDirectory(prefix="stapsrv-warm.", dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        stap = Stap(installation=Installation.find(os.environ), directory=place / ".systemtap", place=place)
        for directory in (place, stap.temporary):
            shutil.chown(directory, USER, USER)
        as_user = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups")
        subprocess.run(
            [*as_user, sys.executable, "-m", "kit.warm", str(place)],
            cwd=Path(__file__).parent.parent,
            check=True,
            timeout=PATIENCE_S,
        )
        yield stap


if __name__ == "__main__":
    place = Path(sys.argv[1])
    stap = Stap(installation=Installation.find(os.environ), directory=place / ".systemtap", place=place)
    warm_up(stap, stap.installation.releases[:1])
