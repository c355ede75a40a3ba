"""``stap-serverd -c FILE`` as a process: configured servers, the service manager, signals, a crash."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from kit.daemon import ServerProcess, passing, start
from kit.http import get_page
from kit.real import wait_until

from stapsrv.system.unix_socket import address_of

STAP_SERVER = "from stapsrv.control.cli.main import main; main()"


class Site:
    """A configuration directory of its own, and a way to ask its supervisor."""

    def __init__(self, directory: Path, identity: Path, build_tree: Path, *, stat: Path) -> None:
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.conf_d = directory / "conf.d"
        self.conf_d.mkdir()
        self.stat = stat
        self.log = directory / "log"
        self.config = directory / "global.conf"
        self.config.write_text(f"CONFIG_PATH={self.conf_d}\nSTAT_PATH={self.stat}\nLOG_FILE={self.log}\n")
        self._server = f"RELEASE={build_tree}\nSSL={identity}\n"
        self.environ = os.environ | {
            "SYSTEMTAP_DIR": str(directory / "systemtap"),
            "TMPDIR": str(directory),
            "STAP_PR11197_OVERRIDE": "1",
        }

    def configure(self, name: str, text: str = "") -> None:
        (self.conf_d / f"{name}.conf").write_text(f"{self._server}NICKNAME={name}\n{text}")

    def status(self) -> dict[str, dict]:
        """Ask the supervisor; returns its servers by nickname."""
        return {server["nickname"]: server for server in self.ask()["servers"]}

    def ask(self, method: str = "status", params: object = (), *, member: str = "result") -> dict:
        (path,) = self.stat.glob("*/control.sock")
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
        with socket.socket(socket.AF_UNIX) as control, address_of(path) as address:
            control.settimeout(60)
            control.connect(address)
            control.sendall(f"{json.dumps(request)}\n".encode())
            with control.makefile() as lines:
                return json.loads(lines.readline())[member]

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run stap-server."""
        command = [sys.executable, "-c", STAP_SERVER, *words, "-c", str(self.config)]
        return subprocess.run(
            command, env=self.environ, capture_output=True, text=True, timeout=120, check=False
        )

    def start(self, *options: str):
        return start(["-c", self.config, *options], self.environ)

    def start_with(self, **facts):
        return start(["-c", self.config], self.environ, **facts)


@pytest.fixture
def site(tmp_path, identity, build_tree):
    # A socket that a service manager passes has its whole path as its address, which is short.
    with tempfile.TemporaryDirectory(prefix="stat.", dir="/tmp") as stat:
        yield Site(tmp_path, identity, build_tree, stat=Path(stat, "s"))


def stop(server: ServerProcess) -> None:
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_hosts_what_is_configured(site, backend):
    site.configure("one")
    site.configure("two", "MAXTHREADS=1\n")
    with site.start("--backend", backend) as server:
        assert "STATUS=2 of 2 servers serve" in server.told
        servers = site.status()
        assert {name: found["state"] for name, found in servers.items()} == {
            "one": "serving",
            "two": "serving",
        }
        assert servers["one"]["origin"] == str(site.conf_d / "one.conf")
        stop(server)
    assert list(site.stat.glob("*.stat")) == []
    assert list(site.stat.glob("*/control.sock")) == []


def wait_logged(log: Path, words: str) -> str:
    """Wait until ``words`` are in a log, which is written a moment later than the events are; return it."""
    wait_until(lambda: words in log.read_text())
    return log.read_text()


def test_each_server_logs_in_its_own_format(site):
    own = site.log.with_name("own")
    site.configure("one", f"LOG={own}\nLOG_FORMAT=json\n")
    with site.start("--log-format", "classic") as server:
        (listening,) = (
            record
            for record in map(json.loads, wait_logged(own, "server.listening").splitlines())
            if record["event"] == "server.listening"
        )
        (server_id,) = (found["id"] for found in site.status().values())
        assert (listening["server"], listening["nickname"]) == (server_id, "one")
        site.configure("one", f"LOG={own}\nLOG_FORMAT=classic\n")
        own.unlink()
        server.send_signal(signal.SIGHUP)
        server.wait_told("READY=1")
        lines = wait_logged(own, "Using network address ").splitlines()
        assert json.loads(lines[0])["event"] == "server.stopped"
        assert any(line[26:].startswith("Using network address ") for line in lines[1:])
        stop(server)
    assert '{"time"' not in site.log.read_text()


def test_bad_file_is_reported_and_hinders_no_other(site):
    site.configure("good")
    site.configure("bad", "PORT=many\n")
    site.configure("impossible", "RUNTIME=/missing\n")
    with site.start("--metrics", "unix:metrics.sock") as server:
        place = site.stat / site.user / "metrics.sock"
        status, reasons = get_page(place, "/readyz")
        impossible, bad = reasons.splitlines()
        assert status == 503
        assert impossible.startswith("server impossible is failed: -R /missing: is not a directory")
        assert bad.startswith(f"configuration refused: {site.conf_d}/bad.conf:4: PORT=many: expected a port")
        metrics = get_page(place, "/metrics")[1]
        assert '\nstapsrv_server_serving{server="good"} 1.0\n' in metrics
        assert '\nstapsrv_server_serving{server="impossible"} 0.0\n' in metrics
        told = " ".join(server.told)
        assert "STATUS=1 of 2 servers serve; impossible: -R /missing: is not a directory" in told
        servers = site.status()
        assert (servers["good"]["state"], servers["impossible"]["state"]) == ("serving", "failed")
        stop(server)
    assert f"{site.conf_d}/bad.conf:4: PORT=many: expected a port number" in site.log.read_text()


def test_redirected_standard_error_has_the_log_where_none_is_named(site, tmp_path):
    """``stap-serverd >log 2>&1``, which is all that the original logs to then."""
    site.configure("one", f"LOG={tmp_path}/own\n")
    written = tmp_path / "written"
    words = [sys.executable, "-m", "stapsrv.daemon"]
    program = ["sh", "-c", f'exec "$@" 2>{written}', "sh", *words]
    named = site.config.read_text()
    site.config.write_text(named.replace(f"LOG_FILE={site.log}\n", ""))
    with start(["-c", site.config], site.environ, program=program) as server:
        stop(server)
    lines = written.read_text().splitlines()
    assert lines[0].endswith(f" starting as {site.user} =====")
    assert any(line.endswith(": Received signal 15, exiting") for line in lines)
    site.config.write_text(named)
    with start(["-c", site.config], site.environ, program=program) as server:
        stop(server)
    assert written.read_text() == ""


def test_blanks_at_the_end_of_a_line_are_dropped_and_told(site):
    site.configure("one", f"LOG={site.log}2 \n")
    with site.start() as server:
        stop(server)
    assert site.log.with_name("log2").exists()
    assert f"{site.conf_d}/one.conf:4: blanks at the end of LOG are no part of" in site.log.read_text()


def test_configured_server_that_is_refused_is_told_of_everywhere(site):
    site.configure("web")
    (site.conf_d / "z.conf").write_text((site.conf_d / "web.conf").read_text() + "MAXTHREADS=1\n")
    reason = f"{site.conf_d}/z.conf: nickname 'web' is that of server "
    with site.start("--metrics", "unix:metrics.sock") as server:
        status, reasons = get_page(site.stat / site.user / "metrics.sock", "/readyz")
        assert (status, reasons.count("\n")) == (503, 1)
        assert reasons.startswith(f"configuration refused: {reason}")
        told = site.command("status")
        assert told.returncode == 1
        assert told.stderr.startswith(f"stap-server: {reason}")
        assert "running as PID" in told.stdout
        stop(server)
    assert f"Configuration refused: {reason}" in site.log.read_text()


def test_recorded_server_whose_log_is_gone_keeps_no_supervisor_from_starting(site):
    logs = site.log.with_name("logs")
    logs.mkdir()
    site.configure("one", f"LOG={logs}/one\n")
    site.configure("two", "MAXTHREADS=1\n")
    with site.start() as server:
        server.send_signal(signal.SIGKILL)
        server.wait()
    shutil.rmtree(logs)
    with site.start() as server:
        servers = site.status()
        assert {name: found["state"] for name, found in servers.items()} == {
            "one": "failed",
            "two": "serving",
        }
        assert servers["one"]["reason"].startswith(f"log file {logs}/one: cannot be written")
        stop(server)


def test_retired_setting_does_not_stop_a_server_and_is_one_warning(site):
    site.configure("one")
    with site.config.open("a") as config:
        config.write("STANDBY=1\n")
    site.environ["STAPSRV_STANDBY"] = "1"
    with site.start("--standby", "1") as server:
        assert site.status()["one"]["state"] == "serving"
        server.send_signal(signal.SIGHUP)
        server.wait_told("READY=1")
        stop(server)
    lines = [line[26:] for line in site.log.read_text().splitlines() if "no effect" in line]
    assert lines == [
        "STAPSRV_STANDBY has no effect any more and can be removed",
        f"{site.config}:4: STANDBY has no effect any more and can be removed",
        "--standby has no effect any more and can be removed",
    ]


def test_hangup_reloads_without_losing_the_unchanged(site):
    site.configure("same")
    site.configure("gone", "MAXTHREADS=1\n")
    with site.start() as server:
        before = site.status()
        (site.conf_d / "gone.conf").unlink()
        site.configure("new", "MAXTHREADS=3\n")
        server.send_signal(signal.SIGHUP)
        told = server.wait_told("READY=1")
        assert told.index("RELOADING=1") < told.index("READY=1")
        after = site.status()
        assert set(after) == {"same", "new"}
        assert after["same"] == before["same"]
        stop(server)


def test_reload_of_a_damaged_file_keeps_its_server(site):
    site.configure("one")
    with site.start() as server:
        before = site.status()
        site.configure("one", "nonsense\n")
        server.send_signal(signal.SIGHUP)
        server.wait_told("READY=1")
        assert site.status() == before
        site.config.write_text("nonsense\n")
        server.send_signal(signal.SIGHUP)
        server.wait_told("READY=1")
        assert site.status() == before
        stop(server)
    assert f"{site.config}:1: expected VARIABLE=VALUE" in site.log.read_text()


def test_service_manager_is_told_of_the_end_and_fed(site):
    site.configure("one")
    site.environ["WATCHDOG_USEC"] = "200000"
    with site.start() as server:
        server.wait_told("WATCHDOG=1")
        server.send_signal(signal.SIGTERM)
        server.wait_told("STOPPING=1")
        assert server.wait() == 0


def test_killed_supervisor_is_resumed_with_ids_names_and_ports(site):
    site.configure("one")
    site.configure("two", "MAXTHREADS=1\n")
    with site.start() as server:
        before = site.status()
        server.send_signal(signal.SIGKILL)
        server.wait()
    assert len(list(site.stat.glob("*.stat"))) == 2
    assert len(list(site.stat.glob("*/control.sock"))) == 1
    with site.start() as server:
        after = site.status()
        assert {name: (found["id"], found["port"]) for name, found in after.items()} == {
            name: (found["id"], found["port"]) for name, found in before.items()
        }
        stop(server)


def test_no_resume(site):
    site.configure("one")
    with site.start() as server:
        (site.conf_d / "one.conf").unlink()
        site.configure("two", "MAXTHREADS=1\n")
        server.send_signal(signal.SIGKILL)
        server.wait()
    with site.start("--no-resume") as server:
        assert set(site.status()) == {"two"}
        assert len(list(site.stat.glob("*.stat"))) == 1
        stop(server)


def test_second_supervisor_is_refused(site):
    site.configure("one")
    with site.start() as server:
        command = [sys.executable, "-m", "stapsrv.daemon", "-c", str(site.config)]
        second = subprocess.run(
            command, env=site.environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert second.returncode == 1
        assert f"runs already, as process {server.pid}; command that one with stap-server" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        stop(server)


def test_configuration_that_cannot_be_read(site):
    command = [sys.executable, "-m", "stapsrv.daemon", "-c", "/missing.conf"]
    failed = subprocess.run(
        command, env=site.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert (failed.returncode, failed.stderr) == (
        1,
        "stap-serverd: /missing.conf: no such file; give -c a global configuration file\n",
    )


def test_configured_servers_of_other_users_are_left_to_them(site):
    """``STAPSRV_DEFAULT_USER`` is whom servers run as that do not say, as stap-server tells a supervisor."""
    site.configure("default")
    site.configure("mine", f"MAXTHREADS=1\nUSER={site.user}\n")
    site.environ["STAPSRV_DEFAULT_USER"] = "somebody-else"
    with site.start() as server:
        assert set(site.status()) == {"mine"}
        stop(server)


def test_server_that_the_environment_describes(site, build_tree):
    site.environ |= {
        "STAPSRV_RELEASE": str(build_tree),
        "STAPSRV_NICKNAME": "only",
        "STAPSRV_MAXTHREADS": "3",
    }
    with site.start() as server:
        (found,) = site.status().values()
        assert (found["nickname"], found["origin"], found["state"]) == ("only", "environment", "serving")
        assert (found["settings"]["RELEASE"], found["settings"]["MAXTHREADS"]) == ([str(build_tree)], 3)
        server.send_signal(signal.SIGHUP)
        server.wait_told("READY=1")
        assert list(site.status().values()) == [found]
        stop(server)


@pytest.mark.parametrize(
    ("name", "value"), [("STAPSRV_PORT", "many"), ("STAPSRV_PROT", "1"), ("STAPSRV_LOG_FILE", "a\nb")]
)
def test_wrong_environment_is_one_line_and_no_start(site, name, value):
    command = [sys.executable, "-m", "stapsrv.daemon", "-c", str(site.config)]
    environ = {**site.environ, name: value}
    failed = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"stap-serverd: {name}")
    assert len(failed.stderr.splitlines()) == 1
    assert not site.stat.exists()


def test_log_to_standard_output(site):
    site.configure("one", "LOG=/dev/stdout\n")
    site.config.write_text(site.config.read_text() + "LOG_FILE=/dev/stdout\n")
    reading, writing = os.pipe()
    with open(reading) as output:
        with site.start_with(stdout=writing) as server:
            os.close(writing)
            server.send_signal(signal.SIGHUP)
            server.wait_told("READY=1")
            stop(server)
        lines = output.read().splitlines()
    assert [line for line in lines if line.endswith(f"Using network address [::]:{port_in(lines)}")]
    assert [line for line in lines if line.endswith("Received signal 15, exiting")]
    assert not site.log.exists()


def port_in(lines: list[str]) -> str:
    (line,) = [line for line in lines if "Using network address" in line]
    return line.rpartition(":")[2]


def test_sockets_of_the_service_manager_are_served_and_left_open(site):
    site.configure("native")
    seat = site.stat / site.user
    seat.mkdir(parents=True, mode=0o750)
    with socket.create_server(("127.0.0.1", 0)) as port, socket.socket(socket.AF_UNIX) as control:
        control.bind(str(seat / "control.sock"))
        control.listen()
        inode = (seat / "control.sock").stat().st_ino
        for _ in range(2):
            with site.start_with(passed=[("native", port), ("control", control)]) as server:
                assert site.status()["native"]["port"] == port.getsockname()[1]
                stop(server)
            assert (seat / "control.sock").stat().st_ino == inode
            with socket.create_connection(port.getsockname(), timeout=60):
                pass


def test_connections_to_a_stopped_servers_port_are_reset(site):
    """A reset tells the client to come back, and then to go elsewhere."""
    site.configure("native")
    with socket.create_server(("127.0.0.1", 0)) as port:
        with site.start_with(passed=[("native", port)]) as server:
            (path,) = site.stat.glob("*/control.sock")
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(60)
                with address_of(path) as address:
                    control.connect(address)
                control.sendall(b'{"jsonrpc":"2.0","id":1,"method":"stop","params":{"ids":"all"}}\n')
                assert b'"error":null' in control.recv(65536)
            with socket.create_connection(port.getsockname(), timeout=60) as client:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            stop(server)
        assert "was reset: the server does not run" in site.log.read_text()


def test_socket_that_no_server_wants_is_one_line_and_no_start(site):
    site.configure("one")
    with socket.create_server(("127.0.0.1", 0)) as port:
        with passing([("native", port)]) as passed:
            failed = subprocess.run(
                [*passed.command, sys.executable, "-m", "stapsrv.daemon", "-c", str(site.config)],
                env=site.environ | passed.environ,
                pass_fds=passed.descriptors,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
    assert failed.returncode == 1
    assert failed.stderr == (
        "stap-serverd: socket 'native': is passed, and no configured server has this nickname; give the "
        "socket unit FileDescriptorName=, the server's nickname or control\n"
    )


def test_server_that_cannot_have_its_socket_hinders_no_other(site):
    site.configure("one")
    site.configure("native", "PORT=1\n")
    with socket.create_server(("127.0.0.1", 0)) as port:
        for state in ("failed", None):
            with site.start_with(passed=[("native", port)]) as server:
                servers = site.status()
                assert servers["one"]["state"] == "serving"
                assert servers.get("native", {}).get("state") == state
                stop(server)
            site.configure("native", "nonsense\n")


def is_reset(port: int) -> bool:
    """Say nothing, and see whether the server resets the connection rather than wait."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        try:
            client.recv(1)
        except ConnectionResetError:
            return True
    return False


def test_limits_of_the_global_file_hold_at_the_start_and_change_with_a_reload(site):
    with site.config.open("a") as config:
        config.write("MAX_TOTAL_CONNECTIONS=2\nMAX_CONNECTIONS=1\n")
    site.configure("one", "COMPILE_TIMEOUT=5m\n")
    site.configure("two", "MAX_CONNECTIONS=5\nMAXTHREADS=1\n")
    with site.start() as server:
        before = site.status()
        assert before["one"]["settings"]["MAX_CONNECTIONS"] == 1
        assert before["two"]["settings"]["MAX_CONNECTIONS"] == 5
        one, two = (before[name]["port"] for name in ("one", "two"))
        with socket.create_connection(("127.0.0.1", one)):
            assert is_reset(one)
            with socket.create_connection(("127.0.0.1", two)):
                assert is_reset(two)
        refusals = {name: found["refusals"] for name, found in site.status().items()}
        assert refusals == {"one": {"connections": 1}, "two": {"total_connections": 1}}
        site.config.write_text(site.config.read_text().replace("MAX_CONNECTIONS=1", "MAX_CONNECTIONS=3"))
        site.configure("one", "COMPILE_TIMEOUT=6m\n")
        server.send_signal(signal.SIGHUP)
        server.wait_told("READY=1")
        after = site.status()
        assert after["one"]["settings"]["MAX_CONNECTIONS"] == 3
        assert after["one"]["settings"]["COMPILE_TIMEOUT"] == "6m"
        assert [found["since"] for found in after.values()] == [found["since"] for found in before.values()]
        stop(server)


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_forced_reload_begins_anew_with_all_that_the_files_say(site, backend):
    """In the same process, which a service manager watches: also what concerns all servers of it."""
    site.configure("one")
    with site.start("--backend", backend) as server:
        log, stat = site.log.with_name("new-log"), site.stat.with_name("new")
        text, old_stat = site.config.read_text(), site.stat
        changed = text.replace(str(site.log), str(log)).replace(f"={site.stat}", f"={stat}")
        site.config.write_text(f"{changed}COMPILE_TIMEOUT=7m\nMAX_COMPILES=3\n")
        ran = site.command("force-reload")
        assert (ran.returncode, ran.stderr) == (0, "")
        words = [line.split()[0] for line in ran.stdout.splitlines()]
        assert words == ["Stopping", "OK", "Starting", "OK"]
        assert not (old_stat / site.user / "control.sock").exists()
        site.stat = stat
        (after,) = site.status().values()
        assert after["settings"]["COMPILE_TIMEOUT"] == "7m"
        told = site.ask()
        assert (told["pid"], told["max_compiles"]) == (server.pid, 3)
        wait_logged(log, "Using network address")
        server.send_signal(signal.SIGHUP)
        server.wait_told("READY=1")
        stop(server)
    assert "Received signal 15, exiting" in log.read_text()


def test_forced_reload_lets_nobody_start_a_supervisor_in_between(site):
    site.configure("one")
    with site.start() as server:
        with (site.stat / site.user / "lock").open() as lock:
            assert site.command("force-reload").returncode == 0
            assert os.path.samestat(os.fstat(lock.fileno()), Path(lock.name).stat())
        stop(server)


def test_forced_reload_with_a_wrong_global_file_stops_nothing(site):
    site.configure("one")
    with site.start() as server:
        before = site.status()
        text = site.config.read_text()
        site.config.write_text(f"{text}MAX_COMPILES=many\n")
        answer = site.ask("reload", {"force": True}, member="error")
        assert "MAX_COMPILES=many" in answer["message"]
        assert site.status() == before
        stop(server)
