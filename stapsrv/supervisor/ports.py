"""Ports that servers got at random, remembered for the next time they start.

Firewalls and clients know a server by its port, so one that may choose asks for the port that it had,
after a restart of the server, of the supervisor or of the host.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeGuard

import attrs

from stapsrv.config.files import encode_server_settings
from stapsrv.config.settings import ServerSettings
from stapsrv.supervisor.remembering import Memory

_HIGHEST = 65_535


class PortMemory:
    """The ports of one user's servers, in one small file.

    Args:
        file: where they are kept; made when there is something to keep.
    """

    def __init__(self, file: Path) -> None:
        self._memory = Memory(file, _is_port)
        self._ports = self._memory.read()

    def recall(self, settings: ServerSettings) -> int | None:
        """Return the port that a server with such settings had, or None."""
        return self._ports.get(_key(settings))

    def remember(self, settings: ServerSettings, port: int) -> None:
        """Keep the port of a server with such settings; a disk that is full costs the memory alone."""
        key = _key(settings)
        if self._ports.get(key) != port:
            self._ports = self._memory.keep(self._ports, key, port)


def _key(settings: ServerSettings) -> str:
    """Name a server by all that it is asked to be, but for what can be tuned while it runs."""
    asked = attrs.evolve(settings, tuning=settings.tuning.identifying())
    return hashlib.sha256(encode_server_settings(asked).encode()).hexdigest()[:16]


def _is_port(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 < value <= _HIGHEST
