"""The set of servers: commands, identity of settings, records, failures that stay where they are."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import anyio
import pytest
from kit.client import exchange, is_reset, request

from stapsrv.errors import ConfigError
from stapsrv.supervisor.lifecycle import State, Wanted
from stapsrv.supervisor.operations import ServerSpec
from stapsrv.supervisor.state.stat_files import FIRST_ID
from stapsrv.supervisor.supervisor import Supervisor

pytestmark = pytest.mark.anyio


def states(supervisor: Supervisor) -> dict[str, State]:
    return {server.nickname: server.state for server in supervisor.status().servers}


async def test_started_servers_serve_the_client(bench):
    async with bench.supervisor() as supervisor:
        specs = [ServerSpec(bench.settings(nickname="one")), ServerSpec(bench.settings(max_threads=1))]
        outcomes = await supervisor.start(specs)
        assert [(outcome.already, outcome.error) for outcome in outcomes] == [(False, None)] * 2
        for outcome in outcomes:
            answer = await exchange(outcome.server.port, request("-p4", release="6.1.0-test"))
            assert (answer.rc, answer.stdout) == (0, "compiled\n")
        assert states(supervisor) == {"one": State.SERVING, str(FIRST_ID + 1): State.SERVING}
        status = supervisor.status().servers[0]
        assert (status.work.done, status.work.failed, status.wanted) == (1, 0, Wanted.UP)
        assert status.work.certificate_expires is not None


async def test_equal_settings_are_the_same_server(bench):
    """Manual page, start: a server that is started already is left alone; nicknames do not count."""
    async with bench.supervisor() as supervisor:
        (first,) = await supervisor.start([ServerSpec(bench.settings(nickname="one"))])
        (again,) = await supervisor.start([ServerSpec(bench.settings(nickname="other"))])
        assert again.already
        assert again.server.id == first.server.id
        assert again.server.nickname == "one"


async def test_two_starts_at_once_make_one_server(bench):
    async with bench.supervisor() as supervisor:
        found = []

        async def start():
            found.extend(await supervisor.start([ServerSpec(bench.settings())]))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(start)
        assert {outcome.server.id for outcome in found} == {FIRST_ID}
        assert [outcome.error for outcome in found] == [None] * 5


async def test_nickname_of_another_server_is_refused(bench):
    async with bench.supervisor() as supervisor:
        await supervisor.start([ServerSpec(bench.settings(nickname="one"))])
        (outcome,) = await supervisor.start([ServerSpec(bench.settings(nickname="one", max_threads=1))])
        assert outcome.error == (
            f"nickname 'one' is that of server {FIRST_ID}, which has other settings; "
            "stop that one first, or give another nickname"
        )


async def test_servers_of_other_users_are_refused(bench):
    async with bench.supervisor() as supervisor:
        (outcome,) = await supervisor.start([ServerSpec(bench.settings(user="somebody-else"))])
        assert outcome.error == f"this supervisor runs as {bench.runtime.user}, not as somebody-else"


async def test_stop_forgets(bench):
    async with bench.supervisor() as supervisor:
        outcomes = await supervisor.start(
            [ServerSpec(bench.settings()), ServerSpec(bench.settings(max_threads=1))]
        )
        ids = [outcome.server.id for outcome in outcomes]
        assert set(bench.records()) == set(ids)
        (stopped,) = await supervisor.stop(ids[:1])
        assert (stopped.error, stopped.server.state) == (None, State.STOPPED)
        assert set(bench.records()) == set(ids[1:])
        assert [server.id for server in supervisor.status().servers] == ids[1:]
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", stopped.server.port))
    assert bench.records() == {}


async def test_ids_are_not_used_again(bench):
    async with bench.supervisor() as supervisor:
        for expected in (FIRST_ID, FIRST_ID + 1):
            (outcome,) = await supervisor.start([ServerSpec(bench.settings())])
            assert outcome.server.id == expected
            await supervisor.stop([outcome.server.id])


async def test_a_reload_tunes_servers_that_go_on_serving(bench):
    origin = "/etc/stap-server/conf.d/one.conf"
    async with bench.supervisor() as supervisor:
        (before,) = await supervisor.start([ServerSpec(bench.settings(), origin)])
        spec = ServerSpec(bench.settings(tuning={"answer_bytes": 4096, "connections": 1}), origin)
        changes = []
        (after,) = await supervisor.reload([spec], report=changes.append)
        assert (after.error, after.already) == (None, True)
        assert (after.server.id, after.server.port) == (before.server.id, before.server.port)
        assert State.STOPPING not in [change.state for change in changes]
        assert "MAX_CONNECTIONS=1\n" in bench.records()[after.server.id]
        with socket.create_connection(("127.0.0.1", after.server.port)):
            await bench.lines.wait("connection.accepted")
            assert await is_reset(after.server.port)


async def test_a_start_obeys_the_file_that_a_running_server_comes_from_and_no_other(bench):
    async with bench.supervisor() as supervisor:
        await supervisor.start([ServerSpec(bench.settings(), "/one.conf")])
        spec = bench.settings(tuning={"connections": 1})
        for origin, connections in ((None, 512), ("/other.conf", 512), ("/one.conf", 1)):
            (outcome,) = await supervisor.start([ServerSpec(spec, origin)])
            assert outcome.already
            assert outcome.server.settings.limits.connections == connections


async def test_limits_are_on_record_and_change_no_port(bench):
    async with bench.supervisor() as supervisor:
        (first,) = await supervisor.start([ServerSpec(bench.settings())])
        await supervisor.stop([first.server.id])
        (second,) = await supervisor.start([ServerSpec(bench.settings(tuning={"compile_s": 60.0}))])
        assert second.server.port == first.server.port
        record = bench.records()[second.server.id]
        assert "COMPILE_TIMEOUT=1m\n" in record
        assert "MAX_CONNECTIONS" not in record
        (bench.stat_path / "kept").write_text(record)
    (bench.stat_path / "kept").rename(bench.stat_path / f"{FIRST_ID + 9}.stat")
    async with bench.supervisor() as resumed:
        resumed.resume()
        (server,) = resumed.status().servers
        assert server.settings.limits.compile_s == 60.0


async def test_start_that_cannot_be_leaves_nothing(bench):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with bench.supervisor() as supervisor:
            good, bad = ServerSpec(bench.settings()), ServerSpec(bench.settings(port=port))
            started, failed = await supervisor.start([good, bad])
            assert started.error is None
            assert failed.error.startswith(f"port {port}: is in use by another program")
            assert states(supervisor) == {str(FIRST_ID): State.SERVING}
            assert set(bench.records()) == {FIRST_ID}


async def test_resume_takes_up_where_a_killed_supervisor_left(bench):
    with anyio.CancelScope() as killed:
        async with bench.supervisor() as supervisor:
            specs = [
                ServerSpec(bench.settings(nickname="one"), "/etc/one.conf"),
                ServerSpec(bench.settings(max_threads=1)),
            ]
            before = [outcome.server for outcome in await supervisor.start(specs)]
            killed.cancel()
            await anyio.lowlevel.checkpoint()
    assert set(bench.records()) == {server.id for server in before}
    async with bench.supervisor() as supervisor:
        supervisor.resume()
        outcomes = await supervisor.start(specs)
        assert all(outcome.error is None for outcome in outcomes)
        after = supervisor.status().servers
        resumed = [(server.id, server.nickname, server.port, server.origin) for server in after]
        assert resumed == [(server.id, server.nickname, server.port, server.origin) for server in before]
        (fresh,) = await supervisor.start([ServerSpec(bench.settings(max_threads=7))])
        assert fresh.server.id > before[-1].id


async def test_resumed_server_is_as_drained_as_it_was(bench):
    specs = [ServerSpec(bench.settings(nickname="one")), ServerSpec(bench.settings(max_threads=1))]
    with anyio.CancelScope() as killed:
        async with bench.supervisor() as supervisor:
            await supervisor.start(specs)
            await supervisor.drain([FIRST_ID])
            killed.cancel()
            await anyio.lowlevel.checkpoint()
    async with bench.supervisor() as supervisor:
        supervisor.resume()
        # At once: it may be killed again before it serves.
        assert "drained" in bench.records()[FIRST_ID]
        first, second = await supervisor.start(specs, as_configured=True)
        await supervisor._servers[FIRST_ID].wait_for({State.DRAINING})
        assert (first.error, second.error, second.server.state) == (None, None, State.SERVING)
        await supervisor.undrain([FIRST_ID])
        assert "drained" not in bench.records()[FIRST_ID]


async def test_resume_of_a_server_whose_log_cannot_be_opened_harms_no_other(bench):
    with anyio.CancelScope() as killed:
        async with bench.supervisor() as supervisor:
            specs = [
                ServerSpec(bench.settings(nickname="one", log=Path("/gone/log"))),
                ServerSpec(bench.settings(nickname="two", max_threads=1)),
            ]
            await supervisor.start(specs)
            killed.cancel()
            await anyio.lowlevel.checkpoint()
    bench.unwritable.add(Path("/gone/log"))
    async with bench.supervisor() as supervisor:
        supervisor.resume()
        (outcome,) = await supervisor.start(specs[1:])
        assert outcome.error is None
        await supervisor._servers[FIRST_ID].wait_for({State.FAILED})
        assert states(supervisor) == {"one": State.FAILED, "two": State.SERVING}


async def test_configured_server_that_is_refused_is_logged_and_in_the_status(bench):
    async with bench.supervisor() as supervisor:
        specs = [
            ServerSpec(bench.settings(nickname="web"), "/a.conf"),
            ServerSpec(bench.settings(nickname="web", max_threads=1), "/b.conf"),
        ]
        await supervisor.start(specs)
        (reason,) = supervisor.status().refused
        assert reason.startswith(
            f"/b.conf: nickname 'web' is that of server {FIRST_ID}, which has other settings"
        )
        assert bench.lines.reasons("configuration.refused") == [reason]
        await supervisor.stop([FIRST_ID])
        await supervisor.start(specs[1:])
        assert supervisor.status().refused == ()


async def test_a_reload_gives_no_nickname_to_two_servers(bench):
    async with bench.supervisor() as supervisor:
        same = ServerSpec(bench.settings(nickname="same"), "/same.conf")
        gone = ServerSpec(bench.settings(nickname="gone", max_threads=1), "/gone.conf")
        await supervisor.start([same, gone, ServerSpec(bench.settings(nickname="by-hand", max_threads=3))])
        renamed = ServerSpec(bench.settings(nickname="by-hand"), "/same.conf")
        _stopped, refused = await supervisor.reload([renamed])
        assert refused.error.startswith("nickname 'by-hand' is that of server ")
        assert set(states(supervisor)) == {"same", "by-hand"}
        assert len(supervisor.status().refused) == 1
        await supervisor.start([gone])
        (_stopped, done) = await supervisor.reload(
            [ServerSpec(bench.settings(nickname="gone"), "/same.conf")]
        )
        assert done.error is None
        assert set(states(supervisor)) == {"gone", "by-hand"}
        assert supervisor.status().refused == ()


async def test_a_reload_leaves_a_drained_server_drained_and_a_start_does_not(bench):
    async with bench.supervisor() as supervisor:
        spec = ServerSpec(bench.settings(nickname="web"), "/web.conf")
        (outcome,) = await supervisor.start([spec])
        await supervisor.drain([outcome.server.id])
        (reloaded,) = await supervisor.reload([spec])
        assert (reloaded.error, reloaded.server.state) == (None, State.DRAINING)
        assert await is_reset(outcome.server.port)
        (started,) = await supervisor.start([spec])
        assert started.server.state is State.SERVING


async def test_damaged_record_is_put_aside_and_told(bench):
    (bench.stat_path / f"{FIRST_ID}.stat").write_text("# stapsrv server\nARCH=x86_64\nPO")
    async with bench.supervisor() as supervisor:
        supervisor.resume()
        assert supervisor.status().servers == ()
    assert (bench.stat_path / f"{FIRST_ID}.damaged").exists()
    (reason,) = bench.lines.reasons("stat_file.damaged")
    assert f"{FIRST_ID}.stat:3" in reason


async def test_reload_changes_the_difference_only(bench):
    async with bench.supervisor() as supervisor:
        same = ServerSpec(bench.settings(nickname="same"), "same.conf")
        gone = ServerSpec(bench.settings(nickname="gone", max_threads=1), "gone.conf")
        by_hand = ServerSpec(bench.settings(nickname="by-hand", max_threads=3))
        broken = ServerSpec(bench.settings(nickname="broken", max_threads=4), "broken.conf")
        await supervisor.start([same, gone, by_hand, broken])
        before = {server.nickname: server for server in supervisor.status().servers}
        renamed = ServerSpec(bench.settings(nickname="renamed"), "same.conf")
        new = ServerSpec(bench.settings(nickname="new", max_threads=2), "new.conf")
        await supervisor.reload([renamed, new], unreadable={"broken.conf"})
        after = {server.nickname: server for server in supervisor.status().servers}
        assert set(after) == {"renamed", "new", "by-hand", "broken"}
        assert after["renamed"].id == before["same"].id
        assert after["renamed"].since == before["same"].since
        assert "renamed" in bench.records()[after["renamed"].id]


async def test_auto_end_when_the_last_server_is_gone(bench):
    ended = anyio.Event()
    async with bench.supervisor(auto_end=True) as supervisor:
        (outcome,) = await supervisor.start([ServerSpec(bench.settings())])
        assert not supervisor._ending.is_set()
        await supervisor.restart([outcome.server.id])
        assert not supervisor._ending.is_set()
        await supervisor.stop([outcome.server.id])
        assert supervisor._ending.is_set()
        ended.set()


async def test_auto_end_when_nothing_could_be_started(bench, break_prepare):
    async with bench.supervisor(auto_end=True) as supervisor:
        break_prepare(ConfigError("impossible"))
        (outcome,) = await supervisor.start([ServerSpec(bench.settings())])
        assert outcome.error == "impossible"
        assert supervisor._ending.is_set()


async def test_nothing_is_started_once_the_end_has_begun(bench):
    async with bench.supervisor() as supervisor:
        (running,) = await supervisor.start([ServerSpec(bench.settings())])
        supervisor.end()
        outcomes = await supervisor.start(
            [ServerSpec(bench.settings()), ServerSpec(bench.settings(max_threads=1))]
        )
        outcomes += await supervisor.restart([running.server.id])
        assert [outcome.error for outcome in outcomes] == ["the supervisor is ending"] * 3


async def test_unwritable_status_directory_is_one_clear_line(bench):
    bench.stat_path.rmdir()
    async with bench.supervisor() as supervisor:
        (outcome,) = await supervisor.start([ServerSpec(bench.settings())])
        assert outcome.error == (
            f"status directory {bench.stat_path}: cannot be written: No such file or directory; "
            "let the server's user write there, or set STAT_PATH to a directory where it may"
        )


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EMFILE, errno.EACCES])
async def test_record_that_cannot_be_written_costs_the_record_alone(bench, monkeypatch, error):
    """What was on record before stays whole; the server serves, and is recorded when that can be again."""
    async with bench.supervisor() as supervisor:
        (outcome,) = await supervisor.start([ServerSpec(bench.settings())])
        before = bench.records()

        def refuse(*_arguments: object, **_options: object) -> None:
            raise OSError(error, os.strerror(error))

        with monkeypatch.context() as patched:
            patched.setattr("stapsrv.supervisor.state.stat_files.os.fchmod", refuse)
            (again,) = await supervisor.restart([outcome.server.id])
        assert (again.error, again.server.state) == (None, State.SERVING)
        assert bench.records() == before
        assert sorted(path.suffix for path in bench.stat_path.iterdir()) == [".stat"]
        assert os.strerror(error) in bench.lines.reasons("stat_file.unwritable")[0]
        await supervisor.restart([outcome.server.id])
        assert len(bench.records()) == 1
