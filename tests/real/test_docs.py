"""The pages in ``docs/``: they build, their commands are understood, and those that are marked are run."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from kit.ports import quiet_port
from kit.real import PATIENCE_S, Stap

from stapsrv.client.command import _parser as compile_parser
from stapsrv.config.table import GLOBAL_SETTINGS, SERVER_SETTINGS
from stapsrv.control.cli import dispatch, parser
from stapsrv.daemon_options import _parser as daemon_parser
from stapsrv.daemon_options import parse_arguments as parse_daemon
from stapsrv.farm.options import _parser as farm_parser
from stapsrv.farm.options import parse_arguments as parse_farm

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
RUN = "<!-- run -->"


def parser_of(tool: str) -> argparse.ArgumentParser:
    """Return the grammar of one of ``stap-server``'s tools."""
    return importlib.import_module(dispatch._TOOLS[tool])._parser()


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options of a grammar, and of all below it."""
    found: set[str] = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found |= options_of(below)
    return found


OPTIONS = {
    "stap-serverd": options_of(daemon_parser()),
    "stap-farm": options_of(farm_parser()),
    "stap-compile": options_of(compile_parser()),
    "stap-server": options_of(parser._parser()).union(
        *(options_of(parser_of(tool)) for tool in dispatch._TOOLS)
    ),
}


class Shown(NamedTuple):
    """A command that a page shows.

    Attributes:
        page: its name.
        line: the command.
        runs: the page says that it is to be run.
        whole: it can be typed as it is; else a sentence speaks of it, perhaps of a part.
    """

    page: str
    line: str
    runs: bool = False
    whole: bool = True


def shown_in(page: Path) -> Iterator[Shown]:
    """Give the commands of a page: of its blocks of code, and those that its sentences speak of."""
    lines = iter(page.read_text().splitlines())
    marked = False
    for line in lines:
        if line == RUN:
            marked = True
        elif line.startswith("```"):
            inside = list(iter(lambda: next(lines), "```"))
            if line == "```console":
                yield from (Shown(page.name, each[2:], marked) for each in inside if each.startswith("$ "))
            marked = False
        elif line.startswith("    "):
            yield Shown(page.name, line.strip().removeprefix("$ "))
        else:
            spoken_of = re.findall(r"`(stap-(?:serverd?|farm) [^`]+)`", line)
            yield from (Shown(page.name, code, whole=False) for code in spoken_of)


def is_ours(shown: Shown) -> bool:
    """Whether a command is one whose grammar we know, and not a form such as ``stap-server ACTION``."""
    form = "…" in shown.line or " --option" in shown.line
    return (
        not form
        and re.match(r"stap-server (ctl )?[a-z]|stap-serverd -|stap-farm [a-z]", shown.line) is not None
    )


COMMANDS = [shown for page in (*PAGES, ROOT / "README.md") for shown in shown_in(page) if is_ours(shown)]
RUNNABLE = [page for page in PAGES if RUN in page.read_text()]


def test_pages_build_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-q",
        "-d",
        tmp_path / "site",
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    assert (tmp_path / "site" / "index.html").exists()


def test_there_are_commands_to_look_at():
    assert len(COMMANDS) > 30
    assert sum(shown.runs for shown in COMMANDS) > 15


@pytest.mark.parametrize("shown", COMMANDS, ids=lambda shown: f"{shown.page}: {shown.line}")
def test_commands_are_understood(shown):
    """By the grammars themselves; each raises where an option or a value is not theirs."""
    program, *words = shlex.split(shown.line, comments=True)
    if not shown.whole:
        named = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert named <= OPTIONS[program]
    elif program == "stap-serverd":
        parse_daemon(words)
    elif program == "stap-farm":
        parse_farm(words)
    elif words[0] in dispatch._TOOLS:
        parser_of(words[0]).parse_args(words[1:])
    else:
        parser.parse_arguments(words, directory="/")


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_commands_that_are_marked_run(stap: Stap, tmp_path, page):
    """In order, in one place, as the user of these tests, with servers that nobody else sees."""
    releases = stap.installation.releases
    place = tmp_path / "place"
    (place / "conf.d").mkdir(parents=True)
    (place / "conf.d" / "lab.conf").write_text(f"NICKNAME=lab\nRELEASE={releases[0]}\n")
    (place / "systemtap").mkdir()
    # What stap has learned of these kernels, which takes ten seconds to learn.
    (place / "systemtap" / "cache").symlink_to(stap.directory / "cache")
    environ = stap.environ(
        # The note in trust.md for Debian 13; other systems verify the same without it.
        NSS_DISABLE_PKIX_VERIFY="1",
        SYSTEMTAP_DIR=str(place / "systemtap"),
        STAPSRV_STAT_PATH=str(place / "run"),
        STAPSRV_LOG_FILE=str(place / "log"),
        STAPSRV_CONFIG_PATH=str(place / "conf.d"),
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    script = "\n".join(shown.line for shown in shown_in(page) if shown.runs)
    for said, meant in (
        ("6.1.0-56-amd64", releases[0]),
        ("6.1.0-56-cloud-amd64", releases[-1]),
        ("/var/lib/stap-server/runtime", str(stap.installation.runtime)),
        ("5001", str(quiet_port())),
    ):
        script = script.replace(said, meant)
    try:
        ran = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", script],
            cwd=place,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
    finally:
        subprocess.run(["stap-server", "stop"], env=environ, capture_output=True, timeout=60, check=False)


def test_configuration_page_has_every_variable_and_option():
    page = (ROOT / "docs" / "configuration.md").read_text()
    for row in (*GLOBAL_SETTINGS, *SERVER_SETTINGS):
        assert row.tunable or f"| `{row.variable}` |" in page, row.variable
    named = set(re.findall(r"\| `(--?[a-zA-Z-]+)` \|", page))
    assert len(named) > 15
    assert named <= OPTIONS["stap-serverd"] | OPTIONS["stap-server"]


def test_example_files_are_good(tmp_path):
    """Those that are installed, and those that pages show."""
    from stapsrv.config.files import server_settings_from
    from stapsrv.config.global_settings import SYSTEM_SETTINGS, lay_over

    examples = list((ROOT / "packaging" / "examples").glob("*.conf"))
    assert {"global.conf", "lab.conf"} <= {path.name for path in examples}
    for path in examples:
        text = path.read_text()
        if path.name == "global.conf":
            assert lay_over(SYSTEM_SETTINGS, text, where=str(path)) == SYSTEM_SETTINGS
        else:
            assert server_settings_from(text, where=str(path)).nickname == path.stem
    blocks = [
        (page.name, block)
        for page in PAGES
        for block in re.findall(r"^```ini\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    assert blocks
    for name, block in blocks:
        server_settings_from(block, where=name)
