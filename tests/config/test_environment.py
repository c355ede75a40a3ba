"""Settings by environment variables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stapsrv.config import global_settings
from stapsrv.config.environment import PREFIX, refuse_unknown, retired_in, server_values
from stapsrv.config.global_settings import SYSTEM_SETTINGS, global_defaults
from stapsrv.config.table import GLOBAL_SETTINGS, SERVER_SETTINGS
from stapsrv.errors import ConfigError


@pytest.fixture
def system_paths(monkeypatch):
    """A user who may write the system's paths."""
    monkeypatch.setattr(global_settings, "can_write", lambda _path: True)


def test_global_variables_are_the_defaults_of_the_files(system_paths, monkeypatch):
    environ = {"STAPSRV_LOG_FILE": "/dev/stdout", "STAPSRV_STAT_PATH": "/stat", "STAPSRV_MDNS": "no"}
    for euid in (0, 1000):
        monkeypatch.setattr(os, "geteuid", lambda euid=euid: euid)
        settings = global_defaults({**environ, "HOME": "/home"})
        assert settings == SYSTEM_SETTINGS._replace(
            log_file=Path("/dev/stdout"), stat_path=Path("/stat"), mdns_enabled=False
        )


def test_every_variable_of_the_files_is_known():
    every = {row.variable for row in (*GLOBAL_SETTINGS, *SERVER_SETTINGS)}
    refuse_unknown({PREFIX + name: "x" for name in every - {"USER", "STAP_USER"}})


def test_retired_variable_is_accepted_with_a_warning(system_paths):
    environ = {"STAPSRV_STANDBY": "2"}
    warning = "STAPSRV_STANDBY has no effect any more and can be removed"
    refuse_unknown(environ)
    assert retired_in(environ) == (warning,)
    settings = global_defaults(environ)
    assert settings == SYSTEM_SETTINGS._replace(warnings=(warning,))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("PORT", "many", "STAPSRV_PORT='many': expected a port number from 0 to 65535"),
        (
            "PORT",
            "tcp://10.0.0.7:5001",
            "STAPSRV_PORT='tcp://10.0.0.7:5001': expected a port number from 0 to 65535 (0: the kernel picks "
            "one); give the pod enableServiceLinks: false",
        ),
        ("BUILD", "'A=1", 'STAPSRV_BUILD="\'A=1": no closing quotation in a list of words'),
        ("RUNTIME", "/a\n/b", "STAPSRV_RUNTIME='/a\\n/b': holds a line break"),
        ("PROT", "5001", "STAPSRV_PROT: unknown environment variable; did you mean STAPSRV_PORT?"),
        ("USER", "bob", "STAPSRV_USER: unknown environment variable"),
        ("SERVICE_HOST", "10.0.0.7", "STAPSRV_SERVICE_HOST: unknown environment variable; give the pod"),
        (
            "NONSENSE",
            "1",
            "STAPSRV_NONSENSE: unknown environment variable; remove it; there are STAPSRV_CONFI",
        ),
    ],
)
def test_faults_are_one_line_that_names_the_variable(name, value, text):
    with pytest.raises(ConfigError) as caught:
        server_values({PREFIX + name: value})
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_wrong_global_value():
    with pytest.raises(ConfigError, match=r"^STAPSRV_MDNS='maybe': expected yes or no$"):
        global_defaults({"STAPSRV_MDNS": "maybe"})
