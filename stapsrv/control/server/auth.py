"""Authentication of control connections by the kernel's peer credentials, and what each peer may do."""

from __future__ import annotations

import os
import socket
import struct
from enum import IntEnum
from functools import cache
from typing import NamedTuple

from stapsrv.control.client.accounts import group_id, user_name

_UCRED = struct.Struct("iII")
# Linux 4.13; Python 3.11 has no name for it.
_SO_PEERGROUPS = 59
# Python reads no more of a socket option: 256 groups.
_MOST_OPTION_BYTES = 1024

# Cached for ever: a directory service that answers slowly holds up the loop once for each user.
cached_user_name = cache(user_name)


class Access(IntEnum):
    """A peer's level of access; each includes those before it."""

    NONE = 0
    # hello, status and watch
    READ = 1
    ALL = 2


class Peer(NamedTuple):
    """Credentials of a connected process: effective user, effective and supplementary groups."""

    pid: int
    uid: int
    groups: frozenset[int]


class Policy(NamedTuple):
    """The access policy: root and user id ``owner`` may do all, members of group id ``readers`` read."""

    owner: int
    readers: int | None

    @classmethod
    def of_process(cls) -> Policy:
        """Return this process's policy: its user owns, group stap-server reads where it exists."""
        return cls(os.geteuid(), group_id())

    def access_of(self, peer: Peer) -> Access:
        """Return the access of a peer."""
        if peer.uid in {0, self.owner}:
            return Access.ALL
        return Access.READ if self.readers in peer.groups else Access.NONE


def read_peer(connection: socket.socket) -> Peer:
    """Return the peer's credentials when it connected, from the kernel (unix(7), SO_PEERCRED).

    Raises:
        OSError: the kernel has none.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_OPTION_BYTES)
        groups = struct.unpack(f"{len(data) // 4}I", data)
    except OSError:
        # More groups than fit: then what the group database says.
        groups = tuple(os.getgrouplist(user_name(uid), gid))
    return Peer(pid, uid, frozenset({gid, *groups}))
