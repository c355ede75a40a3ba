"""The client that blocks, on the standard library alone."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from stapsrv.control.client import core
from stapsrv.control.client.core import ACTION_S, REPLY_S, Call, Ids, OnProgress, PendingCall, connect_error
from stapsrv.control.protocol.jsonrpc import MAX_REPLY_BYTES, LineBuffer
from stapsrv.control.protocol.schema import HelloInfo, OutcomeInfo, ServerSpecInfo
from stapsrv.control.protocol.status_fields import SupervisorInfo
from stapsrv.system.unix_socket import address_of

_READ_BYTES = 65_536
_TIMEVAL = struct.Struct("ll")

_Result = TypeVar("_Result")


class SyncControlClient:
    """A connection to one supervisor, one call at a time; not for several threads at once.

    Args:
        path: of the control socket.
        timeout_s: for connecting.

    Raises:
        SupervisorNotRunning: nobody listens there.
        ControlError: this user may not connect (NOT_PERMITTED), or it took too long (TIMED_OUT).

    Example::

        with SyncControlClient(Path("/run/stap-server/stap-server/control.sock")) as client:
            wish = {"settings": {"RELEASE": ["6.1.0-56-amd64"], "PORT": 5001}}
            (outcome,) = client.start([wish], on_progress=lambda server: print(server["state"]))
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
        """Hang up; commands under way go on."""
        self._socket.close()

    def hello(self) -> HelloInfo:
        """Ask who answers, which protocol version it speaks, and what this peer may do."""
        return self.call(core.HELLO)

    def status(self) -> SupervisorInfo:
        """Return the supervisor and all its servers as they are now."""
        return self.call(core.STATUS)

    def start(
        self,
        servers: Sequence[ServerSpecInfo],
        *,
        timeout_s: float = ACTION_S,
        on_progress: OnProgress | None = None,
    ) -> list[OutcomeInfo]:
        """Start servers that do not run yet; return when each serves or has failed.

        Args:
            servers: what each is to be, by the configuration files' names of variables.
            timeout_s: seconds after which to return all the same; 0 only begins. The action goes on, and
                the outcomes of what is not done say so.
            on_progress: called with each change of a server.

        Returns:
            One outcome for each, in order.
        """
        call = core.start(servers, timeout_s=timeout_s, on_progress=on_progress)
        return self.call(call, on_progress)["outcomes"]

    def stop(
        self, ids: Ids, *, timeout_s: float = ACTION_S, on_progress: OnProgress | None = None
    ) -> list[OutcomeInfo]:
        """Stop servers; return when each is gone. Stopping again ends the requests that still run.

        Args:
            ids: the servers', or ``"all"``.
            timeout_s: see :meth:`start`.
            on_progress: see :meth:`start`.

        Returns:
            One outcome for each id that is named, in order; one for each server for ``"all"``.
        """
        call = core.command("stop", ids, timeout_s=timeout_s, on_progress=on_progress)
        return self.call(call, on_progress)["outcomes"]

    def restart(
        self, ids: Ids, *, timeout_s: float = ACTION_S, on_progress: OnProgress | None = None
    ) -> list[OutcomeInfo]:
        """Stop and start servers, which keep their ids and ports; see :meth:`stop`."""
        call = core.command("restart", ids, timeout_s=timeout_s, on_progress=on_progress)
        return self.call(call, on_progress)["outcomes"]

    def drain(
        self, ids: Ids, *, timeout_s: float = ACTION_S, on_progress: OnProgress | None = None
    ) -> list[OutcomeInfo]:
        """Let servers finish what they have and take no more; return when they are idle; see :meth:`stop`."""
        call = core.command("drain", ids, timeout_s=timeout_s, on_progress=on_progress)
        return self.call(call, on_progress)["outcomes"]

    def undrain(
        self, ids: Ids, *, timeout_s: float = ACTION_S, on_progress: OnProgress | None = None
    ) -> list[OutcomeInfo]:
        """Let drained servers accept again; see :meth:`stop`."""
        call = core.command("undrain", ids, timeout_s=timeout_s, on_progress=on_progress)
        return self.call(call, on_progress)["outcomes"]

    def reload(
        self,
        config_file: Path | None = None,
        *,
        force: bool = False,
        timeout_s: float = ACTION_S,
        on_progress: OnProgress | None = None,
    ) -> list[OutcomeInfo]:
        """Have the configuration read again, and the servers made what it says; unchanged ones go on.

        Args:
            config_file: a global file in place of the one that the supervisor was started with.
            force: stop every server that is not configured, those too that were asked for one by one.
            timeout_s: see :meth:`start`.
            on_progress: see :meth:`start`.

        Returns:
            One outcome for each server that was stopped or is configured, and for each bad file.
        """
        call = core.reload(config_file, force=force, timeout_s=timeout_s, on_progress=on_progress)
        return self.call(call, on_progress)["outcomes"]

    def end(self, *, timeout_s: float = ACTION_S) -> None:
        """Have the supervisor stop all servers and end; return when it has.

        Raises:
            ControlError: it is still there after ``timeout_s`` seconds (TIMED_OUT).
        """
        self.call(core.END)
        deadline = time.monotonic() + timeout_s
        try:
            while self._receive(deadline):
                pass
        except TimeoutError as exc:
            raise core.still_there(timeout_s) from exc
        except ConnectionResetError:
            return

    def call(self, call: Call[_Result], on_progress: OnProgress | None = None) -> _Result:
        """Carry out any call, such as one that this class has no method for."""
        self._last_id += 1
        exchange = PendingCall(call, self._last_id)
        deadline = time.monotonic() + call.wait_s
        with exchange.errors():
            self._send(exchange.request, deadline)
        while exchange.result is None:
            with exchange.errors():
                line = self._next_line(deadline)
            step = exchange.feed(line)
            if step is not None and on_progress is not None:
                on_progress(step)
        return exchange.result

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
