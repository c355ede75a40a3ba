"""Mounts that come and go, in a namespace of the test's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stapsrv.system.mount_table import Mounts

UNSHARED = ("unshare", "--user", "--map-root-user", "--mount")

PROGRAM = """
import contextlib, subprocess, sys
from stapsrv.system.mount_table import Mounts
with contextlib.closing(Mounts()) as mounts:
    assert not mounts.changed()
    for command in (["mount", "-t", "tmpfs", "none"], ["umount"]):
        subprocess.run([*command, sys.argv[1]], check=True)
        assert mounts.changed() == {sys.argv[1].encode()}
        assert not mounts.changed()
"""


def test_mount_and_unmount_are_reported_once(tmp_path: Path) -> None:
    if subprocess.run([*UNSHARED, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount anything in a namespace of its own")
    place = tmp_path / "a place"
    place.mkdir()
    ran = subprocess.run(
        [*UNSHARED, sys.executable, "-c", PROGRAM, str(place)], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_table_is_closed() -> None:
    mounts = Mounts()
    assert not mounts.changed()
    mounts.close()
    with pytest.raises(ValueError, match="closed file"):
        mounts._read()
