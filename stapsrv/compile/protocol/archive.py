"""The rules of a request's zip, and how it is unpacked within bounds.

zipfile reads the headers, and nothing that it says is believed: an entry is refused before a byte of it is
used if it would be written outside of the request's root, is neither a file nor a directory, or is larger
than it says. All memory is bounded by the payload, ``max_bytes`` and ``MAX_ENTRIES``.
"""

from __future__ import annotations

import codecs
import contextlib
import copy
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence

import attrs

from stapsrv.errors import ProtocolError
from stapsrv.rejection import RejectReason
from stapsrv.text import printable, printable_bytes

# Of one request, directories counted. SystemTap's own tapset, more than people send, has about 700.
MAX_ENTRIES = 10_000
# No tapset or script lies deeper, and every program that meets the tree has to follow it down.
MAX_COMPONENTS = 100
# Of one entry; clients send 24. zipfile, and what looks for zip64 below, copy them for each field anew.
MAX_EXTRA_BYTES = 1024
MAX_COMPONENT_BYTES = 255  # Linux's NAME_MAX
# Linux's PATH_MAX less 256 bytes for the directory that a request is laid out in.
MAX_PATH_BYTES = 3_840

_ZIP = "The request's zip"

# Names of bytes are read and written one to one in it. Looked up at once: later there may be no descriptor
# left to import it.
_NAMES = codecs.lookup("cp437").name

# APPNOTE 4.3.16: signature, this disk, the directory's disk, entries here and in all, the directory's
# size and offset, length of the comment.
_END_RECORD = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_ZIP64_LOCATOR_SIGNATURE = b"PK\x06\x07"
_ZIP64_LOCATOR_BYTES = 20
_ENTRY_SIGNATURE = b"PK\x01\x02"
_ENTRY_HEADER_BYTES = 46
# In it: lengths of the name, the extra fields and the comment.
_ENTRY_LENGTHS = struct.Struct("<3H")
_ENTRY_LENGTHS_AT = 28
_LOCAL_HEADER_BYTES = 30
_EXTRA_HEADER = struct.Struct("<HH")
_ZIP64_FIELD = 0x0001

_FLAG_UTF8 = 0x800
_FLAGS_ENCRYPTED = 0x1 | 0x40 | 0x2000  # entry, strongly, directory
_FLAG_PATCH = 0x20
_DOS_DIRECTORY = 0x10

# What zipfile and zlib were seen to raise, or may raise, on bytes that are no zip (UnicodeDecodeError and
# BytesIO's negative seeks are ValueErrors, NotImplementedError is a RuntimeError).
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error),
    *(EOFError, OSError, RuntimeError, ArithmeticError, LookupError, ValueError),
)


@attrs.frozen
class RequestFile:
    """A file of a request; its path is relative, with ``/``, and safe to append to a directory's name."""

    path: bytes
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")


@attrs.frozen
class Archive:
    """A request's zip, unpacked; no path occurs twice or lies below a file."""

    files: tuple[RequestFile, ...]  # in the order of the zip
    directories: tuple[bytes, ...]  # all that are named or that a file needs, parents before children


def read_archive(payload: bytes, *, max_bytes: int) -> Archive:
    """Unpack a request's zip, whose files have at most ``max_bytes`` together.

    Names are the bytes of the header, since a client whose locale is not UTF-8 names its files so in its
    arguments, too; a backslash is one of them. Executable bits and times are ignored. A zip that breaks a
    rule is a ProtocolError. Source: PROTOCOL, the request zip and its limits.
    """
    announced, directory_offset = _check_end(payload)
    with _zip_errors(_ZIP):
        archive = zipfile.ZipFile(io.BytesIO(payload), metadata_encoding=_NAMES)
    with archive:
        entries = [_Entry.from_header(header) for header in archive.infolist()]
        if len(entries) != announced:
            raise _error(_ZIP, f"has {len(entries)} entries and announces {announced}")
        _check_total(sum(entry.header.file_size for entry in entries), max_bytes)
        for entry in entries:
            _check_packing(entry)
            _check_kind(entry)
            _check_path(entry)
        _check_overlaps(entries, directory_offset)
        directories = _check_tree(entries)
        unpacked = [(entry, _unpack(archive, entry)) for entry in entries]
    files = tuple(RequestFile(entry.path, data) for entry, data in unpacked if not entry.is_directory)
    return Archive(files, directories)


@attrs.frozen
class _Entry:
    header: zipfile.ZipInfo
    path: bytes  # without the slash that ends a directory's name
    is_directory: bool
    title: str  # for errors

    @classmethod
    def from_header(cls, header: zipfile.ZipInfo) -> _Entry:
        # The name's bytes as they stand in the header: both of zipfile's decodings are one to one.
        name = header.orig_filename.encode("utf-8" if header.flag_bits & _FLAG_UTF8 else _NAMES)
        title = f"{_ZIP} entry '{printable_bytes(name)}'"
        return cls(header, name.removesuffix(b"/"), name.endswith(b"/"), title)


def _check_end(payload: bytes) -> tuple[int, int]:
    """Check the record that ends a zip; return how many entries it announces and where their list starts."""
    # zipfile would search for that record, skip what stands before the zip or after it, and make an object of
    # each entry before anybody could count them.
    record = payload[-_END_RECORD.size :]
    if len(record) < _END_RECORD.size or not record.startswith(_END_SIGNATURE):
        raise _error(_ZIP, "has no proper end: it is no zip, is cut short, or other bytes follow it")
    _, disk, directory_disk, entries_here, entries, size, offset, comment_bytes = _END_RECORD.unpack(record)
    directory_end = len(payload) - _END_RECORD.size
    if comment_bytes:
        raise _error(_ZIP, "is cut short")
    if payload.startswith(_ZIP64_LOCATOR_SIGNATURE, max(0, directory_end - _ZIP64_LOCATOR_BYTES)):
        raise _error(_ZIP, "is in the zip64 format, which no request is large enough for")
    if disk or directory_disk or entries_here != entries:
        raise _error(_ZIP, "is one part of several")
    if offset + size != directory_end:
        raise _error(_ZIP, "holds other bytes before its first entry or after its last")
    count = max(entries, payload.count(_ENTRY_SIGNATURE, offset, directory_end))
    if count > MAX_ENTRIES:
        raise _error(_ZIP, f"has {count} entries, the limit is {MAX_ENTRIES}")
    _check_extra_fields(payload, offset, directory_end)
    return entries, offset


def _check_extra_fields(payload: bytes, at: int, end: int) -> None:
    """Refuse entries with long extra fields before zipfile reads them, which says what it cannot read."""
    while at + _ENTRY_HEADER_BYTES <= end and payload.startswith(_ENTRY_SIGNATURE, at):
        lengths = _ENTRY_LENGTHS.unpack_from(payload, at + _ENTRY_LENGTHS_AT)
        if lengths[1] > MAX_EXTRA_BYTES:
            raise _error(_ZIP, f"has an entry with {lengths[1]} bytes of extra fields")
        at += _ENTRY_HEADER_BYTES + sum(lengths)


def _check_total(total: int, max_bytes: int) -> None:
    if 1 <= total <= max_bytes:
        return
    # Scripts look for these words (PROTOCOL, log lines).
    expected = f"the expected range of 1 to {max_bytes} bytes."
    problem = f"Uncompressed request size of {total} bytes is not within {expected}"
    if not total:
        raise ProtocolError(problem)
    raise ProtocolError(
        f"{problem} --max-request-size raises the limit.", reject_reason=RejectReason.REQUEST_SIZE
    )


def _check_packing(entry: _Entry) -> None:
    header = entry.header
    if header.flag_bits & _FLAGS_ENCRYPTED:
        raise _error(entry.title, "is encrypted")
    is_known = header.compress_type in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
    if not is_known or header.flag_bits & _FLAG_PATCH:
        raise _error(entry.title, "is neither stored nor deflated")
    if header.volume or _has_zip64_field(header.extra):
        raise _error(entry.title, "is on another disk or in the zip64 format")


def _check_kind(entry: _Entry) -> None:
    """Refuse what is neither file nor directory, whatever system claims to have made the entry."""
    # Clients follow links before they make the zip: one in it could only be meant for the server's files.
    mode = entry.header.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        raise _error(entry.title, "is a symbolic link")
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise _error(entry.title, "is neither a file nor a directory")
    if kind == 0 and entry.header.external_attr & _DOS_DIRECTORY:
        kind = stat.S_IFDIR
    if kind == (stat.S_IFREG if entry.is_directory else stat.S_IFDIR):
        raise _error(entry.title, "is a file by its name and a directory by its mode, or the reverse")
    if entry.is_directory and entry.header.file_size:
        raise _error(entry.title, "is a directory that holds data")


def _check_path(entry: _Entry) -> None:
    problem = path_problem(entry.path)
    if problem is not None:
        raise _error(entry.title, problem)


def path_problem(path: bytes) -> str | None:
    """Return what is wrong with a path that would leave its root, has two spellings, or cannot be made."""
    components = path.split(b"/")
    longest = max(map(len, components))
    problems = {
        "has an absolute or empty path": path.startswith(b"/") or not path,
        "has a NUL in its path": b"\0" in path,
        "has .. in its path": b".." in components,
        "has an empty component or . in its path": b"" in components or b"." in components,
        f"has a path of {len(path)} bytes, the limit is {MAX_PATH_BYTES}": len(path) > MAX_PATH_BYTES,
        f"has a path of {len(components)} components, the limit is {MAX_COMPONENTS}": (
            len(components) > MAX_COMPONENTS
        ),
        f"has a component of {longest} bytes in its path, the limit is {MAX_COMPONENT_BYTES}": (
            longest > MAX_COMPONENT_BYTES
        ),
    }
    return next((problem for problem, is_met in problems.items() if is_met), None)


def _check_overlaps(entries: Sequence[_Entry], directory_offset: int) -> None:
    """Refuse bytes before the first entry, and entries that share bytes, which bombs are made of."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header.header_offset):
        start = entry.header.header_offset
        if end == 0 and start > 0:
            raise _error(_ZIP, "holds other bytes before its first entry")
        if start < end:
            raise _error(entry.title, "overlaps another one")
        end = start + _LOCAL_HEADER_BYTES + len(entry.path) + entry.header.compress_size
        if end > directory_offset:
            raise _error(entry.title, "is longer than the zip")


def _check_tree(entries: Sequence[_Entry]) -> tuple[bytes, ...]:
    """Refuse two entries of one path and entries below files; return all directories, parents first."""
    files: set[bytes] = set()
    directories: set[bytes] = set()
    for entry in entries:
        if entry.path in files or entry.path in directories:
            raise _error(entry.title, "occurs twice")
        (directories if entry.is_directory else files).add(entry.path)
    above: set[bytes] = set()
    for entry in entries:
        parent = entry.path.rpartition(b"/")[0]
        while parent and parent not in above:
            if parent in files:
                raise _error(entry.title, "lies below a file")
            above.add(parent)
            parent = parent.rpartition(b"/")[0]
        if len(above) > MAX_ENTRIES:
            raise _error(_ZIP, f"needs more than {MAX_ENTRIES} directories")
    return tuple(sorted(directories | above))


def _unpack(archive: zipfile.ZipFile, entry: _Entry) -> bytes:
    """Return an entry's contents, which are exactly as long as announced and match its checksum."""
    # zipfile's own reader takes the announced beginning of a longer stream for the whole, and also accepts a
    # stream without an end. Here it only hands out the packed bytes.
    header = entry.header
    packed_header = copy.copy(header)
    packed_header.compress_type = zipfile.ZIP_STORED
    packed_header.file_size = header.compress_size
    del packed_header.CRC  # it is that of the contents; zipfile checks none where it finds none
    with _zip_errors(entry.title), archive.open(packed_header) as stream:
        data = stream.read()
    if header.compress_type == zipfile.ZIP_DEFLATED:
        data = _inflate(data, entry)
    if len(data) != header.file_size:
        raise _error(entry.title, f"holds {len(data)} bytes and announces {header.file_size}")
    if zlib.crc32(data) != header.CRC:
        raise _error(entry.title, "does not match its CRC")
    return data


def _inflate(packed: bytes, entry: _Entry) -> bytes:
    announced = entry.header.file_size
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    with _zip_errors(entry.title):
        # One byte more than announced shows that there are more, and is all that is made of them.
        data = inflater.decompress(packed, announced + 1)
    if len(data) > announced:
        raise _error(entry.title, f"holds more than the {announced} bytes that it announces")
    if not inflater.eof or inflater.unused_data:
        raise _error(entry.title, "is cut short, or is followed by other bytes")
    return data


def _has_zip64_field(extra: bytes) -> bool:
    """Whether one of a header's extra fields is zip64's; zipfile has checked that they are well-formed."""
    while len(extra) >= _EXTRA_HEADER.size:
        kind, length = _EXTRA_HEADER.unpack_from(extra)
        if kind == _ZIP64_FIELD:
            return True
        extra = extra[_EXTRA_HEADER.size + length :]
    return False


@contextlib.contextmanager
def _zip_errors(title: str) -> Iterator[None]:
    """Turn whatever zipfile and zlib raise on hostile bytes into a ProtocolError."""
    try:
        yield
    except _ZIP_ERRORS as exc:
        reason = printable(str(exc)) or "it ends too soon"
        raise _error(title, f"is damaged: {reason}") from exc


def _error(title: str, problem: str) -> ProtocolError:
    return ProtocolError(f"{title} {problem}")
