"""What a server's own options mean for the real client."""

from __future__ import annotations

import fcntl
import re
import shutil
from pathlib import Path

import pytest
from kit.real import finish, vermagic

SCRIPT = ("-e", "probe begin { exit() }")


class StapRecords:
    """A program in front of stap that keeps what stap is given, and waits for a lock before it starts.

    Args:
        directory: made; holds the program, the lock, and a directory for each time that it was called.

    Attributes:
        options: what a server needs for it: it runs where nothing else of this directory would be.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.options = ("--sandbox-write", directory)
        self._calls = directory / "calls"
        self._calls.mkdir()
        self._lock = (directory / "lock").open("w")
        self.program = directory / "stap"
        self.program.write_text(
            f"""#!/bin/sh
            if [ "$1" != --version ] && [ "$1" != --client-options ]; then
                call=$(mktemp -d {self._calls}/XXXXXX)
                env --null >"$call/environ"
                printf '%s\\0' "$@" >"$call/arguments"
                flock --shared {directory}/lock true
            fi
            exec {shutil.which("stap")} "$@"
            """
        )
        self.program.chmod(0o755)

    def hold(self) -> None:
        """Let no stap start until :meth:`release`."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def release(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        self._lock.close()

    @property
    def begun(self) -> int:
        """How many calls there have been."""
        return len(list(self._calls.iterdir()))

    def calls(self, what: str) -> list[list[str]]:
        """Return the ``environ`` or ``arguments`` of each call; they are whole when the call has ended."""
        return [(call / what).read_text().split("\0")[:-1] for call in self._calls.iterdir()]


@pytest.fixture
def records(tmp_path):
    records = StapRecords(tmp_path / "records")
    yield records
    records.close()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_locale_of_the_client_reaches_the_server_s_stap(serve, stap, records, backend):
    """Over the server's own, and in place of it."""
    server = serve(*records.options, backend=backend, SYSTEMTAP_STAP=str(records.program), LC_TIME="C.UTF-8")
    ran = stap.via(server.port, "-p1", *SCRIPT, LANG="fr_FR.utf8", LC_NUMERIC="en_GB.utf8")
    assert ran.status == 0
    (environ,) = records.calls("environ")
    locale = {line for line in environ if line.startswith(("LANG", "LC_"))}
    assert locale == {"LANG=fr_FR.utf8", "LC_NUMERIC=en_GB.utf8", "LC_TIME=C.UTF-8"}


def test_server_in_the_c_locale_adds_none_of_its_own(serve, stap, records):
    """So does the original: what the compiler says is in the client's language, and in its encoding."""
    server = serve(*records.options, SYSTEMTAP_STAP=str(records.program), LANG="C")
    assert stap.via(server.port, "-p1", *SCRIPT, LANG="fr_FR.utf8").status == 0
    (environ,) = records.calls("environ")
    assert {line for line in environ if line.startswith(("LANG", "LC_"))} == {"LANG=fr_FR.utf8"}


def test_locale_that_no_server_would_take_is_told_to_the_client(server, stap):
    ran = stap.via(server.port, "-p1", *SCRIPT, LC_TIME="a b/../c")
    assert ran.status == 0
    assert "Server: Localization value 'a b/../c' contains illegal characters\n" in ran.stderr


def test_options_of_server_and_client_reach_stap_in_order(serve, stap, records, tmp_path):
    server = serve(
        *records.options, "-D", "MAXACTION=7", "-I", tmp_path, "-BV=0", SYSTEMTAP_STAP=str(records.program)
    )
    script = "probe begin {\n\tprintln(\"a 'b' $c \\\\ é\")\n}\n"
    ran = stap.via(server.port, "-vp1", "-DMINE=8", "-e", script, "--", "-x", "")
    assert ran.status == 0, ran.stderr
    (given,) = records.calls("arguments")
    release, runtime = stap.installation.release, stap.installation.runtime
    own = ["-r", release, "-BV=0", "-DMAXACTION=7", f"-I{tmp_path}", "-R", str(runtime)]
    assert given[: len(own)] == own
    assert given[len(own)].startswith(f"--tmpdir={server.temporary}/")
    # This is how the client writes its options, whatever was typed.
    theirs = [f"-r{release}", "-v", "-p1", "-DMINE=8", f"-e{script}", "--", "-x", ""]
    assert given[len(own) + 1 :] == ["--client-options", *theirs]


@pytest.mark.parametrize("equal", [False, True], ids=["different", "equal"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_six_requests_at_once(serve, stap, records, backend, equal):
    """None of them can be answered before all are seen to be in work, also where one compile is for all."""
    server = serve(*records.options, "--max-threads=6", backend=backend, SYSTEMTAP_STAP=str(records.program))
    assert server.log.has("^Using a maximum of 6 threads$", 1)
    records.hold()
    numbers = [1000] * 6 if equal else range(1000, 1006)
    scripts = [f"probe begin {{ println({number}) exit() }}" for number in numbers]
    clients = [stap.begin_via(server.port, "-p1", "-e", script) for script in scripts]
    server.log.wait(r": Processing 6 concurrent requests\.\.\.$")
    records.release()
    answers = [finish(client).stdout for client in clients]
    assert records.begun == (1 if equal else 6)
    assert all(f"println({number})" in answer for number, answer in zip(numbers, answers, strict=True))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_threads_is_one_request_at_a_time(serve, stap, records, backend):
    server = serve(*records.options, "--max-threads=0", backend=backend, SYSTEMTAP_STAP=str(records.program))
    assert server.log.has("^Concurrency disabled$", 1)
    records.hold()
    clients = [stap.begin_via(server.port, option, *SCRIPT) for option in ("-p1", "-p2")]
    server.log.wait("Server is overloaded")
    assert records.begun <= 1
    records.release()
    assert [finish(client).status for client in clients] == [0, 0]
    assert server.log.has(r"^Processing 1 request\.\.\.$", 2)
    assert server.log.count("concurrent") == 0


def test_one_server_for_several_releases(serve, stap):
    releases = stap.installation.releases[:2]
    if len(releases) < 2:
        pytest.skip("the headers of one kernel release only are installed")
    server = serve("-r", releases[1])
    for release in releases:
        ran = stap.via(server.port, "-p4", *SCRIPT, release=release)
        assert ran.status == 0, ran.stderr
        assert vermagic(stap.place / ran.module) == release


def test_build_tree_serves_the_release_of_its_modules(serve, stap, records):
    """Debian's headers state the upstream version beside it, which no client runs.

    A client that runs on that release says so without ``-r``, as it does with ``SYSTEMTAP_RELEASE``; its own
    ``-r`` would overrule the server's. Pass 4 would be a cold compile once more.
    """
    release = stap.installation.release
    tree = Path("/lib/modules", release, "build")
    server = serve(*records.options, "-r", tree, release=False, SYSTEMTAP_STAP=str(records.program))
    ran = stap.via(server.port, "-p2", *SCRIPT, release=None, SYSTEMTAP_RELEASE=release)
    assert ran.status == 0, ran.stderr
    # SystemTap 5 has other blanks there than 4.8.
    assert re.search(r"begin /\* +<- begin \*/ *\n\Z", ran.stdout)
    (given,) = records.calls("arguments")
    assert given[:2] == ["-r", str(tree)]


def test_kept_directory_holds_request_and_answer(serve, stap):
    (stap.place / "hello.stp").write_text(SCRIPT[1])
    server = serve("-k")
    stap.via(server.port, "-p4", "hello.stp")
    stap.via(server.port, "-p1", "hello.stp")
    kept = sorted(server.temporary.glob("stap-server.*/request"))
    assert len(kept) == 2
    assert all((request / "script" / f".{stap.place}/hello.stp").exists() for request in kept)
    assert len(list(server.temporary.glob("stap-server.*/response/stap000000/*.ko"))) == 1
