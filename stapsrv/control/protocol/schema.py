"""The JSON form of parameters and results, and the conversion from and to the supervisor's values.

mypy reads each ``TypedDict``, and :mod:`stapsrv.control.protocol.validation` checks what peers send against
it. Those of a status are in :mod:`stapsrv.control.protocol.status_fields`. Clients need this module, so it
loads neither attrs nor the supervisor.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, TypeVar, cast, get_args, is_typeddict

from stapsrv.config.files import unwritable_reason, value_in
from stapsrv.config.table import RETIRED, SERVER_SETTINGS
from stapsrv.config.tuning import with_tuning
from stapsrv.control.protocol.jsonrpc import Code
from stapsrv.control.protocol.status_fields import ServerInfo, SettingsInfo
from stapsrv.control.protocol.validation import alternatives, kind_of, members, shown
from stapsrv.errors import ControlError

if TYPE_CHECKING:
    from stapsrv.compile.activity import EndedRequest, Interval, RunningRequest
    from stapsrv.config.setting import Setting
    from stapsrv.config.settings import ServerSettings
    from stapsrv.supervisor.operations import Outcome
    from stapsrv.supervisor.status import ServerStatus, SupervisorStatus

    _Encodable = SupervisorStatus | ServerStatus | Outcome | RunningRequest | EndedRequest | Interval

_Shape = TypeVar("_Shape")


class HelloInfo(TypedDict):
    """The supervisor that answers; ``access``: ``all``, or ``read`` for ``hello``, ``status``, ``watch``."""

    protocol: int
    version: str
    pid: int
    user: str
    access: str
    features: list[str]


class OutcomeInfo(TypedDict):
    """The outcome for one server; ``server`` is None if it was refused or is unknown.

    ``already``: it was as wanted before. ``error``: why it is not as wanted, or None.
    """

    server: ServerInfo | None
    already: bool
    error: str | None


class ActionInfo(TypedDict):
    """The outcomes for all servers of an action."""

    outcomes: list[OutcomeInfo]


class EmptyInfo(TypedDict):
    """An object without members: no parameters, or a result that says only "done"."""


class ServerSpecInfo(TypedDict):
    """A server to start; ``origin`` is the configuration file that describes it."""

    settings: SettingsInfo
    origin: NotRequired[str | None]


class ActionParams(TypedDict):
    """Parameters of every action."""

    # The action goes on after it; by default, and with null, the answer waits for its end.
    timeout_s: NotRequired[float | None]
    progress: NotRequired[bool]


class WatchParams(TypedDict):
    """Parameters of ``watch``."""

    # The watch ends then; by default, and with null, when the client leaves.
    timeout_s: NotRequired[float | None]


class StartParams(ActionParams):
    """Parameters of ``start``."""

    servers: list[ServerSpecInfo]


class IdsParams(ActionParams):
    """Parameters of ``stop``, ``restart``, ``drain`` and ``undrain``."""

    ids: list[int] | Literal["all"]


class ReloadParams(ActionParams):
    """Parameters of ``reload``; with ``force`` all servers are stopped, and the process begins anew."""

    # An absolute path, in place of the supervisor's own file.
    config_file: NotRequired[str | None]
    force: NotRequired[bool]


class ScriptResultInfo(TypedDict):
    """The result of one script for one release."""

    collection: str
    script: str
    release: str
    verdict: str
    message: str
    seconds: float
    cached: bool
    uncacheable: str | None


class ScriptProgressInfo(TypedDict):
    """A script that has been checked, and how many of all there are by now."""

    result: ScriptResultInfo
    done: int
    total: int


class ScriptDifferenceInfo(TypedDict):
    """The differences from the last check, in words."""

    collection: str
    script: str
    release: str
    text: str


class ScriptReportInfo(TypedDict):
    """The end of a check."""

    results: list[ScriptResultInfo]
    differences: list[ScriptDifferenceInfo]


class ScriptCheckParams(TypedDict):
    """Parameters of ``check_scripts``; without releases it is about all that are served."""

    releases: NotRequired[list[str]]
    changed: NotRequired[bool]
    progress: NotRequired[bool]


class ScriptHistoryParams(TypedDict):
    """Parameters of ``script_history``."""

    name: str


class ScriptChangeInfo(TypedDict):
    """A result that was another than the one before."""

    verdict: str
    message: str
    seconds: float
    at: float
    inputs: list[str]


class ScriptCellInfo(TypedDict):
    """The changes of one script for one release, the oldest first."""

    cell: list[str]
    changes: list[ScriptChangeInfo]


class ScriptHistoryInfo(TypedDict):
    """The remembered changes of all scripts."""

    cells: list[ScriptCellInfo]


def encoded(value: _Encodable, shape: type[_Shape]) -> _Shape:
    """Return the JSON form of a value, which is of the class ``shape`` of this module or its neighbours."""
    return cast(_Shape, _encoded(value, shape))


def settings_info(settings: ServerSettings) -> SettingsInfo:
    """Return the JSON form of settings: those that are not the default."""
    info: SettingsInfo = {}
    for row in SERVER_SETTINGS:
        value = value_in(row, settings)
        if value != (None if row.tunable else row.default):
            info[row.variable] = _setting(row, value)
    if settings.keep_temporary:
        info[_KEEP] = True
    return info


def _setting(row: Setting[Any], value: object) -> int | str | list[str]:
    if isinstance(value, tuple):
        return [row.kind.encode(element) for element in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return row.kind.encode(value)


def invalid(problem: str, *, remedy: str | None = None) -> ControlError:
    """Return the error for parameters that cannot be."""
    return ControlError(problem, code=Code.INVALID_PARAMS, remedy=remedy)


def settings_from(info: Mapping[str, object], *, where: str) -> ServerSettings:
    """Parse settings; ``where`` names the object in messages.

    A number may also be a text of its digits. Paths must be absolute, since the supervisor's working
    directory is not the peer's.

    Raises:
        ControlError: an unknown variable, or a value that it cannot have (INVALID_PARAMS).
    """
    from stapsrv.config.settings import ServerSettings  # noqa: PLC0415 (see the module's docstring)

    known = {row.variable: row for row in SERVER_SETTINGS}
    values: dict[str, object] = {}
    for name, value in info.items():
        try:
            if name == _KEEP:
                if not isinstance(value, bool):
                    raise ValueError(f"expected true or false, not {kind_of(value)}")  # noqa: TRY301
                values["keep_temporary"] = value
            elif name in known:
                values[known[name].attribute] = _parsed(known[name], value)
            elif name not in RETIRED:
                raise invalid(
                    f"{where}: unknown variable {shown(name)}",
                    remedy=f"the variables are {', '.join([*known, _KEEP])}",
                )
        except ValueError as exc:
            raise invalid(f"{where}.{name}: {exc}") from exc
    return ServerSettings(**with_tuning(values))


def _encoded(value: object, shape: object) -> object:  # noqa: PLR0911 - one for each type
    """Return the JSON form of a value; of an object, the attributes that the table names."""
    # Late, since clients need neither: who has a status to encode has loaded both.
    from datetime import UTC, datetime  # noqa: PLC0415

    from stapsrv.config.settings import ServerSettings  # noqa: PLC0415

    described = alternatives(shape).get(dict)
    if value is not None and is_typeddict(described):
        # What a server does is a part of its status of its own.
        work = getattr(value, "work", None)
        return {
            name: _encoded(getattr(work if hasattr(work, name) else value, name), member)
            for name, member in members(cast(type, described)).items()
        }
    match value:
        case ServerSettings():
            return settings_info(value)
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case Enum():
            return value.value
        case float():
            return round(value, 3)
        case Mapping():
            return {_encoded(key, str): count for key, count in value.items() if count}
        case tuple():
            return [_encoded(element, get_args(alternatives(shape)[list])[0]) for element in value]
        case _:
            return value


_KEEP = "KEEP"


def _parsed(row: Setting[Any], value: object) -> object:
    """Convert a member's value; raises ValueError with what was expected."""
    if not row.array:
        return _element(row, value)
    if not isinstance(value, list):
        raise ValueError(f"expected an array of strings, not {kind_of(value)}")  # noqa: TRY004 - of a peer's value
    # An element of "()" would read as an array without elements from the file that records it.
    if "()" in value:
        raise ValueError('"()" cannot be an element')
    return tuple(_element(row, element) for element in value)


def _element(row: Setting[Any], value: object) -> object:
    number = isinstance(value, int) and not isinstance(value, bool)
    text = str(value) if number else value
    if not isinstance(text, str):
        raise ValueError(f"expected a string or a number, not {kind_of(value)}")  # noqa: TRY004 - of a peer's value
    if not text:
        raise ValueError("it is empty; leave it out for the default")
    reason = unwritable_reason(text)
    if reason is not None:
        raise ValueError(f"{shown(text)} {reason}")
    try:
        parsed = row.kind.parse(text)
    except ValueError as exc:
        raise ValueError(f"expected {exc}, not {shown(text)}") from exc
    if number and not isinstance(parsed, int | float):
        raise ValueError("expected a string, not a number")
    if row.kind.is_path and not text.startswith("/"):
        raise ValueError(f"expected an absolute path, not {shown(text)}")
    return parsed
