"""The limits that stap's own ``rc`` file states for each request, beside those of this server.

stap sets them itself, and complains to every client of one that is higher than what it was started with. So
one that the file states goes before a default, and the lower one holds of two that the operator set.

Source: stap(1), ``--rlimit-…``; seen in SystemTap 4.8.
"""

from __future__ import annotations

import re
import resource

import attrs

from stapsrv.config.table import Limits
from stapsrv.config.tuning import BY_ATTRIBUTE, Tuning
from stapsrv.sandbox.limits import RLIMITS

_OPTION = re.compile(r"(?<!\S)--rlimit-(cpu|as|fsize|nproc)(?:=|[ \t]+)([0-9]\w{0,30})(?!\S)", re.ASCII)


@attrs.frozen
class RcLimits:
    """The limits of a request, and ``text`` in place of the file where stap is to read another.

    ``stated`` are the options that go before a default, by the attribute of the limit; ``remarks`` say which
    one holds of two that were set.
    """

    limits: Limits
    text: str | None = None
    stated: dict[str, str] = attrs.field(factory=dict)
    remarks: tuple[str, ...] = ()


def apply_rc(text: str, tuning: Tuning) -> RcLimits:
    """Return what holds where stap's ``rc`` file has a text, and the operator has set ``tuning``."""
    defaults = Limits()
    values = dict(tuning)
    stated: dict[str, str] = {}
    remarks: list[str] = []

    def decide(option: re.Match[str]) -> str:
        rlimit, attribute = RLIMITS[option[1]]
        try:
            number = int(option[2], 0)
        except ValueError:
            return option[0]  # stap says what is wrong with it
        row = BY_ATTRIBUTE[attribute]
        own = tuning.get(attribute)
        if own is None:
            # stap sets a lower one itself, in the process that it is in.
            values[attribute] = max(number, values.get(attribute, getattr(defaults, attribute)))
            stated[attribute] = option[0]
        elif own:
            remarks.append(f"{row.variable}={row.kind.encode(own)} and {option[0]}")
        _, most = resource.getrlimit(rlimit)
        is_too_high = (own and number > own) or (most != resource.RLIM_INFINITY and number > most)
        return "" if is_too_high else option[0]

    lines = []
    for line in text.splitlines():
        words, hash_sign, comment = line.partition("#")
        lines.append(_OPTION.sub(decide, words) + hash_sign + comment)
    changed = "\n".join(lines)
    is_changed = changed != "\n".join(text.splitlines())
    return RcLimits(Limits(values), f"{changed}\n" if is_changed else None, stated, tuple(remarks))
