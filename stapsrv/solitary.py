"""The one server of a process without a supervisor, described as a supervisor would describe it."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from stapsrv import __version__
from stapsrv.config.settings import ServerSettings
from stapsrv.daemon_options import PROGRAM
from stapsrv.observe.logs import DroppedEntries
from stapsrv.observe.snapshot import Phase, Snapshot
from stapsrv.supervisor.lifecycle import State, Wanted
from stapsrv.supervisor.runtime import Host
from stapsrv.supervisor.server.compile_server import CompileServer
from stapsrv.supervisor.status import NO_WORK, ServerStatus, SupervisorStatus

_STATES = {Phase.STARTING: State.STARTING, Phase.RUNNING: State.SERVING, Phase.STOPPING: State.STOPPING}


class SolitaryServer:
    """What is known of the server.

    Args:
        host: what it runs on.
        settings: what it is to be.
        losses: of its log.

    Attributes:
        phase: how far it is.
        server: what serves, once it is there.
    """

    def __init__(self, host: Host, settings: ServerSettings, losses: DroppedEntries) -> None:
        self.phase = Phase.STARTING
        self.server: CompileServer | None = None
        self._host = host
        self._settings = settings
        self._losses = losses
        self._since = datetime.now(UTC)

    def look(self) -> Snapshot:
        """Return what is known of this process now."""
        server = self._status()
        host = self._host
        status = SupervisorStatus(
            pid=os.getpid(),
            user=host.user,
            version=__version__,
            stap_version=host.engine.stap.version,
            sandbox=host.engine.sandbox.name,
            containment=host.engine.sandbox.containment.value,
            cgroup=host.engine.sandbox.cgroup,
            since=self._since,
            compiles=server.work.running,
            max_compiles=self._settings.workers if self.server is None else self.server.service.pool.most,
            servers=(server,),
        )
        return Snapshot(
            phase=self.phase,
            status=status,
            tally=host.tally,
            lost_entries=self._losses.entries,
        )

    def _status(self) -> ServerStatus:
        pid, server = os.getpid(), self.server
        return ServerStatus(
            id=pid,
            # Not the id: that is another after each start, and this is what its metrics go by.
            nickname=self._settings.nickname or PROGRAM,
            settings=self._settings,
            origin=None,
            wanted=Wanted.UP,
            state=_STATES[self.phase],
            since=self._since,
            reason=None,
            port=server.address.port if server is not None else None,
            work=NO_WORK if server is None else server.work(),
        )
