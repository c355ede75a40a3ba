"""The tunable settings that have been set: by one source, or by several laid over each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stapsrv.config.setting import Setting
from stapsrv.config.table import TUNABLES, SharedLimits

BY_ATTRIBUTE: Mapping[str, Setting[Any]] = {row.attribute: row for row in TUNABLES}


class Tuning(Mapping[str, Any]):
    """The values that have been set, by attribute. Immutable; the order of setting does not count.

    Raises:
        KeyError: the table has no such attribute.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        # The look-up refuses attributes that the table does not have.
        self._values = {BY_ATTRIBUTE[name].attribute: value for name, value in (values or {}).items()}

    def __getitem__(self, attribute: str) -> Any:  # noqa: ANN401 - each row has its own type
        return self._values[attribute]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Tuning({self._values!r})"

    def over(self, base: Mapping[str, Any]) -> Tuning:
        """Return what holds when this goes before ``base``."""
        return Tuning({**base, **self._values})

    def effective(self, attribute: str) -> Any:  # noqa: ANN401 - each row has its own type
        """Return a value, or the default where none was set."""
        return self._values.get(attribute, BY_ATTRIBUTE[attribute].default)

    def identifying(self) -> Tuning:
        """Return what makes a server another one."""
        return Tuning({name: value for name, value in self.items() if BY_ATTRIBUTE[name].identifies})

    def of_servers(self) -> Tuning:
        """Return what holds for servers, without what they share."""
        return Tuning(
            {name: value for name, value in self.items() if BY_ATTRIBUTE[name] not in SharedLimits.rows}
        )


NOTHING_SET = Tuning()


def with_tuning(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by attribute, the tunable ones put together as ``tuning`` if there are any."""
    tuned = {name: value for name, value in values.items() if name in BY_ATTRIBUTE}
    others = {name: value for name, value in values.items() if name not in tuned}
    return {**others, "tuning": Tuning(tuned)} if tuned else others
