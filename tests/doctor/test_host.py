"""Programs and the limit of open files."""

from __future__ import annotations

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
