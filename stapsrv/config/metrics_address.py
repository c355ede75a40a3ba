"""Where metrics and health are to be had. Light to import, like :mod:`stapsrv.config.global_settings`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

LOOPBACK = "127.0.0.1"

_MEANING = (
    "off, unix:PATH, PORT, ADDRESS:PORT or [ADDRESS]:PORT, with an IP address and a port up to 65535 "
    "(127.0.0.1 where there is no address)"
)
_TCP = re.compile(
    r"(?:(?P<name>localhost)?:|(?P<v4>[0-9.]+):|\[(?P<v6>[0-9a-fA-F:.]+)\]:)?(?P<port>[0-9]{1,5})"
)
_UNIX = "unix:"
_OFF = frozenset({"off", "no"})
_HIGHEST = 65_535


class MetricsAddress(NamedTuple):
    """Where to listen: at a path, or else at an IP address and a port; nowhere where there is neither.

    Attributes:
        host: an IP address.
        port: 0 for one that the kernel picks.
        path: of a Unix socket; a relative one lies in the supervisor's own directory.
    """

    host: str | None = None
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"{_UNIX}{self.path}"
        if self.host is None:
            return "off"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


OFF = MetricsAddress()


def parse_metrics_address(text: str) -> MetricsAddress:
    """Read an address; one without a host is on the loopback interface.

    Raises:
        ValueError: it is none; the text is what was expected.
    """
    if text.lower() in _OFF:
        return OFF
    if text.startswith(_UNIX) and text != _UNIX:
        return MetricsAddress(path=Path(text.removeprefix(_UNIX)))
    found = _TCP.fullmatch(text)
    if found is None or int(found["port"]) > _HIGHEST:
        raise ValueError(_MEANING)
    host = found["v4"] or found["v6"] or LOOPBACK
    if not _is_address(host):
        raise ValueError(_MEANING)
    return MetricsAddress(host=host, port=int(found["port"]))


def _is_address(text: str) -> bool:
    import ipaddress  # noqa: PLC0415 - the command line's status seldom comes here

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
