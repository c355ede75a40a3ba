"""Headers, and a compile for each kernel."""

from __future__ import annotations

import pytest

from stapsrv.doctor.findings import Verdict


def test_release_without_headers_is_a_failure(site):
    (site.directory / "conf.d" / "other.conf").write_text("RELEASE=9.9\n")
    findings = site.check()
    assert findings.one("headers of 9.9").verdict is Verdict.FAILURE
    assert "linux-headers-9.9" in findings.one("headers of 9.9").remedy
    assert findings.one("headers of 6.1.0-test").verdict is Verdict.OK
    assert findings.one("configured servers").verdict is Verdict.FAILURE


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
def test_compile_shows_the_compilers_first_error(site, stand_in, script, verdict, answer):
    stand_in(script)
    finding = site.check(compiles=True).one("compiling for 6.1.0-test")
    assert (finding.verdict, finding.answer) == (verdict, answer)


def test_equal_servers_compile_once(site):
    site.configure("twin")
    site.configure("other", "DEFINE=X\n")
    assert len(site.check(compiles=True).of("compiling for 6.1.0-test")) == 2
