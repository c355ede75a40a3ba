"""Makes the request: what a script is compiled from, in a zip as SystemTap's own client makes it.

The entries have the names, modes and contents that the real client's have, so that a server cannot tell one
from the other. Its times are not told, so that equal requests are equal bytes. Source: PROTOCOL, the request
zip, and what the real client was seen to send.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence

import attrs

from stapsrv.client.errors import ClientError
from stapsrv.client.options import StapCommand
from stapsrv.compile.protocol.archive import MAX_COMPONENTS, MAX_ENTRIES
from stapsrv.text import printable_bytes

CLIENT_VERSION = b"4.8"
"""Of SystemTap, whose client's requests these are."""
MAX_REQUEST_BYTES = 64 * 1024 * 1024
"""Of a request's files together; servers take less."""

STANDARD_INPUT = b"-"
# In the order of the real client's, which are those that a server takes.
_LOCALE = ("LANG", "LC_ALL", "LC_COLLATE", "LC_CTYPE", "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME")
_FILE_MODE, _DIRECTORY_MODE = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755

# APPNOTE 4.3.7, 4.3.12 and 4.3.16: an entry's header, its line in the directory, and the end.
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_DIRECTORY_LINE = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION, _UNIX = 20, 3 << 8
_STORED, _DEFLATED = 0, 8
_DOS_DIRECTORY = 0x10  # DOS's own bit for one, which Info-ZIP sets too
_MIDNIGHT, _EARLIEST_DAY = 0, 1 << 5 | 1


@attrs.frozen(kw_only=True)
class Request:
    """The parts of a request."""

    command: StapCommand
    release: str
    arch: str
    stdin: bytes = b""  # the script, where the command says that it is standard input
    locale: Mapping[str, str] = attrs.field(
        factory=dict
    )  # an environment; others than the locale are not sent
    moks: tuple[str, ...] = ()  # fingerprints of machine owner keys that the target trusts, or ``missing``


def pack_request(request: Request, *, cwd: bytes) -> bytes:
    """Return a request's zip; reads the script and the directories of tapsets below ``cwd``, following links.

    Raises:
        ClientError: a file cannot be read, two directories lie in one another, or all is too large to send.
    """
    tree = _Tree()
    words = _script_words(request, tree, cwd)
    for include in request.command.includes:
        words += [b"-I", _include(tree, b"tapset", include, cwd)]
    words += request.command.options
    if request.command.arguments:
        words += [b"--", *request.command.arguments]
    for number, word in enumerate(words, 1):
        tree.add(b"argv%d" % number, word)
    tree.add(b"version", CLIENT_VERSION)
    tree.add(b"sysinfo", f"sysinfo: {request.release} {request.arch}".encode())
    lines = [f"{name}={request.locale[name]}\n" for name in _LOCALE if name in request.locale]
    tree.add(b"locale", os.fsencode("".join(lines)))
    if request.moks:
        tree.add(b"mok_fingerprints", "".join(f"{mok}\n" for mok in request.moks).encode())
    return _zip(tree.sorted())


@attrs.frozen
class _Entry:
    path: bytes
    mode: int
    data: bytes = b""


class _Tree:
    """The entries so far, each path once, within the bounds of a request."""

    def __init__(self) -> None:
        self.given: set[bytes] = set()  # what the command line names
        self._entries: dict[bytes, _Entry] = {}
        self._bytes = 0

    def __contains__(self, path: bytes) -> bool:
        return path in self._entries

    def add(self, path: bytes, data: bytes, *, mode: int = _FILE_MODE) -> None:
        self._bytes += len(data)
        if self._bytes > MAX_REQUEST_BYTES:
            raise ClientError(
                f"the request has more than {MAX_REQUEST_BYTES >> 20} MiB",
                remedy="name smaller directories with -I",
            )
        self._put(_Entry(path, mode, data))

    def add_directory(self, path: bytes, *, mode: int = _DIRECTORY_MODE) -> None:
        self._put(_Entry(path, mode))

    def sorted(self) -> list[_Entry]:
        """Return the entries as ``zip -r`` in a directory has them: by name, each before its own."""
        return sorted(self._entries.values(), key=lambda entry: entry.path.split(b"/"))

    def _put(self, entry: _Entry) -> None:
        if len(self._entries) >= MAX_ENTRIES:
            raise ClientError(
                f"the request has more than {MAX_ENTRIES} files", remedy="name smaller directories with -I"
            )
        self._entries[entry.path] = entry


def _script_words(request: Request, tree: _Tree, cwd: bytes) -> list[bytes]:
    script = request.command.script
    # The real client takes an empty name for none.
    if not script:
        return []
    if script == STANDARD_INPUT:
        tree.add_directory(b"script")
        tree.add(b"script/-", request.stdin)
        return [b"script/-"]
    return [_include(tree, b"script", script, cwd)]


def _include(tree: _Tree, root: bytes, path: bytes, cwd: bytes) -> bytes:
    """Add a file or a directory with all that is in it; return its path in the request."""
    try:
        real = os.path.realpath(os.path.join(cwd, path), strict=True) if path else None  # noqa: PTH118 - bytes
    except OSError:
        real = None
    if real is None:
        # The server says that it is missing, as to the real client.
        return root + cwd + b"/" + path
    if real == b"/":
        raise ClientError(f"Unable to send {printable_bytes(path)} to the server")
    target = root + real
    above = [target[:at] for at, byte in enumerate(target) if byte == ord("/")]
    if target in tree or not tree.given.isdisjoint(above):
        problem = f"{printable_bytes(real)} is in the request already"
        raise ClientError(problem, remedy="give each directory once with -I, and none that lies in another")
    for parent in above:
        if parent not in tree:
            tree.add_directory(parent)
    tree.given.add(target)
    _add(tree, real, target, above=())
    return target


def _add(tree: _Tree, real: bytes, target: bytes, *, above: tuple[tuple[int, int], ...]) -> None:
    """Add what is at ``real``; ``above`` are the directories that it was reached through."""
    with _explained(real):
        status = os.stat(real)  # noqa: PTH116 - names are bytes, here and below
        if stat.S_ISREG(status.st_mode):
            with open(real, "rb") as file:  # noqa: PTH123
                tree.add(target, file.read(MAX_REQUEST_BYTES + 1), mode=status.st_mode)
            return
        if not stat.S_ISDIR(status.st_mode):
            return
        names = sorted(os.listdir(real))  # noqa: PTH208
    here = status.st_dev, status.st_ino
    if here in above or len(above) > MAX_COMPONENTS:
        raise ClientError(
            f"{printable_bytes(real)} leads back to a directory above it", remedy="remove that link"
        )
    tree.add_directory(target, mode=status.st_mode)
    for name in names:
        # A link that leads nowhere is no part of the real client's requests either.
        child = os.path.join(real, name)  # noqa: PTH118
        if os.path.exists(child):  # noqa: PTH110
            _add(tree, child, target + b"/" + name, above=(*above, here))


@contextlib.contextmanager
def _explained(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ClientError(f"cannot be read ({exc.strerror})", where=printable_bytes(path)) from exc


def _zip(entries: Sequence[_Entry]) -> bytes:
    # zipfile would encode names anew, which are any bytes here, as they are in the arguments.
    zipped, directory = bytearray(), bytearray()
    for entry in entries:
        is_directory = stat.S_ISDIR(entry.mode)
        name = entry.path + (b"/" if is_directory else b"")
        packed = _deflate(entry.data)
        method = _DEFLATED if len(packed) < len(entry.data) else _STORED
        content = packed if method == _DEFLATED else entry.data
        known = (
            *(_VERSION, 0, method, _MIDNIGHT, _EARLIEST_DAY),
            *(zlib.crc32(entry.data), len(content), len(entry.data), len(name), 0),
        )
        attributes = entry.mode << 16 | (_DOS_DIRECTORY if is_directory else 0)
        directory += _DIRECTORY_LINE.pack(
            b"PK\1\2", _UNIX | _VERSION, *known, 0, 0, 0, attributes, len(zipped)
        )
        directory += name
        zipped += _LOCAL_HEADER.pack(b"PK\3\4", *known) + name + content
    count = len(entries)
    end = _END.pack(b"PK\5\6", 0, 0, count, count, len(directory), len(zipped), 0)
    return bytes(zipped + directory + end)


def _deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()
