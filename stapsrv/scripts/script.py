"""A script of a collection, and how a client would ask for it. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fnmatch import fnmatchcase

import attrs

from stapsrv.compile.protocol.archive import RequestFile
from stapsrv.compile.protocol.options import ParsedOptions, parse_options
from stapsrv.compile.protocol.request import CompileRequest

_INCLUDE = "I"
# The real client takes these and sends nothing of them (SystemTap 4.8).
_NOT_SENT_WORDS = """
    G T i R all-modules bpf color colour disable-cache download-debuginfo example interactive ldd modinfo
    no-global-var-display poison-cache prologue-searching remote-prefix rlimit-as rlimit-cpu rlimit-fsize
    rlimit-nproc rlimit-stack runtime save-uprobes sign-module suppress-handler-errors suppress-time-limits
    sysroot target-namespaces tmpdir use-server-on-error
"""
_NOT_SENT = frozenset(_NOT_SENT_WORDS.split())


@attrs.frozen(kw_only=True)
class Script:
    """One script, with what is stated beside it; ``fault`` says why it cannot be asked for."""

    collection: str  # the directory of the collection
    name: str  # the script's path below that
    path: str = ""  # the script's own, free of links, as clients that have it there name it
    source: bytes = attrs.field(default=b"", repr=False)
    options: tuple[str, ...] = ()  # as they are typed
    arguments: tuple[str, ...] = ()  # the script's own
    privilege: str | None = None  # what clients without group stapdev add
    leave_out: tuple[str, ...] = ()  # patterns of releases
    fails_for: tuple[str, ...] = ()  # patterns of releases for which it is known not to compile
    included: tuple[Included, ...] = ()  # the directories of its options -I
    fault: str | None = None

    @property
    def parsed(self) -> ParsedOptions:
        """Its options, as stap reads them."""
        return parse_options([os.fsencode(option) for option in self.options])

    def is_left_out(self, release: str) -> bool:
        """Whether nobody wants to know of this release."""
        return _matches(self.leave_out, release)

    def is_to_fail(self, release: str) -> bool:
        """Whether it is known not to compile for this release."""
        return _matches(self.fails_for, release)


@attrs.frozen
class Included:
    """A directory with tapsets of a script's own: its path free of links, and all that is in it."""

    path: str
    files: tuple[RequestFile, ...] = ()  # paths from the root of the request
    directories: tuple[bytes, ...] = ()


def client_request(script: Script, *, release: str, arch: str) -> CompileRequest:
    """Return what the real client would ask for a script, whose ``fault`` is None.

    Source: PROTOCOL, the request zip, and what the real client was seen to send.
    """
    path = b"script" + os.fsencode(script.path)
    files = [RequestFile(path, script.source)]
    directories = {*_above(path)}
    words = [path]
    for included in script.included:
        target = b"tapset" + os.fsencode(included.path)
        words += [b"-I", target]
        files += included.files
        directories |= {target, *included.directories, *_above(target)}
    words += _sent(script)
    if script.arguments:
        words += [b"--", *map(os.fsencode, script.arguments)]
    return CompileRequest(
        release=release,
        arch=arch,
        arguments=tuple(words),
        files=tuple(files),
        directories=tuple(sorted(directories)),
    )


def _sent(script: Script) -> Iterable[bytes]:
    # A short option with its value attached, a long one in full.
    for name, value in script.parsed.options:
        if name == _INCLUDE or name in _NOT_SENT:
            continue
        if len(name) == 1:
            yield f"-{name}".encode() + (value or b"")
        else:
            yield f"--{name}".encode() + (b"" if value is None else b"=" + value)
    if script.privilege is not None:
        yield f"--privilege={script.privilege}".encode()


def _above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


def _matches(patterns: Iterable[str], release: str) -> bool:
    return any(fnmatchcase(release, pattern) for pattern in patterns)
