"""A host for supervisors: real listeners, certificates and records; a stand-in for stap."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from stapsrv.compile.cache.stap_cache import CACHES_DIRECTORY
from stapsrv.compile.cache.watcher import InputWatcher
from stapsrv.compile.engine.base import EngineHost
from stapsrv.compile.engine.installed_options import InstalledOptions
from stapsrv.compile.engine.local import LocalEngine
from stapsrv.compile.engine.stap import StapProgram
from stapsrv.compile.engine.workspace import Workspace
from stapsrv.compile.memory import RequestMemory
from stapsrv.compile.pool import WorkerPool
from stapsrv.config.settings import HostDefaults, ServerSettings
from stapsrv.errors import ConfigError
from stapsrv.identity.key_types import KeyType
from stapsrv.identity.store import IdentityStore, open_watcher
from stapsrv.sandbox.sandbox import Sandbox
from stapsrv.supervisor.activation import PassedSockets
from stapsrv.supervisor.advertise import ServerAdvertiser
from stapsrv.supervisor.own_compiles import OwnCompiles
from stapsrv.supervisor.runtime import Runtime
from stapsrv.supervisor.server.admission import ConnectionBudget
from stapsrv.supervisor.state.ports import PortMemory
from stapsrv.supervisor.state.stat_files import StatFiles
from stapsrv.supervisor.supervisor import SavedState, Supervisor
from stapsrv.supervisor.warmup import WarmMemory, Warmup
from stapsrv.system.directory_watcher import DirectoryWatcher

from .service import LogLines
from .stap import make_stap

USER = pwd.getpwuid(os.geteuid()).pw_name


class Bench:
    """Makes supervisors over one directory, as one process after another would."""

    def __init__(
        self,
        directory: Path,
        identity: Path,
        build_tree: Path,
        workspace: Workspace,
        watch: DirectoryWatcher[Path],
    ) -> None:
        self.stat_path = directory / "stat"
        self.stat_path.mkdir()
        self.lines = LogLines()
        self.build_tree = build_tree
        self.identity = identity
        self.opened: list[Path] = []
        self.unwritable: set[Path] = set()
        self.defaults = HostDefaults(arch="x86_64", release=str(build_tree), user=USER, log=directory / "log")
        environ = {"SYSTEMTAP_DIR": str(directory / "systemtap"), "PATH": os.environ["PATH"]}
        stap = StapProgram(make_stap(directory / "stap", "echo compiled"), "4.8")
        engine = LocalEngine(stap, Sandbox(None), workspace, environ=environ, home=Path("/nobody"))
        self.first_delay_s = 3600.0
        self._engine, self._environ, self._directory, self._watch = engine, environ, directory, watch
        self.inputs = InputWatcher(log=LogLines().log)
        self.runtime = self.new_runtime()

    def new_runtime(self) -> Runtime:
        """Return what the next process has."""
        memory = WarmMemory(self._directory / "warm", self._directory / "systemtap" / CACHES_DIRECTORY)
        return Runtime(
            user=USER,
            engine=self._engine,
            engines=EngineHost(
                local=self._engine,
                environ=self._environ,
                log=self.lines.log,
                health_changed=lambda _health: None,
                tasks=None,
            ),
            options=InstalledOptions(self._engine.stap.path, {}),
            mok_kind=KeyType.RSA,
            identities=IdentityStore(self._environ, watcher=self._watch),
            warmup=Warmup(
                OwnCompiles(self._engine, None), memory, self.inputs, first_delay_s=self.first_delay_s
            ),
            sockets=PassedSockets(),
            cache=None,
            connections=ConnectionBudget(1000),
            memory=RequestMemory.of(1 << 30),
            signers=WorkerPool(1, queue_length=None),
        )

    def settings(self, *, warmup: bool = False, **changes: object) -> ServerSettings:
        """Return settings that can be served; each call's are equal unless changed."""
        tuning = {"warmup": warmup, **changes.pop("tuning", {})}
        return ServerSettings(ssl=self.identity, tuning=tuning, **changes).resolved(self.defaults)

    def records(self) -> dict[int, str]:
        return {int(path.stem): path.read_text() for path in self.stat_path.glob("*.stat")}

    @contextlib.asynccontextmanager
    async def supervisor(
        self, *, auto_end: bool = False, max_compiles: int = 2, advertiser: ServerAdvertiser | None = None
    ) -> AsyncIterator[Supervisor]:
        """Run a supervisor; what it hosts is stopped at the end of the block."""
        made = Supervisor(
            self.runtime,
            SavedState(StatFiles(self.stat_path), PortMemory(self.stat_path.parent / "ports")),
            defaults=self.defaults,
            open_log=self._open_log,
            log=self.lines.log,
            max_compiles=max_compiles,
            auto_end=auto_end,
            advertiser=advertiser or ServerAdvertiser(None, log=self.lines.log),
        )
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.inputs.run)
                async with anyio.create_task_group() as supervising:
                    await supervising.start(made.run)
                    yield made
                    made.end()
                tasks.cancel_scope.cancel()

    def _open_log(self, path: Path, _style: object) -> object:
        self.opened.append(path)
        if path in self.unwritable:
            raise ConfigError("cannot be written", where=f"log file {path}")
        return self.lines.log


@pytest.fixture
def bench(tmp_path: Path, identity: Path, build_tree: Path, quick_keys: None):
    workspace = Workspace.open(tmp_path)
    with open_watcher(None) as watch:
        assert watch is not None
        bench = Bench(tmp_path, identity, build_tree, workspace, watch)
        yield bench
        bench.inputs.close()
    workspace.close()
