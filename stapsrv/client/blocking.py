"""Performs the steps of an exchange with plain sockets, each within its time."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time

from stapsrv.client.address import Address
from stapsrv.client.exchange import Close, Connect, Exchange, Receive, Send, Sleep, Step

_BLOCK_BYTES = 64 * 1024


def run(steps: Exchange) -> bytes:
    """Perform an exchange, and return what it returns or raise what it raises; the connection is closed."""
    connection = _Connection()
    with contextlib.closing(connection), contextlib.closing(steps):
        try:
            step = next(steps)
            while True:
                try:
                    received = connection.perform(step)
                except OSError as exc:
                    step = steps.throw(exc)
                else:
                    step = steps.send(received)
        except StopIteration as end:
            response: bytes = end.value
            return response


class _Connection:
    """The socket of one exchange, while there is one."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def perform(self, step: Step) -> bytes:
        match step.action:
            case Connect(address):
                self.close()
                self._socket = _connect(address, step.timeout_s)
            case Close():
                self.close()
            case Sleep():
                time.sleep(step.timeout_s)
            case Send(data):
                connected = self._connected(step.timeout_s)
                connected.sendall(data)
            case Receive():
                return self._connected(step.timeout_s).recv(_BLOCK_BYTES)
        return b""

    def _connected(self, timeout_s: float) -> socket.socket:
        if self._socket is None:
            raise ConnectionResetError
        self._socket.settimeout(timeout_s)
        return self._socket


def _connect(address: Address, timeout_s: float) -> socket.socket:
    """Connect to the first of a host's addresses that takes it, all within ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    failure: OSError = OSError(f"{address.host} has no address")
    for family, kind, protocol, _name, target in _resolve(address, timeout_s):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connected = socket.socket(family, kind, protocol)
        try:
            connected.settimeout(left_s)
            connected.connect(target)
        except OSError as exc:
            connected.close()
            failure = exc
        except BaseException:
            connected.close()
            raise
        else:
            return connected
    raise failure


def _resolve(address: Address, timeout_s: float) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    # The system's resolver has no deadline: a thread that hangs in it is left, and ends with the process.
    answers: queue.SimpleQueue[list[tuple[int, int, int, str, tuple[object, ...]]] | OSError] = (
        queue.SimpleQueue()
    )

    def ask() -> None:
        try:
            answers.put(list(socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)))
        except OSError as exc:
            answers.put(exc)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, OSError):
        raise answer
    return answer
