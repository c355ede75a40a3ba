"""Pages over HTTP, and clients that misbehave."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream
from kit.client import reset_at_once
from kit.loops import every_loop
from kit.service import LogLines

from stapsrv.observe.http import HttpLimits, HttpRequest, HttpServer, Page, Send

pytestmark = [pytest.mark.anyio, every_loop]

PATIENT = HttpLimits(request_s=60, total_s=60)
LARGE = b"x" * 16_000_000
"""More than the kernel takes of an answer that nobody reads."""


class Server:
    def __init__(self, port: int, lines: LogLines) -> None:
        self.port = port
        self.lines = lines

    async def connect(self) -> SocketStream:
        return await anyio.connect_tcp("127.0.0.1", self.port)

    async def ask(self, request: bytes) -> bytes:
        """Send a request, and return all that comes."""
        async with await self.connect() as stream:
            await stream.send(request)
            return await read_all(stream)

    async def get(self, path: str) -> tuple[int, bytes]:
        answer = await self.ask(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body


async def read_all(stream: SocketStream) -> bytes:
    data = b""
    with contextlib.suppress(anyio.EndOfStream):
        while True:
            data += await stream.receive()
    return data


async def find(request: HttpRequest) -> Page:
    path = request.path
    if path == "/form":
        return Page.of_lines(HTTPStatus.OK, f"{request.method} {request.body.decode()}")
    if path == "/stream":
        return Page(HTTPStatus.OK, b"", stream=count)
    if path == "/broken":
        return Page(HTTPStatus.OK, b"", stream=fail)
    if path == "/crash":
        raise ZeroDivisionError
    if path == "/large":
        return Page(HTTPStatus.OK, LARGE)
    return Page.of_lines(HTTPStatus.OK, f"this is {path}")


async def count(send: Send) -> None:
    for number in range(3):
        await send(b"%d" % number)


async def fail(send: Send) -> None:
    await send(b"so far")
    raise ZeroDivisionError


@contextlib.asynccontextmanager
async def serving(
    limits: HttpLimits = PATIENT, find: Callable[[HttpRequest], Awaitable[Page]] = find
) -> AsyncIterator[Server]:
    lines = LogLines()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener, anyio.fail_after(60):
        listener.setblocking(False)
        server = HttpServer(listener, find, log=lines.log, forms={"/form"}, limits=limits)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            yield Server(listener.getsockname()[1], lines)
            tasks.cancel_scope.cancel()


async def test_a_page():
    async with serving() as server:
        answer = await server.ask(b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 11\r\n"
        b"Cache-Control: no-store\r\nConnection: close\r\n\r\nthis is /a\n"
    )


async def test_head_request_gets_headers_alone():
    async with serving() as server:
        answer = await server.ask(b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"Content-Length: 11\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01 a TLS handshake\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 9000, 431),
    ],
)
async def test_requests_of_all_kinds(request_, status):
    async with serving() as server:
        assert int((await server.ask(request_)).split()[1]) == status
        assert (await server.get("/a"))[0] == 200
        assert server.lines.entries == []


async def test_a_request_may_come_byte_by_byte():
    async with serving() as server, await server.connect() as stream:
        for byte in b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n":
            await stream.send(bytes([byte]))
        assert (await read_all(stream)).endswith(b"\r\n\r\nthis is /a\n")


async def test_a_page_that_fails_is_an_answer_and_an_entry_in_the_log():
    async with serving() as server:
        assert (await server.get("/crash"))[0] == 500
        assert server.lines.events() == ["metrics.crashed"]
        assert (await server.get("/a"))[0] == 200


async def test_client_beyond_the_limit_waits_until_another_leaves():
    async with (
        serving(HttpLimits(connections=2, request_s=60, total_s=60)) as server,
        await server.connect() as first,
        await server.connect(),
        await server.connect() as third,
    ):
        await third.send(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        answered = anyio.Event()

        async def read() -> None:
            assert (await read_all(third)).startswith(b"HTTP/1.1 200 ")
            answered.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            # The request is there: where there is room, each turn of the loop takes it on by a step of few.
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            assert not answered.is_set()
            await first.aclose()


async def test_silent_client_gets_408_and_is_disconnected():
    async with serving(HttpLimits(connections=2, request_s=1.0, total_s=60)) as server:
        silent = [await server.connect() for _ in range(2)]
        assert (await server.get("/a"))[0] == 200
        for stream in silent:
            assert (await read_all(stream)).startswith(b"HTTP/1.1 408 ")
            await stream.aclose()


async def test_client_that_reads_nothing_is_disconnected():
    async with serving(HttpLimits(connections=1, request_s=60, total_s=1.5)) as server:
        async with await server.connect() as greedy:
            await greedy.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await server.get("/a"))[0] == 200
        assert server.lines.entries == []


async def test_a_client_that_leaves_early_is_no_error():
    async with serving(HttpLimits(connections=1, request_s=60, total_s=60)) as server:
        for words in (b"", b"GET /", b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"):
            async with await server.connect() as stream:
                await stream.send(words or b"\r\n")
        assert (await server.get("/a"))[0] == 200
        assert server.lines.entries == []


async def test_a_client_that_resets_before_it_is_accepted_is_no_error():
    async with serving() as server:
        for _ in range(20):
            reset_at_once(server.port)
        assert (await server.get("/a"))[0] == 200
        assert server.lines.entries == []


async def test_clients_that_come_all_at_once_stay_within_the_limit():
    """They wait in the kernel's queue before the server begins, so that it is ready each time."""
    running, most, crowd = 0, 0, 60

    async def find_slowly(_request: HttpRequest) -> Page:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        running -= 1
        return Page.of_lines(HTTPStatus.OK, "")

    limits = HttpLimits(connections=4, request_s=60, total_s=60)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener, anyio.fail_after(60):
        listener.setblocking(False)
        async with contextlib.AsyncExitStack() as clients, anyio.create_task_group() as tasks:
            streams = [
                await clients.enter_async_context(await anyio.connect_tcp(*listener.getsockname()))
                for _ in range(crowd)
            ]
            for stream in streams:
                await stream.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            server = HttpServer(listener, find_slowly, log=LogLines().log, limits=limits)
            tasks.start_soon(server.serve)
            answers = [await read_all(stream) for stream in streams]
            tasks.cancel_scope.cancel()
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert most == 4


async def test_form_is_taken_where_one_is_expected_and_within_its_bound():
    async with serving(HttpLimits(form_bytes=10, request_s=60, total_s=60)) as server:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
        assert (await server.ask(head % (b"/form", 5, b"a=b+c"))).endswith(b"\r\n\r\nPOST a=b+c\n")
        assert b" 413 " in await server.ask(head % (b"/form", 11, b"x" * 11))
        answer = await server.ask(b"PUT /form HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 405 " in answer
        assert b"\r\nAllow: GET, HEAD, POST\r\n" in answer


async def test_stream_is_sent_piece_by_piece_and_ended():
    async with serving() as server:
        answer = await server.ask(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n1\r\n0\r\n1\r\n1\r\n1\r\n2\r\n0\r\n\r\n")
        head = await server.ask(b"HEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head.endswith(b"\r\n\r\n")
        assert server.lines.entries == []


async def test_streams_take_no_room_of_others_and_end_with_their_client():
    following = 0
    gone = anyio.Event()

    async def follow(send: Send) -> None:
        nonlocal following
        following += 1
        try:
            await send(b"begun")
            await anyio.sleep_forever()
        finally:
            following -= 1
            if not following:
                gone.set()

    async def find_stream(request: HttpRequest) -> Page:
        return Page(HTTPStatus.OK, b"", stream=follow if request.path == "/events" else None)

    async with serving(HttpLimits(connections=1, request_s=60, total_s=60), find_stream) as server:
        async with contextlib.AsyncExitStack() as clients:
            for _ in range(3):
                stream = await clients.enter_async_context(await server.connect())
                await stream.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
                while b"begun" not in await stream.receive():
                    pass
            assert (await server.get("/"))[0] == 200
            assert following == 3
        await gone.wait()
        assert server.lines.entries == []


async def test_follower_that_reads_nothing_is_ended():
    ended = anyio.Event()

    async def flood(send: Send) -> None:
        try:
            while True:
                await send(LARGE)
        finally:
            ended.set()

    async def find_flood(_request: HttpRequest) -> Page:
        return Page(HTTPStatus.OK, b"", stream=flood)

    async with serving(HttpLimits(request_s=60, total_s=0.5), find_flood) as server:
        async with await server.connect() as stream:
            await stream.send(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            await ended.wait()
        assert server.lines.entries == []


async def test_stream_that_fails_is_an_entry_in_the_log():
    async with serving() as server:
        assert b"so far" in await server.ask(b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
        assert server.lines.events() == ["metrics.crashed"]
        assert (await server.get("/a"))[0] == 200
