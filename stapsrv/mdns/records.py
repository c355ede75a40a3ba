"""Names and TXT records of compile servers (RFC 6763), in the form of the original's own. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import attrs

SERVICE_TYPE = "_stap._tcp.local."

# A service's name is one DNS label (RFC 6763, 4.1.1).
NAME_BYTES = 63
# The length of a string in a TXT record is one byte.
STRING_BYTES = 255
# What a multicast packet (9000 bytes at most, RFC 6762, 17) has room for beside the other records.
TEXT_BYTES = 8000

_TITLE = "Systemtap Compile Server on "


@attrs.frozen(kw_only=True)
class Advertisement:
    """One kernel release that a server serves."""

    # ``RELEASE ARCH``; a client uses a server only if this is its own.
    sysinfo: str
    port: int
    # Of the protocol, as in responses.
    version: str
    # The certificate's, hex pairs joined by ``:``; a client trusts by it.
    serial: str
    # The server's own ``-R… -B… -D… -I…``, each with its value attached; for people to read.
    options: tuple[str, ...] = ()
    # The fingerprints of its machine owner keys, as mokutil shows them.
    moks: tuple[str, ...] = ()
    # Those that it listens on, packed; zeros for all of a protocol, None for all of the host.
    addresses: frozenset[bytes] | None = None

    @property
    def text(self) -> bytes:
        """The TXT record: strings ``KEY=VALUE``, each after its length."""
        return encode_strings([*self._strings(), *self._mok_strings()])

    @property
    def omitted(self) -> tuple[str, ...]:
        """The options and fingerprints that :attr:`text` has no room for."""
        # The original makes no advertisement at all for options that are too long ("Invalid record").
        return self.options[self._fitting_options :] + self.moks[len(self._mok_strings()) :]

    @property
    def _fitting_options(self) -> int:
        # Whole ones only, from the first: half an option is misleading. One blank less than options.
        room = STRING_BYTES - len("optinfo=")
        return _count_fitting((len(_encoded(option)) + 1 for option in self.options), room + 1)

    def _strings(self) -> list[bytes]:
        return [
            _string("sysinfo", self.sysinfo),
            _string("optinfo", " ".join(self.options[: self._fitting_options])),
            _string("version", self.version),
            _string("certinfo", self.serial),
        ]

    def _mok_strings(self) -> list[bytes]:
        room = TEXT_BYTES - len(encode_strings(self._strings()))
        strings = [_string("mok_info", mok) for mok in self.moks]
        return strings[: _count_fitting((len(string) + 1 for string in strings), room)]


@attrs.frozen(kw_only=True)
class Service:
    """An advertisement under its name on the network; ``name`` and ``host`` are one DNS label each."""

    name: str
    host: str
    # A higher one has it announced again, whatever else is equal.
    generation: int
    advertisement: Advertisement


@attrs.frozen(kw_only=True)
class ResponderEvents:
    """Events of the network: other hosts' claims to our names, and the responder's own errors."""

    host_contested: bool = False
    contested: frozenset[str] = frozenset()
    errors: tuple[str, ...] = ()


def instance_name(host: str, number: int) -> str:
    """Return the name of a host's first, second … service, at most 63 bytes; the second ends in `` #2``."""
    suffix = f" #{number}" if number > 1 else ""
    return _cut(_TITLE + _first_label(host), NAME_BYTES - len(suffix)).rstrip() + suffix


def host_label(host: str, number: int) -> str:
    """Return the host's name on the network, at most 63 bytes; the second is ``HOST-2``, as avahi has it."""
    suffix = f"-{number}" if number > 1 else ""
    return _cut(_first_label(host), NAME_BYTES - len(suffix)) + suffix


def encode_strings(strings: Iterable[bytes]) -> bytes:
    """Return the data of a TXT record; each string has at most 255 bytes."""
    return b"".join(bytes([len(string)]) + string for string in strings)


def parse_text(text: bytes) -> dict[str, list[str]]:
    """Return a TXT record from the network as key to values, in order; malformed strings are skipped."""
    found: dict[str, list[str]] = {}
    position = 0
    while position < len(text):
        end = position + 1 + text[position]
        key, _, value = text[position + 1 : end].decode("utf-8", "replace").partition("=")
        if key:
            found.setdefault(key.lower(), []).append(value)
        position = end
    return found


def _first_label(host: str) -> str:
    # A dot would end the DNS label.
    return host.partition(".")[0]


def _string(key: str, value: str) -> bytes:
    return f"{key}=".encode() + _encoded(_cut(value, STRING_BYTES - len(key) - 1))


def _count_fitting(sizes: Iterable[int], room: int) -> int:
    return sum(1 for total in itertools.accumulate(sizes) if total <= room)


def _encoded(text: str) -> bytes:
    # Options come from a command line, whose bytes may be anything.
    return text.encode("utf-8", "surrogateescape")


def _cut(text: str, room: int) -> str:
    """Return the longest start of ``text`` that ``room`` bytes hold, in whole characters."""
    return text[: _count_fitting((len(_encoded(character)) for character in text), room)]
