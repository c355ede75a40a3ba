"""Finding the supervisors below STAT_PATH, whatever they answer."""

from __future__ import annotations

import json
import os
import pwd
import socket

import pytest
from kit.control import listening
from kit.supervisor import FakeSupervisor, Then, server_info, server_status, supervisor_info

from stapsrv.config.settings import ServerSettings
from stapsrv.control.client import discovery, find_sockets
from stapsrv.control.client.discovery import PORT_MARK, RECORD_MARK, SupervisorScan
from stapsrv.control.protocol.jsonrpc import Code, encode_error
from stapsrv.errors import ControlError
from stapsrv.supervisor.state import stat_files


def test_sockets_are_found_by_user(tmp_path, several_users):
    for user in ("zoe", "amy"):
        (tmp_path / user).mkdir()
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(tmp_path / user / "control.sock"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "control.sock").write_text("")
    (tmp_path / "4194305.stat").write_text("")
    assert find_sockets(tmp_path) == [tmp_path / "amy" / "control.sock", tmp_path / "zoe" / "control.sock"]
    assert find_sockets(tmp_path / "missing") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_directories_of_others_are_left_out(tmp_path):
    (tmp_path / "secret").mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "secret" / "control.sock"))
    (tmp_path / "secret").chmod(0)
    try:
        assert find_sockets(tmp_path) == []
    finally:
        (tmp_path / "secret").chmod(0o700)


# Supervisors that answer otherwise than they should.


@pytest.fixture
def supervisor(command_line, user):
    settings = ServerSettings(releases=("5.10",), user=user)
    servers = server_status(7, settings=settings), server_status(8, settings=settings)
    with listening(FakeSupervisor(*servers, user=user), command_line.stat_path) as supervisor:
        yield supervisor


def strange(answer: bytes) -> FakeSupervisor:
    return FakeSupervisor(user="strange", raw=[answer])


def strange_release(release: object) -> bytes:
    server = server_info(7, releases=[release])
    return json.dumps({"result": supervisor_info("strange", server)}).encode() + b"\n"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "its answer has no end"),
        (b'{"jsonrpc"', "its answer has no end"),
        (b"nonsense\n", "its answer cannot be understood"),
        (b"[]\n", "its answer cannot be understood"),
        (b'{"result":{"servers":[{}]}}\n', "its answer cannot be understood"),
        (strange_release({"name": 1, "health": "", "reason": ""}), "its answer cannot be understood"),
        (strange_release(7), "its answer cannot be understood"),
        (b'{"error":{}}\n', "its answer cannot be understood"),
        (
            encode_error(None, ControlError("128 connections are open already", code=Code.BUSY)),
            "128 connections",
        ),
    ],
)
def test_a_strange_answer_is_a_problem_and_no_crash(command_line, several_users, supervisor, answer, problem):
    with listening(strange(answer), command_line.stat_path):
        ran = command_line.run("status")
    assert ran.status == 1
    assert ran.err.startswith(f"stap-server: the supervisor of user strange does not answer: {problem}")
    assert ran.out.count("running as PID") == 2


@pytest.mark.parametrize(
    "answer",
    [
        ControlError("the supervisor is shutting down", code=Code.SHUTTING_DOWN),
        ControlError("you may not", code=Code.NOT_PERMITTED),
    ],
    ids=lambda error: str(error),
)
def test_one_that_ends_or_does_not_speak_with_us_is_passed_over(command_line, several_users, answer):
    with listening(strange(encode_error(None, answer)), command_line.stat_path):
        ran = command_line.run("status")
    assert (ran.status, ran.err) == (3, "")


@pytest.fixture
def silent(command_line, several_users):
    with listening(FakeSupervisor(user="silent", raw=[], then=Then.SILENCE), command_line.stat_path):
        yield


def test_silence_has_an_end(command_line, silent, monkeypatch):
    monkeypatch.setattr(discovery, "_ANSWER_S", 0.05)
    (problem,) = SupervisorScan([command_line.stat_path]).problems
    assert problem == "the supervisor of user silent does not answer: timed out"


@pytest.mark.parametrize("words", [["status"], ["status", "-n", "native"], ["check"]], ids=" ".join)
def test_how_long_to_wait_can_be_said(command_line, silent, monkeypatch, words):
    monkeypatch.setattr(discovery, "_ANSWER_S", 3600.0)
    ran = command_line.run(*words, "--timeout", "0.05")
    # What only looks at the configuration has no word for supervisors.
    assert ("the supervisor of user silent does not answer: timed out" in ran.err) == (words != ["check"])


def test_a_trickle_has_an_end(command_line, several_users, monkeypatch):
    """Each piece comes in time, and they never end."""
    monkeypatch.setattr(discovery, "_ANSWER_S", 0.3)
    with listening(FakeSupervisor(user="slow", raw=[], then=Then.TRICKLE), command_line.stat_path):
        (problem,) = SupervisorScan([command_line.stat_path]).problems
    assert problem == "the supervisor of user slow does not answer: timed out"


def test_the_words_are_those_of_the_registry():
    assert f"{stat_files._MARK}\n".encode() == RECORD_MARK
    assert f"\n{stat_files._ASSIGNED}\n".encode() == PORT_MARK


# What another user has put there.

RECORD = "# stapsrv server\nARCH=x86_64\nUSER={user}\nNICKNAME=native\nRELEASE+=5.10\nLOG=/log\n"


def test_record_that_names_another_user_than_its_owner_is_not_obeyed(tmp_path):
    (tmp_path / "1.stat").write_text(RECORD.format(user="root" if os.geteuid() else "nobody"))
    (tmp_path / "2.stat").write_text(RECORD.replace("USER={user}\n", ""))
    (tmp_path / "3.stat").write_text(RECORD.format(user=pwd.getpwuid(os.geteuid()).pw_name))
    assert [lost["id"] for lost in SupervisorScan([tmp_path]).orphaned()] == [3]


def test_pipe_in_place_of_a_record_or_a_socket_holds_up_nobody(tmp_path, several_users):
    os.mkfifo(tmp_path / "1.stat")
    (tmp_path / "2.stat").symlink_to("/etc/passwd")
    (tmp_path / "me").mkdir()
    os.mkfifo(tmp_path / "me" / "control.sock")
    scan = SupervisorScan([tmp_path])
    assert (scan.supervisors, scan.problems, scan.orphaned()) == ([], [], [])


def test_directory_that_has_not_the_name_of_its_owner_is_passed_over(command_line):
    """Else a member of the group could be any user's supervisor."""
    other = "root" if os.geteuid() else "nobody"
    with listening(FakeSupervisor(server_status(7), user=other), command_line.stat_path):
        if os.geteuid() == 0:
            os.chown(command_line.stat_path / other, 1, -1)
        scan = SupervisorScan([command_line.stat_path])
        assert (scan.supervisors, scan.problems) == ([], [])
        assert find_sockets(command_line.stat_path) == []
