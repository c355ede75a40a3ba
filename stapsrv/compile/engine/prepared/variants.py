"""The kinds of builds that have plans: by the options of a request, and by how its source begins. Pure.

A plan is made by a script of the server's own. Of a client's compile it gets no more than options of this
list with plain values, and probes of this list that make a source begin alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from stapsrv.compile.protocol.options import ParsedOptions

_NOTHING = re.compile(rb"")
_PLAIN = re.compile(rb"[A-Za-z0-9_.=+-]{0,100}")
_OPTIONS = {
    **dict.fromkeys(("g", "b", "t", "P", "u", "unprivileged"), _NOTHING),
    **dict.fromkeys(("suppress-time-limits", "suppress-handler-errors", "skip-badvars"), _NOTHING),
    **dict.fromkeys(("D", "s", "privilege", "compatible"), _PLAIN),
}
_MAX_OPTIONS = 20

_SCRIPT = b"probe begin { exit() }"
# What stap writes to the sources, and probes for which it does, and calls make in the same way.
_PROBES = {
    b"#define _HAVE_PERF_ 1\n": b" probe timer.profile { println(1) }",
    b"#define STP_NEED_UNWIND_DATA 1\n": b" probe end { print_backtrace() }",
    b"#define STP_NEED_LINE_DATA 1\n": b" probe end { println(symfileline(1)) }",
}
_TRACEPOINT = b' probe kernel.trace("sched_switch")? { println(2) }'


def plan_options(options: ParsedOptions) -> tuple[bytes, ...]:
    """Return the options that a build's plan has to be made with."""
    found = []
    for name, value in options.options[:_MAX_OPTIONS]:
        pattern = _OPTIONS.get(name)
        if pattern is not None and pattern.fullmatch(value or b""):
            dashes, sign = ("-", b"") if len(name) == 1 else ("--", b"=" if value else b"")
            found.append(f"{dashes}{name}".encode() + sign + (value or b""))
    return tuple(found)


def plan_scripts(sources: Iterable[bytes], *, traced: bool) -> tuple[bytes, ...]:
    """Return scripts of the server's own whose builds are like that of these sources, as far as is known.

    They may be ``traced``, built from a script that asks for tracepoints: then there is one more, which does.
    """
    found = list(sources)
    probes = (probe for line, probe in _PROBES.items() if any(line in source for source in found))
    script = _SCRIPT + b"".join(probes)
    # A script that asks for tracepoints leaves its trace nowhere but in the Makefile.
    return (script, script + _TRACEPOINT) if traced else (script,)
