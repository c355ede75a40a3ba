"""What the network is to hear, as operators write it."""

from __future__ import annotations

import pytest

from stapsrv.config.global_settings import SYSTEM_SETTINGS, global_from_environ, lay_over
from stapsrv.config.mdns import MdnsSettings, parse_host, parse_interfaces, parse_switch
from stapsrv.errors import ConfigError


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("no", False), ("NO", False)])
def test_switch(text: str, value: bool) -> None:  # noqa: FBT001
    assert parse_switch(text) is value


@pytest.mark.parametrize(
    ("text", "interfaces"),
    [
        ("eth0", ("eth0",)),
        ("eth0,wlan0", ("eth0", "wlan0")),
        (" eth0 , 192.0.2.1  fe80::1 eth0 ", ("eth0", "192.0.2.1", "fe80::1")),
        ("br-0123456789ab", ("br-0123456789ab",)),
    ],
)
def test_interfaces(text: str, interfaces: tuple[str, ...]) -> None:
    assert parse_interfaces(text) == interfaces


@pytest.mark.parametrize("text", ["", " , ", "a/b", "averyveryverylongname", "eth0:1", "fe80::1::2", ".."])
def test_what_is_no_interface(text: str) -> None:
    with pytest.raises(ValueError, match="name"):
        parse_interfaces(text)


@pytest.mark.parametrize(
    ("text", "host"),
    [("build", "build"), ("build.local", "build"), ("B-1.local.", "B-1"), ("x" * 63, "x" * 63)],
)
def test_host(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize("text", ["", ".local", "a.b", "build.example.org", "-a", "a-", "a b", "é", "x" * 64])
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a host name of up to 63 letters, digits and dashes"):
        parse_host(text)


def test_variables() -> None:
    text = "MDNS=no\nMDNS_INTERFACES=eth0, wlan0\nMDNS_HOST=build.local\n"
    settings = lay_over(SYSTEM_SETTINGS, text, where="g")
    assert settings.mdns == MdnsSettings(enabled=False, interfaces=("eth0", "wlan0"), host="build")
    assert SYSTEM_SETTINGS.mdns == MdnsSettings()


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
    ],
)
def test_bad_values_are_one_line(line: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lay_over(SYSTEM_SETTINGS, line, where="g")
    assert str(caught.value) == f"g:1: {text}"


def test_sources_go_before_each_other() -> None:
    line = MdnsSettings(interfaces=("lo",))
    file = MdnsSettings(enabled=False, interfaces=("eth0",), host="build")
    assert line.over(file) == MdnsSettings(enabled=False, interfaces=("lo",), host="build")
    assert file.over(line) == file
    assert MdnsSettings(enabled=True).over(file).is_enabled
    assert not file.is_enabled


def test_on_unless_somebody_says_no() -> None:
    assert MdnsSettings().is_enabled
    assert MdnsSettings(enabled=True).is_enabled
    assert not MdnsSettings(enabled=False).is_enabled


def test_environment() -> None:
    assert global_from_environ({}).mdns == global_from_environ({"STAPSRV_MDNS": ""}).mdns == MdnsSettings()
    environ = {
        "STAPSRV_MDNS": "no",
        "STAPSRV_MDNS_INTERFACES": "eth0 wlan0",
        "STAPSRV_MDNS_HOST": "build",
        "STAPSRV_LOG_FILE": "x",
    }
    assert global_from_environ(environ).mdns == MdnsSettings(False, ("eth0", "wlan0"), "build")
    with pytest.raises(ConfigError) as caught:
        global_from_environ({"STAPSRV_MDNS": "off"})
    assert str(caught.value) == "STAPSRV_MDNS='off': expected yes or no"
