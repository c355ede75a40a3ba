"""Where a database's password comes from."""

from __future__ import annotations

import os
import pty

import pytest

from stapsrv.errors import ConfigError
from stapsrv.identity.password import CREDENTIAL, WEB_CREDENTIAL, obtain_password, obtain_web_token


@pytest.fixture
def secret(tmp_path):
    file = tmp_path / "secret"
    file.write_text("correct horse\nignored\n")
    file.chmod(0o600)
    return file


def test_password_is_the_first_line_of_a_file(secret):
    assert obtain_password({}, file=secret, descriptor=None) == "correct horse"


def test_descriptor_comes_first(secret):
    descriptor = os.memfd_create("password")
    os.write(descriptor, "pässword\n".encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    assert obtain_password({}, file=secret, descriptor=descriptor) == "pässword"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


def test_credential_is_read(tmp_path, secret):
    secret.rename(tmp_path / CREDENTIAL)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert obtain_password(environ, file=None, descriptor=None) == "correct horse"


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_file_that_others_can_read_is_refused(secret, mode):
    secret.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        obtain_password({}, file=secret, descriptor=None)
    assert str(caught.value) == (
        f"password file {secret}: others than its owner have access to it; chmod 600 {secret}"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no password in its first line"),
        (b"\nlater\n", "holds no password in its first line"),
        (b"x" * 5000, "holds no password in its first line"),
        (b"\xff\n", "is not UTF-8 text"),
    ],
)
def test_file_without_a_password_is_an_error(secret, content, problem):
    secret.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        obtain_password({}, file=secret, descriptor=None)
    assert str(caught.value) == f"password file {secret}: {problem}"


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\)$"):
        obtain_password({}, file=tmp_path / "missing", descriptor=None)


def test_missing_terminal_is_an_error():
    child = os.fork()
    if not child:
        os.setsid()  # away from whatever terminal the tests have
        try:
            obtain_password({}, file=None, descriptor=None)
        except ConfigError as exc:
            os._exit(7 if "--password-file" in str(exc) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_terminal_is_asked_without_echo():
    child, terminal = pty.fork()
    if not child:
        os._exit(7 if obtain_password({}, file=None, descriptor=None) == "typed" else 1)
    shown = b""
    while b"database: " not in shown:
        shown += os.read(terminal, 1024)
    os.write(terminal, b"typed\n")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    os.close(terminal)


def test_web_token_is_that_of_the_file_before_the_credential(tmp_path, secret):
    credential = tmp_path / WEB_CREDENTIAL
    credential.write_text("another\n")
    credential.chmod(0o400)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert obtain_web_token(environ, file=secret) == "correct horse"
    assert obtain_web_token(environ, file=None) == "another"


def test_there_is_no_web_token_where_none_is_given(tmp_path):
    assert obtain_web_token({}, file=None) is None
    assert obtain_web_token({"CREDENTIALS_DIRECTORY": str(tmp_path)}, file=None) is None


def test_web_token_that_others_can_read_is_refused(secret):
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match=f"^token file {secret}: others than its owner have access to it"):
        obtain_web_token({}, file=secret)
