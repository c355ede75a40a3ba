"""Checks JSON values against the types that describe them (:mod:`stapsrv.control.protocol.schema`)."""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import (
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

from stapsrv.control.protocol.jsonrpc import kind_of, shown

_Shape = TypeVar("_Shape")


class ShapeError(ValueError):
    """A value of another shape; the text says where, what was expected, and what was found."""


def checked(value: object, shape: type[_Shape], *, name: str, exact: bool) -> _Shape:
    """Return ``value``, which is of ``shape``.

    Args:
        value: as the JSON decoder gives it.
        shape: a ``TypedDict`` of strings, numbers, booleans, None, lists, dicts, literals, unions of
            these, and other such classes.
        name: of the whole value, for messages.
        exact: refuse members that the shape does not know; without it they are let pass, for a peer
            that is newer.

    Raises:
        ShapeError: it is not.
    """
    _check(value, shape, name, exact=exact)
    return cast(_Shape, value)


def _check(value: object, shape: object, where: str, *, exact: bool) -> None:
    alternatives = get_args(shape) if get_origin(shape) in (Union, UnionType) else (shape,)
    fitting = next((candidate for candidate in alternatives if _fits(value, candidate)), None)
    if fitting is None:
        expected = " or ".join(_description(candidate) for candidate in alternatives)
        raise ShapeError(f"{where}: expected {expected}, not {kind_of(value)}")
    if is_typeddict(fitting):
        _check_members(cast("dict[str, object]", value), cast(type, fitting), where, exact=exact)
    elif isinstance(value, list):
        (element,) = get_args(fitting)
        for index, item in enumerate(value):
            _check(item, element, f"{where}[{index}]", exact=exact)
    elif isinstance(value, dict):
        _, member = get_args(fitting)
        for key, item in value.items():
            _check(item, member, f"{where}.{shown(key)[1:-1]}", exact=exact)


def _check_members(value: dict[str, object], shape: type, where: str, *, exact: bool) -> None:
    members = _members(shape)
    for key, hint in members.items():
        optional = get_origin(hint) is NotRequired
        if key in value:
            _check(value[key], get_args(hint)[0] if optional else hint, f"{where}.{key}", exact=exact)
        elif not optional:
            raise ShapeError(f"{where}: the member '{key}' is missing")
    unknown = [key for key in value if key not in members]
    if exact and unknown:
        known = f"it may have {', '.join(members)}" if members else "it has none"
        raise ShapeError(f"{where}: unknown member {shown(unknown[0])}; {known}")


@cache
def _members(shape: type) -> dict[str, object]:
    # Not __required_keys__, which takes every member for required when annotations are strings.
    return get_type_hints(shape, include_extras=True)


def _fits(value: object, shape: object) -> bool:
    """Whether a value is of the right kind, whatever it contains."""
    origin = get_origin(shape) or shape
    if origin is Literal:
        return isinstance(value, str) and value in get_args(shape)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if is_typeddict(origin):
        return isinstance(value, dict)
    return isinstance(value, cast(type, origin))


def _description(shape: object) -> str:
    if get_origin(shape) is Literal:
        return " or ".join(f'"{word}"' for word in get_args(shape))
    names: dict[object, str] = {
        NoneType: "null",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
        list: "an array",
    }
    return names.get(get_origin(shape) or shape, "an object")
