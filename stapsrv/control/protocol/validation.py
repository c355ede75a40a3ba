"""Checks decoded JSON against the types that describe it (:mod:`.status_fields` and :mod:`.schema`).

``stap-server status`` loads this module, so it needs the standard library's :mod:`typing` only.
"""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

_Shape = TypeVar("_Shape")
_SHOWN_CHARACTERS = 60
# What values of a type are called, and what a shape of that type expects.
_WORDS: dict[object, tuple[str, ...]] = {
    NoneType: ("null",),
    bool: ("true or false",),
    int: ("a number", "a whole number"),
    float: ("a fraction", "a number"),
    str: ("a string",),
    list: ("an array",),
}


class ShapeError(ValueError):
    """A value of another shape; the text says where, what was expected, and what was found."""


def checked(value: object, shape: type[_Shape], *, name: str, exact: bool) -> _Shape:
    """Return a decoded value as one of ``shape``; ``name`` stands for the whole value in messages.

    The shape is a ``TypedDict`` of strings, numbers, booleans, None, lists, dicts, literals, unions of these,
    and other such classes. Unless ``exact``, unknown members are accepted: the supervisor may be newer.

    Raises:
        ShapeError: it has another shape.
    """
    _check(value, shape, name, exact=exact)
    return cast(_Shape, value)


# Both are cached, since a status has the same few shapes thousands of times.
@cache
def members(shape: type) -> dict[str, object]:
    """Return the types of the members of a ``TypedDict``, with their ``NotRequired`` and ``Annotated``."""
    # Not __required_keys__, which takes every member for required when annotations are strings.
    return get_type_hints(shape, include_extras=True)


@cache
def alternatives(shape: object) -> dict[type, object]:
    """Return the Python types that the JSON decoder gives for a shape, each with its part of the shape."""
    while get_origin(shape) in (Annotated, NotRequired):
        shape = get_args(shape)[0]
    if get_origin(shape) in (Union, UnionType):
        return {kind: part for one in get_args(shape) for kind, part in alternatives(one).items()}
    if shape is float:
        return {float: float, int: float}
    if is_typeddict(shape):
        return {dict: shape}
    return {str if get_origin(shape) is Literal else cast(type, get_origin(shape) or shape): shape}


def kind_of(value: object) -> str:
    """Say in words what a JSON value is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _WORDS.get(type(value), ("an object",))[0]


def shown(text: str) -> str:
    """Quote the beginning of a peer's text, with all that a terminal would obey escaped."""
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")


def _check(value: object, shape: object, where: str, *, exact: bool) -> None:
    kind = type(value)
    fitting = alternatives(shape).get(kind)
    if fitting is kind:
        return
    if fitting is None or (get_origin(fitting) is Literal and value not in get_args(fitting)):
        expected = " or ".join(dict.fromkeys(map(_description, alternatives(shape).values())))
        raise ShapeError(f"{where}: expected {expected}, not {kind_of(value)}")
    if is_typeddict(fitting):
        _check_members(cast("dict[str, object]", value), cast(type, fitting), where, exact=exact)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, get_args(fitting)[0], f"{where}[{index}]", exact=exact)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(item, get_args(fitting)[1], f"{where}.{shown(key)[1:-1]}", exact=exact)


def _check_members(value: dict[str, object], shape: type, where: str, *, exact: bool) -> None:
    known = members(shape)
    for key, hint in known.items():
        if key in value:
            _check(value[key], hint, f"{where}.{key}", exact=exact)
        elif get_origin(hint) is not NotRequired:
            raise ShapeError(f"{where}: the member '{key}' is missing")
    unknown = [key for key in value if key not in known] if exact else ()
    if unknown:
        remedy = f"it may have {', '.join(known)}" if known else "it has none"
        raise ShapeError(f"{where}: unknown member {shown(unknown[0])}; {remedy}")


def _description(shape: object) -> str:
    if get_origin(shape) is Literal:
        return " or ".join(f'"{word}"' for word in get_args(shape))
    return _WORDS.get(get_origin(shape) or shape, ("an object",))[-1]
