"""``stap-serverd``: compile servers in the foreground, until a signal ends them."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import signal
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import anyio
import attrs

from stapsrv.app import App, Configuration
from stapsrv.config.addresses import OFF, MetricsAddress
from stapsrv.config.environment import PREFIX, server_values
from stapsrv.config.global_settings import global_defaults
from stapsrv.config.kinds import LogFormat
from stapsrv.control.client.accounts import refuse_root
from stapsrv.control.client.whereabouts import note_stat_path
from stapsrv.daemon_options import PROGRAM, DaemonOptions, parse_arguments
from stapsrv.errors import ConfigError, StapsrvError, UsageError, first_error
from stapsrv.identity.certificate import systemtap_directory
from stapsrv.identity.password import obtain_password, obtain_web_token
from stapsrv.observe.logs import LogBook
from stapsrv.observe.sinks import Sink, standard_error
from stapsrv.supervisor.activation import PassedSockets, without_passed
from stapsrv.supervisor.runtime import open_runtime
from stapsrv.supervisor.state.lock import InstanceLock
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.environ import started_environ
from stapsrv.system.force_exit import force_exit_after
from stapsrv.system.init import fork_as_init
from stapsrv.system.rlimits import raise_open_files, warn_of_few_files
from stapsrv.system.sd_notify import Notifier
from stapsrv.system.signals import signals_received
from stapsrv.system.stdio import guard_stdout

if TYPE_CHECKING:
    from stapsrv.observe.metrics_server import MetricsListener
    from stapsrv.observe.web.site import WebSite
    from stapsrv.supervisor.runtime import Runtime

_LOG_FILE = f"{PREFIX}LOG_FILE"
_STDERR = 2
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_NOTING_S = 5.0

_Signals: TypeAlias = AsyncGenerator[signal.Signals, None]


@attrs.frozen
class _Start:
    """The arguments and environment of this process; ``environ`` is passed on to its children."""

    environ: Mapping[str, str]
    notifier: Notifier
    password: str | None
    sockets: PassedSockets


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``stap-serverd`` and exit: 0 after a stop, 1 when it could not serve, 2 for bad usage."""
    environ = started_environ(os.environ)
    notifier = Notifier(environ)
    failure: StapsrvError | None = None
    try:
        with guard_stdout(PROGRAM):
            options = parse_arguments(sys.argv[1:] if argv is None else argv, server_values(environ))
        refuse_root(PROGRAM, environ)
        sockets = PassedSockets.from_environ(environ, pid=os.getpid())
        fork_as_init()
        start = _Start(without_passed(environ), notifier, _password(options, environ), sockets)
        # By this name scripts, ps and stap-stop-server know a compile server.
        Path("/proc/self/comm").write_text(PROGRAM, encoding="ascii")
        # It would keep a file system from being unmounted.
        os.chdir("/")
        raise_open_files()
        backend, loop = event_loop(options.backend)
        anyio.run(_serve, options, start, backend=backend, backend_options=loop)
    except* StapsrvError as group:
        failure = first_error(group)
    if failure is None:
        sys.exit(0)
    notifier.failed(str(failure))
    sys.stderr.write(f"{PROGRAM}: {failure}\n")
    sys.exit(failure.exit_status)


def event_loop(wanted: str | None) -> tuple[str, dict[str, bool]]:
    """Return AnyIO's backend for an event loop, and its options; raises UsageError without uvloop."""
    if wanted == "trio":
        return "trio", {}
    installed = importlib.util.find_spec("uvloop") is not None
    if wanted == "uvloop" and not installed:
        raise UsageError(
            "uvloop is not installed", where="--backend uvloop", remedy="install it, or leave the option out"
        )
    return "asyncio", {"use_uvloop": installed and wanted != "asyncio"}


def _password(options: DaemonOptions, environ: Mapping[str, str]) -> str | None:
    file, descriptor = options.password_file, options.password_descriptor
    if not options.use_password and file is None and descriptor is None:
        return None
    return obtain_password(environ, file=file, descriptor=descriptor)


async def _serve(options: DaemonOptions, start: _Start) -> None:
    """Run supervisors one after the other: each but the last was told to begin anew."""
    successor: DaemonOptions | None = options
    with contextlib.ExitStack() as held:
        # For all of them: a signal that comes in between is the next one's. The first one's start it kills.
        @functools.cache
        def receiving() -> Callable[[], _Signals]:
            return held.enter_context(signals_received(*_SIGNALS))

        lock = held.enter_context(contextlib.closing(InstanceLock()))
        while successor is not None:
            successor = await _run(successor, start, receiving, lock)


async def _run(
    options: DaemonOptions, start: _Start, receiving: Callable[[], Callable[[], _Signals]], lock: InstanceLock
) -> DaemonOptions | None:
    environ = start.environ
    configuration = Configuration.read(options, environ)
    if configuration.only_server is not None:
        start.sockets.check_all_used([configuration.only_server], controlled=False)
    style = configuration.settings.log_format or LogFormat.CLASSIC
    tuning = configuration.settings.tuning
    with contextlib.ExitStack() as held:
        book = held.enter_context(contextlib.closing(LogBook(style, terminal=_terminal(configuration))))
        supervisor_dir = None
        if configuration.only_server is None:
            if style is not LogFormat.JOURNAL:
                _make_parent(configuration.log_file)
            supervisor_dir = configuration.directory
            lock.hold(supervisor_dir)
            noting = functools.partial(
                note_stat_path, systemtap_directory(environ), options.config_file, supervisor_dir.parent
            )
            # A home that hangs costs the note.
            with contextlib.suppress(OSError):
                await BlockingCalls().run(noting, timeout_s=_NOTING_S)
        open_site = _prepare_site(configuration)
        metrics = _open_metrics(configuration.settings.metrics, supervisor_dir, held)
        log = book.open(configuration.log_file)
        async with open_runtime(
            environ,
            password=start.password,
            sockets=start.sockets,
            tuning=tuning,
            secret=configuration.secret,
            log=log,
        ) as runtime:
            app = App(runtime, configuration, book=book, notifier=start.notifier)
            connections = tuning.effective("total_connections") or tuning.effective("connections")
            warn_of_few_files(connections, log)
            async with (
                _obeying_signals(receiving()(), app, book.flush),
                metrics.serve(app.snapshot, log=log, site=open_site(app, runtime))
                if metrics
                else contextlib.nullcontext(),
            ):
                await app.run()
    return app.successor


def _open_metrics(
    address: MetricsAddress | None, directory: Path | None, held: contextlib.ExitStack
) -> MetricsListener | None:
    if address is None or address == OFF:
        return None
    from stapsrv.observe.metrics_server import open_metrics_listener  # noqa: PLC0415 - slow to load

    return held.enter_context(open_metrics_listener(address, directory=directory))


def _prepare_site(configuration: Configuration) -> Callable[[App, Runtime], WebSite | None]:
    """Return what makes the web page of an app, after all that could keep it from being served."""
    settings = configuration.settings
    if not settings.web:
        return lambda _app, _runtime: None
    try:
        from stapsrv.observe.web.access import Access  # noqa: PLC0415 - slow to load
        from stapsrv.observe.web.site import WebSite  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"the Python package {exc.name} is not installed",
            where="WEB=yes",
            remedy="install it: pip install 'stapsrv[web]', or make install EXTRAS=web",
        ) from exc
    token = obtain_web_token(configuration.environ, file=settings.web_token_file)
    access = Access.at(settings.metrics, host_name=os.uname().nodename, token=token)
    return lambda app, runtime: WebSite(
        app.feed, counters=runtime.counters, activity=runtime.activity, access=access
    )


@contextlib.asynccontextmanager
async def _obeying_signals(signals: _Signals, app: App, flush: Callable[[], None]) -> AsyncIterator[None]:
    """Stop the app at the first TERM or INT, end the block at the second; HUP is the app's."""

    async def obey(everything: anyio.CancelScope) -> None:
        async with contextlib.aclosing(signals):
            async for number in signals:
                if number == signal.SIGHUP:
                    app.hang_up()
                    continue
                app.log.info("server.signal", signal=int(number))
                if app.is_stopping:
                    force_exit_after(app.log, flush)
                    everything.cancel()
                    return
                app.stop()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(obey, tasks.cancel_scope)
        yield
        tasks.cancel_scope.cancel()
    # Without one, the end of the process follows: no late signal changes it, and nothing holds it up.
    if app.successor is None:
        force_exit_after(app.log, flush)


def _terminal(configuration: Configuration) -> Sink | None:
    """Return standard error as a sink if it gets log lines beside the files."""
    if sys.stderr is None:
        return None
    if os.isatty(_STDERR):
        return standard_error()
    # Where no log is named, the original logs to whatever this is: `stap-serverd >log 2>&1`. A service
    # manager's socket would have each line twice.
    mode = os.fstat(_STDERR).st_mode
    unnamed = global_defaults({**configuration.environ, _LOG_FILE: ""}).log_file
    is_unnamed = configuration.only_server is None and configuration.log_file == unnamed
    return standard_error() if is_unnamed and (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)) else None


def _make_parent(log_file: Path) -> None:
    # Where that fails, opening the log says why.
    with contextlib.suppress(OSError):
        log_file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)


if __name__ == "__main__":
    main()
