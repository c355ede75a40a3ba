"""A host to check: a configuration, a scripted stap, and directories of the test's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import attrs
import pytest
from kit.stap import make_stap

from stapsrv.doctor.command import run_checks
from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.findings import Finding, Verdict


@attrs.frozen
class Findings:
    """What the checks found."""

    all: tuple[Finding, ...]

    def of(self, question: str) -> list[Finding]:
        return [finding for finding in self.all if finding.question == question]

    def one(self, question: str) -> Finding:
        (finding,) = self.of(question)
        return finding

    @property
    def failures(self) -> list[Finding]:
        return [finding for finding in self.all if finding.verdict is Verdict.FAILURE]


@attrs.define
class Site:
    """The files of a service, and the checks of it."""

    directory: Path
    environ: dict[str, str]
    build_tree: Path

    @property
    def config(self) -> Path:
        return self.directory / "global.conf"

    def configure(self, name: str, text: str = "") -> None:
        (self.directory / "conf.d" / f"{name}.conf").write_text(
            f"RELEASE={self.build_tree}\nNICKNAME={name}\n{text}"
        )

    def set(self, text: str) -> None:
        """Add lines to the global configuration file."""
        self.config.write_text(self.config.read_text() + text)

    def check(self, *, compiles: bool = False, environ: Mapping[str, str] | None = None) -> Findings:
        context = DoctorContext(self.config, environ or self.environ, compiles=compiles)
        findings: list[Finding] = []
        anyio.run(run_checks, context, findings.append)
        return Findings(tuple(findings))


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str], Path]:
    """Make a stap that runs a script for each request."""
    return lambda script: make_stap(tmp_path / "stap", script)


@pytest.fixture
def site(
    tmp_path: Path, build_tree: Path, stand_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Site:
    directory = tmp_path / "service"
    (directory / "conf.d").mkdir(parents=True)
    (directory / "tmp").mkdir()
    (directory / "global.conf").write_text(
        f"CONFIG_PATH={directory}/conf.d\nSTAT_PATH={directory}/stat\nLOG_FILE={directory}/log\n"
    )
    # The checks use the temporary directory of this process.
    monkeypatch.setattr("tempfile.tempdir", str(directory / "tmp"))
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "SYSTEMTAP_DIR": str(directory / "systemtap"),
        "SYSTEMTAP_STAP": str(stand_in("exit 0")),
        "STAPSRV_MDNS": "no",
    }
    site = Site(directory, environ, build_tree)
    site.configure("lab")
    return site
