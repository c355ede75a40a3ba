"""``status --watch``: what programs and people read, and its end by Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from kit.control import listening
from kit.live import ended
from kit.supervisor import FIRST_ID, FakeSupervisor, server_status, supervisor_status

from stapsrv.compile.stats import Outcome
from stapsrv.control.cli.commands.watch import change_lines
from stapsrv.control.client.sync import SyncControlClient
from stapsrv.control.protocol.live_fields import updated
from stapsrv.control.server.watching import update_info
from stapsrv.observe.feed import Update
from stapsrv.observe.live import LiveState
from stapsrv.rejection import RejectReason
from stapsrv.supervisor.lifecycle import State


@contextmanager
def watching(command_line, *words: str):
    """Run ``status --watch``; at the end of the block it is interrupted."""
    command = [sys.executable, "-m", "stapsrv.control.cli.main", "status", "--watch", *words]
    with subprocess.Popen(
        [*command, "-c", command_line.directory / "global.conf"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=command_line.environ,
    ) as child:
        yield child
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
        assert (child.returncode, err) == (130, "")


def test_programs_get_an_object_a_line(command_line, user):
    with listening(FakeSupervisor(server_status(FIRST_ID), user=user), command_line.stat_path):
        with watching(command_line, "--json") as child:
            snapshot = json.loads(child.stdout.readline())
            assert (snapshot["user"], snapshot["kind"]) == (user, "snapshot")
            with SyncControlClient(command_line.stat_path / user / "control.sock") as client:
                client.command("drain", [FIRST_ID])
            changes = json.loads(child.stdout.readline())
            assert changes["kind"] == "changes"
            assert changes["servers"][str(FIRST_ID)]["state"] == "draining"


def test_end_of_the_supervisor_is_a_line_and_its_successor_a_snapshot(command_line, user):
    with listening(FakeSupervisor(user=user), command_line.stat_path):
        child = watching(command_line, "--json")
        running = child.__enter__()
        running.stdout.readline()
    lost = json.loads(running.stdout.readline())
    assert (lost["user"], lost["kind"], lost["reason"]) == (user, "lost", "the supervisor has ended")
    with listening(FakeSupervisor(user=user), command_line.stat_path):
        assert json.loads(running.stdout.readline())["kind"] == "snapshot"
        child.__exit__(None, None, None)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_full_disk_ends_it_with_one_line(command_line, user):
    command = [sys.executable, "-m", "stapsrv.control.cli.main", "status", "--watch", "--json"]
    with listening(FakeSupervisor(user=user), command_line.stat_path), open("/dev/full", "w") as full:
        ran = subprocess.run(
            [*command, "-c", command_line.directory / "global.conf"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=command_line.environ,
            timeout=60,
            check=False,
        )
    assert ran.returncode == 1
    assert ran.stderr == "stap-server: standard output: No space left on device\n"


def info(*servers, scripts=None, **recent):
    state = LiveState(
        supervisor=supervisor_status(scripts=scripts or {}),
        servers={server.id: server for server in servers},
        running={},
        recent={int(number[1:]): request for number, request in recent.items()},
        history={},
    )
    return updated(None, update_info(Update(datetime(2026, 2, 3, 4, 5, 7, tzinfo=UTC), state)))


def test_people_read_a_line_for_each_change_of_state_and_each_request(monkeypatch):
    first = info(server_status(7), _1=ended())
    assert [line[9:] for line in change_lines(None, first)] == ["7: serving on port 7"]
    refused = ended(Outcome.REFUSED, rejection=RejectReason.QUEUE_LENGTH, source=None, server=8)
    second = info(server_status(7, State.DRAINING), server_status(9), _1=ended(), _2=ended(), _3=refused)
    assert [line[9:] for line in change_lines(first, second)] == [
        "7: draining",
        "9: serving on port 9",
        "7: 192.0.2.1:4242 6.1.0-test answered rc=0 compiled 2.50 s",
        f"8: 192.0.2.1:4242 6.1.0-test refused rc=0 {RejectReason.QUEUE_LENGTH} 2.50 s",
    ]
    assert [line[9:] for line in change_lines(second, info(server_status(9)))] == ["7: gone"]


def test_people_read_what_the_scripts_for_a_release_came_to_when_that_changes():
    first = info(scripts={"6.1": {"ok": 1}, "6.9": {"ok": 1}})
    second = info(scripts={"6.1": {"ok": 1}, "6.9": {"fails": 1}})
    assert [line[9:] for line in change_lines(None, first)] == [
        "Scripts for 6.1: 1 ok",
        "Scripts for 6.9: 1 ok",
    ]
    assert [line[9:] for line in change_lines(first, second)] == ["Scripts for 6.9: 1 fails"]
    assert list(change_lines(second, second)) == []
