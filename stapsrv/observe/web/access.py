"""Access to the web page: by the name that a browser calls this host, and by a token. Pure.

A page of a stranger's can have a browser ask any address by a name of the stranger's own (DNS rebinding): so
requests by other names than this host's are refused. The token is kept in a cookie as a value derived from
it, which says nothing of the token, and holds over a restart of the process.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

import attrs

from stapsrv.config.addresses import OFF, MetricsAddress
from stapsrv.errors import ConfigError
from stapsrv.observe.http import HttpRequest

COOKIE = "stapsrv-web"
# Who guesses has a connection for each try: this is beyond all trying.
LEAST_CHARACTERS = 16

_BEARER = "bearer "
_WHERE = "WEB=yes"


@attrs.frozen
class Access:
    """Access to the pages that are served at an address, on a host of this name."""

    _address: MetricsAddress
    _host_name: str
    _token: str | None = attrs.field(default=None, repr=False)

    @classmethod
    def at(cls, address: MetricsAddress | None, *, host_name: str, token: str | None) -> Access:
        """Return who may see pages at an address, with the token if one is given.

        Raises:
            ConfigError: there is no address, others can reach it without a token, or the token is short.
        """
        if address is None or address == OFF:
            raise ConfigError(
                "the web page is served where metrics are, and they are nowhere",
                where=_WHERE,
                remedy="give METRICS an address, such as 9817",
            )
        return cls(address, host_name, token)

    def __attrs_post_init__(self) -> None:
        if self._token is not None and len(self._token) < LEAST_CHARACTERS:
            raise ConfigError(
                f"the token is shorter than {LEAST_CHARACTERS} characters",
                where=_WHERE,
                remedy="make one: openssl rand -hex 16",
            )
        if self._token is None and not self._is_local:
            raise ConfigError(
                f"others can reach {self._address}, and there is no token",
                where=_WHERE,
                remedy="name a file with one (WEB_TOKEN_FILE), or have METRICS at 127.0.0.1 or unix:PATH",
            )

    @property
    def wants_token(self) -> bool:
        """Whether pages are for those alone who know the token."""
        return self._token is not None

    def knows_host(self, header: str) -> bool:
        """Whether a request's Host header has a name of this host.

        That is a loopback name, or what the address says: itself or, of one that stands for all addresses,
        any address and this host's name. A Unix socket has no name that anybody could give it.
        """
        name = _name_in(header)
        if self._address.path is not None or name == "localhost":
            return True
        asked = _parse(name)
        listening = _parse(self._address.host or "")
        if asked is not None:
            return asked.is_loopback or asked == listening or (listening or asked).is_unspecified
        is_own = name in {self._host_name.lower(), self._host_name.lower().partition(".")[0]}
        return is_own and listening is not None and not listening.is_loopback

    def admits(self, request: HttpRequest) -> bool:
        """Whether a request comes with the token, or with the cookie that is given for it."""
        if self._token is None:
            return True
        authorization = request.headers.get("authorization", "")
        if authorization[: len(_BEARER)].lower() == _BEARER:
            return self._is_token(authorization[len(_BEARER) :].strip())
        return hmac.compare_digest(_cookie_in(request.headers), self._proof)

    def cookie_for(self, form: bytes) -> str | None:
        """Return the Set-Cookie header for a form with the right token, else None."""
        fields = parse_qs(form.decode("utf-8", "replace"), max_num_fields=4)
        if self._token is None or not self._is_token(fields.get("token", [""])[0].strip()):
            return None
        return f"{COOKIE}={self._proof}; HttpOnly; SameSite=Strict; Path=/"

    def shown_name(self, header: str) -> str:
        """Return the name of this host for the commands of somebody who came by this Host header."""
        name = _name_in(header)
        address = _parse(name)
        if self._address.path is not None or name == "localhost" or (address and address.is_loopback):
            return self._host_name
        return name

    @property
    def _is_local(self) -> bool:
        address = _parse(self._address.host or "")
        return self._address.path is not None or (address is not None and address.is_loopback)

    @property
    def _proof(self) -> str:
        return hmac.new((self._token or "").encode(), COOKIE.encode(), hashlib.sha256).hexdigest()

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self._token or "").encode())


def _name_in(header: str) -> str:
    """Return the host in a Host header, without port and brackets, in lower case."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower().removesuffix(".")


def _parse(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _cookie_in(headers: Mapping[str, str]) -> str:
    cookies = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    value = cookies[COOKIE].value if COOKIE in cookies else ""
    return value if value.isascii() else ""
