"""Which servers a command means: the manual page's sentences as cases, then what they leave open."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stapsrv.config.settings import HostDefaults, ServerSettings
from stapsrv.control.cli.invocation import Action
from stapsrv.control.cli.parser import parse_arguments
from stapsrv.control.cli.plan import Operation, Plan, Target, make_plan
from stapsrv.control.cli.targets import ConfiguredServer, HostFacts, RunningServer

HOST = HostFacts(
    defaults=HostDefaults(arch="x86_64", release="6.1", user="me", log=Path("/log")),
    installed=("5.10", "6.1"),
)
WEB = ServerSettings(
    releases=("5.10",),
    include=("/web",),
    define=("WEB",),
    nickname="web",
    port=7001,
    ssl=Path("/nss"),
    log=Path("/web.log"),
    max_threads=3,
)
PLAIN = ServerSettings()
CROSS = ServerSettings(arch="arm64", releases=("/build",), nickname="cross", user="bob")
FAST = ServerSettings(nickname="fast", max_threads=64)


def run(*servers: ServerSettings) -> list[RunningServer]:
    """Servers that run, with ids from 101, recorded as a supervisor records them."""
    return [
        RunningServer(101 + index, attrs.evolve(one.resolved(HOST.defaults), nickname=one.nickname), 4711)
        for index, one in enumerate(servers)
    ]


def configure(*servers: ServerSettings) -> list[ConfiguredServer]:
    return [ConfiguredServer(one, f"{index}.conf") for index, one in enumerate(servers, start=1)]


def choose(
    line: str,
    running: list[RunningServer] | None = None,
    configured: list[ConfiguredServer] | None = None,
    host: HostFacts = HOST,
) -> Plan:
    invocation = parse_arguments(shlex.split(line), directory="/")
    return make_plan(invocation, running=running or [], configured=configured or [], host=host)


def shown(target: Target) -> str:
    """A target in a few words: deed, id if it runs, settings that differ from the host's defaults."""
    words: list[str] = [str(target.operation)]
    if target.server is not None:
        words.append(str(target.server.server_id))
    if target.problem is not None:
        words.append(target.problem)
    elif target.settings is not None and target.operation not in (
        Operation.STOP,
        Operation.REPORT,
        Operation.DRAIN,
        Operation.UNDRAIN,
    ):
        given = attrs.asdict(target.settings, filter=attrs.filters.exclude("tuning"))
        plain = attrs.asdict(PLAIN.resolved(HOST.defaults))
        words += (f"{name}={_short(value)}" for name, value in given.items() if value != plain[name])
    return " ".join(words)


def _short(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


WEB_SHOWN = "releases=5.10 define=WEB include=/web nickname=web log=/web.log port=7001 ssl=/nss max_threads=3"
NOBODY = "refuse No configuration found for the nickname 'nobody'"

MANUAL = [
    # ── start ──
    pytest.param(
        "start -r 5.10", [], [WEB], ["start releases=5.10"], 0, id="start: the specified servers are started"
    ),
    pytest.param(
        "start",
        [],
        [WEB, CROSS],
        [f"start {WEB_SHOWN}", "start arch=arm64 releases=/build user=bob nickname=cross"],
        0,
        id="start: if no server is specified, the configured servers are started",
    ),
    pytest.param(
        "start", [], [], ["start"], 0, id="start: if none are configured, a server for the host is started"
    ),
    pytest.param(
        "start -r 5.10 -r 6.1",
        [PLAIN, ServerSettings(releases=("6.1", "5.10"))],
        [],
        ["keep 102 releases=5.10,6.1"],
        0,
        id="start: if a specified server is already started, it is ignored",
    ),
    pytest.param(
        "start",
        [WEB],
        [WEB, CROSS],
        [f"keep 101 {WEB_SHOWN}", "start arch=arm64 releases=/build user=bob nickname=cross"],
        0,
        id="start: configured servers that run are ignored",
    ),
    # ── stop ──
    pytest.param(
        "stop -n web", [PLAIN, WEB], [], ["stop 102"], 0, id="stop: the specified servers are stopped"
    ),
    pytest.param(
        "stop",
        [PLAIN, WEB],
        [CROSS],
        ["stop 101", "stop 102"],
        0,
        id="stop: if no server is specified, all running ones are stopped",
    ),
    pytest.param(
        "stop -r 5.10",
        [PLAIN],
        [],
        ["absent releases=5.10"],
        0,
        id="stop: if a specified server is not running, it is a success",
    ),
    # ── restart ──
    pytest.param(
        "restart -n web -p 101",
        [PLAIN, WEB, FAST],
        [],
        [f"restart 102 {WEB_SHOWN}", "restart 101"],
        0,
        id="restart: the specified servers are stopped and restarted",
    ),
    pytest.param(
        "restart",
        [PLAIN, FAST],
        [WEB],
        ["restart 101", "restart 102 nickname=fast max_threads=64"],
        0,
        id="restart: if no server is specified, all running ones are",
    ),
    pytest.param(
        "restart",
        [],
        [WEB],
        [f"start {WEB_SHOWN}"],
        0,
        id="restart: if no servers are running, it behaves like start: configured",
    ),
    pytest.param(
        "restart", [], [], ["start"], 0, id="restart: if no servers are running, it behaves like start: host"
    ),
    pytest.param(
        "restart -n nobody",
        [],
        [],
        ["start nickname=nobody"],
        0,
        id="restart: if no servers are running, it behaves like start: a new nickname",
    ),
    pytest.param(
        "restart -n web",
        [PLAIN],
        [WEB],
        [f"start {WEB_SHOWN}"],
        0,
        id="restart: a specified server that does not run is started",
    ),
    # ── condrestart ──
    pytest.param(
        "condrestart -n web",
        [PLAIN, WEB],
        [],
        [f"restart 102 {WEB_SHOWN}"],
        0,
        id="condrestart: the specified servers are stopped and restarted",
    ),
    pytest.param(
        "condrestart -n web",
        [PLAIN],
        [WEB],
        [f"absent {WEB_SHOWN}"],
        0,
        id="condrestart: if a specified server is not running, it is not started",
    ),
    pytest.param(
        "condrestart",
        [PLAIN],
        [WEB],
        ["restart 101"],
        0,
        id="condrestart: if no server is specified, all running ones are restarted",
    ),
    pytest.param(
        "condrestart", [], [WEB], [], 0, id="condrestart: if no servers are running, none is started"
    ),
    pytest.param("try-restart", [PLAIN], [], ["restart 101"], 0, id="try-restart is condrestart"),
    # ── force-reload, status ──
    pytest.param(
        "force-reload",
        [PLAIN, CROSS],
        [CROSS, WEB],
        [
            "stop 101",
            "restart 102 arch=arm64 releases=/build user=bob nickname=cross",
            f"start {WEB_SHOWN}",
        ],
        0,
        id="force-reload: stop all running servers, then as start",
    ),
    pytest.param(
        "force-reload -r 5.10",
        [PLAIN],
        [WEB],
        ["stop 101", "start releases=5.10"],
        0,
        id="force-reload: as start with the specified servers",
    ),
    pytest.param("force-reload", [], [], ["start"], 0, id="force-reload: as start for the host"),
    pytest.param(
        "status -n web",
        [PLAIN, WEB],
        [],
        ["report 102"],
        0,
        id="status: about the specified servers",
    ),
    pytest.param(
        "status",
        [PLAIN, WEB],
        [CROSS],
        ["report 101", "report 102"],
        0,
        id="status: if no server is specified, about all running ones",
    ),
    pytest.param("status", [], [WEB], [], 3, id="status: none runs"),
    pytest.param(
        "status -r 5.10 -n web",
        [WEB],
        [],
        ["report 101"],
        0,
        id="status: what is typed before -n gives way to what it loads",
    ),
    pytest.param(
        "status -r 5.10", [PLAIN], [], ["absent releases=5.10"], 3, id="status: a server that does not run"
    ),
    # ── -i ──
    pytest.param(
        "start -i",
        [],
        [WEB],
        ["start releases=5.10", "start"],
        0,
        id="-i: one server for each installed release",
    ),
    pytest.param(
        "start -I /i -R /r -B b -D d -u u -i",
        [],
        [],
        [
            "start releases=5.10 build=b define=d include=/i runtime=/r user=u",
            "start build=b define=d include=/i runtime=/r user=u",
        ],
        0,
        id="-i: previous -I -R -B -D and -u are applied to each",
    ),
    pytest.param(
        "start -a arm64 -i",
        [],
        [],
        ["start releases=5.10", "start"],
        0,
        id="-i: previous -a are ignored and the host's architecture is used",
    ),
    pytest.param(
        "stop -i",
        [PLAIN],
        [],
        ["absent releases=5.10", "stop 101"],
        0,
        id="-i: for another action than start",
    ),
    # ── -n ──
    pytest.param(
        "start -n web",
        [attrs.evolve(CROSS, nickname="web")],
        [WEB],
        ["keep 101 arch=arm64 releases=/build user=bob nickname=web"],
        0,
        id="-n: a running server is searched for first",
    ),
    pytest.param(
        "start -n web", [PLAIN], [WEB], [f"start {WEB_SHOWN}"], 0, id="-n: then a configured server"
    ),
    pytest.param(
        "start -n web -a arm64",
        [WEB],
        [],
        ["start arch=arm64 releases=5.10 define=WEB include=/web"],
        0,
        id="-n: a server like another one, for another architecture: the options are used as if typed",
    ),
    pytest.param(
        "start -n nobody -r 5.10",
        [PLAIN],
        [WEB],
        ["start releases=5.10 nickname=nobody"],
        0,
        id="-n: not found by start: a new server gets the nickname",
    ),
    pytest.param(
        "start -n web -I /web -D WEB",
        [attrs.evolve(WEB, include=("/first", "/web"))],
        [],
        [f"keep 101 {WEB_SHOWN.replace('/web nick', '/first,/web nick')}"],
        0,
        id="-n: the command that started it, typed again, means that server",
    ),
    pytest.param(
        "start -n web -I /first",
        [attrs.evolve(WEB, include=("/first", "/web"))],
        [],
        ["start releases=5.10 define=WEB include=/first,/web,/first"],
        0,
        id="-n: a value that the server has, but not last, makes another one",
    ),
    pytest.param("stop -n nobody", [PLAIN], [WEB], [NOBODY], 1, id="-n: not found by stop: an error"),
    pytest.param("status -n nobody", [PLAIN], [WEB], [NOBODY], 3, id="-n: not found by status: an error"),
    pytest.param("condrestart -n nobody", [PLAIN], [], [NOBODY], 1, id="-n: not found by condrestart"),
    pytest.param("restart -n nobody", [PLAIN], [], [NOBODY], 1, id="-n: not found by restart while one runs"),
    pytest.param(
        "force-reload -n nobody",
        [FAST],
        [],
        ["stop 101", "start nickname=nobody"],
        0,
        id="-n: not found by force-reload, which behaves like start",
    ),
    pytest.param("stop -n 101", [PLAIN], [], ["stop 101"], 0, id="-n: by default the nickname is the id"),
    # ── -p ──
    pytest.param("stop -p 102", [PLAIN, WEB], [], ["stop 102"], 0, id="-p: a running server"),
    pytest.param(
        "status -p 999",
        [PLAIN],
        [],
        ["refuse No stap-server running as pid 999"],
        1,
        id="-p: if no such server is found, it is an error",
    ),
    pytest.param(
        "start -p 999 -r 5.10",
        [PLAIN],
        [],
        ["refuse No stap-server running as pid 999"],
        1,
        id="-p: an error for start, too",
    ),
    pytest.param(
        "start -p 101 -u eve",
        [WEB],
        [],
        ["start releases=5.10 define=WEB include=/web user=eve"],
        0,
        id="-p: its options are used as if typed",
    ),
    # ── the lists ──
    pytest.param(
        "start -i --port 7001 --log /a --port 7002",
        [],
        [],
        ["start releases=5.10 log=/a port=7001", "start port=7002"],
        0,
        id="--port and --log are applied in turn to each server, then the defaults",
    ),
    pytest.param(
        "start --port 7001 -i -R /r --log /a",
        [],
        [],
        ["start releases=5.10,6.1 runtime=/r log=/a port=7001"],
        0,
        id="-i with one port: one server for all releases, options in any order",
    ),
    pytest.param(
        "stop -i",
        [attrs.evolve(PLAIN, releases=("5.10", "6.1"), port=7001)],
        [],
        ["stop 101"],
        0,
        id="-i: the server that -i with one port has started",
    ),
    pytest.param(
        "stop -i -D d",
        [attrs.evolve(PLAIN, releases=("5.10", "6.1"), port=7001)],
        [],
        ["absent releases=5.10 define=d", "absent define=d"],
        0,
        id="-i: not another server for all releases",
    ),
    pytest.param(
        "start -r /b -i --port 7001 --port 7002 --port 7003",
        [],
        [],
        ["start releases=/b port=7001", "start releases=5.10 port=7002", "start port=7003"],
        0,
        id="-i with a port for each release",
    ),
    pytest.param(
        "start -i --ssl /s --max-threads 0 --max-request-size 9 --max-compressed-request 8",
        [],
        [],
        [
            "start releases=5.10 ssl=/s max_threads=0 max_request_bytes=9 max_compressed_bytes=8",
            "start",
        ],
        0,
        id="the other lists likewise",
    ),
]


@pytest.mark.parametrize(("line", "running", "configured", "targets", "exit_status"), MANUAL)
def test_manual_page(
    line: str,
    running: list[ServerSettings],
    configured: list[ServerSettings],
    targets: list[str],
    exit_status: int,
) -> None:
    plan = choose(line, run(*running), configure(*configured))
    assert [shown(target) for target in plan.targets] == targets
    assert plan.exit_status == exit_status
    assert not plan.warnings


OPEN = [
    pytest.param(
        "stop -n web -p 101 -n nobody",
        [PLAIN, WEB],
        ["stop 102", "stop 101", NOBODY],
        1,
        id="each name is a server of its own, and one that is nobody's does not spare the others",
    ),
    pytest.param("stop -n web -p 102", [PLAIN, WEB], ["stop 102"], 0, id="a server is meant once"),
    pytest.param(
        "status -n nobody -p 999",
        [PLAIN],
        [NOBODY, "refuse No stap-server running as pid 999"],
        1,
        id="status: failed outweighs not running",
    ),
    pytest.param(
        "start -n web -r 5.10 -r 6.1",
        [WEB],
        ["start releases=5.10,6.1 define=WEB include=/web"],
        0,
        id="releases add to those that -n loads",
    ),
    pytest.param(
        "stop -n web -I /more",
        [WEB],
        ["absent releases=5.10 define=WEB include=/web,/more"],
        0,
        id="what follows -n makes it another server, for stop as well",
    ),
    pytest.param(
        "stop -n web -a x86_64 --port 7001",
        [WEB],
        ["stop 101"],
        0,
        id="what follows -n and changes nothing leaves it that server",
    ),
    pytest.param(
        "start -n web --port 7002",
        [WEB],
        ["start releases=5.10 define=WEB include=/web port=7002"],
        0,
        id="a list can make it another server",
    ),
    pytest.param(
        "start -n fast --max-threads ''",
        [FAST],
        ["start"],
        0,
        id="an empty value of a list is the default",
    ),
    pytest.param(
        "start -a '' -u '' -R ''", [PLAIN], ["keep 101"], 0, id="an empty value of an option is the default"
    ),
    pytest.param(
        "start -r 5.10 -n other",
        [ServerSettings(releases=("5.10",), nickname="web")],
        ["keep 101 releases=5.10 nickname=other"],
        0,
        id="the nickname does not make it another server",
    ),
    pytest.param(
        "start -r 6.1 -r 5.10",
        [ServerSettings(releases=("5.10", "6.1"))],
        ["keep 101 releases=6.1,5.10"],
        0,
        id="nor does the order of releases",
    ),
    pytest.param(
        "start -k -r 5.10", [PLAIN], ["start releases=5.10 keep_temporary=True"], 0, id="-k holds for a start"
    ),
    pytest.param("start -k", [PLAIN], ["keep 101"], 0, id="-k does not make it another server"),
    pytest.param("restart -k", [PLAIN], ["restart 101 keep_temporary=True"], 0, id="-k holds for a restart"),
    pytest.param(
        "start -r 5.10 -i",
        [],
        ["start releases=5.10", "keep releases=5.10", "start"],
        0,
        id="-r before -i is a server of its own; the same one again is kept",
    ),
    pytest.param(
        "start -n web -i",
        [WEB],
        [
            f"keep 101 {WEB_SHOWN}",
            "start releases=5.10 define=WEB include=/web",
            "start define=WEB include=/web",
        ],
        0,
        id="-i after -n: that one, and one like it for each release",
    ),
    pytest.param(
        "stop -n nobody -i",
        [PLAIN],
        [NOBODY, "absent releases=5.10", "stop 101"],
        1,
        id="-i after a nickname of nobody",
    ),
    pytest.param(
        "start -u bob -I /i -D d -i -r /build",
        [],
        [
            "start releases=5.10 define=d include=/i user=bob",
            "start define=d include=/i user=bob",
            "start releases=/build define=d include=/i user=bob",
        ],
        0,
        id="-I -R -B -D -u stay in force for further servers",
    ),
    pytest.param(
        "start -a arm64 -r /a -n one -n two",
        [],
        ["start arch=arm64 releases=/a nickname=one", "start nickname=two"],
        0,
        id="-a and -r do not",
    ),
    pytest.param(
        "start -n new -r /a -n new -r /b",
        [],
        [
            "start releases=/a nickname=new",
            "refuse The nickname 'new' belongs to another server of this command; give another one",
        ],
        1,
        id="one nickname for two servers",
    ),
    pytest.param("stop -p 4711", [PLAIN], ["stop 101"], 0, id="-p of the supervisor means its only server"),
    pytest.param(
        "stop -p 4711",
        [PLAIN, WEB],
        ["refuse Process 4711 hosts 2 servers; name one by its own id: 101, 102"],
        1,
        id="-p of the supervisor of several",
    ),
    pytest.param(
        "stop -p 4711",
        [],
        ["refuse No stap-server running as pid 4711"],
        1,
        id="-p of the supervisor of none",
    ),
    pytest.param("drain", [PLAIN, WEB], ["drain 101", "drain 102"], 0, id="drain: all that run"),
    pytest.param("drain -n web", [PLAIN, WEB], ["drain 102"], 0, id="drain: the specified one"),
    pytest.param("drain -r 5.10", [PLAIN], ["absent releases=5.10"], 1, id="drain: one that does not run"),
    pytest.param("undrain", [PLAIN], ["undrain 101"], 0, id="undrain"),
    pytest.param("drain", [], [], 0, id="drain: none runs"),
    pytest.param("help", [PLAIN], [], 0, id="help means no server"),
]


@pytest.mark.parametrize(("line", "running", "targets", "exit_status"), OPEN)
def test_what_the_manual_page_leaves_open(
    line: str, running: list[ServerSettings], targets: list[str], exit_status: int
) -> None:
    plan = choose(line, run(*running))
    assert [shown(target) for target in plan.targets] == targets
    assert plan.exit_status == exit_status


def test_force_reload_makes_the_running_servers_those_that_are_configured() -> None:
    renamed = attrs.evolve(CROSS, nickname="renamed")
    plan = choose("force-reload", run(PLAIN, CROSS), configure(renamed, WEB))
    assert [shown(target) for target in plan.targets] == [
        "stop 101",
        "restart 102 arch=arm64 releases=/build user=bob nickname=renamed",
        f"start {WEB_SHOWN}",
    ]


def test_changed_server_keeps_its_nickname_in_force_reload_but_not_in_start() -> None:
    changed = attrs.evolve(WEB, port=7009)
    (stop, start) = choose("force-reload", run(WEB), configure(changed)).targets
    assert (stop.operation, start.operation, start.settings) == (
        Operation.STOP,
        Operation.START,
        changed.resolved(HOST.defaults),
    )
    plan = choose("start", run(WEB), configure(changed))
    (target,) = plan.targets
    assert target.problem == (
        "The nickname 'web' belongs to the server running as PID 101; stop that one first"
    )
    assert (target.operation, target.where, plan.exit_status) == (Operation.REFUSE, "1.conf", 1)


@pytest.mark.parametrize("action", ["start", "force-reload", "check"])
def test_two_files_with_one_nickname(action: str) -> None:
    other = attrs.evolve(CROSS, nickname="web")
    plan = choose(action, [], configure(WEB, other))
    (first, second) = plan.targets
    assert first.problem is None
    assert second.problem == "The nickname 'web' belongs to 1.conf; give another one"
    assert (second.where, plan.exit_status) == ("2.conf", 1)


def test_two_files_with_one_nickname_of_which_the_second_runs() -> None:
    other = attrs.evolve(CROSS, nickname="web")
    (first, second) = choose("force-reload", run(other), configure(WEB, other)).targets
    assert (first.operation, second.operation) == (Operation.START, Operation.REFUSE)
    assert second.server is not None, "it is refused, not stopped"


def test_two_files_for_one_server() -> None:
    plan = choose("start", [], configure(WEB, attrs.evolve(WEB, nickname="other")))
    assert [target.operation for target in plan.targets] == [Operation.START, Operation.KEEP]
    assert plan.warnings == ("2.conf: configures the same server as 1.conf",)
    assert plan.exit_status == 0


def test_check_means_what_start_would_whatever_runs() -> None:
    deeds = [target.operation for target in choose("check", run(WEB), configure(WEB, CROSS)).targets]
    assert deeds == [Operation.CHECK, Operation.CHECK]
    (target,) = choose("check -n web", run(WEB)).targets
    assert (target.operation, target.server) == (Operation.CHECK, None)


@pytest.mark.parametrize(
    ("line", "configured", "warnings"),
    [
        ("start --port 7001", [WEB], ["--port 7001 applies to no server"]),
        ("stop --port 7001", [], ["--port 7001 applies to no server"]),
        ("start --port 7001", [], []),
        (
            "start -r 5.10 --port 1 --port 2 --log /a --log '' --max-threads 0 --max-threads 4",
            [],
            [
                "--port 2 applies to no server",
                "--log '' applies to no server",
                "--max-threads 4 applies to no server",
            ],
        ),
    ],
)
def test_values_of_lists_that_are_left_over(
    line: str, configured: list[ServerSettings], warnings: list[str]
) -> None:
    plan = choose(line, run(FAST), configure(*configured))
    assert list(plan.warnings) == warnings
    assert plan.exit_status == 0


def test_the_default_server_gets_the_lists() -> None:
    assert [shown(target) for target in choose("start --port 7001 --max-threads 0").targets] == [
        "start port=7001 max_threads=0"
    ]


def test_no_release_is_installed() -> None:
    (target,) = choose("start -i", host=attrs.evolve(HOST, installed=())).targets
    assert target.problem == "-i means no server: no kernel release is installed"
    assert (target.operation, target.exit_status) == (Operation.REFUSE, 1)


def test_a_nickname_that_was_but_the_id_does_not_outlive_it() -> None:
    recorded = RunningServer(101, attrs.evolve(PLAIN, nickname="101"))
    (target,) = choose("restart", [recorded]).targets
    assert target.settings is not None
    assert target.settings.nickname is None


def test_settings_of_targets_are_complete() -> None:
    (target,) = choose("start").targets
    assert target.settings == ServerSettings(arch="x86_64", releases=("6.1",), user="me", log=Path("/log"))


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "arm64"},
        {"releases": ("5.10",)},
        {"build": ("x",)},
        {"define": ("x",)},
        {"include": ("x",)},
        {"runtime": "/x"},
        {"user": "x"},
        {"log": Path("/x")},
        {"port": 1},
        {"ssl": Path("/x")},
        {"max_threads": 1},
        {"max_request_bytes": 1},
        {"max_compressed_bytes": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_other_setting_makes_another_server(change: dict[str, object]) -> None:
    base = ServerSettings()
    other = attrs.evolve(base, **change)
    assert base.identity(HOST.defaults) != other.identity(HOST.defaults)


def test_nickname_k_limits_and_spelt_out_defaults_do_not() -> None:
    spelt_out = ServerSettings(
        arch="x86_64",
        releases=("6.1", "6.1"),
        user="me",
        log=Path("/log"),
        nickname="x",
        keep_temporary=True,
        tuning={"connections": 1},
    )
    assert spelt_out.identity(HOST.defaults) == PLAIN.identity(HOST.defaults)


def tuned(
    line: str, running: list[RunningServer]
) -> tuple[list[tuple[Operation, dict[str, object]]], list[str]]:
    """Return what each target does and how it is tuned, and the warnings."""
    plan = choose(line, running)
    told = [(one.operation, dict(one.settings.tuning)) for one in plan.targets if one.settings is not None]
    return told, list(plan.warnings)


def test_tuning_is_a_server_s_and_stays_in_force() -> None:
    line = "start -n a -r 5.10 --queue-length 1 -n b -r 6.1 --compile-timeout 2m -n c -r /b --queue-length="
    first, both, last = {"queue_length": 1}, {"queue_length": 1, "compile_s": 120.0}, {"compile_s": 120.0}
    assert tuned(line, []) == (
        [(Operation.START, first), (Operation.START, both), (Operation.START, last)],
        [],
    )


def test_each_release_s_server_is_tuned() -> None:
    releases, _ = tuned("start --queue-length 1 -i", [])
    assert len(releases) > 1
    assert {tuning["queue_length"] for _, tuning in releases} == {1}


def test_a_restart_tunes_and_a_start_says_that_it_does_not() -> None:
    slow = attrs.evolve(WEB, tuning={"compile_s": 9.0, "queue_length": 5})
    running = run(slow)
    for named in ("-n web", "-r 5.10 -D WEB -I /web --log /web.log --port 7001 --ssl /nss --max-threads 3"):
        both = {"compile_s": 9.0, "queue_length": 7}
        assert tuned(f"restart {named} --queue-length 7", running) == ([(Operation.RESTART, both)], [])
        assert tuned(f"start {named} --queue-length 7", running)[1] == [
            "server web runs already, and keeps its limits; restart changes them"
        ]
        assert tuned(f"start {named}", running)[1] == []
    assert tuned("restart -n web --queue-length=", running)[0] == [(Operation.RESTART, {"compile_s": 9.0})]


def test_a_start_says_that_a_file_s_limits_are_not_those_of_the_running_server() -> None:
    tuned_web = attrs.evolve(WEB, tuning={"compile_s": 9.0})
    plan = choose("start", run(WEB), configure(tuned_web))
    (where,) = [file.where for file in configure(tuned_web)]
    assert list(plan.warnings) == [
        f"server web runs already, and keeps its limits; reload makes them those of {where}"
    ]
    assert list(choose("start", run(tuned_web), configure(tuned_web)).warnings) == []


def test_a_server_like_another_one_is_tuned_like_it() -> None:
    slow = attrs.evolve(WEB, tuning={"compile_s": 9.0})
    assert tuned("start -n web -r 6.1", run(slow))[0] == [(Operation.START, {"compile_s": 9.0})]


def test_it_is_pure() -> None:
    foreign = ["anyio", "ssl", "socket", "subprocess", "structlog", "zeroconf", "cryptography"]
    program = (
        f"import sys, stapsrv.control.cli.plan;print([name for name in {foreign!r} if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert loaded.stdout == "[]\n"


OPTIONS = st.sampled_from(
    ["-r 5.10", "-r /b", "-a arm64", "-u bob", "-I /i", "-n web", "-n new", "-p 101", "-p 9", "-i -r 5.10"]
)
SERVERS = st.lists(st.sampled_from([PLAIN, WEB, CROSS, FAST]), unique=True, max_size=4)


@settings(derandomize=True, database=None)
@given(st.sampled_from(sorted(Action)), st.lists(OPTIONS, max_size=4), SERVERS, SERVERS)
def test_each_server_is_meant_once_and_a_second_start_changes_nothing(
    action: Action, options: list[str], running: list[ServerSettings], configured: list[ServerSettings]
) -> None:
    if action is Action.RELOAD:
        options = []
    line = " ".join([action, *options])
    plan = choose(line, run(*running), configure(*configured))
    ids = [target.server.server_id for target in plan.targets if target.server is not None]
    assert len(ids) == len(set(ids))
    for target in plan.targets:
        assert (target.operation is Operation.REFUSE) == (target.problem is not None)
        if target.operation in (
            Operation.STOP,
            Operation.RESTART,
            Operation.REPORT,
            Operation.DRAIN,
            Operation.UNDRAIN,
        ):
            assert target.server is not None
    # What follows -n adds to the server of that name: typed again, it adds once more, and means another one.
    names = [index for index, option in enumerate(options) if option.startswith("-n")]
    adds_to_named = bool(names) and any(option[:2] in ("-r", "-I") for option in options[names[0] + 1 :])
    if action is Action.START and not adds_to_named:
        started = [one.settings for one in plan.targets if one.operation is Operation.START and one.settings]
        after = [*run(*running), *(RunningServer(200 + index, one) for index, one in enumerate(started))]
        again = choose(line, after, configure(*configured))
        assert Operation.START not in [target.operation for target in again.targets]
