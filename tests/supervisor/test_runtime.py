"""How a server is made ready: its port, and what its settings name."""

from __future__ import annotations

import socket

import pytest

from stapsrv.compile.pool import WorkerPool
from stapsrv.errors import ConfigError, IdentityError
from stapsrv.identity.store import IdentityStore
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.sandbox import Sandbox
from stapsrv.supervisor import runtime
from stapsrv.supervisor.operations import ServerSpec
from stapsrv.supervisor.server.listener import open_listeners

pytestmark = pytest.mark.anyio


async def prepare(bench, settings):
    shared = WorkerPool(1, queue_length=None)
    return await bench.runtime.prepare(settings, bench.lines.log, last_port=None, shared=shared)


async def test_port_given_at_random_is_asked_for_again_by_the_next_supervisor(bench):
    ports = []
    for _ in range(2):
        async with bench.supervisor() as supervisor:
            (outcome,) = await supervisor.start([ServerSpec(bench.settings(nickname="one"))])
            ports.append(outcome.server.port)
    assert ports[0] == ports[1]


async def test_log_names_a_better_sandbox_that_is_installed_and_fails(bench):
    bench.runtime.engine.sandbox = Sandbox(Backend.LANDLOCK, failures=("bubblewrap: no",))
    async with bench.supervisor() as supervisor:
        await supervisor.start([ServerSpec(bench.settings())])
        status = supervisor.status()
    (event,) = (entry for entry in bench.lines.entries if entry["event"] == "sandbox.failed")
    assert (event["level"], event["failure"]) == ("warning", "bubblewrap: no")
    assert status.sandbox_failures == ("bubblewrap: no",)


async def test_remembered_port_that_is_taken_is_no_hindrance(bench):
    async with bench.supervisor() as supervisor:
        (before,) = await supervisor.start([ServerSpec(bench.settings())])
        await supervisor.stop([before.server.id])
        with socket.create_server(("127.0.0.1", before.server.port)):
            (after,) = await supervisor.start([ServerSpec(bench.settings())])
            assert after.error is None
            assert after.server.port != before.server.port


@pytest.mark.parametrize(("option", "setting"), [("-R", "runtime"), ("-I", "include")])
async def test_missing_directory_is_refused_by_its_option(bench, option, setting):
    missing = str(bench.stat_path / "missing")
    value = missing if setting == "runtime" else (missing,)
    settings = bench.settings(**{setting: value})
    with pytest.raises(ConfigError, match=f"^{option} {missing}: is not a directory"):
        await prepare(bench, settings)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SYSTEMTAP_MOK_KEY_TYPE", "bogus", "is no kind of key; write one of rsa"),
        ("SYSTEMTAP_SIGN_KEY_TYPE", "ml-dsa-65", "clients before 5.6 cannot connect to a server with such"),
    ],
)
async def test_kind_of_key_that_cannot_be_used_is_refused_before_anything_starts(variable, value, words):
    with pytest.raises(ConfigError, match=f"^{variable}={value}: {words}"):
        async with runtime.open_runtime({variable: value}):
            pass


async def test_server_that_cannot_be_made_ready_leaves_no_listener(bench, monkeypatch):
    """Whatever fails once it listens; the error with its frames must not be what keeps the socket open."""
    opened = []

    def open_and_note(*arguments):
        listeners = open_listeners(*arguments)
        opened.extend(listeners)
        return listeners

    async def refuse(*_arguments):
        assert all(listener.fileno() != -1 for listener in opened)
        raise IdentityError("no certificate")

    monkeypatch.setattr(runtime, "open_listeners", open_and_note)
    monkeypatch.setattr(IdentityStore, "get", refuse)
    with pytest.raises(IdentityError):
        await prepare(bench, bench.settings())
    assert opened
    assert all(listener.fileno() == -1 for listener in opened)
