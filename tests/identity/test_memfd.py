from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from stapsrv.identity.memfd import memory_file


def test_a_child_reads_and_writes_it_by_its_path():
    with memory_file(b"question") as file:
        read = subprocess.run(["cat", file.path], pass_fds=[file.descriptor], capture_output=True, check=True)
        subprocess.run(["cp", "/dev/fd/0", file.path], input=b"ans", pass_fds=[file.descriptor], check=True)
        assert read.stdout == b"question"
        assert file.read() == b"ans"


def test_it_is_not_a_file_on_disk_and_nobody_elses():
    with memory_file(b"secret") as file:
        assert str(Path(file.path).readlink()).startswith("/memfd:")
        assert os.fstat(file.descriptor).st_mode & 0o777 == 0o600
        assert not os.get_inheritable(file.descriptor)


def test_it_ends_with_its_block():
    with memory_file() as file:
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.read()
