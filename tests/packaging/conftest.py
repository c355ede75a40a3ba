"""What is installed, and a stap that has compiled before."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.machine import ROOT
from kit.real import PATIENCE_S, Installation, Stap

USER = "stap-server"
SCRIPT = 'probe begin { println("hello") exit() }'


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of ``make install``."""
    tree = tmp_path_factory.mktemp("installed")
    environ = os.environ | {"DESTDIR": str(tree), "PREFIX": "/usr"}
    subprocess.run([ROOT / "packaging" / "install"], env=environ, check=True, timeout=300)
    return tree


@pytest.fixture(scope="session")
def warm_stap() -> Iterator[Stap]:
    """A stap of the user stap-server's that has compiled :data:`SCRIPT` once."""
    with tempfile.TemporaryDirectory(prefix="stapsrv-warm.", dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        stap = Stap(installation=Installation.find(os.environ), directory=place / ".systemtap", place=place)
        for directory in (place, stap.temporary):
            shutil.chown(directory, USER, USER)
        own = ("-r", stap.installation.release, "-R", str(stap.installation.runtime))
        subprocess.run(
            [
                *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"),
                "stap",
                "-p4",
                *own,
                "-e",
                SCRIPT,
            ],
            cwd=place,
            env=stap.environ(),
            check=True,
            timeout=PATIENCE_S,
        )
        yield stap


@pytest.fixture
def home(warm_stap: Stap, tmp_path: Path) -> Callable[[str], Path]:
    """Make a home of stap-server's, with that stap's cache in it."""

    def make(name: str) -> Path:
        home = tmp_path / name
        subprocess.run(["cp", "-a", str(warm_stap.place), str(home)], check=True)
        return home

    return make
