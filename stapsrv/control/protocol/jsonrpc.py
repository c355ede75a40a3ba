"""JSON-RPC 2.0 messages, one to a line: pure, bytes in and values out.

Parameters and results are described in :mod:`stapsrv.control.protocol.schema`. Clients load this module, so
it needs no attrs.

Source: JSON-RPC 2.0 Specification. Stricter than it: no batches, no requests without an id, parameters by
name only (``docs/control.md``).
"""

from __future__ import annotations

import json
from enum import IntEnum
from typing import NamedTuple, NoReturn, TypeAlias, TypeGuard

from stapsrv.control.protocol.validation import kind_of, shown
from stapsrv.errors import ControlError

# Raised only when an older program would misunderstand a message; additions do not raise it.
PROTOCOL_VERSION = 1

# Optional features of this protocol version, listed in the answer to hello.
FEATURES = ("drain", "progress", "reload", "scripts", "timeout", "watch")

# Of a line to a supervisor, without its end: some hundred servers in one start.
MAX_REQUEST_BYTES = 256 * 1024

# Of a line from a supervisor: a status of ten thousand servers.
MAX_REPLY_BYTES = 16 * 1024 * 1024

MAX_ID_CHARACTERS = 64

# The largest whole number that every JSON library keeps exact.
MAX_ID_NUMBER = 2**53

RequestId: TypeAlias = str | int


class Code(IntEnum):
    """Error codes, JSON-RPC's own and then ours; stable, and explained in ``docs/control.md``."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603
    NOT_PERMITTED = -32001
    # The command was valid and could not be carried out.
    FAILED = -32002
    # A limit was reached; the same request may succeed later.
    BUSY = -32003
    SHUTTING_DOWN = -32004
    # No whole request came in time; from a client, no reply did.
    TIMED_OUT = -32005
    # The connection ended before the reply; raised by clients only.
    LOST = -32006


class Request(NamedTuple):
    """A method call with unchecked parameters."""

    id: RequestId
    method: str
    params: dict[str, object]


class Reply(NamedTuple):
    """The end of a call: an unchecked result or an error."""

    # None for an error that is about the connection.
    id: RequestId | None
    result: object
    error: ControlError | None


class Progress(NamedTuple):
    """A notification that a server of a call has changed: the call's id and the unchecked status."""

    id: RequestId
    server: object


class Update(NamedTuple):
    """A notification of a watch: the call's id and the unchecked update."""

    id: RequestId
    update: object


class ScriptProgress(NamedTuple):
    """A notification that a script of a call has been checked: the call's id and the unchecked result."""

    id: RequestId
    script: object


class RequestRefused(ControlError):
    """A line that is no request; ``request_id`` is the id to answer, or None if it is unknown."""

    def __init__(self, problem: str, *, code: int, request_id: RequestId | None) -> None:
        super().__init__(problem, code=code)
        self.request_id = request_id


class LineBuffer:
    """Assembles lines of at most ``max_bytes`` from received data."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data = bytearray()
        self._searched = 0

    @property
    def partial(self) -> bool:
        """Whether there is data that :meth:`next_line` has not returned."""
        return bool(self._data)

    def feed(self, data: bytes) -> None:
        """Add received data."""
        self._data += data

    def next_line(self) -> bytes | None:
        """Return the next line without its end, None until one is complete.

        Raises:
            ControlError: it is too long, complete or not; nothing more can be read.
        """
        end = self._data.find(b"\n", self._searched)
        self._searched = len(self._data) if end < 0 else 0
        if max(end, self._searched) > self._max_bytes:
            raise ControlError(f"a line has more than {self._max_bytes} bytes", code=Code.INVALID_REQUEST)
        if end < 0:
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line

    def feed_eof(self) -> None:
        """Raise ControlError if the data end within a line."""
        if self._data:
            raise ControlError("the connection ended within a line", code=Code.INVALID_REQUEST)


def encode_request(request: Request) -> bytes:
    """Return the line that calls a method."""
    return _line({"id": request.id, "method": request.method, "params": request.params})


def encode_result(request_id: RequestId, result: object) -> bytes:
    """Return the line that answers a call; an error in its place if it would be too long."""
    line = _line({"id": request_id, "result": result})
    length = len(line) - 1
    if length <= MAX_REPLY_BYTES:
        return line
    problem = f"the answer has {length} bytes, more than the {MAX_REPLY_BYTES} of a line"
    return encode_error(request_id, ControlError(problem, code=Code.INTERNAL_ERROR))


def encode_error(request_id: RequestId | None, error: ControlError) -> bytes:
    """Return the line that refuses a call, or the connection if the id is None."""
    return _line({"id": request_id, "error": {"code": int(error.code), "message": str(error)}})


def encode_progress(request_id: RequestId, server: object) -> bytes:
    """Return the notification that a server has changed."""
    return _line({"method": "progress", "params": {"id": request_id, "server": server}})


def encode_update(request_id: RequestId, update: object) -> bytes:
    """Return the notification of a watch.

    Raises:
        ControlError: it would be too long for a line (INTERNAL_ERROR).
    """
    line = _line({"method": "update", "params": {"id": request_id, "update": update}})
    if len(line) - 1 > MAX_REPLY_BYTES:
        problem = f"an update has {len(line) - 1} bytes, more than the {MAX_REPLY_BYTES} of a line"
        raise ControlError(problem, code=Code.INTERNAL_ERROR)
    return line


def encode_script_progress(request_id: RequestId, script: object) -> bytes:
    """Return the notification that a script has been checked."""
    return _line({"method": "progress", "params": {"id": request_id, "script": script}})


def decode_request(line: bytes) -> Request:
    """Parse a line from a client strictly.

    Raises:
        RequestRefused: it is no request: INVALID_PARAMS if only the parameters are no object, else
            PARSE_ERROR or INVALID_REQUEST.
    """
    try:
        message = _parse(line)
    except ValueError as exc:
        problem = f"expected one JSON text in UTF-8 on each line: {exc}"
        raise RequestRefused(problem, code=Code.PARSE_ERROR, request_id=None) from exc
    if isinstance(message, list):
        _refuse("batches are not taken; send each request on a line of its own", None)
    if not isinstance(message, dict):
        _refuse(f"expected a request object, not {kind_of(message)}", None)
    request_id = message.get("id")
    if not _is_request_id(request_id):
        _refuse(
            f"expected an 'id', a string of at most {MAX_ID_CHARACTERS} characters or a whole number:"
            " every request is answered",
            None,
        )
    if message.get("jsonrpc") != "2.0":
        _refuse("expected 'jsonrpc' to be \"2.0\"", request_id)
    method = message.get("method")
    if not isinstance(method, str):
        _refuse("expected a 'method', a string", request_id)
    unknown = message.keys() - {"jsonrpc", "id", "method", "params"}
    if unknown:
        _refuse(f"unknown member {shown(min(unknown))} of the request", request_id)
    params = message.get("params", {})
    if not isinstance(params, dict):
        problem = f"params: expected an object, not {kind_of(params)}: parameters have names"
        raise RequestRefused(problem, code=Code.INVALID_PARAMS, request_id=request_id)
    return Request(request_id, method, params)


def decode_answer(line: bytes) -> Reply | Progress | ScriptProgress | Update:
    """Parse a line from a supervisor, accepting unknown members.

    Raises:
        ControlError: it is no answer (INTERNAL_ERROR).
    """
    try:
        message = _parse(line)
    except ValueError as exc:
        raise _strange(str(exc)) from exc
    match message:
        case {"method": "progress", "params": {"id": str() | int() as request_id, "server": server}}:
            return Progress(request_id, server)
        case {"method": "progress", "params": {"id": str() | int() as request_id, "script": script}}:
            return ScriptProgress(request_id, script)
        case {"method": "update", "params": {"id": str() | int() as request_id, "update": update}}:
            return Update(request_id, update)
        case {"id": None | str() | int() as request_id, "error": {"code": int(code), "message": str(text)}}:
            return Reply(request_id, None, ControlError(text, code=code))
        case {"id": str() | int() as request_id, "result": result}:
            return Reply(request_id, result, None)
        case _:
            raise _strange("it is neither a reply nor a notification of progress")


def _line(members: dict[str, object]) -> bytes:
    text = json.dumps({"jsonrpc": "2.0", **members}, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii") + b"\n"


def _parse(line: bytes) -> object:
    """Decode a JSON text; raises ValueError, without anything of the line in its text."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ValueError(f"byte {exc.start} is not UTF-8") from exc
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("an object has two members of the same name")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_request_id(value: object) -> TypeGuard[RequestId]:
    if isinstance(value, str):
        return len(value) <= MAX_ID_CHARACTERS
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_ID_NUMBER


def _refuse(problem: str, request_id: RequestId | None) -> NoReturn:
    raise RequestRefused(problem, code=Code.INVALID_REQUEST, request_id=request_id)


def _strange(reason: str) -> ControlError:
    return ControlError(f"the supervisor sent a line that cannot be read: {reason}", code=Code.INTERNAL_ERROR)
