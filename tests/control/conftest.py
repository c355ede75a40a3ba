"""A command line in this process, with directories of its own."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest
from kit.supervisor import here

from stapsrv.control.cli.console import Console
from stapsrv.control.cli.main import run
from stapsrv.control.client import discovery


class Terminal(io.StringIO):
    """Says that a person reads it."""

    def isatty(self) -> bool:
        return True


@attrs.frozen
class Ran:
    """What a command line printed, and its exit status."""

    status: int
    out: str
    err: str


@attrs.define
class CommandLine:
    """Runs command lines with a global configuration file that names directories of the test's own."""

    directory: Path
    environ: Mapping[str, str]

    @property
    def config_file(self) -> Path:
        return self.directory / "global.conf"

    @property
    def stat_path(self) -> Path:
        return self.directory / "stat"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def configure(self, **files: str) -> None:
        """Write server files, by name without suffix."""
        for name, text in files.items():
            (self.directory / "conf.d" / f"{name}.conf").write_text(text)

    def run(self, *words: object, terminal: bool = False, environ: Mapping[str, str] | None = None) -> Ran:
        out = Terminal() if terminal else io.StringIO()
        err = io.StringIO()
        line = [*map(str, words), "-c", str(self.config_file)]
        status = run(line, Console(out, err), {**self.environ, **(environ or {})})
        return Ran(status, out.getvalue(), err.getvalue())


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    directory = tmp_path / "service"
    (directory / "conf.d").mkdir(parents=True)
    (directory / "global.conf").write_text(
        f"CONFIG_PATH={directory}/conf.d\nSTAT_PATH={directory}/stat\nLOG_FILE={directory}/log\n"
    )
    environ = {name: os.environ[name] for name in ("PATH", "STAPSRV_MDNS")}
    return CommandLine(directory, {"HOME": str(tmp_path), **environ})


@pytest.fixture
def several_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process, which is one user, be all of them."""
    monkeypatch.setattr(discovery, "is_user", lambda _name, _uid: True)


@pytest.fixture
def user() -> str:
    return here()
