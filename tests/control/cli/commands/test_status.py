"""``status``: whom it asks, what it makes of records and silence, and what it costs."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from kit.control import listening
from kit.supervisor import FIRST_ID, FakeSupervisor, here, server_status

from stapsrv.compile.health import Health
from stapsrv.config.settings import ServerSettings
from stapsrv.control.protocol.schema import encoded, settings_from
from stapsrv.control.protocol.status_fields import ServerInfo
from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.status import ReleaseStatus
from stapsrv.system.unix_socket import address_of

WEB = {"ARCH": "x86_64", "RELEASE": ["5.10"], "USER": here(), "NICKNAME": "web", "LOG": "/log", "PORT": 7001}
PLAIN = {"ARCH": "x86_64", "RELEASE": ["6.1"], "USER": here(), "LOG": "/log"}
WEB_LINE = f'stap-server -a "x86_64" -r "5.10" -u "{here()}" -n "web" --log "/log" --port "7001"'
PLAIN_LINE = f'stap-server -a "x86_64" -r "6.1" -u "{here()}" -n "4194306" --log "/log"'


@pytest.fixture
def supervisor(command_line, user):
    servers = [
        server_status(server_id, settings=settings_from(settings, where="settings"))
        for server_id, settings in ((FIRST_ID, WEB), (FIRST_ID + 1, PLAIN))
    ]
    with listening(FakeSupervisor(*servers, user=user), command_line.stat_path) as supervisor:
        yield supervisor


def record(command_line, server_id: int, text: str) -> Path:
    command_line.stat_path.mkdir(exist_ok=True)
    path = command_line.stat_path / f"{server_id}.stat"
    path.write_text(text)
    if os.geteuid() == 0:
        os.chown(path, pwd.getpwnam(here()).pw_uid, -1)
    return path


def test_the_original_s_lines(command_line, supervisor):
    ran = command_line.run("status")
    assert ran.out == f"{WEB_LINE} running as PID 4194305\n{PLAIN_LINE} running as PID 4194306\n"
    assert (ran.status, ran.err) == (0, "")


@pytest.mark.parametrize(
    ("words", "lines", "status"),
    [
        (["-n", "web"], [f"{WEB_LINE} running as PID 4194305"], 0),
        (["-p", "4194306"], [f"{PLAIN_LINE} running as PID 4194306"], 0),
        (["-n", "web", "-n", "4194306"], ["running as PID 4194305", "running as PID 4194306"], 0),
        (["-p", "9"], ["No stap-server running as pid 9"], 1),
        (["-p", "4242"], ["Process 4242 hosts 2 servers; name one by its own id: 4194305, 4194306"], 1),
        (["-n", "x"], ["No configuration found for the nickname 'x'"], 3),
        (["-r", "9.9"], ["is not running"], 3),
        (["-n", "web", "-r", "9.9", "-n", "x"], ["No configuration found for the nickname 'x'"], 3),
    ],
)
def test_servers_asked_about(command_line, supervisor, words, lines, status):
    ran = command_line.run("status", *words)
    printed = ran.out.splitlines()
    assert printed[-1].endswith(lines[-1])
    assert (ran.status, ran.err) == (status, "")


def test_nobody_runs(command_line):
    ran = command_line.run("status")
    assert (ran.status, ran.out, ran.err) == (3, "No managed stap-server is running\n", "")


def test_a_failed_server_is_told_with_its_reason(command_line, supervisor):
    supervisor.change(FIRST_ID, state=State.FAILED, reason="port 7001: is in use")
    ran = command_line.run("status")
    assert ran.out.splitlines()[0] == f"{WEB_LINE} started as PID 4194305 is no longer running"
    assert (ran.status, ran.err) == (1, "stap-server: web: port 7001: is in use\n")


@pytest.mark.parametrize("form", ["table", "lines"])
def test_a_release_that_cannot_be_compiled_for_is_told_with_its_reason(command_line, supervisor, form):
    healthy = ReleaseStatus("6.1.0", Health.HEALTHY, None)
    broken = ReleaseStatus("6.2.0", Health.UNHEALTHY, "x.h:3: error: no such\x1bthing")
    supervisor.change(FIRST_ID, releases=(healthy, broken))
    ran = command_line.run("status", terminal=form == "table")
    told = "web: cannot compile for 6.2.0: x.h:3: error: no such\\x1bthing"
    assert told in (ran.out if form == "table" else ran.err)
    assert ran.status == 0
    assert "6.1.0" not in ran.err


def test_json(command_line, supervisor, user):
    document = json.loads(command_line.run("status", "--json").out)
    (told,) = document["supervisors"]
    assert told["user"] == user
    assert told["servers"] == [encoded(server, ServerInfo) for server in supervisor.servers.values()]
    (one,) = json.loads(command_line.run("status", "--json", "-n", "web").out)["supervisors"]
    assert one["servers"] == [encoded(supervisor.servers[FIRST_ID], ServerInfo)]


def test_a_terminal_gets_a_table(command_line, supervisor):
    ran = command_line.run("status", terminal=True)
    *table, gap, containment = ran.out.splitlines()
    assert [line.split()[0] for line in table] == ["NICKNAME", "web", "4194306"]
    assert (gap, containment) == ("", "requests are contained by bubblewrap")
    classic = command_line.run("status", "--classic", terminal=True)
    assert classic.out == command_line.run("status").out


def test_servers_of_several_supervisors(command_line, several_users, supervisor):
    theirs = FakeSupervisor(server_status(7, settings=ServerSettings(nickname="zoe")), user="zoe", pid=4712)
    with listening(theirs, command_line.stat_path):
        ran = command_line.run("status")
        named = command_line.run("status", "-n", "zoe")
    assert [line.rpartition(" ")[2] for line in ran.out.splitlines()] == ["4194305", "4194306", "7"]
    assert named.out == 'stap-server -n "zoe" running as PID 7\n'


def test_a_socket_that_nobody_listens_to_is_passed_over(command_line, several_users, supervisor):
    supervisor_dir = command_line.stat_path / "dead"
    supervisor_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        with address_of(supervisor_dir / "control.sock") as address:
            dead.bind(address)
    assert command_line.run("status").status == 0


# Records of servers whose supervisor is gone.

RECORD = f"# stapsrv server\nARCH=x86_64\nUSER={here()}\nNICKNAME=web\nRELEASE+=5.10\nLOG=/log\nPORT=7001\n"


def test_a_record_without_a_supervisor(command_line):
    record(command_line, 4194305, RECORD)
    for words in ([], ["-n", "web"], ["-p", 4194305]):
        ran = command_line.run("status", *words)
        assert (ran.status, ran.out) == (1, f"{WEB_LINE} started as PID 4194305 is no longer running\n")
    assert "lost" in command_line.run("status", terminal=True).out
    (lost,) = json.loads(command_line.run("status", "--json").out)["lost"]
    assert lost == {
        "id": 4194305,
        "settings": WEB,
        "record": str(command_line.stat_path / "4194305.stat"),
    }


def test_a_port_that_was_not_asked_for_is_none_of_the_settings(command_line):
    record(command_line, 4194305, RECORD.replace("server\n", "server\n# stapsrv port: assigned\n"))
    assert "--port" not in command_line.run("status").out


@pytest.mark.parametrize(
    "text", ["", "ARCH=x86_64\nNICKNAME=27948\n", "# stapsrv server\nARCH", "# stapsrv server\nPORT=\xff\n"]
)
def test_other_programs_records_and_damaged_ones_are_passed_over(command_line, text):
    record(command_line, 27948, text)
    assert command_line.run("status").status == 3


def test_records_of_a_living_supervisor_are_its_own_business(command_line, supervisor):
    record(command_line, 4194305, RECORD)
    record(command_line, 9, RECORD)
    assert "PID 9 " not in command_line.run("status").out


def test_stop_takes_a_lost_server_off_the_record(command_line, user):
    path = record(command_line, 4194305, RECORD)
    other = record(command_line, 4194306, RECORD.replace("web", "other"))
    ran = command_line.run("stop", "-n", "web")
    assert (ran.status, ran.err, ran.out.splitlines()[-1]) == (0, "", "OK")
    assert (path.exists(), other.exists()) == (False, True)
    command_line.run("stop")
    assert not other.exists()


# What it costs.

HEAVY = [
    "attrs",
    "attr",
    "structlog",
    "anyio",
    "zeroconf",
    "trio",
    "cryptography",
    "argparse",
    "ssl",
    "asyncio",
]
UNNEEDED = [
    *HEAVY,
    "subprocess",
    "datetime",
    "difflib",
    "stapsrv.control.cli.parser",
    "stapsrv.control.client.sync",
    "stapsrv.control.cli.dispatch",
    "stapsrv.control.cli.inventory",
]


def loaded(words: list[str], names: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own, which complains about the modules that it has loaded."""
    program = (
        "import os, sys\n"
        "from stapsrv.control.cli.main import run\n"
        "from stapsrv.control.cli.console import Console\n"
        f"run({words!r}, Console(sys.stdout, sys.stderr), os.environ)\n"
        f"sys.exit(str([name for name in {names!r} if name in sys.modules]))"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("form", [[], ["--json"], ["--classic"]])
def test_a_plain_status_loads_next_to_nothing(command_line, supervisor, form):
    ran = loaded(["status", "-c", str(command_line.config_file), *form], UNNEEDED)
    assert ran.stderr == "[]\n"
    assert "web" in ran.stdout


def test_a_status_with_a_relative_file_needs_no_attrs_either(command_line, supervisor, monkeypatch):
    monkeypatch.chdir(command_line.directory)
    ran = loaded(["status", "-cglobal.conf"], [name for name in HEAVY if name != "argparse"])
    assert ran.stderr == "[]\n"
    assert ran.stdout.count("running as PID") == 2
