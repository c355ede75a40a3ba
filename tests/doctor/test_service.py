"""The configured and the running servers, their ports, certificates and announcements."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import attrs
from kit.daemon import start
from kit.ports import quiet_port

from stapsrv.doctor.findings import Verdict
from stapsrv.mdns.browser import FoundServer


def test_configuration_error_names_file_and_line(site):
    site.configure("bad", "PORT=none\n")
    assert f"{site.directory}/conf.d/bad.conf:3" in site.check().one("configured servers").answer


def test_port_used_by_another_program_is_a_failure(site):
    port = quiet_port()
    site.configure("lab", f"PORT={port}\n")
    with socket.create_server(("", port)):
        finding = site.check().one(f"port {port}")
    assert (finding.verdict, finding.answer) == (
        Verdict.FAILURE,
        f"port {port}: is in use by another program",
    )
    assert site.check().one(f"port {port}").answer == "is free"


def test_port_used_on_another_address_is_free(site):
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        site.configure("lab", f"PORT={port}\nLISTEN=127.0.0.1\n")
        assert site.check().one(f"port {port}").answer == "is free"


def test_readable_key_is_a_failure(site, pristine_identity):
    place = site.directory / "systemtap" / "ssl" / "server"
    shutil.copytree(pristine_identity, place)
    assert site.check().one("certificate").verdict is Verdict.OK
    assert site.check().one("trust").remedy == "stap-server cert authorize"
    (place / "key4.db").chmod(0o644)
    assert site.check().one("certificate").verdict is Verdict.FAILURE


def test_running_servers_are_checked(site):
    """From outside, as a person has it: another process, and its exit status."""
    site.configure("second", "RELEASE+=/missing\n")
    with start(["-c", site.config], os.environ | site.environ):
        ran = subprocess.run(
            [
                sys.executable,
                "-m",
                "stapsrv.control.cli.main",
                "doctor",
                "-c",
                site.config,
                "--json",
                "--no-compile",
            ],
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


def test_servers_are_found_by_port_and_certificate(site, monkeypatch):
    """And on the network by their certificates: another host's server may have the same port."""
    site.configure("lab", "LISTEN=127.0.0.2\n")
    site.configure("closed", "ALLOW=none\n")
    discovered: list[FoundServer] = []
    monkeypatch.setattr("stapsrv.doctor.service._discover", lambda _interfaces: discovered)
    environ = site.environ | {"STAPSRV_MDNS": "yes"}
    with start(["-c", site.config], os.environ | site.environ):
        findings = site.check(environ=environ)
        port = findings.one("server closed").answer.rpartition(" ")[2]
        stranger = FoundServer(
            name="Other", host="x.local", addresses=(), port=int(port), release="6.1", arch="x86_64",
            version="4.8", serial="00:01", options="", moks=(),
        )  # fmt: skip
        discovered.append(stranger)
        assert site.check(environ=environ).of("announced (mDNS)")[0].verdict is Verdict.FAILURE
        serial = findings.one("certificate").answer.split()[1].rstrip(",")
        discovered.append(attrs.evolve(stranger, name="Ours", serial=serial))
        announced = site.check(environ=environ).of("announced (mDNS)")
    assert [finding.answer for finding in findings.failures] == [
        f"server closed on port {port} was not found within 2 s"
    ]
    assert findings.one(f"TLS on port {port}").answer.startswith("it accepts; ALLOW and DENY keep out ")
    assert sum(finding.answer.startswith("TLSv1.3") for finding in findings.all) == 1
    assert [finding.answer for finding in announced] == [
        "server closed: Ours",
        "server lab listens on loopback only, and is not announced",
    ]
