"""``stap-server doctor``: each question, once answered well and once badly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import attrs
import pytest
from kit.daemon import start
from kit.ports import quiet_port
from kit.stap import make_stap

from stapsrv.doctor import command
from stapsrv.doctor.findings import Verdict
from stapsrv.mdns.browser import FoundServer


def test_a_sound_host(site):
    findings = site.examine()
    assert [finding.answer for finding in findings.failures] == []
    assert findings.one("stap").answer == f"{site.environ['SYSTEMTAP_STAP']}, version 4.8"
    assert findings.one("configured servers").answer == "1, no problem"
    assert findings.one("headers of 6.1.0-test").verdict is Verdict.OK
    assert findings.one("supervisor").verdict is Verdict.WARNING
    assert findings.one("announced (mDNS)").answer.startswith("is off")
    assert findings.one("certificate").answer.startswith("none in ")
    assert findings.one("open files").verdict is Verdict.OK
    assert findings.one("containment").verdict in {Verdict.OK, Verdict.WARNING}
    assert not findings.of("compiling for 6.1.0-test")


def test_no_stap(site):
    findings = site.examine(environ={**site.environ, "SYSTEMTAP_STAP": "/missing/stap"})
    assert findings.one("stap").verdict is Verdict.FAILURE
    assert "install SystemTap" in findings.one("stap").remedy


def test_missing_tools(site, tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("sh", "true", "setpriv", "unshare", "bwrap"):
        (bare / name).symlink_to(shutil.which(name))
    make_stap(bare / "gcc", "exit 1").write_text("#!/bin/sh\nexit 1\n")
    findings = site.examine(environ={**site.environ, "PATH": str(bare)})
    assert findings.one("gcc").answer == f"{bare}/gcc --version does not answer"
    assert findings.one("make").answer == "was not found on the path"
    assert findings.one("certutil").remedy == "install it (Debian: libnss3-tools)"


def test_a_release_without_headers(site):
    (site.directory / "conf.d" / "other.conf").write_text("RELEASE=9.9\n")
    findings = site.examine()
    assert findings.one("headers of 9.9").verdict is Verdict.FAILURE
    assert "linux-headers-9.9" in findings.one("headers of 9.9").remedy
    assert findings.one("headers of 6.1.0-test").verdict is Verdict.OK
    assert findings.one("configured servers").verdict is Verdict.FAILURE


def test_a_file_that_cannot_be_used(site):
    site.configure("bad", "PORT=none\n")
    assert f"{site.directory}/conf.d/bad.conf:3" in site.examine().one("configured servers").answer


@pytest.mark.parametrize(
    ("script", "verdict", "answer"),
    [
        ("exit 0", Verdict.OK, "a script of one line compiles"),
        (
            "echo WARNING: something >&2; echo 'x.c:1: error: no such header' >&2; exit 1",
            Verdict.FAILURE,
            "x.c:1: error: no such header",
        ),
        ("exit 1", Verdict.FAILURE, "it failed and said nothing"),
    ],
)
def test_compiling(site, stand_in, script, verdict, answer):
    stand_in(script)
    finding = site.examine(compiles=True).one("compiling for 6.1.0-test")
    assert (finding.verdict, finding.answer) == (verdict, answer)


def test_equal_servers_compile_once(site):
    site.configure("twin")
    site.configure("other", "DEFINE=X\n")
    assert len(site.examine(compiles=True).of("compiling for 6.1.0-test")) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_places_that_cannot_be_written(site):
    closed = site.directory / "closed"
    closed.mkdir(mode=0o500)
    site.set(f"STAT_PATH={closed}/stat\n")
    finding = site.examine().one("state")
    assert finding.verdict is Verdict.FAILURE
    assert "STAT_PATH" in finding.remedy


def test_a_place_that_everybody_can_write(site):
    (site.directory / "stat").mkdir()
    (site.directory / "stat").chmod(0o777)
    finding = site.examine().one("state")
    assert (finding.verdict, finding.remedy) == (Verdict.FAILURE, f"chmod o-w {site.directory}/stat")


@pytest.mark.parametrize(
    ("free_mib", "inodes", "verdict"),
    [
        (10_000, 5, Verdict.OK),
        (100, 5, Verdict.WARNING),
        (10, 5, Verdict.FAILURE),
        (10_000, 0, Verdict.FAILURE),
    ],
)
def test_room(site, monkeypatch, free_mib, inodes, verdict):
    values = (4096, 4096, 9_999_999, 0, free_mib * 256, 10, 10, inodes, 0, 255)
    monkeypatch.setattr(os, "statvfs", lambda _place: os.statvfs_result(values))
    assert site.examine().one("room for logs").verdict is verdict


@pytest.mark.parametrize(
    ("hard", "verdict"), [(100, Verdict.FAILURE), (20_000, Verdict.OK), (-1, Verdict.OK)]
)
def test_open_files(site, monkeypatch, hard, verdict):
    monkeypatch.setattr("resource.getrlimit", lambda _which: (hard, hard))
    assert site.examine().one("open files").verdict is verdict


def test_a_port_that_is_taken(site):
    port = quiet_port()
    site.configure("lab", f"PORT={port}\n")
    with socket.create_server(("", port)):
        finding = site.examine().one(f"port {port}")
    assert (finding.verdict, finding.answer) == (
        Verdict.FAILURE,
        f"port {port}: is in use by another program",
    )
    assert site.examine().one(f"port {port}").answer == "is free"


def test_an_exposed_key(site, pristine_identity):
    place = site.directory / "systemtap" / "ssl" / "server"
    shutil.copytree(pristine_identity, place)
    assert site.examine().one("certificate").verdict is Verdict.OK
    assert site.examine().one("trust").remedy == "stap-server cert authorize"
    (place / "key4.db").chmod(0o644)
    assert site.examine().one("certificate").verdict is Verdict.FAILURE


def test_a_service_that_runs(site):
    """From outside, as a person has it: another process, and its exit status."""
    site.configure("second", "RELEASE+=/missing\n")
    with start(["-c", site.config], os.environ | site.environ):
        ran = subprocess.run(
            [sys.executable, "-m", "stapsrv.doctor.command", "-c", site.config, "--json", "--no-compile"],
            env=os.environ | site.environ | {"TMPDIR": str(site.directory / "tmp")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (1, "")
    findings = {finding["question"]: finding for finding in json.loads(ran.stdout)["findings"]}
    assert findings["supervisor"]["verdict"] == "ok"
    assert findings["server lab"]["verdict"] == "ok"
    port = findings["server lab"]["answer"].rpartition(" ")[2]
    assert findings[f"TLS on port {port}"]["verdict"] == "ok"
    assert findings["trust"]["verdict"] == "ok"
    assert "Connection from" not in (site.directory / "log").read_text()
    assert findings["server second"]["verdict"] == "failure"
    assert "/missing" in findings["server second"]["answer"]


def test_a_wrong_global_file_is_one_line(site, capsys):
    from stapsrv.doctor.command import main

    site.set("COLOUR=red\n")
    assert main(["-c", str(site.config)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"stap-server doctor: {site.config}:")
    assert said.count("\n") == 1


def test_servers_are_looked_for_where_they_listen(site, monkeypatch):
    """And on the network by their certificates: another host's server may have the same port."""
    site.configure("lab", "LISTEN=127.0.0.2\n")
    site.configure("closed", "ALLOW=none\n")
    heard: list[FoundServer] = []
    monkeypatch.setattr("stapsrv.doctor.network._listen", lambda _interfaces: heard)
    environ = site.environ | {"STAPSRV_MDNS": "yes"}
    with start(["-c", site.config], os.environ | site.environ):
        findings = site.examine(environ=environ)
        port = findings.one("server closed").answer.rpartition(" ")[2]
        stranger = FoundServer(
            name="Other", host="x.local", addresses=(), port=int(port), release="6.1", arch="x86_64",
            version="4.8", serial="00:01", options="", moks=(),
        )  # fmt: skip
        heard.append(stranger)
        assert site.examine(environ=environ).of("announced (mDNS)")[0].verdict is Verdict.FAILURE
        serial = findings.one("certificate").answer.split()[1].rstrip(",")
        heard.append(attrs.evolve(stranger, name="Ours", serial=serial))
        announced = site.examine(environ=environ).of("announced (mDNS)")
    assert [finding.answer for finding in findings.failures] == [
        f"server closed on port {port} was not heard of within 2 s"
    ]
    assert findings.one(f"TLS on port {port}").answer.startswith("it accepts; ALLOW and DENY keep out ")
    assert sum(finding.answer.startswith("TLSv1.3") for finding in findings.all) == 1
    assert [finding.answer for finding in announced] == [
        "server closed: Ours",
        "server lab listens for this host alone, and others are not told",
    ]


def test_a_port_that_is_taken_elsewhere_only(site):
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        site.configure("lab", f"PORT={port}\nLISTEN=127.0.0.1\n")
        assert site.examine().one(f"port {port}").answer == "is free"


@pytest.mark.parametrize("line", ["LOG_FILE=/dev/stdout\n", "LOG_FORMAT=journal\n"])
def test_what_writes_no_file_needs_no_room(site, line):
    site.set(line)
    findings = site.examine()
    assert not findings.of("log")
    assert not findings.of("room for logs")


def test_a_file_system_that_hangs_costs_one_answer(site, monkeypatch):
    hanging = threading.Event()
    monkeypatch.setattr(os, "statvfs", lambda _place: hanging.wait())
    rows = [row for row in command.QUESTIONS if row.name in {"room", "releases", "listeners"}]
    impatient = [row._replace(timeout_s=0.2) if row.name == "room" else row for row in rows]
    monkeypatch.setattr(command, "QUESTIONS", impatient)
    try:
        findings = site.examine()
    finally:
        hanging.set()
    assert findings.one("room").answer == "no answer within 0.2 seconds"
    assert findings.one("room").remedy == "see which file system hangs"
    assert findings.one("headers of 6.1.0-test").verdict is Verdict.OK
    assert findings.one("listeners").answer.startswith("is not looked at")


def test_a_configuration_that_hangs_is_one_line(site, monkeypatch, capsys):
    hanging = threading.Event()
    monkeypatch.setattr("stapsrv.doctor.context.Inventory", lambda *_arguments: hanging.wait())
    monkeypatch.setattr("stapsrv.doctor.context._PATIENCE_S", 0.2)
    try:
        assert command.main(["-c", str(site.config)]) == 1
    finally:
        hanging.set()
    said = capsys.readouterr().err
    assert "cannot be read: no answer within 0.2 seconds" in said
    assert said.count("\n") == 1


def test_answers_that_nobody_reads(site):
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [sys.executable, "-m", "stapsrv.doctor.command", "-c", site.config, "--no-compile"],
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
    examination = subprocess.Popen(
        [sys.executable, "-m", "stapsrv.doctor.command", "-c", site.config],
        env=os.environ | site.environ | {"TMPDIR": str(site.directory / "tmp"), "STAPSRV_SANDBOX": "off"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert examination.stdout is not None
    for line in examination.stdout:
        if "announced" in line:
            break
    while not any((site.directory / "tmp").glob("stap-server.*/request.*/")):
        assert examination.poll() is None
    examination.send_signal(signal.SIGINT)
    _, said = examination.communicate(timeout=60)
    assert (examination.returncode, said) == (130, "stap-server doctor: interrupted\n")
    assert list((site.directory / "tmp").iterdir()) == []
