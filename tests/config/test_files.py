"""The VARIABLE=VALUE grammar, its table of server variables, and every message about a wrong file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stapsrv.config.files import (
    Assignment,
    ConfigFaults,
    decode_config,
    encode_server_settings,
    scan,
    server_settings_from,
    unwritable_reason,
    values_from,
    warnings_about,
    with_value,
    without_value,
)
from stapsrv.config.settings import ServerSettings
from stapsrv.config.table import SERVER_SETTINGS, TUNABLES
from stapsrv.errors import ConfigError

WHERE = "conf.d/a.conf"
HINT = "begin comments with '#' and leave no blank before the '='"
VARIABLES = ", ".join(row.variable for row in SERVER_SETTINGS)


def read(text: str) -> ServerSettings:
    return server_settings_from(text, where=WHERE)


@pytest.mark.parametrize(
    ("line", "assignments"),
    [
        pytest.param("ARCH=i386", [("ARCH", "i386", False)], id="plain"),
        pytest.param("BUILD='A=1 B=2'", [("BUILD", "'A=1 B=2'", False)], id="quotes belong to the value"),
        pytest.param("LOG=~me/$X", [("LOG", "~me/$X", False)], id="no shell"),
        pytest.param("LOG= /log", [("LOG", " /log", False)], id="blanks before the value belong to it"),
        pytest.param("LOG=/log \t ", [("LOG", "/log", False, True)], id="blanks after the value do not"),
        pytest.param("LOG= ", [("LOG", "", False, True)], id="nothing but blanks is empty"),
        pytest.param("DEFINE+=A=1", [("DEFINE", "A=1", True)], id="adds; the first = counts"),
        pytest.param("ARCH=", [("ARCH", "", False)], id="empty"),
        pytest.param("ARCH=#x", [("ARCH", "#x", False)], id="a comment is a whole line"),
        pytest.param("\t ARCH=x", [("ARCH", "x", False)], id="blanks before the variable"),
        pytest.param("# ARCH=x", [], id="comment"),
        pytest.param("  # ARCH=x", [], id="indented comment"),
        pytest.param(" \t", [], id="blank line"),
        pytest.param("LOG=a\x0cb\u2028c", [("LOG", "a\x0cb\u2028c", False)], id="lines end at LF only"),
        pytest.param("NOBODY=knows", [("NOBODY", "knows", False)], id="the grammar knows no variables"),
    ],
)
def test_line_gives_assignments(line: str, assignments: list[tuple[Any, ...]]) -> None:
    expected = tuple(Assignment(2, *assignment) for assignment in assignments)
    assert tuple(scan(f"\n{line}\n", where=WHERE)) == expected
    assert tuple(scan(f"\n{line}", where=WHERE)) == expected, "the last line needs no line break"


@pytest.mark.parametrize(
    ("lines", "releases"),
    [
        (["RELEASE=a"], ("a",)),
        (["RELEASE=a", "RELEASE=b"], ("b",)),
        (["RELEASE=a", "RELEASE+=b", "RELEASE+=c"], ("a", "b", "c")),
        (["RELEASE+=a"], ("a",)),
        (["RELEASE=a", "RELEASE="], ()),
        (["RELEASE=a", "RELEASE=()"], ()),
        (["RELEASE=a", "RELEASE+="], ("a",)),
        (["RELEASE=a", "RELEASE+=()"], ("a",)),
        (["RELEASE=a", "RELEASE=()", "RELEASE+=b"], ("b",)),
        (["RELEASE=(a b)"], ("(a b)",)),
    ],
)
def test_array_collects_values(lines: list[str], releases: tuple[str, ...]) -> None:
    assert read("\n".join(lines)).releases == releases


def test_the_last_value_counts_and_an_empty_one_is_the_default() -> None:
    assert read("PORT=1\nPORT=2\nUSER=a\nUSER=\nMAXREQSIZE=9\nMAXREQSIZE=") == ServerSettings(port=2)


def test_manual_page_first_example() -> None:
    assert read("ARCH=\nUSER=\nRELEASE=\nNICKNAME=native\n") == ServerSettings(nickname="native")


def test_manual_page_second_example() -> None:
    assert read("ARCH=i386\nRELEASE=2.6.18-128.el5\nPORT=5001\nLOG=/path/to/log/file\n") == ServerSettings(
        arch="i386", releases=("2.6.18-128.el5",), port=5001, log=Path("/path/to/log/file")
    )


def test_manual_page_third_example() -> None:
    text = """\
USER=serveruser
RELEASE=/kernels/2.6.18-92.1.18.el5/build
INCLUDE=/mytapsets
INCLUDE+=/yourtapsets
BUILD='VARIABLE1=VALUE1 VARIABLE2=VALUE2'
DEFINE=STP_MAXMEMORY=1024
DEFINE+=DEBUG_TRANS
RUNTIME=/myruntime
NICKNAME=my-server
SSL=/path/to/NSS/certificate/database
"""
    assert read(text) == ServerSettings(
        user="serveruser",
        releases=("/kernels/2.6.18-92.1.18.el5/build",),
        include=("/mytapsets", "/yourtapsets"),
        build=("'VARIABLE1=VALUE1 VARIABLE2=VALUE2'",),
        define=("STP_MAXMEMORY=1024", "DEBUG_TRANS"),
        runtime="/myruntime",
        nickname="my-server",
        ssl=Path("/path/to/NSS/certificate/database"),
    )


def test_numbers_and_architectures_are_normalised() -> None:
    text = "ARCH=aarch64\nPORT= 7300 \nMAXTHREADS=0\nMAXREQSIZE=0100\nMAXCOMPRESSEDREQ=1\n"
    assert read(text) == ServerSettings(
        arch="arm64", port=7300, max_threads=0, max_request_bytes=100, max_compressed_bytes=1
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", f"expected VARIABLE=VALUE, found 'nonsense'; {HINT}"),
        ("ARCH = x", f"expected VARIABLE=VALUE, found 'ARCH = x'; {HINT}"),
        ("ARCH=a\0b", f"expected VARIABLE=VALUE, found 'ARCH=a\\x00b'; {HINT}"),
        ("x" * 99, f"expected VARIABLE=VALUE, found '{'x' * 60}…'; {HINT}"),
        ("ARCH=x\r", "a carriage return cannot stand in a value; save the file with Unix line ends"),
        ("PROT=1", "unknown variable 'PROT'; did you mean PORT?"),
        ("release=x", "unknown variable 'release'; did you mean RELEASE?"),
        ("ZZZ=1", f"unknown variable 'ZZZ'; the variables of this file are {VARIABLES}"),
        ("ARCH+=x", "ARCH holds one value, so nothing can be added to it; write ARCH=VALUE"),
        ("PORT=abc", "PORT=abc: expected a port number from 0 to 65535 (0: the kernel picks one)"),
        ("PORT=65536", "PORT=65536: expected a port number from 0 to 65535 (0: the kernel picks one)"),
        ("PORT=-1", "PORT=-1: expected a port number from 0 to 65535 (0: the kernel picks one)"),
        ("PORT=\u0667", "PORT=\u0667: expected a port number from 0 to 65535 (0: the kernel picks one)"),
        (
            "MAXTHREADS=-1",
            "MAXTHREADS=-1: expected a number of threads, 0 or more (0: one request at a time)",
        ),
        (
            f"MAXTHREADS={'9' * 5000}",
            f"MAXTHREADS={'9' * 60}…: expected a number of threads, 0 or more (0: one request at a time)",
        ),
        ("LOG_FORMAT=xml", "LOG_FORMAT=xml: expected classic, json or journal"),
        ("MAXREQSIZE=0", "MAXREQSIZE=0: expected a number of bytes, 1 or more"),
        ("MAXCOMPRESSEDREQ=1k", "MAXCOMPRESSEDREQ=1k: expected a number of bytes, 1 or more"),
    ],
)
def test_wrong_line_is_refused_with_its_place(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f"# a comment\n{line}\n")
    assert str(caught.value) == f"{WHERE}:2: {message}"
    assert caught.value.exit_status == 1


def test_all_faults_of_a_file_are_reported_in_order() -> None:
    with pytest.raises(ConfigFaults) as caught:
        read("PORT=x\nnonsense\nARCH=a\r\nPROT=1\n")
    assert [fault.where for fault in caught.value.faults] == [f"{WHERE}:{line}" for line in (1, 2, 3, 4)]
    assert str(caught.value).splitlines()[0] == (
        f"{WHERE}:1: PORT=x: expected a port number from 0 to 65535 (0: the kernel picks one)"
    )
    assert len(str(caught.value).splitlines()) == 4
    assert caught.value.problem.startswith("PORT=x")
    assignment, fault = scan("PORT=x\nnonsense\n", where=WHERE)
    assert isinstance(assignment, Assignment)
    assert "nonsense" in str(fault)


def test_carriage_returns_are_one_fault() -> None:
    with pytest.raises(ConfigFaults) as caught:
        read("ARCH=i386\r\nPORT=1\r\n")
    assert len(caught.value.faults) == 1


def test_bytes_are_utf_8() -> None:
    assert decode_config("NICKNAME=zoë\n".encode(), where=WHERE) == "NICKNAME=zoë\n"
    assert decode_config(b"\xef\xbb\xbfARCH=x", where=WHERE) == "ARCH=x"
    with pytest.raises(ConfigError) as caught:
        decode_config(b"\xef\xbb\xbf# one\n# two\nNICKNAME=zo\xeb\n", where=WHERE)
    assert str(caught.value) == f"{WHERE}:3: byte 0xeb is not UTF-8 text; save the file as UTF-8"


def test_stat_file_has_the_order_of_the_original() -> None:
    written = encode_server_settings(
        ServerSettings(
            arch="x86_64",
            user="stap-server",
            releases=("6.1.0-56-amd64", "/build"),
            build=("-j2",),
            nickname="one",
            log=Path("/var/log/stap-server/log"),
            port=7300,
        )
    )
    assert written == (
        "ARCH=x86_64\nUSER=stap-server\nBUILD+=-j2\nNICKNAME=one\nRUNTIME=\nRELEASE+=6.1.0-56-amd64\n"
        "RELEASE+=/build\nLOG=/var/log/stap-server/log\nPORT=7300\nSSL=\nMAXTHREADS=\nMAXREQSIZE=\n"
        "MAXCOMPRESSEDREQ=\n"
    )


@pytest.mark.parametrize(
    ("unwritable", "message"),
    [
        (ServerSettings(nickname="a\nPORT=1"), "NICKNAME cannot be 'a\\nPORT=1': it holds a line break"),
        (ServerSettings(nickname="a\r"), "NICKNAME cannot be 'a\\r': it holds a carriage return"),
        (ServerSettings(runtime="/a\0"), "RUNTIME cannot be '/a\\x00': it holds a NUL"),
        (ServerSettings(log=Path("/\udcff")), "LOG cannot be '/\\udcff': it is not UTF-8 text"),
        (ServerSettings(user=""), "USER cannot be '': it would read as none"),
        (ServerSettings(define=("A", "")), "DEFINE cannot be '': it would read as none"),
        (ServerSettings(define=("()",)), "DEFINE cannot be '()': it would read as none"),
    ],
)
def test_value_that_no_line_can_hold_is_refused(unwritable: ServerSettings, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        encode_server_settings(unwritable)
    assert str(caught.value) == message


LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), min_size=1).filter(
    lambda text: not text.endswith((" ", "\t"))
)
ELEMENTS = st.lists(LINE.filter(lambda text: text != "()"), max_size=3).map(tuple)
PATHS = LINE.map(lambda text: Path("/") / text)
SETTINGS = st.builds(
    ServerSettings,
    arch=st.none() | LINE,
    releases=ELEMENTS,
    build=ELEMENTS,
    define=ELEMENTS,
    include=ELEMENTS,
    runtime=st.none() | LINE,
    user=st.none() | LINE,
    nickname=st.none() | LINE,
    log=st.none() | PATHS,
    port=st.integers(0, 65535),
    ssl=st.none() | PATHS,
    max_threads=st.none() | st.integers(0, 10**9),
    max_request_bytes=st.integers(1, 10**12),
    max_compressed_bytes=st.integers(1, 10**12),
    tuning=st.fixed_dictionaries(
        {},
        optional={
            "connections": st.integers(1, 10**9),
            "compile_s": st.integers(100, 86_400_000).map(lambda number: number / 1000),
            "answer_bytes": st.integers(1024, 10**12),
        },
    ),
)


@settings(derandomize=True, database=None)
@given(SETTINGS)
def test_what_is_written_reads_back_equal(original: ServerSettings) -> None:
    assert read(encode_server_settings(original)) == original


@settings(derandomize=True, database=None)
@given(st.text())
def test_writable_value_reads_back_equal(value: str) -> None:
    if unwritable_reason(value) is None:
        assert read(f"NICKNAME={value}\n").nickname == (value or None)


@settings(derandomize=True, database=None)
@given(st.text() | st.lists(st.sampled_from(["ARCH", "+=", "=", "#", " ", "\n", "\r", "()"])).map("".join))
def test_any_text_gives_settings_or_faults(text: str) -> None:
    with contextlib.suppress(ConfigFaults):
        read(text)


def test_variable_of_the_global_file_is_refused_in_a_server_s() -> None:
    with pytest.raises(ConfigFaults) as caught:
        read("MAX_COMPILES=3\n")
    assert str(caught.value) == (
        f"{WHERE}:1: MAX_COMPILES is not for one server alone; set it in the global file"
    )


def test_retired_variable_is_accepted_with_a_warning() -> None:
    text = "PORT=1\nSTANDBY=2\n"
    assert read(text) == ServerSettings(port=1)
    assert warnings_about(text, where="g") == ("g:2: STANDBY has no effect any more and can be removed",)
    assert warnings_about("PORT=1\n", where="g") == ()


def test_blanks_at_the_end_of_a_line_are_dropped_with_a_warning() -> None:
    text = "# comment \n\nNICKNAME=web \t\nRELEASE+=5.10 \nPORT=1\n"
    assert read(text) == ServerSettings(nickname="web", releases=("5.10",), port=1)
    assert warnings_about(text, where="g") == (
        "g:3: blanks at the end of NICKNAME are no part of its value",
        "g:4: blanks at the end of RELEASE are no part of its value",
    )


_OWN_FILE = "# mine\nMDNS=no\nSCRIPTS+=/a\n"


def scripts_in(text: str) -> tuple[str, ...]:
    lines = "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("MDNS"))
    return values_from(lines, where="f", rows=TUNABLES).get("scripts", ())


def test_value_is_added_at_the_end():
    assert with_value(_OWN_FILE, "SCRIPTS", "/b") == f"{_OWN_FILE}SCRIPTS+=/b\n"
    assert with_value("MDNS=no", "SCRIPTS", "/b") == "MDNS=no\nSCRIPTS+=/b\n"


def test_value_is_taken_out_wherever_it_is():
    assert without_value(_OWN_FILE, "SCRIPTS", "/a") == "# mine\nMDNS=no\n"
    assert without_value(_OWN_FILE, "SCRIPTS", "/b") == _OWN_FILE


def test_line_that_took_back_others_still_does():
    text = "SCRIPTS+=/z\nSCRIPTS=/a\nSCRIPTS+=/b\n"
    assert scripts_in(text) == ("/a", "/b")
    assert scripts_in(without_value(text, "SCRIPTS", "/a")) == ("/b",)
