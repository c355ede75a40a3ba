"""What travels over a connection: bytes to a request, an answer to bytes.

Nothing here reads, waits or looks at a clock. A session feeds a :class:`FrameReader` with what arrives,
hands the payload to :func:`parse_request` and sends what :func:`encode_response` returns. A peer that
breaks the framing or the rules of the zip meets a ProtocolError; a sound zip that is no request that
can be run meets RequestRejected, whose text the client is sent.
"""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import PurePosixPath

import attrs

ANSWER_DIRECTORY = "stap000000"
"""Clients look for a directory ``stap??????`` in the answer."""

_EARLIEST = (1980, 1, 1, 0, 0, 0)
_STORED_BYTES = 128


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
