"""``status`` of servers that are named or described, which takes finding out who is meant."""

from __future__ import annotations

from collections.abc import Mapping

from stapsrv.control.invocation import Invocation
from stapsrv.control.output import StatusReport, title
from stapsrv.control.scene import Scene
from stapsrv.control.selection import Deed, select
from stapsrv.control.wireform import settings_info


def status_of_some(invocation: Invocation, environ: Mapping[str, str]) -> StatusReport:
    """Ask about the servers that a command line names.

    Raises:
        ConfigError: a global file, or the configuration directory, cannot be used.
    """
    scene = Scene(invocation, environ)
    running = [*(server.running for server in scene.found), *scene.lost_servers]
    configured = scene.configured if scene.names_unknown(running) else []
    selection = select(invocation, running=running, configured=configured, host=scene.host)
    meant = [target.server for target in selection.targets if target.deed is Deed.REPORT]
    remarks = []
    for target in selection.targets:
        if target.problem is not None:
            remarks.append(target.problem)
        elif target.deed is Deed.ABSENT and target.settings is not None:
            remarks.append(f"{title(settings_info(target.settings))} is not running")
    supervisors = scene.supervisors
    for supervisor in supervisors:
        supervisor["servers"] = [
            server.info
            for server in scene.found
            if server.supervisor is supervisor and server.running in meant
        ]
    return StatusReport(
        [supervisor for supervisor in supervisors if supervisor["servers"]],
        [lost for lost, server in zip(scene.lost, scene.lost_servers, strict=True) if server in meant],
        remarks,
        problems=scene.problems,
        exit_status=selection.exit_status or None,
    )
