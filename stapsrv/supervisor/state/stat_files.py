"""STAT_PATH: one ``.stat`` file for each server that should be up, under its id.

The files have the format of server configuration files, so that scripts can read them (PROTOCOL, the
commands of the original). What the format has no variable for stands in comments of our own::

    # stapsrv origin: /etc/stap-server/conf.d/native.conf
    # stapsrv port: assigned
    # stapsrv drained

A file that outlives its supervisor says which server to resume. Servers of several users share the
directory; each supervisor minds the files of its own user that carry our mark.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from pathlib import Path

import attrs

from stapsrv.config.files import decode_config, encode_server_settings, server_settings_from
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError
from stapsrv.system.atomic_file import replace_file
from stapsrv.system.trusted_files import read_file

# One above the largest process id that Linux can give out (2**22): a stand-in is never a process's.
FIRST_ID = 4_194_305

_MARK = "# stapsrv server"
_ORIGIN = "# stapsrv origin: "
_ASSIGNED = "# stapsrv port: assigned"
_DRAINED = "# stapsrv drained"
_NAME = re.compile(r"([0-9]{1,18})\.stat")
_MODE = 0o644
_MOST_BYTES = 64 * 1024
# For an id that is free: first the next ones, then any of so many further ones.
_TRIES = 200
_WIDE = 1 << 30


@attrs.frozen(kw_only=True)
class Record:
    """A server's state on disk, which outlives its supervisor; ``port`` is None if it never listened."""

    id: int
    settings: ServerSettings
    origin: str | None
    port: int | None
    drained: bool = False


class StatFiles:
    """The files of one supervisor in STAT_PATH."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._last_id = FIRST_ID - 1

    def allocate_id(self) -> int:
        """Return an id that no server in STAT_PATH has, and that was not given out here before.

        Raises:
            ConfigError: STAT_PATH cannot be written.
        """
        for attempt in range(_TRIES):
            # Not one more than the highest there: others may name files as they like.
            self._last_id += 1 if attempt < _TRIES // 2 else 1 + secrets.randbelow(_WIDE)
            try:
                # The maker of the file has the id: supervisors of other users share the directory.
                os.close(os.open(self._path(self._last_id), os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE))
            except FileExistsError:
                continue
            except OSError as exc:
                raise self._unwritable(exc) from exc
            return self._last_id
        raise self._unwritable(FileExistsError(errno.EEXIST, "all ids are taken"))

    def write(self, record: Record) -> None:
        """Write a server's record as a whole; raise ConfigError if STAT_PATH cannot be written."""
        settings = record.settings
        marks = [_MARK]
        if record.origin is not None:
            marks.append(_ORIGIN + record.origin)
        if settings.port == 0 and record.port is not None:
            marks.append(_ASSIGNED)
        if record.drained:
            marks.append(_DRAINED)
        written = attrs.evolve(
            settings, nickname=settings.nickname or str(record.id), port=record.port or settings.port
        )
        text = "".join(f"{mark}\n" for mark in marks) + encode_server_settings(written)
        try:
            replace_file(self._path(record.id), text, mode=_MODE)
        except OSError as exc:
            raise self._unwritable(exc) from exc

    def forget(self, server_id: int) -> None:
        """Remove a server's record."""
        with contextlib.suppress(OSError):
            self._path(server_id).unlink()

    def read(self) -> tuple[list[Record], list[ConfigError]]:
        """Return this user's records by id, and why others could not be read; those become ``ID.damaged``."""
        records, faults = [], []
        for server_id in sorted(self._ids()):
            path = self._path(server_id)
            try:
                owner, data = read_file(path, max_bytes=_MOST_BYTES)
                if owner != os.geteuid():
                    continue
                self._last_id = max(self._last_id, server_id)
                text = decode_config(data, where=str(path))
                if not text.startswith(_MARK):
                    # An id that was allocated and not used: its supervisor was killed in between.
                    if not text and server_id >= FIRST_ID:
                        self.forget(server_id)
                    continue
                records.append(_parse(server_id, text, where=str(path)))
            except ConfigError as exc:
                with contextlib.suppress(OSError):
                    path.rename(path.with_suffix(".damaged"))
                faults.append(exc)
            except OSError:
                continue
        return records, faults

    def _ids(self) -> list[int]:
        try:
            names = [path.name for path in self._directory.iterdir()]
        except OSError:
            return []
        return [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]

    def _path(self, server_id: int) -> Path:
        return self._directory / f"{server_id}.stat"

    def _unwritable(self, exc: OSError) -> ConfigError:
        return ConfigError(
            f"cannot be written: {exc.strerror}",
            where=f"status directory {self._directory}",
            remedy="let the server's user write there, or set STAT_PATH to a directory where it may",
        )


def _parse(server_id: int, text: str, *, where: str) -> Record:
    marks = [line for line in text.splitlines() if line.startswith("# stapsrv")]
    origin = next((mark.removeprefix(_ORIGIN) for mark in marks if mark.startswith(_ORIGIN)), None)
    settings = server_settings_from(text, where=where)
    port = settings.port or None
    if settings.nickname is None:
        raise ConfigError("is cut short", where=where)
    return Record(
        id=server_id,
        settings=attrs.evolve(
            settings,
            nickname=None if settings.nickname == str(server_id) else settings.nickname,
            port=0 if _ASSIGNED in marks else settings.port,
        ),
        origin=origin,
        port=port,
        drained=_DRAINED in marks,
    )
