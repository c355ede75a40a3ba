"""The kinds of builds that have plans: what of a client's options changes how modules are built. Pure.

A plan is made by a script of the server's own. Of the client's request it gets no more than options of this
list with plain values, so that make is called in the same way.
"""

from __future__ import annotations

import re

from stapsrv.compile.protocol.options import ParsedOptions

_NOTHING = re.compile(rb"")
_PLAIN = re.compile(rb"[A-Za-z0-9_.=+-]{0,100}")
_OPTIONS = {
    **dict.fromkeys(("g", "b", "t", "P", "u", "unprivileged"), _NOTHING),
    **dict.fromkeys(("suppress-time-limits", "suppress-handler-errors"), _NOTHING),
    **dict.fromkeys(("D", "s", "privilege", "compatible"), _PLAIN),
}
_MAX_OPTIONS = 20


def plan_options(options: ParsedOptions) -> tuple[bytes, ...]:
    """Return the options that a build's plan has to be made with."""
    found = []
    for name, value in options.options[:_MAX_OPTIONS]:
        pattern = _OPTIONS.get(name)
        if pattern is not None and pattern.fullmatch(value or b""):
            dashes, sign = ("-", b"") if len(name) == 1 else ("--", b"=" if value else b"")
            found.append(f"{dashes}{name}".encode() + sign + (value or b""))
    return tuple(found)
