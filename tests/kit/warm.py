"""A stap that has compiled before, for tests that root runs with servers of another user."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .real import PATIENCE_S, Installation, Stap

USER = "stap-server"
SCRIPT = 'probe begin { println("hello") exit() }'


@contextlib.contextmanager
def open_warm_stap() -> Iterator[Stap]:
    """Make a stap of :data:`USER`'s that has compiled :data:`SCRIPT` once, for the newest release."""
    with tempfile.TemporaryDirectory(prefix="stapsrv-warm.", dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        stap = Stap(installation=Installation.find(os.environ), directory=place / ".systemtap", place=place)
        for directory in (place, stap.temporary):
            shutil.chown(directory, USER, USER)
        as_user = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups")
        own = ("-r", stap.installation.release, "-R", str(stap.installation.runtime))
        subprocess.run(
            [*as_user, "stap", "-p4", *own, "-e", SCRIPT],
            cwd=place,
            env=stap.environ(),
            check=True,
            timeout=PATIENCE_S,
        )
        yield stap
