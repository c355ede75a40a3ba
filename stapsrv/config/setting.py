"""One setting: a row of the table (:mod:`stapsrv.config.table`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast, overload

if TYPE_CHECKING:
    from stapsrv.config.kinds import Kind

_T = TypeVar("_T")


class Setting(Generic[_T]):
    """One setting: a variable of files and of the environment, an option, and a line of help and manual.

    The option is made of the variable by default, and empty where no command takes one. An array has a value
    for each line of a file, and each time that the option is typed. ``by_process`` is False where only the
    user who starts the process decides: not its environment or options.
    """

    attribute: str
    group: type[Group]

    def __init__(
        self,
        variable: str,
        kind: Kind,
        text: str,
        *,
        default: _T | None = None,
        default_text: str = "",
        option: str | None = None,
        array: bool = False,
        identifies: bool | None = None,
        by_process: bool = True,
    ) -> None:
        self.variable = variable
        self.kind = kind
        self.help = text
        # An array is empty by default; else None is the default of a type that has it.
        self.default: _T = cast("_T", () if array else default)
        self.default_text = default_text or ("" if default is None else kind.encode(default))
        self.option = f"--{variable.lower().replace('_', '-')}" if option is None else option
        self.array = array
        self._identifies = identifies
        self.by_process = by_process

    def __set_name__(self, owner: type[Group], name: str) -> None:
        self.attribute = name
        self.group = owner

    @overload
    def __get__(self, instance: None, owner: type[Group]) -> Self: ...
    @overload
    def __get__(self, instance: Group, owner: type[Group]) -> _T: ...
    def __get__(self, instance: Group | None, owner: type[Group]) -> Self | _T:
        # The group's class has the row, an instance the value: limits.compile_s is a float to mypy, too.
        if instance is None:
            return self
        value: _T = instance.values.get(self.attribute, self.default)
        return value

    @property
    def identifies(self) -> bool:
        """Whether servers that differ in it are not the same (manual page, ``start``)."""
        return self.group.identifies if self._identifies is None else self._identifies

    @property
    def tunable(self) -> bool:
        """Whether a :class:`~stapsrv.config.tuning.Tuning` has it."""
        return self.group.tunable

    def add(self, values: dict[str, Any], text: str) -> None:
        """Parse ``text`` into ``values``, by attribute; a ValueError's text says what was expected."""
        value = self.kind.parse(text)
        values[self.attribute] = (*values.get(self.attribute, ()), value) if self.array else value


class Group:
    """Settings that belong together: the class body is their table, an instance has their values."""

    rows: ClassVar[tuple[Setting[Any], ...]] = ()
    tunable: ClassVar[bool] = True
    identifies: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.rows = tuple(row for row in vars(cls).values() if isinstance(row, Setting))

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        # By attribute; those of other groups do no harm, and what is missing has its default.
        self.values = values or {}
