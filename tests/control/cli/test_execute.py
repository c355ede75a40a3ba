"""The outcome of each server of a command, of all users."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import attrs
import pytest
from kit.supervisor import lines, server_status

from stapsrv.config.settings import ServerSettings
from stapsrv.control.cli.execute import Executor
from stapsrv.control.cli.plan import Operation, Target
from stapsrv.control.cli.report import Reporter
from stapsrv.errors import StapsrvError
from stapsrv.supervisor.lifecycle import State, Wanted
from stapsrv.supervisor.operations import Outcome


def test_stop_prints_each_server(command_line, hosting, title):
    ran = command_line.run("stop")
    assert ran.out == lines(
        f"Stopping {title('5.10', 'web', 7001)}",
        "OK",
        f"Stopping {title('6.1', nickname='4194306')}",
        "OK",
    )


def test_restart_prints_both_halves(command_line, hosting, title):
    web = title("5.10", "web", 7001)
    ran = command_line.run("restart", "-n", "web")
    assert ran.out == lines(f"Stopping {web}", "OK", f"Starting {web}", "OK")


def test_restart_that_fails_did_stop(command_line, hosting, title):
    hosting.errors["web"] = "certificate database /nss: is locked"
    web = title("5.10", "web", 7001)
    ran = command_line.run("restart", "-n", "web")
    assert ran.out == lines(f"Stopping {web}", "OK", f"Starting {web}", "FAILED")
    assert (ran.status, ran.err) == (1, "stap-server: web: certificate database /nss: is locked\n")


def test_reload_prints_what_became_of_each(command_line, hosting, title):
    web, plain = hosting.servers.values()
    gone = attrs.evolve(web, state=State.STOPPED, wanted=Wanted.DOWN)
    broken = server_status(9, State.FAILED, settings=ServerSettings(nickname="new"))
    hosting.reloaded = [
        Outcome(gone, already=False, error=None),
        Outcome(plain, already=True, error=None),
        Outcome(broken, already=False, error="port 80: not permitted"),
        Outcome(None, already=False, error="b.conf:1: unknown variable 'X'"),
    ]
    ran = command_line.run("reload")
    assert ran.status == 1
    assert ran.out == lines(
        f"Stopping {title('5.10', 'web', 7001)}",
        "OK",
        f"Starting {title('6.1')}",
        "OK",
        'Starting stap-server -n "new"',
        "FAILED",
    )
    assert ran.err == lines(
        "stap-server: new: port 80: not permitted", "stap-server: b.conf:1: unknown variable 'X'"
    )
    assert hosting.told == [("reload", (command_line.config_file, False))]


def test_forced_reload_stops_all_and_starts_what_is_configured(command_line, hosting, title):
    command_line.configure(a="RELEASE=5.10\nNICKNAME=one\n", b="RELEASE=6.1\nNICKNAME=bad\n")
    hosting.errors["bad"] = "port 80: not permitted"
    ran = command_line.run("force-reload")
    assert ran.out == lines(
        f"Stopping {title('5.10', 'web', 7001)}",
        "OK",
        f"Stopping {title('6.1', nickname='4194306')}",
        "OK",
        f"Starting {title('5.10', nickname='one')}",
        "OK",
        f"Starting {title('6.1', nickname='bad')}",
        "FAILED",
    )
    assert (ran.status, ran.err) == (1, "stap-server: bad: port 80: not permitted\n")
    assert hosting.told_names == [
        ("reload", (command_line.config_file, True)),
        ("start", ["one", "bad"]),
    ]


def test_bad_files_are_told_of_once_by_a_reload(command_line, hosting):
    command_line.configure(bad="nonsense\n")
    bad = command_line.directory / "conf.d" / "bad.conf"
    fault = f"{bad}:1: expected VARIABLE=VALUE, found 'nonsense'; begin comments with '#' and leave no blank"
    hosting.reloaded = [Outcome(None, already=False, error=f"{fault} before the '='")]
    ran = command_line.run("reload")
    assert (ran.status, ran.err) == (1, f"stap-server: {fault} before the '='\n")


class Reports(Reporter):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def result(self, result) -> None:
        self.told.append(f"{result.name}: {result.error}")

    def complain(self, text: str) -> None:
        self.told.append(text)


class Stalling:
    """The supervisor of user a answers after that of user b has, which fails."""

    def __init__(self) -> None:
        self._b_was_asked = threading.Event()

    def start(self, user, specs):
        return [self.reload(user)[0] for _ in specs]

    def reload(self, user):
        if user == "b":
            self._b_was_asked.set()
            raise StapsrvError("b fails")
        held_up = not self._b_was_asked.wait(60)
        return [{"server": None, "already": False, "error": "held up" if held_up else "a's own"}]


@pytest.mark.parametrize("command", ["start", "reload"])
def test_a_supervisor_that_stalls_holds_up_no_other(command):
    reports = Reports()
    executor = Executor(SimpleNamespace(default_user="a"), Stalling(), reports)
    if command == "reload":
        executor.reload(["a", "b"])
        assert reports.told == ["a's own", "b fails"]
    else:
        executor.start(
            Target(operation=Operation.START, settings=ServerSettings(nickname=user, user=user))
            for user in ("a", "b")
        )
        assert reports.told == ["a: a's own", "b: b fails"]


def test_fault_of_this_program_is_not_swallowed():
    def broken(_user):
        raise ZeroDivisionError

    executor = Executor(SimpleNamespace(default_user="a"), SimpleNamespace(reload=broken), Reports())
    with pytest.raises(ZeroDivisionError):
        executor.reload(["a"])
