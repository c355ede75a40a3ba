"""What is said of a compile server on the network: its name, and the contents of its TXT record.

Pure: facts in, bytes out. The forms are those of the original's own advertisement, as ``avahi-browse``
shows it (PROTOCOL, mDNS; RFC 6763).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import attrs

SERVICE_TYPE = "_stap._tcp.local."

NAME_BYTES = 63
"""Of a service's name: it is one DNS label (RFC 6763, 4.1.1)."""
STRING_BYTES = 255
"""Of one string of a TXT record: its length is written in one byte."""
TEXT_BYTES = 8000
"""Of a whole TXT record: what a multicast packet (9000 bytes at most, RFC 6762, 17) carries with the rest."""

_TITLE = "Systemtap Compile Server on "


@attrs.frozen(kw_only=True)
class Advertisement:
    """One kernel release that a server serves, as clients hear of it.

    Attributes:
        sysinfo: ``RELEASE ARCH``; a client is served by a server whose is its own.
        port: the listener's.
        version: of the protocol, as in answers.
        serial: the certificate's serial number, hex pairs joined by ``:``; by it a client knows whether
            it trusts the server.
        options: the server's own ``-R… -B… -D… -I…``, each with its value attached; for people to read.
        moks: the fingerprints of its machine owner keys, as mokutil shows them.
        addresses: those that the server listens on, packed (one of zeros for all of its protocol); None for
            all that this host has.
    """

    sysinfo: str
    port: int
    version: str
    serial: str
    options: tuple[str, ...] = ()
    moks: tuple[str, ...] = ()
    addresses: frozenset[bytes] | None = None

    @property
    def text(self) -> bytes:
        """The TXT record: strings ``KEY=VALUE``, each after its length."""
        return encode_strings([*self._strings(), *self._mok_strings()])

    @property
    def omitted(self) -> tuple[str, ...]:
        """The options and fingerprints that :attr:`text` has no room for.

        The original makes no advertisement at all for options that are too long ("Invalid record").
        """
        return self.options[self._fitting_options :] + self.moks[len(self._mok_strings()) :]

    @property
    def _fitting_options(self) -> int:
        # Whole ones only, from the first: half an option says nothing. One blank less than there are options.
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
    """An advertisement under the name that it has on the network.

    Attributes:
        name: one label, such as ``Systemtap Compile Server on build #2``.
        host: the label that stands for this host's addresses: ``build``, for ``build.local``.
        port: the listener's.
        text: the TXT record.
        addresses: see :class:`Advertisement`; it is said only where all that this host has are among them.
    """

    name: str
    host: str
    port: int
    text: bytes
    addresses: frozenset[bytes] | None = None


@attrs.frozen(kw_only=True)
class News:
    """What was heard on the network that needs an answer.

    Attributes:
        host_contested: another host claims this one's name.
        contested: names of services that another host claims.
        troubles: what went wrong inside the responder.
    """

    host_contested: bool = False
    contested: frozenset[str] = frozenset()
    troubles: tuple[str, ...] = ()


def server_options(
    *, runtime: str | None, build: Iterable[str], define: Iterable[str], include: Iterable[str]
) -> tuple[str, ...]:
    """Return a server's own options in the original's order, each with its value attached, unquoted."""
    return (
        *([f"-R{runtime}"] if runtime is not None else []),
        *(f"-B{value}" for value in build),
        *(f"-D{value}" for value in define),
        *(f"-I{value}" for value in include),
    )


def instance_name(host: str, number: int) -> str:
    """Return the name of a service, at most 63 bytes of UTF-8.

    Args:
        host: the host's name. A dot would end the DNS label, so only what is before it counts.
        number: 1 for the first of its name; others end in `` #2``, `` #3`` …
    """
    suffix = f" #{number}" if number > 1 else ""
    room = NAME_BYTES - len(suffix)
    return _cut(_TITLE + host.partition(".")[0], room).rstrip() + suffix


def host_label(host: str, number: int) -> str:
    """Return the host's own name on the network, at most 63 bytes; the second of its name is ``HOST-2``.

    That is how avahi names hosts, too.
    """
    suffix = f"-{number}" if number > 1 else ""
    return _cut(host.partition(".")[0], NAME_BYTES - len(suffix)) + suffix


def encode_strings(strings: Iterable[bytes]) -> bytes:
    """Return the data of a TXT record; each string has at most 255 bytes."""
    return b"".join(bytes([len(string)]) + string for string in strings)


def parse_text(text: bytes) -> dict[str, list[str]]:
    """Read a TXT record from the network: key to values, in order; nonsense is skipped, never refused."""
    found: dict[str, list[str]] = {}
    for string in _strings_of(text):
        key, _, value = string.decode("utf-8", "replace").partition("=")
        if key:
            found.setdefault(key.lower(), []).append(value)
    return found


def _strings_of(text: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(text):
        length = text[position]
        yield text[position + 1 : position + 1 + length]
        position += 1 + length


def _string(key: str, value: str) -> bytes:
    return f"{key}=".encode() + _encoded(_cut(value, STRING_BYTES - len(key) - 1))


def _count_fitting(sizes: Iterable[int], room: int) -> int:
    """Return how many of ``sizes``, from the first, ``room`` holds."""
    return sum(1 for total in itertools.accumulate(sizes) if total <= room)


def _encoded(text: str) -> bytes:
    # Options come from a command line, whose bytes may be anything.
    return text.encode("utf-8", "surrogateescape")


def _cut(text: str, room: int) -> str:
    """Return as many characters of ``text``, from the first, as ``room`` bytes hold."""
    return text[: _count_fitting((len(_encoded(character)) for character in text), room)]
