"""A call without its socket: the line to send, the reading of answers, and what failures mean."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

from stapsrv.control.protocol.jsonrpc import Code, Progress, Request, decode_answer, encode_request
from stapsrv.control.protocol.status_fields import ServerInfo
from stapsrv.control.protocol.validation import ShapeError, checked
from stapsrv.errors import ControlError, StapsrvError

# For an answer that needs no waiting, however busy the supervisor is.
REPLY_S = 10.0
# For an action: a drain waits for compiles, which may take ten minutes and queue for five.
ACTION_S = 900.0

# The servers of an action.
Ids: TypeAlias = Sequence[int] | Literal["all"]

# Called with each change of a server; the result is ignored.
OnProgress: TypeAlias = Callable[[ServerInfo], object]

_Result = TypeVar("_Result")


class Call(NamedTuple, Generic[_Result]):
    """A method to call: its JSON parameters, the shape of its result, and the seconds to wait for it."""

    method: str
    params: dict[str, object]
    shape: type[_Result]
    wait_s: float = REPLY_S


class SupervisorNotRunning(StapsrvError):
    """There is no socket, or nobody listens on it: a killed supervisor leaves its file behind."""


def connect_error(exc: OSError, path: Path) -> StapsrvError:
    """Return the error for a connection that could not be made."""
    where = f"control socket {path}"
    if isinstance(exc, FileNotFoundError | NotADirectoryError | ConnectionRefusedError):
        remedy = "start one with stap-server start"
        return SupervisorNotRunning("no supervisor listens there", where=where, remedy=remedy)
    if isinstance(exc, PermissionError):
        return ControlError(
            f"{where}: you may not connect",
            code=Code.NOT_PERMITTED,
            remedy="ask as the user that it runs as, or join group stap-server to read its status",
        )
    if isinstance(exc, BlockingIOError | TimeoutError):
        return ControlError(f"{where}: the supervisor is too busy to answer", code=Code.TIMED_OUT)
    return ControlError(f"{where}: {exc.strerror or exc}", code=Code.LOST)


class PendingCall(Generic[_Result]):
    """One call over a connection; ``request_id`` is new on it.

    ``request`` is the line to send, ``result`` None until the call has returned.
    """

    def __init__(self, call: Call[_Result], request_id: int) -> None:
        self.request = encode_request(Request(request_id, call.method, call.params))
        self.result: _Result | None = None
        self._call = call
        self._id = request_id

    def feed(self, line: bytes) -> ServerInfo | None:
        """Process a line; return a server that has changed. Late answers to other calls are ignored.

        Raises:
            ControlError: the supervisor refuses the call, or the line is invalid (INTERNAL_ERROR).
        """
        message = decode_answer(line)
        if isinstance(message, Progress):
            return _checked(message.server, ServerInfo, "params.server") if message.id == self._id else None
        if message.error is not None and message.id in {self._id, None}:
            raise message.error
        if message.id == self._id:
            self.result = _checked(message.result, self._call.shape, "result")
        return None

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Translate failures of the socket within the block.

        Raises:
            ControlError: no answer in time (TIMED_OUT), or the connection ended before it (LOST).
        """
        try:
            yield
        except TimeoutError as exc:
            raise ControlError(
                f"{self._call.method}: no answer from the supervisor within {self._call.wait_s:g} s",
                code=Code.TIMED_OUT,
            ) from exc
        except OSError as exc:
            raise ControlError(
                f"{self._call.method}: the connection ended before the supervisor's answer"
                f" ({exc.strerror or exc})",
                code=Code.LOST,
            ) from exc


def _checked(value: object, shape: type[_Result], name: str) -> _Result:
    try:
        return checked(value, shape, name=name, exact=False)
    except ShapeError as exc:
        raise ControlError(
            f"the supervisor's answer is not understood: {exc}", code=Code.INTERNAL_ERROR
        ) from exc
