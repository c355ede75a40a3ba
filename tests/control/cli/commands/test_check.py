"""``check`` finds what would go wrong, says where, and starts nothing."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from stapsrv.control.cli.commands import check

CLEAN = "RELEASE={tree}\nNICKNAME={name}\n"


@pytest.fixture
def files(command_line, build_tree):
    """Write server files around a build tree; returns their paths by name."""

    def write(**texts: str) -> dict[str, Path]:
        command_line.configure(
            **{name: text.replace("TREE", f"RELEASE={build_tree}") for name, text in texts.items()}
        )
        return {name: command_line.directory / "conf.d" / f"{name}.conf" for name in texts}

    return write


def test_nothing_configured(command_line, monkeypatch):
    """Then it is about the server for this host's kernel, which start would start."""
    monkeypatch.setattr(check, "resolve_release", lambda release, *, arch: None)
    ran = command_line.run("check")
    assert (ran.status, ran.out, ran.err) == (0, "1 server, no problem\n", "")
    assert sorted(path.name for path in command_line.directory.iterdir()) == ["conf.d", "global.conf"]


def test_all_is_well(command_line, files, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("asks on behalf of stap-server, which may not look into pytest's directories")
    files(
        a="TREE\nPORT=7501\n",
        b=f"TREE\nPORT=7502\nSSL={tmp_path}/new\nLOG={tmp_path}/log\nINCLUDE={tmp_path}\n",
    )
    ran = command_line.run("check")
    assert (ran.status, ran.out) == (0, "2 servers, no problem\n")
    assert list(tmp_path.glob("new*")) == list(tmp_path.glob("log*")) == []


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("TREE\nnonsense\n", 2, "expected VARIABLE=VALUE, found 'nonsense'"),
        ("TREE\n\nPORT=65536\n", 3, "PORT=65536: expected a port number"),
        ("TREE\nPORTS=1\n", 2, "unknown variable 'PORTS'; did you mean PORT?"),
        ("TREE\nUSER=ghost\n", 2, "user 'ghost' does not exist; name another one, or add this one"),
        ("USER=root\nTREE\n", 1, "no compile server runs as root; name a plain user"),
        ("TREE\nRELEASE+=0.0.0-none\n", 2, "/lib/modules/0.0.0-none/build is missing; install the headers"),
        ("TREE\nRELEASE+=-bad\n", 2, "is not a kernel release; give a release such as"),
        ("# none\nRELEASE=/missing\n", 2, "no kernel release in /missing/include/config/kernel.release"),
        ("TREE\nINCLUDE=/usr\nINCLUDE+=/missing\n", 3, "/missing is not a directory; give an existing"),
        ("TREE\nRUNTIME=/etc/passwd\n", 2, "/etc/passwd is not a directory; give an existing directory"),
        ("TREE\nPORT=80\n", 2, "port 80 is for root alone, and no server runs as root; give one from 1024"),
        ("TREE\nLOG=/missing/log\n", 2, "log file /missing/log cannot be written by user "),
        ("TREE\nSSL=/missing/ssl\n", 2, "certificate database /missing/ssl is missing, and user "),
        ("TREE\nSSL=/etc/passwd\n", 2, "/etc/passwd is no directory that user "),
    ],
)
def test_a_problem_and_its_line(command_line, files, monkeypatch, tmp_path, text, line, problem):
    monkeypatch.setattr(check, "_FIRST_PORT", tmp_path / "missing")
    if os.geteuid() == 0 and problem.endswith("user "):
        pytest.skip("asks on behalf of stap-server, which may not look into pytest's directories")
    path = files(bad=text)["bad"]
    ran = command_line.run("check")
    assert ran.status == 1
    (printed,) = ran.out.splitlines()
    assert printed.startswith(f"{path}:{line}: {problem}")


def test_a_journal_that_is_not_there(command_line, files, monkeypatch, tmp_path):
    monkeypatch.setattr(check, "JOURNAL", tmp_path / "journal")
    path = files(one="TREE\nLOG=/missing/log\nLOG_FORMAT=journal\n")["one"]
    assert command_line.run("check").out == (
        f"{path}:3: the systemd journal does not listen at {tmp_path}/journal; "
        "use classic or json where systemd does not run\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        assert command_line.run("check").status == 0


def test_all_problems_are_told_and_the_good_servers_hinder_none(command_line, files):
    paths = files(a="TREE\nPORT=7501\n", b="nonsense\nFOO=1\n", c="TREE\nPORT=7501\nINCLUDE=/missing\n")
    ran = command_line.run("check")
    found = [line.split(": ")[0] for line in ran.out.splitlines()]
    assert found == [f"{paths['b']}:1", f"{paths['b']}:2", f"{paths['c']}:2", f"{paths['c']}:3"]
    assert f"{paths['c']}:2: port 7501 is that of another server, too: {paths['a']}:2; give" in ran.out


def test_a_nickname_given_twice(command_line, files):
    paths = files(a="TREE\nNICKNAME=x\n", b="TREE\nPORT=7501\nNICKNAME=x\n")
    ran = command_line.run("check")
    assert (ran.status, ran.out) == (
        1,
        f"{paths['b']}:3: The nickname 'x' belongs to {paths['a']}; give another one\n",
    )


def test_two_files_for_the_same_server(command_line, files):
    paths = files(a="TREE\nNICKNAME=x\n", b="TREE\nNICKNAME=y\n")
    ran = command_line.run("check")
    assert (ran.status, ran.out) == (1, f"{paths['b']}: configures the same server as {paths['a']}\n")


def test_a_wrong_global_file(command_line):
    command_line.config_file.write_text("CONFIG_PATH=/x\nNONSENSE\nSTATPATH=/y\n")
    ran = command_line.run("check")
    assert ran.status == 1
    assert [line.split(": ")[0] for line in ran.out.splitlines()] == [
        f"{command_line.config_file}:2",
        f"{command_line.config_file}:3",
    ]


def test_a_missing_global_file(command_line):
    command_line.config_file.unlink()
    ran = command_line.run("check")
    assert (ran.status, ran.out) == (
        1,
        f"{command_line.config_file}: no such file; give -c a global configuration file\n",
    )


def test_servers_of_the_command_line(command_line, build_tree, monkeypatch, tmp_path):
    monkeypatch.setattr(check, "_FIRST_PORT", tmp_path / "missing")
    ran = command_line.run("check", "-r", build_tree, "--port", 80, "-I", "/missing", "-n", "x")
    assert ran.status == 1
    assert ran.out.splitlines() == [
        "--port 80: port 80 is for root alone, and no server runs as root; give one from 1024 to 65535",
        "-I /missing: /missing is not a directory; give an existing directory",
    ]


def test_blanks_at_the_end_of_a_line_hinder_nobody(command_line, files):
    path = files(a="TREE \nNICKNAME=x\n")["a"]
    command_line.config_file.write_text(command_line.config_file.read_text() + "MAX_COMPILES=2\t\n")
    warnings = [
        f"{command_line.config_file}:4: blanks at the end of MAX_COMPILES are no part of its value",
        f"{path}:1: blanks at the end of RELEASE are no part of its value",
    ]
    ran = command_line.run("check")
    expected = [*(f"warning: {line}" for line in warnings), "1 server, no problem"]
    assert (ran.status, ran.out.splitlines()) == (0, expected)
    assert json.loads(command_line.run("check", "--json").out)["warnings"] == warnings


def test_json(command_line, files):
    path = files(a="TREE\nINCLUDE=/missing\n")["a"]
    ran = command_line.run("check", "--json")
    assert json.loads(ran.out) == {
        "problems": [
            {
                "where": f"{path}:2",
                "problem": "/missing is not a directory",
                "remedy": "give an existing directory",
            }
        ],
        "warnings": [],
        "servers": 1,
        "exit_status": 1,
    }


def test_where_plain_users_may_listen_on_low_ports(command_line, files, monkeypatch, tmp_path):
    (tmp_path / "first").write_text("80\n")
    monkeypatch.setattr(check, "_FIRST_PORT", tmp_path / "first")
    files(a="TREE\nPORT=80\n")
    assert command_line.run("check").status == 0


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_asks_in_the_name_of_the_user(tmp_path):
    account = check.runnable_account("stap-server", {})
    tmp_path.chmod(0o755)
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    os.chown(own, account.uid, account.gid)
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)
    assert check._may_write(account, own)
    assert not check._may_write(account, other)
    assert not check._may_write(account, tmp_path / "missing")


def test_servers_on_one_port_must_not_meet_on_an_address(command_line, files):
    where = files(
        a="TREE\nPORT=7501\nLISTEN=127.0.0.1\n",
        b="TREE\nPORT=7501\nLISTEN=127.0.0.2\n",
        c="TREE\nPORT=7501\nLISTEN=127.0.0.2\nMAXTHREADS=1\n",
    )
    ran = command_line.run("check")
    assert (ran.status, ran.out) == (
        1,
        f"{where['c']}:2: port 7501 is that of another server, too: {where['b']}:2; "
        "give one of the two another port\n",
    )


@pytest.mark.parametrize("address", ["192.0.2.1", "fe80::1%nosuch0"])
def test_addresses_of_other_hosts_are_found(command_line, files, address):
    where = files(a=f"TREE\nLISTEN=127.0.0.1\nLISTEN+={address}\n")
    ran = command_line.run("check")
    assert ran.status == 1
    assert ran.out.startswith(f"{where['a']}:3: {address} cannot be listened on: ")
    assert ran.out.endswith("; give an address of this host, or none for all\n")
