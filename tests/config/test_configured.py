"""The configured servers: files, or the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapsrv.config import configured
from stapsrv.config.configured import read_configured_or_environ, with_each_release
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError

NO_FILES = Path("/nonexistent")


def test_files_are_read_by_name_and_a_bad_one_does_not_stop_the_others(tmp_path):
    (tmp_path / "b.conf").write_text("PORT=many\n")
    (tmp_path / "a.conf").write_text("PORT=5001\n")
    (tmp_path / "c.txt").write_text("PORT=5002\n")
    first, second = read_configured_or_environ(tmp_path, {})
    assert (first.path.name, first.settings, first.fault) == ("a.conf", ServerSettings(port=5001), None)
    assert (second.path.name, second.settings) == ("b.conf", None)
    assert str(second.fault).startswith(f"{tmp_path}/b.conf:1: PORT=many: expected")
    assert read_configured_or_environ(NO_FILES, {}) == ()


def test_server_that_the_environment_describes():
    environ = {
        "STAPSRV_RELEASE": "6.1.0-56-amd64 /trees/b",
        "STAPSRV_BUILD": "'A=1 B=2' -j4",
        "STAPSRV_PORT": "5001",
        "STAPSRV_LOG": "/dev/stdout",
        "STAPSRV_NICKNAME": "",
        "PORT": "7",
    }
    (found,) = read_configured_or_environ(NO_FILES, environ)
    assert found.settings == ServerSettings(
        releases=("6.1.0-56-amd64", "/trees/b"), build=("A=1 B=2", "-j4"), port=5001, log=Path("/dev/stdout")
    )
    assert str(found.path) == "environment"


def test_file_goes_before_the_environment(tmp_path):
    (tmp_path / "one.conf").write_text("PORT=5002\n")
    (found,) = read_configured_or_environ(tmp_path, {"STAPSRV_PORT": "5001"})
    assert found.path == tmp_path / "one.conf"
    assert found.settings == ServerSettings(port=5002)


def test_global_variables_describe_no_server():
    assert read_configured_or_environ(NO_FILES, {"STAPSRV_LOG_FILE": "/dev/stdout"}) == ()


def test_release_installed_means_each_one(monkeypatch):
    monkeypatch.setattr(configured, "installed_releases", lambda: ["6.1", "6.2"])
    (found,) = read_configured_or_environ(NO_FILES, {"STAPSRV_RELEASE": "installed"})
    assert found.settings == ServerSettings(releases=("6.1", "6.2"))
    assert with_each_release(ServerSettings(releases=("5.10",))).releases == ("5.10",)
    described = {"STAPSRV_RELEASE": "installed", "STAPSRV_ENGINE": "dask"}
    assert read_configured_or_environ(NO_FILES, described)[0].settings.releases == ()
    elsewhere = ServerSettings(releases=("installed",), tuning={"engine": "dask"})
    assert with_each_release(elsewhere).releases == ()
    monkeypatch.setattr(configured, "installed_releases", list)
    with pytest.raises(
        ConfigError, match=r"^STAPSRV_RELEASE=installed: there is no /lib/modules/RELEASE/build"
    ):
        read_configured_or_environ(NO_FILES, {"STAPSRV_RELEASE": "installed"})
