"""The rules of a request's zip: real zips pass, and every other thing is refused by a ProtocolError."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import struct
import subprocess
import time
import tracemalloc
import zipfile
import zlib

import pytest

from stapsrv.compile.protocol import archive
from stapsrv.compile.protocol.archive import Archive, RequestFile, read_archive
from stapsrv.errors import ProtocolError
from stapsrv.text import printable_bytes

LIMIT = 50_000
MUTATIONS = int(os.environ.get("STAPSRV_TEST_MUTATIONS", "15000"))
"""How many damaged zips the fuzz test makes; raise it for a long run."""

END_BYTES = 22
needs_info_zip = pytest.mark.skipif(
    not (shutil.which("zip") and shutil.which("unzip")), reason="needs Info-ZIP's zip and unzip"
)


def header(name: str, mode: int = stat.S_IFREG | 0o644, *, system: int = 3, dos: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (2026, 1, 2, 3, 4, 6))
    info.orig_filename = info.filename = name
    info.external_attr = mode << 16 | dos
    info.create_system = system
    return info


def make_zip(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries:
            info = name if isinstance(name, zipfile.ZipInfo) else header(name, 0)
            archive.writestr(info, data, method)
    return buffer.getvalue()


def patched(payload: bytes, field: str, value: int, *, entry: int = 0) -> bytes:
    """Overwrite a field of the given entry in the zip's directory, or of the record at the end."""
    fields = {
        "version": (6, "<H"),
        "flags": (8, "<H"),
        "method": (10, "<H"),
        "crc": (16, "<L"),
        "packed": (20, "<L"),
        "size": (24, "<L"),
        "disk": (34, "<H"),
        "offset": (42, "<L"),
    }
    end_fields = {
        "end disk": (4, "<H"),
        "end directory disk": (6, "<H"),
        "end entries here": (8, "<H"),
        "end entries": (10, "<H"),
        "end size": (12, "<L"),
        "end offset": (16, "<L"),
        "end comment": (20, "<H"),
    }
    out = bytearray(payload)
    if field in end_fields:
        at, form = end_fields[field]
        struct.pack_into(form, out, len(out) - END_BYTES + at, value)
        return bytes(out)
    place = -1
    for _ in range(entry + 1):
        place = payload.index(b"PK\x01\x02", place + 1)
    at, form = fields[field]
    struct.pack_into(form, out, place + at, value)
    return bytes(out)


def refusal(payload: bytes, *, max_bytes: int = LIMIT) -> str:
    with pytest.raises(ProtocolError) as caught:
        read_archive(payload, max_bytes=max_bytes)
    text = str(caught.value)
    assert text.isprintable()
    assert caught.value.where is None
    return text


def test_files_come_in_order_and_directories_with_their_parents_first():
    archive = read_archive(
        make_zip(("b/c/d", b"1"), ("a", b""), ("tapset/x/", b""), ("e\\f", b"22" * 400)), max_bytes=LIMIT
    )
    assert archive.files == (
        RequestFile(b"b/c/d", b"1"),
        RequestFile(b"a", b""),
        RequestFile(b"e\\f", b"22" * 400),
    )
    assert archive.directories == (b"b", b"b/c", b"tapset", b"tapset/x")


def test_stored_entries_and_ordinary_modes_are_accepted():
    entries = (
        (header("plain"), b"x"),
        (header("executable", stat.S_IFREG | 0o4755), b"x"),
        (header("without", 0, system=0), b"x"),
        (header("dir/", stat.S_IFDIR | 0o755, dos=0x10), b""),
        (header("bare/", 0, system=0), b""),
        (header("dos/", 0, system=0, dos=0x10), b""),
    )
    archive = read_archive(make_zip(*entries, method=zipfile.ZIP_STORED), max_bytes=LIMIT)
    assert [file.path for file in archive.files] == [b"plain", b"executable", b"without"]
    assert archive.directories == (b"bare", b"dir", b"dos")


def test_repr_does_not_show_contents():
    assert repr(RequestFile(b"a", b"secret")) == "RequestFile(path=b'a', data=<6 bytes>)"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("/etc/passwd", "has an absolute or empty path"),
        ("/", "has an absolute or empty path"),
        ("", "has an absolute or empty path"),
        ("..", "has .. in its path"),
        ("a/../b", "has .. in its path"),
        ("../", "has .. in its path"),
        ("a/./b", "has an empty component or . in its path"),
        (".", "has an empty component or . in its path"),
        ("a//b", "has an empty component or . in its path"),
        ("a//", "has an empty component or . in its path"),
        ("a\0b", "has a NUL in its path"),
        ("x" * 256, "has a component of 256 bytes in its path, the limit is 255"),
        ("ü" * 128, "has a component of 256 bytes in its path, the limit is 255"),
        (("y" * 100 + "/") * 39, "has a path of 3938 bytes, the limit is 3840"),
        ("z/" * 101, "has a path of 101 components, the limit is 100"),
    ],
)
def test_unsafe_path_is_refused(name, problem):
    text = refusal(make_zip((header(name, 0), b""), ("other", b"1")))
    assert text == f"The request's zip entry '{printable_bytes(name.encode())}' {problem}"


def test_longest_path_and_component_are_accepted():
    path = "/".join(["z" * 255] * 15)
    assert len(path) == archive.MAX_PATH_BYTES - 1
    read = read_archive(make_zip((path, b"1")), max_bytes=LIMIT)
    assert read.files[0].path == path.encode()
    assert len(read.directories) == 14
    read_archive(make_zip(("z/" * 99 + "z", b"1")), max_bytes=LIMIT)


@pytest.mark.parametrize("system", [0, 3, 11, 19])
@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (stat.S_IFLNK, "is a symbolic link"),
        (stat.S_IFIFO, "is neither a file nor a directory"),
        (stat.S_IFSOCK, "is neither a file nor a directory"),
        (stat.S_IFCHR, "is neither a file nor a directory"),
        (stat.S_IFBLK, "is neither a file nor a directory"),
        (0o170000, "is neither a file nor a directory"),
    ],
)
@pytest.mark.parametrize("name", ["x", "x/"])
def test_entry_that_is_neither_file_nor_directory_is_refused(kind, problem, system, name):
    entry = header(name, kind | 0o777, system=system)
    text = refusal(make_zip((entry, b"" if name == "x/" else b"/etc/shadow"), ("other", b"1")))
    assert text == f"The request's zip entry '{name}' {problem}"


@pytest.mark.parametrize(
    "entry",
    [
        header("x", stat.S_IFDIR | 0o755),
        header("x/", stat.S_IFREG | 0o644),
        header("x", 0, system=0, dos=0x10),
    ],
)
def test_name_and_mode_that_disagree_are_refused(entry):
    assert "is a file by its name and a directory by its mode" in refusal(
        make_zip((entry, b""), ("other", b"1"))
    )


def test_a_directory_that_holds_data_is_refused():
    assert refusal(make_zip((header("d/", 0), b"x"))).endswith("'d/' is a directory that holds data")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("a", "a"), "'a' occurs twice"),
        (("a/", "a/"), "'a/' occurs twice"),
        (("a", "a/"), "'a/' occurs twice"),
        (("a/", "a"), "'a' occurs twice"),
        (("a", "a/b"), "'a/b' lies below a file"),
        (("a/b/c", "a"), "'a/b/c' lies below a file"),
        (("x/a/b", "x/y/z/", "x/a"), "'x/a/b' lies below a file"),
    ],
)
def test_clashing_paths_are_refused(names, problem):
    data = {name: b"" if name.endswith("/") else b"1" for name in names}
    assert refusal(make_zip(*((name, data[name]) for name in names), ("1", b"1"))).endswith(problem)


def test_one_name_in_two_encodings_is_one_name():
    # cp437's decoding of these bytes, written without the flag that marks UTF-8.
    payload = make_zip(("ü", b"1"), ("xx", b"2")).replace(b"xx", "ü".encode())
    assert refusal(payload) == "The request's zip entry 'ü' occurs twice"


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("flags", 0x1, "is encrypted"),
        ("flags", 0x41, "is encrypted"),
        ("flags", 0x2000, "is encrypted"),
        ("flags", 0x20, "is neither stored nor deflated"),
        ("method", 9, "is neither stored nor deflated"),
        ("method", zipfile.ZIP_BZIP2, "is neither stored nor deflated"),
        ("method", zipfile.ZIP_LZMA, "is neither stored nor deflated"),
        ("method", 93, "is neither stored nor deflated"),
        ("method", zipfile.ZIP_STORED, "holds "),
        ("disk", 1, "is on another disk or in the zip64 format"),
        ("crc", 12345, "does not match its CRC"),
        ("size", 999, "holds more than the 999 bytes that it announces"),
        ("size", 1001, "holds 1000 bytes and announces 1001"),
        ("packed", 40_000, "is longer than the zip"),
        ("packed", 5, "is cut short, or is followed by other bytes"),
        ("offset", 3, "holds other bytes before its first entry"),
    ],
)
def test_false_header_is_refused(field, value, problem):
    payload = make_zip(("name", random.Random(1).randbytes(10) * 100))
    text = refusal(patched(payload, field, value))
    assert problem in text
    assert text.startswith("The request's zip")
    if field != "offset":
        assert "'name'" in text


def test_more_than_one_stream_in_an_entry_is_refused():
    data = b"a" * 500
    plain = make_zip(("n", data), method=zipfile.ZIP_STORED)
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(data) + packer.flush()
    surplus = b"surplus"
    stuffed = plain.replace(data, packed + surplus)
    moved = len(stuffed) - len(plain)
    stuffed = patched(patched(stuffed, "method", 8), "packed", len(packed) + len(surplus))
    (offset,) = struct.unpack_from("<L", stuffed, len(stuffed) - 6)
    text = refusal(patched(stuffed, "end offset", offset + moved))
    assert text == "The request's zip entry 'n' is cut short, or is followed by other bytes"


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("end disk", 1, "is one part of several"),
        ("end directory disk", 1, "is one part of several"),
        ("end entries here", 1, "is one part of several"),
        ("end size", 3, "holds other bytes before its first entry or after its last"),
        ("end offset", 3, "holds other bytes before its first entry or after its last"),
        ("end comment", 3, "is cut short"),
        ("end entries", 65_535, "is one part of several"),
    ],
)
def test_false_end_record_is_refused(field, value, problem):
    assert (
        refusal(patched(make_zip(("a", b"1"), ("b", b"2")), field, value)) == f"The request's zip {problem}"
    )


@pytest.mark.parametrize("count", [1, 3, 9_999])
def test_a_false_number_of_entries_is_refused(count):
    payload = make_zip(("a", b"1"), ("b", b"2"))
    payload = patched(patched(payload, "end entries", count), "end entries here", count)
    assert refusal(payload) == f"The request's zip has 2 entries and announces {count}"


def test_zip64_is_refused_in_the_end_record_and_in_an_entry():
    payload = make_zip(("a", b"1"))
    locator = b"PK\x06\x07" + bytes(16)
    with_locator = payload[:-END_BYTES] + locator + payload[-END_BYTES:]
    assert refusal(with_locator) == (
        "The request's zip is in the zip64 format, which no request is large enough for"
    )
    info = header("a")
    info.extra = struct.pack("<HHHHQ", 0x5455, 0, 1, 8, 1)
    assert "is on another disk or in the zip64 format" in refusal(make_zip((info, b"1")))


def test_long_extra_fields_are_refused_before_zipfile_copies_them():
    """For each field it copies all that follow it."""
    entries = [header(f"{number}") for number in range(200)]
    for info in entries:
        info.extra = struct.pack("<HH", 0x5455, 0) * 16_000
    payload = make_zip(*((info, b"1") for info in entries))
    began = time.thread_time()
    assert refusal(payload) == "The request's zip has an entry with 64000 bytes of extra fields"
    assert time.thread_time() - began < 1


def test_overlapping_entries_are_refused():
    payload = make_zip(("aa", b"1" * 40), ("ab", b"2" * 40), method=zipfile.ZIP_STORED)
    assert (
        refusal(patched(payload, "offset", 0, entry=1)) == "The request's zip entry 'ab' overlaps another one"
    )


@pytest.mark.parametrize("payload", [b"", b"PK", b"x" * 400, b"PK\x03\x04" + bytes(40), bytes(22)])
def test_payload_that_is_no_zip_is_refused(payload):
    assert refusal(payload) == (
        "The request's zip has no proper end: it is no zip, is cut short, or other bytes follow it"
    )


def test_other_bytes_before_or_after_the_zip_are_refused():
    payload = make_zip(("a", b"1"), ("b/", b""))
    for stuffed in (b"\0" + payload, b"MZ" * 40 + payload, payload + b"\0", payload + payload):
        refusal(stuffed)
    # As a self-extracting archive has it: the offsets know of what stands before them.
    prefix = b"#!/bin/sh\n"
    shifted = prefix + payload
    for entry in range(2):
        place = payload.index(b"PK\x03\x04") if entry == 0 else payload.rindex(b"PK\x03\x04")
        shifted = patched(shifted, "offset", place + len(prefix), entry=entry)
    (offset,) = struct.unpack_from("<L", shifted, len(shifted) - 6)
    shifted = patched(shifted, "end offset", offset + len(prefix))
    assert refusal(shifted) == "The request's zip holds other bytes before its first entry"


def test_a_comment_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "1")
        archive.comment = b"PK\x05\x06" + bytes(18)
    refusal(buffer.getvalue())


def test_a_zip_cut_short_anywhere_is_refused():
    payload = make_zip(("argv1", b"-p4"), ("script/", b""), ("script/x.stp", b"probe begin {}" * 20))
    read_archive(payload, max_bytes=LIMIT)
    for length in range(len(payload)):
        refusal(payload[:length])


def test_every_single_byte_overwritten_is_refused_or_harmless():
    payload = make_zip(("version", b"4.8"), ("d/", b""), ("d/x.stp", b"probe begin {}" * 20))
    for position in range(len(payload)):
        for byte in (0, 0xFF, payload[position] ^ 1, payload[position] ^ 0x80):
            _read_or_refuse(payload[:position] + bytes([byte]) + payload[position + 1 :])


def test_unpacked_size_out_of_bounds_is_refused():
    payload = make_zip(("a", b"1" * 600), ("b", b"2" * 400))
    assert len(read_archive(payload, max_bytes=1_000).files) == 2
    assert refusal(payload, max_bytes=999) == (
        "Uncompressed request size of 1000 bytes is not within the expected range of 1 to 999 bytes."
        " --max-request-size raises the limit."
    )
    for empty in (make_zip(), make_zip(("a", b"")), make_zip(("d/", b""))):
        assert refusal(empty) == (
            "Uncompressed request size of 0 bytes is not within the expected range of 1 to 50000 bytes."
        )


def test_bomb_that_announces_little_takes_little_memory():
    bomb = patched(make_zip(("zeros", bytes(60_000_000))), "size", 40_000)
    tracemalloc.start()
    try:
        text = refusal(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert text.endswith("'zeros' holds more than the 40000 bytes that it announces")
    assert peak < 8 * len(bomb)


def test_too_many_entries_are_refused_before_any_is_read(monkeypatch):
    monkeypatch.setattr(archive, "MAX_ENTRIES", 3)
    entries = [(f"e{number}", b"1") for number in range(4)]
    assert len(read_archive(make_zip(*entries[:3]), max_bytes=LIMIT).files) == 3
    payload = make_zip(*entries)
    understated = patched(patched(payload, "end entries", 1), "end entries here", 1)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    for zipped in (payload, understated):
        assert refusal(zipped) == "The request's zip has 4 entries, the limit is 3"


def test_too_many_directories_are_refused(monkeypatch):
    monkeypatch.setattr(archive, "MAX_ENTRIES", 30)
    assert refusal(make_zip(("d/" * 40 + "x", b"1"))) == "The request's zip needs more than 30 directories"


def test_the_name_in_an_error_cannot_forge_a_line():
    text = refusal(make_zip(("a\n\x1b[31m\u202e/../b", b"1")))
    assert text == r"The request's zip entry 'a\n\x1b[31m\u202e/../b' has .. in its path"


NAMES = (
    b"plain",
    b" blank s ",
    "ü.stp".encode(),
    "日本語".encode(),
    "e\u0301".encode(),
    b"caf\xe9",
    b"\x80\xff\xfe",
    b"back\\slash",
    b"new\nline",
    b"quote\"'`$x",
    b"-dash",
    b"*",
)
# unzip leaves these bytes out of the names that it makes, at least in some locales; we keep them.
ALTERED_BY_UNZIP = (b"\xff", b"\n")


@needs_info_zip
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_zip_of_info_zip_is_read_byte_for_byte(tmp_path, locale):
    root = tmp_path / "root"
    for directory in (b"", b"d", b"d\xfcr", "dür".encode(), b"d/empty"):
        (root / os.fsdecode(directory)).mkdir()
    contents = {}
    for number, name in enumerate(NAMES):
        for directory in (b"", b"d/", b"d\xfcr/", "dür/".encode()):
            contents[directory + name] = name * number * 10
    for path, data in contents.items():
        (root / os.fsdecode(path)).write_bytes(data)
    environment = {**os.environ, "LC_ALL": locale}
    subprocess.run(["zip", "-qr", tmp_path / "r.zip", "."], cwd=root, env=environment, check=True)
    archive = read_archive((tmp_path / "r.zip").read_bytes(), max_bytes=LIMIT)
    assert {file.path: file.data for file in archive.files} == contents
    assert archive.directories == (b"d", b"d/empty", "dür".encode(), b"d\xfcr")

    out = tmp_path / "out"
    subprocess.run(["unzip", "-q", tmp_path / "r.zip", "-d", out], env=environment, check=True)
    unzipped = {os.fsencode(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    same = {path for path in contents if not any(byte in path for byte in ALTERED_BY_UNZIP)}
    assert len(same) > len(contents) / 2
    assert same <= unzipped


@needs_info_zip
def test_a_link_kept_by_info_zip_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("/etc/shadow")
    subprocess.run(["zip", "-qry", "r.zip", "link"], cwd=tmp_path, check=True)
    assert refusal((tmp_path / "r.zip").read_bytes()) == "The request's zip entry 'link' is a symbolic link"


@needs_info_zip
def test_streamed_zip_is_read_and_encrypted_one_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"some text " * 50)
    streamed = subprocess.run(
        ["zip", "-qr", "-fz-", "-", "x"], cwd=tmp_path, check=True, stdout=subprocess.PIPE
    ).stdout
    assert read_archive(streamed, max_bytes=LIMIT).files == (RequestFile(b"x", b"some text " * 50),)
    subprocess.run(["zip", "-qr", "-P", "secret", "e.zip", "x"], cwd=tmp_path, check=True)
    assert refusal((tmp_path / "e.zip").read_bytes()) == "The request's zip entry 'x' is encrypted"


def _read_or_refuse(payload: bytes) -> None:
    """Only a ProtocolError of one line may come out, or an archive that is safe to lay out."""
    try:
        archive = read_archive(payload, max_bytes=LIMIT)
    except ProtocolError as refused:
        problem = str(refused)
    else:
        problem = ""
        _check_safe(archive)
    assert problem.isprintable()


def _check_safe(archive: Archive) -> None:
    assert 1 <= sum(len(file.data) for file in archive.files) <= LIMIT
    paths = [file.path for file in archive.files]
    everything = [*paths, *archive.directories]
    assert len(set(everything)) == len(everything)
    for path in everything:
        components = path.split(b"/")
        assert not {b"", b".", b".."} & set(components)
        assert b"\0" not in path
        assert not {b"/".join(components[:depth]) for depth in range(1, len(components))} - set(
            archive.directories
        )


INTERESTING = (0, 1, 2, 0x10, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FFFF)


def _mutate(payload: bytes, chance: random.Random) -> bytes:
    out = bytearray(payload)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(out) + 1)
        length = chance.choice((1, 2, 4, 4, 8, 40))
        match chance.randrange(6):
            case 0:
                out[at : at + 1] = chance.randbytes(1)
            case 1:
                value = chance.choice(INTERESTING) & (1 << 8 * min(length, 4)) - 1
                out[at : at + min(length, 4)] = value.to_bytes(min(length, 4), "little")
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = chance.randbytes(length)
            case 4:
                other = chance.randrange(len(out) + 1)
                out[at : at + length] = out[other : other + length]
            case _:
                # Where a zip's few meaningful bytes are.
                heads = [i for i in range(len(out) - 3) if out[i : i + 2] == b"PK"] or [0]
                at = chance.choice(heads) + chance.randrange(46)
                out[at : at + 1] = bytes([chance.choice((0, 1, 8, 9, 12, 14, 0x20, 0x41, 0xA1, 0xFF))])
        if not out:
            return bytes(payload)
    return bytes(out)


def test_damaged_zips_are_refused_or_harmless():
    chance = random.Random(20)
    seeds = [
        make_zip(("version", b"4.8"), ("argv1", b"-p4"), ("script/", b""), ("script/a.stp", b"probe " * 99)),
        make_zip(("ü/\u20ac", b"1" * 300), ("a/", b""), ("a/b", b"2"), method=zipfile.ZIP_STORED),
        make_zip(*((f"argv{n}", bytes([n]) * n) for n in range(1, 9))),
    ]
    for number in range(MUTATIONS):
        _read_or_refuse(_mutate(seeds[number % len(seeds)], chance))
