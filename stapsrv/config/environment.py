"""Settings by environment variables, for containers: ``STAPSRV_`` and the name of a file's variable.

They are the weakest source: every option and every file goes before them. A variable of the global file
holds for the whole service; those of a server's file describe one server, which is hosted where the
configuration directory holds none. Light to import, like :mod:`stapsrv.config.files`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stapsrv.config.files import Variable, unwritable_reason
from stapsrv.errors import ConfigError

PREFIX = "STAPSRV_"
_OTHERS = frozenset({"STAPSRV_DEFAULT_USER"})
"""Between our own programs."""
_FOR_TESTS = "STAPSRV_TEST_"
_OF_NOBODY = frozenset({"USER", "STAP_USER"})
"""Whom a process runs as is decided by who starts it, not by the process."""
_LINK_REMEDY = (
    "give the pod enableServiceLinks: false (Kubernetes sets such variables for a service named stapsrv)"
)


def values_from_environ(
    environ: Mapping[str, str], *, variables: Iterable[Variable], other_than: Iterable[Variable] = ()
) -> dict[str, object]:
    """Read the variables of one kind of file from the environment: attribute to value.

    An empty value is none. An array's values have blanks between them; quotes keep blanks together.

    Args:
        environ: the environment variables.
        variables: those to look for.
        other_than: variables of another kind, which their names mean if both have them.

    Raises:
        ConfigError: a value that cannot be; the text names the variable and what was expected.
    """
    taken = {variable.name for variable in other_than} | _OF_NOBODY
    return {
        variable.attribute: _read(variable, environ[name])
        for variable in variables
        if variable.name not in taken and environ.get(name := PREFIX + variable.name)
    }


def refuse_unknown(environ: Mapping[str, str], *, variables: Iterable[Variable]) -> None:
    """Refuse variables that begin like ours and mean nothing: most are typing errors.

    Args:
        environ: the environment variables.
        variables: all those that there are.

    Raises:
        ConfigError: there is one; the text names the nearest that there is.
    """
    known = [PREFIX + variable.name for variable in variables if variable.name not in _OF_NOBODY]
    for name in sorted(environ):
        if name in known or name in _OTHERS or name.startswith(_FOR_TESTS) or not name.startswith(PREFIX):
            continue
        import difflib  # noqa: PLC0415 - takes 2 ms, for a mistake alone

        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if _is_link(name):
            remedy = _LINK_REMEDY
        else:
            remedy = f"did you mean {nearest[0]}?" if nearest else f"remove it; there are {', '.join(known)}"
        raise ConfigError("unknown environment variable", where=name, remedy=remedy)


def _read(variable: Variable, text: str) -> object:
    where = f"{PREFIX}{variable.name}={text!r}"
    reason = unwritable_reason(text)
    if reason is not None:
        raise ConfigError(reason, where=where)
    import shlex  # noqa: PLC0415 - status seldom has any use for it

    try:
        words = shlex.split(text) if variable.array else [text]
    except ValueError as exc:
        raise ConfigError(f"{str(exc).lower()} in a list of words", where=where) from exc
    try:
        values = tuple(variable.parse(word) for word in words)
    except ValueError as exc:
        remedy = _LINK_REMEDY if "://" in text else None
        raise ConfigError(f"expected {exc}", where=where, remedy=remedy) from exc
    return values if variable.array else values[0]


def _is_link(name: str) -> bool:
    """Whether a variable has the form of those that tell of a service's address."""
    rest = name.removeprefix(PREFIX)
    return rest.startswith(("SERVICE_HOST", "SERVICE_PORT", "PORT_"))
