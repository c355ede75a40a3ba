"""Programs and the limit of open files."""

from __future__ import annotations

import shutil

import pytest
from kit.stap import make_stap

from stapsrv.doctor.findings import Verdict


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


@pytest.mark.parametrize(
    ("hard", "verdict"), [(100, Verdict.FAILURE), (20_000, Verdict.OK), (-1, Verdict.OK)]
)
def test_limit_of_open_files_decides_the_verdict(site, monkeypatch, hard, verdict):
    monkeypatch.setattr("resource.getrlimit", lambda _which: (hard, hard))
    assert site.check().one("open files").verdict is verdict
