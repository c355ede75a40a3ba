"""Keys that others can read are refused, and nothing is overwritten or left half."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from stapsrv.errors import ConfigError
from stapsrv.farm import pem_files
from stapsrv.farm.ca import Member, create_authority
from stapsrv.farm.pem_files import create_pair, make_directory, read_certificate, read_key


@pytest.fixture
def member(tmp_path: Path) -> Member:
    return create_authority(tmp_path / "farm")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_pair_is_read_as_it_was_written(member):
    assert read_certificate(member.certificate_file) == member.certificate
    key = read_key(member.key_file)
    create_pair(member.key_file.parent, "again", member.certificate, key)
    again = member.key_file.with_name("again.key")
    assert again.read_bytes() == member.key_file.read_bytes()
    assert mode(again) == mode(again.with_suffix(".pem")) == 0o600


@pytest.mark.parametrize("suffix", [".pem", ".key"])
def test_one_file_in_the_way_leaves_both_as_they_were(member, suffix):
    directory = member.key_file.parent
    (directory / f"x{suffix}").write_text("precious")
    with pytest.raises(ConfigError, match=rf"x{suffix}: is there already, and is not overwritten; move"):
        create_pair(directory, "x", member.certificate, read_key(member.key_file))
    assert [path.name for path in directory.glob("x.*")] == [f"x{suffix}"]
    assert (directory / f"x{suffix}").read_text() == "precious"


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o602])
def test_exposed_key_is_refused(member, bits):
    member.key_file.chmod(bits)
    with pytest.raises(ConfigError, match="others than its owner have access to it; chmod 600 "):
        read_key(member.key_file)


@pytest.mark.parametrize(
    ("owner", "bits", "refused"), [(0, 0o440, False), (0, 0o660, True), (0, 0o444, True)]
)
def test_group_may_read_a_key_of_root(member, monkeypatch, owner, bits, refused):
    """As a secret in Kubernetes that is mounted for a pod's group."""
    status = os.stat_result([stat.S_IFREG | bits, 1, 1, 1, owner, 970, 10, 0, 0, 0])
    monkeypatch.setattr(pem_files.os, "fstat", lambda _fd: status)
    monkeypatch.setattr(pem_files.os, "geteuid", lambda: 970)
    if refused:
        with pytest.raises(ConfigError, match="others than its owner"):
            read_key(member.key_file)
    else:
        read_key(member.key_file)


@pytest.mark.parametrize(("read", "kind"), [(read_certificate, "certificate"), (read_key, "private key")])
def test_unusable_file_is_one_line(member, tmp_path, read, kind):
    wrong = tmp_path / "wrong"
    with pytest.raises(ConfigError, match=r"wrong: cannot be used \(No such file or directory\); make it"):
        read(wrong)
    wrong.write_bytes(b"-----BEGIN NONSENSE-----\0\n")
    wrong.chmod(0o600)
    with pytest.raises(ConfigError, match=f"wrong: holds no {kind} in PEM"):
        read(wrong)
    directory = tmp_path / "directory"
    directory.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="directory: is no file"):
        read(directory)
    with pytest.raises(ConfigError, match=r"cannot be used \(Not a directory\)"):
        read(wrong / "below")


def test_key_with_a_password_is_refused(member):
    locked = BestAvailableEncryption(b"secret")
    key = read_key(member.key_file)
    member.key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    with pytest.raises(ConfigError, match="the private key has a password; store it without one"):
        read_key(member.key_file)


def test_device_and_pipe_are_no_files(tmp_path):
    with pytest.raises(ConfigError, match=r"^/dev/null: is no file"):
        read_certificate(Path("/dev/null"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe: is no file"):
        read_certificate(tmp_path / "pipe")


def test_new_directory_is_for_its_owner(tmp_path):
    make_directory(tmp_path / "a" / "b")
    assert mode(tmp_path / "a" / "b") == 0o700


def test_directory_that_others_may_change_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=r"others may write to it, .*; chmod go-w "):
        make_directory(tmp_path)
    with pytest.raises(ConfigError, match="File exists"):
        make_directory(Path("/dev/null"))
