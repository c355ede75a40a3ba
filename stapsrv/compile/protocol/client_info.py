"""What a client states line by line: its locale, and the machine owner keys that its kernel trusts.

A line that cannot be used does not spoil the others: it earns a message, which the client prints. The
words of the messages are the original's (PROTOCOL, log lines).
"""

from __future__ import annotations

import re

import attrs

from stapsrv.errors import RequestRejected
from stapsrv.text import printable_bytes

# Of one entry. Clients send at most eight of locale, and few hosts have more than a dozen owner keys.
MAX_LINES = 1_000

LOCALE_KEYS = frozenset(
    {"LANG", "LC_ALL", "LC_CTYPE", "LC_COLLATE", "LC_MESSAGES", "LC_TIME", "LC_MONETARY", "LC_NUMERIC"}
)

_LOCALE_VALUE = re.compile(rb"[a-zA-Z0-9@_.=-]*")
# A certificate's SHA-1 has 20 pairs. SHA-512's 64 are more than anybody shows and can still name a directory.
_FINGERPRINT = re.compile(rb"[0-9a-f]{2}(?::[0-9a-f]{2}){1,63}")
_MISSING = b"missing"


@attrs.frozen
class ClientLocale:
    """The variables to lay over the server's environment, and the messages that refused lines earned."""

    environment: tuple[tuple[str, str], ...] = ()
    messages: tuple[str, ...] = ()


@attrs.frozen
class ClientKeys:
    """The keys that the client's kernel trusts, or that it has none; and the messages of refused lines."""

    fingerprints: tuple[str, ...] = ()  # such as ab:01:..., in lower case
    missing: bool = False
    messages: tuple[str, ...] = ()


def parse_locale(data: bytes) -> ClientLocale:
    """Read ``KEY=VALUE`` lines; of two lines with one key the last holds. Too many: RequestRejected.

    Source: PROTOCOL, the request zip; the splitting at the first ``=`` was seen in the original.
    """
    environment: dict[str, str] = {}
    messages = []
    for line in _lines(data, "locale"):
        key, equals, value = line.partition(b"=")
        name = printable_bytes(key)
        if not equals:
            messages.append(f"Server: Localization key=value line '{name}' cannot be parsed")
        elif name not in LOCALE_KEYS:
            messages.append(f"Server: Localization key '{name}' not found in global list")
        elif not _LOCALE_VALUE.fullmatch(value):
            messages.append(
                f"Server: Localization value '{printable_bytes(value)}' contains illegal characters"
            )
        else:
            environment[name] = value.decode("ascii")
    return ClientLocale(tuple(environment.items()), tuple(messages))


def parse_keys(data: bytes) -> ClientKeys:
    """Read lines that are fingerprints or the word ``missing``. Too many: RequestRejected.

    Source: PROTOCOL, the request zip and machine owner keys.
    """
    fingerprints: dict[str, None] = {}
    missing = False
    messages = []
    for line in _lines(data, "mok_fingerprints"):
        if line == _MISSING:
            missing = True
        elif _FINGERPRINT.fullmatch(line):
            fingerprints[line.decode("ascii")] = None
        else:
            messages.append(
                f"Server: MOK fingerprint value '{printable_bytes(line)}' isn't in the correct format"
            )
    return ClientKeys(tuple(fingerprints), missing, tuple(messages))


def _lines(data: bytes, entry: str) -> list[bytes]:
    lines = data.split(b"\n", MAX_LINES + 1)
    if not lines[-1]:
        lines.pop()
    if len(lines) > MAX_LINES:
        raise RequestRejected(f"The request's {entry} has more than {MAX_LINES} lines")
    return lines
