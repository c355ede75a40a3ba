"""Which requests have the same answer each time."""

from __future__ import annotations

import pytest

from stapsrv.compile.cache.cacheable import (
    are_build_options_cacheable,
    find_unwatched_file,
    is_rc_cacheable,
    request_uncacheable_reason,
)
from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.engine.base import CompileResult
from stapsrv.compile.protocol.archive import RequestFile
from stapsrv.compile.protocol.options import STAP_4_8, OptionTable, OptionValue, parse_options
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.protocol.response import ResponseFile

PLAIN = b"probe begin { exit() }"


def reason(
    *arguments: bytes,
    script: bytes | None = None,
    host_names: frozenset[str] = frozenset(),
    table: OptionTable = STAP_4_8,
) -> str | None:
    files = () if script is None else (RequestFile(b"script/x.stp", script),)
    request = CompileRequest(release="6.1", arch="x86_64", arguments=arguments, files=files)
    return request_uncacheable_reason(request, parse_options(arguments, table), host_names)


@pytest.mark.parametrize(
    "arguments",
    [
        (b"-r6.1", b"-p4", b"-e" + PLAIN),
        (b"-e", PLAIN, b"--", b"word", b"1"),
        (b"-E", PLAIN),
        (b"-p4", b"--privilege=stapusr", b"-DMAXACTION=1000", b"-gw", b"-s64", b"-mname", b"-e" + PLAIN),
        (b"-Itapset/home/me/tapset", b"-e" + PLAIN),
        (b"-e" + b"probe begin { print($1) }", b"12"),
        (b"-e" + b"probe begin { print(@1) }", b"word"),
        (b"-dnfs", b"-e" + PLAIN),
        (b"-d", b"kernel_x", b"-e" + PLAIN),
        (b"--unpriv", b"-e" + PLAIN),
    ],
    ids=repr,
)
def test_repeatable_request_has_no_reason(arguments):
    assert reason(*arguments) is None


@pytest.mark.parametrize("option", [b"--novel", b"--semantic-keep-going"])
def test_option_of_a_later_stap_is_a_reason(option):
    names = {"novel": OptionValue.NONE, "semantic-keep-going": OptionValue.NONE}
    assert reason(option, b"-e", PLAIN, table=OptionTable({**STAP_4_8.long, **names})) == "option"


def test_script_in_a_file_has_no_reason():
    assert reason(b"-p4", b"script/x.stp", b"3", script=b"probe begin { print($1) }") is None


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((b"-v", b"-e" + PLAIN), "option"),
        ((b"-p2", b"-e" + PLAIN), "option"),
        ((b"-l", b"syscall.*"), "option"),
        ((b"-Lsyscall.*",), "option"),
        ((b"--dump-functions",), "option"),
        ((b"-c", b"ls", b"-e" + PLAIN), "option"),
        ((b"-x1", b"-e" + PLAIN), "option"),
        ((b"--ldd", b"-e" + PLAIN), "option"),
        ((b"-d/bin/ls", b"-e" + PLAIN), "option"),
        ((b"-d", b"/bin/ls", b"-e" + PLAIN), "option"),
        ((b"-dkernel", b"-e" + PLAIN), "option"),
        ((b"-d", b"kernel", b"-e" + PLAIN), "option"),
        ((b"--all-modules", b"-e" + PLAIN), "option"),
        ((b"--sysroot=/x", b"-e" + PLAIN), "option"),
        ((b"--runtime=dyninst", b"-e" + PLAIN), "option"),
        ((b"--bpf", b"-e" + PLAIN), "option"),
        ((b"-BCFLAGS=-include/etc/passwd", b"-e" + PLAIN), "option"),
        ((b"-DX=__DATE__()", b"-e" + PLAIN), "option"),
        ((b"-I/etc", b"-e" + PLAIN), "option"),
        ((b"-Ia/../../etc", b"-e" + PLAIN), "option"),
        ((b"-r6.2", b"-e" + PLAIN), "option"),
        ((b"-R/x", b"-e" + PLAIN), "option"),
        ((b"--poison-cache", b"-e" + PLAIN), "option"),
        ((b"--no-such-option", b"-e" + PLAIN), "option"),
        ((b"-e" + PLAIN, b"9" * 300_000), "size"),
        ((b"-p4", b"/etc/passwd"), "file"),
        ((b"-p4", b"script/y.stp"), "file"),
        ((b"-E" + PLAIN, b"/etc/passwd"), "file"),
        ((b"-e" + b'probe $1("/bin/ls").begin {}', b"process"), "argument"),
        ((b"-e" + b"probe begin { print($*) }", b"a"), "argument"),
        ((b"-e" + PLAIN, b'process("/bin/ls")'), "program"),
        ((b"-E" + b'probe process("x").begin {}', b"-e" + PLAIN), "program"),
        ((b"-gE", b"%{ %}", b"-e" + PLAIN), "code"),
    ],
    ids=repr,
)
def test_request_that_is_not_repeatable_has_a_reason(arguments, why):
    assert reason(*arguments) == why


def test_tapsets_of_the_request_and_of_the_host_count():
    assert reason(b"-p4", b"-Itapset", b"-e" + PLAIN, script=b"function f() %{ %}") == "code"
    assert reason(b"-e" + b"probe errno.x {}", host_names=frozenset({"errno"})) == "program"


@pytest.mark.parametrize("text", ["", "# nothing\n", "--rlimit-as=1000000\n--rlimit-cpu=5 -w", "-g\n-DX=1"])
def test_plain_rc_is_cacheable(text):
    assert is_rc_cacheable(text)


@pytest.mark.parametrize(
    "text",
    [
        "-I /opt/tapset",
        "-v",
        "-R/x",
        "--sysroot=/x",
        "-DX=$(date)",
        "-B X=1",
        "-e 'probe begin {}'",
        "word",
        "-p2",
    ],
)
def test_other_rc_is_not_cacheable(text):
    assert not is_rc_cacheable(text)


def test_build_options_that_make_expands_are_not_cacheable():
    assert are_build_options_cacheable(("CONFIG_X=y", "V=0"), ("MAXACTION=7",))
    assert not are_build_options_cacheable(("X=$(shell date)",), ())
    assert not are_build_options_cacheable(("CC=/opt/gcc/bin/gcc",), ())
    assert are_build_options_cacheable((), ("HEADER=linux/mm.h",))
    assert not are_build_options_cacheable((), ("X=`date`",))


@pytest.mark.parametrize("path", ["/usr/a\0b", "/usr/" + "x/" * 5000])
@pytest.mark.parametrize("is_listed", [True, False])
def test_path_that_no_file_has_is_not_watched(path, is_listed):
    """It comes from what a compile left, or from C in a script, and goes into the log."""
    source = ResponseFile("stap000000/x.c", b"" if is_listed else f'.path = "{path}"'.encode())
    result = CompileResult(0, b"", b"", (source,))
    found = find_unwatched_file(result, {path} if is_listed else (), (WatchedPath("/usr"),))
    assert found == path[:4096]
