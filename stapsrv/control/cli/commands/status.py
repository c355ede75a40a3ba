"""``status``: asks the supervisors and shows their answers. ``status`` loads this, so it is light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stapsrv.control.cli.console import StatusReport, problem_lines, status_json, status_lines, title
from stapsrv.control.client.discovery import SupervisorScan
from stapsrv.control.client.whereabouts import own_settings, readable_stat_paths

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stapsrv.control.cli.console import Console
    from stapsrv.control.cli.invocation import Invocation


def status_of_some(invocation: Invocation, environ: Mapping[str, str]) -> StatusReport:
    """Ask about the servers that a command line names; ConfigError: a configuration cannot be used."""
    # Finding out who is meant needs modules that a plain status would wait for.
    from stapsrv.control.cli.inventory import Inventory  # noqa: PLC0415
    from stapsrv.control.cli.plan import Operation, make_plan  # noqa: PLC0415
    from stapsrv.control.protocol.schema import settings_info  # noqa: PLC0415

    inventory = Inventory(invocation, environ)
    running = [*inventory.found, *inventory.orphaned_servers]
    configured = inventory.configured if inventory.names_unknown(running) else []
    plan = make_plan(invocation, running=running, configured=configured, host=inventory.host)
    requested = [target.server for target in plan.targets if target.operation is Operation.REPORT]
    remarks = []
    for target in plan.targets:
        if target.problem is not None:
            remarks.append(target.problem)
        elif target.operation is Operation.ABSENT and target.settings is not None:
            remarks.append(f"{title(settings_info(target.settings))} is not running")
    supervisors = inventory.supervisors
    for supervisor in supervisors:
        supervisor["servers"] = [
            server.info
            for server in inventory.found
            if server.supervisor is supervisor and server in requested
        ]
    return StatusReport(
        [supervisor for supervisor in supervisors if supervisor["servers"]],
        [server.info for server in inventory.orphaned_servers if server in requested],
        remarks,
        problems=inventory.problems,
        # Of those asked for, the plan knows who does not run; who is down is in their status.
        known_status=plan.exit_status or None,
    )


def status_of_all(
    config_file: Path | None, environ: Mapping[str, str], *, answer_s: float | None = None
) -> StatusReport:
    """Ask every supervisor that this user may ask; each may take ``answer_s`` seconds, by default ten."""
    settings = own_settings(environ, config_file)
    scan = SupervisorScan(readable_stat_paths(settings, config_file, environ), answer_s=answer_s)
    return StatusReport(scan.supervisors, scan.orphaned(), problems=scan.problems)


def show_status(report: StatusReport, form: str, console: Console, environ: Mapping[str, str]) -> int:
    """Print a report, in ``auto`` form as a table on a terminal, else classic; return the exit status."""
    if form == "json":
        console.write(status_json(report))
        return report.exit_status
    if form == "auto" and console.is_terminal and not report.is_empty:
        from stapsrv.control.cli.table import print_table  # noqa: PLC0415 - only a person waits for it

        print_table(report, console, environ)
    else:
        for line in status_lines(report):
            console.say(line)
        console.complain(*problem_lines(report))
    console.complain(*report.problems)
    return report.exit_status
