"""The resource limits and priority of one request, and the message for the limit that it met."""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stapsrv.config.kinds import encode_size
from stapsrv.config.setting import Setting
from stapsrv.config.table import Limits

# The limits that the kernel keeps: its numbers and our names of them, by those of prlimit and stap.
RLIMITS = {
    "cpu": (resource.RLIMIT_CPU, "cpu_s"),
    "as": (resource.RLIMIT_AS, "memory_bytes"),
    "fsize": (resource.RLIMIT_FSIZE, "file_bytes"),
    "nproc": (resource.RLIMIT_NPROC, "processes"),
}

# Between XCPU, which lets a process tidy up, and the KILL that ends it.
_OVERTIME_S = 5
_OOM_SCORE_FILE = Path("/proc/self/oom_score_adj")
# Of 1000: when the host runs out of memory, a compile ends before the server does.
_OOM_SCORE = 500

# gcc reports how its compiler ended, make how a program did, the C library why a call failed.
_MESSAGES = (
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
# How much is searched for them, from the end: who fails prints why among the last.
_MESSAGES_BYTES = 256 * 1024
_SIGNALS: dict[int, str] = {signal.SIGXCPU: "cpu", signal.SIGXFSZ: "file"}


# Without a control group "cores" has no effect, and "memory_bytes" holds for each process alone.
NO_LIMITS = Limits(dict.fromkeys(("cpu_s", "memory_bytes", "file_bytes", "processes", "cores", "nice"), 0))


def priority_command(limits: Limits) -> list[str]:
    """Return the words before the command that contains a program: its priorities."""
    # In some containers nobody may write there; then the kernel chooses by itself.
    score = ("choom", "-n", str(_OOM_SCORE), "--") if os.access(_OOM_SCORE_FILE, os.W_OK) else ()
    return [*score, *(("nice", "-n", str(limits.nice)) if limits.nice else ())]


def limit_command(limits: Limits, *, others: int = 0) -> list[str]:
    """Return the words before the program itself: its limits.

    ``others`` is the number of processes that the kernel counts beside the program's; none in namespaces.
    """
    options = []
    for name, (number, attribute) in RLIMITS.items():
        if wanted := getattr(limits, attribute):
            soft = max(1, round(wanted)) + (others if name == "nproc" else 0)
            hard = soft + (_OVERTIME_S if name == "cpu" else 0)
            _, most = resource.getrlimit(number)
            if most != resource.RLIM_INFINITY:
                # A limit that is lower already stays: nobody but root can raise it.
                hard = min(hard, most)
            options.append(f"--{name}={min(soft, hard)}:{hard}")
    return ["prlimit", "--core=0", *options, "--"]


def explain_limit(
    limits: Limits,
    status: int,
    stderr: bytes,
    *,
    exceeded: str | None = None,
    stated: Mapping[str, str] | None = None,
) -> str | None:
    """Return the message for the limit that a program met; None if its end shows none.

    ``status`` is -N when signal N ended it, 128 + N from a program in between; ``exceeded`` is the limit that
    its control group met; ``stated`` are options of stap's ``rc`` file in place of limits, by attribute.
    """
    messages = _messages(limits, stated or {})
    if status == 0:
        # It may have started others that met a limit, and done without what they should have found.
        return messages.get(exceeded)
    ended_by = _SIGNALS.get(-status if status < 0 else status - 128)
    last = stderr[-_MESSAGES_BYTES:]
    printed = (limit for limit, words in _MESSAGES if words.search(last))
    met = (limit for limit in (exceeded, ended_by, *printed) if limit in messages)
    return next((messages[limit] for limit in met), None)


def _messages(limits: Limits, stated: Mapping[str, str]) -> dict[str | None, str]:
    memory, file = encode_size(limits.memory_bytes), encode_size(limits.file_bytes)
    needed: dict[str, tuple[Setting[Any], str]] = {
        "cpu": (Limits.cpu_s, f"more than {limits.cpu_s:g} seconds of processor time"),
        "memory": (Limits.memory_bytes, f"more than {memory} of memory"),
        "file": (Limits.file_bytes, f"a file of more than {file}"),
        "processes": (Limits.processes, f"more than {limits.processes} processes"),
    }
    messages: dict[str | None, str] = {}
    for name, (row, what) in needed.items():
        if option := stated.get(row.attribute):
            messages[name] = f"The compile needed more than {option} in stap's rc file of this server allows"
        elif getattr(limits, row.attribute):
            messages[name] = f"The compile needed {what} ({row.variable} of this server)"
    return messages


def count_processes(loadavg: Path = Path("/proc/loadavg")) -> int:
    """Return the number of processes and threads on the host; 0 where it cannot be read."""
    # Where the kernel counts a user's processes all together, a limit has to leave room for what runs
    # already. This is more than one user has, but one read gives it.
    try:
        return int(loadavg.read_text(encoding="ascii").split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return 0
