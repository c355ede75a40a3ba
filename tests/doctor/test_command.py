"""``stap-server doctor`` as a whole: its findings, its output and its ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from stapsrv.doctor import command
from stapsrv.doctor.findings import Verdict


def test_sound_host_has_no_failures(site):
    findings = site.check()
    assert [finding.answer for finding in findings.failures] == []
    assert findings.one("stap").answer == f"{site.environ['SYSTEMTAP_STAP']}, version 4.8"
    assert findings.one("configured servers").answer == "1, no problem"
    assert findings.one("headers of 6.1.0-test").verdict is Verdict.OK
    assert findings.one("supervisor").verdict is Verdict.WARNING
    assert findings.one("announced (mDNS)").answer.startswith("is off")
    assert findings.one("certificate").answer.startswith("none in ")
    assert findings.one("open files").verdict is Verdict.OK
    assert {finding.verdict for finding in findings.of("containment")} <= {Verdict.OK, Verdict.WARNING}
    assert not findings.of("compiling for 6.1.0-test")


def test_hanging_file_system_fails_one_check(site, monkeypatch):
    hanging = threading.Event()
    monkeypatch.setattr(os, "statvfs", lambda _place: hanging.wait())
    rows = [row for row in command.CHECKS if row.name in {"room", "releases", "listeners"}]
    checks = [row._replace(timeout_s=0.2) if row.name == "room" else row for row in rows]
    monkeypatch.setattr(command, "CHECKS", checks)
    try:
        findings = site.check()
    finally:
        hanging.set()
    assert findings.one("room").answer == "no answer within 0.2 seconds"
    assert findings.one("room").remedy == "see which file system hangs"
    assert findings.one("headers of 6.1.0-test").verdict is Verdict.OK
    assert findings.one("listeners").answer.startswith("is not checked")


def test_error_in_global_file_is_one_line(site, capsys):
    from stapsrv.doctor.command import main

    site.set("COLOUR=red\n")
    assert main(["-c", str(site.config)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"stap-server doctor: {site.config}:")
    assert said.count("\n") == 1


def test_closed_pipe_ends_the_checks(site):
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [sys.executable, "-m", "stapsrv.control.cli.main", "doctor", "-c", site.config, "--no-compile"],
        env=os.environ | site.environ,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_ctrl_c_ends_the_compile_too(site, stand_in):
    stand_in("exec sleep 600")
    doctor = subprocess.Popen(
        [sys.executable, "-m", "stapsrv.control.cli.main", "doctor", "-c", site.config],
        env=os.environ | site.environ | {"TMPDIR": str(site.directory / "tmp"), "STAPSRV_SANDBOX": "off"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert doctor.stdout is not None
    for line in doctor.stdout:
        if "announced" in line:
            break
    while not any((site.directory / "tmp").glob("stap-server.*/request.*/")):
        assert doctor.poll() is None
    doctor.send_signal(signal.SIGINT)
    _, said = doctor.communicate(timeout=60)
    assert (doctor.returncode, said) == (130, "stap-server doctor: interrupted\n")
    assert list((site.directory / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--client", "host"], "'host' is not HOST:PORT"),
        (["--client", "host:0"], "'host:0' is not HOST:PORT"),
        (["--client", ":5"], "':5' is not HOST:PORT"),
        (["--client", "host:99999"], "'host:99999' is not HOST:PORT"),
        (["--client", "host:1", "--release", "../x"], "'../x' is not a kernel release"),
        (["--release", "6.1"], "--release is for --client"),
        (["--client", "host:1", "--no-compile"], "-c, -u and --no-compile are for this host"),
        (["--client", "host:1", "-u", "nobody"], "-c, -u and --no-compile are for this host"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_bad_usage_is_one_line(words, problem, capsys):
    assert command.main(words) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert said.count("\n") == 1
