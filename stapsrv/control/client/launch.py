"""Starts a supervisor for a user: one, even if several commands want it at the same moment.

A command holds a lock in ``STAT_PATH/USER`` while it starts one, and looks for a running one when it gets the
lock. Root creates what the supervisor's user cannot: STAT_PATH, its directory in there, the default log.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from stapsrv.control.client.accounts import Account, environment_for, group_id
from stapsrv.control.protocol.jsonrpc import Code
from stapsrv.errors import ConfigError, ControlError, StapsrvError
from stapsrv.identity.memfd import memory_file
from stapsrv.system.environ import started_environ
from stapsrv.system.lock_files import is_current, remove_locked_directory
from stapsrv.system.sd_notify import DaemonEnded, open_notifications
from stapsrv.system.secure_dirs import Ownership, make_directory, make_file, open_lock
from stapsrv.system.trusted_files import open_owned_directory

DAEMON = "stap-serverd"
LOCK_NAME = "start.lock"
# Of a running supervisor (stapsrv.supervisor.state.lock).
SUPERVISOR_LOCK = "lock"

# From the start to readiness; an on-demand supervisor makes no certificate first.
_READY_S = 60.0
# For other commands to start theirs: more than one may come first.
_LOCK_S = 90.0
# Between tries for a lock or a supervisor that is starting; neither sends an event.
_POLL_S = 0.05

_Found = TypeVar("_Found")


class Launch(NamedTuple):
    """The start of a supervisor: user, global settings, and the password of certificate databases or None."""

    account: Account
    stat_path: Path
    log_file: Path
    config_file: Path | None
    # For servers that name no user; known to the calling command only.
    default_user: str
    password: str | None = None

    @property
    def supervisor_dir(self) -> Path:
        """The supervisor's own directory."""
        return self.stat_path / self.account.name


def reach_or_launch(launch: Launch, reach: Callable[[], _Found | None], environ: Mapping[str, str]) -> _Found:
    """Return what ``reach`` finds, after starting a supervisor if it finds none.

    ``reach`` returns None if no supervisor runs.

    Raises:
        StapsrvError: none runs, and none could be started, or it does not answer; the text says why.
    """
    deadline = time.monotonic() + _READY_S
    silent = StapsrvError(
        f"the supervisor of user {launch.account.name} runs and does not answer",
        where=str(launch.supervisor_dir),
        remedy="see its log, or end it",
    )
    with _start_lock(launch):
        while (found := reach()) is None:
            if time.monotonic() > deadline:
                raise silent
            try:
                start_supervisor(launch, environ)
            except DaemonEnded as exc:
                # Somebody else's, systemd's perhaps, is on its way up or down: it will answer, or be gone.
                if "runs already" not in exc.problem:
                    raise
                time.sleep(_POLL_S)
            else:
                deadline = time.monotonic()
        return found


def prepare(launch: Launch) -> None:
    """Create the directories and the log that a supervisor cannot create itself, where they are missing.

    All members of group stap-server may write STAT_PATH; its sticky bit protects each one's files.

    Raises:
        ConfigError: one of them cannot be made, or the supervisor's directory is another user's.
    """
    if launch.account.is_caller:
        make_directory(launch.stat_path, Ownership(-1, -1, 0o755))
        make_directory(launch.supervisor_dir, Ownership(-1, -1, 0o750))
    else:
        group = group_id()
        shared = -1 if group is None else group
        make_directory(launch.stat_path, Ownership(-1, shared, 0o1775))
        make_directory(launch.supervisor_dir, Ownership(launch.account.uid, shared, 0o750))
        make_directory(launch.log_file.parent, Ownership(-1, shared, 0o775))
        make_file(launch.log_file, Ownership(-1, shared, 0o664))
    try:
        os.close(open_owned_directory(launch.supervisor_dir, launch.account.uid))
    except FileNotFoundError:
        # An ending supervisor has removed it, and makes room for the next.
        pass
    except OSError as exc:
        raise ConfigError(
            f"belongs to somebody else than {launch.account.name}",
            where=f"status directory {launch.supervisor_dir}",
            remedy="remove it",
        ) from exc


def start_supervisor(launch: Launch, environ: Mapping[str, str]) -> None:
    """Start a supervisor that ends with its last server; return when it accepts commands.

    It inherits no terminal, no open file and no working directory, and its environment comes from
    :func:`~stapsrv.control.client.accounts.environment_for`.

    Raises:
        DaemonEnded: it did not start; the text is its own reason.
        StapsrvError: it was not ready in time, and was killed.
    """
    account = launch.account
    options = [] if launch.config_file is None else ["-c", str(launch.config_file)]
    with open_notifications(DAEMON) as notifications, contextlib.ExitStack() as opened:
        passed = []
        if launch.password is not None:
            # Not an argument or a variable: other users can read those.
            file = opened.enter_context(memory_file(launch.password.encode() + b"\n"))
            os.lseek(file.descriptor, 0, os.SEEK_SET)
            options.append(f"--password-descriptor={file.descriptor}")
            passed.append(file.descriptor)
        daemon = subprocess.Popen(
            [sys.executable, "-P", "-m", "stapsrv.daemon", "--on-demand", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=passed,
            cwd="/",
            umask=0o022,
            start_new_session=True,
            env={
                **environment_for(account, started_environ(environ)),
                "NOTIFY_SOCKET": notifications.address,
                "STAPSRV_DEFAULT_USER": launch.default_user,
            },
            user=None if account.is_caller else account.uid,
            group=None if account.is_caller else account.gid,
            extra_groups=None if account.is_caller else account.groups,
        )
        notifications.wait_ready(daemon, timeout_s=_READY_S)


@contextlib.contextmanager
def _start_lock(launch: Launch) -> Iterator[None]:
    """Hold the lock for starting this user's supervisor; raises ControlError (BUSY) after ``_LOCK_S``.

    Where no supervisor could be started, the lock is removed, and the supervisor's directory with it.
    """
    fd = _wait_locked(launch, time.monotonic() + _LOCK_S)
    try:
        yield
    except BaseException:
        remove_locked_directory(
            launch.supervisor_dir, held=LOCK_NAME, other=SUPERVISOR_LOCK, uid=launch.account.uid
        )
        raise
    finally:
        os.close(fd)


def _wait_locked(launch: Launch, deadline: float) -> int:
    # Made anew in each round: others may remove the directory or the lock again and again.
    while time.monotonic() <= deadline:
        prepare(launch)
        fd = open_lock(launch.supervisor_dir, LOCK_NAME, launch.account.uid)
        if fd is None:
            continue
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_POLL_S)
                continue
            # Its holder before may have removed it.
            if is_current(fd, launch.supervisor_dir / LOCK_NAME):
                opened.pop_all()
                return fd
    raise ControlError(
        f"another command is starting {DAEMON} for user {launch.account.name}"
        f" and has not done so within {_LOCK_S:g} seconds",
        code=Code.BUSY,
        remedy="try again",
    )
