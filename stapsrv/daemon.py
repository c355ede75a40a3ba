"""``stap-serverd``: compile servers in the foreground, until a signal ends them.

The one place that knows every room and joins them: log, signals, readiness, exit.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import anyio
import attrs

from stapsrv.app import App, Configuration
from stapsrv.config.environment import server_values
from stapsrv.config.global_settings import can_write, global_defaults
from stapsrv.config.kinds import LogFormat
from stapsrv.config.tuning import Tuning
from stapsrv.daemon_options import PROGRAM, DaemonOptions, parse_arguments
from stapsrv.errors import StapsrvError, UsageError
from stapsrv.identity.password import obtain_password
from stapsrv.observe.logs import Log, LogBook
from stapsrv.observe.metrics_server import monitored, open_door
from stapsrv.observe.sinks import Sink, standard_error
from stapsrv.supervisor.activation import PassedSockets, without_passed
from stapsrv.supervisor.runtime import open_host
from stapsrv.supervisor.state.lock import hold_instance_lock
from stapsrv.system.environ import started_environ
from stapsrv.system.force_exit import force_exit_after
from stapsrv.system.init import fork_as_init
from stapsrv.system.rlimits import raise_open_files, warn_of_few_files
from stapsrv.system.sd_notify import Notifier
from stapsrv.system.signals import signals_received
from stapsrv.system.stdio import guard_stdout

CONTROL_SOCKET = "control.sock"


@attrs.frozen
class _Means:
    """What this process was given by whoever started it.

    Attributes:
        environ: the environment variables, for its children, too.
        notifier: the service manager.
        password: of certificate databases that have one.
        sockets: opened by the service manager.
    """

    environ: Mapping[str, str]
    notifier: Notifier
    password: str | None
    sockets: PassedSockets


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``stap-serverd`` and exit: 0 after a stop, 1 when it could not serve, 2 for bad usage."""
    environ = started_environ(os.environ)
    notifier = Notifier.from_environ(environ)
    failure: StapsrvError | None = None
    try:
        with guard_stdout(PROGRAM):
            options = parse_arguments(sys.argv[1:] if argv is None else argv, server_values(environ))
        refuse_root(environ)
        sockets = PassedSockets.from_environ(environ, pid=os.getpid())
        fork_as_init()
        password = _password(options, environ)
        # By this name scripts, ps and stap-stop-server know a compile server.
        Path("/proc/self/comm").write_text(PROGRAM, encoding="ascii")
        os.chdir("/")
        raise_open_files()
        means = _Means(without_passed(environ), notifier, password, sockets)
        backend, loop = event_loop(options.backend)
        anyio.run(_serve, options, means, backend=backend, backend_options=loop)
    except* StapsrvError as group:
        failure = _first(group)
    if failure is None:
        sys.exit(0)
    notifier.failed(str(failure))
    sys.stderr.write(f"{PROGRAM}: {failure}\n")
    sys.exit(failure.exit_status)


def event_loop(wanted: str | None) -> tuple[str, dict[str, bool]]:
    """Return AnyIO's backend for the loop that is wanted, and the options that it gets.

    Raises:
        UsageError: it is uvloop, and not installed.
    """
    if wanted == "trio":
        return "trio", {}
    installed = importlib.util.find_spec("uvloop") is not None
    if wanted == "uvloop" and not installed:
        raise UsageError(
            "uvloop is not installed", where="--backend uvloop", remedy="install it, or leave the option out"
        )
    return "asyncio", {"use_uvloop": installed and wanted != "asyncio"}


def refuse_root(environ: Mapping[str, str]) -> None:
    """Stop a compile server from running as root (manual page, SAFETY AND SECURITY).

    Raises:
        UsageError: the effective user is root, and no test has lifted the rule.
    """
    if os.geteuid() == 0 and environ.get("STAP_PR11197_OVERRIDE") != "1":
        raise UsageError(
            "a compile server does not run as root",
            remedy=f"run it as a plain user: runuser -u stap-server -- {PROGRAM} …",
        )


def _password(options: DaemonOptions, environ: Mapping[str, str]) -> str | None:
    """Return the password of the certificate databases, if they are said to have one."""
    file, descriptor = options.password_file, options.password_descriptor
    if not options.use_password and file is None and descriptor is None:
        return None
    return obtain_password(environ, file=file, descriptor=descriptor)


async def _serve(options: DaemonOptions, means: _Means) -> None:
    """Host the one server that the command line describes, or those that are configured or asked for."""
    environ = means.environ
    user = pwd.getpwuid(os.geteuid())
    if options.server is None:
        own = global_defaults(
            environ, euid=os.geteuid(), home=Path(environ.get("HOME") or user.pw_dir), can_write=can_write
        )
        configuration = Configuration.read(
            own, options.config_file, log=options.log, user=user.pw_name, environ=environ
        )
    else:
        configuration = Configuration.of_one_server(options.server, user=user.pw_name, environ=environ)
        means.sockets.check_all_used([options.server], controlled=False)
    style = options.log_format or configuration.settings.log_format or LogFormat.CLASSIC
    tuning = options.tuning.over(configuration.settings.tuning)
    with contextlib.ExitStack() as held:
        book = held.enter_context(contextlib.closing(LogBook(style, terminal=_terminal())))
        supervisor_dir = None
        if configuration.only_server is None:
            if style is not LogFormat.JOURNAL:
                _make_parent(configuration.log_file)
            supervisor_dir = held.enter_context(
                hold_instance_lock(configuration.settings.stat_path, user.pw_name)
            )
        metrics = held.enter_context(
            open_door(options.metrics or configuration.settings.metrics, directory=supervisor_dir)
        )
        log = book.open(configuration.log_file)
        async with open_host(
            environ,
            password=means.password,
            sockets=means.sockets,
            tuning=tuning,
            secret=(*_secrets(options), *configuration.files),
            log=log,
        ) as host:
            app = App(host, options, configuration, book=book, notifier=means.notifier, environ=environ)
            warn_of_few_files(_connections_wanted(tuning), log)
            async with (
                _obeying_signals(log, hangup=app.hang_up) as stopping,
                monitored(metrics, app.look, log=log),
            ):
                await app.run(supervisor_dir and supervisor_dir / CONTROL_SOCKET, stopping)


@contextlib.asynccontextmanager
async def _obeying_signals(log: Log, *, hangup: Callable[[], None]) -> AsyncIterator[anyio.Event]:
    """Obey signals while the block runs; the first TERM or INT sets the event, a second ends the block.

    After the second the process ends in time, whatever hangs in it.

    Args:
        log: hears of each signal that stops.
        hangup: called for each HUP.
    """
    stopping = anyio.Event()

    async def obey(signals: AsyncGenerator[signal.Signals, None], everything: anyio.CancelScope) -> None:
        async with contextlib.aclosing(signals):
            async for number in signals:
                if number == signal.SIGHUP:
                    hangup()
                    continue
                log.info("server.signal", signal=int(number))
                if stopping.is_set():
                    force_exit_after(log)
                    everything.cancel()
                    return
                stopping.set()

    # What follows the block is the end of the process: no late signal changes how it ends, and nothing holds
    # it up.
    with signals_received(*_SIGNALS) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(obey, signals, tasks.cancel_scope)
            yield stopping
            tasks.cancel_scope.cancel()
    force_exit_after(log)


def _secrets(options: DaemonOptions) -> tuple[Path, ...]:
    """Return the files that the options name and no request may see."""
    return tuple(
        path for path in (options.log, options.config_file, options.password_file) if path is not None
    )


def _terminal() -> Sink | None:
    """Return the terminal as a place for log lines beside the files, when there is one."""
    return standard_error() if sys.stderr is not None and sys.stderr.isatty() else None


def _make_parent(log_file: Path) -> None:
    """Make the directory of a log; where that fails, opening the log says why."""
    with contextlib.suppress(OSError):
        log_file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)


def _connections_wanted(tuning: Tuning) -> int:
    wanted: int = tuning.effective("total_connections") or tuning.effective("connections")
    return wanted


def _first(group: BaseExceptionGroup[StapsrvError]) -> StapsrvError:
    """Return the first error of a group: one start has one reason to fail."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


if __name__ == "__main__":
    main()
