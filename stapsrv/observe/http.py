"""A small HTTP server for pages that are asked for now and then: bounded in all that a client can stretch.

One request a connection, and a deadline for each. h11 parses; nothing here waits for anybody else's
work, and when there is no room, who comes waits in the kernel's queue. A page that goes on as a stream takes
no room of others: who finds it bounds how many there are, and each of its pieces has a deadline.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from http import HTTPStatus
from typing import TypeAlias

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
    """The limits of clients: connections at once, bytes of a request, seconds for that and in all.

    Each piece of a stream has ``total_s`` seconds of its own.
    """

    connections: int = 16
    request_bytes: int = 8192
    form_bytes: int = 4096
    request_s: float = 2.0
    total_s: float = 5.0


@attrs.frozen(kw_only=True)
class HttpRequest:
    """A request that has arrived whole; names of headers are in lower case."""

    path: str  # without the query
    method: str = "GET"
    query: str = ""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b""


# Sends the next piece, and gives up on a client that does not take it.
Send: TypeAlias = Callable[[bytes], Awaitable[None]]


@attrs.frozen
class Page:
    """An answer."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()  # further ones
    # What goes on in place of the body, for as long as the client stays.
    stream: Callable[[Send], Awaitable[None]] | None = None

    @classmethod
    def of_lines(cls, status: HTTPStatus, *lines: str) -> Page:
        """Return a page of plain text."""
        return cls(status, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))


@attrs.define(eq=False)
class HttpServer:
    """Serves the pages that ``find`` returns; may be started again after a failure.

    Only paths of ``forms`` take a POST.
    """

    # Its owner closes it.
    _listener: socket.socket
    _find: Callable[[HttpRequest], Awaitable[Page]]
    _log: Log = attrs.field(kw_only=True)
    _forms: Collection[str] = attrs.field(kw_only=True, default=())
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
        with contextlib.ExitStack() as held:
            held.callback(room.release)
            try:
                with anyio.move_on_after(self._limits.total_s) as scope:
                    async with await adopt(connection) as stream:
                        parser = h11.Connection(
                            h11.SERVER, max_incomplete_event_size=self._limits.request_bytes
                        )
                        page = await self._converse(stream, parser)
                        if page is not None and page.stream is not None:
                            scope.deadline = math.inf
                            held.close()
                            await self._go_on(stream, parser, page.stream)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError):
                # It went away, which is its own affair.
                return
            except Exception:  # noqa: BLE001 - the one net below a connection
                self._log.exception("metrics.crashed")

    async def _converse(self, stream: SocketStream, parser: h11.Connection) -> Page | None:
        """Receive a request and answer it; returns a page whose stream has begun."""
        request = None
        try:
            with anyio.move_on_after(self._limits.request_s):
                request = await self._receive(stream, parser)
            page = (
                Page.of_lines(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time")
                if request is None
                else await self._answer(request)
            )
        except h11.RemoteProtocolError as exc:
            page = Page.of_lines(HTTPStatus(exc.error_status_hint), str(exc))
        is_head = request is not None and request.method == "HEAD"
        if page.stream is not None and not is_head:
            await stream.send(parser.send(_response(page)) or b"")
            return page
        events = (_response(page), h11.Data(b"" if is_head else page.body), h11.EndOfMessage())
        await stream.send(b"".join(parser.send(event) or b"" for event in events))
        return None

    async def _receive(self, stream: SocketStream, parser: h11.Connection) -> HttpRequest:
        head: HttpRequest | None = None
        body = b""
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                head = _head(event)
                if head.method != "POST" or head.path not in self._forms:
                    return head
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._limits.form_bytes:
                    raise h11.RemoteProtocolError(
                        "the form is too large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                    )
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return attrs.evolve(head, body=body)
            elif event is h11.NEED_DATA:
                parser.receive_data(await stream.receive(_READ_BYTES))
            else:
                raise anyio.EndOfStream

    async def _answer(self, request: HttpRequest) -> Page:
        if request.method not in {"GET", "HEAD"} and request.path not in self._forms:
            return _not_allowed("GET, HEAD")
        if request.method not in {"GET", "HEAD", "POST"}:
            return _not_allowed("GET, HEAD, POST")
        try:
            return await self._find(request)
        except Exception:  # noqa: BLE001 - a page that fails is an answer, and one entry in the log
            self._log.exception("metrics.crashed")
            return Page.of_lines(HTTPStatus.INTERNAL_SERVER_ERROR, "an error of this program; see its log")

    async def _go_on(
        self, stream: SocketStream, parser: h11.Connection, produce: Callable[[Send], Awaitable[None]]
    ) -> None:
        """Send what ``produce`` sends, until it ends or the client does."""

        async def send(data: bytes) -> None:
            with anyio.fail_after(self._limits.total_s):
                await stream.send(parser.send(h11.Data(data)) or b"")

        async def wait_gone(following: anyio.CancelScope) -> None:
            # It has said all: what comes is the end of the connection, or none of its business here.
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await stream.receive(1)
            following.cancel()

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait_gone, tasks.cancel_scope)
                await produce(send)
                with anyio.fail_after(self._limits.total_s):
                    await stream.send(parser.send(h11.EndOfMessage()) or b"")
                tasks.cancel_scope.cancel()
        except* (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            # A client that left, or that takes nothing: too slow to follow.
            pass


def _head(request: h11.Request) -> HttpRequest:
    path, _, query = request.target.decode("ascii").partition("?")
    return HttpRequest(
        path=path,
        method=request.method.decode("ascii"),
        query=query,
        headers={name.decode("ascii"): value.decode("latin-1") for name, value in request.headers},
    )


def _not_allowed(methods: str) -> Page:
    return attrs.evolve(
        Page.of_lines(
            HTTPStatus.METHOD_NOT_ALLOWED, f"only {methods.replace(', ', ' and ')} are of use here"
        ),
        headers=(("Allow", methods),),
    )


def _response(page: Page) -> h11.Response:
    headers = [("Content-Type", page.content_type)]
    if page.stream is None:
        headers.append(("Content-Length", str(len(page.body))))
    # Each page holds for one moment only, and there is one request each: a client that idles takes no room
    # from others.
    headers += [("Cache-Control", "no-store"), ("Connection", "close"), *page.headers]
    return h11.Response(status_code=page.status, headers=headers, reason=page.status.phrase)
