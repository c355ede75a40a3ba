"""Waits for descriptors that are always ready."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from kit.loops import every_loop

import stapsrv
from stapsrv.system.readiness import wait_readable, wait_writable

pytestmark = pytest.mark.anyio

ROUNDS = 20_000
"""Many times more than a cancellation takes."""


@every_loop
@pytest.mark.parametrize("wait", [wait_readable, wait_writable])
async def test_loop_over_a_descriptor_that_is_always_ready_can_be_cancelled(wait):
    rounds = 0
    ours, theirs = socket.socketpair()
    with ours, theirs, anyio.CancelScope() as scope:
        theirs.send(b"x")
        for rounds in range(ROUNDS):
            if rounds == 10:
                scope.cancel()
            await wait(ours)
    assert rounds < ROUNDS - 1


@every_loop
@pytest.mark.parametrize("wait", [wait_readable, wait_writable])
async def test_waiting_task_can_be_cancelled_by_another(wait):
    rounds = 0

    async def repeat() -> None:
        nonlocal rounds
        while rounds < ROUNDS:
            rounds += 1
            await wait(ours)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(repeat)
            while rounds < 10:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert rounds < ROUNDS


def test_nothing_waits_for_descriptors_elsewhere():
    (root,) = map(Path, stapsrv.__path__)
    waiting = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if re.search(r"anyio\.wait_(readable|writable)\b", path.read_text())
    }
    assert waiting == {"system/readiness.py"}
