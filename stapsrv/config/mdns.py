"""What the network is to hear: whether, on which interfaces, and under which host name.

Light to import, like :mod:`stapsrv.config.global_settings`, whose variables these are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from stapsrv.errors import ConfigError

DEFAULT = False
"""Whether servers are advertised where nobody says yes or no."""
_SWITCH = "STAPSRV_MDNS"
"""An environment variable: ``yes`` or ``no``, for containers and for tests."""

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_INTERFACE_NAME = re.compile(r"[^\s/:]{1,15}")
"""As the kernel takes them (IFNAMSIZ); a colon would make an alias, which is no interface."""
_NOT_NAMES = frozenset({".", ".."})


class MdnsSettings(NamedTuple):
    """How this host's servers are advertised, as far as one source says it; None where it does not.

    Attributes:
        enabled: False: not at all, and nothing of it is even loaded.
        interfaces: names and addresses; without, all that are up and can multicast.
        host: the host name to announce, one label without ``.local``; without, this host's own.
    """

    enabled: bool | None = None
    interfaces: tuple[str, ...] | None = None
    host: str | None = None

    @property
    def is_enabled(self) -> bool:
        """Whether servers are advertised."""
        return DEFAULT if self.enabled is None else self.enabled

    def over(self, base: MdnsSettings) -> MdnsSettings:
        """Return what holds when this source goes before ``base``."""
        return MdnsSettings(
            *(theirs if own is None else own for own, theirs in zip(self, base, strict=True))  # type: ignore[arg-type]
        )


def mdns_from_environ(environ: Mapping[str, str]) -> MdnsSettings:
    """Return what the environment says, which every other source goes before.

    Raises:
        ConfigError: it says something that is neither yes nor no.
    """
    text = environ.get(_SWITCH)
    if not text:
        return MdnsSettings()
    try:
        return MdnsSettings(enabled=parse_switch(text))
    except ValueError as exc:
        raise ConfigError(f"expected {exc}", where=f"{_SWITCH}={text}") from exc


def parse_switch(text: str) -> bool:
    """Read ``yes`` or ``no``.

    Raises:
        ValueError: neither; the text is what was expected.
    """
    switches = {"yes": True, "no": False}
    if text.lower() not in switches:
        raise ValueError("yes or no")
    return switches[text.lower()]


def parse_interfaces(text: str) -> tuple[str, ...]:
    """Read names of interfaces and addresses, with commas or blanks between them.

    That an interface exists is not checked: it may come later.

    Raises:
        ValueError: one cannot be either; the text is what was expected.
    """
    words = tuple(dict.fromkeys(text.replace(",", " ").split()))
    for word in words:
        if not (_is_address(word) or (_INTERFACE_NAME.fullmatch(word) and word not in _NOT_NAMES)):
            raise ValueError(f"names of interfaces or IP addresses, which {word!r} is not")
    if not words:
        raise ValueError("at least one name of an interface or IP address")
    return words


def parse_host(text: str) -> str:
    """Read a host name, with or without ``.local``.

    Raises:
        ValueError: not one label of letters, digits and dashes; the text is what was expected.
    """
    label = text.removesuffix(".").removesuffix(".local")
    if _LABEL.fullmatch(label) is None:
        raise ValueError("a host name of up to 63 letters, digits and dashes, without a domain")
    return label


def _is_address(word: str) -> bool:
    import ipaddress  # noqa: PLC0415 - the command line's status never comes here

    try:
        ipaddress.ip_address(word)
    except ValueError:
        return False
    return True
