"""Settings by environment variables, for containers: ``STAPSRV_`` and the name of a file's variable.

They are the weakest source: every option and every file goes before them. A variable of the global file
holds for the whole service; those of a server's file describe one server, which is hosted where the
configuration directory holds none. Light to import, like :mod:`stapsrv.config.files`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from stapsrv.config.files import retired_warning, unwritable_reason
from stapsrv.config.kinds import BLANKS
from stapsrv.config.table import GLOBAL_SETTINGS, RETIRED, SERVER_SETTINGS
from stapsrv.errors import ConfigError
from stapsrv.text import nearest

if TYPE_CHECKING:
    from stapsrv.config.setting import Setting

PREFIX = "STAPSRV_"
# Between our own programs, and for tests.
_OTHERS = frozenset({"STAPSRV_DEFAULT_USER"})
_FOR_TESTS = "STAPSRV_TEST_"
_LINKS = ("SERVICE_HOST", "SERVICE_PORT", "PORT_")
_LINK_REMEDY = (
    "give the pod enableServiceLinks: false (Kubernetes sets such variables for a service named stapsrv)"
)


def values_in(environ: Mapping[str, str], rows: Iterable[Setting[Any]]) -> dict[str, Any]:
    """Return what the environment says of ``rows``, by attribute; an empty value is none.

    Raises:
        ConfigError: a value is wrong; names the variable and what was expected.
    """
    values: dict[str, Any] = {}
    for row in rows:
        if row.by_process and environ.get(name := PREFIX + row.variable):
            _read(row, environ[name], values)
    return values


def server_values(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what the environment says of one server, as :func:`values_in`.

    Raises:
        ConfigError: a variable is unknown, or its value wrong.
    """
    refuse_unknown(environ)
    # A name that both files have is the global file's.
    others = {row.variable for row in GLOBAL_SETTINGS}
    return values_in(environ, [row for row in SERVER_SETTINGS if row.variable not in others])


def retired_in(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return a warning for each variable that has no effect any more."""
    return tuple(retired_warning(PREFIX + name) for name in RETIRED if environ.get(PREFIX + name))


def refuse_unknown(environ: Mapping[str, str]) -> None:
    """Raise a ConfigError for a variable that begins like ours and means nothing."""
    # Most are typing errors, so the message has the nearest known name.
    rows = (*GLOBAL_SETTINGS, *SERVER_SETTINGS)
    known = list(dict.fromkeys(PREFIX + row.variable for row in rows if row.by_process))
    ours = {*known, *_OTHERS, *(PREFIX + name for name in RETIRED)}
    for name in sorted(environ):
        if name in ours or name.startswith(_FOR_TESTS) or not name.startswith(PREFIX):
            continue
        meant = nearest(name, known, cutoff=0.8)
        if name.removeprefix(PREFIX).startswith(_LINKS):
            remedy = _LINK_REMEDY
        else:
            remedy = f"did you mean {meant}?" if meant else f"remove it; there are {', '.join(known)}"
        raise ConfigError("unknown environment variable", where=name, remedy=remedy)


def _read(row: Setting[Any], text: str, values: dict[str, Any]) -> None:
    # The values of an array have blanks between them; quotes keep blanks together.
    where = f"{PREFIX}{row.variable}={text!r}"
    text = text.rstrip(BLANKS)
    reason = unwritable_reason(text)
    if reason is not None:
        raise ConfigError(reason, where=where)
    import shlex  # noqa: PLC0415 - status seldom has any use for it

    try:
        words = shlex.split(text) if row.array else [text]
    except ValueError as exc:
        raise ConfigError(f"{str(exc).lower()} in a list of words", where=where) from exc
    try:
        for word in words:
            row.add(values, word.rstrip(BLANKS))
    except ValueError as exc:
        remedy = _LINK_REMEDY if "://" in text else None
        raise ConfigError(f"expected {exc}", where=where, remedy=remedy) from exc
