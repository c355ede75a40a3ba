"""What a setting is: one row of the table (:mod:`stapsrv.config.table`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, overload

if TYPE_CHECKING:
    from stapsrv.config.kinds import Kind

_T = TypeVar("_T")


class Setting(Generic[_T]):
    """One setting: a variable of files and of the environment, an option, and a line of help and manual.

    Read from an instance of its :class:`Group` it is the value that holds there.

    Attributes:
        variable: its name in files.
        kind: what values it takes; an array's elements, each.
        help: what it is, in a few words without a full stop.
        default: what holds where nobody says anything; None where that depends on the host.
        default_text: the default as a person would write it or describe it; may be empty.
        option: as typed; empty where no command takes one.
        array: holds any number of values, one for each line of a file and each time the option is typed.
        by_process: False where only who starts the process decides: not in its environment or options.
        attribute: its name in Python, that of the class attribute.
        group: the class whose attribute it is.
    """

    attribute: str
    group: type[Group]

    def __init__(
        self,
        variable: str,
        kind: Kind,
        text: str,
        *,
        default: _T,
        default_text: str = "",
        option: str | None = None,
        array: bool = False,
        identifies: bool | None = None,
        by_process: bool = True,
    ) -> None:
        self.variable = variable
        self.kind = kind
        self.help = text
        self.default = default
        self.default_text = default_text or ("" if default is None or array else kind.encode(default))
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
        """Whether it is kept in a :class:`~stapsrv.config.table.Tuning`."""
        return self.group.tunable

    def add(self, values: dict[str, Any], text: str) -> None:
        """Put what ``text`` says into ``values``, by attribute: replacing, or as one more value of an array.

        Raises:
            ValueError: it cannot be; the text is what was expected.
        """
        value = self.kind.parse(text)
        values[self.attribute] = (*values.get(self.attribute, ()), value) if self.array else value


class Group:
    """Settings that belong together: the class body is their table, an instance has their values.

    Attributes:
        values: what is set, by attribute; others have their defaults, and names of other groups do not
        matter.
    """

    rows: ClassVar[tuple[Setting[Any], ...]] = ()
    tunable: ClassVar[bool] = True
    identifies: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.rows = tuple(row for row in vars(cls).values() if isinstance(row, Setting))

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self.values = values or {}
