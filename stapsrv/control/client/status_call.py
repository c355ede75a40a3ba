"""Asks supervisors for their status, all at once: each is a user's own, and all have the same deadline.

Light, like :mod:`stapsrv.control.client.discovery`, which finds them: a plain ``status`` loads this.
"""

from __future__ import annotations

# Not socket, which spends more time on enums of its constants than all the rest of this module takes.
import _socket
import contextlib
import json
import select
import time
from collections.abc import Iterable
from pathlib import Path

from stapsrv.control.protocol.status_fields import SupervisorInfo
from stapsrv.control.protocol.validation import checked
from stapsrv.system.unix_socket import address_of_socket, peer_uid

_REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"status","params":{}}\n'
_READ_BYTES = 65_536
_POLL_S = 0.05
_MOST_ANSWER_BYTES = 16 * 1024 * 1024
# Codes of the control protocol.
_NOT_PERMITTED, _SHUTTING_DOWN = -32001, -32004


class StatusCall:
    """One supervisor that is asked; ``outcome`` is its status, or why there is none.

    FileNotFoundError and ConnectionRefusedError: no supervisor runs, or it is ending. PermissionError: this
    user may not ask it. Other errors: it runs and does not answer.
    """

    def __init__(self, path: Path, *, user: str, uid: int) -> None:
        self.path = path
        self.user = user
        self.uid = uid
        self.outcome: SupervisorInfo | Exception = TimeoutError("timed out")
        self._connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self._data = bytearray()

    def ask(self) -> int | None:
        """Send the question; return the descriptor that the answer comes from, or None if none will.

        Raises:
            BlockingIOError: too many wait to be heard there already; try again soon.
        """
        connection = self._connection
        try:
            connection.setblocking(False)  # noqa: FBT003 - positional in the standard library
            with address_of_socket(self.path) as address:
                connection.connect(address)
            # Root's is a service manager, which listens for this user's supervisor.
            if peer_uid(connection) not in {0, self.uid}:
                raise ConnectionRefusedError("it is another user's")
            connection.sendall(_REQUEST)
        except BlockingIOError:
            raise
        except OSError as exc:
            self._end(exc)
            return None
        return connection.fileno()

    def receive(self) -> bool:
        """Take what has come of the answer; return whether that was all."""
        try:
            more = self._connection.recv(_READ_BYTES)
            self._data += more
            if self._data.endswith(b"\n"):
                self._end(_status_in(bytes(self._data), self.user))
            elif not more or len(self._data) > _MOST_ANSWER_BYTES:
                self._end(ValueError("its answer has no end"))
            else:
                return False
        except BlockingIOError:
            return False
        except (OSError, ValueError) as exc:
            self._end(exc)
        return True

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def _end(self, outcome: SupervisorInfo | Exception) -> None:
        self.outcome = outcome
        self.close()


def answer_all(calls: Iterable[StatusCall], answer_s: float) -> None:
    """Ask all at once and wait for all answers together; one that does not come in time is a TimeoutError."""
    ends = time.monotonic() + answer_s
    readiness = select.poll()
    waiting: dict[int, StatusCall] = {}
    unasked = list(calls)
    with contextlib.ExitStack() as opened:
        for call in unasked:
            opened.callback(call.close)
        while True:
            for call in list(unasked):
                with contextlib.suppress(BlockingIOError):
                    descriptor = call.ask()
                    unasked.remove(call)
                    if descriptor is not None:
                        waiting[descriptor] = call
                        readiness.register(descriptor, select.POLLIN)
            left = ends - time.monotonic()
            if left <= 0 or not (unasked or waiting):
                return
            # No event says that a busy one listens again.
            for descriptor, _events in readiness.poll(min(left, _POLL_S) * 1000 if unasked else left * 1000):
                if waiting[descriptor].receive():
                    readiness.unregister(descriptor)
                    del waiting[descriptor]


def _status_in(line: bytes, user: str) -> SupervisorInfo:
    """Return the status in an answer, or raise the error that it is."""
    try:
        answer = json.loads(line)
        error = answer.get("error")
        if error is None:
            # What supervisors of other users say must not make root's command stumble.
            info = checked(answer["result"], SupervisorInfo, name="result", exact=False)
            named = {info["user"], *(server["settings"].get("USER") or user for server in info["servers"])}
        else:
            code, reason = error["code"], error["message"]
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as exc:
        raise ValueError("its answer cannot be understood") from exc
    if error is None:
        # Commands go to the user that it names, and start again what it says of its servers.
        if named != {user}:
            raise ValueError("it speaks for another user")
        return info
    if code == _NOT_PERMITTED:
        raise PermissionError
    if code == _SHUTTING_DOWN:
        raise ConnectionRefusedError
    raise ValueError(reason)
