"""The frame around a request, byte by byte."""

from __future__ import annotations

import contextlib
import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stapsrv.compile.protocol.frames import FrameReader
from stapsrv.errors import ProtocolError
from stapsrv.rejection import RejectReason

reproducible = settings(derandomize=True, database=None, deadline=None, max_examples=200)

PAYLOAD = bytes(range(256)) * 3


def framed(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def test_whole_frame_is_its_payload():
    reader = FrameReader(1_000)
    assert reader.payload is None
    reader.feed(framed(PAYLOAD))
    assert reader.payload == PAYLOAD
    reader.feed_eof()
    assert reader.payload == PAYLOAD


def test_frame_can_come_one_byte_at_a_time():
    reader = FrameReader(1_000)
    for byte in framed(PAYLOAD):
        assert reader.payload is None
        reader.feed(bytes([byte]))
    assert reader.payload == PAYLOAD


@reproducible
@given(payload=st.binary(max_size=60), cuts=st.lists(st.integers(0, 64)))
def test_frame_can_come_in_any_chunks(payload, cuts):
    data = framed(payload)
    reader = FrameReader(60)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(places):
        assert reader.payload is None or start == len(data)
        reader.feed(data[start:end])
    assert reader.payload == payload
    reader.feed_eof()


def test_frame_cut_short_anywhere_is_an_error():
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


def test_connection_without_a_byte_is_no_error():
    reader = FrameReader(1_000)
    reader.feed(b"")
    reader.feed_eof()
    assert reader.payload is None


def test_length_of_zero_is_an_empty_payload():
    reader = FrameReader(1_000)
    reader.feed(bytes(3))
    assert reader.payload is None
    reader.feed(bytes(1))
    assert reader.payload == b""
    reader.feed_eof()
    assert reader.payload == b""


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 1_000])
@pytest.mark.parametrize("at_once", [True, False])
def test_bytes_after_the_frame_are_an_error(payload, at_once):
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


def test_payload_of_the_limit_is_accepted():
    reader = FrameReader(len(PAYLOAD))
    reader.feed(framed(PAYLOAD))
    assert reader.payload == PAYLOAD


@pytest.mark.parametrize("announced", [1_001, 0x7FFF_FFFF])
def test_payload_over_the_limit_is_refused_by_its_length(announced):
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


@pytest.mark.parametrize(("header", "number"), [(b"\x80\0\0\0", -(1 << 31)), (b"\xff" * 4, -1)])
def test_length_that_is_negative_for_the_original_is_refused_in_its_words(header, number):
    reader = FrameReader(1_000)
    with pytest.raises(ProtocolError) as caught:
        reader.feed(header)
    assert str(caught.value) == f"Invalid request size: negative value ({number})"
    assert caught.value.reject_reason is RejectReason.REQUEST_SIZE
    assert reader.payload is None


@pytest.mark.parametrize(
    ("announced", "sent", "missing"), [(10, 0, 10), (10, 4, 6), (10, 10, 0), (900, 0, 900), (900, 300, 600)]
)
def test_missing_bytes_count_beyond_the_limit(announced, sent, missing):
    frame = FrameReader(100)
    with contextlib.suppress(ProtocolError):
        frame.feed(struct.pack(">I", announced) + bytes(sent))
    assert frame.missing_bytes == missing
