"""Sockets that a service manager passes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from kit.daemon import passing

from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError
from stapsrv.supervisor.activation import PassedSockets, without_passed

PROBE = """
import os, sys
from stapsrv.errors import ConfigError
from stapsrv.supervisor.activation import PassedSockets
environ = dict(os.environ)
try:
    print(sorted(PassedSockets.from_environ(environ, pid=os.getpid())._sockets))
except ConfigError as exc:
    print(exc)
"""


def probe(*files, **environ: str) -> str:
    """Pass sockets as a service manager does, and say what the process makes of them."""
    with passing(files) as passed:
        ran = subprocess.run(
            [*passed.command, sys.executable, "-c", PROBE],
            env={"PATH": os.environ["PATH"], **passed.environ, **environ},
            pass_fds=passed.descriptors,
            cwd=Path(__file__).parent.parent.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    return ran.stdout.rstrip("\n")


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def control(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()
        yield listener


def test_descriptors_are_taken_by_name(port, control):
    passed = probe(("native", port), ("control", control))
    assert passed == "['control', 'native']"


@pytest.mark.parametrize("environ", [{"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {}, {"LISTEN_FDS": ""}])
def test_sockets_of_another_process_are_left_alone(environ):
    assert probe(**environ) == "[]"


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        (
            {"LISTEN_FDS": "many"},
            "LISTEN_FDS=many: expected a number from 0 to 1024; leave it to the service",
        ),
        (
            {"LISTEN_FDS": "1", "LISTEN_PID": "me"},
            "LISTEN_PID=me: expected a number from 0 to 4194304; leave",
        ),
        (
            {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "one"},
            "LISTEN_FDNAMES=one: names 1 descriptors, and 2 are passed; give the socket unit File",
        ),
        (
            {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"},
            "socket 'x', descriptor 3: is no socket (Socket operation",
        ),
    ],
)
def test_contradictions_are_refused(environ, text):
    with open(os.devnull) as nothing:
        assert probe(("x", nothing), **environ).startswith(text)


def test_wrong_kinds_of_sockets(port, control):
    with socket.socket() as idle, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for listener, name, text in (
            (port, "control", "is not a Unix socket; give the socket unit FileDescriptorName="),
            (control, "native", "is not an Internet socket; give the socket unit FileDescriptorName="),
            (idle, "native", "does not listen for streams; give its unit ListenStream= and Accept=no"),
            (datagrams, "native", "does not listen for streams; give its unit ListenStream= and Accept=no"),
        ):
            found = probe((name, listener))
            assert found.startswith(f"socket '{name}', descriptor 3: {text}")


def test_name_that_comes_twice(port):
    found = probe(("a", port), ("a", port))
    assert found.startswith("socket 'a': is passed twice; give its socket unit one ListenStream=")


def test_port_of_a_server_outlives_its_users(port):
    sockets = PassedSockets({"native": port})
    number = port.getsockname()[1]
    for settings in (ServerSettings(nickname="native"), ServerSettings(nickname="native", port=number)):
        with sockets.port_of(settings) as given:
            assert given.getsockname() == port.getsockname()
    assert sockets.port_of(ServerSettings(nickname="other")) is None
    assert sockets.port_of(ServerSettings()) is None
    with pytest.raises(
        ConfigError, match=rf"^socket 'native': listens on port {number}, and the server's is 1;"
    ):
        sockets.port_of(ServerSettings(nickname="native", port=1))
    with socket.create_connection(port.getsockname(), timeout=60):
        pass


def test_control_socket_has_to_be_where_commands_come_to(control, tmp_path):
    sockets = PassedSockets({"control": control})
    with sockets.control(tmp_path / "control.sock") as given:
        assert given.getsockname() == control.getsockname()
    (tmp_path / "link").symlink_to(tmp_path)
    with sockets.control(tmp_path / "link" / "control.sock"):
        pass
    with pytest.raises(
        ConfigError, match=r"^socket 'control': listens at .*, and commands come to /other; give"
    ):
        sockets.control(Path("/other"))
    assert PassedSockets().control(Path("/other")) is None


def test_socket_that_nobody_would_serve(port, control):
    sockets = PassedSockets({"control": control, "native": port})
    sockets.check_all_used([ServerSettings(nickname="native")], controlled=True)
    with pytest.raises(ConfigError, match=r"^socket 'native': is passed, and no configured server has this"):
        sockets.check_all_used([ServerSettings(nickname="other"), ServerSettings()], controlled=True)
    with pytest.raises(
        ConfigError, match=r"^socket 'control': is passed, and a single server is not commanded"
    ):
        sockets.check_all_used([ServerSettings(nickname="native")], controlled=False)


def test_children_are_told_nothing():
    assert without_passed({"LISTEN_FDS": "1", "LISTEN_PID": "2", "LISTEN_FDNAMES": "a", "A": "b"}) == {
        "A": "b"
    }
