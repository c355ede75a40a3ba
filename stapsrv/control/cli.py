"""``stap-server`` as a program: streams, the end of the process."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

_BROKEN_PIPE = 141
"""As a shell says of a program that a signal ended."""


def main() -> NoReturn:
    """Run ``stap-server`` with this program's arguments and exit (manual page; PROTOCOL 10).

    Exit status: 0 done; 1 something failed; 2 bad usage; 3 from ``status`` when a server that was asked
    about does not run, or none runs.
    """
    # Modules are no garbage: looking for some while they load would take a thirtieth of a status.
    gc.disable()
    from stapsrv.control.commandline import run  # noqa: PLC0415 - see above
    from stapsrv.control.output import Console  # noqa: PLC0415

    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 - as light as it gets
        out, err = sys.stdout or nowhere, sys.stderr or nowhere
        for stream in (out, err):
            # A name that the locale cannot write is no reason to fail.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            status = run(sys.argv[1:], Console(out, err), os.environ)
            out.flush()
        except BrokenPipeError:
            status = _BROKEN_PIPE
        except OSError as exc:
            err.write(f"stap-server: {exc.filename or 'standard output'}: {exc.strerror}\n")
            status = 1
    # Taking all modules apart again would take an eighth of a status, and nothing is left to be closed.
    os._exit(status)
