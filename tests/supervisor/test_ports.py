"""The memory of ports given at random."""

from __future__ import annotations

import pytest

from stapsrv.config.settings import ServerSettings
from stapsrv.supervisor.ports import PortMemory

ONE, TWO = ServerSettings(releases=("6.1",)), ServerSettings(releases=("6.2",))


def test_remembered_by_the_next_process(tmp_path):
    memory = PortMemory(tmp_path / "new" / "ports")
    memory.remember(ONE, 5001)
    memory.remember(TWO, 5002)
    memory.remember(ONE, 5003)
    after = PortMemory(tmp_path / "new" / "ports")
    assert (after.recall(ONE), after.recall(TWO), after.recall(ServerSettings())) == (5003, 5002, None)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ports"]


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b'{"x": "y", "z": 0, "w": 65536}', b"\xff"])
def test_damaged_file_is_forgotten(tmp_path, content):
    (tmp_path / "ports").write_bytes(content)
    memory = PortMemory(tmp_path / "ports")
    assert memory.recall(ONE) is None
    memory.remember(ONE, 5001)
    assert PortMemory(tmp_path / "ports").recall(ONE) == 5001


def test_memory_is_bounded(tmp_path):
    memory = PortMemory(tmp_path / "ports")
    for number in range(600):
        memory.remember(ServerSettings(releases=(f"6.{number}",)), 5000)
    assert memory.recall(ServerSettings(releases=("6.99",))) is None
    assert memory.recall(ServerSettings(releases=("6.100",))) == 5000


def test_unwritable_place_costs_the_memory_alone(tmp_path):
    (tmp_path / "file").write_text("")
    memory = PortMemory(tmp_path / "file" / "ports")
    memory.remember(ONE, 5001)
    assert memory.recall(ONE) == 5001
