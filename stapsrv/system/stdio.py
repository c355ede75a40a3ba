"""Printing to standard output, which may be a full disk, a pipe that nobody reads, or nothing at all."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

BROKEN_PIPE = 141
"""As a shell says of a program that a signal ended."""


@contextlib.contextmanager
def guard_stdout(program: str) -> Iterator[None]:
    """See that what is printed is written when the block ends, however it ends: also by ``SystemExit``.

    Where it cannot be, this process is to exit: with 141 if nobody reads it any more, else with 1 after one
    line on standard error. Without standard output or standard error the block prints to nobody.

    Args:
        program: its name, for that line.

    Raises:
        SystemExit: it could not be written; or something else that the block does with the system failed.
    """
    with contextlib.ExitStack() as cleanup:
        nowhere = cleanup.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        cleanup.enter_context(contextlib.redirect_stdout(sys.stdout or nowhere))
        cleanup.enter_context(contextlib.redirect_stderr(sys.stderr or nowhere))
        try:
            try:
                yield
            finally:
                sys.stdout.flush()
        except OSError as exc:
            # What is left to be written would be tried once more at the end of the process.
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
            if isinstance(exc, BrokenPipeError):
                sys.exit(BROKEN_PIPE)
            sys.stderr.write(f"{program}: {exc.filename or 'standard output'}: {exc.strerror}\n")
            sys.exit(1)
