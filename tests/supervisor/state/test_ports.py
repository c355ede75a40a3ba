"""The memory of ports given at random."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from stapsrv.config.settings import ServerSettings
from stapsrv.supervisor.state.ports import PortMemory
from stapsrv.system.directory_watcher import DirectoryWatcher
from stapsrv.system.json_file import JsonFile

pytestmark = pytest.mark.anyio

ONE, TWO = ServerSettings(releases=("6.1",)), ServerSettings(releases=("6.2",))


@contextlib.asynccontextmanager
async def remembering(file: Path, **options: float) -> AsyncIterator[PortMemory]:
    """Have a memory for as long as one process lives."""
    memory = PortMemory(file, **options)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            await tasks.start(memory.run)
            yield memory
            tasks.cancel_scope.cancel()


async def test_remembered_by_the_next_process(tmp_path):
    async with remembering(tmp_path / "new" / "ports") as memory:
        memory.remember(ONE, 5001)
        memory.remember(TWO, 5002)
        memory.remember(ONE, 5003)
    async with remembering(tmp_path / "new" / "ports") as after:
        assert (after.recall(ONE), after.recall(TWO), after.recall(ServerSettings())) == (5003, 5002, None)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ports"]


async def test_remembered_though_the_process_is_killed(tmp_path):
    """It is written at once, and not when the process ends."""
    async with remembering(tmp_path / "ports") as memory:
        with contextlib.closing(DirectoryWatcher[None]()) as watcher:
            watcher.watch_directories(None, [tmp_path])
            memory.remember(ONE, 5001)
            while not (tmp_path / "ports").exists():
                await watcher.wait_changed()
        async with remembering(tmp_path / "ports") as after:
            assert after.recall(ONE) == 5001


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b'{"x": "y", "z": 0, "w": 65536}', b"\xff"])
async def test_damaged_file_is_forgotten(tmp_path, content):
    (tmp_path / "ports").write_bytes(content)
    async with remembering(tmp_path / "ports") as memory:
        assert memory.recall(ONE) is None
        memory.remember(ONE, 5001)
    async with remembering(tmp_path / "ports") as after:
        assert after.recall(ONE) == 5001


async def test_memory_is_bounded(tmp_path):
    async with remembering(tmp_path / "ports") as memory:
        for number in range(600):
            memory.remember(ServerSettings(releases=(f"6.{number}",)), 5000)
        assert memory.recall(ServerSettings(releases=("6.99",))) is None
        assert memory.recall(ServerSettings(releases=("6.100",))) == 5000


async def test_unwritable_place_costs_the_memory_alone(tmp_path):
    (tmp_path / "file").write_text("")
    async with remembering(tmp_path / "file" / "ports") as memory:
        memory.remember(ONE, 5001)
        assert memory.recall(ONE) == 5001


@pytest.mark.parametrize("call", ["read", "write"])
async def test_file_that_hangs_costs_the_memory_alone(tmp_path, monkeypatch, call):
    gate = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(JsonFile, call, lambda *_arguments: gate.wait())
        async with remembering(tmp_path / "ports", timeout_s=0.1) as memory:
            assert memory.recall(ONE) is None
            memory.remember(ONE, 5001)
            assert memory.recall(ONE) == 5001
    gate.set()
