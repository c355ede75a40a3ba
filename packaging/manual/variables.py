"""Tables of the settings: for the manual page of the files, and for the pages in ``docs``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from stapsrv.config.compilation import Compilation
from stapsrv.config.setting import Setting
from stapsrv.config.table import Description, Limits, NetworkAccess, Service, SharedLimits

KINDS: dict[str, Sequence[Setting[Any]]] = {
    "global": Service.rows,
    "server": Description.rows,
    "limits": (*Limits.rows, *SharedLimits.rows),
    "access": NetworkAccess.rows,
    "compilation": Compilation.rows,
}
_TABLE = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end of settings -->)", re.DOTALL)


def described(kind: str) -> dict[str, str]:
    """Return each variable of one of :data:`KINDS`, and what it means, with its default."""
    return {
        row.variable: f"{_meaning(row)}{f' ({row.default_text})' if row.default_text else ''}"
        for row in KINDS[kind]
    }


def with_tables(page: str) -> str:
    """Return a page of ``docs`` with each table between its two comments made anew.

    Raises:
        KeyError: there is no such kind of settings.
    """
    return _TABLE.sub(lambda found: found[1] + "".join(_table(found[2])) + found[3], page)


def _table(kind: str) -> Iterable[str]:
    yield "| variable | option | default | meaning |\n| --- | --- | --- | --- |\n"
    for row in KINDS[kind]:
        option = f"`{row.option}`" if row.option else ""
        default = f"`{row.default_text}`" if _is_literal(row) else row.default_text
        yield f"| `{row.variable}` | {option} | {default} | {_meaning(row)} |\n"


def _is_literal(row: Setting[Any]) -> bool:
    return row.default not in (None, ()) and bool(row.default_text)


def _meaning(row: Setting[Any]) -> str:
    return f"{row.help}; several" if row.array else row.help
