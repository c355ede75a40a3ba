"""One run of a supervisor: configuration, servers, control socket and readiness, joined."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import anyio
import attrs
from anyio.abc import TaskStatus
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.config.configured import read_configured_or_environ, with_each_release
from stapsrv.config.global_settings import (
    DEFAULT_FILES,
    GlobalSettings,
    global_defaults,
    global_from_environ,
    read_global_settings,
    with_values,
)
from stapsrv.config.settings import HostDefaults, ServerSettings, total_compiles
from stapsrv.control.client.discovery import SOCKET_NAME
from stapsrv.control.server.auth import Policy
from stapsrv.control.server.server import serve_control
from stapsrv.daemon_options import PROGRAM, DaemonOptions
from stapsrv.errors import ConfigError, StapsrvError
from stapsrv.identity.certificate import systemtap_directory
from stapsrv.observe.feed import LiveFeed
from stapsrv.observe.logs import LogBook
from stapsrv.observe.snapshot import Phase, Snapshot
from stapsrv.supervisor.advertise import ServerAdvertiser
from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.operations import Outcome, Report, ServerSpec
from stapsrv.supervisor.runtime import Runtime
from stapsrv.supervisor.script_checks import ScriptChecks
from stapsrv.supervisor.script_renewal import ScriptRenewal
from stapsrv.supervisor.state.ports import PortMemory
from stapsrv.supervisor.state.script_runs import ScriptRuns
from stapsrv.supervisor.state.stat_files import StatFiles
from stapsrv.supervisor.supervisor import SavedState, Supervisor
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.sd_notify import Notifier, feed_watchdog

_DEFAULT_USER = "STAPSRV_DEFAULT_USER"
_STANDARD_ERROR = Path("/dev/stderr")
# How long a supervisor that was started for a command waits for it.
_UNUSED_S = 30.0


@attrs.frozen(kw_only=True)
class Configuration:
    """The places of this supervisor's files, and the defaults of its servers."""

    options: DaemonOptions
    environ: Mapping[str, str]
    user: str  # whom it runs as; only this user's servers are its own
    # What holds where no global file says otherwise, and what the supervisor started with.
    base: GlobalSettings
    settings: GlobalSettings
    log_file: Path
    only_server: ServerSettings | None  # of the command line; None to host the configured ones

    @classmethod
    def read(cls, options: DaemonOptions, environ: Mapping[str, str]) -> Configuration:
        """Read the environment and, unless one server is described, the global files.

        Raises:
            ConfigError: the environment or a file cannot be used, or no release is installed.
        """
        only = options.server
        if only is None:
            base = global_defaults(environ)
            settings = read_global_settings(base, options.config_file)
            log_file = options.log or settings.log_file
        else:
            base = settings = global_from_environ(environ)
            log_file = only.log or _STANDARD_ERROR
            only = attrs.evolve(
                with_each_release(attrs.evolve(only, tuning=only.tuning.over(settings.tuning.of_servers()))),
                # Its process id would be another name after each start, and metrics go by the nickname.
                nickname=only.nickname or PROGRAM,
                user=None,
            )
        return cls(
            options=options,
            environ=environ,
            user=pwd.getpwuid(os.geteuid()).pw_name,
            base=base,
            settings=with_values(settings, options.service, options.warnings),
            log_file=log_file,
            only_server=only,
        )

    @property
    def directory(self) -> Path:
        """The directory of this supervisor's lock and control socket."""
        return self.settings.stat_path / self.user

    @property
    def secret(self) -> tuple[Path, ...]:
        """The files and directories of this service that no request may see."""
        options, settings = self.options, self.settings
        own = (options.log, options.config_file, options.password_file, settings.web_token_file)
        named = filter(None, own)
        return (*named, settings.config_path, settings.stat_path, settings.log_file, *DEFAULT_FILES)

    @property
    def defaults(self) -> HostDefaults:
        """The defaults of the servers."""
        return HostDefaults(
            user=self.user,
            log=self.log_file,
            tuning=self.settings.tuning.of_servers(),
        )

    def read_servers(self, config_file: Path | None) -> ConfiguredServers:
        """Read the configuration directory as it is now; STAT_PATH and LOG_FILE stay as they were.

        ``config_file`` is a global file in place of the one that the supervisor started with.
        ``STAPSRV_DEFAULT_USER`` in the environment says whom servers run as that do not say.

        Raises:
            ConfigError: the global file or the directory cannot be used.
        """
        settings = read_global_settings(self.base, config_file or self.options.config_file)
        files = read_configured_or_environ(settings.config_path, self.environ)
        user = self.environ.get(_DEFAULT_USER) or self.settings.stap_user or self.user
        defaults = attrs.evolve(self.defaults, user=user, tuning=settings.tuning.of_servers())
        usable = [(file, file.settings.resolved(defaults)) for file in files if file.settings is not None]
        return ConfiguredServers(
            settings=settings,
            specs=tuple(
                ServerSpec(resolved, str(file.path))
                for file, resolved in usable
                if resolved.user == self.user
            ),
            faults={str(file.path): file.fault for file in files if file.fault is not None},
            warnings=tuple(warning for file in files for warning in file.warnings),
            nothing_configured=not files,
        )


@attrs.frozen
class ConfiguredServers:
    """The servers of this user in the configuration directory, and by file why others cannot be used."""

    settings: GlobalSettings
    specs: tuple[ServerSpec, ...]
    faults: Mapping[str, StapsrvError]
    warnings: tuple[str, ...]
    nothing_configured: bool


@attrs.define(eq=False)
class App:
    """One run of a supervisor: its servers, control socket, reloads and readiness."""

    _runtime: Runtime
    _configuration: Configuration
    _book: LogBook = attrs.field(kw_only=True)
    _notifier: Notifier = attrs.field(kw_only=True)
    log: Log = attrs.field(init=False)
    supervisor: Supervisor = attrs.field(init=False)
    feed: LiveFeed = attrs.field(init=False)  # of what there is to watch
    scripts: ScriptChecks = attrs.field(init=False)
    _hangup: anyio.Event = attrs.field(init=False, factory=anyio.Event)
    _files: BlockingCalls = attrs.field(init=False, factory=BlockingCalls)
    _phase: Phase = attrs.field(init=False, default=Phase.STARTING)
    # What the run that is to follow this one is started with, if any.
    successor: DaemonOptions | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        configuration = self._configuration
        self.log = self._book.open(configuration.log_file)
        for warning in configuration.settings.warnings:
            self.log.warning("configuration.warning", warning=warning)
        only = configuration.only_server
        tuning = configuration.settings.tuning
        # The workers of an only server are its bound, however few cores this host has.
        unset = tuning.effective("total_compiles") is None
        max_compiles = only.workers if only is not None and unset else total_compiles(tuning)
        saved = SavedState(
            StatFiles(configuration.settings.stat_path),
            PortMemory(systemtap_directory(configuration.environ) / "server-ports"),
        )
        self.supervisor = Supervisor(
            self._runtime,
            saved if only is None else None,
            defaults=configuration.defaults,
            open_log=self._book.open,
            log=self.log,
            max_compiles=max_compiles,
            auto_end=configuration.options.on_demand,
            advertiser=ServerAdvertiser.from_settings(configuration.settings, log=self.log),
        )
        self.feed = LiveFeed(self.supervisor.status, self._runtime.activity)
        self.scripts = ScriptChecks(
            self.supervisor.serving,
            ScriptRuns(systemtap_directory(configuration.environ) / "server-scripts.json"),
            self._runtime.warmup,
            self._runtime.scripts,
            self.log,
        )

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._phase is Phase.STOPPING

    def stop(self) -> None:
        """Finish outstanding requests, stop all servers, and let :meth:`run` return; nothing follows it."""
        self._phase = Phase.STOPPING
        self.successor = None
        self._notifier.stopping()
        self.supervisor.end()

    def _renewal(self) -> ScriptRenewal:
        runtime = self._runtime
        return ScriptRenewal(self.scripts, runtime.cache, runtime.activity.changes, runtime.warmup, self.log)

    def hang_up(self) -> None:
        """Begin new log files and read the configuration again, soon."""
        self._hangup.set()

    def snapshot(self) -> Snapshot:
        """Return what is known of this process now."""
        return Snapshot(
            phase=self._phase,
            status=self.supervisor.status(),
            counters=self._runtime.counters,
            dropped_entries=self._book.dropped,
        )

    async def run(self) -> None:
        """Host servers until :meth:`stop`, there is a successor, or the last is gone if on demand.

        An only server takes no commands.

        Raises:
            ConfigError: the configuration or a passed socket cannot be used, or the only server cannot be
                started, or not again after a crash; in a group.
        """
        only = self._configuration.only_server
        async with anyio.create_task_group() as tasks:

            async def supervise(*, task_status: TaskStatus[None]) -> None:
                await self.supervisor.run(task_status=task_status)
                tasks.cancel_scope.cancel()

            tasks.start_soon(feed_watchdog, self._notifier, self._configuration.environ)
            tasks.start_soon(self._runtime.identities.maintain, self.log)
            await tasks.start(supervise)
            if only is None:
                await tasks.start(self._serve_control)
                tasks.start_soon(self._bring_up)
                tasks.start_soon(self._renewal().run)
            else:
                tasks.start_soon(self._host_only, only)
            tasks.start_soon(self._obey_hangups)
            tasks.start_soon(self._runtime.sockets.reset_unserved, self._is_served, self.log)

    async def reload(
        self, config_file: Path | None = None, *, force: bool = False, report: Report | None = None
    ) -> list[Outcome]:
        """Read the configuration again and make the configured servers what it says.

        Returns an outcome for each server that was stopped, each that is configured, and each file that
        cannot be used, whose server goes on as it is. With ``force``, every server is stopped, and the run
        ends for a successor to begin anew with what the files say by then (manual page, ``force-reload``).
        ``config_file`` replaces the global file that the supervisor started with.

        Raises:
            ConfigError: the global file or the directory cannot be used; nothing was changed.
        """
        # While it comes up, readiness is reported once, when all servers are up.
        was_up = self._phase is not Phase.STARTING
        if was_up:
            self._notifier.reloading()
        try:
            found = await self._read_servers(config_file)
            if force:
                self._check_sockets(found)
                return await self._give_way(config_file, report)
            outcomes = await self.supervisor.reload(found.specs, unreadable=found.faults, report=report)
            faults = found.faults.values()
            return outcomes + [Outcome(None, already=False, error=str(fault)) for fault in faults]
        finally:
            if was_up and self.successor is None:
                self._notifier.ready(self._summary())

    def _check_sockets(self, found: ConfiguredServers) -> None:
        sockets = self._runtime.sockets
        if control := sockets.control(found.settings.stat_path / self._configuration.user / SOCKET_NAME):
            control.close()
        # With one, a socket may be that server's, whose failure is its own.
        if not found.faults:
            sockets.check_all_used([spec.settings for spec in found.specs], controlled=True)

    async def _give_way(self, config_file: Path | None, report: Report | None) -> list[Outcome]:
        servers = self.supervisor.status().servers
        outcomes = await self.supervisor.stop([server.id for server in servers], report)
        if not self.is_stopping:
            self._phase = Phase.STARTING
            options = self._configuration.options
            self.successor = attrs.evolve(options, config_file=config_file or options.config_file)
            self.supervisor.end()
        return outcomes

    async def _serve_control(self, *, task_status: TaskStatus[None]) -> None:
        socket = self._configuration.directory / SOCKET_NAME
        await serve_control(
            socket,
            self.supervisor,
            feed=self.feed,
            reload=self.reload,
            scripts=self.scripts,
            defaults=self._configuration.defaults,
            policy=Policy.of_process(),
            log=self.log,
            passed=self._runtime.sockets.control(socket),
            task_status=task_status,
        )

    async def _bring_up(self) -> None:
        if self._configuration.options.resume:
            self.supervisor.resume()
        else:
            self.supervisor.forget_records()
        if self._configuration.options.on_demand:
            self._phase = Phase.RUNNING
            self._notifier.ready("waiting for commands")
            await anyio.sleep(_UNUSED_S)
            self.supervisor.end_if_unused()
            return
        found = await self._read_servers(None)
        self._check_sockets(found)
        # Where nothing is configured, one for the host's release (manual page, start).
        default = ServerSpec(ServerSettings().resolved(self._configuration.defaults))
        specs = (default,) if found.nothing_configured else found.specs
        await self.supervisor.start(specs, as_configured=True)
        self._phase = Phase.RUNNING
        self._notifier.ready(self._summary())

    async def _host_only(self, settings: ServerSettings) -> None:
        # Whatever keeps it from serving ends the process.
        (outcome,) = await self.supervisor.start((ServerSpec(settings),))
        if self.is_stopping:
            return
        if outcome.server is None or outcome.error is not None:
            raise ConfigError(outcome.error or "")
        self._phase = Phase.RUNNING
        self._notifier.ready(f"serving on port {outcome.server.port}")
        raise ConfigError(await self.supervisor.wait_failed(outcome.server.id))

    async def _obey_hangups(self) -> None:
        while True:
            await self._hangup.wait()
            self._hangup = anyio.Event()
            self._book.reopen()
            if self._configuration.only_server is not None:
                continue
            try:
                await self.reload()
            except ConfigError as exc:
                self.log.error("configuration.refused", reason=exc)

    def _is_served(self, nickname: str) -> bool:
        # Who connects to its port may wait: it accepts, or will, or the next process.
        down = {State.STOPPED, State.FAILED, State.BACKING_OFF}
        return self._phase is not Phase.RUNNING or any(
            server.nickname == nickname and server.state not in down
            for server in self.supervisor.status().servers
        )

    async def _read_servers(self, config_file: Path | None) -> ConfiguredServers:
        try:
            found = await self._files.run(partial(self._configuration.read_servers, config_file))
        except OSError as exc:
            raise ConfigError(
                f"cannot be read: {exc.strerror}",
                where="the configuration",
                remedy="see which file system hangs, or what this host is short of",
            ) from exc
        self.supervisor.refused = {path: str(fault) for path, fault in found.faults.items()}
        for fault in found.faults.values():
            self.log.error("configuration.refused", reason=fault)
        for warning in found.warnings:
            self.log.warning("configuration.warning", warning=warning)
        return found

    def _summary(self) -> str:
        servers = self.supervisor.status().servers
        serving = [server for server in servers if server.state is State.SERVING]
        text = f"{len(serving)} of {len(servers)} servers serve"
        reasons = [f"{server.nickname}: {server.reason}" for server in servers if server.reason is not None]
        return f"{text}; {reasons[0]}" if reasons else text
