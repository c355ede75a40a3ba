"""What a command finds at its beginning: unusable files, and servers of other users."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kit.control import listening
from kit.supervisor import FIRST_ID, FakeSupervisor, server_status

from stapsrv.config.settings import ServerSettings
from stapsrv.control.client.whereabouts import note_stat_path


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


def test_configured_nickname_does_not_mean_another_users_server(command_line, several_users, supervisor):
    command_line.configure(web="NICKNAME=web\nRELEASE=5.10\n")
    settings = ServerSettings(releases=("6.1",), nickname="web", user="nobody")
    theirs = server_status(FIRST_ID, nickname="web", settings=settings)
    with listening(FakeSupervisor(theirs, user="nobody"), command_line.stat_path) as other:
        ran = command_line.run("start", "-n", "web")
    assert (ran.status, ran.err, other.told) == (0, "", [])
    ((command, (spec,)),) = supervisor.told
    assert (command, spec.settings.releases) == ("start", ("5.10",))


def test_orphaned_servers_of_other_users_are_left_alone(command_line, several_users):
    if os.geteuid() == 0:
        pytest.skip("root may command everybody's")
    command_line.stat_path.mkdir()
    record = command_line.stat_path / "1.stat"
    record.write_text("# stapsrv server\nUSER=nobody\nNICKNAME=web\nRELEASE+=5.10\nLOG=/log\n")
    assert command_line.run("stop").out == "Stopping stap-server: OK\n"
    assert record.exists()


def test_server_that_is_gone_is_stopped_where_its_record_is(command_line, user):
    """STAT_PATH has changed since; below the new one the same id is another server's."""
    former = command_line.directory / "former"
    text = "# stapsrv server\nUSER={}\nNICKNAME=web\nRELEASE+=5.10\nLOG=/log\n"
    for directory, owner in ((former, user), (command_line.stat_path, "nobody")):
        directory.mkdir()
        (directory / "1.stat").write_text(text.format(owner))
    home = Path(command_line.environ["HOME"]) / ".systemtap"
    note_stat_path(home, command_line.config_file, former)
    ran = command_line.run("stop")
    assert (ran.status, ran.err, ran.out.splitlines()[-1]) == (0, "", "OK")
    assert not (former / "1.stat").exists()
    assert (command_line.stat_path / "1.stat").exists()
