"""Finds out why an NSS database does not open.

NSS reports ``SEC_ERROR_BAD_DATABASE`` for a missing file, a locked one, a forbidden one and a damaged one
alike. Only the last justifies a new database, so the files, which are SQLite's, are examined here.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from stapsrv.errors import IdentityError

_TABLES = {"cert9.db": "nssPublic", "key4.db": "nssPrivate"}


class DamagedDatabase(IdentityError):
    """A database whose contents are certainly lost: a new one destroys nothing."""


def diagnose(directory: Path) -> IdentityError | None:
    """Return why NSS refuses the database in ``directory``; None if its files are sound.

    Raises:
        PermissionError: a file or the directory may not be read.
    """
    for name, table in _TABLES.items():
        path = directory / name
        try:
            path.open("rb").close()
            defect = _defect(path, table)
        except FileNotFoundError:
            defect = "is missing"
        except sqlite3.OperationalError as exc:
            # Locked, or not readable at the moment: the contents may well be intact.
            return IdentityError(
                f"{name} cannot be read now ({exc})",
                where=str(directory),
                remedy="end the program that uses it, and try again",
            )
        except sqlite3.DatabaseError as exc:
            defect = f"is damaged ({exc})"
        if defect is not None:
            return DamagedDatabase(
                f"{name} {defect}",
                where=str(directory),
                remedy="restore it from a backup, or move it away: the next start makes a new database",
            )
    return None


def _defect(path: Path, table: str) -> str | None:
    with closing(sqlite3.connect(f"file:{quote(bytes(path))}?mode=ro", uri=True, timeout=0)) as database:
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            return f"is damaged ({verdict})"
        found = database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    return None if found else "is empty"
