"""The blocking client, on the standard library alone."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Self, TypeAlias, TypeVar

from stapsrv.control.protocol.jsonrpc import (
    MAX_REPLY_BYTES,
    Code,
    LineBuffer,
    Progress,
    Reply,
    Request,
    ScriptProgress,
    Update,
    decode_answer,
    encode_request,
)
from stapsrv.control.protocol.live_fields import UpdateInfo
from stapsrv.control.protocol.schema import (
    ActionInfo,
    EmptyInfo,
    HelloInfo,
    OutcomeInfo,
    ScriptHistoryInfo,
    ScriptProgressInfo,
    ScriptReportInfo,
    ServerSpecInfo,
)
from stapsrv.control.protocol.status_fields import ServerInfo, SupervisorInfo
from stapsrv.control.protocol.validation import ShapeError, checked
from stapsrv.errors import ControlError, StapsrvError
from stapsrv.system.unix_socket import address_of_socket, peer_uid

# For an answer that needs no waiting, however busy the supervisor is.
REPLY_S = 10.0
# For a check of many scripts: a day.
CHECK_S = 86_400.0
# For an action: a drain waits for compiles, which may take ten minutes and queue for five.
ACTION_S = 900.0

# Without a word from a watch: a supervisor that is there says something every quarter of that.
SILENCE_S = 60.0

_READ_BYTES = 65_536
_TIMEVAL = struct.Struct("ll")

Command: TypeAlias = Literal["stop", "restart", "drain", "undrain"]

# Called with each change of a server; the result is ignored.
OnProgress: TypeAlias = Callable[[ServerInfo], object]

# Called with each script that has been checked; the result is ignored.
OnScript: TypeAlias = Callable[[ScriptProgressInfo], object]

_Result = TypeVar("_Result")


class SupervisorNotRunning(StapsrvError):
    """There is no socket, or nobody listens on it: a killed supervisor leaves its file behind."""


class SyncControlClient:
    """A connection to one supervisor, made within ``timeout_s``, for one call at a time and one thread.

    A ``with`` block closes it. All requests raise ControlError as :meth:`call` does.

    Raises:
        SupervisorNotRunning: nobody listens there.
        ControlError: this user may not connect, or who listens is neither root nor the owner of the socket's
            directory (NOT_PERMITTED), or it took too long (TIMED_OUT).

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
            with address_of_socket(path) as address:
                self._socket.connect(address)
            _check_listener(self._socket, path)
        except BaseException as exc:
            self._socket.close()
            if isinstance(exc, OSError):
                raise connect_error(exc, path) from exc
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; running commands go on."""
        self._socket.close()

    def hello(self) -> HelloInfo:
        """Return who answers, the protocol version, and what this user may do."""
        return self.call("hello", {}, HelloInfo)

    def status(self) -> SupervisorInfo:
        """Return the status of the supervisor and all its servers."""
        return self.call("status", {}, SupervisorInfo)

    def watch(self, *, timeout_s: float | None = None) -> Iterator[UpdateInfo]:
        """Yield the supervisor's state, then each change of it, for ``timeout_s`` seconds; by default always.

        :func:`stapsrv.control.protocol.live_fields.updated` puts them together. Who takes them slowly gets
        fewer and larger ones. Raises ControlError as :meth:`call` does, also where the supervisor falls
        silent (TIMED_OUT).
        """
        self._last_id += 1
        with _call_errors("watch", REPLY_S):
            request = Request(self._last_id, "watch", {"timeout_s": timeout_s})
            self._send(encode_request(request), time.monotonic() + REPLY_S)
        while True:
            with _call_errors("watch", SILENCE_S):
                line = self._next_line(time.monotonic() + SILENCE_S)
            message = decode_answer(line)
            if isinstance(message, Update):
                if message.id == self._last_id:
                    yield _checked(message.update, UpdateInfo, "params.update")
            elif isinstance(message, Reply) and message.id in {self._last_id, None}:
                if message.error is not None:
                    raise message.error
                return

    def interrupt(self) -> None:
        """End the call that another thread waits for, with a ControlError there (LOST)."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def start(
        self,
        servers: Sequence[ServerSpecInfo],
        *,
        timeout_s: float = ACTION_S,
        on_progress: OnProgress | None = None,
    ) -> list[OutcomeInfo]:
        """Start servers that do not run yet; return one outcome for each, in order.

        Each of ``servers`` has its settings by the configuration files' names of variables. Returns when each
        serves or has failed, or after ``timeout_s`` seconds: the action goes on then, and the outcomes say
        what is not done. With 0 it only begins. ``on_progress`` is called with each change of a server.
        """
        return self._act("start", {"servers": list(servers)}, timeout_s, on_progress)

    def command(
        self,
        command: Command,
        ids: Sequence[int] | Literal["all"],
        *,
        timeout_s: float = ACTION_S,
        on_progress: OnProgress | None = None,
    ) -> list[OutcomeInfo]:
        """Stop, restart, drain or undrain servers; return one outcome for each id, in order, when it is done.

        A stop is done when the server is gone, a drain when it is idle: it finishes its requests and takes no
        more until it is undrained. Stopping a stopping server ends its requests; a restarted one keeps its id
        and port. For ``"all"`` there is one outcome for each server there is. See :meth:`start` for the rest.
        """
        return self._act(command, {"ids": ids if ids == "all" else list(ids)}, timeout_s, on_progress)

    def reload(
        self,
        config_file: Path | None = None,
        *,
        force: bool = False,
        timeout_s: float = ACTION_S,
        on_progress: OnProgress | None = None,
    ) -> list[OutcomeInfo]:
        """Have the configuration read again and applied; unchanged servers go on. See :meth:`start`.

        ``config_file``, an absolute path, replaces the supervisor's global file. There is one outcome for
        each server that was stopped or is configured, and for each bad file. With ``force`` all servers stop,
        and the supervisor begins anew, with all that the files say: one outcome for each that was stopped.
        """
        path = None if config_file is None else str(config_file)
        return self._act("reload", {"config_file": path, "force": force}, timeout_s, on_progress)

    def check_scripts(
        self, releases: Sequence[str], *, changed: bool, on_script: OnScript | None = None
    ) -> ScriptReportInfo:
        """Have all scripts compiled for all releases, or those named; it ends with the connection.

        With ``changed`` only what is not known already. ``on_script`` is called with each result.
        """
        params: dict[str, object] = {"changed": changed, "progress": True}
        if releases:
            params["releases"] = list(releases)
        return self.call("check_scripts", params, ScriptReportInfo, wait_s=CHECK_S, on_script=on_script)

    def script_history(self, name: str) -> ScriptHistoryInfo:
        """Return what is remembered of the scripts of a name."""
        return self.call("script_history", {"name": name}, ScriptHistoryInfo)

    def end(self, *, timeout_s: float = ACTION_S) -> None:
        """Have the supervisor stop all servers and end; return when it has.

        Raises:
            ControlError: it is still there after ``timeout_s`` seconds (TIMED_OUT), or as for :meth:`call`.
        """
        self.call("end", {}, EmptyInfo)
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

    def call(
        self,
        method: str,
        params: dict[str, object],
        shape: type[_Result],
        *,
        wait_s: float = REPLY_S,
        on_progress: OnProgress | None = None,
        on_script: OnScript | None = None,
    ) -> _Result:
        """Make any call; return its result, which has ``shape``. Late answers to other calls are ignored.

        Raises:
            ControlError: the supervisor refuses the call, its answer is invalid (INTERNAL_ERROR), does not
                come in time (TIMED_OUT), or the connection ends before it (LOST).
        """
        self._last_id += 1
        deadline = time.monotonic() + wait_s
        with _call_errors(method, wait_s):
            self._send(encode_request(Request(self._last_id, method, params)), deadline)
        while True:
            with _call_errors(method, wait_s):
                line = self._next_line(deadline)
            message = decode_answer(line)
            if isinstance(message, ScriptProgress):
                if message.id == self._last_id and on_script is not None:
                    on_script(_checked(message.script, ScriptProgressInfo, "params.script"))
            elif isinstance(message, Progress):
                if message.id == self._last_id:
                    server = _checked(message.server, ServerInfo, "params.server")
                    if on_progress is not None:
                        on_progress(server)
            elif isinstance(message, Update):
                continue
            elif message.error is not None and message.id in {self._last_id, None}:
                raise message.error
            elif message.id == self._last_id:
                return _checked(message.result, shape, "result")

    def _act(
        self, method: str, params: dict[str, object], timeout_s: float, on_progress: OnProgress | None
    ) -> list[OutcomeInfo]:
        params |= {"timeout_s": timeout_s, "progress": on_progress is not None}
        # A bit longer than the supervisor waits: its answer says more than silence.
        wait_s = timeout_s + REPLY_S
        return self.call(method, params, ActionInfo, wait_s=wait_s, on_progress=on_progress)["outcomes"]

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


def _check_listener(connection: socket.socket, path: Path) -> None:
    # Root's is a service manager, which listens for the supervisor.
    if peer_uid(connection) not in {0, path.parent.stat().st_uid}:
        problem = f"control socket {path}: somebody else listens than the owner of its directory"
        raise ControlError(problem, code=Code.NOT_PERMITTED)


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


@contextlib.contextmanager
def _call_errors(method: str, wait_s: float) -> Iterator[None]:
    """Translate failures of the socket, but not those of ``on_progress``, within the block."""
    try:
        yield
    except TimeoutError as exc:
        raise ControlError(
            f"{method}: no answer from the supervisor within {wait_s:g} s", code=Code.TIMED_OUT
        ) from exc
    except OSError as exc:
        problem = f"the connection ended before the supervisor's answer ({exc.strerror or exc})"
        raise ControlError(f"{method}: {problem}", code=Code.LOST) from exc


def _checked(value: object, shape: type[_Result], name: str) -> _Result:
    try:
        return checked(value, shape, name=name, exact=False)
    except ShapeError as exc:
        raise ControlError(
            f"the supervisor's answer is not understood: {exc}", code=Code.INTERNAL_ERROR
        ) from exc


def _left_s(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
