"""A farm: whether it is reached, and whether its members fit each other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from kit.farm import stand_in_farm
from kit.ports import quiet_port

from stapsrv.doctor.farm import judge_certificates, judge_clocks, judge_versions
from stapsrv.doctor.findings import Verdict
from stapsrv.farm import census
from stapsrv.farm.census import Member

RELEASE = "6.1.0-test"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=100)
OWN = {"stapsrv": "1.0", "Dask": "2026.8.0", "Python": "3.11.2"}


@pytest.fixture
def front(site):
    """A server whose requests a farm compiles; of the address given."""

    def configure(address: str, *releases: str) -> None:
        named = "".join(f"RELEASE={release}\n" for release in releases)
        (site.directory / "conf.d" / "lab.conf").write_text(
            f"NICKNAME=lab\nENGINE=dask\nFARM={address}\n{named}"
        )

    return configure


def member(name="n0", versions=OWN, ahead_s=0.0, until=LATER):
    return Member(name=name, versions=versions, ahead_s=ahead_s, certificate_until=until)


def test_farm_that_compiles_for_its_servers(site, front, tmp_path, build_tree):
    with stand_in_farm(tmp_path, build_tree) as farm:
        front(farm.address, RELEASE, "6.9.9")
        farm.start_scheduler()
        farm.start_workers()
        findings = site.check(compiles=True)
    assert findings.one(f"farm {farm.address}").answer == "its scheduler is reached; 1 worker with 2 slots"
    assert findings.one("farm's versions").verdict is Verdict.OK
    assert findings.one("farm's clocks").verdict is Verdict.OK
    missing, offered = findings.of("farm's releases")
    assert missing.verdict is Verdict.FAILURE
    assert missing.answer.startswith("No worker of the farm has the headers of 6.9.9: they have those of 6.1")
    assert (offered.verdict, offered.answer) == (Verdict.OK, f"{RELEASE} x86_64")
    # This host needs none of its headers.
    assert findings.of(f"headers of {RELEASE}") == []
    assert findings.of(f"compiling for {RELEASE}") == []
    assert findings.one("configured servers").verdict is Verdict.OK


def test_farm_without_workers_is_a_failure(site, front, tmp_path, build_tree):
    with stand_in_farm(tmp_path, build_tree) as farm:
        front(farm.address, RELEASE)
        farm.start_scheduler()
        findings = site.check()
    finding = findings.one(f"farm {farm.address}")
    assert finding.verdict is Verdict.FAILURE
    assert finding.answer == "its scheduler is reached; 0 workers, and no release is offered"


def test_farm_that_is_not_reached_is_a_failure_in_time(site, front, monkeypatch):
    monkeypatch.setattr(census, "_CONNECT_S", 0.2)
    address = f"tcp://127.0.0.1:{quiet_port()}"
    front(address, RELEASE)
    findings = site.check()
    finding = findings.one(f"farm {address}")
    assert finding.verdict is Verdict.FAILURE
    assert finding.answer.startswith("cannot be reached: ")
    assert "stap-farm-scheduler" in finding.remedy
    assert findings.of("farm's versions") == []


def test_farm_without_the_files_that_it_needs_is_a_failure(site, front):
    front("tls://localhost:8786", RELEASE)
    finding = site.check().one("farm tls://localhost:8786")
    assert finding.answer == "FARM=tls://localhost:8786: FARM_CA and FARM_CERT and FARM_KEY are not set"


def test_host_without_a_farm_is_not_asked_for_one(site):
    assert not [finding for finding in site.check().all if "farm" in finding.question]


def test_certificate_that_ends_soon_is_named_with_the_others_that_do():
    soon = NOW + timedelta(days=3)
    found = judge_certificates([("/ca.pem", LATER)], [member("n1", until=soon), member(until=None)], now=NOW)
    assert (found.verdict, found.answer) == (
        Verdict.WARNING,
        "of one authority; the first to end is that of n1, on 2030-01-04",
    )
    assert found.remedy.startswith("issue new ones for n1: ")
    fine = judge_certificates([("/ca.pem", LATER)], [member()], now=NOW)
    assert fine.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"Dask": "2026.9.0"}, "Dask 2026.8.0: this host, n0; 2026.9.0: n1"),
        ({"stapsrv": "0.9"}, "stapsrv 0.9: n1; 1.0: this host, n0"),
        ({"Python": "3.12.1"}, "Python 3.11: this host, n0; 3.12: n1"),
    ],
)
def test_versions_that_differ_are_told_with_who_has_them(versions, said):
    found = judge_versions(OWN, [member(), member("n1", versions), member("n2", {})])
    assert (found.verdict, found.answer) == (Verdict.WARNING, said)


def test_python_may_differ_in_its_last_part():
    found = judge_versions(OWN, [member(versions={"Python": "3.11.9"})])
    assert (found.verdict, found.answer) == (Verdict.OK, "stapsrv 1.0, Dask 2026.8.0, Python 3.11.2")


def test_clock_that_is_wrong_is_told_with_how_much():
    found = judge_clocks([member(ahead_s=1.0), member("n1", ahead_s=-60.0), member("n2", ahead_s=None)])
    assert (found.verdict, found.answer) == (Verdict.WARNING, "n1 is 60 s behind this host")
    assert judge_clocks([member(ahead_s=-1.0)]).answer == "agree with this host's within 1.0 s"
