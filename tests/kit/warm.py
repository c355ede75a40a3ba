"""A stap that has compiled before, for whoever runs tests: a first compile takes ten seconds and more."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .real import PATIENCE_S, Installation, Stap

USER = "stap-server"
SCRIPT = 'probe begin { println("hello") exit() }'


def warm_up(stap: Stap) -> None:
    """Compile :data:`SCRIPT` for the newest release, with what stap found out in an earlier run of tests.

    That is in the home of this process's user. stap itself sees whether it is of today's kernel and runtime.
    """
    kept = Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".cache" / "stapsrv-tests"
    kept.mkdir(parents=True, exist_ok=True)
    cache = stap.directory / "cache"
    # One run of the suite is several processes, which wait for the first.
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (kept / "cache").exists():
            shutil.copytree(kept / "cache", cache)
        before = _features(cache)
        ran = stap.local("-p4", "-e", SCRIPT)
        assert ran.status == 0, ran.stderr
        if _features(cache) != before:
            with tempfile.TemporaryDirectory(dir=kept) as name:
                new = Path(name) / "new"
                for path in _features(cache) - before:
                    (new / path.parent).mkdir(parents=True)
                    shutil.copy2(cache / path, new / path)
                if (kept / "cache").exists():
                    (kept / "cache").rename(Path(name) / "old")
                new.rename(kept / "cache")


def _features(cache: Path) -> set[Path]:
    return {path.relative_to(cache) for path in cache.glob("*/stapconf_*.h")}


@contextlib.contextmanager
def open_warm_stap() -> Iterator[Stap]:
    """Make a stap of :data:`USER`'s that has compiled :data:`SCRIPT`, for tests that root runs."""
    with tempfile.TemporaryDirectory(prefix="stapsrv-warm.", dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        stap = Stap(installation=Installation.find(os.environ), directory=place / ".systemtap", place=place)
        for directory in (place, stap.temporary):
            shutil.chown(directory, USER, USER)
        as_user = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups")
        subprocess.run(
            [*as_user, sys.executable, "-m", "kit.warm", str(stap.directory), str(place)],
            cwd=Path(__file__).parent.parent,
            check=True,
            timeout=PATIENCE_S,
        )
        yield stap


if __name__ == "__main__":
    warm_up(
        Stap(installation=Installation.find(os.environ), directory=Path(sys.argv[1]), place=Path(sys.argv[2]))
    )
