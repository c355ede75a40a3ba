"""The response: stap's exit status, its output and the module become the zip that a client is sent."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import PurePosixPath

import attrs

# Clients look for a directory of the pattern stap??????.
RESPONSE_DIRECTORY = "stap000000"

# The earliest time that a zip can hold: no client looks at it, and equal responses stay equal.
_EARLIEST = (1980, 1, 1, 0, 0, 0)
_STORED_BYTES = 128


def _check_path(_file: object, _attribute: object, path: str) -> None:
    """Refuse a path that would not come out where it says, below the client's own directory."""
    path.encode("utf-8")  # UnicodeEncodeError is a ValueError
    if {"", ".", ".."} & set(path.split("/")) or "\0" in path:
        raise ValueError(f"{path!r} is no path for a response's file")


@attrs.frozen
class ResponseFile:
    """A file of a response, its path relative, such as ``stap000000/NAME.ko``; else a ValueError."""

    path: str = attrs.field(validator=_check_path)
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")


@attrs.frozen
class CompileResponse:
    """What a client is sent: the module and what goes with it, and what stap and this server say."""

    version: str  # of the protocol, which is that of the installed stap
    rc: int  # stap's exit status, or 1 when this server refuses
    stdout: bytes = attrs.field(default=b"", repr=lambda data: f"<{len(data)} bytes>")
    stderr: bytes = attrs.field(default=b"", repr=lambda data: f"<{len(data)} bytes>")
    files: tuple[ResponseFile, ...] = ()


def encode_response(response: CompileResponse, *, deflate: bool = True) -> bytes:
    """Return the zip that the client is sent; equal responses give equal bytes.

    Deflated it has a third of the size, which pays on a network that is slower than two milliseconds' work.
    Two entries of one path, a fault of this program, are a ValueError. Source: PROTOCOL, the response zip.
    """
    entries = {
        "version": response.version.encode("utf-8"),
        "rc": str(response.rc).encode("ascii"),
        "stdout": response.stdout,
        "stderr": response.stderr,
    }
    # Always there, so that a client never finds fewer directories than it looks for.
    directories = {RESPONSE_DIRECTORY}
    for file in response.files:
        if file.path in entries:
            raise ValueError(f"{file.path!r} would be twice in a response")
        entries[file.path] = file.data
        directories |= {str(parent) for parent in PurePosixPath(file.path).parents} - {"."}
    if clashing := directories & entries.keys():
        raise ValueError(f"{min(clashing)!r} would be a file and a directory in a response")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(directories):
            header = _header(f"{path}/", stat.S_IFDIR | 0o700)
            header.external_attr |= 0x10  # DOS's own bit for a directory, which Info-ZIP sets too
            archive.writestr(header, b"")
        for path, data in entries.items():
            # What is tiny hardly shrinks. Level 1 takes a third of the default's time for a few percent more.
            small = not deflate or len(data) < _STORED_BYTES
            method = zipfile.ZIP_STORED if small else zipfile.ZIP_DEFLATED
            archive.writestr(_header(path, stat.S_IFREG | 0o644), data, method, compresslevel=1)
    return buffer.getvalue()


def _header(path: str, mode: int) -> zipfile.ZipInfo:
    header = zipfile.ZipInfo(path, _EARLIEST)
    header.create_system = 3  # Unix, whose modes these are
    header.external_attr = mode << 16
    return header
