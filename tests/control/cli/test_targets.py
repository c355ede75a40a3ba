"""Specifications in, settings out: names, lists, and what stays in force."""

from __future__ import annotations

import shlex
from pathlib import Path

from stapsrv.config.settings import HostDefaults, ServerSettings
from stapsrv.control.cli.parser import parse_arguments
from stapsrv.control.cli.targets import (
    ConfiguredServer,
    HostFacts,
    ListOptions,
    Match,
    RunningServer,
    ServerIndex,
    SpecifiedServers,
)

HOST = HostFacts(
    defaults=HostDefaults(arch="x86_64", release="6.1", user="me", log=Path("/log")),
    installed=("5.10", "6.1"),
)
WEB = RunningServer(101, ServerSettings(releases=("5.10",), nickname="web", port=7001), 4711)
FILE = ConfiguredServer(ServerSettings(nickname="file", port=7002), "file.conf")


def meant(line: str, *running: RunningServer, may_create: bool = True) -> list[Match]:
    """Return what the specifications of a command line mean."""
    invocation = parse_arguments(shlex.split(line), directory="/")
    index = ServerIndex(running, [FILE], HOST)
    lists = ListOptions(invocation.lists)
    return list(SpecifiedServers(index, lists, may_create=may_create).matches(invocation.specifications))


def test_nickname_of_a_running_server_means_that_server():
    (match,) = meant("restart -n web", WEB)
    assert (match.server, match.settings, match.problem) == (WEB, WEB.settings, None)


def test_nickname_of_a_configured_server_means_its_file():
    (match,) = meant("start -n file", WEB)
    assert (match.where, match.server, match.settings) == ("file.conf", None, FILE.settings)


def test_unknown_nickname_is_a_new_server_only_where_one_may_be_created():
    (new,) = meant("start -r 5.10 -n new")
    assert (new.settings, new.problem) == (ServerSettings(releases=("5.10",), nickname="new"), None)
    (refused,) = meant("stop -n new", may_create=False)
    assert (refused.problem, refused.unknown) == ("No configuration found for the nickname 'new'", True)


def test_pid_of_a_supervisor_names_its_server_only_if_it_is_the_only_one():
    (match,) = meant("stop -p 4711", WEB)
    assert match.server == WEB
    other = RunningServer(102, ServerSettings(port=1), 4711)
    (ambiguous,) = meant("stop -p 4711", WEB, other)
    assert ambiguous.problem == "Process 4711 hosts 2 servers; name one by its own id: 101, 102"
    (unknown,) = meant("stop -p 9", WEB)
    assert unknown.problem == "No stap-server running as pid 9"


def test_named_server_with_other_settings_is_another_one_without_nickname_and_port():
    (match,) = meant("start -n web -r 6.1", WEB)
    assert (match.server, match.settings) == (None, ServerSettings(releases=("5.10", "6.1")))


def test_user_stays_in_force_for_further_servers_but_release_does_not():
    first, second = meant("start -n a -u bob -r 5.10 -n b")
    assert (first.settings.user, first.settings.releases) == ("bob", ("5.10",))
    assert (second.settings.user, second.settings.releases) == ("bob", ())


def test_lists_give_their_values_in_turn_and_warn_of_those_left():
    lists = ListOptions({"--port": (1, 2, 3), "--log": (None,)})
    assert [lists.next_values() for _ in range(2)] == [{"port": 1, "log": None}, {"port": 2}]
    assert list(lists.warnings()) == ["--port 3 applies to no server"]


def test_each_release_without_an_installed_one_means_no_server():
    nothing = HostFacts(defaults=HOST.defaults)
    invocation = parse_arguments(["start", "-i"], directory="/")
    index = ServerIndex([], [], nothing)
    servers = SpecifiedServers(index, ListOptions({}), may_create=True)
    (match,) = servers.matches(invocation.specifications)
    assert match.problem == "-i means no server: no kernel release is installed"


def test_each_release_of_a_farm_means_one_server_for_all_that_it_has():
    nothing = HostFacts(defaults=HOST.defaults)
    invocation = parse_arguments(["start", "-i", "--engine", "dask"], directory="/")
    running = RunningServer(7, ServerSettings(tuning={"engine": "dask"}))
    for servers, may_create, found in (([], True, None), ([running], False, running)):
        index = ServerIndex(servers, [], nothing)
        specified = SpecifiedServers(index, ListOptions({}), may_create=may_create)
        (match,) = specified.matches(invocation.specifications)
        assert (match.problem, match.settings.releases, match.server) == (None, (), found)
