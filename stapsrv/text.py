"""Text of others, made fit for one line of a log, a message or a terminal. Pure.

Names, arguments and error messages come from clients, files and other programs. Printed as they are they
could forge a second log line or send commands to a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Compiled when it is needed: every stap-server status loads this module.
_ERROR = rb"(?i)\b(error:|fatal\b)"


def printable(text: str) -> str:
    r"""Return text on one line, with escapes such as ``\x1b`` for what is not printable."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def printable_bytes(raw: bytes, *, limit: int = 200) -> str:
    r"""Return bytes as printable text of at most ``limit`` characters; what is not UTF-8 becomes ``\xNN``."""
    # Only the beginning is decoded: a request may hold megabytes, and a character has four bytes at most.
    text = raw[: 4 * limit].decode("utf-8", "backslashreplace")
    shown = printable(text[:limit])
    return shown if len(text) <= limit and len(raw) <= 4 * limit else f"{shown}…"


def shortened(text: str, limit: int) -> str:
    """Return text, with an ellipsis for all that follows its first ``limit`` characters."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def counted(number: int, thing: str) -> str:
    """Return ``1 job`` or ``2 jobs``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def tally(counts: Mapping[str, int]) -> str:
    """Return ``41 ok, 2 fails`` for how many there are of each thing."""
    return ", ".join(f"{count} {thing}" for thing, count in counts.items())


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known word that was probably meant."""
    import difflib  # noqa: PLC0415 - takes 2 ms, for a mistake alone

    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def error_line(stderr: bytes, *, default: str = "it failed and said nothing", limit: int = 300) -> str:
    """Return the line of a program's messages that says what is wrong, as printable text.

    It is the first one that mentions an error, else the last one, else ``default``.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(_ERROR, line)]
    return printable_bytes((errors or lines[-1:] or [default.encode()])[0], limit=limit)
