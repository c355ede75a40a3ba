"""``status``: what every supervisor says of its servers, and how it is shown. A light module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stapsrv.control.glance import Glance
from stapsrv.control.output import StatusReport, down_reasons, health_remarks, status_json, status_lines
from stapsrv.control.places import own_settings, readable_stat_paths

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stapsrv.control.output import Console


def status_of_all(
    config_file: str | None, environ: Mapping[str, str], *, answer_s: float | None = None
) -> StatusReport:
    """Ask every supervisor that this user may ask about all its servers.

    Args:
        config_file: a global file, read after the default one.
        environ: the environment variables.
        answer_s: seconds that each may take; None for the usual ten.

    Raises:
        ConfigError: a global file cannot be used.
    """
    settings = own_settings(environ, config_file)
    glance = Glance(readable_stat_paths(settings, config_file), answer_s=answer_s)
    return StatusReport(glance.supervisors, glance.lost(), problems=glance.problems)


def show_status(report: StatusReport, form: str, console: Console, environ: Mapping[str, str]) -> int:
    """Print a report; returns the exit status.

    Args:
        report: what there is to tell.
        form: ``json``, ``classic``, or ``auto``: a table on a terminal, else the original's lines.
        console: prints.
        environ: the environment variables.
    """
    if form == "json":
        console.write(status_json(report))
        return report.exit_status
    if form == "auto" and console.is_terminal and not report.is_empty:
        from stapsrv.control.terminal import print_table  # noqa: PLC0415 - only a person waits for it

        print_table(report, console, environ)
    else:
        for line in status_lines(report):
            console.say(line)
        console.complain_each((*down_reasons(report), *health_remarks(report)))
    console.complain_each(report.problems)
    return report.exit_status
