"""Names and TXT records of servers, byte for byte."""

from __future__ import annotations

import subprocess
import sys

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stapsrv.mdns.records import (
    NAME_BYTES,
    STRING_BYTES,
    TEXT_BYTES,
    Advertisement,
    encode_strings,
    host_label,
    instance_name,
    parse_text,
)

PLAIN = Advertisement(sysinfo="6.1.0-56-amd64 x86_64", port=5001, version="4.8", serial="00:cc:1d:4b:d6")
MOKS = ("2b:e4:79:4c:f3:a9:df:b5:2d:59:5f:32:1a:86:ae:97:f4:e2:b4:4e", "b3:34:7c")


def strings_of(text: bytes) -> list[str]:
    found = []
    while text:
        found.append(text[1 : 1 + text[0]].decode("utf-8", "surrogateescape"))
        text = text[1 + text[0] :]
    return found


@pytest.mark.parametrize(
    ("advertisement", "strings"),
    [
        # As avahi-browse shows them of the original (stap-serverd 4.8).
        pytest.param(
            PLAIN,
            ["sysinfo=6.1.0-56-amd64 x86_64", "optinfo=", "version=4.8", "certinfo=00:cc:1d:4b:d6"],
            id="no options",
        ),
        pytest.param(
            attrs.evolve(
                PLAIN,
                options=(
                    "-R/var/lib/stap-server/runtime",
                    "-BCONFIG=x y",
                    *("-DA=1", "-DB=2"),
                    *("-I/tap", "-I/tap two"),
                ),
            ),
            [
                "sysinfo=6.1.0-56-amd64 x86_64",
                "optinfo=-R/var/lib/stap-server/runtime -BCONFIG=x y -DA=1 -DB=2 -I/tap -I/tap two",
                "version=4.8",
                "certinfo=00:cc:1d:4b:d6",
            ],
            id="all options",
        ),
        pytest.param(
            attrs.evolve(PLAIN, moks=MOKS),
            [
                "sysinfo=6.1.0-56-amd64 x86_64",
                "optinfo=",
                "version=4.8",
                "certinfo=00:cc:1d:4b:d6",
                f"mok_info={MOKS[0]}",
                f"mok_info={MOKS[1]}",
            ],
            id="keys, one string each",
        ),
        pytest.param(
            attrs.evolve(PLAIN, options=("-Dé", "-D\udcff")),
            [
                "sysinfo=6.1.0-56-amd64 x86_64",
                "optinfo=-Dé -D\udcff",
                "version=4.8",
                "certinfo=00:cc:1d:4b:d6",
            ],
            id="bytes of a command line, as they are",
        ),
    ],
)
def test_text_is_the_originals(advertisement, strings):
    assert strings_of(advertisement.text) == strings
    assert advertisement.omitted == ()


def test_options_that_do_not_fit_are_omitted_whole():
    room = STRING_BYTES - len("optinfo=")
    fits = ("-D" + "x" * (room - 6), "-Dy")
    assert attrs.evolve(PLAIN, options=fits).omitted == ()
    assert len(strings_of(attrs.evolve(PLAIN, options=fits).text)[1]) == STRING_BYTES

    one_more = (fits[0] + "x", "-Dy", "-Dz")
    cut = attrs.evolve(PLAIN, options=one_more)
    assert strings_of(cut.text)[1] == f"optinfo={one_more[0]}"
    assert cut.omitted == ("-Dy", "-Dz")

    alone = attrs.evolve(PLAIN, options=("-D" + "x" * 300, "-Dz"))
    assert strings_of(alone.text)[1] == "optinfo="
    assert alone.omitted == alone.options


def test_keys_that_do_not_fit_are_omitted():
    moks = tuple(f"{number:059d}" for number in range(200))
    full = attrs.evolve(PLAIN, moks=moks)
    assert TEXT_BYTES - 69 < len(full.text) <= TEXT_BYTES
    assert len(strings_of(full.text)) - 4 + len(full.omitted) == 200


@given(
    sysinfo=st.text(max_size=400),
    version=st.text(max_size=400),
    serial=st.text(max_size=400),
    options=st.lists(st.text(max_size=300), max_size=5),
    moks=st.lists(st.text(max_size=300), max_size=50),
)
def test_any_values_make_a_valid_record(sysinfo, version, serial, options, moks):
    text = Advertisement(
        sysinfo=sysinfo, port=1, version=version, serial=serial, options=tuple(options), moks=tuple(moks)
    ).text
    assert len(text) <= TEXT_BYTES
    keys = [string.partition("=")[0] for string in strings_of(text)]
    assert keys[:4] == ["sysinfo", "optinfo", "version", "certinfo"]
    assert set(keys[4:]) <= {"mok_info"}


@pytest.mark.parametrize(
    ("host", "number", "name"),
    [
        ("build", 1, "Systemtap Compile Server on build"),
        ("build", 2, "Systemtap Compile Server on build #2"),
        ("build.example.org", 1, "Systemtap Compile Server on build"),
        ("x" * 63, 1, "Systemtap Compile Server on " + "x" * 35),
        ("x" * 63, 12, "Systemtap Compile Server on " + "x" * 31 + " #12"),
        # A character of two bytes is there whole or not at all.
        ("é" * 30, 1, "Systemtap Compile Server on " + "é" * 17),
    ],
)
def test_instance_name_fits_a_label(host, number, name):
    assert instance_name(host, number) == name
    assert len(name.encode()) <= NAME_BYTES


def test_host_label_fits_a_label():
    assert host_label("build", 1) == "build"
    assert host_label("build.local", 2) == "build-2"
    assert host_label("x" * 63, 10) == "x" * 60 + "-10"


def test_parse_text_returns_what_was_encoded():
    text = attrs.evolve(PLAIN, options=("-DA=1", "-I/x"), moks=MOKS).text
    assert parse_text(text) == {
        "sysinfo": ["6.1.0-56-amd64 x86_64"],
        "optinfo": ["-DA=1 -I/x"],
        "version": ["4.8"],
        "certinfo": ["00:cc:1d:4b:d6"],
        "mok_info": list(MOKS),
    }


def test_malformed_strings_are_skipped():
    assert parse_text(b"") == {}
    assert parse_text(b"\x00\x00\x03a=b\x02=c\x04flag") == {"a": ["b"], "flag": [""]}
    assert parse_text(b"\x09a=b") == {"a": ["b"]}
    assert parse_text(b"\x05A=\xff\xfe!") == {"a": ["��!"]}


@given(st.binary(max_size=600))
def test_parse_text_takes_any_bytes(data):
    parse_text(data)


@given(st.lists(st.binary(max_size=255), max_size=10))
def test_each_string_follows_its_length(strings):
    data = encode_strings(strings)
    assert len(data) == sum(map(len, strings)) + len(strings)


@pytest.mark.parametrize("name", ["records", "entries"])
def test_pure_modules_load_no_event_loop(name):
    heavy = ["anyio", "zeroconf", "socket", "ssl", "subprocess"]
    program = f"import sys, stapsrv.mdns.{name}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
