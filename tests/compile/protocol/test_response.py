"""A response becomes the zip that clients and Info-ZIP read."""

from __future__ import annotations

import io
import random
import shutil
import stat
import subprocess
import zipfile

import attrs
import pytest

from stapsrv.compile.protocol.response import CompileResponse, ResponseFile, encode_response

RESPONSE = CompileResponse(
    "4.8",
    1,
    stdout=ResponseFile("stdout", b"out\xff\n" * 100),
    stderr=ResponseFile("stderr", b"no\n", before=b"Server: "),
    files=(
        ResponseFile("stap000000/m.ko", b"\x7fELF" + bytes(5_000)),
        ResponseFile("stap000000/m.ko.sgn", bytes(range(256))),
        ResponseFile("stap000000/uprobes/uprobes.ko", b"\x7fELF"),
        ResponseFile(
            "stap000000/signed.ko", bytes(5_000), before=bytes(range(200)), after=b"~signature~" * 20
        ),
        ResponseFile("stap000000/\xe9.c", b"int i;\n" * 100, after=b"/* */"),
        ResponseFile("signing_key.x509", b"0\x82"),
    ),
)


def encoded(response: CompileResponse, *, deflate: bool = True) -> bytes:
    return b"".join(encode_response(response, deflate=deflate).parts)


def test_response_has_entries_with_modes_and_methods():
    with zipfile.ZipFile(io.BytesIO(encoded(RESPONSE))) as archive:
        assert archive.testzip() is None
        entries = {info.filename: info for info in archive.infolist()}
        contents = {name: archive.read(name) for name in entries}
    assert contents == {
        "stap000000/": b"",
        "stap000000/uprobes/": b"",
        "version": b"4.8",
        "rc": b"1",
        "stdout": RESPONSE.stdout.whole,
        "stderr": RESPONSE.stderr.whole,
    } | {file.path: file.whole for file in RESPONSE.files}
    for name, info in entries.items():
        directory = name.endswith("/")
        assert info.create_system == 3
        assert info.external_attr >> 16 == (stat.S_IFDIR | 0o700 if directory else stat.S_IFREG | 0o644)
        small = len(contents[name]) < 128
        assert info.compress_type == (zipfile.ZIP_STORED if small else zipfile.ZIP_DEFLATED)
    assert next(iter(entries)) == "stap000000/"


def test_response_without_deflate_is_stored():
    with zipfile.ZipFile(io.BytesIO(encoded(RESPONSE, deflate=False))) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("stap000000/m.ko") == RESPONSE.files[0].data


def test_response_without_a_module_has_the_directory():
    with zipfile.ZipFile(io.BytesIO(encoded(CompileResponse("4.8", 0)))) as archive:
        assert archive.namelist() == ["stap000000/", "version", "rc", "stdout", "stderr"]
        assert archive.read("rc") == b"0"


def test_equal_responses_give_equal_bytes():
    assert encode_response(RESPONSE) == encode_response(RESPONSE)


@pytest.mark.parametrize(
    "path", ["", "/x", "../x", "a/../x", "a//b", "./a", "a/", ".", "..", "a/..", "a\0", "\udcff"]
)
def test_path_that_leads_elsewhere_is_an_error(path):
    with pytest.raises(ValueError, match=r"is no path for a response's file|surrogates not allowed"):
        ResponseFile(path, b"")


@pytest.mark.parametrize("paths", [["version"], ["a", "a"], ["rc/x"], ["a", "a/b"], ["stap000000"]])
def test_clashing_paths_are_an_error(paths):
    response = CompileResponse("4.8", 0, files=tuple(ResponseFile(path, b"") for path in paths))
    with pytest.raises(ValueError, match="in a response"):
        encode_response(response)


def test_repr_does_not_show_contents():
    assert repr(RESPONSE).startswith(
        "CompileResponse(version='4.8', rc=1, stdout=ResponseFile(path='stdout', data=<500 bytes>),"
        " stderr=ResponseFile(path='stderr', data=<3 bytes>),"
        " files=(ResponseFile(path='stap000000/m.ko', data=<5004 bytes>)"
    )


@pytest.mark.skipif(not shutil.which("unzip"), reason="needs Info-ZIP's unzip")
def test_info_zip_reads_the_response(tmp_path):
    (tmp_path / "response.zip").write_bytes(encoded(RESPONSE))
    subprocess.run(["unzip", "-qq", "-t", "response.zip"], cwd=tmp_path, check=True)
    # As the client does it.
    subprocess.run(["unzip", "-q", "response.zip", "-d", "out"], cwd=tmp_path, check=True)
    out = tmp_path / "out"
    assert (out / "version").read_bytes() == b"4.8"
    assert (out / "stdout").read_bytes() == RESPONSE.stdout.whole
    for file in RESPONSE.files:
        assert (out / file.path).read_bytes() == file.whole
        assert stat.S_IMODE((out / file.path).stat().st_mode) & ~0o22 == 0o644
    assert stat.S_IMODE((out / "stap000000").stat().st_mode) == 0o700


@pytest.mark.parametrize("deflate", [True, False])
def test_zips_of_one_result_share_its_bytes(deflate):
    """A signature and a line for each client, and no second copy of what is large."""
    module = ResponseFile("stap000000/m.ko", random.Random(0).randbytes(100_000))
    one, other = (
        encode_response(
            CompileResponse("4.8", 0, files=(attrs.evolve(module, before=b"x" * number, after=b"signed"),)),
            deflate=deflate,
        )
        for number in range(2)
    )
    shared = {id(part) for part in one.parts} & {id(part) for part in other.parts}
    assert [part for part in one.parts if len(part) > 1000 and id(part) not in shared] == []
    assert one.size == len(b"".join(one.parts))


@pytest.mark.parametrize("size", [1, 7, 4096, 1_000_000])
def test_blocks_are_the_zip(size):
    response = encode_response(RESPONSE)
    *blocks, last = response.blocks(size)
    assert {len(block) for block in blocks} <= {size}
    assert 0 < len(last) <= size
    assert b"".join([*blocks, last]) == b"".join(response.parts)
