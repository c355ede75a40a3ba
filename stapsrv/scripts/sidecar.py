"""Reads ``NAME.toml``, the TOML file beside a script that describes it. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from stapsrv.text import nearest, printable

_PRIVILEGES = ("stapdev", "stapsys", "stapusr")
_LISTS = ("options", "arguments", "leave_out", "fails_for")
KEYS = (*_LISTS, "privilege")
"""All that such a file may state."""


def parse_sidecar(data: bytes) -> dict[str, Any]:
    """Return what a sidecar states, by key: tuples of texts, and the privilege.

    Raises:
        ValueError: it is no TOML, has an unknown key, or a value of the wrong type; the text names the key.
    """
    try:
        stated = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise ValueError(f"byte {exc.start} is not UTF-8") from exc
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise ValueError(f"it is no TOML: {printable(str(exc))}") from exc
    return {key: _value(key, value) for key, value in _checked(stated).items()}


def _checked(stated: Mapping[str, object]) -> Mapping[str, object]:
    for key in stated:
        if key not in KEYS:
            meant = nearest(key, KEYS)
            rest = f"did you mean {meant}?" if meant else f"the keys are {', '.join(KEYS)}"
            raise ValueError(f"unknown key {printable(repr(key))}; {rest}")
    return stated


def _value(key: str, value: object) -> object:
    if key == "privilege":
        if value not in _PRIVILEGES:
            raise ValueError(f"{key}: expected one of {', '.join(_PRIVILEGES)}")
        # Clients of that group add nothing.
        return None if value == "stapdev" else value
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{key}: expected an array of strings")
    if any("\0" in each for each in value):
        raise ValueError(f"{key}: a string holds a NUL, which no program can be given")
    return tuple(value)
