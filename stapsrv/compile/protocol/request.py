"""The request: a zip becomes a :class:`CompileRequest`, whose parts stap can be given.

A zip that breaks the rules of :mod:`stapsrv.compile.protocol.archive` meets a ProtocolError. A sound zip
that cannot be run meets RequestRejected, whose text the client is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import attrs

from stapsrv.compile.protocol.archive import RequestFile, read_archive
from stapsrv.compile.protocol.client_info import ClientLocale, parse_keys, parse_locale
from stapsrv.config.kernels import is_release_name
from stapsrv.errors import RequestRejected
from stapsrv.text import printable_bytes

# Linux's MAX_ARG_STRLEN (with pages of 4 KiB) less the NUL at the end: no program can be given more.
MAX_ARGUMENT_BYTES = 128 * 1024 - 1

_OLDEST_VERSION = "1.0"
_FIRST_VERSION_WITH_LOCALE = (1, 6)
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,7}")
_SYSINFO = re.compile(r"sysinfo: +(\S{1,64}) +(\w{1,64})\s*", re.ASCII)
_METADATA = re.compile(rb"version|sysinfo|locale|mok_fingerprints|argv[1-9][0-9]*")
_ARGUMENT = re.compile(rb"argv([1-9][0-9]*)")


@attrs.frozen(kw_only=True)
class CompileRequest:
    """What a client wants compiled, and from what."""

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
    locale = ClientLocale()
    # 1.10 is later than 1.6.
    if tuple(map(int, version.split("."))) >= _FIRST_VERSION_WITH_LOCALE:
        locale = parse_locale(metadata.get(b"locale", b""))
    keys = parse_keys(metadata.get(b"mok_fingerprints", b""))
    return CompileRequest(
        version=version,
        release=release,
        arch=arch,
        arguments=_parse_arguments(metadata),
        environment=locale.environment,
        messages=locale.messages + keys.messages,
        fingerprints=keys.fingerprints,
        mok_missing=keys.missing,
        files=tuple(file for file in archive.files if file.path not in metadata),
        directories=archive.directories,
    )


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
