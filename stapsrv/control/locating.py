"""Where in a settings file something is said, for messages about it."""

from __future__ import annotations

from pathlib import Path

from stapsrv.config.files import decode_config, parse_assignments
from stapsrv.errors import ConfigError


def line_of(file: str, variable: str, value: str | None = None) -> str:
    """Return ``FILE:LINE`` of what a settings file last assigns to a variable; ``FILE`` if it does not.

    Args:
        file: its path.
        variable: the variable's name.
        value: find the assignment of this value; None for the last of any.
    """
    try:
        assignments = parse_assignments(decode_config(Path(file).read_bytes(), where=file), where=file)
    except (OSError, ConfigError):
        return file
    lines = [
        assignment.line
        for assignment in assignments
        if assignment.variable == variable and value in (None, assignment.value)
    ]
    return f"{file}:{lines[-1]}" if lines else file
