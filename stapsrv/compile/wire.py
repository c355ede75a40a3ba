"""What travels over a connection: bytes to a request, an answer to bytes.

Nothing here reads, waits or looks at a clock. A session feeds a :class:`FrameReader` with what arrives,
hands the payload to :func:`parse_request` and sends what :func:`encode_response` returns. A peer that
breaks the framing or the rules of the zip meets a ProtocolError; a sound zip that is no request that
can be run meets RequestRejected, whose text the client is sent.
"""

from __future__ import annotations

import io
import re
import stat
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

import attrs

from stapsrv.compile.locales import StatedLocale, parse_keys, parse_locale
from stapsrv.compile.zips import RequestFile, printable, read_archive
from stapsrv.config.kernels import is_release_name
from stapsrv.errors import ProtocolError, RequestRejected
from stapsrv.refusal import Refusal

ANSWER_DIRECTORY = "stap000000"
"""Clients look for a directory ``stap??????`` in the answer."""
MAX_ARGUMENT_BYTES = 128 * 1024 - 1
"""Linux's MAX_ARG_STRLEN (with pages of 4 KiB) less the NUL at the end: no program can be given more."""

_LENGTH_BYTES = 4

_OLDEST_VERSION = "1.0"
_FIRST_VERSION_WITH_LOCALE = (1, 6)
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,7}")
_SYSINFO = re.compile(r"sysinfo: +(\S{1,64}) +(\w{1,64})\s*", re.ASCII)
_METADATA = re.compile(rb"version|sysinfo|locale|mok_fingerprints|argv[1-9][0-9]*")
_ARGUMENT = re.compile(rb"argv([1-9][0-9]*)")

_EARLIEST = (1980, 1, 1, 0, 0, 0)
_STORED_BYTES = 128


class FrameReader:
    """Puts a request's frame together: a 4-byte big-endian length, then that many bytes, then nothing.

    Args:
        max_bytes: the largest payload that is taken; memory is bounded by it.

    Source: PROTOCOL, the connection.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._header = bytearray()
        self._announced: int | None = None
        self._missing = 0
        self._body = bytearray()

    @property
    def missing_bytes(self) -> int:
        """How many bytes the peer has announced and not sent yet, those beyond the limit included."""
        return max(0, self._missing)

    @property
    def payload(self) -> bytes | None:
        """The payload once it is whole, else None.

        An empty one is a visit: the peer only wanted to see the certificate. When it is None and
        ``feed_eof`` did not object, the peer connected and left without a byte.
        """
        if self._announced is None or len(self._body) < self._announced:
            return None
        return bytes(self._body)

    def feed(self, data: bytes) -> None:
        """Take in what arrived, in chunks of any size.

        Raises:
            ProtocolError: the frame announces more than ``max_bytes``, or bytes follow its end.
        """
        if self._announced is None:
            missing = _LENGTH_BYTES - len(self._header)
            self._header += data[:missing]
            data = data[missing:]
            if len(self._header) < _LENGTH_BYTES:
                return
            self._announced = int.from_bytes(self._header, "big")
            self._missing = self._announced - len(data)
        self._check_length(self._announced)
        surplus = len(self._body) + len(data) - self._announced
        if surplus > 0:
            raise ProtocolError(
                f"{surplus} bytes or more follow the {self._announced} bytes that the request announces"
            )
        self._body += data
        self._missing = -surplus

    def feed_eof(self) -> None:
        """Take in that the peer sends no more.

        Raises:
            ProtocolError: it left within the frame.
        """
        if self._announced is not None and len(self._body) < self._announced:
            raise ProtocolError(
                f"The request ended after {len(self._body)} of the {self._announced} bytes that it announces"
            )
        if self._announced is None and self._header:
            raise ProtocolError(
                f"The request ended after {len(self._header)} of the {_LENGTH_BYTES} bytes of its length"
            )

    def _check_length(self, announced: int) -> None:
        if announced > self._max_bytes:
            # Scripts look for the first words (PROTOCOL, log lines).
            raise ProtocolError(
                "Error size of (compressed) request file is too large:"
                f" it announces {announced} bytes, the limit is {self._max_bytes}",
                remedy="--max-compressed-request raises the limit",
                refusal=Refusal.REQUEST_SIZE,
            )


@attrs.frozen(kw_only=True)
class CompileRequest:
    """What a client wants compiled, and from what.

    Attributes:
        version: the client's, such as ``4.8``.
        release: the kernel's, as ``uname -r`` shows it on the client's host.
        arch: the client's architecture, as it states it.
        arguments: for stap, in order; any bytes but NUL, each at most ``MAX_ARGUMENT_BYTES``.
        environment: the locale's variables to lay over the server's environment, names unique.
        messages: lines ``Server: …`` for the answer's standard error, about what was not accepted.
        fingerprints: of the machine owner keys that the client's kernel trusts.
        mok_missing: the client has no such key and needs one.
        files: all to be laid out under the request's root; arguments name them relatively.
        directories: all that is needed for them, and empty ones; parents before children.
    """

    version: str = _OLDEST_VERSION
    release: str
    arch: str
    arguments: tuple[bytes, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    messages: tuple[str, ...] = ()
    fingerprints: tuple[str, ...] = ()
    mok_missing: bool = False
    files: tuple[RequestFile, ...] = ()
    directories: tuple[bytes, ...] = ()

    @property
    def version_tuple(self) -> tuple[int, ...]:
        """The version's numbers, to be compared."""
        return _version_tuple(self.version)

    @property
    def sysinfo(self) -> str:
        """``RELEASE ARCH``, as servers advertise it."""
        return f"{self.release} {self.arch}"

    @property
    def shown_arguments(self) -> str:
        """The arguments for a log line (see :func:`render_arguments`)."""
        return render_arguments(self.arguments)


def parse_request(payload: bytes, *, max_request_bytes: int) -> CompileRequest:
    """Read the zip that a client sent.

    Args:
        payload: the zip, whole.
        max_request_bytes: of all its files together, unpacked.

    Raises:
        ProtocolError: no sound zip, or one that breaks the rules of :mod:`stapsrv.compile.zips`.
        RequestRejected: it cannot be run: no system, a missing or impossible argument, no version.

    Source: PROTOCOL, the request zip.
    """
    archive = read_archive(payload, max_bytes=max_request_bytes)
    metadata = {file.path: file.data for file in archive.files if _METADATA.fullmatch(file.path)}
    version = _parse_version(metadata.get(b"version", b""))
    release, arch = _parse_sysinfo(metadata.get(b"sysinfo"))
    locale = StatedLocale()
    if _version_tuple(version) >= _FIRST_VERSION_WITH_LOCALE:
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
    """Return ``arguments`` for a log line: joined by blanks as in the original's, but always on one line.

    Args:
        arguments: as the client sent them.
        limit: in characters, after which an ellipsis stands for what is left.
    """
    return printable(b" ".join(arguments), limit=limit)


def _parse_version(data: bytes) -> str:
    """Read the client's version; absent and empty mean the oldest (seen in the original)."""
    text = data.decode("ascii", "replace").strip() or _OLDEST_VERSION
    if not _VERSION.fullmatch(text):
        raise RequestRejected(f"The request's version '{printable(data)}' is no version number")
    return text


def _version_tuple(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _parse_sysinfo(data: bytes | None) -> tuple[str, str]:
    if data is None:
        raise RequestRejected("The request does not say which kernel it is for: it has no sysinfo")
    match = _SYSINFO.fullmatch(data.decode("ascii", "replace"))
    if match is None or not is_release_name(match[1]):
        raise RequestRejected(
            f"The request's sysinfo '{printable(data)}' is not 'sysinfo: RELEASE ARCHITECTURE'"
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


def _check_answer_path(_file: object, _attribute: object, path: str) -> None:
    """Refuse a path that would not come out where it says, below the client's own directory."""
    path.encode("utf-8")  # UnicodeEncodeError is a ValueError
    if {"", ".", ".."} & set(path.split("/")) or "\0" in path:
        raise ValueError(f"{path!r} is no path for an answer's file")


@attrs.frozen
class AnswerFile:
    """A file of an answer.

    Attributes:
        path: relative, such as ``stap000000/NAME.ko``, or ``signing_key.x509`` at the root.
        data: the contents.

    Raises:
        ValueError: the path is absolute, not normal, or cannot be written in UTF-8.
    """

    path: str = attrs.field(validator=_check_answer_path)
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")


@attrs.frozen
class CompileResponse:
    """What a client is sent.

    Attributes:
        version: the protocol version, which is the installed stap's.
        rc: stap's exit status, or 1 when this server says no.
        stdout: what stap printed.
        stderr: likewise, with the server's own lines ``Server: …``.
        files: the module and what goes with it.
    """

    version: str
    rc: int
    stdout: bytes = attrs.field(default=b"", repr=lambda data: f"<{len(data)} bytes>")
    stderr: bytes = attrs.field(default=b"", repr=lambda data: f"<{len(data)} bytes>")
    files: tuple[AnswerFile, ...] = ()


def encode_response(response: CompileResponse, *, deflate: bool = True) -> bytes:
    """Return the zip that the client is sent; equal responses give equal bytes.

    ``stap000000`` is always in it, so a client never finds fewer directories than it looks for. Times
    are the earliest that a zip can hold: no client looks at them.

    Args:
        response: what is to be sent.
        deflate: make it a third of the size, for a network that is slower than two milliseconds' work; else
            files are stored as they are.

    Raises:
        ValueError: two entries would have one path: a fault of this program.

    Source: PROTOCOL, the response zip.
    """
    entries = {
        "version": response.version.encode("utf-8"),
        "rc": str(response.rc).encode("ascii"),
        "stdout": response.stdout,
        "stderr": response.stderr,
    }
    directories = {ANSWER_DIRECTORY}
    for file in response.files:
        if file.path in entries:
            raise ValueError(f"{file.path!r} would be twice in an answer")
        entries[file.path] = file.data
        directories |= {str(parent) for parent in PurePosixPath(file.path).parents} - {"."}
    if clashing := directories & entries.keys():
        raise ValueError(f"{min(clashing)!r} would be a file and a directory in an answer")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(directories):
            archive.writestr(_directory_header(path), b"")
        for path, data in entries.items():
            # What is tiny hardly shrinks. Level 1 takes a third of the default's time for a few percent more.
            small = not deflate or len(data) < _STORED_BYTES
            method = zipfile.ZIP_STORED if small else zipfile.ZIP_DEFLATED
            archive.writestr(_file_header(path), data, method, compresslevel=1)
    return buffer.getvalue()


def _file_header(path: str) -> zipfile.ZipInfo:
    return _header(path, stat.S_IFREG | 0o644)


def _directory_header(path: str) -> zipfile.ZipInfo:
    header = _header(f"{path}/", stat.S_IFDIR | 0o700)
    header.external_attr |= 0x10  # DOS's own bit for a directory, which Info-ZIP sets too
    return header


def _header(path: str, mode: int) -> zipfile.ZipInfo:
    header = zipfile.ZipInfo(path, _EARLIEST)
    header.create_system = 3  # Unix, whose modes these are
    header.external_attr = mode << 16
    return header
