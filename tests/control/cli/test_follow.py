"""Following supervisors: news in order, the end of one, its successor, and no thread left behind."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import pytest
from kit.control import listening_at
from kit.supervisor import FakeSupervisor, server_status

from stapsrv.control.cli import follow
from stapsrv.control.cli.follow import Follower, Lost, Seen
from stapsrv.control.client.sync import SyncControlClient


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr(follow, "_LOOK_S", 0.02)


@pytest.fixture
def path(tmp_path) -> Path:
    (tmp_path / "me").mkdir()
    return tmp_path / "me" / "control.sock"


def test_supervisor_is_followed_across_its_restart(path):
    news: queue.Queue[Seen | Lost] = queue.Queue()
    before = threading.active_count()
    with Follower(lambda: [path], news.put):
        with listening_at(FakeSupervisor(server_status(7)), path):
            first = news.get(timeout=30)
            assert (first.user, first.may_command, first.update["kind"]) == ("me", True, "snapshot")
            with SyncControlClient(path) as client:
                client.command("drain", [7])
            assert news.get(timeout=30).update["servers"]["7"]["state"] == "draining"
        assert news.get(timeout=30) == Lost("me", "the supervisor has ended")
        with listening_at(FakeSupervisor(server_status(8)), path):
            assert list(news.get(timeout=30).update["servers"]) == ["8"]
            # The end of the block does not wait for the supervisor's.
            follower_ends = threading.active_count()
    assert follower_ends > before
    assert threading.active_count() == before


def test_reason_of_one_that_cannot_be_followed_is_told_once(path):
    news: queue.Queue[Seen | Lost] = queue.Queue()
    looks = threading.Semaphore(0)

    def find() -> list[Path]:
        looks.release()
        return [path]

    with listening_at(FakeSupervisor(raw=[b"nonsense\n"] * 9), path), Follower(find, news.put):
        lost = news.get(timeout=30)
        for _ in range(3):
            assert looks.acquire(timeout=30)
    assert isinstance(lost, Lost)
    assert "cannot be read" in lost.reason
    assert [one for one in iter_queue(news) if one == lost] == []


def iter_queue(news: queue.Queue):
    while not news.empty():
        yield news.get()
