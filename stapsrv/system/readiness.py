"""Waits for descriptors in a way that others' tasks, and cancellation, always come in between.

uvloop ends the wait for a descriptor that is ready just before a cancellation would be delivered to it. So a
loop of such waits cannot be cancelled for as long as the descriptor is ready each time, as in a flood. All of
this program waits here.
"""

from __future__ import annotations

import socket
from typing import Protocol, TypeAlias

import anyio
import anyio.lowlevel


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


Descriptor: TypeAlias = int | socket.socket | _HasFileno


async def wait_readable(descriptor: Descriptor) -> None:
    """Wait until there is something to read; a checkpoint also where there is already."""
    await anyio.lowlevel.checkpoint()
    await anyio.wait_readable(descriptor)


async def wait_writable(descriptor: Descriptor) -> None:
    """Wait until something can be written; a checkpoint also where it can already."""
    await anyio.lowlevel.checkpoint()
    await anyio.wait_writable(descriptor)
