"""Users that servers may run as, and the environment of a supervisor started for such a user."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from typing import NamedTuple

from stapsrv.errors import ConfigError, UsageError

# A user other than the caller must be a member (manual page, -u).
GROUP = "stap-server"

_INHERITED = ("PATH", "LANG", "LANGUAGE", "TMPDIR", "TZ")
_INHERITED_KINDS = ("LC_", "STAPSRV_")
_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


class Account(NamedTuple):
    """A user of this host; ``groups`` has the ids of all groups, the primary one included."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    @property
    def is_caller(self) -> bool:
        """Whether it is this process's user."""
        return self.uid == os.geteuid()


def caller_name() -> str:
    """Return the name of this process's user, or the number if there is none."""
    return user_name(os.geteuid())


def user_name(uid: int) -> str:
    """Return a user's name, or the number if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def refuse_root(program: str, environ: Mapping[str, str]) -> None:
    """Raise UsageError as root (manual page, SAFETY AND SECURITY), unless a test has lifted the rule."""
    if os.geteuid() == 0 and environ.get("STAP_PR11197_OVERRIDE") != "1":
        raise UsageError(
            "a compile server does not run as root",
            remedy=f"run it as a plain user: runuser -u {GROUP} -- {program} …",
        )


def runnable_account(name: str, environ: Mapping[str, str], *, where: str | None = None) -> Account:
    """Return the account for servers of user ``name``, if this process may start servers there.

    ``where`` is the file and line that names the user. ``STAP_PR11197_OVERRIDE=1``, for tests, lets root run
    servers as root.

    Raises:
        ConfigError: there is no such user, or it is root; or it is another user than the caller, and the
            caller is not root or that user is not in group stap-server.

    Source: manual page, ``-u`` and SAFETY AND SECURITY.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError as exc:
        raise ConfigError(
            f"user {name!r} does not exist", where=where, remedy="name another one, or add this one (adduser)"
        ) from exc
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    account = Account(name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, entry.pw_shell)
    if account.uid == 0:
        if account.is_caller and environ.get("STAP_PR11197_OVERRIDE") == "1":
            return account
        raise ConfigError(
            "no compile server runs as root",
            where=where,
            remedy=f"name a plain user in group {GROUP} with -u, USER or STAP_USER",
        )
    if account.is_caller:
        return account
    if os.geteuid() != 0:
        raise ConfigError(
            f"user {caller_name()} cannot run servers as user {name}",
            where=where,
            remedy=f"leave the user out, or run stap-server as root or as {name}",
        )
    if group_id() not in account.groups:
        raise ConfigError(
            f"user {name} is not in group {GROUP}",
            where=where,
            remedy=f"name another user, or add this one: usermod -a -G {GROUP} {name}",
        )
    return account


def group_id() -> int | None:
    """Return the id of group stap-server, or None if there is no such group."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def environment_for(account: Account, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a supervisor that this process starts in ``account``.

    The caller's own is inherited as it is. For another user it holds that user's own variables and, of
    root's, only ``PATH``, the locale, the time zone, ``TMPDIR`` (manual page) and ``STAPSRV_*``: root's
    ``SYSTEMTAP_*``, ``PYTHON*``, ``LD_*`` and ``XDG_*`` must not decide how servers compile.

    Source: manual page, SAFETY AND SECURITY, 3.
    """
    if account.is_caller:
        return dict(environ)
    names = [name for name in environ if name in _INHERITED or name.startswith(_INHERITED_KINDS)]
    return {
        "PATH": _DEFAULT_PATH,
        **{name: environ[name] for name in names},
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell,
    }
