"""Where supervisors are looked for; notes of where they run are hints that lead nobody astray."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest

from stapsrv.config import global_settings
from stapsrv.config.global_settings import SYSTEM_SETTINGS
from stapsrv.control.client.whereabouts import (
    note_stat_path,
    noted_stat_path,
    own_settings,
    own_stat_paths,
    readable_stat_paths,
)

USER = pwd.getpwuid(os.geteuid()).pw_name


def noted(directory: Path, config_file: Path | None = None) -> Path | None:
    return noted_stat_path(USER, config_file, {"SYSTEMTAP_DIR": str(directory)})


def test_each_global_file_has_its_own_note(tmp_path):
    note_stat_path(tmp_path / "new", None, Path("/run/a"))
    note_stat_path(tmp_path / "new", Path("/etc/x.conf"), Path("/run/b"))
    note_stat_path(tmp_path / "new", None, Path("/run/c"))
    assert noted(tmp_path / "new") == Path("/run/c")
    assert noted(tmp_path / "new", Path("/etc/x.conf")) == Path("/run/b")
    assert noted(tmp_path / "new", Path("/etc/y.conf")) is None


@pytest.mark.parametrize("text", ["", "[]", '{"": 1}', '{"": "relative"}', '{"": "/nul\\u0000"}', "{"])
def test_a_damaged_note_says_nothing(tmp_path, text):
    (tmp_path / "supervisors").write_text(text)
    assert noted(tmp_path) is None
    note_stat_path(tmp_path, None, Path("/run/a"))
    assert noted(tmp_path) == Path("/run/a")


def test_links_pipes_and_unknown_users_are_passed_over(tmp_path):
    (tmp_path / "elsewhere").write_text(json.dumps({"": "/run/a"}))
    (tmp_path / "supervisors").symlink_to("elsewhere")
    assert noted(tmp_path) is None
    (tmp_path / "supervisors").unlink()
    os.mkfifo(tmp_path / "supervisors")
    assert noted(tmp_path) is None
    assert noted_stat_path("no such user", None, {}) is None


def test_a_directory_that_cannot_be_written_costs_the_note(tmp_path):
    (tmp_path / "file").write_text("")
    note_stat_path(tmp_path / "file" / "below", None, Path("/run/a"))


@pytest.fixture
def plain_user(monkeypatch):
    """A user who can write nothing of the system's."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(global_settings, "can_write", lambda path: False)


def test_stat_path_of_the_file_is_the_only_one(tmp_path, plain_user):
    (tmp_path / "global.conf").write_text(f"STAT_PATH={tmp_path}/stat\n")
    settings = own_settings({"HOME": "/home/me"}, tmp_path / "global.conf")
    assert settings.stat_path == tmp_path / "stat"
    assert settings.log_file == Path("/home/me/.local/state/stap-server/log")
    assert readable_stat_paths(settings, tmp_path / "global.conf", {}) == [tmp_path / "stat"]


def test_plain_user_reads_his_own_stat_path_and_the_system_s(plain_user):
    settings = own_settings({"HOME": "/home/me", "XDG_RUNTIME_DIR": "/run/user/4711"}, None)
    own = Path("/run/user/4711/stap-server")
    assert readable_stat_paths(settings, None, {}) == [own, SYSTEM_SETTINGS.stat_path]


def test_root_reads_the_system_s_stat_path(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert readable_stat_paths(own_settings({}, None), None, {}) == [SYSTEM_SETTINGS.stat_path]


def test_a_changed_stat_path_leaves_the_former_one_in_sight(tmp_path):
    config = tmp_path / "global.conf"
    config.write_text(f"STAT_PATH={tmp_path}/new\n")
    environ = {
        "SYSTEMTAP_DIR": str(tmp_path / "systemtap"),
        "STAPSRV_STAP_USER": pwd.getpwuid(os.geteuid()).pw_name,
    }
    for config_file in (config, None):
        note_stat_path(tmp_path / "systemtap", config_file, tmp_path / f"old-{config_file is None}")
    settings = own_settings(environ, config)
    assert own_stat_paths(settings, config, environ) == (tmp_path / "new", tmp_path / "old-False")
    note_stat_path(tmp_path / "systemtap", config, tmp_path / "new")
    assert own_stat_paths(settings, config, environ) == (tmp_path / "new",)


def test_the_former_place_stays_in_sight_where_the_system_s_becomes_writable(tmp_path, monkeypatch):
    """As when the package is installed: what its user had started before can be stopped."""
    monkeypatch.setattr(global_settings, "can_write", lambda path: False)
    environ = {
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "STAPSRV_STAP_USER": pwd.getpwuid(os.geteuid()).pw_name,
    }
    if os.geteuid() == 0:
        pytest.skip("root's place is the system's")
    before = own_settings(environ, None).stat_path
    note_stat_path(tmp_path / ".systemtap", None, before)
    monkeypatch.setattr(global_settings, "can_write", lambda path: True)
    after = own_settings(environ, None)
    assert own_stat_paths(after, None, environ) == (SYSTEM_SETTINGS.stat_path, before)


def test_home_comes_from_the_user_database_where_the_environment_has_none(monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("root's place is the system's")
    monkeypatch.setattr(global_settings, "can_write", lambda path: False)
    home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    assert own_settings({}, None).log_file == home / ".local" / "state" / "stap-server" / "log"


def test_user_of_servers_comes_from_the_environment_where_no_file_names_one(tmp_path, plain_user):
    environ = {"HOME": "/home/me", "STAP_USER": "eve"}
    config = tmp_path / "global.conf"
    config.write_text(f"STAT_PATH={tmp_path}\nSTAP_USER=\n")
    assert own_settings(environ, config).default_user("me", euid=0) == "eve"
    config.write_text(f"STAT_PATH={tmp_path}\nSTAP_USER=adam\n")
    assert own_settings(environ, config).default_user("me", euid=0) == "adam"
