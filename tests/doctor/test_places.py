"""Directories and file systems."""

from __future__ import annotations

import os

import pytest

from stapsrv.doctor.findings import Verdict


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_directory_that_cannot_be_written_is_a_failure(site):
    closed = site.directory / "closed"
    closed.mkdir(mode=0o500)
    site.set(f"STAT_PATH={closed}/stat\n")
    finding = site.check().one("state")
    assert finding.verdict is Verdict.FAILURE
    assert "STAT_PATH" in finding.remedy


def test_directory_that_everybody_can_write_is_a_failure(site):
    (site.directory / "stat").mkdir()
    (site.directory / "stat").chmod(0o777)
    finding = site.check().one("state")
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
def test_free_space_and_inodes_decide_the_verdict(site, monkeypatch, free_mib, inodes, verdict):
    values = (4096, 4096, 9_999_999, 0, free_mib * 256, 10, 10, inodes, 0, 255)
    monkeypatch.setattr(os, "statvfs", lambda _place: os.statvfs_result(values))
    assert site.check().one("room for logs").verdict is verdict


@pytest.mark.parametrize("line", ["LOG_FILE=/dev/stdout\n", "LOG_FORMAT=journal\n"])
def test_log_that_is_not_a_file_needs_no_space(site, line):
    site.set(line)
    findings = site.check()
    assert not findings.of("log")
    assert not findings.of("room for logs")
