"""stap-farm as a process: who may connect to its scheduler, how it ends, and why it does not begin."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from kit.ports import quiet_port
from kit.real import Installation
from structlog.testing import LogCapture

from stapsrv.config.global_settings import GlobalSettings
from stapsrv.config.tuning import Tuning
from stapsrv.errors import UsageError
from stapsrv.farm.ca import create_authority, issue
from stapsrv.farm.cli import _report_expiry, _worker, main

PROGRAM = (sys.executable, "-m", "stapsrv.farm.cli")
SCHEDULES = "Farm: scheduling at "
# Another process, which belongs to the farm and asks the scheduler something.
MEMBER = """
import sys
from pathlib import Path
from distributed import Client
from stapsrv.farm.security import FarmCredentials, farm_security

address, *files = sys.argv[1:]
security = farm_security(FarmCredentials(*map(Path, files)), address=address)
with Client(address, security=security, timeout=20, set_as_default=False) as client:
    print(client.scheduler_info()["address"])
"""


@pytest.fixture(scope="module")
def farms(tmp_path_factory) -> Path:
    """Two farms, ours and theirs, each with its authority and two members."""
    place = tmp_path_factory.mktemp("farms")
    for farm in ("ours", "theirs"):
        create_authority(place / farm)
        for name in ("scheduler", "node"):
            issue(place / farm, name)
    return place


def files(farm: Path, name: str) -> list[str]:
    return [str(farm / each) for each in ("ca.pem", f"{name}.pem", f"{name}.key")]


def options(farm: Path, name: str) -> list[str]:
    return [
        word for pair in zip(("--ca", "--cert", "--key"), files(farm, name), strict=True) for word in pair
    ]


class Running:
    """A stap-farm in the foreground, and what it has said."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def wait_said(self, text: str) -> None:
        """Wait for a line; the process's end, which the test's own timeout brings about, is a failure."""
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError(self.lines)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.lines += self.process.stderr.readlines()
        return self.process.wait(timeout=30)


@contextlib.contextmanager
def running(*words: str, program=PROGRAM, environ=None):
    with subprocess.Popen(
        [*program, *words], env=environ, stderr=subprocess.PIPE, text=True, cwd="/tmp"
    ) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def scheduler(farms):
    port = quiet_port()
    words = ("scheduler", "--listen", f"tls://127.0.0.1:{port}", *options(farms / "ours", "scheduler"))
    with running(*words) as process:
        process.port = port
        process.wait_said(SCHEDULES)
        yield process


def asked(port: int, farm: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", MEMBER, f"tls://127.0.0.1:{port}", *files(farm, "node")]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def answers(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether anything but an end comes back, to a peer that waits for Dask's greeting or sends nonsense."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        try:
            if context is None:
                plain.sendall(b"\0" * 64 + b"nonsense" * 100)
                return plain.recv(1) != b""
            with context.wrap_socket(plain) as encrypted:
                return encrypted.recv(1) != b""
        except OSError:
            return False


def client_context(*, trusts: Path, shows: list[str] | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=trusts)
    context.check_hostname = False
    if shows is not None:
        context.load_cert_chain(*shows[1:])
    return context


def test_scheduler_talks_to_members_of_its_farm_alone(farms, scheduler):
    ours, theirs = farms / "ours", farms / "theirs"
    ca = ours / "ca.pem"
    assert answers(scheduler.port, client_context(trusts=ca, shows=files(ours, "node")))
    assert not answers(scheduler.port, client_context(trusts=ca, shows=files(theirs, "node")))
    assert not answers(scheduler.port, client_context(trusts=ca, shows=None))
    assert not answers(scheduler.port, None)
    old = client_context(trusts=ca, shows=files(ours, "node"))
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    assert not answers(scheduler.port, old)

    ran = asked(scheduler.port, theirs)
    assert ran.returncode != 0
    assert "CERTIFICATE_VERIFY_FAILED" in ran.stderr
    ran = asked(scheduler.port, ours)
    assert (ran.returncode, ran.stdout) == (0, f"tls://127.0.0.1:{scheduler.port}\n"), ran.stderr

    assert scheduler.stop() == 0
    said = "".join(scheduler.lines)
    assert "TLS handshake failed with remote" in said
    assert "Traceback" not in said
    # Nor does each of them take a line.
    assert len(scheduler.lines) < 8, said
    assert all(re.match(r"\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}: ", line) for line in scheduler.lines), said


@pytest.mark.real
def test_node_joins_its_farm_and_listens_where_it_is_told(farms, scheduler, tmp_path):
    """And only members may connect to it; at its end nothing is left that runs."""
    installation = Installation.find(os.environ)
    port = quiet_port()
    node = ("worker", "--scheduler", f"tls://127.0.0.1:{scheduler.port}", *options(farms / "ours", "node"))
    offered = ("-r", installation.release, "-R", str(installation.runtime))
    environ = os.environ | {"SYSTEMTAP_DIR": str(tmp_path / "systemtap"), "TMPDIR": str(tmp_path)}
    with running(*node, *offered, "--port", str(port), "--name", "first", environ=environ) as worker:
        worker.wait_said("Farm: this is worker first of ")
        ours, theirs = farms / "ours", farms / "theirs"
        assert answers(port, client_context(trusts=ours / "ca.pem", shows=files(ours, "scheduler")))
        assert not answers(port, client_context(trusts=ours / "ca.pem", shows=files(theirs, "node")))
        assert not answers(port, None)
        assert worker.stop() == 0
    assert "Traceback" not in "".join(worker.lines)
    shown = subprocess.run(["pgrep", "-af", str(tmp_path)], capture_output=True, text=True, check=False)
    assert shown.stdout == ""


@pytest.mark.parametrize(("days", "event"), [(29, "farm.certificate_expires"), (31, "farm.certificate")])
def test_certificate_that_expires_soon_is_a_warning(tmp_path, days, event):
    now = datetime.now(UTC)
    create_authority(tmp_path, now=now - timedelta(days=730 - days))
    member = issue(tmp_path, "node", now=now - timedelta(days=730 - days))
    capture = LogCapture()
    _report_expiry(member.certificate_file, structlog.wrap_logger(None, processors=[capture]))
    assert [entry["event"] for entry in capture.entries] == [event]


def test_scheduler_says_until_when_its_certificate_is_valid(farms, scheduler):
    assert f"the certificate {farms}/ours/scheduler.pem is valid until " in scheduler.lines[0]
    assert scheduler.stop(signal.SIGINT) == 0
    assert "Received signal 2, exiting" in scheduler.lines[2]


def test_second_signal_ends_what_does_not_end_by_itself():
    code = """
import anyio, sys
import stapsrv.farm.scheduler as scheduler
from stapsrv.farm.cli import main

async def run(options, *, log):
    log.info("farm.dask", text="begun")
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            log.info("farm.dask", text="hanging")
            await anyio.sleep_forever()

scheduler.run_scheduler = run
sys.exit(main(["scheduler", "--listen", "tcp://127.0.0.1:1"]))
"""
    with running(program=(sys.executable, "-c", code)) as process:
        process.wait_said("begun")
        assert Path(f"/proc/{process.process.pid}/comm").read_text() == "stap-farm\n"
        process.process.send_signal(signal.SIGTERM)
        process.wait_said("hanging")
        assert process.stop() == 1


def test_port_that_is_taken_is_one_line(farms):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        ran = run("scheduler", "--listen", address)
    assert ran.returncode == 1
    assert ran.stderr == (
        f"stap-farm: {address}: cannot be listened at (Address already in use);"
        " choose another address and port of this host\n"
    )


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (
            ["scheduler"],
            1,
            "tls://0.0.0.0:8786: needs the farm's authority, a certificate and its key; make them",
        ),
        (["scheduler", "--dashboard", "off"], 2, "--dashboard: expected PORT or ADDRESS:PORT"),
        (["worker"], 2, "the farm's scheduler is missing; name it: --scheduler tls://HOST:8786"),
        (["ca", "issue", "../x", "/nowhere"], 2, "'../x' is no name for a certificate; use up to 63 letters"),
        (["ca", "issue", "x", "/nowhere"], 1, "/nowhere/ca.pem: there is none; make one: stap-farm ca init"),
        (["ca", "init", "/proc/x"], 1, "/proc/x: cannot be used (No such file or directory)"),
    ],
)
def test_what_is_wrong_is_one_line(words, status, line):
    ran = run(*words)
    assert (ran.returncode, ran.stderr.count("\n")) == (status, 1)
    assert ran.stderr.startswith(f"stap-farm: {line}")


def test_certificates_and_help_need_no_dask(tmp_path):
    code = "import sys; sys.modules['distributed'] = sys.modules['dask'] = None;"
    code += " from stapsrv.farm.cli import main;"
    for words in (["ca", "init", str(tmp_path / "farm")], ["worker", "--help"]):
        ran = subprocess.run(
            [sys.executable, "-c", f"{code} sys.exit(main({words!r}))"],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, b"")


def test_missing_dask_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert main(["worker", "--scheduler", "tcp://127.0.0.1:1"]) == 1
    assert (
        capsys.readouterr().err == "stap-farm: a farm needs Dask; install it: pip install 'stapsrv[farm]'\n"
    )


@pytest.mark.parametrize("words", [["ca", "init"], ["worker"], ["scheduler"]])
def test_root_is_refused(capsys, monkeypatch, words):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert main(words) == 2
    assert "does not run as root; run it as a plain user: runuser -u stap-server -- stap-farm …" in (
        capsys.readouterr().err
    )


def test_authority_is_made_in_the_user_s_directory_unless_told_otherwise(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SYSTEMTAP_DIR", str(tmp_path / "own"))
    assert main(["ca", "init"]) == 0
    assert main(["ca", "issue", "node", "--host", "10.0.0.7"]) == 0
    said = capsys.readouterr().out.splitlines()
    farm = tmp_path / "own" / "farm"
    assert [line.split()[0] for line in said] == [
        str(farm / name) for name in ("ca.pem", "ca.key", "node.pem", "node.key")
    ]
    assert all(re.search(r"  valid until \d{4}-\d\d-\d\d$", said[number]) for number in (0, 2))
    assert main(["ca", "init"]) == 1
    assert main(["ca", "init", str(tmp_path / "other")]) == 0


def test_node_is_described_by_options_then_by_its_host(farms):
    settings = GlobalSettings(tuning=Tuning({"cpu_s": 5.0, "memory_bytes": 7, "connections": 9}))
    environ = {"STAPSRV_RELEASE": "installed", "STAPSRV_RUNTIME": "/runtime", "STAPSRV_INCLUDE": "/a /b"}
    values = {"scheduler": "tls://farm:8786", "cpu_s": 6.0, "slots": 2, "port": 8790}
    made = _worker(values, settings, environ).run.args[0]
    assert (made.releases, made.runtime, made.include) == ((), "/runtime", ("/a", "/b"))
    assert (made.slots, made.port, made.name, made.credentials) == (2, 8790, None, None)
    assert made.tuning == {"cpu_s": 6.0, "memory_bytes": 7}
    assert made.environ == environ
    named = _worker({**values, "releases": ("6.1.0",), "include": ("/c",)}, settings, environ).run.args[0]
    assert (named.releases, named.include) == (("6.1.0",), ("/c",))
    with pytest.raises(UsageError, match="the farm's scheduler is missing"):
        _worker({}, settings, environ)
