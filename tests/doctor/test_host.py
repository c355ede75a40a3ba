"""Programs, the limit of open files, directories and file systems."""

from __future__ import annotations

import os
import shutil

import pytest
from kit.stap import make_stap

from stapsrv.doctor.findings import Verdict
from stapsrv.sandbox import backends
from stapsrv.sandbox.detect import NAMESPACES_REMEDY

# Contains nothing; the first words after it are those of the limits.
PASSES_THE_TRIAL = ("sh", "-c", 'shift 3; case $1 in cp) cp -t "$3" "$4"; exit 1;; esac', "sh")


def test_missing_stap_is_a_failure(site):
    findings = site.check(environ={**site.environ, "SYSTEMTAP_STAP": "/missing/stap"})
    assert findings.one("stap").verdict is Verdict.FAILURE
    assert "install SystemTap" in findings.one("stap").remedy


def test_missing_and_broken_tools_are_failures(site, tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("sh", "true", "setpriv", "unshare", "bwrap"):
        (bare / name).symlink_to(shutil.which(name))
    make_stap(bare / "gcc", "exit 1").write_text("#!/bin/sh\nexit 1\n")
    findings = site.check(environ={**site.environ, "PATH": str(bare)})
    assert findings.one("gcc").answer == f"{bare}/gcc --version does not answer"
    assert findings.one("make").answer == "was not found on the path"
    assert findings.one("certutil").remedy == "install it (Debian: libnss3-tools)"


def test_bubblewrap_that_does_not_work_is_a_warning(site, monkeypatch):
    monkeypatch.setattr(backends, "_landlock", lambda _plan: PASSES_THE_TRIAL)
    monkeypatch.setattr(backends, "_bubblewrap", lambda _plan: ("false",))
    failed, taken = site.check().of("containment")
    assert (failed.verdict, failed.remedy) == (Verdict.WARNING, NAMESPACES_REMEDY)
    assert failed.answer == "a better way is installed and does not work here: bubblewrap: status 1"
    assert (taken.verdict, taken.answer) == (Verdict.OK, "requests are isolated by landlock")


@pytest.mark.parametrize(
    ("hard", "verdict"), [(100, Verdict.FAILURE), (20_000, Verdict.OK), (-1, Verdict.OK)]
)
def test_limit_of_open_files_decides_the_verdict(site, monkeypatch, hard, verdict):
    monkeypatch.setattr("resource.getrlimit", lambda _which: (hard, hard))
    assert site.check().one("open files").verdict is verdict


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
