"""A request's zip becomes a request, or is refused with a reason that the client can be sent."""

from __future__ import annotations

import io
import os
import subprocess
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stapsrv.compile.protocol.archive import RequestFile
from stapsrv.compile.protocol.request import (
    LOCALE_KEYS,
    MAX_ARGUMENT_BYTES,
    MAX_LINES,
    CompileRequest,
    parse_keys,
    parse_locale,
    parse_request,
    render_arguments,
)
from stapsrv.errors import ProtocolError, RequestRejected

reproducible = settings(derandomize=True, database=None, deadline=None, max_examples=200)

LIMIT = 50_000
SYSTEM = ("sysinfo", b"sysinfo: 6.1.0-56-amd64 x86_64")


def make_zip(*entries: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def parse(*entries: tuple[str, bytes]) -> CompileRequest:
    return parse_request(make_zip(*entries), max_request_bytes=LIMIT)


def rejection(*entries: tuple[str, bytes], limit: int = LIMIT) -> str:
    with pytest.raises(RequestRejected) as caught:
        parse_request(make_zip(*entries), max_request_bytes=limit)
    text = str(caught.value)
    assert text.isprintable()
    return text


def test_request_with_all_that_a_client_sends():
    request = parse(
        ("argv1", b"script/home/me/x.stp"),
        ("argv2", b"-I"),
        ("argv3", b"tapset/home/me/t"),
        ("argv4", b"--privilege=stapusr"),
        ("locale", b"LANG=de_DE.UTF-8\nFOO=1\n"),
        ("mok_fingerprints", b"ab:cd\nmissing\nbad\n"),
        ("script/home/me/x.stp", b"probe begin {}\n"),
        SYSTEM,
        ("tapset/home/me/t/", b""),
        ("version", b"4.8"),
    )
    assert request == CompileRequest(
        version="4.8",
        release="6.1.0-56-amd64",
        arch="x86_64",
        arguments=(b"script/home/me/x.stp", b"-I", b"tapset/home/me/t", b"--privilege=stapusr"),
        environment=(("LANG", "de_DE.UTF-8"),),
        messages=(
            "Server: Localization key 'FOO' not found in global list",
            "Server: MOK fingerprint value 'bad' isn't in the correct format",
        ),
        fingerprints=("ab:cd",),
        mok_missing=True,
        files=(RequestFile(b"script/home/me/x.stp", b"probe begin {}\n"),),
        directories=(
            b"script",
            b"script/home",
            b"script/home/me",
            b"tapset",
            b"tapset/home",
            b"tapset/home/me",
            b"tapset/home/me/t",
        ),
    )
    hash(request)


def test_request_with_sysinfo_alone_has_defaults():
    request = parse(SYSTEM)
    assert request == CompileRequest(release="6.1.0-56-amd64", arch="x86_64")
    assert request.version == "1.0"
    assert request.arguments == ()


def test_entries_that_are_no_metadata_are_files():
    names = [
        "argv",
        "argv0",
        "argv01",
        "argv1x",
        "argv-1",
        "Version",
        "script/-",
        "d/sysinfo",
        "rc",
        "argv²",
    ]
    request = parse(SYSTEM, ("argv1", b"-v"), *((name, b"x") for name in names), ("locale/", b""))
    assert [file.path for file in request.files] == [name.encode() for name in names]
    assert request.arguments == (b"-v",)
    assert request.directories == (b"d", b"locale", b"script")


@pytest.mark.parametrize(
    ("sent", "version"),
    [
        (b"4.8", "4.8"),
        (b"1.10\n", "1.10"),
        (b"", "1.0"),
        (b" \n", "1.0"),
        (b"5", "5"),
        (b"0.9.14.1", "0.9.14.1"),
    ],
)
def test_version_is_read(sent, version):
    assert parse(SYSTEM, ("version", sent)).version == version


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"abc", "abc"),
        (b"4.8\nMon Jan  1", "4.8\\nMon Jan  1"),
        (b"4.", "4."),
        (b".", "."),
        (b"-4.8", "-4.8"),
        ("٤.٨".encode(), "٤.٨"),
        (b"1" * 10, "1" * 10),
        (b"1.1.1.1.1.1.1.1.1", "1.1.1.1.1.1.1.1.1"),
    ],
)
def test_version_that_is_no_number_is_rejected(sent, shown):
    assert rejection(SYSTEM, ("version", sent)) == f"The request's version '{shown}' is no version number"


@pytest.mark.parametrize(
    ("version", "honoured"),
    [(None, False), (b"1.5", False), (b"1.6", True), (b"1.10", True), (b"4.8", True)],
)
def test_locale_counts_from_version_1_6_on(version, honoured):
    entries = [] if version is None else [("version", version)]
    request = parse(SYSTEM, ("locale", b"LANG=C\nbad\n"), *entries)
    assert request.environment == ((("LANG", "C"),) if honoured else ())
    assert len(request.messages) == honoured
    assert request.files == ()


@pytest.mark.parametrize(
    ("sent", "release", "arch"),
    [
        (b"sysinfo: 6.1.0-56-amd64 x86_64", "6.1.0-56-amd64", "x86_64"),
        (b"sysinfo: 6.1.0-56-amd64 x86_64\n", "6.1.0-56-amd64", "x86_64"),
        (b"sysinfo:  5.14.0-427.el9.aarch64+64k   arm64", "5.14.0-427.el9.aarch64+64k", "arm64"),
        (b"sysinfo: 7 s390", "7", "s390"),
    ],
)
def test_sysinfo_is_read(sent, release, arch):
    request = parse(("sysinfo", sent))
    assert (request.release, request.arch) == (release, arch)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\n",
        b"6.1.0 x86_64",
        b"sysinfo:6.1.0 x86_64",
        b"sysinfo: 6.1.0",
        b"sysinfo: 6.1.0 x86_64 more",
        b"sysinfo: 6.1.0\nx86_64",
        b"sysinfo: /usr/src/linux x86_64",
        b"sysinfo: ../../x x86_64",
        b"sysinfo: -R/tmp x86_64",
        b"sysinfo: 6.1.0 x86/../..",
        b"sysinfo: 6.1\xff x86_64",
        "sysinfo: 6.1.0 ärch".encode(),
        b"sysinfo: " + b"6" * 65 + b" x86_64",
        b"sysinfo: 6.1.0 x86_64\0",
    ],
)
def test_malformed_sysinfo_is_rejected(sent):
    text = rejection(("sysinfo", sent), ("argv1", b"-v"))
    assert text.startswith("The request's sysinfo '")
    assert text.endswith("' is not 'sysinfo: RELEASE ARCHITECTURE'")


def test_missing_sysinfo_is_rejected():
    assert rejection(("version", b"4.8")) == (
        "The request does not say which kernel it is for: it has no sysinfo"
    )


def test_arguments_are_any_bytes_in_order_of_their_numbers():
    arguments = [bytes([number % 255 + 1, 0xFF, 0x0A, 0x27]) * (number % 3) for number in range(120)]
    numbered = [(f"argv{number}", data) for number, data in enumerate(arguments, start=1)]
    assert parse(SYSTEM, *reversed(numbered)).arguments == tuple(arguments)


@pytest.mark.parametrize(
    ("numbers", "missing", "last"), [((2,), 1, 2), ((1, 2, 4), 3, 4), ((1, 3, 99), 2, 99), ((10,), 1, 10)]
)
def test_gap_in_the_arguments_is_rejected(numbers, missing, last):
    text = rejection(SYSTEM, *((f"argv{number}", b"-v") for number in numbers))
    assert text == f"The request has no argv{missing} and has argv{last}"


def test_argument_number_of_many_digits_is_a_gap():
    assert rejection(SYSTEM, ("argv" + "9" * 250, b"")).startswith("The request has no argv1 and has argv999")


def test_nul_in_an_argument_is_rejected():
    text = rejection(SYSTEM, ("argv1", b"-v"), ("argv2", b"-e\0"))
    assert text == "The request's argv2 holds a NUL, which no program can be given"


def test_argument_longer_than_linux_takes_is_rejected():
    limit = 1_000_000
    longest = b"x" * MAX_ARGUMENT_BYTES
    payload = make_zip(SYSTEM, ("argv1", longest))
    assert parse_request(payload, max_request_bytes=limit).arguments == (longest,)
    assert rejection(SYSTEM, ("argv1", longest + b"x"), limit=limit) == (
        "The request's argv1 has 131072 bytes, a program can be given 131071 in one argument"
    )


@pytest.mark.skipif(os.sysconf("SC_PAGE_SIZE") != 4096, reason="Linux takes more with larger pages")
def test_linux_takes_the_longest_argument_and_no_more():
    argument = b"x" * MAX_ARGUMENT_BYTES
    subprocess.run([b"true", argument], check=True)
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run([b"true", argument + b"x"], check=True)


def test_broken_zip_is_a_protocol_error():
    with pytest.raises(ProtocolError):
        parse_request(b"", max_request_bytes=LIMIT)
    with pytest.raises(ProtocolError, match="not within the expected range"):
        parse_request(make_zip(SYSTEM), max_request_bytes=10)


@reproducible
@given(
    st.dictionaries(
        st.sampled_from(["version", "sysinfo", "locale", "mok_fingerprints", "argv1", "argv2", "argv3", "x"]),
        st.binary(max_size=40),
    )
)
def test_any_contents_are_parsed_or_refused_printably(entries):
    try:
        request = parse(*entries.items())
    except (ProtocolError, RequestRejected) as refused:
        problem = str(refused)
    else:
        problem = request.version
    assert problem.isprintable()


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ((), ""),
        ((b"-p4", b"", b"x.stp"), "-p4  x.stp"),
        ((b'-e probe begin { printf("a\\n") }',), '-e probe begin { printf("a\\n") }'),
        ((b"a\nMon Jan 01 00:00:00 2024: forged",), "a\\nMon Jan 01 00:00:00 2024: forged"),
        ((b"\x1b[2J", b"\xff", "ü".encode()), "\\x1b[2J \\xff ü"),
    ],
)
def test_rendered_arguments_are_one_line(arguments, shown):
    assert render_arguments(arguments) == shown


def test_rendered_arguments_end_at_the_limit():
    assert render_arguments([b"x" * 9_000]) == "x" * 4_000 + "…"
    assert render_arguments([b"abc", b"def"], limit=5) == "abc d…"


@pytest.mark.parametrize("data", [b"", b"\n"[:0]])
def test_empty_entries_state_nothing(data):
    assert parse_locale(data) == ({}, [])
    assert parse_keys(data) == ((), False, [])


def test_every_locale_key_is_accepted():
    lines = b"".join(f"{key}=C.UTF-8\n".encode() for key in sorted(LOCALE_KEYS))
    assert parse_locale(lines) == (dict.fromkeys(LOCALE_KEYS, "C.UTF-8"), [])


def test_bad_locale_lines_earn_messages_and_the_others_count():
    # The first ten lines were put to the original server, which said the same.
    environment, messages = parse_locale(
        b"LANG=C\nFOO=bar\nnoequals\nLC_ALL=a b\n\n=x\nLC_TIME=a=b\nLANG=en\nLC_CTYPE=\n lang=x\nLC_ALL =C\n"
    )
    assert list(environment.items()) == [("LANG", "en"), ("LC_TIME", "a=b"), ("LC_CTYPE", "")]
    assert messages == [
        "Server: Localization key 'FOO' not found in global list",
        "Server: Localization key=value line 'noequals' cannot be parsed",
        "Server: Localization value 'a b' contains illegal characters",
        "Server: Localization key=value line '' cannot be parsed",
        "Server: Localization key '' not found in global list",
        "Server: Localization key ' lang' not found in global list",
        "Server: Localization key 'LC_ALL ' not found in global list",
    ]


def test_last_line_needs_no_newline():
    assert parse_locale(b"LANG=C\nLC_ALL=C") == ({"LANG": "C", "LC_ALL": "C"}, [])
    assert parse_keys(b"aa:bb") == (("aa:bb",), False, [])


@pytest.mark.parametrize("value", [b"C\r", b"../x", b"a/b", b"\xe9", "ü".encode(), b"a\0", b"%s", b"C "])
def test_locale_value_with_other_characters_is_refused(value):
    environment, messages = parse_locale(b"LANG=" + value + b"\n")
    assert environment == {}
    assert len(messages) == 1
    assert messages[0].isprintable()


def test_locale_key_is_compared_as_it_is_sent():
    assert parse_locale(b"LA\\x4eG=C\nL\0ANG=C\n")[0] == {}


def test_bad_fingerprints_earn_messages_and_the_others_count():
    # All but the last two were put to the original server, which said the same.
    longest, too_long = ":".join(["ab"] * 64), ":".join(["ab"] * 65)
    fingerprints, missing, messages = parse_keys(
        b"aa:bb\nAA:bb\n\nmissing\naa\nfoo\n missing\nmissing x\naa:bb\n"
        + f"{longest}\n{too_long}\n".encode()
    )
    assert fingerprints == ("aa:bb", longest)
    assert missing
    prefix, suffix = "Server: MOK fingerprint value '", "' isn't in the correct format"
    refused = ["AA:bb", "", "aa", "foo", " missing", "missing x", too_long]
    assert messages == [f"{prefix}{value}{suffix}" for value in refused]


def test_fingerprints_alone_do_not_say_missing():
    assert parse_keys(b"00:ff:10\n") == (("00:ff:10",), False, [])
    assert parse_keys(b"zz\n")[1] is False


@pytest.mark.parametrize(("read", "entry"), [(parse_locale, "locale"), (parse_keys, "mok_fingerprints")])
@pytest.mark.parametrize("end", [b"", b"\n", b"x"])
def test_more_lines_than_the_limit_are_rejected(read, entry, end):
    assert len(read(b"\n" * MAX_LINES)[-1]) == MAX_LINES
    with pytest.raises(RequestRejected) as caught:
        read(b"\n" * (MAX_LINES + (end != b"x")) + end)
    assert str(caught.value) == f"The request's {entry} has more than 1000 lines"


def test_messages_cannot_forge_lines():
    _, messages = parse_locale(b"A\x07\r\xe9=x\n")
    assert messages == [r"Server: Localization key 'A\x07\r\xe9' not found in global list"]
