"""Processes that stand by: they are what would have been started, and are taken only where that is so."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import anyio
import attrs
import pytest
from kit.stap import OBEDIENT, make_stap

from stapsrv.compile.containing import Sandbox, find_sandbox
from stapsrv.compile.engine import CompileJob
from stapsrv.compile.local_engine import LocalEngine
from stapsrv.compile.standby import Kind, Standby, Standbys
from stapsrv.compile.translator import StapProgram
from stapsrv.compile.wire import CompileRequest
from stapsrv.compile.workspace import Workspace
from stapsrv.compile.zips import RequestFile
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError, TranslatorError
from stapsrv.observe.children import own_children
from stapsrv.refusal import Refusal
from stapsrv.sandbox.mechanisms import Mechanism

pytestmark = pytest.mark.anyio

RELEASE = ServedRelease("6.1", "x86_64", "6.1", Path("/nowhere"))
HOW = "tr '\\0' ' ' </proc/1/cmdline | grep -c 'becomes [i]t'"
"""A script that says 1 where it runs in what stood by, and else 0."""


class Bench:
    """An engine with a stand-in that does what each script says, and with what stands by for it."""

    def __init__(self, engine: LocalEngine, place: Path) -> None:
        self.engine = engine
        self.place = place
        self.settings = ServerSettings(tuning={"kill_grace_s": 0.2})
        self._send, self._prepared = anyio.create_memory_object_stream[Standby](10)
        self.begun = 0
        self._prepare = engine._stand_by
        self._discard = engine._discard
        self._gone: dict[Path, anyio.Event] = {}
        self._kinds: dict[Path, Kind] = {}
        engine.standbys = Standbys(1, prepare=self._tell, discard=self._tell_gone, quiet_s=0.0)

    def close(self) -> None:
        self._send.close()
        self._prepared.close()

    async def _tell(self, kind: Kind) -> Standby | None:
        self.begun += 1
        standby = await self._prepare(kind)
        if standby is not None:
            # Shielded: its keeper has not got it yet.
            with anyio.CancelScope(shield=True):
                await anyio.wait_readable(standby.tree.stdout.fd)
            self._kinds[standby.directory] = kind
            self._send.send_nowait(standby)
        return standby

    async def _tell_gone(self, directory: Path) -> None:
        await self._discard(directory)
        self._gone.setdefault(directory, anyio.Event()).set()

    async def wait_gone(self, standby: Standby) -> None:
        """Wait until one has ended, and its directory is removed."""
        with anyio.fail_after(20):
            await self._gone.setdefault(standby.directory, anyio.Event()).wait()
        assert standby.tree.has_ended
        assert not standby.directory.exists()

    async def have_ready(self) -> Standby:
        """Have one stand by for jobs with the settings of now."""
        await self.how()
        ready = await self.next_ready()
        # What came for the settings of before may wait still.
        wanted = Kind(RELEASE, self.settings)
        while self._kinds[ready.directory] != wanted or ready not in self.engine.standbys.waiting:
            ready = await self.next_ready()
        return ready

    async def next_ready(self) -> Standby:
        """Wait until another one stands by; each is told of once."""
        with anyio.fail_after(20):
            return await self._prepared.receive()

    async def run(self, script: str, *, deadline_s: float = 30.0, background: bool = False, **request):
        made = {"arguments": (b"-e", script.encode()), "files": (), "directories": (b"script",), **request}
        job = CompileJob(
            request=CompileRequest(release="6.1", arch="x86_64", **made),
            release=RELEASE,
            settings=self.settings,
            background=background,
        )
        return await self.engine.run(job, deadline_s=deadline_s)

    async def how(self) -> bool:
        """Run something; return whether it ran in what stood by."""
        result = await self.run(HOW)
        return {b"1\n": True, b"0\n": False}[result.stdout]


@pytest.fixture(params=[Mechanism.BUBBLEWRAP, Mechanism.UNSHARE], ids=lambda mechanism: mechanism.value)
async def sandbox(request, tmp_path) -> Sandbox:
    stap = StapProgram(Path("/usr/bin/true"), "4.8")
    try:
        return await find_sandbox(
            request.param.value, stap, {"PATH": "/usr/bin"}, home=tmp_path, workspace=tmp_path
        )
    except ConfigError as exc:
        pytest.skip(str(exc))


@pytest.fixture
async def bench(sandbox, tmp_path):
    workspace = Workspace.open(tmp_path)
    place = tmp_path / "shown"
    place.mkdir()
    environ = {"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path / "systemtap"), "KBUILD_X": "a b\nc"}
    stap = StapProgram(make_stap(tmp_path / "stap", OBEDIENT), "4.8")
    made = Bench(LocalEngine(stap, sandbox, workspace, environ=environ, home=tmp_path / "home"), place)
    made.settings = ServerSettings(tuning={"kill_grace_s": 0.2, "sandbox_read": (str(place),)})
    yield made
    made.close()
    shutil.rmtree(workspace.path)
    workspace.close()


@contextlib.asynccontextmanager
async def standing_by(bench: Bench):
    """Let the engine have processes stand by."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.engine.standbys.run)
        yield
        tasks.cancel_scope.cancel()


async def test_one_stands_by_after_a_compile_and_is_taken_by_the_next(bench):
    async with standing_by(bench):
        assert not await bench.how()
        first = await bench.next_ready()
        assert bench.engine.standbys.waiting == (first,)
        assert bench.engine.standbys.pids == {first.tree.pid} <= own_children()
        assert await bench.how()
        assert not first.directory.exists()
        second = await bench.next_ready()
        assert await bench.how()
        assert second.directory != first.directory


async def test_it_is_the_same_in_every_respect(bench):
    """What a program can tell of itself and its surroundings, started for it or found waiting."""
    everything = r"""
        env | sort; pwd; umask; id -u; echo "$0" $# "$@"
        tr -s ' \t' ' ' </proc/self/limits
        grep -E '^(Sig|Shd|Cap|NoNew|Seccomp|Uid|Gid|Groups|NSpid|Threads)' /proc/self/status
        cat /proc/self/oom_score_adj; cut -d' ' -f5-7,19 /proc/self/stat
        cut -d' ' -f5-6 /proc/self/mountinfo; ls -l /proc/self/fd | wc -l; readlink /proc/self/fd/0; wc -c
        ls -A .. ../tmp ../response . script; cat script/x; echo said >&2
        echo module >"$answer/made.ko"; set -- /proc/[0-9]*; echo $#; exit 3
    """
    nasty = (b"a\nb", b"'\"$(id)`", b"\xff\xfe", b"", b"-e", everything.encode())
    request = {
        "arguments": nasty,
        "files": (RequestFile(b"script/x", b"probe\n"),),
        "environment": (("LC_ALL", "C"),),
    }
    async with standing_by(bench):
        fresh = await bench.run("", **request)
        taken = await bench.next_ready()
        again = await bench.run("", **request)
    assert not taken.directory.exists()

    def lines(result):
        return result.stdout.decode(errors="surrogateescape").splitlines()

    assert lines(again) == lines(fresh)
    assert (again.status, again.stderr, again.files) == (fresh.status, fresh.stderr, fresh.files)
    assert again.status == 3
    assert len(lines(again)) > 60


@pytest.mark.parametrize("change", ["replaced", "removed", "secret", "link"])
async def test_it_is_left_where_something_is_another_now(bench, change, tmp_path):
    (bench.place / "file").write_text("old\n")
    secret = tmp_path / "shown" / "secret"
    bench.settings = ServerSettings(
        tuning={"sandbox_read": (str(bench.place), str(tmp_path / "link"))}, log=secret
    )
    async with standing_by(bench):
        assert not await bench.how()
        ready = await bench.next_ready()
        if change == "link":
            (tmp_path / "link").symlink_to("shown")
        elif change == "secret":
            secret.write_text("secret\n")
        else:
            bench.place.rename(tmp_path / "former")
            if change == "replaced":
                bench.place.mkdir()
                (bench.place / "file").write_text("new\n")
        result = await bench.run(f"{HOW}; cat {bench.place}/file {secret} {tmp_path}/link/file")
        seen = {"replaced": b"new\n", "removed": b"", "secret": b"old\n", "link": b"old\nold\n"}[change]
        assert result.stdout == b"0\n" + seen
        assert not ready.directory.exists()
        await bench.next_ready()
        assert await bench.how()


async def test_it_is_left_where_it_has_ended(bench):
    async with standing_by(bench):
        await bench.how()
        ready = await bench.next_ready()
        ready.tree.signal(signal.SIGKILL)
        with anyio.fail_after(20):
            await ready.tree.wait()
        assert not await bench.how()
        await bench.next_ready()
        assert not ready.directory.exists()
        assert await bench.how()


async def test_it_is_left_where_its_directory_is_gone(bench):
    async with standing_by(bench):
        await bench.how()
        ready = await bench.next_ready()
        shutil.rmtree(ready.directory)
        assert not await bench.how()


async def test_it_is_left_where_there_is_too_much_to_tell(bench):
    many = tuple(b"x" * 60_000 for _ in range(4))
    async with standing_by(bench):
        await bench.how()
        await bench.next_ready()
        result = await bench.run("", arguments=(*many, f"echo $#; {HOW}".encode()))
    # Beside the client's: -r, the release, --tmpdir, --client-options.
    assert result.stdout == b"9\n0\n"


async def test_others_do_not_take_it(bench):
    """Neither what has time, nor a server with other bounds; what this one does next takes its place."""
    async with standing_by(bench):
        await bench.how()
        ready = await bench.next_ready()
        result = await bench.run(HOW, background=True)
        assert result.stdout == b"0\n"
        bench.settings = ServerSettings(tuning={"cpu_s": 77.0})
        assert not await bench.how()
        other = await bench.next_ready()
        await bench.wait_gone(ready)
        assert bench.engine.standbys.waiting == (other,)
        assert (await bench.run(f"{HOW}; ulimit -t")).stdout == b"1\n77\n"


async def test_none_waits_for_a_server_that_has_stopped(bench):
    async with standing_by(bench):
        ready = await bench.have_ready()
        own, bench.settings = bench.settings, attrs.evolve(bench.settings, keep_temporary=True)
        bench.engine.retire(bench.settings)
        assert bench.engine.standbys.waiting == (ready,)
        bench.engine.retire(own)
        assert bench.engine.standbys.waiting == ()
        await bench.wait_gone(ready)


async def test_none_comes_for_a_server_that_stops_meanwhile(bench, monkeypatch):
    prepare, settings = bench._prepare, bench.settings

    async def stop_meanwhile(kind: Kind) -> Standby | None:
        made = await prepare(kind)
        bench.engine.retire(kind.settings)
        return made

    monkeypatch.setattr(bench, "_prepare", stop_meanwhile)
    async with standing_by(bench):
        await bench.how()
        ready = await bench.next_ready()
        await bench.wait_gone(ready)
        assert (bench.engine.standbys.waiting, bench.settings) == ((), settings)
    # Nor does one that nobody has begun to prepare.
    await bench.how()
    bench.engine.retire(settings)
    begun = bench.begun
    async with standing_by(bench):
        await anyio.wait_all_tasks_blocked()
        assert bench.begun == begun


async def test_none_is_prepared_while_compiles_go_on(bench):
    """Those that wait for a worker follow at once, and had no use for it."""
    gate = bench.place / "gate"
    os.mkfifo(gate)
    async with standing_by(bench):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.run, f"cat {gate}")
            await bench.how()
            await bench.how()
            await anyio.wait_all_tasks_blocked()
            assert bench.begun == 0
            await anyio.to_thread.run_sync(gate.write_text, "go\n")
        await bench.next_ready()
        assert await bench.how()


async def test_bounds_hold_in_it(bench):
    async with standing_by(bench):
        await bench.how()
        for script, deadline_s, limits, expected in (
            ("trap '' TERM; while :; do sleep 1000; done", 0.5, {}, Refusal.COMPILE_TIMEOUT),
            ("yes", 30.0, {"output_bytes": 1000}, Refusal.OUTPUT_SIZE),
        ):
            bench.settings = ServerSettings(tuning={"kill_grace_s": 0.2, **limits})
            ready = await bench.have_ready()
            with pytest.raises(TranslatorError) as caught:
                await bench.run(script, deadline_s=deadline_s)
            assert caught.value.refusal is expected
            await bench.wait_gone(ready)
        bench.settings = ServerSettings(tuning={"file_bytes": 1000})
        await bench.have_ready()
        result = await bench.run(f"{HOW}; head -c 5000 /dev/zero >x; exit 1")
        assert result.stdout == b"1\n"
        assert result.limit_met is not None
        assert "LIMIT_FILE" in result.limit_met


async def test_cancelled_compile_ends_it(bench):
    async with standing_by(bench):
        await bench.how()
        ready = await bench.next_ready()
        os.mkfifo(bench.place / "begun")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.run, f"cat {bench.place}/begun; sleep 1000")
            await anyio.to_thread.run_sync((bench.place / "begun").write_text, "go\n")
            tasks.cancel_scope.cancel()
        assert ready.tree.has_ended
        assert not ready.directory.exists()


async def test_all_end_with_their_keeper(bench):
    async with standing_by(bench):
        await bench.how()
        ready = await bench.next_ready()
    assert ready.tree.has_ended
    assert not await bench.how()


# The launcher of the other one is started by that Python, too, which is a copy here.
@pytest.mark.parametrize("sandbox", [Mechanism.BUBBLEWRAP], indirect=True)
async def test_nothing_stands_by_where_python_is_out_of_sight(bench, monkeypatch, tmp_path):
    hidden = tmp_path / "bin" / "python3"
    hidden.parent.mkdir()
    shutil.copy("/usr/bin/python3", hidden)
    monkeypatch.setattr("sys._base_executable", str(hidden), raising=False)
    kind = Kind(RELEASE, bench.settings)
    assert await bench._prepare(kind) is None
    assert [path.name for path in bench.engine.workspace.path.iterdir()] == ["lock"]


@pytest.mark.parametrize("mechanism", [None, Mechanism.LANDLOCK])
async def test_only_namespaces_can_wait(mechanism, tmp_path):
    """What counts all processes of a user has other bounds each time; without a sandbox, little is saved."""
    workspace = Workspace.open(tmp_path)
    stap = StapProgram(Path("/usr/bin/true"), "4.8")
    engine = LocalEngine(
        stap, Sandbox(mechanism), workspace, environ={}, home=tmp_path / "home", most_standbys=3
    )
    with anyio.fail_after(20):
        await engine.standbys.run()
    workspace.close()
