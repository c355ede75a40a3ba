"""Faults of the host under a whole daemon: directories, space, descriptors, clock, SIGKILL."""

from __future__ import annotations

import os
import pwd
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from kit.daemon import PROGRAM, start
from kit.faulty import ask, environment, receive, send
from kit.footprint import wait_back
from kit.real import wait_until
from kit.stap import MAKES
from kit.trees import ProcessObserver

from stapsrv.compile.engine.tmpfs import Tmpfs

FILL = 'head -c 5000000 /dev/zero >"$answer/big"; i=0; while echo >"$answer/$i"; do i=$((i + 1)); done;'
TROUBLE = "Server: The server has trouble with its temporary directory: "


@pytest.fixture
def fifo(tmp_path):
    """A named pipe in a SANDBOX_WRITE directory, which compiles open: opening it waits for one of them."""
    path = tmp_path / "shared" / "fifo"
    path.parent.mkdir()
    os.mkfifo(path)
    return path


def requests_left(temporary: Path) -> list[str]:
    """Wait for the requests' directories to be gone; return those that are left."""
    return wait_back(lambda: [path.name for path in temporary.glob("stap-server.*/request.*")])


def test_removed_temporary_directory_is_made_again_when_possible(serve):
    server = serve()
    assert server.ask(MAKES).rc == 0
    assert requests_left(server.temporary) == []
    shutil.rmtree(next(server.temporary.iterdir()))
    assert server.ask(MAKES).rc == 0
    assert requests_left(server.temporary) == []
    shutil.rmtree(server.temporary)
    assert server.ask(MAKES).stderr == f"{TROUBLE}No such file or directory\n"
    server.wait_log(re.escape(f"{server.temporary}/stap-server."))
    server.temporary.mkdir()
    assert server.ask(MAKES).rc == 0
    assert requests_left(server.temporary) == []
    server.temporary.chmod(0)
    if os.geteuid():
        shown = server.ask(MAKES)
        assert (shown.rc, shown.stderr) == (1, f"{TROUBLE}Permission denied\n")
    server.temporary.chmod(0o700)
    assert server.ask(MAKES).rc == 0


def test_full_disk_refuses_requests_and_counts_lost_log_lines(serve, tmp_path, fifo):
    """Requests and log are on a disk of 3 MB, in the daemon's mount namespace."""
    disk = tmp_path / "disk"
    disk.mkdir()
    namespace = ("unshare", "--user", "--map-root-user", "--mount")
    if subprocess.run([*namespace, "mount", "-t", "tmpfs", "x", disk], check=False).returncode:
        pytest.skip("this host lets its users mount nothing")
    mount = f'mount -t tmpfs -o size=3m tmpfs {disk} && mkdir {disk}/tmp && exec "$@"'
    program = (*namespace, "sh", "-c", mount, "sh", *PROGRAM)
    options = ("--max-threads", 4, "--sandbox-write", fifo.parent)
    server = serve(*options, temporary=disk / "tmp", log=disk / "log", program=program)
    inside = Path(f"/proc/{server.pid}/root") / str(disk).lstrip("/")
    assert server.ask(MAKES).rc == 0
    hog = server.send(f"{FILL} read x <{fifo}; exit 3")
    with fifo.open("w"):  # when the hog has filled the disk, and until it may go
        for number in range(12):  # enough of them for what room the log has left in its last page
            refused = server.ask(f'head -c {number + 1} /dev/zero >"$answer/small"')
            assert refused.rc == 1
            assert "No space left on device" in refused.stderr
    assert receive(hog).rc == 3
    assert server.ask(MAKES).rc == 0
    wait_until(lambda: "log lines were lost while the log could not be written" in server.log_text())
    assert requests_left(inside / "tmp") == []


def test_exhausted_descriptors_refuse_or_delay_clients(serve):
    """With each number of them: an answer, a clear refusal, or a client that waits."""
    server = serve()
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    held = len(os.listdir(f"/proc/{server.pid}/fd"))
    refused = 0
    for spare in range(1, 13):
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (held + spare, hard))
        answer = server.ask(f"{MAKES} echo {spare}")
        assert answer.rc == 0 or answer.stderr.endswith(": Too many open files\n")
        assert "/" not in answer.stderr
        refused += answer.rc
    assert 0 < refused < 12
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (held + 3, hard))
    waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
    server.wait_log("cannot be accepted now: Too many open files")
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert server.ask(MAKES).rc == 0
    for client in waiting:
        client.close()
    assert server.left_over(threads=2) == []


def test_stopped_server_meets_its_deadlines_when_continued(serve, fifo):
    """Deadlines go by the monotonic clock; requests with time left go on."""
    server = serve("--handshake-timeout", "2", "--sandbox-write", fifo.parent)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as silent:
        compile_ = server.send(f"{MAKES} exec 3>{fifo}; sleep 2; echo made")
        with fifo.open("rb") as held:
            server.process.send_signal(signal.SIGSTOP)
            assert held.read() == b""  # the compile has ended, after the handshake's deadline
        server.process.send_signal(signal.SIGCONT)
        assert receive(compile_).stdout == "made\n"
        assert silent.recv(1) == b""
    assert server.ask(MAKES).rc == 0
    assert server.left_over(threads=2) == []


@pytest.mark.parametrize(
    ("options", "most_bytes"),
    [
        (("--max-total-temp-size", "1M"), 1 << 20),
        (("--max-total-temp-size", "1000T"), 1000 << 40),
        (("--temp-in-memory", "no", "--max-total-temp-size", "1M"), None),
    ],
)
def test_compiles_are_in_memory_if_there_is_room(serve, options, most_bytes):
    expected = None if most_bytes is None else Tmpfs().find_directory(most_bytes)
    server = serve(*options, TMPDIR="")
    said = "Requests are compiled in memory, in /dev/shm"
    assert (said in server.log_lines()) == (expected is not None)
    where = server.ask(f'{MAKES} echo "$PWD" >"$answer/where.c"').entries["stap000000/where.c"].decode()
    assert where.startswith(f"{expected or tempfile.gettempdir()}/stap-server.")


def test_directories_are_kept_on_disk(serve):
    server = serve("-k", "--max-total-temp-size", "1M", TMPDIR="")
    assert server.ask(MAKES).rc == 0
    server.wait_log("left its temporary directory")
    (kept,) = re.findall(r"left its temporary directory (\S+)$", server.log_text(), re.MULTILINE)
    assert Path(kept).parent == Path(tempfile.gettempdir())
    assert (Path(kept) / "response" / "stap000000").is_dir()
    shutil.rmtree(kept)


def test_killed_server_leaves_nothing_to_the_next(tmp_path, build_tree, identity, backend, fifo):
    """No process and no directory, and the port is free."""
    temporary, stat, configured = tmp_path / "tmp", tmp_path / "stat", tmp_path / "conf.d"
    temporary.mkdir()
    configured.mkdir()
    (configured / "one.conf").write_text(
        f"RELEASE={build_tree}\nSSL={identity}\nMAXTHREADS=4\nSANDBOX_WRITE={fifo.parent}\n"
    )
    config = tmp_path / "global.conf"
    config.write_text(f"CONFIG_PATH={configured}\nSTAT_PATH={stat}\nLOG_FILE={tmp_path}/log\n")
    arguments = ["-c", config, "--backend", backend, "--max-compiles", 4]
    environ = environment(tmp_path, temporary)
    seat = stat / pwd.getpwuid(os.geteuid()).pw_name
    with start(arguments, environ) as first:
        (record,) = stat.glob("*.stat")
        port = port_of(record)
        clients = [send(port, f"exec 3>{fifo}; echo {number} >&3; sleep 1000") for number in range(6)]
        with fifo.open() as begun:
            assert len({begun.readline() for _ in range(4)}) == 4
        held = ProcessObserver(first.pid)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        held.wait_gone(20)
        assert len(list(temporary.glob("stap-server.*/request.*"))) == 4
        for client in clients:
            client.close()
    with start(arguments, environ) as second:
        assert [path.name for path in stat.glob("*.stat")] == [record.name]
        assert port_of(record) == port
        assert list(temporary.glob("stap-server.*/request.*")) == []
        assert ask(port, MAKES).rc == 0
        assert len(list(temporary.glob("stap-server.*"))) == 1
        assert (seat / "control.sock").is_socket()
        second.send_signal(signal.SIGTERM)
        assert second.wait() == 0
    assert list(temporary.iterdir()) == []


def port_of(record: Path) -> int:
    return int(dict(line.split("=", 1) for line in record.read_text().splitlines() if "=" in line)["PORT"])
