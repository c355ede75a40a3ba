"""The local engine with stand-ins for stap: faults, limits, and nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
import traceback
from pathlib import Path

import anyio
import pytest
from compile.engine.prepared.test_store import plan
from kit.service import LogLines
from kit.stap import make_stap
from kit.trees import Witness

from stapsrv.compile.cache.stap_cache import Finding, StapCache
from stapsrv.compile.engine import temp_quota
from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.engine.local import LocalEngine
from stapsrv.compile.engine.stap import StapProgram
from stapsrv.compile.engine.workspace import Workspace
from stapsrv.compile.protocol.archive import RequestFile
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.stats import RequestRecord
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.config.tuning import Tuning
from stapsrv.errors import TranslatorError
from stapsrv.rejection import RejectReason
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.detect import find_sandbox
from stapsrv.sandbox.sandbox import Sandbox
from stapsrv.system import trees

pytestmark = pytest.mark.anyio

RELEASE = ServedRelease("6.1", "x86_64", "6.1", Path("/nowhere"))


@pytest.fixture
def workspace(tmp_path: Path):
    made = Workspace.open(tmp_path)
    yield made
    assert [path.name for path in made.path.iterdir()] == ["lock"]
    made.close()


def test_files_of_the_server_s_identities_are_hidden_from_its_requests(tmp_path, workspace):
    settings = ServerSettings(
        ssl=Path("/own/ssl"), log=Path("/own/log"), tuning=Tuning({"farm_key": "/own/farm.key"})
    )
    stap = StapProgram(path="/usr/bin/stap", version="4.8")
    engine = LocalEngine(stap, Sandbox(None), workspace, environ={}, home=tmp_path, secret=(Path("/given"),))
    secret = engine.policy(settings, RELEASE).secret
    assert {Path(path) for path in ("/own/ssl", "/own/log", "/own/farm.key", "/given")} < set(secret)


@pytest.fixture
def lines() -> LogLines:
    return LogLines()


@pytest.fixture
def run(tmp_path, workspace, lines):
    """Run one job with a stand-in of the given script."""

    async def run_one(
        script,
        *,
        program=None,
        sandbox=Sandbox(None),  # noqa: B008 - a value
        deadline_s=30.0,
        keep=False,
        arguments=(b"-e", b"x"),
        files=(),
        environ=None,
        toolchain=b"",
        own=False,
        on_findings=None,
        makes_plan=False,
        on_unplanned=None,
        record=None,
        **limits,
    ):
        stap = StapProgram(program or make_stap(tmp_path / "stap", script), "4.8")
        engine = LocalEngine(
            stap,
            sandbox,
            workspace,
            environ=environ or {"PATH": "/usr/bin:/bin"},
            home=Path("/home/nobody-here"),
        )
        if on_findings is not None:
            engine.on_findings = on_findings
        if on_unplanned is not None:
            engine.on_unplanned = on_unplanned
        request = CompileRequest(
            release="6.1", arch="x86_64", arguments=arguments, files=files, directories=(b"script",)
        )
        settings = ServerSettings(tuning={"kill_grace_s": 0.2, **limits}, keep_temporary=keep)
        job = CompileJob(
            request=request,
            release=RELEASE,
            settings=settings,
            deadline_s=deadline_s,
            toolchain=toolchain,
            background=own,
            own=own,
            makes_plan=makes_plan,
            log=lines.log,
            record=record or RequestRecord(),
        )
        return await engine.run(job)

    return run_one


async def test_result_has_status_outputs_and_files(run):
    result = await run(
        """
        echo "$answer/made.ko"; pwd >&2; cat script/x >&2; echo module >"$answer/made.ko"; exit 3
    """,
        files=(RequestFile(b"script/x", b"probe\n"),),
    )
    assert result.status == 3
    assert result.stdout == b"<server>/stap000000/made.ko\n"
    assert result.stderr == b"<server>/request\nprobe\n"
    assert [(file.path, file.data) for file in result.files] == [("stap000000/made.ko", b"module\n")]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((b"--unpriv", b"x.stp"), "--privilege=stapusr --client-options --unpriv x.stp"),
        ((b"--privilege=stapdev",), "--client-options --privilege=stapdev"),
        ((b"--unpriv", b"--bogus"), "--client-options --unpriv --bogus"),
    ],
)
async def test_privilege_stands_before_the_client_s_arguments(run, arguments, told):
    result = await run('echo "$*"', arguments=arguments)
    assert result.stdout.decode().endswith(f"--tmpdir=<server>/stap000000 {told}\n")


async def test_home_is_redacted(run):
    assert (await run("echo /home/nobody-here/.systemtap/cache/x.ko")).stdout == (
        b"<server>/.systemtap/cache/x.ko\n"
    )


async def test_systemtap_directory_is_redacted(run):
    result = await run("echo /st/cache/x.ko", environ={"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": "/st"})
    assert result.stdout == b"<server>/cache/x.ko\n"


async def test_death_by_signal_is_the_status_of_a_shell(run):
    assert (await run("kill -KILL $$")).status == 137


async def test_deadline_ends_the_compile(run):
    with pytest.raises(TranslatorError, match=r"^The compile was ended: it took longer than 0.2 seconds$"):
        await run("trap '' TERM; while :; do sleep 1000; done", deadline_s=0.2)


async def test_too_much_output_ends_the_compile(run):
    with pytest.raises(TranslatorError, match=r"^The compile was ended: it printed more than 1000 bytes$"):
        await run("yes", output_bytes=1000)


async def test_too_large_answer_is_an_error(run):
    with pytest.raises(TranslatorError, match="larger than 1000 bytes"):
        await run('head -c 2000 /dev/zero >"$answer/made.ko"', answer_bytes=1000)


async def test_request_that_cannot_be_written_is_an_error(run, workspace):
    with pytest.raises(TranslatorError) as caught:
        await run("echo", files=(RequestFile(b"x" * 300, b""),))
    assert caught.value.problem == "The server has trouble with its temporary directory: File name too long"
    assert caught.value.where == str(workspace.path)


async def test_temporary_directory_that_was_removed_is_made_again(run, workspace):
    """A request whose own directory goes meanwhile is refused; the next has a new one."""
    former = workspace.path
    shutil.rmtree(former)
    assert (await run('echo module >"$answer/made.ko"')).status == 0
    assert workspace.path != former
    with pytest.raises(TranslatorError, match="has trouble with its temporary directory"):
        await run('rm -r "$answer"')
    assert (await run('echo module >"$answer/made.ko"')).status == 0


STEPS = {
    "making a directory for it": "tempfile.mkdtemp",
    "making directories in it": "os.mkdir",
    "writing its files": "os.fdopen",
    "finding what stap made": "os.scandir",
    "looking at what stap made": "os.fstat",
}


ERRORS = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", STEPS)
async def test_failure_of_any_step_leaves_nothing(run, workspace, monkeypatch, step, error):
    """The client reads what failed, without paths; the next request succeeds."""
    name = STEPS[step]
    owner, _, function = name.rpartition(".")
    module = {"os": os, "tempfile": tempfile}[owner]
    real = getattr(module, function)
    threads = set()

    def fail(*arguments: object, **options: object) -> object:
        # Only what is done for the request, that is in a thread, and not what is done to remove it.
        callers = [frame.f_code for frame, _ in traceback.walk_stack(None)]
        if threading.current_thread() is threading.main_thread() or trees.remove.__code__ in callers:
            return real(*arguments, **options)
        threads.add(threading.current_thread())
        raise OSError(error, os.strerror(error))

    script = 'mkdir "$answer/a"; echo module >"$answer/a/made.ko"'
    request = {"files": (RequestFile(b"script/x", b"probe\n"),)}
    with monkeypatch.context() as patched:
        patched.setattr(module, function, fail)
        with pytest.raises(TranslatorError) as caught:
            await run(script, **request)
    assert threads
    assert caught.value.problem.endswith(f"temporary directory: {os.strerror(error)}")
    assert "/" not in caught.value.problem
    assert [path.name for path in workspace.path.iterdir()] == ["lock"]
    assert len((await run(script, **request)).files) == 1


async def test_missing_stap_is_an_error(run, tmp_path):
    with pytest.raises(TranslatorError) as caught:
        await run("exit 0", program=tmp_path / "missing")
    assert caught.value.problem == "The compile could not be started: No such file or directory"


async def test_limit_that_was_met_is_in_the_result(run):
    result = await run("kill -XCPU $$", cpu_s=7.0)
    assert (
        result.limit_met
        == "The compile needed more than 7 seconds of processor time (LIMIT_CPU of this server)"
    )
    assert (await run("exit 1")).limit_met is None


async def test_contained_compile_sees_only_its_own_directory(run, tmp_path):
    (tmp_path / "beside").touch()
    result = await run(
        'cat script/x; echo module >"$answer/made.ko"; echo $TMPDIR; ls -A "$H" /root; ls -d "$TMPDIR"; nice',
        files=(RequestFile(b"script/x", b"probe\n"),),
        sandbox=await find_sandbox("auto", Path("/usr/bin/true"), {}, home=tmp_path, workspace=tmp_path),
        environ={"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path / "st"), "H": str(tmp_path)},
        nice=6,
    )
    niceness = os.nice(0) + 6
    assert result.stdout == b"probe\n<server>/tmp\n<server>/tmp\n%d\n" % niceness, result
    assert [file.data for file in result.files] == [b"module\n"]


@pytest.fixture(params=["off", "bubblewrap", "landlock"])
async def sandbox(request, tmp_path):
    if request.param == "off":
        return Sandbox(None)
    programs = {"PATH": os.environ["PATH"]}
    return await find_sandbox(
        request.param, Path("/usr/bin/true"), programs, home=tmp_path, workspace=tmp_path
    )


async def test_stap_has_a_cache_of_its_own_and_its_user_s_options(run, tmp_path, sandbox):
    known = StapCache.of(tmp_path / "st", b"one")
    features = f"stapconf_{'ab' * 16}_714.h"
    (known.path / "ab").mkdir(mode=0o700, parents=True)
    (known.path / "ab" / features).write_text("known\n")
    (tmp_path / "st" / "cache").mkdir()
    (tmp_path / "st" / "rc").write_text("-w\n")
    (tmp_path / "home").mkdir()
    result = await run(
        """
        cd "$SYSTEMTAP_DIR"; cat rc cache/ab/*.h
        echo own >cache/ab/new; mv -f cache/ab/new cache/ab/*.h; cat cache/ab/*.h
        echo "$PWD/cache/x" >&2
        (echo planted >"$SYSTEMTAP_KNOWN"/ab/*.h; echo planted >"$SYSTEMTAP_KNOWN/x.h") 2>/dev/null; exit 0
        """,
        sandbox=sandbox,
        environ={
            "PATH": "/usr/bin:/bin",
            "SYSTEMTAP_DIR": str(tmp_path / "st"),
            "SYSTEMTAP_KNOWN": str(known.path),
        },
        toolchain=b"one",
    )
    assert result.stdout == b"-w\nknown\nown\n", result
    assert result.stderr == b"<server>/cache/x\n"
    if sandbox.backend is not None:
        assert [path.name for path in known.path.rglob("*.h")] == [features]
        assert (known.path / "ab" / features).read_text() == "known\n"
    assert list((tmp_path / "st" / "cache").iterdir()) == []


class TestPlans:
    """By a stap that calls ``env make`` for no module, or says of its own that a plan was missing."""

    async def test_stap_finds_the_stand_in_and_its_sandbox_does_not(self, run, tmp_path):
        record = RequestRecord()
        environ = {"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path / "st")}
        result = await run(
            'echo "${PATH%%:*}"; env echo made', environ=environ, toolchain=b"one", record=record
        )
        first, made, _ = result.stdout.decode().split("\n")
        assert first.startswith("<server>/server-toolchains/")
        assert made == "made"
        assert record.build == "plain: another kind of build"

    @pytest.mark.parametrize(("prepared", "toolchain"), [(False, b"one"), (True, b"")])
    async def test_make_does_its_work_where_plans_are_not_wanted_or_nothing_is_watched(
        self, run, tmp_path, prepared, toolchain
    ):
        record = RequestRecord()
        environ = {"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path / "st")}
        result = await run(
            'echo "$PATH"', environ=environ, toolchain=toolchain, prepared=prepared, record=record
        )
        assert result.stdout == b"/usr/bin:/bin\n"
        assert record.build == "plain: off"

    @pytest.mark.parametrize("mechanism", ["bubblewrap", "landlock"])
    async def test_compile_can_write_no_plan(self, run, tmp_path, mechanism):
        programs = {"PATH": os.environ["PATH"]}
        sandbox = await find_sandbox(
            mechanism, Path("/usr/bin/true"), programs, home=tmp_path, workspace=tmp_path
        )
        record = RequestRecord()
        result = await run(
            """
            cd "${PATH%%:*}/.." || exit 1
            (mkdir plans/x; echo planted >plans/x/plan.json; echo planted >stand_in/env) 2>/dev/null
            env echo made
            """,
            sandbox=sandbox,
            environ={"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path / "st")},
            toolchain=b"one",
            record=record,
        )
        assert result.stdout == b"made\n"
        assert record.build == "plain: another kind of build"
        assert list((tmp_path / "st").glob("server-toolchains/*/prepared/plans/*")) == []

    async def test_plan_comes_from_the_server_s_own_script_alone(self, run, tmp_path):
        environ = {
            "PATH": "/usr/bin:/bin",
            "SYSTEMTAP_DIR": str(tmp_path / "st"),
            "SYSTEMTAP_X": str(tmp_path),
        }
        (tmp_path / "plan.json").write_bytes(plan())
        plant = 'mkdir -p "$SYSTEMTAP_DIR/plan"; cp "$SYSTEMTAP_X/plan.json" "$SYSTEMTAP_DIR/plan"'
        kept = []
        for more in ({}, {"own": True}, {"own": True, "makes_plan": True}):
            await run(plant, environ=environ, toolchain=b"one", **more)
            kept.append(len(list((tmp_path / "st").glob("server-toolchains/*/prepared/plans/*/plan.json"))))
        assert kept == [0, 0, 1]

    async def test_missing_plan_of_a_client_is_told(self, run, tmp_path):
        told = []
        environ = {"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path / "st")}
        for own, report in ((False, "no plan"), (False, "messages"), (True, "no plan")):
            await run(
                f'{PLANTING} echo "plain: {report}" >"$SYSTEMTAP_DIR/builds"',
                environ=environ,
                toolchain=b"one",
                own=own,
                on_unplanned=lambda job, _result, found: told.append((job.record.build, found)),
            )
        assert told == [("plain: no plan", {Finding.FEATURES})]

    async def test_plans_that_cannot_be_kept_leave_all_to_make(self, run, tmp_path, lines):
        (tmp_path / "st").write_text("no directory")
        environ = {"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path / "st")}
        result = await run('echo "$PATH"', environ=environ, toolchain=b"one")
        assert result.stdout == b"/usr/bin:/bin\n"
        assert lines.reasons("prepared.unusable")


PLANTING = f"""
    mkdir -p "$SYSTEMTAP_DIR/cache/ab" "$SYSTEMTAP_DIR/cache/cd"
    echo planted >"$SYSTEMTAP_DIR/cache/ab/stapconf_{"ab" * 16}_714.h"
    echo planted >"$SYSTEMTAP_DIR/cache/cd/stap_{"cd" * 16}_926.ko"
"""


async def test_what_one_compile_leaves_in_stap_s_cache_no_other_sees(run, tmp_path):
    environ = {"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path / "st")}
    await run(PLANTING, environ=environ)
    seen = await run('ls -A "$SYSTEMTAP_DIR/cache"', environ=environ)
    assert seen.stdout == b""


async def test_what_the_server_s_own_script_finds_out_the_next_compile_knows(run, tmp_path, sandbox):
    environ = {"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path / "st")}
    await run(PLANTING, environ=environ, own=True, sandbox=sandbox)
    seen = await run('cd "$SYSTEMTAP_DIR/cache"; echo */*', environ=environ, sandbox=sandbox)
    assert seen.stdout == f"ab/stapconf_{'ab' * 16}_714.h\n".encode()


async def test_what_the_build_of_a_plan_finds_out_nobody_else_sees(run, tmp_path):
    """It has options of a client's request, such as macros."""
    environ = {"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path / "st")}
    await run(PLANTING, environ=environ, toolchain=b"one", own=True, makes_plan=True)
    seen = await run('ls -A "$SYSTEMTAP_DIR/cache"', environ=environ, toolchain=b"one")
    assert seen.stdout == b""


async def test_nothing_is_left_where_what_was_found_out_cannot_be_kept(run, workspace, tmp_path, monkeypatch):
    def fail(_cache: StapCache, _directory: Path) -> None:
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(StapCache, "keep", fail)
    environ = {"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path / "st")}
    with pytest.raises(OSError, match="bad disk") as raised:
        await run(PLANTING, environ=environ, own=True)
    # Now, and not when the collector of garbage comes by: the traceback holds all that there was.
    assert raised.tb is not None
    assert [path.name for path in workspace.path.iterdir()] == ["lock"]


async def test_what_a_compile_had_to_find_out_is_told(run, tmp_path):
    told: list[frozenset[Finding]] = []
    environ = {"PATH": "/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path / "st")}
    for own in (False, True, False):
        await run(
            PLANTING,
            environ=environ,
            own=own,
            on_findings=lambda _job, found: told.append(found),
        )
    assert told == [{Finding.FEATURES}]


async def test_missing_bubblewrap_is_an_error_and_no_answer(run, tmp_path):
    """Where and why is for the log."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("choom", "nice", "setpriv", "timeout", "env", "sh"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    environ = {"PATH": str(programs), "SYSTEMTAP_DIR": str(tmp_path / "st")}
    with pytest.raises(TranslatorError) as caught:
        await run("exit 0", sandbox=Sandbox(Backend.BUBBLEWRAP), environ=environ)
    assert caught.value.problem == "The compile could not be started"
    assert caught.value.where.startswith("env: ")
    assert "bwrap" in caught.value.where


@pytest.mark.parametrize("place", ["$answer", "$(dirname $answer)"])
async def test_link_in_place_of_the_answer_is_no_answer(run, tmp_path, place):
    """Through it a client would read what other requests, and the server's user, have."""
    secret = tmp_path / "secret" / "stap000000"
    secret.mkdir(parents=True)
    (secret / "secret.c").write_text("secret\n")
    target = secret if place == "$answer" else secret.parent
    with pytest.raises(TranslatorError, match="Not a directory"):
        await run(f'rm -r "{place}"; ln -s {target} "{place}"')


async def test_deep_directories_of_a_compile_are_removed(run, monkeypatch):
    """The workspace fixture checks that the directory is gone."""
    monkeypatch.setattr(temp_quota, "_INTERVAL_S", 1000)
    make = "n=0; while [ $n -lt 1100 ]; do mkdir -p d/d/d/d/d; cd d/d/d/d/d; n=$((n + 5)); done"
    assert (await run(f'cd "$TMPDIR"; {make}; echo module >"$answer/made.ko"')).status == 0


async def test_kept_directory_is_logged(run, workspace, lines):
    await run('echo module >"$answer/made.ko"', keep=True)
    (kept,) = workspace.path.parent.glob(f"{workspace.path.name}.*")
    assert [(entry["event"], entry["directory"]) for entry in lines.entries] == [("request.kept", kept)]
    assert (kept / "response" / "stap000000" / "made.ko").read_text() == "module\n"


async def test_cancellation_ends_the_tree_and_removes_the_directory(run, tmp_path):
    """The workspace fixture checks that the directory is gone."""
    with contextlib.closing(Witness(tmp_path)) as witness:

        async def begin():
            await run(f"exec 3>{witness.path}; echo >&3; sleep 1000 & sleep 1000")

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(begin)
                await witness.wait_line()
                tasks.cancel_scope.cancel()
        await witness.wait_gone()


async def test_temporary_space_above_the_limit_ends_the_compile(run):
    with pytest.raises(TranslatorError) as caught:
        await run('head -c 3000000 /dev/zero >"$answer/big"; sleep 1000', temp_bytes=2_000_000)
    assert str(caught.value) == ("The compile was ended: it used more than 2000000 bytes of temporary space")
    assert caught.value.reject_reason is RejectReason.TEMP_SIZE
