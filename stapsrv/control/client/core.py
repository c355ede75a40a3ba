"""What a client can ask: each method as a value, and what to make of the lines that come back.

No sockets: both clients (:mod:`stapsrv.control.client`) carry these out. A client waits for the end of an
action a bit longer than the supervisor does, whose answer says more than silence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

from stapsrv.control.protocol.jsonrpc import Code, Progress, Request, decode_answer, encode_request
from stapsrv.control.protocol.schema import ActionInfo, EmptyInfo, HelloInfo, ServerSpecInfo
from stapsrv.control.protocol.status_fields import ServerInfo, SupervisorInfo
from stapsrv.control.protocol.validation import ShapeError, checked
from stapsrv.errors import ControlError, StapsrvError

REPLY_S = 10.0
"""For an answer that the supervisor can give at once, however busy it is."""
ACTION_S = 900.0
"""For an action: a drain waits for compiles, which may take ten minutes and queue for five."""

Ids: TypeAlias = Sequence[int] | Literal["all"]
"""Which servers are meant."""

OnProgress: TypeAlias = Callable[[ServerInfo], object]
"""Called with each change of a server that an action is about; what it returns is ignored."""

_Result = TypeVar("_Result")


class Call(NamedTuple, Generic[_Result]):
    """A method to call.

    Attributes:
        method: its name.
        params: its parameters, ready for JSON.
        shape: of its result.
        wait_s: how long to wait for its end.
    """

    method: str
    params: dict[str, object]
    shape: type[_Result]
    wait_s: float = REPLY_S


HELLO = Call("hello", {}, HelloInfo)
STATUS = Call("status", {}, SupervisorInfo)
END = Call("end", {}, EmptyInfo)


def start(
    servers: Sequence[ServerSpecInfo], *, timeout_s: float, on_progress: OnProgress | None
) -> Call[ActionInfo]:
    """Return the call that starts servers."""
    return _action("start", {"servers": list(servers)}, timeout_s, on_progress)


def command(
    method: Literal["stop", "restart", "drain", "undrain"],
    ids: Ids,
    *,
    timeout_s: float,
    on_progress: OnProgress | None,
) -> Call[ActionInfo]:
    """Return the call that does something with running servers."""
    return _action(method, {"ids": ids if isinstance(ids, str) else list(ids)}, timeout_s, on_progress)


def reload(
    config_file: Path | None, *, force: bool, timeout_s: float, on_progress: OnProgress | None
) -> Call[ActionInfo]:
    """Return the call that has the configuration read again."""
    path = None if config_file is None else str(config_file)
    return _action("reload", {"config_file": path, "force": force}, timeout_s, on_progress)


class SupervisorNotRunning(StapsrvError):
    """There is no socket, or nobody listens to it: one that was killed leaves its file behind."""


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
    """One call over a connection.

    Args:
        call: what to ask.
        request_id: not used before on this connection.

    Attributes:
        request: the line to send.
        result: what the method returned, or None until then.
    """

    def __init__(self, call: Call[_Result], request_id: int) -> None:
        self.request = encode_request(Request(request_id, call.method, call.params))
        self.result: _Result | None = None
        self._call = call
        self._id = request_id

    def feed(self, line: bytes) -> ServerInfo | None:
        """Take in a line; return the change of a server that it tells of. Late answers to others are skipped.

        Raises:
            ControlError: the supervisor refuses, or sends what cannot be understood (INTERNAL_ERROR).
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
        """Say what a failure to send or receive within the block means.

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


def still_there(timeout_s: float) -> ControlError:
    """Return the error for a supervisor that was told to end and did not."""
    return ControlError(f"end: the supervisor is still there after {timeout_s:g} s", code=Code.TIMED_OUT)


def _action(
    method: str, params: dict[str, object], timeout_s: float, on_progress: OnProgress | None
) -> Call[ActionInfo]:
    waiting = {"timeout_s": timeout_s, "progress": on_progress is not None}
    return Call(method, params | waiting, ActionInfo, wait_s=timeout_s + REPLY_S)


def _checked(value: object, shape: type[_Result], name: str) -> _Result:
    try:
        return checked(value, shape, name=name, exact=False)
    except ShapeError as exc:
        raise ControlError(
            f"the supervisor's answer is not understood: {exc}", code=Code.INTERNAL_ERROR
        ) from exc
