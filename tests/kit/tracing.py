"""What a program and its children look at on a host, by strace(1), and what of that is watched."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from stapsrv.compile.cache.fingerprint import WatchedPath, fingerprint

_LOOKS = """
    access execve execveat faccessat faccessat2 getxattr lgetxattr lstat newfstatat open openat openat2
    readlink readlinkat stat statfs statx
"""
# After these a process has another directory, or a child that begins in its own.
_MOVES = ("chdir", "fchdir")
_FORKS = ("clone", "clone3", "fork", "vfork")

_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)")
# A path, after the open directory that it is relative to where the call has one.
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, )?("(?:[^"\\]|\\.)*")')
_OPEN_DIRECTORY = re.compile(r"\d+<([^>]*)>")
_MAX_LINKS = 40


@attrs.frozen(order=True)
class Look:
    """A look at an absolute path, which need not exist; after a symbolic link it may have "..".

    Attributes:
        path: as it was named.
        lists: whether a directory was opened there, to be listed.
    """

    path: str
    lists: bool = False


def trace(
    command: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str], timeout_s: float
) -> tuple[subprocess.CompletedProcess[bytes], frozenset[Look]]:
    """Run a command, and return how it ended and the files that it and its children looked for.

    Args:
        command: the program and its arguments.
        log: a directory, to be made, for what strace says.
        cwd: where it works.
        env: its environment.
        timeout_s: how long it may take.
    """
    log.mkdir()
    calls = ",".join(f"?{call}" for call in (*_LOOKS.split(), *_MOVES, *_FORKS))
    # A file for each process, so that no call is broken in two by another's.
    strace = ["strace", "-f", "-ff", "-y", "-qq", "--seccomp-bpf", "--signal=none", f"--trace={calls}"]
    ran = subprocess.run(
        [*strace, f"--output={log / 'of'}", "--", *command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
    logs = {int(path.suffix[1:]): path.read_text("ascii") for path in log.iterdir()}
    return ran, frozenset(looks(logs, str(cwd)))


def looks(logs: Mapping[int, str], cwd: str) -> Iterator[Look]:
    """Yield the looks in strace's logs of processes, of which the one that nobody forked began in ``cwd``."""
    calls = {
        pid: [match.groups() for line in log.splitlines() if (match := _CALL.match(line))]
        for pid, log in logs.items()
    }
    forked = {int(result) for made in calls.values() for call, _, result in made if call in _FORKS}
    begun = [(pid, cwd) for pid in calls if pid not in forked]
    while begun:
        pid, cwd = begun.pop()
        for call, arguments, result in calls.pop(pid, ()):
            if call in _FORKS:
                begun.append((int(result), cwd))
            elif call == "fchdir":
                directory = _OPEN_DIRECTORY.match(arguments)
                cwd = _text(directory[1]) if directory and result == "0" else cwd
            elif (named := _PATH.match(arguments)) and (path := _text(named[2][1:-1])):
                path = os.path.join(_text(named[1]) if named[1] else cwd, path)
                yield Look(path, lists="O_DIRECTORY" in arguments and not result.startswith("-"))
                cwd = path if call == "chdir" and result == "0" else cwd


def _text(quoted: str) -> str:
    return os.fsdecode(ast.literal_eval(f'b"{quoted}"'))


class Watched:
    """The entries of directories that the result cache watches for some paths."""

    def __init__(self, paths: Iterable[WatchedPath]) -> None:
        self._entries: set[tuple[bytes, bytes | None]] = set()
        for path in paths:
            fingerprint(path, lambda directory, name: self._entries.add((directory, name)))

    def covers(self, look: Look) -> bool:
        """Whether a change is noticed of what a look has found, or of its not having found anything."""
        path = os.fsencode(look.path)
        return self._covers_way(path, _MAX_LINKS) and not (
            look.lists and (os.path.realpath(path), None) not in self._entries
        )

    def _covers_way(self, path: bytes, links: int) -> bool:
        """Whether each step on the way to a path is watched, as far as there is one."""
        parent = b"/"
        for name in path.split(b"/"):
            step = os.path.join(parent, name)
            if name not in {b"", b".", b".."}:
                if not {(parent, name), (parent, None)} & self._entries:
                    return False
                if not os.path.lexists(step):
                    return True
                if os.path.islink(step):
                    target = os.path.join(parent, os.readlink(step))
                    if not links or not self._covers_way(target, links - 1):
                        return False
            parent = os.path.realpath(step)
        return True
