"""The request: a zip becomes a :class:`CompileRequest`, whose parts stap can be given.

A zip that breaks the rules of :mod:`stapsrv.compile.protocol.archive` meets a ProtocolError. A sound zip
that cannot be run meets RequestRejected, whose text the client is sent.

A client states its locale, and the machine owner keys that its kernel trusts, line by line. A line that
cannot be used does not spoil the others: it earns a message, which the client prints. The words of the
messages are the original's (PROTOCOL, log lines).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import attrs

from stapsrv.compile.protocol.archive import RequestFile, read_archive
from stapsrv.config.kernels import is_release_name
from stapsrv.errors import RequestRejected
from stapsrv.text import printable_bytes

# Linux's MAX_ARG_STRLEN (with pages of 4 KiB) less the NUL at the end: no program can be given more.
MAX_ARGUMENT_BYTES = 128 * 1024 - 1
# Of one entry. Clients send at most eight of locale, and few hosts have more than a dozen owner keys.
MAX_LINES = 1_000

LOCALE_KEYS = frozenset(
    {"LANG", "LC_ALL", "LC_CTYPE", "LC_COLLATE", "LC_MESSAGES", "LC_TIME", "LC_MONETARY", "LC_NUMERIC"}
)

_OLDEST_VERSION = "1.0"
_FIRST_VERSION_WITH_LOCALE = (1, 6)
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,7}")
_SYSINFO = re.compile(r"sysinfo: +(\S{1,64}) +(\w{1,64})\s*", re.ASCII)
_METADATA = re.compile(rb"version|sysinfo|locale|mok_fingerprints|argv[1-9][0-9]*")
_ARGUMENT = re.compile(rb"argv([1-9][0-9]*)")
_LOCALE_VALUE = re.compile(rb"[a-zA-Z0-9@_.=-]*")
# A certificate's SHA-1 has 20 pairs. SHA-512's 64 are more than anybody shows and can still name a directory.
_FINGERPRINT = re.compile(rb"[0-9a-f]{2}(?::[0-9a-f]{2}){1,63}")
_MISSING = b"missing"


@attrs.frozen(kw_only=True)
class CompileRequest:
    """A client's request: stap's arguments, and the files that they name."""

    version: str = _OLDEST_VERSION
    release: str  # the kernel's, as ``uname -r`` shows it on the client's host
    arch: str
    arguments: tuple[bytes, ...] = ()  # any bytes but NUL, each at most MAX_ARGUMENT_BYTES
    environment: tuple[tuple[str, str], ...] = ()  # the locale's variables, names unique
    messages: tuple[str, ...] = ()  # lines "Server: ..." for stderr, about what was not accepted
    fingerprints: tuple[str, ...] = ()  # of the machine owner keys that the client's kernel trusts
    mok_missing: bool = False  # the client has no such key and needs one
    # To be laid out under the request's root, parents before children; arguments name them relatively.
    files: tuple[RequestFile, ...] = ()
    directories: tuple[bytes, ...] = ()


def parse_request(payload: bytes, *, max_request_bytes: int) -> CompileRequest:
    """Read the zip that a client sent, whose files have at most ``max_request_bytes`` together, unpacked.

    No sound zip, or one that breaks a rule, is a ProtocolError; one that cannot be run meets RequestRejected.
    Source: PROTOCOL, the request zip.
    """
    archive = read_archive(payload, max_bytes=max_request_bytes)
    metadata = {file.path: file.data for file in archive.files if _METADATA.fullmatch(file.path)}
    version = _parse_version(metadata.get(b"version", b""))
    release, arch = _parse_sysinfo(metadata.get(b"sysinfo"))
    # 1.10 is later than 1.6.
    has_locale = tuple(map(int, version.split("."))) >= _FIRST_VERSION_WITH_LOCALE
    environment, refused = parse_locale(metadata.get(b"locale", b"") if has_locale else b"")
    fingerprints, mok_missing, refused_keys = parse_keys(metadata.get(b"mok_fingerprints", b""))
    return CompileRequest(
        version=version,
        release=release,
        arch=arch,
        arguments=_parse_arguments(metadata),
        environment=tuple(environment.items()),
        messages=(*refused, *refused_keys),
        fingerprints=fingerprints,
        mok_missing=mok_missing,
        files=tuple(file for file in archive.files if file.path not in metadata),
        directories=archive.directories,
    )


def parse_locale(data: bytes) -> tuple[dict[str, str], list[str]]:
    """Return the variables that ``KEY=VALUE`` lines state, and the messages that refused lines earned.

    Of two lines with one key the last holds. Too many lines are RequestRejected.
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
    return environment, messages


def parse_keys(data: bytes) -> tuple[tuple[str, ...], bool, list[str]]:
    """Return the fingerprints of keys, whether a line says ``missing``, and the messages of refused lines.

    Too many lines are RequestRejected.
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
    return tuple(fingerprints), missing, messages


def render_arguments(arguments: Iterable[bytes], *, limit: int = 4_000) -> str:
    """Return arguments for a log line: joined by blanks as in the original's, but always on one line."""
    return printable_bytes(b" ".join(arguments), limit=limit)


def _parse_version(data: bytes) -> str:
    """Read the client's version; absent and empty mean the oldest (seen in the original)."""
    text = data.decode("ascii", "replace").strip() or _OLDEST_VERSION
    if not _VERSION.fullmatch(text):
        raise RequestRejected(f"The request's version '{printable_bytes(data)}' is no version number")
    return text


def _parse_sysinfo(data: bytes | None) -> tuple[str, str]:
    if data is None:
        raise RequestRejected("The request does not say which kernel it is for: it has no sysinfo")
    match = _SYSINFO.fullmatch(data.decode("ascii", "replace"))
    if match is None or not is_release_name(match[1]):
        raise RequestRejected(
            f"The request's sysinfo '{printable_bytes(data)}' is not 'sysinfo: RELEASE ARCHITECTURE'"
        )
    return match[1], match[2]


def _parse_arguments(metadata: Mapping[bytes, bytes]) -> tuple[bytes, ...]:
    numbered = {
        int(match[1]): data for path, data in metadata.items() if (match := _ARGUMENT.fullmatch(path))
    }
    arguments = []
    for number in range(1, len(numbered) + 1):
        if number not in numbered:
            raise RequestRejected(f"The request has no argv{number} and has argv{max(numbered)}")
        argument = numbered[number]
        if b"\0" in argument:
            raise RequestRejected(f"The request's argv{number} holds a NUL, which no program can be given")
        if len(argument) > MAX_ARGUMENT_BYTES:
            raise RequestRejected(
                f"The request's argv{number} has {len(argument)} bytes,"
                f" a program can be given {MAX_ARGUMENT_BYTES} in one argument"
            )
        arguments.append(argument)
    return tuple(arguments)


def _lines(data: bytes, entry: str) -> list[bytes]:
    lines = data.split(b"\n", MAX_LINES + 1)
    if not lines[-1]:
        lines.pop()
    if len(lines) > MAX_LINES:
        raise RequestRejected(f"The request's {entry} has more than {MAX_LINES} lines")
    return lines
