"""Files that are replaced as a whole: whoever reads one meets the old text or the new, whatever crashes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace_file(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Put ``text`` in the place of a file, which need not exist.

    Args:
        path: of the file, in a directory that exists.
        text: of all of it.
        mode: of the file, whatever the process's mask; nobody else reads it before it is whole.

    Raises:
        OSError: it cannot be written, and is as it was.
    """
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(fd, mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
