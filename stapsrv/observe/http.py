"""A small HTTP server for pages that are asked for now and then: bounded in all that a client can stretch.

One request a connection, and a deadline for each. h11 parses; nothing here waits for anybody else's
work, and when there is no room, who comes waits in the kernel's queue.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import anyio
import attrs
import h11
from anyio.abc import SocketStream, TaskGroup
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.supervisor.server.accept import accept_forever
from stapsrv.system.streams import adopt

TEXT = "text/plain; charset=utf-8"

_READ_BYTES = 4096


@attrs.frozen(kw_only=True)
class HttpLimits:
    """What a client can have: connections at once, bytes of a request's head, seconds for that and in all."""

    connections: int = 16
    request_bytes: int = 8192
    request_s: float = 2.0
    total_s: float = 5.0


@attrs.frozen
class Page:
    """An answer."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT

    @classmethod
    def of_lines(cls, status: HTTPStatus, *lines: str) -> Page:
        """Return a page of plain text."""
        return cls(status, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))


@attrs.define(eq=False)
class HttpServer:
    """Serves pages that ``find`` returns for paths without query; may be started again after a failure."""

    # Its owner closes it.
    _listener: socket.socket
    _find: Callable[[str], Awaitable[Page]]
    _log: Log = attrs.field(kw_only=True)
    _limits: HttpLimits = attrs.field(kw_only=True, factory=HttpLimits)

    async def serve(self) -> None:
        """Accept and answer until cancelled; raise OSError, in a group, if the listener failed."""
        room = anyio.Semaphore(self._limits.connections)
        async with anyio.create_task_group() as tasks:
            while True:
                # While there is none, further clients wait in the kernel's queue.
                await room.acquire()
                await self._accept(tasks, room)

    async def _accept(self, tasks: TaskGroup, room: anyio.Semaphore) -> None:
        """Accept one connection, which releases ``room`` when it ends."""
        with anyio.CancelScope() as accepting:

            def take(connection: socket.socket, _address: object) -> None:
                tasks.start_soon(self._run, connection, room)
                accepting.cancel()

            await accept_forever(
                self._listener,
                take,
                exhausted=lambda reason: self._log.warning("metrics.exhausted", reason=reason),
            )

    async def _run(self, connection: socket.socket, room: anyio.Semaphore) -> None:
        try:
            with anyio.move_on_after(self._limits.total_s):
                async with await adopt(connection) as stream:
                    await self._converse(stream)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError):
            # It went away, which is its own affair.
            return
        except Exception:  # noqa: BLE001 - the one net below a connection
            self._log.exception("metrics.crashed")
        finally:
            room.release()

    async def _converse(self, stream: SocketStream) -> None:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.request_bytes)
        request = None
        try:
            with anyio.move_on_after(self._limits.request_s):
                request = await _receive(stream, parser)
            page = (
                Page.of_lines(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time")
                if request is None
                else await self._answer(request)
            )
        except h11.RemoteProtocolError as exc:
            page = Page.of_lines(HTTPStatus(exc.error_status_hint), str(exc))
        is_head = request is not None and request.method == b"HEAD"
        await _send(stream, parser, page, body=b"" if is_head else page.body)

    async def _answer(self, request: h11.Request) -> Page:
        if request.method not in {b"GET", b"HEAD"}:
            return Page.of_lines(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are of use here")
        try:
            return await self._find(request.target.partition(b"?")[0].decode("ascii"))
        except Exception:  # noqa: BLE001 - a page that fails is an answer, and one entry in the log
            self._log.exception("metrics.crashed")
            return Page.of_lines(HTTPStatus.INTERNAL_SERVER_ERROR, "an error of this program; see its log")


async def _receive(stream: SocketStream, parser: h11.Connection) -> h11.Request:
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            raise anyio.EndOfStream
        parser.receive_data(await stream.receive(_READ_BYTES))


async def _send(stream: SocketStream, parser: h11.Connection, page: Page, *, body: bytes) -> None:
    headers = [
        ("Content-Type", page.content_type),
        ("Content-Length", str(len(page.body))),
        # Each page holds for one moment only.
        ("Cache-Control", "no-store"),
        # One request each: a client that idles takes no room from others.
        ("Connection", "close"),
    ]
    if page.status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append(("Allow", "GET, HEAD"))
    response = h11.Response(status_code=page.status, headers=headers, reason=page.status.phrase)
    events = (response, h11.Data(body), h11.EndOfMessage())
    await stream.send(b"".join(parser.send(event) or b"" for event in events))
