"""What is installed, and a stap that has compiled before."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.machine import ROOT
from kit.real import Stap

# They want images, which packaging/test-image builds before it runs them.
collect_ignore = [] if "STAPSRV_IMAGES" in os.environ else ["test_image.py", "test_farm_image.py"]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of ``make install``, with all that there is for a farm."""
    tree = tmp_path_factory.mktemp("installed")
    environ = os.environ | {"DESTDIR": str(tree), "PREFIX": "/usr", "EXTRAS": "farm"}
    subprocess.run([ROOT / "packaging" / "install"], env=environ, check=True, timeout=300)
    return tree


@pytest.fixture(scope="session")
def warm_stap(users_warm_stap: Stap) -> Stap:
    """A stap of the user stap-server's that has compiled for the newest release."""
    return users_warm_stap


@pytest.fixture
def home(warm_stap: Stap, tmp_path: Path) -> Callable[[str], Path]:
    """Make a home of stap-server's, with that stap's cache in it."""

    def make(name: str) -> Path:
        home = tmp_path / name
        subprocess.run(["cp", "-a", str(warm_stap.place), str(home)], check=True)
        return home

    return make
