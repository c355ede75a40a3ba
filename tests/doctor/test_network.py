"""Announcements by multicast DNS."""

from __future__ import annotations

import os

import attrs
from kit.daemon import start

from stapsrv.doctor.findings import Verdict
from stapsrv.mdns.browser import FoundServer


def test_servers_are_found_by_port_and_certificate(site, monkeypatch):
    """And on the network by their certificates: another host's server may have the same port."""
    site.configure("lab", "LISTEN=127.0.0.2\n")
    site.configure("closed", "ALLOW=none\n")
    discovered: list[FoundServer] = []
    monkeypatch.setattr("stapsrv.doctor.network._discover", lambda _interfaces: discovered)
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
