"""What a command finds at its beginning: unusable files, and servers of other users."""

from __future__ import annotations

import os

import pytest
from kit.control import listening
from kit.supervisor import FIRST_ID, FakeSupervisor, server_status

from stapsrv.config.settings import ServerSettings


def test_a_nickname_in_a_bad_file_makes_no_new_server(command_line, supervisor):
    command_line.configure(native="NICKNAME=native\nPORT=abc\n")
    ran = command_line.run("start", "-n", "native", "-n", "other")
    assert ran.status == 1
    assert "native: " in ran.err
    assert "PORT=abc" in ran.err
    assert supervisor.told_names == [("start", ["other"])]


def test_other_users_servers_are_left_alone(command_line, several_users):
    if os.geteuid() == 0:
        pytest.skip("root may command everybody's")
    theirs = server_status(FIRST_ID, settings=ServerSettings(nickname="web", user="nobody"))
    with listening(FakeSupervisor(theirs, user="nobody"), command_line.stat_path) as supervisor:
        named = command_line.run("stop", "-n", "web")
        everything = command_line.run("stop")
        assert supervisor.told == []
    assert named.status == 1
    assert named.out.splitlines()[-1] == "FAILED"
    assert named.err == (
        "stap-server: web: is a server of user nobody; run stap-server as that user, or as root\n"
    )
    assert (everything.status, everything.out) == (0, "Stopping stap-server: OK\n")
