"""Whom servers may run as, and what a supervisor of such a user inherits."""

from __future__ import annotations

import os
import pwd

import pytest

from stapsrv.control.client import accounts
from stapsrv.control.client.accounts import (
    Account,
    caller_name,
    environment_for,
    group_id,
    refuse_root,
    runnable_account,
    user_name,
)
from stapsrv.errors import ConfigError, UsageError

BOB = Account("bob", 4711, 4712, (4712, 4713), "/home/bob", "/bin/sh")


@pytest.fixture
def users(monkeypatch):
    """Who there is: root, the caller alice, bob in group stap-server, and carol outside it."""
    entries = {"root": (0, 0), "alice": (1001, 1001), "bob": (1002, 1002), "carol": (1003, 1003)}
    caller = {"uid": 1001}

    def getpwnam(name: str) -> pwd.struct_passwd:
        uid, gid = entries[name]
        return pwd.struct_passwd((name, "x", uid, gid, "", f"/home/{name}", "/bin/sh"))

    def getpwuid(uid: int) -> pwd.struct_passwd:
        return getpwnam(next(name for name, ids in entries.items() if ids[0] == uid))

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.setattr(os, "geteuid", lambda: caller["uid"])
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 995] if name == "bob" else [gid])
    monkeypatch.setattr(accounts, "group_id", lambda: 995)
    return caller


@pytest.mark.parametrize(
    ("caller", "name", "reason"),
    [
        (1001, "alice", None),
        (1002, "bob", None),
        (0, "bob", None),
        (0, "ghost", "user 'ghost' does not exist; name another one, or add this one (adduser)"),
        (1001, "ghost", "user 'ghost' does not exist; name another one, or add this one (adduser)"),
        (
            1001,
            "bob",
            "user alice cannot run servers as user bob;"
            " leave the user out, or run stap-server as root or as bob",
        ),
        (
            0,
            "carol",
            "user carol is not in group stap-server; name another user, or add this one:"
            " usermod -a -G stap-server carol",
        ),
        (
            0,
            "root",
            "no compile server runs as root;"
            " name a plain user in group stap-server with -u, USER or STAP_USER",
        ),
        (
            1001,
            "root",
            "no compile server runs as root;"
            " name a plain user in group stap-server with -u, USER or STAP_USER",
        ),
    ],
)
def test_whom_servers_may_run_as(users, caller, name, reason):
    users["uid"] = caller
    if reason is None:
        assert runnable_account(name, {}).name == name
        return
    with pytest.raises(ConfigError) as caught:
        runnable_account(name, {}, where="a.conf:3")
    assert str(caught.value) == f"a.conf:3: {reason}"


def test_tests_may_run_as_root(users):
    users["uid"] = 0
    assert runnable_account("root", {"STAP_PR11197_OVERRIDE": "1"}).is_caller
    users["uid"] = 1001
    with pytest.raises(ConfigError):
        runnable_account("root", {"STAP_PR11197_OVERRIDE": "1"})


def test_an_account_has_all_groups(users):
    users["uid"] = 0
    bob = runnable_account("bob", {})
    assert (bob.uid, bob.gid, bob.groups, bob.home, bob.is_caller) == (
        1002,
        1002,
        (1002, 995),
        "/home/bob",
        False,
    )


def test_a_host_without_the_group(monkeypatch):
    def getgrnam(name: str) -> object:
        raise KeyError(name)

    monkeypatch.setattr(accounts.grp, "getgrnam", getgrnam)
    assert group_id() is None


def test_a_caller_without_a_name(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 987_654_321)
    assert caller_name() == "987654321"


def test_users_have_names_or_numbers():
    assert user_name(0) == pwd.getpwuid(0).pw_name
    assert user_name(4_000_000_123) == "4000000123"


def test_the_caller_s_environment_is_passed_on():
    account = BOB._replace(uid=os.geteuid())
    environ = {"SYSTEMTAP_DIR": "/st", "HOME": "/elsewhere", "X": "y"}
    assert environment_for(account, environ) == environ


def test_another_user_s_environment_is_made_anew():
    environ = {
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "PATH": "/opt/bin:/usr/bin",
        "LANG": "de_DE.UTF-8",
        "LC_MESSAGES": "C",
        "TMPDIR": "/quota",
        "TZ": "UTC",
        "STAPSRV_MDNS": "no",
        "SYSTEMTAP_DIR": "/root/.systemtap",
        "SYSTEMTAP_STAP": "/root/stap",
        "PYTHONPATH": "/root/lib",
        "LD_PRELOAD": "/root/lib.so",
        "XDG_RUNTIME_DIR": "/run/user/0",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "STAP_PR11197_OVERRIDE": "1",
    }
    assert environment_for(BOB, environ) == {
        "HOME": "/home/bob",
        "USER": "bob",
        "LOGNAME": "bob",
        "SHELL": "/bin/sh",
        "PATH": "/opt/bin:/usr/bin",
        "LANG": "de_DE.UTF-8",
        "LC_MESSAGES": "C",
        "TMPDIR": "/quota",
        "TZ": "UTC",
        "STAPSRV_MDNS": "no",
    }
    assert environment_for(BOB, {})["PATH"].startswith("/usr/local/bin:/usr/bin:")


def test_root_is_refused(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(
        UsageError, match=r"^a compile server does not run as root; .* -u stap-server -- stap-x …"
    ):
        refuse_root("stap-x", {})
    refuse_root("stap-x", {"STAP_PR11197_OVERRIDE": "1"})
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    refuse_root("stap-x", {})
