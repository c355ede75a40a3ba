"""Files are whole or not there."""

from __future__ import annotations

import errno
import os

import pytest

from stapsrv.client.errors import ClientError
from stapsrv.client.output import write_result
from stapsrv.client.response import Result

RESULT = Result(
    status=0,
    module=b"M" * 1000,
    module_name="x.ko",
    signature=b"S",
    files={"x.ko": b"M" * 1000, "sub/x.c": b"C"},
    mok_certificate=b"K",
)


def tree(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_module_signature_and_key_are_written(tmp_path):
    target = tmp_path / "a/b"
    assert write_result(RESULT, target) == target / "x.ko"
    assert tree(target) == ["signing_key.x509", "x.ko", "x.ko.sgn"]
    assert (target / "x.ko").read_bytes() == RESULT.module
    assert (target / "x.ko").stat().st_mode & 0o777 == 0o644


def test_all_files_are_kept_in_place_of_those_before(tmp_path):
    (tmp_path / "x.files").mkdir()
    (tmp_path / "x.files/old").touch()
    write_result(RESULT, tmp_path, keep=True)
    assert tree(tmp_path / "x.files") == ["sub/x.c", "x.ko"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_signature_of_an_older_module_goes(tmp_path):
    write_result(RESULT, tmp_path)
    write_result(Result(status=0, module=b"N", module_name="x.ko", files={"x.ko": b"N"}), tmp_path)
    assert not (tmp_path / "x.ko.sgn").exists()


def test_result_without_a_module_writes_none(tmp_path):
    assert write_result(Result(status=1), tmp_path) is None
    assert tree(tmp_path) == []


def test_full_disk_leaves_the_old_module_whole(tmp_path, monkeypatch):
    (tmp_path / "x.ko").write_bytes(b"old")

    def fail(_fd, _mode):
        raise OSError(errno.ENOSPC, "No space left on device")

    # It fails after the content was written beside.
    monkeypatch.setattr(os, "fchmod", fail)
    with pytest.raises(
        ClientError, match=r"cannot be written \(No space left on device\); name another with -o"
    ):
        write_result(Result(status=0, module=b"new", module_name="x.ko"), tmp_path)
    assert (tmp_path / "x.ko").read_bytes() == b"old"
    with pytest.raises(ClientError, match="cannot be written"):
        write_result(RESULT, tmp_path, keep=True)
    assert tree(tmp_path) == ["x.ko"]


def test_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ClientError, match=f"^{tmp_path}/out: cannot be written"):
        write_result(RESULT, tmp_path / "out")
