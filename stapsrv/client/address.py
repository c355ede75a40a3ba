"""The address of a compile server: a host and a port, as people write them. Pure."""

from __future__ import annotations

import re

import attrs

from stapsrv.client.errors import ClientError
from stapsrv.text import printable

_HIGHEST_PORT = 65_535
_FORM = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[\w.-]+)):(?P<port>[0-9]{1,5})")


@attrs.frozen(order=True)
class Address:
    """A server's host, a name or an IP address without brackets, and its port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``HOST:PORT``, with an IPv6 address in brackets; else a ClientError.

        Names of hosts are the same in capitals.
        """
        found = _FORM.fullmatch(text)
        if found is None or not 0 < int(found["port"]) <= _HIGHEST_PORT:
            raise ClientError(
                f"{printable(text)!r} is not the address of a server",
                remedy="write HOST:PORT, with an IPv6 address in brackets",
            )
        host = found["v6"] or found["host"]
        return cls(host.lower() if found["v6"] is None else host, int(found["port"]))
