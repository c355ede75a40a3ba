"""The real client and several servers of one supervisor, commanded by ``stap-server``."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.ports import quiet_port
from kit.real import PATIENCE_S, FollowedLog, Stap, vermagic, wait_until

SCRIPT = ("-e", "probe begin { exit() }")

# A check gives way to everything else on the machine.
CHECK_S = 800.0


class Command:
    """``stap-server`` with a configuration of its own."""

    def __init__(self, stap: Stap) -> None:
        self.stap = stap
        self.place = stap.place / "site"
        (self.place / "conf.d").mkdir(parents=True)
        self.config = self.place / "global.conf"
        self.config.write_text(
            f"CONFIG_PATH={self.place}/conf.d\nSTAT_PATH={self.place}/stat\nLOG_FILE={self.place}/log\n"
        )

    def __call__(self, action: str, *options: object, status: int = 0, timeout_s: float = PATIENCE_S) -> str:
        action, *verb = action.split()
        words = [sys.executable, "-c", "from stapsrv.control.cli.main import main; main()", action]
        done = subprocess.run(
            [*words, *verb, "-c", str(self.config), *map(str, options)],
            env=self.stap.environ(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def supervisors(self) -> list[dict]:
        return json.loads(self("status", "--json"))["supervisors"]

    def servers(self) -> dict[str, dict]:
        """Return the servers by the release that they serve."""
        return {
            server["settings"]["RELEASE"][0]: server
            for supervisor in self.supervisors()
            for server in supervisor["servers"]
        }


@pytest.fixture
def command(stap: Stap) -> Iterator[Command]:
    made = Command(stap)
    yield made
    made("stop")
    # Whatever became of the supervisors, and of the test: they have ended when their sockets are gone.
    wait_until(lambda: not list(made.place.glob("stat*/*/control.sock")))


def test_forced_reload_serves_the_client_with_what_the_files_say_by_then(command):
    """Also where the supervisor's own directory moves, under which commands find it before and after."""
    installation = command.stap.installation
    (command.place / "conf.d" / "one.conf").write_text(
        f"RELEASE={installation.releases[0]}\nRUNTIME={installation.runtime}\nNICKNAME=one\n"
    )
    command("start")
    (before,) = command.supervisors()
    assert command.stap.via(before["servers"][0]["port"], "-p4", *SCRIPT).status == 0
    text = command.config.read_text()
    command.config.write_text(text.replace("/stat\n", "/stat-of-now\n") + "MAX_COMPILES=1\n")
    assert [found["pid"] for found in command.supervisors()] == [before["pid"]]
    assert command("force-reload").split().count("OK") == 2
    (after,) = command.supervisors()
    assert (after["pid"], after["max_compiles"]) == (before["pid"], 1)
    assert after["since"] != before["since"]
    assert command.stap.via(after["servers"][0]["port"], "-p4", *SCRIPT).status == 0


def test_one_server_for_each_installed_release(command):
    """``-i``: each release is compiled for by the server that has it, and by no other."""
    releases = command.stap.installation.releases
    if len(releases) < 2:
        pytest.skip("headers of two kernel releases are needed; run packaging/setup")
    command("start", "-R", command.stap.installation.runtime, "-i")
    servers = command.servers()
    assert set(servers) == {path.parent.name for path in Path("/lib/modules").glob("*/build")}
    newest, other = servers[releases[0]], servers[releases[1]]
    made = command.stap.via(newest["port"], "-p4", *SCRIPT)
    assert made.status == 0, made.stderr
    assert vermagic(command.stap.place / made.module) == releases[0]
    analysed = command.stap.via(other["port"], "-p2", *SCRIPT, release=releases[1])
    assert (analysed.status, "# probes" in analysed.stdout) == (0, True)
    strange = command.stap.via(other["port"], "-p4", *SCRIPT, release=releases[0])
    assert strange.status != 0
    assert f"Target kernel version {releases[0]} x86_64 is not supported by this server" in strange.stderr
    after = command.servers()
    assert [after[release]["done"] for release in releases[:2]] == [1, 1]


def test_one_server_on_one_port_for_all_installed_releases(command):
    releases = command.stap.installation.releases
    if len(releases) < 2:
        pytest.skip("headers of two kernel releases are needed; run packaging/setup")
    port = quiet_port()
    command("start", "-i", "-R", command.stap.installation.runtime, "--port", port)
    (server,) = command.supervisors()[0]["servers"]
    assert server["port"] == port
    for release in releases[:2]:
        analysed = command.stap.via(port, "-p2", *SCRIPT, release=release)
        assert (analysed.status, "# probes" in analysed.stdout) == (0, True), analysed.stderr


def test_killed_supervisor_serves_the_client_again_on_the_same_port(command):
    described = ("-r", command.stap.installation.release, "-R", command.stap.installation.runtime)
    command("start", *described)
    (supervisor,) = command.supervisors()
    (before,) = supervisor["servers"]
    pidfd = os.pidfd_open(supervisor["pid"])
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], PATIENCE_S)[0]
    os.close(pidfd)
    assert "is no longer running" in command("status", status=1)
    # The next start takes up what was lost.
    command("start", *described)
    (after,) = command.servers().values()
    assert (after["id"], after["port"]) == (before["id"], before["port"])
    assert command.stap.via(after["port"], "-p1", *SCRIPT).status == 0


def test_restart_under_load_loses_no_request_that_had_arrived(command):
    release, runtime = command.stap.installation.release, command.stap.installation.runtime
    # On a busy machine a compile takes longer than the time that a stop gives it.
    command.config.write_text(f"{command.config.read_text()}DRAIN_TIMEOUT=10m\n")
    command("start", "-r", release, "-R", runtime)
    (supervisor,) = command.supervisors()
    (server,) = supervisor["servers"]
    client = command.stap.begin_via(server["port"], "-p4", *SCRIPT)
    with FollowedLog.open(command.place / "log", supervisor["pid"]) as log:
        log.wait("Processing 1 request")
    command("restart")
    stdout, stderr = client.communicate(timeout=PATIENCE_S)
    assert (client.returncode, stdout.endswith(".ko\n")) == (0, True), stderr


def test_first_request_of_a_checked_script_is_a_hit_in_any_usual_locale(command):
    installation = command.stap.installation
    collection = command.place / "collection"
    collection.mkdir()
    script = collection / "hello.stp"
    script.write_text('probe begin { println("checked") exit() }\n')
    # As the client of these tests asks.
    script.with_suffix(".toml").write_text(f'options = ["-r", "{installation.release}", "-p4"]\n')
    (command.place / "conf.d" / "one.conf").write_text(
        f"RELEASE={installation.release}\nRUNTIME={installation.runtime}\nSCRIPTS={collection}\nPORT={quiet_port()}\n"
    )
    command("start")
    (server,) = command.servers().values()
    (checked,) = json.loads(command("scripts check", "--json", timeout_s=CHECK_S))["results"]
    assert checked["verdict"] in {"ok", "warns"}
    assert checked["uncacheable"] is None
    for locale in ("C.UTF-8", "en_US.UTF-8"):
        assert command.stap.via(server["port"], "-p4", str(script), LANG=locale).status == 0
    # What the check did is not counted.
    (server,) = command.servers().values()
    assert (server["cache"]["hits"], server["cache"]["misses"]) == (2, 0)
