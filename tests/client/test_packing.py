"""The request's zip. That the real client's is the same is tested in tests/real."""

from __future__ import annotations

import os

import pytest

from stapsrv.client import packing
from stapsrv.client.errors import ClientError
from stapsrv.client.options import parse_stap_options
from stapsrv.client.packing import Request, pack_request
from stapsrv.compile.protocol.archive import read_archive


def pack(tmp_path, *words, **more):
    command = parse_stap_options([os.fsencode(word) for word in words])
    request = Request(command=command, release="6.1", arch="x86_64", **more)
    return pack_request(request, cwd=os.fsencode(tmp_path))


def files(zipped):
    return {file.path: file.data for file in read_archive(zipped, max_bytes=1 << 20).files}


def test_request_has_what_a_server_reads(tmp_path):
    (tmp_path / "x.stp").write_text("probe")
    environ = {"LC_ALL": "C", "LANG": "de_DE", "LANGUAGE": "de"}
    zipped = pack(tmp_path, "-v", "x.stp", "a b", "", locale=environ, moks=("aa:bb",))
    script = f"script{tmp_path}/x.stp".encode()
    assert files(zipped) == {
        b"argv1": script,
        b"argv2": b"-v",
        b"argv3": b"--",
        b"argv4": b"a b",
        b"argv5": b"",
        b"locale": b"LANG=de_DE\nLC_ALL=C\n",
        b"mok_fingerprints": b"aa:bb\n",
        script: b"probe",
        b"sysinfo": b"sysinfo: 6.1 x86_64",
        b"version": b"4.8",
    }


def test_equal_requests_are_equal_bytes(tmp_path):
    (tmp_path / "x.stp").write_text("probe")
    first = pack(tmp_path, "x.stp")
    os.utime(tmp_path / "x.stp", (1, 1))
    assert pack(tmp_path, "x.stp") == first


def test_names_that_are_no_text_are_sent_as_they_are(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.stp"
    with open(name, "wb") as file:
        file.write(b"probe")
    assert files(pack(tmp_path, os.fsdecode(b"\xff.stp")))[b"script" + name] == b"probe"


def test_standard_input_is_the_script(tmp_path):
    packed = files(pack(tmp_path, "-", stdin=b"probe"))
    assert (packed[b"argv1"], packed[b"script/-"]) == (b"script/-", b"probe")


@pytest.mark.parametrize(
    "includes", [("-I", "t", "-I", "t/sub"), ("-I", "t/sub", "-I", "t"), ("-I", "t", "-I", "./t")]
)
def test_directory_in_another_is_refused_as_by_the_real_client(tmp_path, includes):
    (tmp_path / "t/sub").mkdir(parents=True)
    with pytest.raises(ClientError, match="is in the request already; give each directory once"):
        pack(tmp_path, *includes, "-e", "x")


def test_link_that_leads_back_is_refused(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/back").symlink_to(".")
    with pytest.raises(ClientError, match="back leads back to a directory above it"):
        pack(tmp_path, "-I", "t", "-e", "x")


def test_root_is_not_sent(tmp_path):
    with pytest.raises(ClientError, match="Unable to send / to the server"):
        pack(tmp_path, "-I", "/", "-e", "x")


def test_bounds_hold(tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/large").write_bytes(bytes(2000))
    monkeypatch.setattr(packing, "MAX_REQUEST_BYTES", 1000)
    with pytest.raises(ClientError, match="the request has more than"):
        pack(tmp_path, "-I", "t", "-e", "x")
    monkeypatch.setattr(packing, "MAX_REQUEST_BYTES", 10_000)
    monkeypatch.setattr(packing, "MAX_ENTRIES", 3)
    with pytest.raises(ClientError, match="more than 3 files"):
        pack(tmp_path, "-I", "t", "-e", "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "x.stp").touch(mode=0)
    with pytest.raises(ClientError, match=r"x\.stp: cannot be read \(Permission denied\)"):
        pack(tmp_path, "x.stp")
