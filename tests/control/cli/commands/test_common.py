"""What the commands for a server's own files share."""

from __future__ import annotations

import os
import pwd
import sys

import pytest

from stapsrv.control.cli.commands.common import LineParser, Owner, VerbParser, export, guarded
from stapsrv.errors import ConfigError, UsageError
from stapsrv.identity.key_types import CERTIFICATE_VARIABLE, MOK_VARIABLE


def test_owner_without_a_name_is_the_caller_with_the_caller_s_home():
    if os.geteuid() == 0:
        pytest.skip("root's is the service's user")
    owner = Owner.find(None, {"HOME": "/elsewhere"})
    assert owner.name == pwd.getpwuid(os.geteuid()).pw_name
    assert owner.environ == {"HOME": "/elsewhere"}


def test_owner_that_is_named_has_the_home_of_the_database():
    root = Owner.find("root", {"SYSTEMTAP_DIR": "/st", "HOME": "/elsewhere"})
    assert root.environ == {"HOME": pwd.getpwnam("root").pw_dir, "SYSTEMTAP_DIR": "/st"}


def test_owner_s_new_keys_are_of_the_kinds_that_the_caller_wants():
    caller = {MOK_VARIABLE: "ml-dsa-65", CERTIFICATE_VARIABLE: "rsa", "SYSTEMTAP_STAP": "/elsewhere"}
    kept = {MOK_VARIABLE: "ml-dsa-65", CERTIFICATE_VARIABLE: "rsa"}
    assert Owner.find("root", caller).environ == {"HOME": pwd.getpwnam("root").pw_dir, **kept}


def test_owner_that_does_not_exist_is_a_fault_with_a_remedy():
    with pytest.raises(ConfigError, match=r"^there is no user ghost-of-nobody; name another with -u$"):
        Owner.find("ghost-of-nobody", {})


def test_guarded_command_that_fails_is_one_line_and_the_fault_s_status(capsys):
    @guarded("x")
    def fail(argv) -> int:
        raise UsageError(f"{argv[0]}?", remedy="see x --help")

    assert fail(["what"]) == 2
    assert capsys.readouterr().err == "x: what?; see x --help\n"


def test_guarded_command_that_is_interrupted_has_the_status_of_a_shell(capsys):
    @guarded("x")
    def interrupt(_argv) -> int:
        raise KeyboardInterrupt

    assert interrupt([]) == 130
    assert capsys.readouterr().err == "x: interrupted\n"


@pytest.mark.parametrize("words", [["-h"], ["--help", "more"]])
def test_guarded_command_with_a_usage_shows_it_in_place_of_running(words, capsys):
    @guarded("x", usage="usage: x\n")
    def run(_argv) -> int:
        raise AssertionError

    assert run(words) == 0
    assert capsys.readouterr().out == "usage: x\n"


def test_option_that_is_unknown_is_a_usage_error():
    with pytest.raises(UsageError, match=r"^unrecognized arguments: --what; see x --help$"):
        LineParser(prog="x").parse_args(["--what"])


def test_verbs_have_the_common_options_and_an_example(capsys):
    parser = VerbParser("x", description="d", example="e", whose="whose keys")
    parser.common.add_argument("--json", action="store_true")
    parser.add_verb("list", "list the keys", example="--json")
    given = parser.parse_args(["list", "--json", "-u", "me"])
    assert (given.verb, given.json, given.user) == ("list", True, "me")
    with pytest.raises(SystemExit):
        parser.parse_args(["list", "--help"])
    shown = capsys.readouterr().out
    assert "List the keys." in shown
    assert "example: x list --json" in shown


def test_export_writes_the_file_or_says_why_not(tmp_path):
    export(b"data", tmp_path / "file", is_text=False)
    assert (tmp_path / "file").read_bytes() == b"data"
    with pytest.raises(ConfigError, match=r"^/.*: cannot be written \(No such file or directory\)$"):
        export(b"data", tmp_path / "missing" / "file", is_text=False)


def test_export_keeps_binary_data_from_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match=r"^DER is no text for a terminal; name a file"):
        export(b"data", None, is_text=False)
