"""Who may do what, and whether the kernel is understood."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct

import pytest
from kit.control import OWN_PEER, OWNER, POLICY, READER_GROUP, READING_PEER, STRANGE_PEER

from stapsrv.control.server import auth
from stapsrv.control.server.auth import Access, Peer, Policy, read_peer


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        (OWN_PEER, Access.ALL),
        (Peer(1, 0, frozenset()), Access.ALL),
        (Peer(1, OWNER, frozenset({READER_GROUP})), Access.ALL),
        (READING_PEER, Access.READ),
        (STRANGE_PEER, Access.NONE),
        (Peer(1, 1003, frozenset({0})), Access.NONE),
    ],
)
def test_access(peer, expected):
    assert POLICY.access_of(peer) is expected


def test_without_a_group_nobody_else_may_read():
    policy = Policy(owner=OWNER, readers=None)
    assert policy.access_of(READING_PEER) is Access.NONE
    assert policy.access_of(OWN_PEER) is Access.ALL


def test_policy_of_this_process(monkeypatch):
    monkeypatch.setattr(
        grp, "getgrnam", lambda name: {"stap-server": grp.struct_group(("", "", 7, []))}[name]
    )
    assert Policy.of_process() == Policy(os.geteuid(), 7)
    monkeypatch.setattr(grp, "getgrnam", {}.__getitem__)
    assert Policy.of_process() == Policy(os.geteuid(), None)


def test_kernel_names_this_process():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = read_peer(ours)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert peer.groups == {os.getegid(), *os.getgroups()}


def test_effective_group_counts_like_the_others():
    class Connection:
        def getsockopt(self, _level, option, _size):
            return struct.pack("iII", 7, 8, 9) if option == socket.SO_PEERCRED else struct.pack("II", 10, 11)

    assert read_peer(Connection()) == Peer(7, 8, frozenset({9, 10, 11}))


def test_group_database_stands_in_for_more_groups_than_fit(monkeypatch):
    monkeypatch.setattr(auth, "_MOST_OPTION_BYTES", 1)
    if not os.getgroups():
        pytest.skip("this process has no supplementary groups")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        groups = read_peer(ours).groups
    assert groups == {os.getegid(), *os.getgrouplist(pwd.getpwuid(os.geteuid()).pw_name, os.getegid())}
