"""``stap-serverd``'s command line, its refusals, and its signals, as a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from kit.daemon import start
from kit.http import get_page

from stapsrv.daemon import event_loop
from stapsrv.errors import UsageError


@pytest.mark.parametrize("installed", [False, True])
def test_uvloop_is_used_where_it_is_installed(monkeypatch, installed):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object() if installed else None)
    assert event_loop(None) == ("asyncio", {"use_uvloop": installed})
    assert event_loop("asyncio") == ("asyncio", {"use_uvloop": False})
    assert event_loop("trio") == ("trio", {})
    if installed:
        assert event_loop("uvloop") == ("asyncio", {"use_uvloop": True})
    else:
        with pytest.raises(UsageError, match=r"^--backend uvloop: uvloop is not installed; install it, or"):
            event_loop("uvloop")


@pytest.fixture
def environ(tmp_path):
    return os.environ | {"SYSTEMTAP_DIR": str(tmp_path / "st"), "STAP_PR11197_OVERRIDE": "1"}


def serverd(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stapsrv.daemon", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--bad"], 2, "stap-serverd: unknown option '--bad'; did you mean --backend?\n"),
        (
            ["-r", "/missing"],
            1,
            "stap-serverd: -r /missing: no kernel release in /missing/include/config/kernel.release "
            "(No such file or directory); give a configured and prepared kernel build tree "
            "(make modules_prepare)\n",
        ),
        (
            ["-r", "6.1", "--log", "/missing/log"],
            1,
            "stap-serverd: log file /missing/log: cannot be written (No such file or directory); "
            "give a file in a directory that the server's user may write to, with --log\n",
        ),
    ],
)
def test_failed_start_is_one_line_and_leaves_nothing(tmp_path, environ, arguments, status, text):
    (tmp_path / "tmp").mkdir()
    result = serverd(*arguments, env=environ | {"TMPDIR": str(tmp_path / "tmp")})
    assert (result.returncode, result.stdout) == (status, "")
    assert result.stderr.endswith(text)
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "st").exists()


def test_the_format_of_the_log_comes_from_option_or_environment(environ):
    """A server that cannot be served says so in its log before it ends."""
    for options, variable in ((["--log-format", "json"], "classic"), ([], "json")):
        result = serverd("-r", "/missing", *options, env=environ | {"STAPSRV_LOG_FORMAT": variable})
        record = json.loads(result.stderr.splitlines()[0])
        assert (record["event"], record["level"]) == ("server.starting", "info")


def test_host_that_can_contain_no_request_gets_no_server(tmp_path, environ, build_tree):
    """But for who insists."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("stap", "certutil", "pk12util"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    environ = environ | {"PATH": str(programs)}
    result = serverd("-r", build_tree, env=environ)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(
        r"stap-serverd: SANDBOX=auto: requests cannot be contained on this host \(bubblewrap: .*;"
        r" landlock: .*\); install bubblewrap and .*;"
        r" SANDBOX=off \(--sandbox off\) lets requests .*",
        result.stderr.splitlines()[-1],
    )
    with start(["-r", build_tree, "--sandbox", "off", "--log", tmp_path / "log"], environ):
        assert "Requests are not contained: SANDBOX=off" in (tmp_path / "log").read_text()


def test_former_sandbox_is_refused_with_its_replacement(tmp_path, environ, build_tree):
    result = serverd("-r", build_tree, env=environ | {"STAPSRV_SANDBOX": "unshare"})
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "stap-serverd: STAPSRV_SANDBOX='unshare': expected auto or bubblewrap (unshare is gone)\n"
    )


@pytest.mark.parametrize(
    ("tool", "text"),
    [("stap", "stap was not found; install SystemTap"), ("certutil", "certutil: is not installed; install")],
)
def test_missing_program_is_named(tmp_path, environ, tool, text, build_tree):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("stap", "certutil", "pk12util", "setpriv", "env", "bwrap", "cp", "choom", "nice", "prlimit"):
        if name != tool:
            (programs / name).symlink_to(f"/usr/bin/{name}")
    result = serverd("-r", build_tree, env=environ | {"PATH": str(programs)})
    assert result.returncode == 1
    assert text in result.stderr.splitlines()[-1]


def test_help_and_version():
    assert "examples:\n  stap-serverd -r" in serverd("--help").stdout
    assert re.fullmatch(r"stap-serverd \(stapsrv\) \d+\.\d+\.\d+\n", serverd("--version").stdout)


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_a_signal(tmp_path, environ, build_tree, identity, backend, number):
    log = tmp_path / "log"
    environ |= {"TMPDIR": str(tmp_path)}
    command = ["-r", build_tree, "--log", log, "--ssl", identity, "--backend", backend]
    with start(command, environ) as server:
        assert server.name == "stap-serverd"
        server.send_signal(number)
        assert server.wait() == 0
    lines = [line[26:] for line in log.read_text().splitlines()]
    assert lines[0].startswith(f"===== compile server pid {server.pid} starting as ")
    # The first look at what results depend on may be over by then, and is reported as well.
    assert sum(line.startswith("Using a maximum of") for line in lines) == 1
    assert lines[-1] == f"Received signal {number}, exiting"
    assert list(tmp_path.glob("stap-server.*")) == []


@pytest.mark.parametrize("style", ["classic", "json"])
def test_hangup_begins_a_new_log(tmp_path, environ, build_tree, identity, style):
    log = tmp_path / "log"
    command = ["-r", build_tree, "--log", log, "--log-format", style, "--ssl", identity]
    with start(command, environ) as server:
        log.rename(tmp_path / "log.1")
        server.send_signal(signal.SIGHUP)
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    last = log.read_text().splitlines()[-1]
    assert (json.loads(last)["message"] if style == "json" else last).endswith("Received signal 15, exiting")


def test_metrics_of_one_server(tmp_path, environ, build_tree, identity):
    place = tmp_path / "metrics.sock"
    command = ["-r", build_tree, "--ssl", identity, "--max-threads=3", "--max-compiles=2"]
    with start([*command, "--metrics", f"unix:{place}"], environ) as server:
        assert get_page(place, "/readyz") == (200, "ok\n")
        status, text = get_page(place, "/metrics")
        assert status == 200
        assert '\nstapsrv_server_serving{server="stap-serverd"} 1.0\n' in text
        assert "\nstapsrv_compiles_limit 2.0\n" in text
        assert '\nstapsrv_requests_total{release="6.1.0-test",result="success"} 0.0\n' in text
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert not place.exists()


def test_metrics_where_somebody_else_is(tmp_path, environ, build_tree, identity):
    """Also when they come from the environment."""
    command = ["-r", build_tree, "--ssl", identity]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        results = [
            serverd(*command, "--metrics", port, env=environ),
            serverd(*command, env=environ | {"STAPSRV_METRICS": f":{port}"}),
        ]
    for result in results:
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == (
            f"stap-serverd: metrics address 127.0.0.1:{port}: is in use by another program; "
            "give another address with --metrics or METRICS=, or off\n"
        )


def test_web_page_of_one_server(tmp_path, environ, build_tree, identity):
    place = tmp_path / "metrics.sock"
    token = tmp_path / "stap-server-web-token"
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    command = ["-r", build_tree, "--ssl", identity, "--metrics", f"unix:{place}", "--web", "yes"]
    with start(command, environ) as server:
        status, text = get_page(place, "/")
        assert status == 200
        assert "Serving: 1 of 1." in text
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    # From the environment, and with the credential of a service manager.
    given = {"STAPSRV_METRICS": f"unix:{place}", "STAPSRV_WEB": "yes", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    with start(command[:4], environ | given) as server:
        assert [get_page(place, path)[0] for path in ("/", "/events", "/readyz")] == [401, 401, 200]
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "the web page is served where metrics are, and they are nowhere; give METRICS an address"),
        (
            ["--metrics", "0.0.0.0:0"],
            "others can reach 0.0.0.0:0, and there is no token; name a file with one",
        ),
    ],
)
def test_web_page_that_cannot_be_served_keeps_the_daemon_from_starting(environ, build_tree, options, words):
    result = serverd("-r", build_tree, "--web", "yes", *options, env=environ)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"stap-serverd: WEB=yes: {words}")
    assert result.stderr.count("\n") == 1


def test_web_page_without_its_library_is_one_clear_line(environ, build_tree):
    code = "import sys; sys.modules['jinja2'] = None; from stapsrv.daemon import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "-r", build_tree, "--web", "yes", "--metrics", "0"]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (
        1,
        "stap-serverd: WEB=yes: the Python package jinja2 is not installed; "
        "install it: pip install 'stapsrv[web]', or make install EXTRAS=web\n",
    )


@pytest.mark.parametrize("options", [["--password-file"], ["-P"]], ids=["file", "credential"])
def test_database_with_a_password(tmp_path, environ, build_tree, options):
    secret = tmp_path / "stap-server-password"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    given = [*options, secret] if options == ["--password-file"] else options
    environ |= {"CREDENTIALS_DIRECTORY": str(tmp_path), "TMPDIR": str(tmp_path)}
    server = ["-r", build_tree, "--ssl", tmp_path / "ssl"]
    for _ in ("made", "loaded"):
        with start([*server, *given], environ) as running:
            assert b"correct" not in Path(f"/proc/{running.pid}/cmdline").read_bytes()
            running.send_signal(signal.SIGTERM)
            assert running.wait() == 0
    failed = serverd(*server, env=environ)
    assert failed.returncode == 1
    assert "the database is protected by a password; give its password (-P)" in failed.stderr


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_signals_to_the_last_do_not_change_how_it_ends(tmp_path, environ, build_tree, identity, backend):
    command = ["-r", build_tree, "--log", tmp_path / "log", "--ssl", identity, "--backend", backend]
    with start(command, environ) as server:
        while server.is_alive:
            server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
