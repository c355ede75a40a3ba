"""``stap-farm``: a farm's nodes, its scheduler and its certificates; the first two in the foreground."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import attrs
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.config.addresses import OFF
from stapsrv.config.environment import server_values
from stapsrv.config.global_settings import GlobalSettings, global_defaults, read_global_settings
from stapsrv.config.kinds import LogFormat
from stapsrv.config.table import Limits
from stapsrv.control.cli.commands.common import guarded
from stapsrv.control.client.accounts import refuse_root
from stapsrv.errors import ConfigError, StapsrvError, UsageError, first_error
from stapsrv.farm.ca import Member, create_authority, issue
from stapsrv.farm.options import LISTEN, PROGRAM, parse_arguments, releases_of, tuning_of, with_farm
from stapsrv.farm.pem_files import read_certificate
from stapsrv.identity.certificate import systemtap_directory
from stapsrv.observe.logs import LogBook
from stapsrv.system.environ import started_environ
from stapsrv.system.force_exit import FORCE_EXIT_S, force_exit_after
from stapsrv.system.init import fork_as_init
from stapsrv.system.rlimits import raise_open_files
from stapsrv.system.signals import signals_received

if TYPE_CHECKING:
    from stapsrv.farm.security import FarmCredentials

# Before a certificate ends, of which the log then warns.
_EXPIRES_SOON = timedelta(days=30)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@guarded(PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run ``stap-farm``; return the exit status: 0 after a stop, 1 for a failure, 2 for bad usage."""
    given, values = parse_arguments(argv)
    environ = started_environ(os.environ)
    refuse_root(PROGRAM, environ)
    if given.command == "ca":
        return _certify(given, environ)
    if importlib.util.find_spec("distributed") is None:
        raise ConfigError("a farm needs Dask", remedy="install it: pip install 'stapsrv[farm]'")
    settings = read_global_settings(global_defaults(environ), None)
    # A wrong option, before anything is started.
    if given.command == "scheduler":
        member = _scheduler(with_farm({"listen": LISTEN, **values}, settings.tuning))
    else:
        member = _worker(with_farm(values, settings.tuning), settings, environ)
    fork_as_init()
    Path("/proc/self/comm").write_text(PROGRAM, encoding="ascii")
    # It would keep a file system from being unmounted.
    os.chdir("/")
    raise_open_files()
    failure: StapsrvError | None = None
    try:
        anyio.run(_run, member, settings, backend="asyncio")
    except* StapsrvError as group:
        failure = first_error(group)
    if failure is not None:
        raise failure
    return 0


@attrs.frozen
class _Member:
    """A part of a farm to run until it is cancelled, and its name for others."""

    run: Callable[..., Awaitable[None]]
    credentials: FarmCredentials | None
    # For what still runs when it is to stop.
    grace_s: float = 0.0


def _certify(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    named = getattr(given, "directory", None)
    directory = Path(named).absolute() if named else systemtap_directory(environ) / "farm"
    made = (
        create_authority(directory)
        if given.verb == "init"
        else issue(directory, given.name, hosts=given.hosts)
    )
    sys.stdout.write(_described(made))
    return 0


def _described(made: Member) -> str:
    until = made.certificate.not_valid_after_utc
    return f"{made.certificate_file}  valid until {until:%Y-%m-%d}\n{made.key_file}\n"


def _scheduler(values: Mapping[str, Any]) -> _Member:
    from stapsrv.farm.scheduler import SchedulerOptions, run_scheduler  # noqa: PLC0415 - Dask takes a second

    dashboard = values.get("dashboard")
    if dashboard is not None:
        if dashboard == OFF or dashboard.path is not None:
            raise UsageError("expected PORT or ADDRESS:PORT", where="--dashboard")
        if importlib.util.find_spec("bokeh") is None:
            remedy = "install bokeh for Python, or leave the option out"
            raise ConfigError("Dask's page needs bokeh", where="--dashboard", remedy=remedy)
    options = SchedulerOptions(
        listen=str(values["listen"]),
        credentials=_credentials(values),
        dashboard=None if dashboard is None else str(dashboard),
    )
    return _Member(partial(run_scheduler, options), options.credentials)


def _worker(values: Mapping[str, Any], settings: GlobalSettings, environ: Mapping[str, str]) -> _Member:
    from stapsrv.farm.worker import WorkerOptions, run_worker  # noqa: PLC0415 - Dask takes a second

    if "scheduler" not in values:
        raise UsageError(
            "the farm's scheduler is missing", remedy="name it: --scheduler tls://HOST:8786, or FARM="
        )
    described = {**server_values(environ), **values}
    options = WorkerOptions(
        scheduler=str(values["scheduler"]),
        credentials=_credentials(values),
        name=values.get("name"),
        slots=values.get("slots"),
        port=values.get("port", 0),
        releases=releases_of(described),
        include=described.get("include", ()),
        runtime=described.get("runtime"),
        tuning=tuning_of(values, settings.tuning),
        environ=environ,
    )
    return _Member(
        partial(run_worker, options), options.credentials, options.tuning.effective(Limits.drain_s.attribute)
    )


def _credentials(values: Mapping[str, Any]) -> FarmCredentials | None:
    from stapsrv.farm.security import FarmCredentials  # noqa: PLC0415 - see above

    return (
        FarmCredentials(*(Path(values[name]) for name in ("ca", "cert", "key"))) if "ca" in values else None
    )


async def _run(member: _Member, settings: GlobalSettings) -> None:
    """Serve until the first TERM or INT; the second ends this process at once."""
    from stapsrv.farm.dask_logs import dask_logs_to  # noqa: PLC0415 - see above

    with contextlib.ExitStack() as held:
        book = held.enter_context(contextlib.closing(LogBook(settings.log_format or LogFormat.CLASSIC)))
        log = book.open(None)
        held.enter_context(dask_logs_to(log))
        receive = held.enter_context(signals_received(*_SIGNALS))
        for warning in settings.warnings:
            log.warning("configuration.warning", warning=warning)

        async def obey(serving: anyio.CancelScope) -> None:
            async with contextlib.aclosing(receive()) as signals:
                async for number in signals:
                    log.info("server.signal", signal=int(number))
                    left_s = 0.0 if serving.cancel_called else member.grace_s + FORCE_EXIT_S
                    force_exit_after(log, book.flush, within_s=left_s)
                    serving.cancel()

        async with anyio.create_task_group() as tasks:
            serving = anyio.CancelScope()
            tasks.start_soon(obey, serving)
            with serving:
                if member.credentials is not None:
                    _report_expiry(member.credentials.cert, log)
                await member.run(log=log)
            tasks.cancel_scope.cancel()


def _report_expiry(certificate: Path, log: Log) -> None:
    until = read_certificate(certificate).not_valid_after_utc
    if until - datetime.now(UTC) < _EXPIRES_SOON:
        log.warning("farm.certificate_expires", file=certificate, when=until)
    else:
        log.info("farm.certificate", file=certificate, when=until)


if __name__ == "__main__":
    sys.exit(main())
