"""Signals as values, on both event loops."""

from __future__ import annotations

import os
import signal

import anyio
import pytest
from kit.loops import every_loop

from stapsrv.system.signals import signals_received

pytestmark = [pytest.mark.anyio, every_loop]


@pytest.fixture(autouse=True)
def handler():
    """The block leaves the signal ignored."""
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


async def test_signals_are_received_in_order():
    before = signal.getsignal(signal.SIGUSR2)
    try:
        with signals_received(signal.SIGUSR1, signal.SIGUSR2) as receive, anyio.fail_after(60):
            received = receive()
            os.kill(os.getpid(), signal.SIGUSR1)
            assert await anext(received) is signal.SIGUSR1
            os.kill(os.getpid(), signal.SIGUSR2)
            assert await anext(received) is signal.SIGUSR2
            await received.aclose()
    finally:
        signal.signal(signal.SIGUSR2, before)


async def test_signal_sent_twice_before_it_is_received_comes_once():
    with signals_received(signal.SIGUSR1) as receive:
        received = receive()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
        with anyio.fail_after(60):
            assert await anext(received) is signal.SIGUSR1
        with anyio.move_on_after(0.01) as scope:
            await anext(received)
        assert scope.cancelled_caught
        await received.aclose()


async def test_signal_after_the_block_is_ignored():
    with signals_received(signal.SIGUSR1):
        pass
    os.kill(os.getpid(), signal.SIGUSR1)


async def test_signal_between_two_receivers_waits_for_the_second():
    with signals_received(signal.SIGUSR1) as receive, anyio.fail_after(60):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
            received = receive()
            assert await anext(received) is signal.SIGUSR1
            await received.aclose()
