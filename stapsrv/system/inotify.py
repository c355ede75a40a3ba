"""inotify(7) in a few calls of the C library, read without waiting."""

# The kernel queues an event before the call that made the change returns. So a reader that finds the queue
# empty knows that nothing had changed at that moment. The usual packages give that up: they read in a thread
# of their own and pass events on later.

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import struct
import termios
from typing import NamedTuple

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO = 0x40, 0x80
CREATE, DELETE, DELETE_SELF, MOVE_SELF = 0x100, 0x200, 0x400, 0x800
UNMOUNT, OVERFLOW, IGNORED = 0x2000, 0x4000, 0x8000
ONLYDIR = 0x0100_0000

_MOVED_OR_MADE = MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF
CHANGE = _MOVED_OR_MADE | ATTRIB | CLOSE_WRITE
"""Every change, once it is complete."""
WRITE = _MOVED_OR_MADE | MODIFY
"""Every change of content; not CLOSE_WRITE, which may follow opening a file for writing and reading it."""

_HEADER = struct.Struct("iIII")
_READ_BYTES = 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """A change: ``watch`` is the number of the directory (-1 for OVERFLOW), ``mask`` what happened to it."""

    watch: int
    mask: int
    # Of the entry; empty if it happened to the directory itself.
    name: bytes


class Inotify:
    """One queue of events; to be closed.

    The kernel queues an event before the call that made the change returns: who reads the queue, which never
    waits, and finds nothing, knows that nothing had changed when they looked.

    Raises:
        OSError: this user has too many already (``fs.inotify.max_user_instances``).
    """

    def __init__(self) -> None:
        self.descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def watch(self, directory: bytes, mask: int) -> int:
        """Queue changes in a directory from now on; the same directory gives the same number again.

        Raises:
            OSError: it cannot be watched, or too much is (ENOSPC, ``fs.inotify.max_user_watches``).
        """
        return _checked(_libc.inotify_add_watch(self.descriptor, directory, mask | ONLYDIR))

    def unwatch(self, watch: int) -> None:
        """Stop watching a directory; the kernel may have done so already because it is gone."""
        _libc.inotify_rm_watch(self.descriptor, watch)

    def read(self) -> list[Event]:
        """Return the events so far, without waiting."""
        events: list[Event] = []
        # No more than there are now: others may make changes as fast as they are read.
        left = self._queued_bytes()
        while left > 0:
            data = os.read(self.descriptor, _READ_BYTES)
            left -= len(data)
            offset = 0
            while offset < len(data):
                watch, mask, _cookie, length = _HEADER.unpack_from(data, offset)
                offset += _HEADER.size
                name = data[offset : offset + length].rstrip(b"\0")
                offset += length
                events.append(Event(watch, mask, name))
        return events

    def _queued_bytes(self) -> int:
        queued = array.array("i", [0])
        fcntl.ioctl(self.descriptor, termios.FIONREAD, queued)
        return queued[0]

    def close(self) -> None:
        """Close the queue."""
        os.close(self.descriptor)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
