from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from stapsrv.identity.memfd import memory_file


def test_child_reads_and_writes_by_path():
    with memory_file(b"question") as file:
        read = subprocess.run(["cat", file.path], pass_fds=[file.descriptor], capture_output=True, check=True)
        subprocess.run(["cp", "/dev/fd/0", file.path], input=b"ans", pass_fds=[file.descriptor], check=True)
        assert read.stdout == b"question"
        assert file.read() == b"ans"


def test_file_is_private_and_not_on_disk():
    with memory_file(b"secret") as file:
        assert str(Path(file.path).readlink()).startswith("/memfd:")
        assert os.fstat(file.descriptor).st_mode & 0o777 == 0o600
        assert not os.get_inheritable(file.descriptor)


def test_file_is_closed_after_the_block():
    with memory_file() as file:
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.read()
