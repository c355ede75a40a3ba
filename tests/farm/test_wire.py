import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stapsrv.errors import ProtocolError
from stapsrv.farm.wire import Fields, decode, encode

KIND = b"stapxyz\x01"
MOST = 1 << 20


def message(header, blobs=b"", kind=KIND):
    text = json.dumps(header).encode()
    return struct.pack(">8sI", kind, len(text)) + text + blobs


@given(
    blobs=st.lists(st.binary(max_size=50), max_size=20),
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
)
def test_what_was_encoded_comes_back(blobs, text):
    fields, found = decode(KIND, encode(KIND, {"text": text, "count": 3}, blobs), max_bytes=MOST)
    assert (fields.text("text"), fields.integer("count", most=3), found) == (text, 3, blobs)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("text", "is not bytes"),
        (b"", "is of another kind"),
        (b"x" * 2000, "is of another kind"),
        (message({"blobs": []}, kind=b"stapxyz\x02"), "is of version 2, not 1"),
        (KIND + b"\xff\xff\xff\xff", "has a header that is too long"),
        (KIND + b"\0\0\0\x02{]", "has a header that is not JSON"),
        (KIND + struct.pack(">I", 100_000) + b"[" * 100_000, "has a header that is not JSON"),
        (message([]), "has a header that is no object"),
        (message({}), "has no list blobs"),
        (message({"blobs": [-1]}), "has no number blobs"),
        (message({"blobs": [True]}), "has no number blobs"),
        (message({"blobs": [5]}, b"four"), "is not as long as it says"),
        (message({"blobs": [3]}, b"four"), "is not as long as it says"),
        (b"x" * (MOST + 1), f"has {MOST + 1} bytes"),
    ],
)
def test_message_that_is_wrong_is_refused(wrong, said):
    with pytest.raises(ProtocolError, match=said.replace("(", r"\(")):
        decode(KIND, wrong, max_bytes=MOST)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(data):
    for tried in (data, KIND + data, KIND + struct.pack(">I", len(data)) + data):
        try:
            decode(KIND, tried, max_bytes=MOST)
        except ProtocolError:
            continue


@pytest.mark.parametrize("wrong", [None, 7, "\0", "\ud800", "x" * 11])
def test_text_that_is_unsound_is_refused(wrong):
    with pytest.raises(ProtocolError):
        Fields({"name": wrong}).text("name", most=10)


@pytest.mark.parametrize("wrong", [None, "1", True, -1.0, float("nan"), float("inf"), 11])
def test_number_that_is_unsound_is_refused(wrong):
    with pytest.raises(ProtocolError):
        Fields({"name": wrong}).number("name", most=10)
