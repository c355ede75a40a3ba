"""Where metrics and health are asked for: a listening socket, opened before anything else is begun.

Having a process monitored, or not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.config.addresses import OFF, MetricsAddress
from stapsrv.errors import ConfigError
from stapsrv.observe.snapshot import Look
from stapsrv.supervisor.server.listener import address_of as internet_address_of
from stapsrv.supervisor.server.listener import listen_at
from stapsrv.supervisor.state.lock import GROUP
from stapsrv.system.unix_socket import address_of, open_socket_file

_BACKLOG = 128
"""Connections that the kernel completes while the loop is busy, or there is no room."""
_REMEDY = "give another address with --metrics or METRICS=, or off"


@attrs.frozen
class MetricsListener:
    """A place to ask.

    Attributes:
        listener: listening and non-blocking.
        name: its address, for people.
    """

    listener: socket.socket
    name: str


@contextlib.contextmanager
def open_door(
    address: MetricsAddress | None, *, directory: Path | None = None
) -> Iterator[MetricsListener | None]:
    """Listen where metrics are to be had, for as long as the block runs; None where they are not.

    Args:
        address: an Internet address, or a path, where a stale socket is replaced.
        directory: where a relative path begins; None if there can be none.

    Raises:
        ConfigError: somebody else listens there, or it cannot be listened on.
    """
    if address is None or address == OFF:
        yield None
        return
    where = f"metrics address {address}"
    with contextlib.ExitStack() as held:
        try:
            if address.path is None:
                listener = listen_at(address.host or "", address.port, only=True, backlog=_BACKLOG)
                held.callback(listener.close)
                door = MetricsListener(listener, str(internet_address_of(listener)))
            else:
                path = _absolute(address.path, directory, where)
                _check_free(path, where)
                listener = held.enter_context(open_socket_file(path, group=GROUP, backlog=_BACKLOG))
                door = MetricsListener(listener, str(MetricsAddress(path=path)))
        except OSError as exc:
            taken = exc.errno == errno.EADDRINUSE
            problem = "is in use by another program" if taken else f"cannot be used: {exc.strerror}"
            raise ConfigError(problem, where=where, remedy=_REMEDY) from exc
        yield door


def _absolute(path: Path, directory: Path | None, where: str) -> Path:
    if path.is_absolute():
        return path
    if directory is None:
        raise ConfigError(
            "a single server has no directory of its own", where=where, remedy="give an absolute path"
        )
    return directory / path


def _check_free(path: Path, where: str) -> None:
    """Refuse a path where somebody listens, or where something else than a socket is."""
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError("is no socket", where=where, remedy=_REMEDY)
    with socket.socket(socket.AF_UNIX) as probe, address_of(path) as address:
        probe.setblocking(False)  # noqa: FBT003 - positional in the standard library
        answer = probe.connect_ex(address)
    # EAGAIN: somebody listens, and has more to do than to accept.
    if answer in {0, errno.EAGAIN}:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


@contextlib.asynccontextmanager
async def monitored(door: MetricsListener | None, look: Look, *, log: Log) -> AsyncIterator[None]:
    """Have metrics and health told at ``door`` for as long as the block runs; nothing without one."""
    if door is None:
        yield
        return
    from stapsrv.observe.monitor import Monitor  # noqa: PLC0415 - slow to load, and most have no use for it

    log.info("metrics.listening", address=door.name)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Monitor(door.listener, look, log=log).run)
        yield
        tasks.cancel_scope.cancel()
