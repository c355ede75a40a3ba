"""Manual pages, completion and help: that they say what the commands understand."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from kit.machine import ROOT

from stapsrv.client.command import _parser as compile_parser
from stapsrv.config.table import GLOBAL_SETTINGS, SERVER_SETTINGS
from stapsrv.control.cli import dispatch
from stapsrv.control.cli.help import ACTIONS, OPTIONS
from stapsrv.daemon_options import _parser
from stapsrv.farm.options import _parser as farm_parser

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
BIN = Path(sys.executable).parent
TOOLS = tuple(dispatch._TOOLS)


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Everything that the generator makes."""
    target = tmp_path_factory.mktemp("manual")
    subprocess.run([sys.executable, ROOT / "packaging/manual/generate.py", target], check=True, timeout=60)
    return target


def run(*command: object, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def page(made):
    """Return the text of a page, as a reader sees it; it must give the formatter nothing to complain of."""

    def text(name: str) -> str:
        shown = run("man", "--warnings", "-l", made / "man" / name, MANWIDTH="1000", LC_ALL="C.UTF-8")
        assert (shown.returncode, shown.stderr) == (0, "")
        return re.sub("\u2010", "-", shown.stdout)

    return text


SYSTEM = {"stap-server", "stap-serverd", "stap-farm"}
PAGES = [f"{name}.{8 if name in SYSTEM else 1}" for name in SCRIPTS]


@pytest.mark.parametrize("name", [*PAGES, "stap-server.conf.5"])
def test_every_command_has_a_page(page, name):
    text = page(name)
    title = name.rpartition(".")[0]
    assert re.search(rf"^NAME\n +{title} - ", text, re.MULTILINE)
    for section in ("SYNOPSIS", "DESCRIPTION", "EXAMPLES", "SEE ALSO"):
        assert re.search(rf"^{section}$", text, re.MULTILINE), section


def farm_options(parser: argparse.ArgumentParser | None = None) -> set[str]:
    """The options of stap-farm's commands, without those for help."""
    names: set[str] = set()
    for action in (parser or farm_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            names |= {name for below in action.choices.values() for name in farm_options(below)}
        else:
            names |= {*action.option_strings}
    return names - {"-h", "--help", "--version"}


def test_pages_have_every_option(page):
    daemon = page("stap-serverd.8")
    for action in _parser()._actions:
        shown = action.help != "==SUPPRESS=="
        assert all(
            (re.search(rf"^ +.*{re.escape(name)}\b", daemon, re.MULTILINE) is not None) == shown
            for name in action.option_strings
        ), action.option_strings
    farm = page("stap-farm.8")
    for option in farm_options():
        assert re.search(rf"^ +.*{re.escape(option)}\b", farm, re.MULTILINE), option
    client = page("stap-compile.1")
    for action in compile_parser()._actions:
        for option in {*action.option_strings} - {"-h", "--help"}:
            assert re.search(rf"^ +.*{re.escape(option)}\b", client, re.MULTILINE), option
    server = page("stap-server.8")
    for option in {row.option for row in OPTIONS} - {"--help"}:
        assert re.search(rf"^ +{re.escape(option)}\b", server, re.MULTILINE), option
    for action in (*ACTIONS, *TOOLS):
        assert re.search(rf"^ +{action}\b", server, re.MULTILINE), action


def test_templates_name_only_options_that_exist():
    known = {row.option for row in OPTIONS} | {
        name for each in _parser()._actions for name in each.option_strings
    }
    known |= farm_options() | {name for each in compile_parser()._actions for name in each.option_strings}
    theirs = {"--use-server", "--rlimit-cpu"}  # of stap
    seen = set()
    for template in (ROOT / "packaging" / "manual" / "pages").iterdir():
        named = {
            name.replace("\\", "")
            for name in re.findall(r"(?<!\w)\\-\\-[a-z][a-z\\-]*", template.read_text())
        }
        assert named <= known | theirs, template.name
        seen |= named
    assert theirs < seen


def test_page_of_the_files_has_every_variable_and_what_it_means(page):
    text = page("stap-server.conf.5")
    for row in (*GLOBAL_SETTINGS, *SERVER_SETTINGS):
        # LOG_FORMAT is of both kinds of file.
        meanings = re.findall(rf"^ +{row.variable}(?:\n +| +)(.+)$", text, re.MULTILINE)
        assert any(row.help[:20].lower() in meaning.lower() for meaning in meanings), row.variable


HELPED = [[name] for name in SCRIPTS]
HELPED += [["stap-server", action] for action in (*ACTIONS, *TOOLS)]
HELPED += [["stap-server", *words] for words in (("cert", "renew"), ("cert", "show"), ("mok", "new"))]
HELPED += [["stap-farm", *words] for words in (("scheduler",), ("worker",), ("ca",), ("ca", "issue"))]


@pytest.mark.parametrize("words", HELPED, ids=" ".join)
def test_help_has_an_example(words):
    ran = run(BIN / words[0], *words[1:], "--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.search(r"\bexamples?:", ran.stdout)
    assert ran.stdout.startswith(f"usage: {' '.join(words)}")


COMPLETED = [
    ("stap-server st", {"start", "status", "stop"}),
    ("stap-server ctl dr", {"drain"}),
    ("stap-server cert re", {"renew", "revoke"}),
    ("stap-server cert renew --s", {"--ssl"}),
    ("stap-server start --po", {"--port"}),
    ("stap-server start -n x --drain", {"--drain-timeout"}),
    ("stap-farm w", {"worker"}),
    ("stap-compile --fi", {"--fingerprint"}),
    ("stap-farm ca i", {"init", "issue"}),
    ("stap-farm ca issue --h", {"--help", "--host"}),
    ("stap-farm worker --sandbox l", {"landlock"}),
    ("stap-serverd --bac", {"--backend"}),
    ("stap-serverd --backend t", {"trio"}),
    ("stap-server start --warmup y", {"yes"}),
]


def completed_by_bash(made: Path, line: str) -> set[str]:
    name = line.split(maxsplit=1)[0]
    words = " ".join(f"'{word}'" for word in line.split(" "))
    code = (
        f"source {made}/bash/{name}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1));"
        f" _{name.replace('-', '_')}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    ran = run("bash", "--norc", "-c", code, PATH=f"{BIN}:{os.environ['PATH']}")
    assert (ran.returncode, ran.stderr) == (0, "")
    return set(ran.stdout.split())


def completed_by_fish(made: Path, line: str) -> set[str]:
    name = line.split(maxsplit=1)[0]
    ran = run("fish", "--no-config", "-c", f"source {made}/fish/{name}.fish; complete -C '{line}'")
    assert (ran.returncode, ran.stderr) == (0, "")
    found = {row.split("\t")[0] for row in ran.stdout.splitlines()}
    # From fish 4 on, words that have the letters elsewhere follow.
    begun = line.rpartition(" ")[2]
    return {word for word in found if word.startswith(begun)}


@pytest.mark.parametrize(("line", "words"), COMPLETED, ids=[line for line, _ in COMPLETED])
@pytest.mark.parametrize("shell", [completed_by_bash, completed_by_fish], ids=["bash", "fish"])
def test_shells_complete(made, shell, line, words):
    assert shell(made, line) == words


def test_zsh_completes(made, tmp_path):
    """On a terminal of its own, as it does for people."""
    script = r"""
        zmodload zsh/zpty
        complete() {
            zpty shell zsh -f -i
            zpty -w shell "fpath=($1 \$fpath); autoload -U compinit; compinit -u -d $2/dump; print REA''DY"
            zpty -r shell seen '*READY*'
            zpty -n -w shell "$3"$'\t'
            zpty -r shell seen "*$4*" && print -r -- found $4
            zpty -d shell
        }
        complete $1 $2 'stap-server start --po' 'start --port'
        complete $1 $2 'stap-server ctl dr' 'ctl drain'
        complete $1 $2 'stap-server cert ren' 'cert renew'
        complete $1 $2 'stap-serverd --backend t' '--backend trio'
        complete $1 $2 'stap-farm ca is' 'ca issue'
    """
    ran = run("zsh", "-f", "-c", script, "zsh", made / "zsh", tmp_path, TERM="dumb")
    assert ran.stdout.splitlines() == [
        "found start --port",
        "found ctl drain",
        "found cert renew",
        "found --backend trio",
        "found ca issue",
    ]


def test_bash_completes_names_and_ids_of_running_servers(made, tmp_path):
    """Nicknames and ids, as ``status --json`` tells them."""
    (tmp_path / "stap-server").write_text(
        '#!/bin/sh\ncat <<EOF\n{\n  "id": 4194305,\n  "nickname": "native",\n  "id": 4194306,\n'
        '  "nickname": "lab"\n}\nEOF\n'
    )
    (tmp_path / "stap-server").chmod(0o755)
    for words, expected in (
        ("'-n' ''", "native\nlab\n"),
        ("'-p' ''", "4194305\n4194306\n"),
        ("'-n' 'l'", "lab\n"),
    ):
        code = (
            f"source {made}/bash/stap-server; COMP_WORDS=(stap-server stop {words}); COMP_CWORD=3;"
            " _stap_server; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        ran = run("bash", "--norc", "-c", code, PATH=f"{tmp_path}:{os.environ['PATH']}")
        assert (ran.stdout, ran.stderr) == (expected, "")
