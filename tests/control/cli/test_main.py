"""``stap-server`` as its users call it: a process, a real supervisor behind it, and nothing left over."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.real import wait_until

from stapsrv.system.secure_dirs import Ownership, make_directory

PROGRAM = [sys.executable, "-c", "from stapsrv.control.cli.main import main; main()"]
FIRST_ID = 4194305


class Service:
    """Command lines with a global configuration file of the test's own, and the supervisors they started."""

    def __init__(self, directory: Path, environ: dict[str, str]) -> None:
        self.directory = directory
        self.environ = environ
        self.stat_path = directory / "stat"
        self.config_file = directory / "global.conf"
        (directory / "conf.d").mkdir(parents=True)
        self.config_file.write_text(
            f"CONFIG_PATH={directory}/conf.d\nSTAT_PATH={self.stat_path}\nLOG_FILE={directory}/log/log\n"
        )

    def configure(self, name: str, text: str) -> Path:
        path = self.directory / "conf.d" / f"{name}.conf"
        path.write_text(text)
        return path

    def begin(self, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PROGRAM, *map(str, words), "-c", str(self.config_file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environ,
        )

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        process = self.begin(*words)
        out, err = process.communicate(timeout=90)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def ok(self, *words: object) -> str:
        """Run a command that succeeds and complains of nothing; returns what it printed."""
        ran = self.run(*words)
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout

    def servers(self) -> list[dict]:
        status = json.loads(self.run("status", "--json").stdout)
        return [server for supervisor in status["supervisors"] for server in supervisor["servers"]]

    def holders(self) -> list[int]:
        """The processes that hold a supervisor's seat, or held it last."""
        return [int(lock.read_text() or 0) for lock in self.stat_path.glob("*/lock")]

    def kill(self) -> None:
        """End the supervisors without a chance to clean up; return when they are gone."""
        for pid in self.holders():
            try:
                pidfd = os.pidfd_open(pid)
            except (ProcessLookupError, OSError):
                continue
            if Path(f"/proc/{pid}/comm").read_text().strip() == "stap-serverd":
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            wait_ended(pidfd)


def wait_ended(pidfd: int) -> None:
    """Wait until a process has ended; closes the descriptor."""
    assert select.select([pidfd], [], [], 30)[0]
    os.close(pidfd)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    own = {"SYSTEMTAP_DIR": f"{tmp_path}/st", "TMPDIR": f"{tmp_path}/tmp"}
    return {**os.environ, **own, "STAP_PR11197_OVERRIDE": "1", "STAPSRV_MDNS": "no"}


@pytest.fixture
def service(tmp_path: Path, environ: dict[str, str]) -> Iterator[Service]:
    service = Service(tmp_path / "service", environ)
    if os.geteuid() == 0:
        service.config_file.open("a").write("STAP_USER=root\n")
    yield service
    service.kill()


@pytest.fixture
def options(build_tree: Path, identity: Path) -> list[object]:
    """Those of a server that needs no compile and no new certificate."""
    return ["-r", build_tree, "--ssl", identity]


# Streams.


def test_output_that_nobody_reads(service):
    process = service.begin("help")
    process.stdout.close()
    process.stdout = None
    assert process.wait(timeout=60) in {0, 141}
    assert "Traceback" not in process.communicate()[1]


PRINTING = {
    "stap-server": ["help", "--version"],
    "stap-server cache": ["stats", "--help"],
    "stap-server bench": ["--help"],
    "stap-server browse": ["--help"],
    "stap-server cert": ["--help"],
    "stap-server doctor": ["--help"],
    "stap-server mok": ["list --help"],
    "stap-server report": ["--help"],
    "stap-gen-cert": ["--help"],
    "stap-authorize-cert": ["--help"],
    "stap-compile": ["--help", "--version"],
    "stap-start-server": ["--help"],
    "stap-stop-server": ["--help"],
    "stap-serverd": ["--help", "--version"],
}
"""What each program prints without doing anything."""


@pytest.mark.parametrize(
    ("program", "words"), [(program, words) for program in PRINTING for words in PRINTING[program]]
)
def test_output_that_cannot_be_written(program, words, environ):
    own, *tool = program.split()
    command = [str(Path(sys.executable).with_name(own)), *tool, *words.split()]
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=environ, timeout=60, check=False
        )
    assert ran.returncode == 1
    assert ran.stderr.decode() == f"{program}: standard output: No space left on device\n"
    # And without one at all: there is nobody to be told.
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    assert subprocess.run(closed, env=environ, timeout=60, check=False).returncode == 0


def test_without_an_output(service):
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *PROGRAM, "status", "-c", str(service.config_file)]
    assert subprocess.run(closed, env=service.environ, timeout=60, check=False).returncode == 3


def test_names_that_the_locale_cannot_write(service):
    service.environ = {**service.environ, "PYTHONIOENCODING": "ascii"}
    ran = service.run("status", "-n", "größe")
    assert (ran.returncode, ran.stderr) == (3, "")
    assert ran.stdout == "No configuration found for the nickname 'gr\\xf6\\xdfe'\n"


# A supervisor for a command.


def test_a_server_s_life(service, options):
    started = service.ok("start", *options, "-n", "one")
    assert re.fullmatch(
        r'Starting stap-server -a "\w+" -r ".*" -u ".*" -n "one" --log ".*" --ssl ".*"\nOK\n', started
    )
    (one,) = service.servers()
    with socket.create_connection(("127.0.0.1", one["port"]), timeout=60):
        pass
    assert service.ok("status").rstrip().endswith(f"running as PID {FIRST_ID}")
    assert service.ok("start", *options, "-n", "another") == started.replace('"one"', '"another"')
    assert [server["nickname"] for server in service.servers()] == ["one"]
    service.ok("restart", "-n", "one")
    (again,) = service.servers()
    assert (again["id"], again["port"], again["state"]) == (one["id"], one["port"], "serving")
    service.ok("drain", "-p", FIRST_ID)
    assert service.servers()[0]["state"] == "draining"
    service.ok("undrain")
    assert service.servers()[0]["state"] == "serving"
    assert service.ok("stop", "-n", "one").splitlines()[-1] == "OK"
    assert service.run("status").returncode == 3


def test_the_supervisor_ends_with_its_last_server(service, options):
    service.ok("start", *options)
    (pid,) = service.holders()
    pidfd = os.pidfd_open(pid)
    service.ok("stop")
    wait_ended(pidfd)
    assert list(service.stat_path.iterdir()) == []
    assert list(Path(service.environ["TMPDIR"]).iterdir()) == []


def test_configured_servers(service, build_tree, identity):
    for name in ("a", "b"):
        service.configure(
            name, f"NICKNAME={name}\nRELEASE={build_tree}\nSSL={identity}\nMAXTHREADS={ord(name)}\n"
        )
    bad = service.configure("c", "PORT=abc\n")
    ran = service.run("start")
    assert ran.returncode == 1
    assert ran.stdout.count("OK") == 2
    assert ran.stderr.startswith(f"stap-server: {bad}:1: PORT=abc: expected a port number")
    bad.unlink()
    before = service.servers()
    service.configure("b", f"NICKNAME=b\nRELEASE={build_tree}\nSSL={identity}\nMAXTHREADS=9\n")
    service.configure("d", f"NICKNAME=d\nRELEASE={build_tree}\nSSL={identity}\nMAXTHREADS=10\n")
    service.ok("reload")
    after = {server["nickname"]: server for server in service.servers()}
    assert sorted(after) == ["a", "b", "d"]
    assert after["a"] == before[0]
    assert after["b"]["id"] != before[1]["id"]
    service.ok("start", "-r", build_tree, "--ssl", identity, "-n", "adhoc")
    service.ok("force-reload")
    assert sorted(server["nickname"] for server in service.servers()) == ["a", "b", "d"]


def test_a_start_that_fails_leaves_nothing(service, identity):
    ran = service.run("start", "-r", "/missing", "--ssl", identity, "-n", "x")
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (1, "FAILED")
    assert ran.stderr == (
        "stap-server: x: -r /missing: no kernel release in /missing/include/config/kernel.release"
        " (No such file or directory); give a configured and prepared kernel build tree"
        " (make modules_prepare)\n"
    )
    assert service.run("status").returncode == 3


def test_a_port_that_somebody_else_has(service, options):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        ran = service.run("start", *options, "--port", taken.getsockname()[1])
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (1, "FAILED")
    assert "is in use by another program; give a free one" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_two_starts_at_the_same_moment(service, options):
    commands = [
        service.begin("start", *options, "-n", f"n{index}", "--max-threads", index) for index in range(3)
    ]
    for command in commands:
        out, err = command.communicate(timeout=90)
        assert (command.returncode, err, out.splitlines()[-1]) == (0, "", "OK")
    assert len(service.holders()) == 1
    assert sorted(server["nickname"] for server in service.servers()) == ["n0", "n1", "n2"]


def test_a_supervisor_that_was_killed_is_replaced_and_its_servers_are_back(service, options, tmp_path):
    service.ok("start", *options, "-n", "one")
    (one,) = service.servers()
    # Its port is noted after the answer.
    wait_until((tmp_path / "st" / "server-ports").exists)
    service.kill()
    lost = service.run("status")
    assert lost.returncode == 1
    assert lost.stdout.endswith(f"started as PID {one['id']} is no longer running\n")
    service.ok("start", *options, "-n", "one")
    (back,) = service.servers()
    assert (back["id"], back["nickname"]) == (one["id"], "one")
    # Meanwhile anybody on this machine may take the port.
    assert back["port"] == one["port"] or is_taken(one["port"])


def is_taken(port: int) -> bool:
    try:
        socket.create_server(("::", port), family=socket.AF_INET6).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("action", ["start", "restart"])
def test_nickname_of_a_server_whose_supervisor_was_killed_is_known(service, options, action):
    service.ok("start", *options, "-n", "one", "--max-threads", 3)
    (one,) = service.servers()
    service.kill()
    service.ok(action, "-n", "one")
    (back,) = service.servers()
    assert back["id"] == one["id"]
    assert back["settings"] == one["settings"]
    service.kill()
    service.ok(action, "-p", one["id"])
    assert service.servers()[0]["id"] == one["id"]


def test_stop_after_a_supervisor_was_killed(service, options):
    service.ok("start", *options, "-n", "one")
    service.kill()
    assert service.ok("stop").splitlines()[-1] == "OK"
    assert service.run("status").returncode == 3
    service.ok("start", *options, "-n", "two")
    assert [server["nickname"] for server in service.servers()] == ["two"]


def test_a_supervisor_killed_in_the_middle_of_a_start(service, build_tree, tmp_path):
    """It is started once more, and the start ends as if nothing had been."""
    gate, certutil = tmp_path / "gate", tmp_path / "bin" / "certutil"
    os.mkfifo(gate)
    certutil.parent.mkdir()
    certutil.write_text(
        f'#!/bin/sh\n[ -e {gate} ] && read -r nothing <{gate}\nexec {shutil.which("certutil")} "$@"\n'
    )
    certutil.chmod(0o755)
    service.environ["PATH"] = f"{certutil.parent}:{service.environ['PATH']}"
    command = service.begin("start", "-r", build_tree, "--ssl", tmp_path / "new", "-n", "one")
    # With a new certificate it is in the middle of the start as long as the gate is shut.
    while not list(service.stat_path.glob("*.stat")):
        assert command.poll() is None
    service.kill()
    with gate.open("r+b", buffering=0):
        gate.unlink()
    out, err = command.communicate(timeout=90)
    assert (command.returncode, err, out.splitlines()[-1]) == (0, "", "OK")
    (one,) = service.servers()
    assert (one["nickname"], one["state"]) == ("one", "serving")


def test_a_status_directory_that_cannot_be_written(service, options):
    if os.geteuid() == 0:
        pytest.skip("nothing is unwritable for root")
    service.stat_path.mkdir()
    service.stat_path.chmod(0o555)
    ran = service.run("start", *options, "-n", "x")
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (1, "FAILED")
    assert re.fullmatch(
        rf"stap-server: x: {service.stat_path}/[\w-]+: cannot be made or opened: Permission denied; .*\n",
        ran.stderr,
    )


def test_an_interrupted_command_says_so(service, options):
    fifo = service.directory / "conf.d" / "slow.conf"
    os.mkfifo(fifo)
    command = service.begin("start")
    with fifo.open("w"):
        # Opened for reading by the command, which now waits for a server's settings.
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=60)
    assert (command.returncode, out) == (130, "")
    assert err == "stap-server: interrupted; what was begun goes on, as stap-server status shows\n"


# Root and its users.


@pytest.fixture
def shared(tmp_path_factory, environ) -> Iterator[Service]:
    """A service of root's in a directory that its users may reach."""
    directory = Path("/var/tmp") / f"stapsrv-test-{os.getpid()}"
    service = Service(directory, environ)
    yield service
    service.kill()
    shutil.rmtree(directory)


def owner(path: Path) -> tuple[str, str]:
    return path.owner(), path.group()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
class TestAsRoot:
    """Root starts a supervisor for each user, and sees them all."""

    def test_two_users_two_supervisors_one_status(self, shared, build_tree, pristine_identity):
        tree = shared.directory / "tree"
        shutil.copytree(build_tree, tree)
        users = ["stap-server", "stap-test"]
        for user in users:
            account = pwd.getpwnam(user)
            identity = shared.directory / f"identity-{user}"
            shutil.copytree(pristine_identity, identity)
            for path in (identity, *identity.iterdir()):
                os.chown(path, account.pw_uid, account.pw_gid)
            name = "" if user == "stap-server" else f"USER={user}\n"
            shared.configure(user, f"NICKNAME={user}\nRELEASE={tree}\nSSL={identity}\n{name}")
        shared.configure("ghost", f"NICKNAME=ghost\nUSER=nobody\nRELEASE={tree}\n")
        ran = shared.run("start")
        assert ran.returncode == 1
        assert ran.stdout.splitlines()[1::2] == ["FAILED", "OK", "OK"]
        place = f"{shared.directory}/conf.d/ghost.conf:2"
        assert ran.stderr.startswith(
            f"stap-server: ghost: {place}: user nobody is not in group stap-server; "
        )
        status = json.loads(shared.ok("status", "--json"))
        assert [supervisor["user"] for supervisor in status["supervisors"]] == users
        assert [server["nickname"] for server in shared.servers()] == users
        for supervisor in status["supervisors"]:
            assert Path(f"/proc/{supervisor['pid']}").owner() == supervisor["user"]
            environ = Path(f"/proc/{supervisor['pid']}/environ").read_bytes().split(b"\0")
            assert f"HOME={pwd.getpwnam(supervisor['user']).pw_dir}".encode() in environ
            assert not [name for name in environ if name.startswith(b"SYSTEMTAP_")]
        assert owner(shared.stat_path) == ("root", "stap-server")
        assert shared.stat_path.stat().st_mode & 0o7777 == 0o1775
        for user in users:
            assert owner(shared.stat_path / user) == (user, "stap-server")
            assert (shared.stat_path / user).stat().st_mode & 0o777 == 0o750
        log = shared.directory / "log" / "log"
        assert (owner(log), log.stat().st_mode & 0o777) == (("root", "stap-server"), 0o664)
        by_user = ["runuser", "-u", "stap-test", "--", *PROGRAM, "status", "-c", str(shared.config_file)]
        read = subprocess.run(by_user, capture_output=True, text=True, timeout=60, check=True, cwd="/")
        assert read.stdout == shared.ok("status")
        (shared.directory / "conf.d" / "ghost.conf").unlink()
        before = shared.servers()
        shared.ok("reload")
        assert shared.servers() == before
        assert shared.ok("stop").count("OK") == 2
        assert shared.run("status").returncode == 3

    @pytest.mark.parametrize(
        ("user", "reason"),
        [
            ("root", "no compile server runs as root; "),
            ("nobody", "user nobody is not in group stap-server; "),
            ("ghost", "user 'ghost' does not exist; "),
        ],
    )
    def test_users_that_are_refused(self, shared, user, reason):
        shared.environ = {
            name: value for name, value in shared.environ.items() if not name.startswith("STAP_")
        }
        ran = shared.run("start", "-r", "/tree", "-u", user, "-n", "x")
        assert (ran.returncode, ran.stdout.splitlines()[-1]) == (1, "FAILED")
        assert ran.stderr.startswith(f"stap-server: x: {reason}")
        assert not shared.stat_path.exists()

    def test_member_of_the_group_changes_nothing_for_root(self, shared, build_tree, pristine_identity):
        """What one user planted in STAT_PATH is neither obeyed nor waited for."""
        tree, identity = shared.directory / "tree", shared.directory / "identity"
        shutil.copytree(build_tree, tree)
        shutil.copytree(pristine_identity, identity)
        for path in (identity, *identity.iterdir()):
            shutil.chown(path, "stap-server", "stap-server")
        shared.configure("native", f"NICKNAME=native\nRELEASE={tree}\nSSL={identity}\n")
        make_directory(shared.stat_path, Ownership(0, grp.getgrnam("stap-server").gr_gid, 0o1775))
        plant = (
            "import os, socket\n"
            "record = '# stapsrv server\\nUSER=stap-server\\nNICKNAME=native\\nRELEASE=9\\nBUILD=EVIL=1\\n'\n"
            "open('4194999.stat', 'w').write(record)\n"
            "open('999999999999999999.stat', 'w').write(record)\n"
            "os.mkfifo('4194998.stat'); os.mkfifo('1.stat'); os.symlink('/etc/shadow', '2.stat')\n"
            "for name in ('root', 'nobody'):\n"
            "    os.mkdir(name); socket.socket(socket.AF_UNIX).bind(name + '/control.sock')\n"
        )
        member = ["runuser", "-u", "stap-test", "--", sys.executable, "-c", plant]
        subprocess.run(member, cwd=shared.stat_path, check=True, timeout=60)
        assert shared.run("status").returncode == 3
        shared.ok("start", "-n", "native")
        (server,) = shared.servers()
        assert (server["id"], server["settings"]["USER"]) == (FIRST_ID, "stap-server")
        assert server["settings"]["RELEASE"] == [str(tree)]
        assert "BUILD" not in server["settings"]
        shared.ok("condrestart")
        (pid,) = shared.holders()
        pidfd = os.pidfd_open(pid)
        assert shared.ok("stop").count("OK") == 1
        wait_ended(pidfd)
        # Its directory is gone; what the member made is his own business.
        assert not (shared.stat_path / "stap-server").exists()
        assert (shared.stat_path / "4194999.stat").owner() == "stap-test"

    def test_log_that_a_member_made_a_link_is_not_written_through(self, shared, build_tree):
        private = shared.directory / "private"
        private.touch()
        shutil.chown(private, "stap-server", "stap-server")
        log = shared.directory / "log"
        make_directory(log, Ownership(0, grp.getgrnam("stap-server").gr_gid, 0o775))
        link = ["runuser", "-u", "stap-test", "--", "ln", "-s", str(private), f"{log}/log"]
        subprocess.run(link, check=True, timeout=60)
        ran = shared.run("start", "-r", build_tree, "-n", "x")
        assert ran.returncode == 1
        assert f"log file {log}/log: cannot be written" in ran.stderr
        assert private.read_text() == ""
