"""The service's own settings: which file wins, and where a plain user's files are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stapsrv.config import global_settings
from stapsrv.config.addresses import MetricsAddress
from stapsrv.config.global_settings import (
    SYSTEM_SETTINGS,
    GlobalSettings,
    can_write,
    global_defaults,
    global_from_environ,
    lay_over,
    read_global_settings,
    with_values,
)
from stapsrv.config.kinds import LogFormat
from stapsrv.config.tuning import Tuning
from stapsrv.errors import ConfigError


def test_defaults() -> None:
    assert (
        GlobalSettings(
            Path("/etc/stap-server/conf.d"), Path("/var/run/stap-server"), Path("/var/log/stap-server/log")
        )
        == SYSTEM_SETTINGS
    )


def test_manual_page_example() -> None:
    text = "CONFIG_PATH=~<user>/my-stap-server-configs\nLOG_FILE=/tmp/stap-server/log\n"
    settings = lay_over(SYSTEM_SETTINGS, text, where="g")
    assert settings == SYSTEM_SETTINGS._replace(
        config_path=Path("~<user>/my-stap-server-configs"), log_file=Path("/tmp/stap-server/log")
    )


def test_every_variable_is_set_and_an_empty_one_sets_nothing() -> None:
    text = "CONFIG_PATH=/c\nSTAT_PATH=/s\nLOG_FILE=/l\nSTAP_USER=bob\nLOG_FORMAT=json\nMETRICS=9817\n"
    settings = lay_over(SYSTEM_SETTINGS, text, where="g")
    metrics = MetricsAddress("127.0.0.1", 9817)
    assert settings == GlobalSettings(Path("/c"), Path("/s"), Path("/l"), LogFormat.JSON, "bob", metrics)
    empty = "CONFIG_PATH=\nSTAT_PATH=\nLOG_FILE=\nSTAP_USER=\nLOG_FORMAT=\nMETRICS=\n"
    assert lay_over(settings, empty, where="g") == settings


def test_retired_variable_of_a_file_is_accepted_with_a_warning() -> None:
    settings = lay_over(SYSTEM_SETTINGS, "STANDBY=0\nMDNS=no\n", where="g")
    warning = "g:1: STANDBY has no effect any more and can be removed"
    assert settings == SYSTEM_SETTINGS._replace(mdns_enabled=False, warnings=(warning,))


def test_unknown_variable_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        lay_over(SYSTEM_SETTINGS, "\nSTATPATH=/x\n", where="/etc/default/stap-server")
    assert str(caught.value) == (
        "/etc/default/stap-server:2: unknown variable 'STATPATH'; did you mean STAT_PATH?"
    )


@pytest.mark.parametrize(
    ("environ", "unwritable", "stat_path", "log_file"),
    [
        pytest.param({}, [], None, None, id="who can write the system's paths uses them"),
        pytest.param(
            {"XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "/state"},
            ["stat", "log"],
            "/run/user/7/stap-server",
            "/state/stap-server/log",
            id="a plain user",
        ),
        pytest.param(
            {},
            ["stat", "log"],
            "/home/me/.local/state/stap-server/run",
            "/home/me/.local/state/stap-server/log",
            id="without XDG variables",
        ),
        pytest.param(
            {"XDG_RUNTIME_DIR": "run", "XDG_STATE_HOME": ""},
            ["stat", "log"],
            "/home/me/.local/state/stap-server/run",
            "/home/me/.local/state/stap-server/log",
            id="relative and empty values do not count",
        ),
        pytest.param(
            {"XDG_STATE_HOME": "/state"}, ["log"], None, "/state/stap-server/log", id="each for itself: log"
        ),
        pytest.param(
            {"XDG_RUNTIME_DIR": "/run/user/7"},
            ["stat"],
            "/run/user/7/stap-server",
            None,
            id="each for itself: state",
        ),
    ],
)
def test_where_a_user_s_files_are(
    environ: dict[str, str],
    unwritable: list[str],
    stat_path: str | None,
    log_file: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = {"stat": SYSTEM_SETTINGS.stat_path, "log": SYSTEM_SETTINGS.log_file}
    refused = {paths[name] for name in unwritable}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(global_settings, "can_write", lambda path: path not in refused)
    settings = global_defaults({"HOME": "/home/me", **environ})
    assert settings == SYSTEM_SETTINGS._replace(
        stat_path=Path(stat_path or SYSTEM_SETTINGS.stat_path),
        log_file=Path(log_file or SYSTEM_SETTINGS.log_file),
    )


def test_root_uses_the_system_s_paths_whatever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"XDG_RUNTIME_DIR": "/run/user/0"}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(global_settings, "can_write", lambda _path: False)
    assert global_defaults(environ) == SYSTEM_SETTINGS


def test_default_user() -> None:
    assert SYSTEM_SETTINGS.default_user("root", euid=0) == "stap-server"
    assert SYSTEM_SETTINGS.default_user("bob", euid=1000) == "bob"
    assert SYSTEM_SETTINGS._replace(stap_user="eve").default_user("bob", euid=1000) == "eve"
    assert SYSTEM_SETTINGS._replace(stap_user="eve").default_user("root", euid=0) == "eve"


def test_files_are_laid_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, last = (tmp_path / name for name in ("sysconfig", "default", "mine"))
    first.write_text("STAT_PATH=/s1\nLOG_FILE=/l1\nCONFIG_PATH=/c1\n")
    second.write_text("STAT_PATH=/s2\nLOG_FILE=/l2\n")
    last.write_text("STAT_PATH=/s3\n")
    monkeypatch.setattr(global_settings, "DEFAULT_FILES", (first, tmp_path / "missing", second))
    assert read_global_settings(SYSTEM_SETTINGS, last) == GlobalSettings(
        Path("/c1"), Path("/s3"), Path("/l2")
    )
    assert read_global_settings(SYSTEM_SETTINGS, None).stat_path == Path("/s2")


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(global_settings, "DEFAULT_FILES", ())
    with pytest.raises(ConfigError) as caught:
        read_global_settings(SYSTEM_SETTINGS, tmp_path / "none")
    assert str(caught.value) == f"{tmp_path}/none: no such file; give -c a global configuration file"
    with pytest.raises(ConfigError) as caught:
        read_global_settings(SYSTEM_SETTINGS, tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read (Is a directory)"
    latin = tmp_path / "latin"
    latin.write_bytes(b"STAP_USER=zo\xeb\n")
    monkeypatch.setattr(global_settings, "DEFAULT_FILES", (latin,))
    with pytest.raises(ConfigError) as caught:
        read_global_settings(SYSTEM_SETTINGS, None)
    assert str(caught.value) == f"{latin}:1: byte 0xeb is not UTF-8 text; save the file as UTF-8"


def test_can_write(tmp_path: Path) -> None:
    assert can_write(tmp_path)
    assert can_write(tmp_path / "not" / "there" / "yet")
    assert not can_write(Path("/proc/no/such/place")) or os.geteuid() == 0


def test_importing_it_loads_nothing_heavy() -> None:
    """The command line's status prints before attrs would be loaded."""
    heavy = ["attr", "anyio", "structlog", "zeroconf", "asyncio", "dataclasses", "inspect", "argparse"]
    program = (
        "import sys, stapsrv.config.global_settings, stapsrv.control.cli.invocation;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert loaded.stdout == "[]\n"


def test_values_of_the_command_line_go_before_those_of_files() -> None:
    file = lay_over(SYSTEM_SETTINGS, "MDNS=no\nMDNS_INTERFACES=eth0\nMAX_COMPILES=2\nNICE=3\n", where="g")
    settings = with_values(file, {"mdns_interfaces": ("lo",), "total_compiles": 4}, ("warning",))
    assert settings == SYSTEM_SETTINGS._replace(
        mdns_enabled=False,
        mdns_interfaces=("lo",),
        tuning=Tuning({"total_compiles": 4, "nice": 3}),
        warnings=("warning",),
    )
    assert with_values(file, {}, ()) == file


def test_mdns_from_environment() -> None:
    assert global_from_environ({}) == global_from_environ({"STAPSRV_MDNS": ""}) == SYSTEM_SETTINGS
    environ = {
        "STAPSRV_MDNS": "no",
        "STAPSRV_MDNS_INTERFACES": "eth0 wlan0",
        "STAPSRV_MDNS_HOST": "build",
        "STAPSRV_LOG_FILE": "x",
    }
    assert global_from_environ(environ) == SYSTEM_SETTINGS._replace(
        mdns_enabled=False, mdns_interfaces=("eth0", "wlan0"), mdns_host="build", log_file=Path("x")
    )
    with pytest.raises(ConfigError) as caught:
        global_from_environ({"STAPSRV_MDNS": "off"})
    assert str(caught.value) == "STAPSRV_MDNS='off': expected yes or no"
