"""The kit's own judgement: what it finds on a host, and what it takes for the client's own words."""

from __future__ import annotations

import subprocess

import pytest
from kit.real import FollowedLog, Installation, Ran, Unavailable, without_client_lines, without_word_of_jobs
from kit.tracing import Look, Watched, trace

from stapsrv.compile.cache.fingerprint import WatchedPath


@pytest.fixture
def modules(tmp_path):
    """A directory like ``/lib/modules``."""
    for release in (
        "6.1.0-9-amd64",
        "6.1.0-56-cloud-amd64",
        "6.1.0-56-amd64",
        "5.10.0-99-amd64",
        "6.2.0-bare",
    ):
        (tmp_path / release).mkdir()
        if release != "6.2.0-bare":
            (tmp_path / release / "build").mkdir()
            (tmp_path / release / "build/Makefile").touch()
    return tmp_path


@pytest.fixture
def environ(tmp_path):
    """An environment that names a runtime, and where all programs are found."""
    programs = ("stap", "zip", "unzip", "modinfo", "certutil")
    (tmp_path / "bin").mkdir()
    for name in programs:
        (tmp_path / "bin" / name).touch(mode=0o755)
    (tmp_path / "runtime.h").touch()
    return {"PATH": str(tmp_path / "bin"), "STAPSRV_TEST_RUNTIME": str(tmp_path)}


@pytest.fixture(autouse=True)
def original(monkeypatch, tmp_path):
    """SystemTap's own server, so that nothing depends on the host's."""
    path = tmp_path / "original"
    path.touch(mode=0o755)
    monkeypatch.setattr("kit.real.ORIGINAL", path)
    return path


def test_newest_release_in_its_plainest_flavour_comes_first(environ, modules):
    installation = Installation.find(environ, modules)
    assert installation.releases == (
        "6.1.0-56-amd64",
        "6.1.0-56-cloud-amd64",
        "6.1.0-9-amd64",
        "5.10.0-99-amd64",
    )
    assert str(installation.runtime) == environ["STAPSRV_TEST_RUNTIME"]


def test_missing_program_is_named(environ, modules, original):
    original.unlink()
    with pytest.raises(Unavailable, match="original is not installed; run packaging/setup"):
        Installation.find(environ, modules)


def test_missing_headers_are_named(environ, tmp_path):
    with pytest.raises(Unavailable, match="no kernel headers are installed"):
        Installation.find(environ, tmp_path / "none")


@pytest.mark.parametrize(("header", "name"), [("old", "stock"), ("task_work_cancel_func", None)])
def test_headers_decide_whether_the_stock_runtime_will_do(
    environ, modules, monkeypatch, tmp_path, header, name
):
    monkeypatch.setattr("kit.real.PATCHED_RUNTIME", tmp_path / "missing")
    monkeypatch.setattr("kit.real.STOCK_RUNTIME", tmp_path / "stock")
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock/stp_task_work.c").write_text("twork = task_work_cancel(task, func);")
    del environ["STAPSRV_TEST_RUNTIME"]
    linux = modules / "6.1.0-56-amd64/source/include/linux"
    linux.mkdir(parents=True)
    (linux / "task_work.h").write_text(f"{header}();")
    if name is None:
        with pytest.raises(Unavailable, match="missing, the patched runtime, is missing"):
            Installation.find(environ, modules)
    else:
        assert Installation.find(environ, modules).runtime.name == name


def test_client_s_own_words_go_and_the_server_s_stay():
    domain = (
        "WARNING: The domain name, localhost, does not match the DNS name(s) on …:\n  host\n  host.local\n"
    )
    failed = "Passes: via server failed.  Try again with another '-v' option.\nTip: read.\n"
    server = "WARNING: 1\n  indented line\nPasses: 2\nTip: read.\n"
    assert without_client_lines(Ran(1, "x\n", domain + server + failed)) == Ran(1, "x\n", server)
    copy = 'Copy failed ("/tmp/a/stap_1.ko" to "stap_1.ko"): No such file or directory\n'
    for said in (copy, f"{copy.strip()}. Your uid=996.\n"):
        assert without_client_lines(Ran(0, "begin\nstap_1.ko\n", said)) == Ran(0, "begin\n", "")


def test_word_of_other_jobs_goes_and_that_of_errors_stays():
    error, jobs = "make[1]: *** [/x/Makefile:2: a.o] Error 1\n", "*** Waiting for unfinished jobs....\n"
    said = f"{error}make[1]: {jobs}make: {jobs}make: *** [/x/Makefile:9: all] Error 2\n"
    assert without_word_of_jobs(Ran(1, jobs, said)) == Ran(
        1, jobs, f"{error}make: *** [/x/Makefile:9: all] Error 2\n"
    )


def test_log_of_a_writer_that_has_ended_is_not_waited_for(tmp_path):
    """Also as long as nobody has waited for that process."""
    with subprocess.Popen(["true"]) as writer, FollowedLog.open(tmp_path / "log", writer.pid) as log:
        log.path.write_text("begun\n")
        assert log.wait("begun")
        with pytest.raises(AssertionError, match="its writer ended before 'done' was logged:\nbegun"):
            log.wait("done")


def test_lines_are_counted_once_as_many_are_written_as_there_should_be(tmp_path):
    path = tmp_path / "log"
    script = f'sleep 0.2; printf "%s: begun\\n" "Sat Nov 28 23:09:32 2026" >>{path}; exec cat'
    with (
        subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE) as writer,
        FollowedLog.open(path, writer.pid) as log,
    ):
        assert log.has("^begun$", 1)
        assert log.has("^done$", 0)
        assert not log.has("^begun$", 0)
        writer.communicate()


def test_trace_has_what_children_look_at_from_where_they_are(tmp_path):
    """Found or not, by a path relative to where the child went, or to an open directory."""
    (tmp_path / "below" / 'a "b"').mkdir(parents=True)
    script = "cd below; (cd 'a \"b\"'; cat none); cat ../none; ls /proc/self/fd; find . -name x"
    ran, looks = trace(
        ["sh", "-c", script], log=tmp_path / "log", cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, timeout_s=60
    )
    assert ran.stderr.count(b"none") == 2
    below = f"{tmp_path}/below"
    assert {
        Look(f'{below}/a "b"/none'),
        Look(f"{below}/../none"),
        Look("/proc/self/fd", lists=True),
        Look(f'{below}/a "b"', lists=True),
    } <= looks


def test_what_is_watched_covers_each_step_and_what_is_not_there(tmp_path):
    for name in ("tree/deep", "linked", "other", "flat"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "tree" / "link").symlink_to("../linked/file")
    (tmp_path / "flat" / "link").symlink_to(tmp_path / "tree")
    watched = Watched([WatchedPath(f"{tmp_path}/tree"), WatchedPath(f"{tmp_path}/flat", recursive=False)])

    def covers(path: str, *, lists: bool = False) -> bool:
        return watched.covers(Look(f"{tmp_path}/{path}", lists))

    assert covers("tree/deep/none/file")
    assert covers("tree/deep/../link")
    assert covers("flat/none/file")
    assert covers("flat/link/deep/file")
    assert covers("tree/deep", lists=True)
    assert not covers("other")
    assert not covers("other/none")
    assert not covers("other/../tree/deep")
    assert not covers("other", lists=True)
    assert not covers("", lists=True)
