"""Ports that servers got at random, remembered for the next time they start.

Firewalls and clients know a server by its port, so one that may choose asks for the port that it had,
after a restart of the server, of the supervisor or of the host. What is remembered is a convenience: a file
that is lost or damaged costs nothing but the ports.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

import attrs

from stapsrv.config.files import encode_server_settings
from stapsrv.config.settings import ServerSettings

_MOST = 500
"""Servers that are remembered; the one that was longest unused is forgotten first."""
_HIGHEST = 65_535


class PortMemory:
    """The ports of one user's servers, in one small file.

    Args:
        file: where they are kept; made when there is something to keep.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ports = _read(file)

    def recall(self, settings: ServerSettings) -> int | None:
        """Return the port that a server with such settings had, or None."""
        return self._ports.get(_key(settings))

    def remember(self, settings: ServerSettings, port: int) -> None:
        """Keep the port of a server with such settings; a disk that is full costs the memory alone."""
        key = _key(settings)
        if self._ports.get(key) == port:
            return
        self._ports.pop(key, None)
        self._ports[key] = port
        while len(self._ports) > _MOST:
            del self._ports[next(iter(self._ports))]
        with contextlib.suppress(OSError):
            self._write()

    def _write(self) -> None:
        self._file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{self._file.name}.", dir=self._file.parent)
        try:
            with os.fdopen(fd, "w", encoding="ascii") as file:
                json.dump(self._ports, file)
            Path(name).replace(self._file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _key(settings: ServerSettings) -> str:
    """Name a server by all that it is asked to be, but for what can be tuned while it runs."""
    asked = attrs.evolve(settings, tuning=settings.tuning.identifying())
    return hashlib.sha256(encode_server_settings(asked).encode()).hexdigest()[:16]


def _read(file: Path) -> dict[str, int]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: port for key, port in found.items() if isinstance(port, int) and 0 < port <= _HIGHEST}
