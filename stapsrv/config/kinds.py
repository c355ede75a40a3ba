"""Kinds of values: how people write numbers, durations, sizes, words and paths, and how to write them back.

Pure and light to import: the table of settings is made of these.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# Python refuses to convert thousands of digits, and a number of more than this is a mistake anyway.
_MAX_DIGITS = 18
BLANKS = " \t"
# Compiled when a value is read: a status, which mostly reads none, would wait for half a millisecond.
_NUMBER = rf"[0-9]{{1,{_MAX_DIGITS}}}"
_DURATION = rf"([0-9]{{1,{_MAX_DIGITS}}}(?:\.[0-9]{{1,6}})?)(ms|s|m|h|d)?"
_SIZE = rf"(?i:([0-9]{{1,{_MAX_DIGITS}}})(?:([kmgt])(?:i?b)?)?)"
_SECONDS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
_KIBI = 1024
_ENGINE = r"[a-z][a-z0-9_-]{0,31}"


class Kind(NamedTuple):
    """A kind of values; the text of a ValueError of ``parse`` says what was expected."""

    metavar: str
    parse: Callable[[str], object] = str
    encode: Callable[[Any], str] = str
    # It has to be absolute where the working directory is not the writer's.
    is_path: bool = False


class LogFormat(enum.StrEnum):
    """The form of log lines."""

    CLASSIC = "classic"  # a sentence behind the date, as scripts have looked for it for years
    JSON = "json"
    JOURNAL = "journal"  # entries of the systemd journal, with fields; no file is written


def count(what: str, *, least: int = 1, most: int | None = None, note: str = "") -> Kind:
    """Return the kind of whole numbers from ``least`` to ``most``; ``what`` they are, for messages."""
    bounds = f", {least} or more" if most is None else f" from {least} to {most}"

    def parse(text: str) -> int:
        digits = text.strip(BLANKS)
        number = int(digits) if re.fullmatch(_NUMBER, digits) else -1
        if number < least or (most is not None and number > most):
            raise ValueError(f"{what}{bounds}{note}")
        return number

    return Kind("N", parse)


def duration(*, least_s: float = 0.1, most_s: float = 86_400.0) -> Kind:
    """Return the kind of durations in seconds: ``30``, ``0.5``, ``30s``, ``5m``, ``2h``, ``500ms``."""

    def parse(text: str) -> float:
        found = re.fullmatch(_DURATION, text.strip(BLANKS))
        seconds = -1.0 if found is None else float(found[1]) * _SECONDS[found[2]]
        if not least_s <= seconds <= most_s:
            bounds = f"from {least_s:g} seconds to {encode_duration(most_s)}"
            raise ValueError(f"a duration {bounds}, like 30 (seconds), 30s or 5m")
        return seconds

    return Kind("SECONDS", parse, encode_duration)


def size(*, least: int = 1024) -> Kind:
    """Return the kind of sizes in bytes: ``65536``, ``64k``, ``64M``, ``1G`` (powers of 1024)."""

    def parse(text: str) -> int:
        found = re.fullmatch(_SIZE, text.strip(BLANKS))
        number = -1
        if found is not None:
            number = int(found[1]) * _KIBI ** _POWERS.get((found[2] or "").lower(), 0)
        if not least <= number < 10**_MAX_DIGITS:
            raise ValueError(f"a size of {encode_size(least)} or more, like 65536 (bytes), 64M or 1G")
        return number

    return Kind("BYTES", parse, encode_size)


def choice(*words: str, gone: Mapping[str, str] | None = None) -> Kind:
    """Return the kind of one of some words; ``gone`` names what to take in place of former ones."""

    def parse(text: str) -> str:
        if gone and text in gone:
            raise ValueError(f"{gone[text]} ({text} is gone)")
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return Kind("|".join(words), parse)


def _parse_engine(text: str) -> str:
    """Read the name of an engine."""
    if not re.fullmatch(_ENGINE, text):
        raise ValueError("local, dask, or the name of another engine that is installed")
    return text


def _parse_absolute_path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("an absolute path")
    return text


def _parse_log_format(text: str) -> LogFormat:
    try:
        return LogFormat(text.lower())
    except ValueError:
        raise ValueError("classic, json or journal") from None


def _parse_switch(text: str) -> bool:
    if text.lower() not in {"yes", "no"}:
        raise ValueError("yes or no")
    return text.lower() == "yes"


ABSOLUTE_PATH = Kind("PATH", _parse_absolute_path)
LOG_FORMAT = Kind("|".join(LogFormat), _parse_log_format)
ENGINE = Kind("NAME", _parse_engine)
SWITCH = Kind("yes|no", _parse_switch, lambda value: "yes" if value else "no")


def encode_duration(seconds: float) -> str:
    """Write a duration so that reading it gives the same: whole minutes, hours and days as such."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds // _SECONDS[unit])}{unit}"
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{seconds}s"


def encode_size(number: int) -> str:
    """Write a size so that reading it gives the same, with the largest unit that divides it."""
    for letter, power in (("T", 4), ("G", 3), ("M", 2), ("k", 1)):
        if number and number % _KIBI**power == 0:
            return f"{number // _KIBI**power}{letter}"
    return str(number)
