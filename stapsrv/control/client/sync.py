"""The blocking client, on the standard library alone."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from stapsrv.control.client.core import ACTION_S, REPLY_S, Call, Ids, OnProgress, PendingCall, connect_error
from stapsrv.control.protocol.jsonrpc import MAX_REPLY_BYTES, Code, LineBuffer
from stapsrv.control.protocol.schema import ActionInfo, EmptyInfo, HelloInfo, OutcomeInfo, ServerSpecInfo
from stapsrv.control.protocol.status_fields import SupervisorInfo
from stapsrv.errors import ControlError
from stapsrv.system.unix_socket import address_of

_READ_BYTES = 65_536
_TIMEVAL = struct.Struct("ll")

_Result = TypeVar("_Result")


class SyncControlClient:
    """A connection to one supervisor, for one call at a time and one thread.

    Args:
        path: of the control socket.
        timeout_s: for connecting.

    Raises:
        SupervisorNotRunning: nobody listens there.
        ControlError: this user may not connect (NOT_PERMITTED), or it took too long (TIMED_OUT).

    Example::

        with SyncControlClient(Path("/run/stap-server/stap-server/control.sock")) as client:
            spec = {"settings": {"RELEASE": ["6.1.0-56-amd64"], "PORT": 5001}}
            (outcome,) = client.start([spec], on_progress=lambda server: print(server["state"]))
            print(outcome["error"] or f"serves on port {outcome['server']['port']}")
    """

    def __init__(self, path: Path, *, timeout_s: float = REPLY_S) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._lines = LineBuffer(MAX_REPLY_BYTES)
        self._last_id = 0
        try:
            # A blocking connect waits for room in a busy supervisor's queue; Python's own time-out does not.
            whole_s = int(timeout_s)
            limit = _TIMEVAL.pack(whole_s, max(1, int((timeout_s - whole_s) * 1e6)))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            with address_of(path) as address:
                self._socket.connect(address)
        except OSError as exc:
            self._socket.close()
            raise connect_error(exc, path) from exc
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; running commands go on."""
        self._socket.close()

    def hello(self) -> HelloInfo:
        """Return who answers, the protocol version, and what this user may do."""
        return self.call(Call("hello", {}, HelloInfo))

    def status(self) -> SupervisorInfo:
        """Return the status of the supervisor and all its servers."""
        return self.call(Call("status", {}, SupervisorInfo))

    def start(
        self,
        servers: Sequence[ServerSpecInfo],
        *,
        timeout_s: float = ACTION_S,
        on_progress: OnProgress | None = None,
    ) -> list[OutcomeInfo]:
        """Start servers that do not run yet; return one outcome for each, in order.

        Returns when each serves or has failed, or after ``timeout_s`` seconds: the action goes on then, and
        the outcomes say what is not done. 0 only begins. ``on_progress`` is called with each change of a
        server.
        """
        return self._action("start", {"servers": list(servers)}, timeout_s, on_progress)

    def stop(
        self, ids: Ids, *, timeout_s: float = ACTION_S, on_progress: OnProgress | None = None
    ) -> list[OutcomeInfo]:
        """Stop servers; return one outcome for each when they are gone. See :meth:`start`.

        Stopping a stopping server ends its requests. For ``"all"`` there is one outcome for each server there
        is.
        """
        return self._action("stop", {"ids": ids if ids == "all" else list(ids)}, timeout_s, on_progress)

    def restart(
        self, ids: Ids, *, timeout_s: float = ACTION_S, on_progress: OnProgress | None = None
    ) -> list[OutcomeInfo]:
        """Stop and start servers, which keep their ids and ports; see :meth:`stop`."""
        return self._action("restart", {"ids": ids if ids == "all" else list(ids)}, timeout_s, on_progress)

    def drain(
        self, ids: Ids, *, timeout_s: float = ACTION_S, on_progress: OnProgress | None = None
    ) -> list[OutcomeInfo]:
        """Let servers finish their requests and accept no new ones; return when idle; see :meth:`stop`."""
        return self._action("drain", {"ids": ids if ids == "all" else list(ids)}, timeout_s, on_progress)

    def undrain(
        self, ids: Ids, *, timeout_s: float = ACTION_S, on_progress: OnProgress | None = None
    ) -> list[OutcomeInfo]:
        """Let drained servers accept again; see :meth:`stop`."""
        return self._action("undrain", {"ids": ids if ids == "all" else list(ids)}, timeout_s, on_progress)

    def reload(
        self,
        config_file: Path | None = None,
        *,
        force: bool = False,
        timeout_s: float = ACTION_S,
        on_progress: OnProgress | None = None,
    ) -> list[OutcomeInfo]:
        """Have the configuration read again and applied; unchanged servers go on. See :meth:`start`.

        ``config_file`` replaces the supervisor's global file. ``force`` stops every server that is not
        configured. There is one outcome for each server that was stopped or is configured, and for each bad
        file.
        """
        path = None if config_file is None else str(config_file)
        return self._action("reload", {"config_file": path, "force": force}, timeout_s, on_progress)

    def end(self, *, timeout_s: float = ACTION_S) -> None:
        """Have the supervisor stop all servers and end; return when it has.

        Raises:
            ControlError: it is still there after ``timeout_s`` seconds (TIMED_OUT).
        """
        self.call(Call("end", {}, EmptyInfo))
        deadline = time.monotonic() + timeout_s
        try:
            while self._receive(deadline):
                pass
        except TimeoutError as exc:
            raise ControlError(
                f"end: the supervisor is still there after {timeout_s:g} s", code=Code.TIMED_OUT
            ) from exc
        except ConnectionResetError:
            return

    def call(self, call: Call[_Result], on_progress: OnProgress | None = None) -> _Result:
        """Make any call, such as one that this class has no method for."""
        self._last_id += 1
        pending = PendingCall(call, self._last_id)
        deadline = time.monotonic() + call.wait_s
        with pending.errors():
            self._send(pending.request, deadline)
        while pending.result is None:
            with pending.errors():
                line = self._next_line(deadline)
            step = pending.feed(line)
            if step is not None and on_progress is not None:
                on_progress(step)
        return pending.result

    def _action(
        self, method: str, params: dict[str, object], timeout_s: float, on_progress: OnProgress | None
    ) -> list[OutcomeInfo]:
        params |= {"timeout_s": timeout_s, "progress": on_progress is not None}
        # A bit longer than the supervisor waits: its answer says more than silence.
        call = Call(method, params, ActionInfo, wait_s=timeout_s + REPLY_S)
        return self.call(call, on_progress)["outcomes"]

    def _send(self, data: bytes, deadline: float) -> None:
        self._socket.settimeout(_left_s(deadline))
        # A supervisor that hung up may have said why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def _next_line(self, deadline: float) -> bytes:
        while (line := self._lines.next_line()) is None:
            data = self._receive(deadline)
            if not data:
                raise ConnectionResetError("it was closed")
            self._lines.feed(data)
        return line

    def _receive(self, deadline: float) -> bytes:
        self._socket.settimeout(_left_s(deadline))
        return self._socket.recv(_READ_BYTES)


def _left_s(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
