"""Who may see the web page: names of the host, token, cookie."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapsrv.config.addresses import OFF, MetricsAddress
from stapsrv.errors import ConfigError
from stapsrv.observe.http import HttpRequest
from stapsrv.observe.web.access import COOKIE, Access

TOKEN = "0123456789abcdef-token"
LOOPBACK = MetricsAddress("127.0.0.1", 9817)
EVERYWHERE = MetricsAddress("0.0.0.0", 9817)


def access(address: MetricsAddress = LOOPBACK, token: str | None = TOKEN) -> Access:
    return Access.at(address, host_name="Build1.example.org", token=token)


@pytest.mark.parametrize(
    ("address", "header", "known"),
    [
        (LOOPBACK, "localhost:9817", True),
        (LOOPBACK, "LOCALHOST", True),
        (LOOPBACK, "127.0.0.1:9817", True),
        (LOOPBACK, "[::1]:9817", True),
        (LOOPBACK, "evil.example:9817", False),
        (LOOPBACK, "localhost.evil.example", False),
        (LOOPBACK, "build1.example.org", False),
        (LOOPBACK, "192.0.2.7:9817", False),
        (LOOPBACK, "", False),
        (LOOPBACK, "[evil", False),
        (MetricsAddress("192.0.2.7", 1), "192.0.2.7:1", True),
        (MetricsAddress("192.0.2.7", 1), "192.0.2.8:1", False),
        (MetricsAddress("192.0.2.7", 1), "build1:1", True),
        (MetricsAddress("2001:db8::7", 1), "[2001:db8:0::7]:1", True),
        (EVERYWHERE, "192.0.2.8:9817", True),
        (EVERYWHERE, "build1.example.org:9817", True),
        (EVERYWHERE, "build1", True),
        (EVERYWHERE, "evil.example", False),
        (MetricsAddress("::", 9817), "192.0.2.8:9817", True),
        (MetricsAddress(path=Path("/s")), "whatever", True),
    ],
)
def test_host_is_known_by_its_own_names_alone(address, header, known):
    assert access(address).knows_host(header) is known


@pytest.mark.parametrize(
    ("address", "token", "words"),
    [
        (None, None, "the web page is served where metrics are, and they are nowhere; give METRICS"),
        (OFF, None, "they are nowhere"),
        (EVERYWHERE, None, "others can reach 0.0.0.0:9817, and there is no token; name a file with one"),
        (MetricsAddress("2001:db8::7", 1), None, "others can reach [2001:db8::7]:1"),
        (LOOPBACK, "short", "the token is shorter than 16 characters; make one: openssl rand -hex 16"),
    ],
)
def test_page_that_would_be_open_is_refused(address, token, words):
    with pytest.raises(ConfigError, match=r"^WEB=yes: ") as caught:
        access(address, token)
    assert words in str(caught.value)


@pytest.mark.parametrize("address", [LOOPBACK, MetricsAddress("::1", 1), MetricsAddress(path=Path("/s"))])
def test_local_page_needs_no_token(address):
    local = access(address, None)
    assert not local.wants_token
    assert local.admits(HttpRequest(path="/"))


def request(**headers: str) -> HttpRequest:
    return HttpRequest(path="/", headers=headers)


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ({}, False),
        ({"authorization": f"Bearer {TOKEN}"}, True),
        ({"authorization": f"bearer  {TOKEN}"}, True),
        ({"authorization": f"Basic {TOKEN}"}, False),
        ({"authorization": f"Bearer {TOKEN}x"}, False),
        ({"authorization": "Bearer \xe9"}, False),
        ({"cookie": f"{COOKIE}={TOKEN}"}, False),
        ({"cookie": f"{COOKIE}="}, False),
        ({"cookie": f"{COOKIE}=\xe9"}, False),
        ({"cookie": ';;="'}, False),
    ],
)
def test_only_who_has_the_token_is_admitted(headers, admitted):
    assert access().admits(request(**headers)) is admitted


def test_cookie_for_the_token_admits_over_a_restart_and_does_not_tell_it():
    header = access().cookie_for(f"token={TOKEN}".encode())
    assert header is not None
    cookie, *attributes = header.split("; ")
    assert attributes == ["HttpOnly", "SameSite=Strict", "Path=/"]
    assert TOKEN not in header
    assert access().admits(request(cookie=f"other=1; {cookie}"))
    assert not access(token=TOKEN + "2").admits(request(cookie=cookie))


@pytest.mark.parametrize("form", [b"", b"token=", b"token=wrong", b"\xff", b"a=1&b=2&c=3", b"token=%FF"])
def test_wrong_token_gets_no_cookie(form):
    assert access().cookie_for(form) is None
    assert access(token=None).cookie_for(form) is None


def test_token_is_not_shown_with_the_object():
    assert TOKEN not in repr(access())


@pytest.mark.parametrize(
    ("address", "header", "name"),
    [
        (LOOPBACK, "localhost:9817", "Build1.example.org"),
        (LOOPBACK, "[::1]:9817", "Build1.example.org"),
        (EVERYWHERE, "192.0.2.8:9817", "192.0.2.8"),
        (EVERYWHERE, "build1:9817", "build1"),
        (MetricsAddress(path=Path("/s")), "$(reboot)", "Build1.example.org"),
    ],
)
def test_name_for_commands_is_one_that_clients_can_use(address, header, name):
    assert access(address).shown_name(header) == name
