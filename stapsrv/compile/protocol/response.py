"""The response: stap's exit status, its output and the module become the zip that a client is sent.

Many clients may be sent one result at the same time, each with a few lines or a signature of its own. So a
zip is a list of parts, and the large ones, the contents of files or what they were deflated to, are not
copied: all zips of a result share them. zipfile, which copies, does not write them.
"""

from __future__ import annotations

import functools
import stat
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import attrs

# Clients look for a directory of the pattern stap??????.
RESPONSE_DIRECTORY = "stap000000"

# APPNOTE 4.3.7, 4.3.12 and 4.3.16: an entry's header, its line in the directory, and the end.
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_DIRECTORY_LINE = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION = 20
_UNIX = 3 << 8  # whose modes these are
_UTF8 = 0x800
_DOS_DIRECTORY = 0x10  # DOS's own bit for a directory, which Info-ZIP sets too
_STORED, _DEFLATED = 0, 8
# The earliest time that a zip can hold: no client looks at it, and equal responses stay equal.
_MIDNIGHT, _EARLIEST_DAY = 0, 1 << 5 | 1
_STORED_BYTES = 128
# The last block of a deflated stream, empty (RFC 1951, 3.2.3).
_LAST_BLOCK = b"\x03\x00"


class _Content:
    """Bytes, and what they are deflated to, once for all who need it; in any thread."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._making = threading.Lock()
        self._deflated: bytes | None = None

    @property
    def deflated(self) -> bytes:
        """Blocks of a deflated stream, none of them its last; more may follow that know nothing of these."""
        with self._making:
            if self._deflated is None:
                self._deflated = _deflate(self._data)
            return self._deflated

    @functools.cached_property
    def crc(self) -> int:
        return zlib.crc32(self._data)


def _deflate(data: bytes) -> bytes:
    # Level 1 takes a third of the default's time for a few percent more.
    deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush(zlib.Z_FULL_FLUSH)


def _check_path(_file: object, _attribute: object, path: str) -> None:
    """Refuse a path that would not come out where it says, below the client's own directory."""
    path.encode("utf-8")  # UnicodeEncodeError is a ValueError
    if {"", ".", ".."} & set(path.split("/")) or "\0" in path:
        raise ValueError(f"{path!r} is no path for a response's file")


@attrs.frozen
class ResponseFile:
    """A file of a response, its path relative, such as ``stap000000/NAME.ko``; else a ValueError.

    ``before`` and ``after``, which are small, are for one client alone, with ``data``, which is shared,
    between them. An evolved copy shares what the data is deflated to.
    """

    path: str = attrs.field(validator=_check_path)
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    before: bytes = attrs.field(default=b"", repr=False)
    after: bytes = attrs.field(default=b"", repr=False)
    content: _Content = attrs.field(
        default=attrs.Factory(lambda self: _Content(self.data), takes_self=True), eq=False, repr=False
    )

    @property
    def whole(self) -> bytes:
        """The whole content, a copy if there is more than ``data``."""
        return self.before + self.data + self.after if self.before or self.after else self.data

    @property
    def size(self) -> int:
        """The number of bytes that the client gets."""
        return len(self.before) + len(self.data) + len(self.after)


@attrs.frozen
class CompileResponse:
    """A response: the module and what goes with it, and the messages of stap and this server."""

    version: str  # of the protocol, which is that of the installed stap
    rc: int  # stap's exit status, or 1 when this server refuses
    stdout: ResponseFile = ResponseFile("stdout", b"")
    stderr: ResponseFile = ResponseFile("stderr", b"")
    files: tuple[ResponseFile, ...] = ()

    @property
    def size(self) -> int:
        """In bytes, before it is encoded."""
        return sum(file.size for file in (self.stdout, self.stderr, *self.files))


@attrs.frozen
class EncodedResponse:
    """A zip in parts."""

    parts: tuple[bytes, ...] = attrs.field(repr=False)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(map(len, self.parts))

    def blocks(self, size: int) -> Iterator[bytes]:
        """Yield the zip in blocks of at most ``size`` bytes, the only copies that are made of it."""
        block = bytearray()
        for part in self.parts:
            view = memoryview(part)
            while len(view) > 0:
                taken = view[: size - len(block)]
                block += taken
                view = view[len(taken) :]
                if len(block) == size:
                    yield bytes(block)
                    block.clear()
        if block:
            yield bytes(block)


def encode_response(response: CompileResponse, *, deflate: bool = True) -> EncodedResponse:
    """Return the zip that the client is sent; equal responses give equal bytes.

    Deflated it has a third of the size, which pays on a network that is slower than two milliseconds' work.
    Two entries of one path, a fault of this program, are a ValueError. Source: PROTOCOL, the response zip.
    """
    said = ResponseFile("version", response.version.encode()), ResponseFile("rc", b"%d" % response.rc)
    files = (*said, response.stdout, response.stderr, *response.files)
    paths: set[str] = set()
    # Always there, so that a client never finds fewer directories than it looks for.
    directories = {RESPONSE_DIRECTORY}
    for file in files:
        if file.path in paths:
            raise ValueError(f"{file.path!r} would be twice in a response")
        paths.add(file.path)
        directories |= {str(parent) for parent in PurePosixPath(file.path).parents} - {"."}
    if clashing := directories & paths:
        raise ValueError(f"{min(clashing)!r} would be a file and a directory in a response")
    entries = [
        _Entry(f"{path}/", (stat.S_IFDIR | 0o700) << 16 | _DOS_DIRECTORY) for path in sorted(directories)
    ]
    for file in files:
        # What is tiny hardly shrinks.
        method = _DEFLATED if deflate and file.size >= _STORED_BYTES else _STORED
        mode = (stat.S_IFREG | 0o644) << 16
        entries.append(_Entry(file.path, mode, _packed(file, method), _crc(file), file.size, method))
    return _write_zip(entries)


@attrs.frozen
class _Entry:
    path: str
    attributes: int
    packed: tuple[bytes, ...] = ()
    crc: int = 0
    size: int = 0
    method: int = _STORED


def _packed(file: ResponseFile, method: int) -> tuple[bytes, ...]:
    if method == _STORED:
        return file.before, file.data, file.after
    before, after = (_deflate(text) if text else b"" for text in (file.before, file.after))
    return before, file.content.deflated, after, _LAST_BLOCK


def _crc(file: ResponseFile) -> int:
    if not file.before:
        return zlib.crc32(file.after, file.content.crc)
    return zlib.crc32(file.after, zlib.crc32(file.data, zlib.crc32(file.before)))


def _write_zip(entries: Sequence[_Entry]) -> EncodedResponse:
    """Put a zip together; what its entries hold is not copied."""
    parts: list[bytes] = []
    directory, offset = b"", 0
    for entry in entries:
        name = entry.path.encode()
        flags = 0 if entry.path.isascii() else _UTF8
        known = (
            *(_VERSION, flags, entry.method, _MIDNIGHT, _EARLIEST_DAY),
            *(entry.crc, sum(map(len, entry.packed)), entry.size, len(name), 0),
        )
        line = _DIRECTORY_LINE.pack(b"PK\1\2", _UNIX | _VERSION, *known, 0, 0, 0, entry.attributes, offset)
        directory += line + name
        parts += filter(None, (_LOCAL_HEADER.pack(b"PK\3\4", *known) + name, *entry.packed))
        offset = sum(map(len, parts))
    count = len(entries)
    end = _END.pack(b"PK\5\6", 0, 0, count, count, len(directory), offset, 0)
    return EncodedResponse((*parts, directory + end))
