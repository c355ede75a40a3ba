"""What a process holds: to be compared, before a fault and after it."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

PATIENCE_S = 60.0


@attrs.frozen(kw_only=True)
class Footprint:
    """What one server holds at one moment.

    Attributes:
        descriptors: its open files, by what they are; numbers of sockets and pipes left out.
        threads: how many.
        processes: the names of its descendants.
        files: what is in its temporary directory, two levels deep, by the parts of the names that stay.
        resident_kb: its memory.
    """

    descriptors: Counter[str]
    threads: int
    processes: Counter[str]
    files: Counter[str]
    resident_kb: int

    @classmethod
    def of(cls, pid: int, temporary: Path) -> Footprint:
        status = Path(f"/proc/{pid}/status").read_text()
        return cls(
            descriptors=_descriptors(pid),
            threads=_number("Threads", status),
            processes=Counter(_names(descendants(pid))),
            files=Counter(
                re.sub(r"\.\w{8}$", ".*", str(path.relative_to(temporary)))
                for pattern in ("*", "*/*")
                for path in temporary.glob(pattern)
            ),
            resident_kb=_number("VmRSS", status),
        )

    def differences(self, before: Footprint, *, threads: int = 0, memory_kb: int = 0) -> list[str]:
        """Say what is more than before, beyond so many threads and so much memory; gone is no difference.

        Args:
            before: the server's footprint at a quiet moment.
            threads: idle ones that it may keep.
            memory_kb: how much it may have grown; 0 to leave that out.
        """
        found = []
        for what in ("descriptors", "processes", "files"):
            more = getattr(self, what) - getattr(before, what)
            found += [f"{what}: {count} more {name}" for name, count in sorted(more.items())]
        if self.threads > before.threads + threads:
            found.append(f"threads: {self.threads}, were {before.threads}")
        if memory_kb and self.resident_kb > before.resident_kb + memory_kb:
            found.append(f"memory: {self.resident_kb} kB, was {before.resident_kb} kB")
        return found


def wait_back(look: Callable[[], list[str]], *, timeout_s: float = PATIENCE_S) -> list[str]:
    """Look again and again until there is no difference; return what is left of them in the end."""
    deadline = time.monotonic() + timeout_s
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel tells nobody of what is in /proc
    return left


def _descriptors(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(entry.path)
        except FileNotFoundError:
            continue
        found[re.sub(r"\d+", "*", target) if ":[" in target else target] += 1
    return found


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children, the zombies among them."""
    found = []
    with contextlib.suppress(OSError):  # the process has ended meanwhile
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # or one of its threads
                found += map(int, (thread / "children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Return the process ids of all that a process has begun, and that is there still."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def _names(pids: list[int]) -> Iterator[str]:
    for pid in pids:
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{pid}/comm").read_text().strip()


def _number(name: str, status: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
    return int(match[1]) if match else 0
