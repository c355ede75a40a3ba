"""``stap-server bench``."""

from __future__ import annotations

import sys

import pytest
from kit.compile_server import Identity, RecordingServer, response

from stapsrv.bench.command import is_on_this_host, main
from stapsrv.client.address import Address
from stapsrv.errors import UsageError


@pytest.fixture
def server(tmp_path):
    with RecordingServer.open(Identity.make(tmp_path)) as opened:
        yield opened


@pytest.fixture
def words(server):
    trust = ["--fingerprint", server.identity.fingerprint, "-r", "6.1.0-test"]
    return ["--server", server.address, *trust, "--clients", "1,2", "--requests", "4"]


def test_table_has_a_row_for_each_kind_and_number_of_clients(words, capsys):
    assert main(words) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "SCRIPTS",
        "CLIENTS",
        "ANSWERED",
        "FAILED",
        "PER",
        "S",
        "P50",
        "P90",
        "P99",
        "P100",
    ]
    assert [row.split()[:4] for row in rows] == [
        ["new", "1", "4", "0"],
        ["new", "2", "4", "0"],
        ["repeated", "1", "4", "0"],
        ["repeated", "2", "4", "0"],
    ]


def test_plot_follows_the_table(words, capsys):
    pytest.importorskip("plotext")
    assert main([*words, "--plot"]) == 0
    assert "modules per second, by clients" in capsys.readouterr().out


def test_missing_plotext_says_what_to_install(words, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotext", None)
    assert main([*words, "--plot"]) == 2
    assert "pip install 'stapsrv[bench]'" in capsys.readouterr().err


def test_failures_end_with_status_1_and_a_reason(words, server, capsys):
    server.answer = response(1, stderr="parse error\n")
    assert main(words) == 1
    assert capsys.readouterr().err.endswith("stap-server bench: parse error\n")


def test_other_hosts_need_a_yes(capsys):
    assert main(["--server", "192.0.2.1:5001"]) == 2
    assert "192.0.2.1:5001 is not on this host" in capsys.readouterr().err
    assert is_on_this_host(Address("localhost", 1))
    assert is_on_this_host(Address("::1", 1))


def test_host_without_an_address_is_named(monkeypatch):
    import socket

    def fail(*_args, **_more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(UsageError, match=r"build\.invalid has no address"):
        is_on_this_host(Address("build.invalid", 1))


@pytest.mark.parametrize(
    "wrong", [["--clients", "0"], ["--requests", "x"], ["--seconds", "nan"], ["--script", "/no"]]
)
def test_wrong_options_are_one_line(words, wrong, capsys):
    assert main([*words, *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1
