"""A real uvicorn on a socket, a client for it, and statements that stop where a test wants them.

The server runs in the test's own event loop, so that a test can hold a request at any point with an
`anyio.Event` and look at the pool meanwhile.
"""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiosqlite
import anyio
import anyio.to_thread
import uvicorn
from anyio.lowlevel import checkpoint
from fastapi.responses import PlainTextResponse

import poolkit.drivers.aiosqlite
from poolkit import Pool

N = 3
SQLitePool = Pool[aiosqlite.Connection]


def create_pool(database: Path, **options: Any) -> SQLitePool:
    """Return a pool of the driver under test."""
    return poolkit.drivers.aiosqlite.create_pool(database, **options)


# -- the server ----------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """uvicorn, without its signal handlers; tells when it listens."""

    def __init__(self, app: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app, http="h11", lifespan="on", log_config=None, timeout_graceful_shutdown=10
            )
        )
        self.ready = anyio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Leave the signals to pytest."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell that the lifespan has run and the sockets are open, or that this has failed."""
        try:
            await super().startup(sockets)
        except SystemExit as failed:
            raise RuntimeError("the application did not start: its log says why") from failed
        finally:
            self.ready.set()


class Answer(NamedTuple):
    """What the server has answered."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.text)


class Client:
    """A client of a server in this event loop; each request is a connection of its own."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port

    async def get(self, path: str) -> Answer:
        """Send a GET and read the whole answer."""
        return await self.request("GET", path)

    async def request(self, method: str, path: str) -> Answer:
        """Send a request and read the whole answer."""
        return await anyio.to_thread.run_sync(fetch, self.port, method, path)

    @contextlib.asynccontextmanager
    async def cut(self, path: str) -> AsyncIterator[asyncio.StreamReader]:
        """Send a GET; at the end of the block vanish, and wait until the server has seen it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        await writer.drain()
        yield reader
        writer.transport.abort()
        await until(lambda: not self.server.server_state.connections)


def fetch(port: int, method: str, path: str) -> Answer:
    """Send a request, in a thread."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as conn:
        conn.request(method, path)
        response = conn.getresponse()
        return Answer(response.status, response.read().decode())


@contextlib.asynccontextmanager
async def serve(app: Any) -> AsyncIterator[Client]:
    """Run an application on a socket, its lifespan included."""
    server = Server(app)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve([listener]))
        with anyio.fail_after(10):
            await server.ready.wait()
        if not server.started:
            await task
        assert server.started, "the application did not start"
        try:
            yield Client(server, listener.getsockname()[1])
        finally:
            server.should_exit = True
            await task


async def leave_amid(app: Any, path: str) -> None:
    """Ask an application, take the first part of its body, and leave while it sends the second."""
    parts, left = 0, anyio.Event()

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal parts
        parts += message["type"] == "http.response.body"
        if parts == 2:
            left.set()
            await anyio.sleep_forever()

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    with anyio.fail_after(10):
        await app({**scope, "app": app}, receive, send)


class Watch:
    """Middleware that notes what is leased at each message of each response."""

    def __init__(self, app: Any, pool: SQLitePool, look: Callable[[], Any] | None = None) -> None:
        self.app = app
        self.look = look or (lambda: pool.stats().leased)
        self.seen: list[tuple[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve."""

        async def watched(message: Any) -> None:
            if message["type"].startswith("http."):
                self.seen.append((message["type"].removeprefix("http.response."), self.look()))
            await send(message)

        await self.app(scope, receive, watched)


class Impatient:
    """Middleware that cancels a request by a time limit, which passes when the test says so."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.scopes: list[anyio.CancelScope] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve within the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with anyio.move_on_after(60) as limit:
            self.scopes.append(limit)
            await self.app(scope, receive, send)
        if limit.cancelled_caught:
            await PlainTextResponse("too late", 504)(scope, receive, send)

    def time_is_up(self) -> None:
        """Have the limit of every request pass now."""
        for scope in self.scopes:
            scope.deadline = anyio.current_time()


# -- waiting -------------------------------------------------------------------------------------


async def until(condition: Callable[[], object]) -> None:
    """Wait for what no event tells: sockets, and the threads of SQLite."""
    with anyio.fail_after(10):
        while not condition():
            await checkpoint()


async def quiet(pool: SQLitePool) -> None:
    """Wait until nothing is being cleaned or closed: what was given back is idle, or gone."""
    await until(lambda: pool.stats().recycling + pool.stats().closing == 0)


async def nothing_is_lost(pool: SQLitePool) -> None:
    """Check that every slot can be had, all at once, and that nobody has left anything behind."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(N):
            conn = await stack.enter_async_context(pool.acquire())
            assert not conn.in_transaction
        assert pool.stats().leased == pool.stats().size == N
    await quiet(pool)
    stats = pool.stats()
    assert (stats.idle, stats.leased, stats.size, stats.waiting) == (N, 0, N, 0)


class Stop:
    """SQL functions for ``on_connect``, by which a test knows, and decides, where a statement is.

    ``began()`` tells that it runs; `ENDLESS` then goes on until it is interrupted. ``gate()`` waits
    in the thread of the connection until the test opens it.
    """

    ENDLESS = (
        "WITH RECURSIVE c (n) AS (SELECT began() UNION ALL SELECT n + 1 FROM c) "
        "SELECT count(*) FROM c"
    )
    GATED = "SELECT gate()"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again: nothing has begun, and the gate is shut."""
        self.began = anyio.Event()
        self.go = threading.Event()

    async def install(self, conn: aiosqlite.Connection) -> None:
        """Register the functions."""
        loop = asyncio.get_running_loop()

        def began() -> int:
            loop.call_soon_threadsafe(self.began.set)
            return 1

        def gate() -> int:
            began()
            return int(self.go.wait(10))

        await conn.create_function("began", 0, began)
        await conn.create_function("gate", 0, gate)
