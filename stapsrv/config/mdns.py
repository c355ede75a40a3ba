"""What the network is to hear: whether, on which interfaces, and under which host name.

Light to import, like :mod:`stapsrv.config.global_settings`, whose variables these are.
"""

from __future__ import annotations

from typing import NamedTuple

_NAME_CHARACTERS = 15
"""The kernel's limit (IFNAMSIZ)."""
_LABEL_CHARACTERS = 63


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
        """Whether servers are advertised: they are, unless somebody says no."""
        return self.enabled is not False

    def over(self, base: MdnsSettings) -> MdnsSettings:
        """Return what holds when this source goes before ``base``."""
        return MdnsSettings(
            *(theirs if own is None else own for own, theirs in zip(self, base, strict=True))  # type: ignore[arg-type]
        )


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
        if not (_is_interface_name(word) or _is_address(word)):
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
    inner = label.replace("-", "")
    if (
        not (inner.isascii() and inner.isalnum())
        or label.strip("-") != label
        or len(label) > _LABEL_CHARACTERS
    ):
        raise ValueError("a host name of up to 63 letters, digits and dashes, without a domain")
    return label


def _is_interface_name(word: str) -> bool:
    """Whether the kernel could have it; a colon would make an alias, which is no interface."""
    return len(word) <= _NAME_CHARACTERS and not {"/", ":"} & {*word} and word not in {".", ".."}


def _is_address(word: str) -> bool:
    import ipaddress  # noqa: PLC0415 - the command line's status never comes here

    try:
        ipaddress.ip_address(word)
    except ValueError:
        return False
    return True
