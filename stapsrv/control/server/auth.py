"""Who sits at the other end of a control connection, and what such a peer may do.

The kernel says who connected, and cannot be lied to: process, user, groups, as they were at that moment.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from enum import IntEnum
from functools import cache
from typing import NamedTuple

from stapsrv.supervisor.state.lock import GROUP

_UCRED = struct.Struct("iII")
_SO_PEERGROUPS = 59
"""Linux 4.13, every architecture that Debian has; Python 3.11 does not name it."""
_MOST_OPTION_BYTES = 1024
"""Python reads no more of a socket option: 256 groups."""


class Access(IntEnum):
    """What a peer may do; each includes those before it."""

    NONE = 0
    READ = 1
    """``hello`` and ``status``."""
    ALL = 2


class Peer(NamedTuple):
    """Credentials of a connected process.

    Attributes:
        pid: the process that connected.
        uid: its effective user.
        groups: its effective group and the supplementary ones.
    """

    pid: int
    uid: int
    groups: frozenset[int]


class Policy(NamedTuple):
    """Who may do what (DESIGN, who may command).

    Attributes:
        owner: the user id whose supervisor it is; it and root may do all.
        readers: the group id whose members may read, or None.
    """

    owner: int
    readers: int | None

    @classmethod
    def of_process(cls) -> Policy:
        """Return the policy of this process's user, with group stap-server for readers where there is one."""
        try:
            readers = grp.getgrnam(GROUP).gr_gid
        except KeyError:
            readers = None
        return cls(os.geteuid(), readers)

    def access_of(self, peer: Peer) -> Access:
        """Say what ``peer`` may do."""
        if peer.uid in {0, self.owner}:
            return Access.ALL
        return Access.READ if self.readers in peer.groups else Access.NONE


def read_peer(connection: socket.socket) -> Peer:
    """Ask the kernel who connected.

    Raises:
        OSError: it does not know.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_OPTION_BYTES)
        groups = struct.unpack(f"{len(data) // 4}I", data)
    except OSError:
        # More groups than fit: then what the group database says.
        groups = tuple(os.getgrouplist(user_name(uid), gid))
    return Peer(pid, uid, frozenset({gid, *groups}))


@cache
def user_name(uid: int) -> str:
    """Return a user's name, or the number where there is none.

    Kept for ever, since a directory service may take its time; only the few who may connect are asked for.
    """
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
