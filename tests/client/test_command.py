"""``stap-compile`` as a program, without SystemTap on its path."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import attrs
import pytest
from kit.client import pack
from kit.compile_server import MODULE, Identity, response

from stapsrv.client import command, discovery
from stapsrv.client.address import Address
from stapsrv.client.discovery import FoundServer

PROGRAM = [sys.executable, "-m", "stapsrv.client.command"]
OPTIONS = ["-r", "6.1.0-test", "-a", "x86_64", "-e", "probe begin { exit() }"]


@attrs.frozen
class Ran:
    status: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capfd, monkeypatch):
    def run(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["stap-compile", *map(str, words)])
        with pytest.raises(SystemExit) as raised:
            command.main()
        out, err = capfd.readouterr()
        return Ran(int(raised.value.code or 0), out, err)

    return run


@pytest.fixture
def by_fingerprint(server):
    return ["--server", server.address, "--fingerprint", server.identity.fingerprint]


def test_module_is_written_and_named_as_by_stap(run, by_fingerprint, server, home):
    server.answer = response(
        stdout="/x/stap_1.ko\n", stderr="WARNING: x\n", stap1_ko=MODULE, stap1_ko_sgn=b"S"
    )
    assert run(*by_fingerprint, *OPTIONS) == Ran(0, "stap1.ko\n", "WARNING: x\n")
    assert (home / "work/stap1.ko").read_bytes() == MODULE
    ran = run(*by_fingerprint, "-o", home / "out", "-k", *OPTIONS)
    assert ran.stdout == f"{home}/out/stap1.ko\n"
    assert sorted(path.name for path in (home / "out").iterdir()) == [
        "stap1.files",
        "stap1.ko",
        "stap1.ko.sgn",
    ]


def test_own_options_are_not_sent(run, by_fingerprint, server, unzipped):
    run(*by_fingerprint, "--keep", "-o", "x", "--timeout", "60", "--mok", "missing", *OPTIONS)
    entries = unzipped(server.requests[0])
    assert [entries[f"argv{number}"] for number in (1, 2, 3)] == [
        b"-r6.1.0-test",
        b"-ax86_64",
        b"-eprobe begin { exit() }",
    ]
    assert "argv4" not in entries
    assert entries["mok_fingerprints"] == b"missing\n"


@pytest.mark.parametrize(
    ("answer", "stderr"),
    [
        (response(1, stderr="parse error\n"), "parse error\n"),
        (response(), "stap-compile: No module was returned by the server.\n"),
        (
            pack([("version", "4.8")]),
            "stap-compile: the server sent no exit status: it may not serve this kernel release\n",
        ),
    ],
)
def test_refused_script_ends_as_with_stap(run, by_fingerprint, server, home, answer, stderr):
    server.answer = answer
    failed = "Passes: via server failed.  Try again with another '-v' option.\n"
    assert run(*by_fingerprint, *OPTIONS) == Ran(1, "", stderr + failed)
    assert list((home / "work").iterdir()) == []


def test_cut_connection_leaves_no_module(run, by_fingerprint, server, home):
    server.faults = ["cut"]
    ran = run(*by_fingerprint, *OPTIONS)
    assert (ran.status, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)
    assert "was cut short" in ran.stderr
    assert list((home / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--server", "h:1", "--no-such", "x"], "--no-such is unknown"),
        (["--server", "h", "-e", "x"], "'h' is not the address of a server"),
        (["-e", "x"], "either --server HOST:PORT or --discover is needed"),
        (["--server", "h:1", "--discover", "-e", "x"], "either --server"),
        (
            ["--server", "h:1", "--trust", "/x", "--fingerprint", "y", "-e", "x"],
            "--fingerprint and --trust exclude",
        ),
        (["--server", "h:1", "--trust", "/no/such", "-e", "x"], "/no/such: cannot be read"),
        (["--server", "h:1", "--timeout", "nan", "-e", "x"], "--timeout 'nan' is no number"),
    ],
)
def test_wrong_command_line_is_one_line_and_status_1(run, words, problem):
    ran = run(*words)
    assert (ran.status, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"stap-compile: {problem}")
    assert ran.stderr.count("\n") == 1


def test_options_without_effect_are_said(run, by_fingerprint):
    ran = run(*by_fingerprint, "-G", "x=1", "-p5", *OPTIONS)
    assert ran.stderr.splitlines() == [
        "stap-compile: WARNING: -G has no effect: no client sends it to a server",
        "stap-compile: pass 5 is not done: running a module needs SystemTap",
    ]
    assert ran.status == 0


def test_locale_that_python_makes_up_is_not_sent(by_fingerprint, server, unzipped):
    for environ, sent in (({}, b""), ({"LC_CTYPE": "none", "LANG": "C"}, b"LANG=C\nLC_CTYPE=none\n")):
        subprocess.run([*PROGRAM, *by_fingerprint, *OPTIONS], env=environ, capture_output=True, check=True)
        assert unzipped(server.requests[-1])["locale"] == sent


def test_help_and_version_count_alone(run):
    assert run("-e", "x", "--help").stdout.startswith("usage: stap-compile --server HOST:PORT")
    assert run("-V").stdout.startswith("stap-compile (stapsrv) ")


def test_unknown_server_is_refused_without_a_terminal(run, server):
    ran = run("--server", server.address, *OPTIONS)
    assert (ran.status, server.requests) == (1, [])
    assert f"its certificate is {server.identity.fingerprint}; compare that" in ran.stderr


def test_unknown_server_is_asked_for_pinned_and_refused_when_it_changes(server, home, tmp_path):
    words = [*PROGRAM, "--server", server.address, *OPTIONS]
    assert "Trust it from now on" in on_terminal(words, b"no\n", status=1)
    assert server.requests == []
    shown = on_terminal(words, b"yes\n", status=0)
    assert server.identity.fingerprint in shown
    assert (home / "work/stap.ko").read_bytes() == MODULE
    assert "Trust it" not in on_terminal(words, b"", status=0)
    old, server.identity = server.identity, Identity.make(tmp_path / "other")
    changed = on_terminal(words, b"yes\n", status=1)
    for part in ("HAS CHANGED", old.fingerprint, server.identity.fingerprint, "known_servers:1"):
        assert part in changed
    assert "Trust it" not in changed


def on_terminal(words: list[str], typed: bytes, *, status: int) -> str:
    """Run a program on a pseudo-terminal; return all that it shows there."""
    ours, its = pty.openpty()
    with subprocess.Popen(
        words, stdin=its, stdout=its, stderr=its, env=os.environ | {"TERM": "xterm"}
    ) as process:
        os.close(its)
        os.write(ours, typed)
        shown = b""
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:
            # So Linux says that nobody has the other end any more.
            pass
        os.close(ours)
    assert process.returncode == status, shown
    return shown.decode().replace("\r\n", " ").replace("\n", " ")


def test_discovered_servers_are_tried_in_order(run, server, monkeypatch):
    busy = FoundServer(
        name="a",
        addresses=(Address("127.0.0.1", 1),),
        release="6.1.0-test",
        arch="x86_64",
        version="4.8",
        serial=1,
    )
    good = attrs.evolve(busy, name="b", addresses=(Address.parse(server.address),))
    monkeypatch.setattr(discovery, "find_servers", lambda: [busy, good])
    trust = ["--fingerprint", server.identity.fingerprint]
    assert run("--discover", *trust, *OPTIONS).status == 0
    monkeypatch.setattr(discovery, "find_servers", lambda: [busy])
    assert run("--discover", *trust, *OPTIONS).stderr == "stap-compile: 127.0.0.1:1: Connection refused\n"
    monkeypatch.setattr(discovery, "find_servers", list)
    assert "no server for 6.1.0-test x86_64 answered" in run("--discover", *trust, *OPTIONS).stderr


def test_directory_that_cannot_be_made_is_one_line(run, by_fingerprint):
    ran = run(*by_fingerprint, "-o", "/dev/null/x", *OPTIONS)
    assert (ran.status, ran.stderr) == (
        1,
        "stap-compile: /dev/null/x: cannot be written (Not a directory); name another with -o\n",
    )
