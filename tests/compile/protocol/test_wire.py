"""Frames, requests and responses, byte by byte."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import stat
import struct
import subprocess
import sys
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stapsrv.compile.protocol.archive import RequestFile
from stapsrv.compile.protocol.frames import FrameReader
from stapsrv.compile.protocol.request import (
    MAX_ARGUMENT_BYTES,
    CompileRequest,
    parse_request,
    render_arguments,
)
from stapsrv.compile.protocol.response import AnswerFile, CompileResponse, encode_response
from stapsrv.errors import ProtocolError, RequestRejected

reproducible = settings(derandomize=True, database=None, deadline=None, max_examples=200)

LIMIT = 50_000
SYSTEM = ("sysinfo", b"sysinfo: 6.1.0-56-amd64 x86_64")


def framed(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


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


def test_the_pure_modules_import_nothing_that_waits_or_starts_programs():
    code = (
        "import sys, stapsrv.compile.protocol.request, stapsrv.compile.protocol.options\n"
        "print({'anyio', 'asyncio', 'trio', 'ssl', 'socket', 'subprocess'} & sys.modules.keys() or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "none\n"


class TestFrameReader:
    PAYLOAD = bytes(range(256)) * 3

    def test_whole(self):
        reader = FrameReader(1_000)
        assert reader.payload is None
        reader.feed(framed(self.PAYLOAD))
        assert reader.payload == self.PAYLOAD
        reader.feed_eof()
        assert reader.payload == self.PAYLOAD

    def test_one_byte_at_a_time(self):
        reader = FrameReader(1_000)
        for byte in framed(self.PAYLOAD):
            assert reader.payload is None
            reader.feed(bytes([byte]))
        assert reader.payload == self.PAYLOAD

    @reproducible
    @given(payload=st.binary(max_size=60), cuts=st.lists(st.integers(0, 64)))
    def test_any_chunks(self, payload, cuts):
        data = framed(payload)
        reader = FrameReader(60)
        places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for start, end in itertools.pairwise(places):
            assert reader.payload is None or start == len(data)
            reader.feed(data[start:end])
        assert reader.payload == payload
        reader.feed_eof()

    def test_cut_short_anywhere(self):
        data = framed(b"12345")
        for length in range(1, len(data)):
            reader = FrameReader(1_000)
            reader.feed(data[:length])
            assert reader.payload is None
            with pytest.raises(ProtocolError) as caught:
                reader.feed_eof()
            come, whole = (length, "4 bytes of its length") if length < 4 else (length - 4, "5 bytes that it")
            assert str(caught.value).startswith(f"The request ended after {come} of the {whole}")
            assert reader.payload is None

    def test_a_peer_that_only_connects_is_no_error(self):
        reader = FrameReader(1_000)
        reader.feed(b"")
        reader.feed_eof()
        assert reader.payload is None

    def test_a_visit_to_the_certificate_is_an_empty_payload(self):
        reader = FrameReader(1_000)
        reader.feed(bytes(3))
        assert reader.payload is None
        reader.feed(bytes(1))
        assert reader.payload == b""
        reader.feed_eof()
        assert reader.payload == b""

    @pytest.mark.parametrize("payload", [b"", b"x", b"x" * 1_000])
    @pytest.mark.parametrize("at_once", [True, False])
    def test_a_tail(self, payload, at_once):
        reader = FrameReader(1_000)
        data = framed(payload)
        if not at_once:
            reader.feed(data)
            data = b""
        with pytest.raises(ProtocolError) as caught:
            reader.feed(data + b"tail")
        assert str(caught.value) == (
            f"4 bytes or more follow the {len(payload)} bytes that the request announces"
        )

    def test_the_limit_itself_is_taken(self):
        reader = FrameReader(len(self.PAYLOAD))
        reader.feed(framed(self.PAYLOAD))
        assert reader.payload == self.PAYLOAD

    @pytest.mark.parametrize("announced", [1_001, 0xFFFF_FFFF])
    def test_over_the_limit(self, announced):
        reader = FrameReader(1_000)
        header = struct.pack(">I", announced)
        reader.feed(header[:3])
        for _ in range(2):
            with pytest.raises(ProtocolError) as caught:
                reader.feed(header[3:])
            assert str(caught.value) == (
                "Error size of (compressed) request file is too large: it announces"
                f" {announced} bytes, the limit is 1000; --max-compressed-request raises the limit"
            )
            header = header[:3]
        assert reader.payload is None


class TestParseRequest:
    def test_everything_a_client_sends(self):
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
        assert request.sysinfo == "6.1.0-56-amd64 x86_64"
        assert request.shown_arguments == "script/home/me/x.stp -I tapset/home/me/t --privilege=stapusr"
        hash(request)

    def test_the_least_that_a_client_can_send(self):
        request = parse(SYSTEM)
        assert request == CompileRequest(release="6.1.0-56-amd64", arch="x86_64")
        assert request.version == "1.0"
        assert request.arguments == ()

    def test_what_is_no_metadata_is_a_file_to_lay_out(self):
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
        ("sent", "version", "numbers"),
        [
            (b"4.8", "4.8", (4, 8)),
            (b"1.10\n", "1.10", (1, 10)),
            (b"", "1.0", (1, 0)),
            (b" \n", "1.0", (1, 0)),
            (b"5", "5", (5,)),
            (b"0.9.14.1", "0.9.14.1", (0, 9, 14, 1)),
        ],
    )
    def test_versions(self, sent, version, numbers):
        request = parse(SYSTEM, ("version", sent))
        assert request.version == version
        assert request.version_tuple == numbers

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
    def test_versions_that_are_none(self, sent, shown):
        assert rejection(SYSTEM, ("version", sent)) == f"The request's version '{shown}' is no version number"

    @pytest.mark.parametrize(
        ("version", "honoured"),
        [(None, False), (b"1.5", False), (b"1.6", True), (b"1.10", True), (b"4.8", True)],
    )
    def test_the_locale_counts_from_1_6_on(self, version, honoured):
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
    def test_systems(self, sent, release, arch):
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
    def test_systems_that_are_none(self, sent):
        text = rejection(("sysinfo", sent), ("argv1", b"-v"))
        assert text.startswith("The request's sysinfo '")
        assert text.endswith("' is not 'sysinfo: RELEASE ARCHITECTURE'")

    def test_no_system(self):
        assert rejection(("version", b"4.8")) == (
            "The request does not say which kernel it is for: it has no sysinfo"
        )

    def test_arguments_are_any_bytes_in_the_order_of_their_numbers(self):
        arguments = [bytes([number % 255 + 1, 0xFF, 0x0A, 0x27]) * (number % 3) for number in range(120)]
        numbered = [(f"argv{number}", data) for number, data in enumerate(arguments, start=1)]
        assert parse(SYSTEM, *reversed(numbered)).arguments == tuple(arguments)

    @pytest.mark.parametrize(
        ("numbers", "missing", "last"), [((2,), 1, 2), ((1, 2, 4), 3, 4), ((1, 3, 99), 2, 99), ((10,), 1, 10)]
    )
    def test_a_gap_in_the_arguments(self, numbers, missing, last):
        text = rejection(SYSTEM, *((f"argv{number}", b"-v") for number in numbers))
        assert text == f"The request has no argv{missing} and has argv{last}"

    def test_a_number_of_many_digits_is_a_gap(self):
        assert rejection(SYSTEM, ("argv" + "9" * 250, b"")).startswith(
            "The request has no argv1 and has argv999"
        )

    def test_a_nul_in_an_argument(self):
        text = rejection(SYSTEM, ("argv1", b"-v"), ("argv2", b"-e\0"))
        assert text == "The request's argv2 holds a NUL, which no program can be given"

    def test_the_length_of_an_argument(self):
        limit = 1_000_000
        longest = b"x" * MAX_ARGUMENT_BYTES
        payload = make_zip(SYSTEM, ("argv1", longest))
        assert parse_request(payload, max_request_bytes=limit).arguments == (longest,)
        assert rejection(SYSTEM, ("argv1", longest + b"x"), limit=limit) == (
            "The request's argv1 has 131072 bytes, a program can be given 131071 in one argument"
        )

    @pytest.mark.skipif(os.sysconf("SC_PAGE_SIZE") != 4096, reason="Linux takes more with larger pages")
    def test_the_longest_argument_that_linux_takes(self):
        argument = b"x" * MAX_ARGUMENT_BYTES
        subprocess.run([b"true", argument], check=True)
        with pytest.raises(OSError, match="Argument list too long"):
            subprocess.run([b"true", argument + b"x"], check=True)

    def test_a_broken_zip_is_no_rejection(self):
        with pytest.raises(ProtocolError):
            parse_request(b"", max_request_bytes=LIMIT)
        with pytest.raises(ProtocolError, match="not within the expected range"):
            parse_request(make_zip(SYSTEM), max_request_bytes=10)

    @reproducible
    @given(
        st.dictionaries(
            st.sampled_from(
                ["version", "sysinfo", "locale", "mok_fingerprints", "argv1", "argv2", "argv3", "x"]
            ),
            st.binary(max_size=40),
        )
    )
    def test_any_contents_of_the_entries(self, entries):
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
def test_render_arguments(arguments, shown):
    assert render_arguments(arguments) == shown


def test_rendered_arguments_have_an_end():
    assert render_arguments([b"x" * 9_000]) == "x" * 4_000 + "…"
    assert render_arguments([b"abc", b"def"], limit=5) == "abc d…"


RESPONSE = CompileResponse(
    "4.8",
    1,
    stdout=b"out\xff\n" * 100,
    stderr=b"Server: no\n",
    files=(
        AnswerFile("stap000000/m.ko", b"\x7fELF" + bytes(5_000)),
        AnswerFile("stap000000/m.ko.sgn", bytes(range(256))),
        AnswerFile("stap000000/uprobes/uprobes.ko", b"\x7fELF"),
        AnswerFile("signing_key.x509", b"0\x82"),
    ),
)


class TestEncodeResponse:
    def test_entries_modes_and_methods(self):
        with zipfile.ZipFile(io.BytesIO(encode_response(RESPONSE))) as archive:
            assert archive.testzip() is None
            entries = {info.filename: info for info in archive.infolist()}
            contents = {name: archive.read(name) for name in entries}
        assert contents == {
            "stap000000/": b"",
            "stap000000/uprobes/": b"",
            "version": b"4.8",
            "rc": b"1",
            "stdout": RESPONSE.stdout,
            "stderr": RESPONSE.stderr,
        } | {file.path: file.data for file in RESPONSE.files}
        for name, info in entries.items():
            directory = name.endswith("/")
            assert info.create_system == 3
            assert info.external_attr >> 16 == (stat.S_IFDIR | 0o700 if directory else stat.S_IFREG | 0o644)
            small = len(contents[name]) < 128
            assert info.compress_type == (zipfile.ZIP_STORED if small else zipfile.ZIP_DEFLATED)
        assert next(iter(entries)) == "stap000000/"

    def test_files_are_stored_where_smaller_is_no_gain(self):
        with zipfile.ZipFile(io.BytesIO(encode_response(RESPONSE, deflate=False))) as archive:
            assert archive.testzip() is None
            assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
            assert archive.read("stap000000/m.ko") == RESPONSE.files[0].data

    def test_the_directory_is_there_without_a_module(self):
        with zipfile.ZipFile(io.BytesIO(encode_response(CompileResponse("4.8", 0)))) as archive:
            assert archive.namelist() == ["stap000000/", "version", "rc", "stdout", "stderr"]
            assert archive.read("rc") == b"0"

    def test_equal_responses_give_equal_bytes(self):
        assert encode_response(RESPONSE) == encode_response(RESPONSE)

    @pytest.mark.parametrize(
        "path", ["", "/x", "../x", "a/../x", "a//b", "./a", "a/", ".", "..", "a/..", "a\0", "\udcff"]
    )
    def test_a_path_that_leads_elsewhere_is_a_fault_of_ours(self, path):
        with pytest.raises(ValueError, match=r"is no path for an answer's file|surrogates not allowed"):
            AnswerFile(path, b"")

    @pytest.mark.parametrize("paths", [["version"], ["a", "a"], ["rc/x"], ["a", "a/b"], ["stap000000"]])
    def test_paths_that_clash_are_a_fault_of_ours(self, paths):
        response = CompileResponse("4.8", 0, files=tuple(AnswerFile(path, b"") for path in paths))
        with pytest.raises(ValueError, match="in an answer"):
            encode_response(response)

    def test_contents_are_not_in_the_representation(self):
        assert repr(RESPONSE).startswith(
            "CompileResponse(version='4.8', rc=1, stdout=<500 bytes>, stderr=<11 bytes>,"
            " files=(AnswerFile(path='stap000000/m.ko', data=<5004 bytes>)"
        )

    @pytest.mark.skipif(not shutil.which("unzip"), reason="needs Info-ZIP's unzip")
    def test_info_zip_reads_it(self, tmp_path):
        (tmp_path / "answer.zip").write_bytes(encode_response(RESPONSE))
        subprocess.run(["unzip", "-qq", "-t", "answer.zip"], cwd=tmp_path, check=True)
        # As the client does it.
        subprocess.run(["unzip", "-q", "answer.zip", "-d", "out"], cwd=tmp_path, check=True)
        out = tmp_path / "out"
        assert (out / "version").read_bytes() == b"4.8"
        assert (out / "stdout").read_bytes() == RESPONSE.stdout
        for file in RESPONSE.files:
            assert (out / file.path).read_bytes() == file.data
            assert stat.S_IMODE((out / file.path).stat().st_mode) & ~0o22 == 0o644
        assert stat.S_IMODE((out / "stap000000").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("announced", "sent", "missing"), [(10, 0, 10), (10, 4, 6), (10, 10, 0), (900, 0, 900), (900, 300, 600)]
)
def test_missing_bytes_are_known_beyond_the_limit_too(announced, sent, missing):
    frame = FrameReader(100)
    with contextlib.suppress(ProtocolError):
        frame.feed(struct.pack(">I", announced) + bytes(sent))
    assert frame.missing_bytes == missing
