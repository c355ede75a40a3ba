"""Ports that servers got at random, remembered for the next time they start.

Firewalls and clients know a server by its port, so one that may choose asks for the port that it had,
after a restart of the server, of the supervisor or of the host.
"""

from __future__ import annotations

import contextlib
import hashlib
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeGuard

import anyio
import attrs
from anyio.abc import TaskStatus

from stapsrv.config.files import encode_server_settings
from stapsrv.config.settings import ServerSettings
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.json_file import JsonFile, with_fact

_HIGHEST = 65_535
# For the file to be read or written; where it hangs, servers get other ports.
_TIMEOUT_S = 5.0


class PortMemory:
    """The ports of one user's servers, in one small file that is made when there is something to keep."""

    def __init__(self, file: Path, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._memory = JsonFile(file, _is_port)
        self._written: dict[str, int] = {}
        self._ports = self._written
        self._changed = anyio.Event()
        self._files = BlockingCalls(timeout_s=timeout_s)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> NoReturn:
        """Read the file, then write changes until cancelled; the last ones first, within ``timeout_s``."""
        with contextlib.suppress(OSError):
            self._written = self._ports = await self._files.run(self._memory.read)
        task_status.started()
        try:
            while True:
                await self._changed.wait()
                await self._write()
        finally:
            if self._written is not self._ports:
                with anyio.CancelScope(shield=True):
                    await self._write()

    def recall(self, settings: ServerSettings) -> int | None:
        """Return the port that a server with such settings had, or None."""
        return self._ports.get(_key(settings))

    def remember(self, settings: ServerSettings, port: int) -> None:
        """Keep the port of a server with such settings; never waits."""
        key = _key(settings)
        if self._ports.get(key) != port:
            self._ports = with_fact(self._ports, key, port)
            self._changed.set()

    async def _write(self) -> None:
        self._changed = anyio.Event()
        ports = self._ports
        with contextlib.suppress(OSError):
            await self._files.run(partial(self._memory.write, ports))
        self._written = ports


def _key(settings: ServerSettings) -> str:
    # A server keeps its port when its limits change.
    asked = attrs.evolve(settings, tuning=settings.tuning.identifying())
    return hashlib.sha256(encode_server_settings(asked).encode()).hexdigest()[:16]


def _is_port(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 < value <= _HIGHEST
