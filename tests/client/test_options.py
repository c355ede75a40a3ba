"""Command lines of stap, and what of them is sent. That the real client agrees is tested in tests/real."""

from __future__ import annotations

import pytest

from stapsrv.client.errors import ClientError
from stapsrv.client.options import parse_stap_options
from stapsrv.compile.protocol.options import OptionValue


def parse(*words: str):
    return parse_stap_options([word.encode() for word in words])


def test_options_are_sent_in_order_and_with_their_values_attached():
    command = parse("-r", "6.1", "--vp", "01", "-gv", "x.stp", "-DA=1", "a", "--", "-b")
    assert command.options == (b"-r6.1", b"--vp=01", b"-g", b"-v", b"-DA=1")
    assert (command.script, command.arguments) == (b"x.stp", (b"a", b"-b"))
    assert (command.release, command.verbose, command.last_pass) == ("6.1", 1, 4)


def test_abbreviation_is_sent_in_full():
    assert parse("--unpriv", "--skip", "x").options == (b"--unprivileged", b"--skip-badvars")


def test_script_by_option_leaves_all_operands_to_the_script():
    command = parse("-e", "probe", "a", "b")
    assert (command.script, command.arguments, command.options) == (None, (b"a", b"b"), (b"-eprobe",))


def test_listing_ends_with_pass_2_and_needs_no_script():
    command = parse("-l", "syscall.*", "a")
    assert (command.last_pass, command.script, command.arguments) == (2, None, (b"a",))


def test_options_that_no_client_sends_are_named():
    command = parse("-G", "x=1", "--bpf", "-T", "5", "-G", "y=2", "-p5", "x")
    assert command.not_sent == ("-G", "--bpf", "-T", "-p5")
    assert command.options == (b"-p5",)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-p9", "x"], "Invalid pass number"),
        (["-px", "x"], "Invalid pass number"),
        ([], "A script must be specified"),
        (["-E", "x"], "A script must be specified"),
        (["-e", "x", "-e", "y"], "Only one script"),
        (["-l", "x", "-e", "y"], "Cannot specify a script"),
        (["-l", "x", "-p2"], "Cannot specify -p"),
        (["-l", "x", "-L", "y"], "only one of the -l"),
        (["-R", "/x", "x"], "-R cannot be had with a server"),
        (["--no-such", "x"], "--no-such is unknown"),
        (["--remote=h", "x"], "--remote is unknown"),
        (["--use-server=h", "x"], "--use-server is unknown"),
        (["-j", "x"], "-j is unknown"),
        (["-C", "x"], "-C is unknown"),
        (["-D"], "-D needs a value"),
    ],
)
def test_what_cannot_be_had_is_refused(words, problem):
    with pytest.raises(ClientError, match=f"^{problem}"):
        parse(*words)


def test_own_options_are_taken_out():
    taken = []

    def own(name: str, value: bytes | None) -> bool:
        if name != "server":
            return False
        taken.append(value)
        return True

    words = [b"--server", b"h:1", b"-v", b"x"]
    command = parse_stap_options(words, own=own, own_options={"server": OptionValue.REQUIRED})
    assert (taken, command.options, command.script) == ([b"h:1"], (b"-v",), b"x")
