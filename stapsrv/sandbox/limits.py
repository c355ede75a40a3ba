"""What one request may use up: resource limits and priority, and how to tell that one was met."""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from stapsrv.config.quantities import encode_size
from stapsrv.config.settings import Limits

_OVERTIME_S = 5
"""Between the signal that tells a process of the end of its time and the one that ends it."""
_OOM_SCORE_FILE = Path("/proc/self/oom_score_adj")
_OOM_SCORE = 500
"""Of 1000: when the host runs out of memory, a compile ends before the server does."""

_SAID = (
    # gcc tells of its compiler's end, make of a program's, the C library why a call failed.
    ("cpu", re.compile(rb"CPU time limit exceeded|cpulimit exceeded")),
    ("file", re.compile(rb"File size limit exceeded|File too large")),
    (
        "memory",
        re.compile(
            rb"std::bad_alloc|virtual memory exhausted|out of memory allocating|[Cc]annot allocate memory"
            rb"|memory exhausted|failed to map segment from shared object"
        ),
    ),
    ("processes", re.compile(rb"Resource temporarily unavailable|[Cc]annot fork")),
)
_SIGNALS: dict[int, str] = {signal.SIGXCPU: "cpu", signal.SIGXFSZ: "file"}


@attrs.frozen(kw_only=True)
class ResourceLimits:
    """The bounds of one request; 0 is none.

    Attributes:
        cpu_s: of processor time, for each process, in seconds.
        memory_bytes: of address space, for each process; in a cgroup, of memory for all together.
        file_bytes: of each file that is written.
        processes: at once.
        cores: the processors' time that all processes together get, in processors; only in a cgroup.
        nice: how far behind other programs they stand, from 0 to 19.
    """

    cpu_s: float = 0.0
    memory_bytes: int = 0
    file_bytes: int = 0
    processes: int = 0
    cores: float = 0.0
    nice: int = 0

    @classmethod
    def of(cls, limits: Limits) -> ResourceLimits:
        """Return those that a server's limits name."""
        return cls(**{field.name: getattr(limits, field.name) for field in attrs.fields(cls)})

    def outer_command(self) -> list[str]:
        """Return what goes before the command that contains a program."""
        # In some containers nobody may write there; then the kernel chooses by itself.
        score = ("choom", "-n", str(_OOM_SCORE), "--") if os.access(_OOM_SCORE_FILE, os.W_OK) else ()
        return [*score, *(("nice", "-n", str(self.nice)) if self.nice else ())]

    def inner_command(self, *, others: int = 0) -> list[str]:
        """Return what goes before the program itself.

        Args:
            others: how many processes are counted that are not the program's: in namespaces of its own, none.
        """
        seconds = max(1, round(self.cpu_s)) if self.cpu_s else 0
        limits = [
            ("cpu", resource.RLIMIT_CPU, seconds, _OVERTIME_S),
            ("as", resource.RLIMIT_AS, self.memory_bytes, 0),
            ("fsize", resource.RLIMIT_FSIZE, self.file_bytes, 0),
            ("nproc", resource.RLIMIT_NPROC, self.processes and self.processes + others, 0),
        ]
        return ["prlimit", "--core=0", *_settings(limits), "--"]

    def explain(self, status: int, stderr: bytes, *, exceeded: str | None = None) -> str | None:
        """Say which bound a program met, as far as its end shows; None when it shows none.

        One that succeeded may have started others that met one, and done without what they should have found.

        Args:
            status: its exit status, ``-N`` when signal N ended it; 128 + N from a program in between.
            stderr: what it said.
            exceeded: the bound that its control group says it met.
        """
        sentences = self._sentences()
        if status == 0:
            return sentences.get(exceeded)
        ended = _SIGNALS.get(-status if status < 0 else status - 128)
        said = (bound for bound, words in _SAID if words.search(stderr))
        met = (bound for bound in (exceeded, ended, *said) if bound in sentences)
        return next((sentences[bound] for bound in met), None)

    def _sentences(self) -> dict[str | None, str]:
        memory, file = encode_size(self.memory_bytes), encode_size(self.file_bytes)
        sentences = {
            "cpu": (self.cpu_s, f"more than {self.cpu_s:g} seconds of processor time (LIMIT_CPU"),
            "memory": (self.memory_bytes, f"more than {memory} of memory (LIMIT_MEMORY"),
            "file": (self.file_bytes, f"a file of more than {file} (LIMIT_FILE"),
            "processes": (self.processes, f"more than {self.processes} processes (LIMIT_PROCESSES"),
        }
        return {
            name: f"The compile needed {what} of this server)"
            for name, (bound, what) in sentences.items()
            if bound
        }


def count_processes(loadavg: Path = Path("/proc/loadavg")) -> int:
    """Return how many processes and threads there are on the host; 0 where that cannot be known.

    Where a user's processes are all counted together, a bound on them has to leave room for what runs
    already. This is more than one user has, and known at once.
    """
    try:
        return int(loadavg.read_text(encoding="ascii").split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return 0


def _settings(limits: Sequence[tuple[str, int, int, int]]) -> Iterator[str]:
    """Give prlimit's options; a limit that is lower already stays."""
    for name, number, wanted, overtime in limits:
        _, most = resource.getrlimit(number)
        if wanted:
            hard = wanted + overtime if most == resource.RLIM_INFINITY else min(wanted + overtime, most)
            yield f"--{name}={min(wanted, hard)}:{hard}"
