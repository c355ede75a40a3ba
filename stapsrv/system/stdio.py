"""Standard output that may be a full disk, a pipe that nobody reads, or missing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

BROKEN_PIPE = 141
"""128 and SIGPIPE, as a shell reports it."""


@contextlib.contextmanager
def guard_stdout(program: str) -> Iterator[None]:
    """Flush standard output when the block ends, also by ``SystemExit``, and exit where that fails.

    The exit status is 141 if nobody reads the output any more, else 1 after one line on standard error,
    which begins with ``program``. Missing standard streams are replaced by /dev/null.

    Raises:
        SystemExit: the output could not be written, or the block raised another OSError.
    """
    with contextlib.ExitStack() as cleanup:
        null = cleanup.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        cleanup.enter_context(contextlib.redirect_stdout(sys.stdout or null))
        cleanup.enter_context(contextlib.redirect_stderr(sys.stderr or null))
        try:
            try:
                yield
            finally:
                sys.stdout.flush()
        except OSError as exc:
            # The interpreter would try to write the rest once more at its exit.
            os.dup2(null.fileno(), sys.stdout.fileno())
            if isinstance(exc, BrokenPipeError):
                sys.exit(BROKEN_PIPE)
            sys.stderr.write(f"{program}: {exc.filename or 'standard output'}: {exc.strerror}\n")
            sys.exit(1)
