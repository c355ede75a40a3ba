"""How log lines look. Light to import, like :mod:`stapsrv.config.global_settings`, whose variable it is."""

from __future__ import annotations

import enum


class LogFormat(enum.StrEnum):
    """What becomes of an event that is logged."""

    CLASSIC = "classic"
    """A sentence behind the date, as scripts have looked for it for years."""
    JSON = "json"
    """One JSON object on one line."""
    JOURNAL = "journal"
    """An entry of the systemd journal, with fields; no file is written."""


def parse_log_format(text: str) -> LogFormat:
    """Read the name of a format.

    Raises:
        ValueError: there is no such format; the text is what was expected.
    """
    try:
        return LogFormat(text.lower())
    except ValueError:
        raise ValueError("classic, json or journal") from None
