"""Lines and JSON-RPC: what is taken, what is refused, and in which words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stapsrv.control.protocol.jsonrpc import (
    MAX_REPLY_BYTES,
    Code,
    LineBuffer,
    Progress,
    Reply,
    Request,
    RequestRefused,
    decode_answer,
    decode_request,
    encode_error,
    encode_progress,
    encode_request,
    encode_result,
)
from stapsrv.control.protocol.validation import kind_of, shown
from stapsrv.errors import ControlError


def line(**members: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "status"} | members).encode()


def without(member: str) -> bytes:
    message = json.loads(line())
    del message[member]
    return json.dumps(message).encode()


NO_ID = "expected an 'id', a string of at most 64 characters or a whole number: every request is answered"
PARSE = "expected one JSON text in UTF-8 on each line: "


@pytest.mark.parametrize(
    ("data", "code", "request_id", "text"),
    [
        (b"", Code.PARSE_ERROR, None, PARSE + "Expecting value: line 1 column 1 (char 0)"),
        (b"status", Code.PARSE_ERROR, None, PARSE + "Expecting value: line 1 column 1 (char 0)"),
        (b"{} {}", Code.PARSE_ERROR, None, PARSE + "Extra data: line 1 column 4 (char 3)"),
        (b'{"a": \xff}', Code.PARSE_ERROR, None, PARSE + "byte 6 is not UTF-8"),
        (line().decode().encode("utf-16"), Code.PARSE_ERROR, None, PARSE + "byte 0 is not UTF-8"),
        (b'{"id": NaN}', Code.PARSE_ERROR, None, PARSE + "NaN is not JSON"),
        (b'{"id": -Infinity}', Code.PARSE_ERROR, None, PARSE + "-Infinity is not JSON"),
        (b"[" * 200_000, Code.PARSE_ERROR, None, PARSE + "it is nested too deeply"),
        (b'{"id": 1, "id": 2}', Code.PARSE_ERROR, None, PARSE + "an object has two members of the same name"),
        (
            b"[" + line() + b"]",
            Code.INVALID_REQUEST,
            None,
            "batches are not taken; send each request on a line of its own",
        ),
        (b"[]", Code.INVALID_REQUEST, None, "batches are not taken; send each request on a line of its own"),
        (b'"status"', Code.INVALID_REQUEST, None, "expected a request object, not a string"),
        (b"null", Code.INVALID_REQUEST, None, "expected a request object, not null"),
        (without("id"), Code.INVALID_REQUEST, None, NO_ID),
        (line(id=None), Code.INVALID_REQUEST, None, NO_ID),
        (line(id=True), Code.INVALID_REQUEST, None, NO_ID),
        (line(id=1.5), Code.INVALID_REQUEST, None, NO_ID),
        (line(id="x" * 65), Code.INVALID_REQUEST, None, NO_ID),
        (line(id=2**53 + 1), Code.INVALID_REQUEST, None, NO_ID),
        (line(id=[1]), Code.INVALID_REQUEST, None, NO_ID),
        (without("jsonrpc"), Code.INVALID_REQUEST, 1, "expected 'jsonrpc' to be \"2.0\""),
        (line(jsonrpc="1.0"), Code.INVALID_REQUEST, 1, "expected 'jsonrpc' to be \"2.0\""),
        (line(jsonrpc=2.0), Code.INVALID_REQUEST, 1, "expected 'jsonrpc' to be \"2.0\""),
        (without("method"), Code.INVALID_REQUEST, 1, "expected a 'method', a string"),
        (line(method=7), Code.INVALID_REQUEST, 1, "expected a 'method', a string"),
        (line(id="a", parms={}), Code.INVALID_REQUEST, "a", "unknown member 'parms' of the request"),
        (
            line(params=[1]),
            Code.INVALID_PARAMS,
            1,
            "params: expected an object, not an array: parameters have names",
        ),
        (
            line(params=None),
            Code.INVALID_PARAMS,
            1,
            "params: expected an object, not null: parameters have names",
        ),
    ],
)
def test_what_is_no_request_is_refused(data, code, request_id, text):
    with pytest.raises(RequestRefused) as caught:
        decode_request(data)
    assert (caught.value.code, caught.value.request_id, str(caught.value)) == (code, request_id, text)


@pytest.mark.parametrize("request_id", [0, -1, 2**53, "", "x" * 64, "\N{SNOWMAN}"])
def test_requests_come_through(request_id):
    request = Request(request_id, "stop", {"ids": "all"})
    data = encode_request(request)
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    assert decode_request(data[:-1]) == request


def test_parameters_may_be_left_out():
    assert decode_request(line() + b"\r") == Request(1, "status", {})


def test_results_come_through():
    assert decode_answer(encode_result("a", {"x": ["\n\u2028\ud800"]})) == Reply(
        "a", {"x": ["\n\u2028\ud800"]}, None
    )


def test_errors_come_through():
    error = ControlError("no", code=Code.BUSY, remedy="try again")
    assert json.loads(encode_error(None, error)) == {
        "jsonrpc": "2.0",
        "id": None,
        "error": {"code": -32003, "message": "no; try again"},
    }
    reply = decode_answer(encode_error(7, error))
    assert isinstance(reply, Reply)
    assert (reply.id, reply.error.code, str(reply.error)) == (7, Code.BUSY, "no; try again")


def test_progress_comes_through():
    assert decode_answer(encode_progress(7, {"id": 1})) == Progress(7, {"id": 1})


def test_result_beyond_the_limit_is_an_error():
    reply = decode_answer(encode_result(1, "x" * MAX_REPLY_BYTES))
    assert isinstance(reply, Reply)
    assert reply.error.code == Code.INTERNAL_ERROR
    assert str(reply.error) == (
        f"the answer has {MAX_REPLY_BYTES + 36} bytes, more than the {MAX_REPLY_BYTES} of a line"
    )


def test_members_of_later_versions_are_let_pass():
    assert decode_answer(line(result={}, later=1)) == Reply(1, {}, None)


STRANGE = "the supervisor sent a line that cannot be read: "


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"HTTP/1.1 400", STRANGE + "Expecting value: line 1 column 1 (char 0)"),
        (b"[1]", STRANGE + "it is neither a reply nor a notification of progress"),
        (b'{"id": 1}', STRANGE + "it is neither a reply nor a notification of progress"),
        (b'{"id": null, "result": 1}', STRANGE + "it is neither a reply nor a notification of progress"),
        (b'{"id": 1, "error": "no"}', STRANGE + "it is neither a reply nor a notification of progress"),
        (b'{"method": "progress"}', STRANGE + "it is neither a reply nor a notification of progress"),
    ],
)
def test_answers_that_are_none(data, text):
    with pytest.raises(ControlError) as caught:
        decode_answer(data)
    assert (caught.value.code, str(caught.value)) == (Code.INTERNAL_ERROR, text)


def read_all(data: bytes, sizes: list[int], limit: int) -> list[bytes]:
    """Feed ``data`` in pieces of ``sizes`` in turn, and return the lines."""
    buffer, lines = LineBuffer(limit), []
    while data:
        size = sizes[len(data) % len(sizes)]
        buffer.feed(data[:size])
        data = data[size:]
        while (found := buffer.next_line()) is not None:
            lines.append(found)
    return lines


@given(
    st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\n", b""))),
    st.lists(st.integers(1, 60), min_size=1),
)
def test_lines_do_not_depend_on_how_they_arrive(lines, sizes):
    assert read_all(b"".join(data + b"\n" for data in lines), sizes, 40) == lines


@pytest.mark.parametrize("sizes", [[1], [7], [1000]])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_long_line_is_refused_whole_or_not(sizes, end):
    with pytest.raises(ControlError) as caught:
        read_all(b"short\n" + b"x" * 41 + end, sizes, 40)
    assert caught.value.code == Code.INVALID_REQUEST
    assert str(caught.value) == "a line has more than 40 bytes"


def test_lines_before_a_long_one_are_read():
    buffer = LineBuffer(40)
    buffer.feed(b"short\n" + b"x" * 100)
    assert buffer.next_line() == b"short"
    with pytest.raises(ControlError):
        buffer.next_line()


def test_end_within_a_line():
    buffer = LineBuffer(40)
    buffer.feed_eof()
    buffer.feed(b"half")
    assert buffer.partial
    with pytest.raises(ControlError) as caught:
        buffer.feed_eof()
    assert str(caught.value) == "the connection ended within a line"


def test_kinds_have_names():
    values = [None, True, False, 1, 1.5, "x", [], {}]
    assert [kind_of(value) for value in values] == [
        "null",
        "true",
        "false",
        "a number",
        "a fraction",
        "a string",
        "an array",
        "an object",
    ]


def test_what_peers_made_up_is_shown_harmless_and_short():
    assert shown("a\x1b[2J\n\N{SNOWMAN}") == r"'a\x1b[2J\n\u2603'"
    assert shown("x" * 100) == f"'{'x' * 60}...'"


def test_codes_are_stable():
    assert {code.name: int(code) for code in Code} == {
        "PARSE_ERROR": -32700,
        "INVALID_REQUEST": -32600,
        "METHOD_NOT_FOUND": -32601,
        "INVALID_PARAMS": -32602,
        "INTERNAL_ERROR": -32603,
        "NOT_PERMITTED": -32001,
        "FAILED": -32002,
        "BUSY": -32003,
        "SHUTTING_DOWN": -32004,
        "TIMED_OUT": -32005,
        "LOST": -32006,
    }
