"""Starting a supervisor for a user: one, however many commands want it at the same moment.

Whoever starts one holds a lock in ``STAT_PATH/USER`` meanwhile; those who waited for it look again whether
there is a supervisor before they start another. What the supervisor does not make itself, root has made for
it before: STAT_PATH, its directory in there, the default log.
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
from stapsrv.errors import ControlError, StapsrvError
from stapsrv.system.environ import started_environ
from stapsrv.system.sd_notify import DaemonEnded, open_notifications
from stapsrv.system.secure_dirs import Ownership, make_directory, make_file, open_lock

DAEMON = "stap-serverd"
LOCK_NAME = "start.lock"

_BUSY = -32003
_READY_S = 60.0
"""From the start to readiness: an on-demand supervisor makes no certificate on the way."""
_LOCK_S = 90.0
"""For others to start theirs: more than one of them may take."""
_POLL_S = 0.05
"""Between looks at what nobody tells us of: a lock, a supervisor that another program is starting."""

_Found = TypeVar("_Found")


class Launch(NamedTuple):
    """What a supervisor is started with.

    Attributes:
        account: whom it runs as.
        stat_path: the global setting.
        log_file: the global setting.
        config_file: the last ``-c``, or None.
        default_user: whom servers without a user of their own run as, which only who starts it can know.
        password: of certificate databases that have one, or None.
    """

    account: Account
    stat_path: Path
    log_file: Path
    config_file: str | None
    default_user: str
    password: str | None = None

    @property
    def supervisor_dir(self) -> Path:
        """The supervisor's own directory."""
        return self.stat_path / self.account.name


def reach_or_launch(launch: Launch, reach: Callable[[], _Found | None], environ: Mapping[str, str]) -> _Found:
    """Return what ``reach`` finds, after starting a supervisor if it finds none.

    Args:
        launch: what to start.
        reach: looks for a supervisor that answers; None if there is none.
        environ: the caller's environment.

    Raises:
        StapsrvError: there is none, and none could be started; the text says why.
    """
    prepare(launch)
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
    """Make the directories and the log that a supervisor cannot make itself, where they are missing.

    STAT_PATH is for all members of group stap-server to write, but none may remove what is another's.

    Raises:
        ConfigError: one of them cannot be made.
    """
    own = Ownership(-1, -1, 0o750)
    if launch.account.is_caller:
        make_directory(launch.stat_path, Ownership(-1, -1, 0o755))
        make_directory(launch.supervisor_dir, own)
        return
    group = group_id()
    shared = -1 if group is None else group
    make_directory(launch.stat_path, Ownership(-1, shared, 0o1775))
    make_directory(launch.supervisor_dir, Ownership(launch.account.uid, shared, 0o750))
    make_directory(launch.log_file.parent, Ownership(-1, shared, 0o775))
    make_file(launch.log_file, Ownership(-1, shared, 0o664))


def start_supervisor(launch: Launch, environ: Mapping[str, str]) -> None:
    """Start a supervisor that ends with its last server; return when it takes commands.

    It has nothing of the caller's: no terminal, no open file, no working directory, and if it is another
    user's, of the environment only what :func:`~stapsrv.control.client.accounts.environment_for` says.

    Raises:
        StapsrvError: it did not come up; the text is its own reason.
    """
    account = launch.account
    config = [] if launch.config_file is None else ["-c", launch.config_file]
    with open_notifications(DAEMON) as notifications, _handed_over(launch.password) as password:
        daemon = subprocess.Popen(
            [sys.executable, "-P", "-m", "stapsrv.daemon", "--on-demand", *config, *password.options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=password.descriptors,
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


class _Handed(NamedTuple):
    """How a supervisor is told a password: by a descriptor, never by words that others can read."""

    options: tuple[str, ...] = ()
    descriptors: tuple[int, ...] = ()


@contextlib.contextmanager
def _handed_over(password: str | None) -> Iterator[_Handed]:
    """Have a password in memory that a child can inherit."""
    if password is None:
        yield _Handed()
        return
    descriptor = os.memfd_create("password")
    try:
        os.write(descriptor, password.encode() + b"\n")
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield _Handed((f"--password-descriptor={descriptor}",), (descriptor,))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _start_lock(launch: Launch) -> Iterator[None]:
    """Be the only one who starts a supervisor for this user.

    Raises:
        ControlError: somebody else is at it for too long (BUSY).
    """
    deadline = time.monotonic() + _LOCK_S
    fd = open_lock(launch.supervisor_dir, LOCK_NAME, launch.account.uid)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if time.monotonic() > deadline:
                    raise ControlError(
                        f"another command is starting {DAEMON} for user {launch.account.name}"
                        f" and has not done so within {_LOCK_S:g} seconds",
                        code=_BUSY,
                        remedy="try again",
                    ) from exc
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)
