"""The settings of the service itself: what its values may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapsrv.config.global_settings import SYSTEM_SETTINGS, lay_over
from stapsrv.config.kinds import LogFormat
from stapsrv.config.service import LOG_FORMAT, Service
from stapsrv.config.table import GLOBAL_SETTINGS, TUNABLES
from stapsrv.errors import ConfigError


def test_mdns_variables() -> None:
    text = "MDNS=no\nMDNS_INTERFACES=eth0, wlan0\nMDNS_HOST=build.local\n"
    settings = lay_over(SYSTEM_SETTINGS, text, where="g")
    assert settings == SYSTEM_SETTINGS._replace(
        mdns_enabled=False, mdns_interfaces=("eth0", "wlan0"), mdns_host="build"
    )


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("MDNS=on", "MDNS=on: expected yes or no"),
        (
            "MDNS_INTERFACES=a/b",
            "MDNS_INTERFACES=a/b: expected names of interfaces or IP addresses, which 'a/b' is not",
        ),
        (
            "MDNS_HOST=a.b",
            "MDNS_HOST=a.b: expected a host name of up to 63 letters, digits and dashes, without a domain",
        ),
        ("LOG_FORMAT=xml", "LOG_FORMAT=xml: expected classic, json or journal"),
    ],
)
def test_wrong_value_is_one_line_with_what_was_expected(line: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lay_over(SYSTEM_SETTINGS, line, where="g")
    assert str(caught.value) == f"g:1: {text}"


def test_log_format_is_read_in_any_case_and_written_back() -> None:
    assert LOG_FORMAT.parse("JSON") is LogFormat.JSON
    assert [LOG_FORMAT.encode(LOG_FORMAT.parse(name)) for name in LogFormat] == [*LogFormat]


def test_paths_have_defaults_and_are_read_as_paths() -> None:
    for row in (Service.config_path, Service.stat_path, Service.log_file):
        assert row.default_text == str(row.default)
        assert (row.kind.parse("/x"), row.kind.is_path) == (Path("/x"), True)


def test_service_is_not_tunable_and_is_set_in_the_global_file() -> None:
    assert set(Service.rows) == set(GLOBAL_SETTINGS) - set(TUNABLES)
    assert not any(row.tunable or row.identifies for row in Service.rows)
