"""Supervisors are asked together, and believed as to their own user only."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from pathlib import Path

import pytest
from kit.control import listening, listening_at
from kit.supervisor import FakeSupervisor, Then, server_info, supervisor_info

from stapsrv.control.client import status_call
from stapsrv.control.client.status_call import StatusCall, answer_all

# Longer than a test may take: nothing waits for it.
NEVER_S = 3600.0


def call_of(path: Path, user: str = "me", uid: int | None = None) -> StatusCall:
    return StatusCall(path, user=user, uid=os.geteuid() if uid is None else uid)


def test_all_silent_ones_together_cost_one_deadline_and_hold_up_nobody(tmp_path):
    silent = [call_of(tmp_path / f"{number}.sock") for number in range(8)]
    with contextlib.ExitStack() as opened, listening(FakeSupervisor(user="me"), tmp_path):
        for call in silent:
            opened.enter_context(
                listening_at(FakeSupervisor(user="me", raw=[], then=Then.SILENCE), call.path)
            )
        answering = call_of(tmp_path / "me" / "control.sock")
        began = time.monotonic()
        answer_all([*silent, answering], 5.0)
        # One after the other they would have taken forty seconds.
        assert time.monotonic() - began < 30
    assert [type(call.outcome) for call in silent] == [TimeoutError] * 8
    assert not isinstance(answering.outcome, Exception)
    assert answering.outcome["user"] == "me"


@pytest.mark.parametrize(
    "info",
    [
        supervisor_info("root"),
        supervisor_info("me", server_info(7, settings={"USER": "root", "NICKNAME": "native"})),
    ],
)
def test_supervisor_that_names_another_user_is_not_believed(tmp_path, info):
    answer = json.dumps({"jsonrpc": "2.0", "id": 1, "result": info}).encode() + b"\n"
    call = call_of(tmp_path / "socket")
    with listening_at(FakeSupervisor(raw=[answer]), tmp_path / "socket"):
        answer_all([call], 20)
    assert str(call.outcome) == "it speaks for another user"


def test_listener_of_another_user_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(status_call, "peer_uid", lambda _connection: os.geteuid() + 1)
    call = call_of(tmp_path / "me" / "control.sock")
    with listening(FakeSupervisor(user="me"), tmp_path):
        answer_all([call], NEVER_S)
    assert isinstance(call.outcome, ConnectionRefusedError)


def test_supervisor_that_is_too_busy_to_listen_is_asked_again(tmp_path, monkeypatch):
    path, tries = tmp_path / "socket", []
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))

        class Watched(StatusCall):
            def ask(self) -> int | None:
                tries.append(self)
                try:
                    return super().ask()
                except BlockingIOError:
                    listener.accept()[0].close()
                    raise

        call = Watched(path, user="me", uid=os.geteuid())
        answer = json.dumps({"jsonrpc": "2.0", "id": 1, "result": supervisor_info("me")}).encode() + b"\n"

        def serve() -> None:
            # The first is taken by the call's own first try.
            while len(tries) < 2:
                select.select([listener], [], [], 0.05)
            with listener.accept()[0] as asked:
                asked.recv(1024)
                asked.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        answer_all([call], 60)
        server.join(60)
    assert len(tries) == 2
    assert not isinstance(call.outcome, Exception)


def test_link_to_a_socket_is_not_followed(tmp_path):
    call = call_of(tmp_path / "link")
    (tmp_path / "link").symlink_to(tmp_path / "me" / "control.sock")
    with listening(FakeSupervisor(user="me"), tmp_path):
        answer_all([call], NEVER_S)
    assert isinstance(call.outcome, ConnectionRefusedError)


def test_answer_that_is_nested_deeply_is_no_crash(tmp_path):
    call = call_of(tmp_path / "socket")
    with listening_at(FakeSupervisor(raw=[b"[" * 200_000 + b"\n"]), tmp_path / "socket"):
        answer_all([call], 20)
    assert str(call.outcome) == "its answer cannot be understood"
