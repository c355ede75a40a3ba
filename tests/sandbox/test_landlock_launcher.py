"""The launcher by itself: on kernels with older versions of Landlock, and with missing paths."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stapsrv.sandbox import backends

LAUNCHER = Path(backends.__file__).with_name("landlock_launcher.py")

# The launcher is made to see an older kernel; that its requests are those of that kernel is seen by this one,
# which knows what each of them means.
OLDER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("launcher", sys.argv[1])
launcher = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launcher)
class Older:
    def __init__(self, libc): self.libc = libc
    def __getattr__(self, name): return getattr(self.libc, name)
    def syscall(self, number, *arguments):
        result = self.libc.syscall(number, *arguments)
        return min(result, int(sys.argv[2])) if arguments[0] is None else result
launcher._libc = Older(launcher._libc)
launcher.main(sys.argv[3:])
"""


def launch(*words: object, older: int | None = None) -> subprocess.CompletedProcess[str]:
    program = ["-I", LAUNCHER] if older is None else ["-c", OLDER, LAUNCHER, older]
    command = [sys.executable, *program, *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.fixture
def has_landlock(tmp_path):
    if "Landlock" in launch("network", "--", "/usr/bin/true").stderr:
        pytest.skip("this kernel has no Landlock")


@pytest.mark.usefixtures("has_landlock")
@pytest.mark.parametrize("abi", range(1, 8))
def test_each_landlock_version_denies_what_is_not_shown(tmp_path, abi):
    """Version 1 refuses to move files between directories, whatever a ruleset allows."""
    for name in ("own/a", "own/b", "shown"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "shown" / "file").write_text("shown\n")
    (tmp_path / "secret").write_text("secret\n")
    script = """
        cat shown/file; cat secret && echo read
        echo x >shown/new && echo written; echo x >>shown/file && echo added
        echo x >own/a/x && mv own/a/x own/b/x && cat own/b/x
        : >own/b/x; ln -s x own/link; rm own/b/x; mkdir own/c
    """
    places = ["READ", "/usr", "READ", tmp_path / "shown", "WRITE", tmp_path / "own"]
    cd = f"cd {tmp_path}; {script}"
    ran = launch("no-network", *places, "--", "/usr/bin/sh", "-c", cd, older=abi)
    assert ran.stdout == "shown\nx\n", ran.stderr
    assert not (tmp_path / "shown" / "new").exists()
    assert (tmp_path / "shown" / "file").read_text() == "shown\n"
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["a", "b", "c", "link"]


@pytest.mark.usefixtures("has_landlock")
def test_missing_path_is_one_line(tmp_path):
    ran = launch("network", "READ", tmp_path / "missing", "--", "/usr/bin/true")
    assert (ran.returncode, ran.stderr) == (125, f"launcher: {tmp_path}/missing: No such file or directory\n")


# The file is another one's then: this kernel has the list.
UNLISTED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("launcher", sys.argv[1])
launcher = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launcher)
launcher.open = lambda path, **_: open(path + ".missing")
launcher.main(sys.argv[2:])
"""


@pytest.mark.usefixtures("has_landlock")
def test_kernel_without_children_lists_passes_the_status_on():
    command = [sys.executable, "-c", UNLISTED, LAUNCHER, "network", "READ", "/usr", "--"]
    command += ["/usr/bin/sh", "-c", "exit 3"]
    ran = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (3, b"")


def test_command_does_not_start_after_the_caller_has_ended(tmp_path):
    """The caller was killed before the death signal was set: nobody reads the output."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-I", LAUNCHER, "network", "--", "/usr/bin/touch", tmp_path / "made"]
    ran = subprocess.run(list(map(str, command)), stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (125, b"launcher: nobody waits for the answer\n")
    assert list(tmp_path.iterdir()) == []
