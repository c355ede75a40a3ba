"""Connects to the supervisors that this user commands, and starts them where there is none."""

from __future__ import annotations

import contextlib
import pwd
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stapsrv.control.cli.inventory import Inventory
from stapsrv.control.client.accounts import runnable_account
from stapsrv.control.client.discovery import SOCKET_NAME
from stapsrv.control.client.launch import LOCK_NAME, SUPERVISOR_LOCK, Launch, prepare, reach_or_launch
from stapsrv.control.client.sync import ACTION_S, Command, SupervisorNotRunning, SyncControlClient
from stapsrv.control.client.whereabouts import own_stat_paths
from stapsrv.control.protocol.jsonrpc import Code
from stapsrv.errors import ControlError, StapsrvError
from stapsrv.identity.password import obtain_password
from stapsrv.system.lock_files import locked_unless_missing, remove_locked_directory

if TYPE_CHECKING:
    from stapsrv.control.protocol.schema import OutcomeInfo, ServerSpecInfo
    from stapsrv.control.protocol.status_fields import ServerInfo, SupervisorInfo

# The longest timeout_s that a supervisor accepts.
_LONGEST_WAIT_S = 86_400.0
# For a supervisor that is shutting down: it finishes what runs.
_END_S = 60.0
# For one that closed the connection: it has died, is about to end, or closed only this connection.
_VANISH_S = 1.0
# There is no event for the end of another process's supervisor.
_POLL_S = 0.05
_GONE = frozenset({Code.LOST, Code.SHUTTING_DOWN})
# The error for a server started while the last server's end ends the supervisor.
_ENDING = "the supervisor is ending"
_UNDER_WAY = frozenset({"starting", "stopping", "draining"})

ALREADY_DOWN: OutcomeInfo = {"server": None, "already": True, "error": None}


class Supervisors:
    """Commands supervisors by the names of their users, in any thread; every wait has a deadline.

    ``on_step`` is called with each change of a server. All methods raise StapsrvError if a supervisor cannot
    be asked, or not be started where that is needed.
    """

    def __init__(self, inventory: Inventory, on_step: Callable[[ServerInfo], object]) -> None:
        self._inventory = inventory
        self._invocation = invocation = inventory.invocation
        self._stat_paths = own_stat_paths(inventory.settings, invocation.config_file, inventory.environ)
        self._on_step = on_step
        wait_s = ACTION_S if invocation.timeout_s is None else min(invocation.timeout_s, _LONGEST_WAIT_S)
        # A person, for a password.
        self._asking = threading.Lock()
        self._timeout_s = wait_s if invocation.wait else 0.0

    def start(self, user: str, specs: Sequence[ServerSpecInfo]) -> list[OutcomeInfo]:
        """Start servers of ``user``, and a supervisor if there is none; return one outcome for each."""
        return self._ask(
            user, lambda client: client.start(specs, timeout_s=self._timeout_s, on_progress=self._on_step)
        )

    def reload(self, user: str) -> list[OutcomeInfo]:
        """Have the supervisor of ``user``, started if there is none, apply the configuration."""
        return self._ask(user, lambda client: self._reload(client, force=False))

    def begin_anew(self, user: str) -> list[OutcomeInfo]:
        """Have the running supervisor of ``user`` stop its servers, and read all of its configuration again.

        Returns what became of the servers, when it takes commands again.
        """
        # Where a user may not make the STAT_PATH or LOG_FILE that the files name by now.
        prepare(self._launch(user))
        with self._connect(user) as client:
            former = client.status()
            outcomes = self._reload(client, force=True)
        deadline = time.monotonic() + _END_S
        while not self._has_followed(user, former):
            if time.monotonic() > deadline:
                raise StapsrvError(f"the supervisor of user {user} does not come back", remedy="see its log")
            time.sleep(_POLL_S)
        return outcomes

    def _reload(self, client: SyncControlClient, *, force: bool) -> list[OutcomeInfo]:
        return client.reload(
            self._invocation.config_file, force=force, timeout_s=self._timeout_s, on_progress=self._on_step
        )

    def _has_followed(self, user: str, former: SupervisorInfo) -> bool:
        """Whether a supervisor answers that began after ``former``; raises StapsrvError if none will."""
        # Gone, or going.
        with contextlib.suppress(SupervisorNotRunning, ControlError), self._connect(user) as client:
            return client.status()["since"] != former["since"]
        if not Path(f"/proc/{former['pid']}").exists():
            raise StapsrvError(f"the supervisor of user {user} could not begin anew", remedy="see its log")
        return False

    def stop(self, user: str, ids: Sequence[int]) -> list[OutcomeInfo]:
        """Stop servers of ``user``; those of a supervisor that is gone have stopped."""
        outcomes = self._command_unless_gone("stop", user, ids)
        return [ALREADY_DOWN for _ in ids] if outcomes is None else outcomes

    def restart(self, user: str, ids: Sequence[int], specs: Sequence[ServerSpecInfo]) -> list[OutcomeInfo]:
        """Stop and start servers of ``user``; if the supervisor is gone, start them from ``specs``."""
        outcomes = self._command_unless_gone("restart", user, ids)
        return self.start(user, specs) if outcomes is None else outcomes

    def command(self, command: Command, user: str, ids: Sequence[int]) -> list[OutcomeInfo]:
        """Have the running supervisor of ``user`` carry out a command; return one outcome for each server."""
        with self._connect(user) as client:
            outcomes = client.command(command, ids, timeout_s=self._timeout_s, on_progress=self._on_step)
        return self._accepted(outcomes)

    def forget(self, user: str, record: Path) -> None:
        """Remove the record of a server whose supervisor is gone, unless one is starting and adopts it."""
        # Not always below STAT_PATH: that may have been another one.
        supervisor_dir = record.parent / user
        try:
            uid = pwd.getpwnam(user).pw_uid
            with locked_unless_missing(supervisor_dir, SUPERVISOR_LOCK, uid=uid):
                record.unlink(missing_ok=True)
                # It was killed, and could not do so itself.
                if self._is_silent(supervisor_dir, user):
                    remove_locked_directory(
                        supervisor_dir, [SOCKET_NAME], held=SUPERVISOR_LOCK, other=LOCK_NAME, uid=uid
                    )
        except KeyError as exc:
            raise StapsrvError(f"there is no user {user}") from exc
        except BlockingIOError as exc:
            raise StapsrvError(f"a supervisor of user {user} is starting", remedy="try again") from exc
        except OSError as exc:
            raise StapsrvError(f"cannot be removed: {exc.strerror}", where=str(record)) from exc

    def _command_unless_gone(
        self, command: Command, user: str, ids: Sequence[int]
    ) -> list[OutcomeInfo] | None:
        try:
            return self.command(command, user, ids)
        except SupervisorNotRunning:
            return None
        except ControlError as exc:
            if not self._has_ended(user, exc):
                raise
            return None

    def _ask(self, user: str, ask: Callable[[SyncControlClient], list[OutcomeInfo]]) -> list[OutcomeInfo]:
        """Ask a supervisor that runs or is started; once more if it was just ending."""
        try:
            with self._reach(user) as client:
                outcomes = ask(client)
            if _ENDING not in [outcome["error"] for outcome in outcomes]:
                return self._accepted(outcomes)
            self._wait_gone(user, within_s=_END_S)
        except ControlError as exc:
            # One that hung up and is still there gets a second chance, too.
            if not self._has_ended(user, exc) and exc.code != Code.LOST:
                raise
        with self._reach(user) as client:
            return self._accepted(ask(client))

    def _accepted(self, outcomes: list[OutcomeInfo]) -> list[OutcomeInfo]:
        """With ``--no-wait``, accept what has only begun."""
        if self._invocation.wait:
            return outcomes
        return [
            {**outcome, "error": None}
            if outcome["server"] is not None and outcome["server"]["state"] in _UNDER_WAY
            else outcome
            for outcome in outcomes
        ]

    def _reach(self, user: str) -> SyncControlClient:
        running = self._connect_if_running(user)
        if running is not None:
            return running
        if self._invocation.running_only:
            raise ControlError(
                f"no supervisor of user {user} runs, and ctl starts none",
                code=Code.FAILED,
                remedy="leave ctl out, or start the service",
            )
        with self._asking:
            launch = self._launch(user)._replace(password=self._password)
        return reach_or_launch(launch, lambda: self._connect_if_running(user), self._inventory.environ)

    def _launch(self, user: str) -> Launch:
        return Launch(
            account=runnable_account(user, self._inventory.environ),
            stat_path=self._inventory.settings.stat_path,
            log_file=self._inventory.settings.log_file,
            config_file=self._invocation.config_file,
            default_user=self._inventory.default_user,
        )

    def _connect_if_running(self, user: str) -> SyncControlClient | None:
        with contextlib.suppress(SupervisorNotRunning):
            return self._connect(user)
        return None

    @cached_property
    def _password(self) -> str | None:
        """The password for new supervisors (``-P``); a person is asked once at most."""
        if not self._invocation.use_password:
            return None
        return obtain_password(self._inventory.environ, file=None, descriptor=None)

    def _connect(self, user: str) -> SyncControlClient:
        """Connect to the supervisor of ``user``, which may have been started with another STAT_PATH."""
        try:
            return self._connect_at(self._stat_paths[0] / user, user)
        except SupervisorNotRunning:
            for stat_path in self._stat_paths[1:]:
                with contextlib.suppress(SupervisorNotRunning):
                    return self._connect_at(stat_path / user, user)
            raise

    @staticmethod
    def _connect_at(supervisor_dir: Path, user: str) -> SyncControlClient:
        """Connect to a supervisor; refuse a directory that is another user's."""
        with contextlib.suppress(OSError, KeyError):
            if supervisor_dir.lstat().st_uid != pwd.getpwnam(user).pw_uid:
                raise ControlError(
                    f"{supervisor_dir} belongs to somebody else than {user}",
                    code=Code.NOT_PERMITTED,
                    remedy="remove it",
                )
        return SyncControlClient(supervisor_dir / SOCKET_NAME)

    def _is_silent(self, supervisor_dir: Path, user: str) -> bool:
        """Whether nobody listens there, also no service manager."""
        try:
            self._connect_at(supervisor_dir, user).close()
        except SupervisorNotRunning:
            return True
        except ControlError:
            pass
        return False

    def _has_ended(self, user: str, error: ControlError) -> bool:
        """Whether a supervisor failed to answer because it has ended, after waiting for that end."""
        if error.code not in _GONE:
            return False
        return self._wait_gone(user, within_s=_VANISH_S if error.code == Code.LOST else _END_S)

    def _wait_gone(self, user: str, *, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        try:
            while time.monotonic() < deadline:
                self._connect(user).close()
                time.sleep(_POLL_S)
        except SupervisorNotRunning:
            return True
        return False
