"""A host that lets a whole daemon down: no directory, no space, no descriptors, no time, no life."""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from kit.daemon import PROGRAM, start
from kit.faulty import ask, environment, receive, send
from kit.footprint import Footprint, descendants, wait_back
from kit.real import wait_until
from kit.stap import MAKES

FILL = 'head -c 5000000 /dev/zero >"$answer/big"; i=0; while echo >"$answer/$i"; do i=$((i + 1)); done;'
TROUBLE = "Server: The server has trouble with its temporary directory: "


def test_temporary_directory_that_goes_and_comes_back(serve):
    server = serve()
    assert server.ask(MAKES).rc == 0
    shutil.rmtree(next(server.temporary.iterdir()))
    assert server.ask(MAKES).rc == 0
    shutil.rmtree(server.temporary)
    assert server.ask(MAKES).stderr == f"{TROUBLE}No such file or directory\n"
    assert f"{server.temporary}/stap-server." in server.log_text()
    server.temporary.mkdir()
    assert server.ask(MAKES).rc == 0
    server.temporary.chmod(0)
    if os.geteuid():
        shown = server.ask(MAKES)
        assert (shown.rc, shown.stderr) == (1, f"{TROUBLE}Permission denied\n")
    server.temporary.chmod(0o700)
    assert server.ask(MAKES).rc == 0


def test_disk_that_fills_up(serve, tmp_path):
    """Requests and log are on a disk of 3 MB, in a mount namespace of the daemon's own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    namespace = ("unshare", "--user", "--map-root-user", "--mount")
    if subprocess.run([*namespace, "mount", "-t", "tmpfs", "x", disk], check=False).returncode:
        pytest.skip("this host lets its users mount nothing")
    mount = f'mount -t tmpfs -o size=3m tmpfs {disk} && mkdir {disk}/tmp && exec "$@"'
    program = (*namespace, "sh", "-c", mount, "sh", *PROGRAM)
    server = serve("--max-threads", 4, temporary=disk / "tmp", log=disk / "log", program=program)
    inside = Path(f"/proc/{server.pid}/root") / str(disk).lstrip("/")
    assert server.ask(MAKES).rc == 0
    hog = server.send(f'{FILL} mkfifo "$answer/go"; read x <"$answer/go"; exit 3')
    wait_until(lambda: any(inside.glob("tmp/*/*/*/*/go")))
    for number in range(12):  # enough of them for what room the log has left in its last page
        refused = server.ask(f'head -c {number + 1} /dev/zero >"$answer/small"')
        assert refused.rc == 1
        assert "No space left on device" in refused.stderr
    (gate,) = inside.glob("tmp/*/*/*/*/go")
    gate.write_text("go\n")
    assert receive(hog).rc == 3
    assert server.ask(MAKES).rc == 0
    assert "log lines were lost while the log could not be written" in server.log_text()
    assert wait_back(lambda: [path.name for path in (inside / "tmp").glob("*/request.*")]) == []


def test_descriptors_that_run_out(serve):
    """However few there are: an answer, a clear refusal, or a client that waits to be let in."""
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
    wait_until(lambda: "cannot be accepted now: Too many open files" in server.log_text())
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert server.ask(MAKES).rc == 0
    for client in waiting:
        client.close()
    assert server.left_over(threads=2) == []


def test_time_that_stands_still(serve):
    """Deadlines go by a clock that nobody sets; after a stop they are met, and what can goes on."""
    server = serve("--handshake-timeout", "0.5")
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent:
        compile_ = server.send(f"{MAKES} sleep 0.2; echo made")
        wait_until(lambda: "Processing 1 request" in server.log_text())
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        server.process.send_signal(signal.SIGCONT)
        assert receive(compile_).stdout == "made\n"
        assert silent.recv(1) == b""
    assert server.ask(MAKES).rc == 0
    assert server.left_over(threads=2) == []


def test_kill_under_load(tmp_path, build_tree, identity, backend):
    """Nothing of the killed is left when the next one serves, on the same port, whoever asks."""
    temporary, stat, configured = tmp_path / "tmp", tmp_path / "stat", tmp_path / "conf.d"
    temporary.mkdir()
    configured.mkdir()
    (configured / "one.conf").write_text(f"RELEASE={build_tree}\nSSL={identity}\nMAXTHREADS=4\n")
    config = tmp_path / "global.conf"
    config.write_text(f"CONFIG_PATH={configured}\nSTAT_PATH={stat}\nLOG_FILE={tmp_path}/log\n")
    arguments = ["-c", config, "--backend", backend, "--max-compiles", 4]
    environ = environment(tmp_path, temporary)
    seat = stat / pwd.getpwuid(os.geteuid()).pw_name
    with start(arguments, environ) as first:
        (record,) = stat.glob("*.stat")
        port = port_of(record)
        clients = [send(port, f"sleep 100{number}") for number in range(6)]
        wait_until(lambda: Footprint.of(first.pid, temporary).processes["sleep"] == 4)
        held = descendants(first.pid)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        assert wait_back(lambda: [str(pid) for pid in held if is_alive(pid)]) == []
        assert len(list(temporary.glob("stap-server.*/request.*"))) == 4
        for client in clients:
            client.close()
    with start(arguments, environ) as second:
        assert [path.name for path in stat.glob("*.stat")] == [record.name]
        assert port_of(record) == port
        assert ask(port, MAKES).rc == 0
        assert list(temporary.glob("stap-server.*/request.*")) == []
        assert len(list(temporary.glob("stap-server.*"))) == 1
        assert (seat / "control.sock").is_socket()
        second.send_signal(signal.SIGTERM)
        assert second.wait() == 0
    assert list(temporary.iterdir()) == []


def port_of(record: Path) -> int:
    return int(dict(line.split("=", 1) for line in record.read_text().splitlines() if "=" in line)["PORT"])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
