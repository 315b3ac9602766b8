"""`cancel_on_disconnect`: what becomes of a request whose client has left."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import aiosqlite
import anyio
import anyio.from_thread
import asyncpg
import pytest
from anyio.lowlevel import checkpoint
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, UploadFile, WebSocket
from fastapi import __version__ as fastapi_version
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect

import poolkit.drivers.asyncpg
import poolkit.fastapi
from poolkit import Pool, PoolConfigError
from poolkit.fastapi import Connection, Transaction, cancel_on_disconnect
from poolkit.fastapi._applications import VISIT
from poolkit.testing import check_pool
from tests.effort import SHARE
from tests.integrations.live import (
    Client,
    N,
    SQLitePool,
    Stop,
    create_pool,
    leave_amid,
    nothing_is_lost,
    serve,
    until,
)
from tests.integrations.test_fastapi_cancellation import Outside, SlowToCommit
from tests.postgres import Postgres

CANCELS: Any = {"dependencies": [Depends(cancel_on_disconnect)]}
#: Seconds within which it has to happen.
SOON = 0.5

newest = pytest.mark.skipif(
    tuple(map(int, fastapi_version.split(".")[:2])) < (0, 165),
    reason="FastAPI shields the ends of dependencies, in 0.165",
)


class Steps:
    """What endpoints have come to."""

    def __init__(self) -> None:
        self.began, self.ended = anyio.Event(), anyio.Event()
        self.go = anyio.Event()
        self.outcome = ""

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note how a block ends."""
        self.began.set()
        try:
            yield
            self.outcome = "done"
        except BaseException as error:
            self.outcome = type(error).__name__
            raise
        finally:
            self.ended.set()


@pytest.fixture
async def steps() -> Steps:
    """Return nothing yet."""
    return Steps()


@pytest.fixture
async def stop() -> Stop:
    """Return the functions by which a statement stops."""
    return Stop()


@pytest.fixture
def pool(database: Any, stop: Stop) -> SQLitePool:
    """Return a pool whose connections have those functions."""
    return create_pool(database, min_size=N, max_size=N, on_connect=stop.install)


@pytest.fixture
def plain_pool(database: Any) -> SQLitePool:
    """Return a pool for tests that run on no event loop."""
    return create_pool(database, min_size=N, max_size=N)


async def has_ended(steps: Steps) -> str:
    """Wait for the endpoint, and return what has become of it."""
    with anyio.fail_after(10):
        await steps.ended.wait()
    return steps.outcome


async def leave(client: Client, path: str, began: anyio.Event) -> None:
    """Send a request, and leave when its endpoint is at work."""
    async with client.cut(path):
        with anyio.fail_after(10):
            await began.wait()


# -- what is cancelled ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["route", "router", "application", "parameter"])
async def test_endpoint_is_cancelled_when_its_client_leaves(
    pool: SQLitePool, steps: Steps, where: str
) -> None:
    """Wherever the dependency stands."""
    lifespan = poolkit.fastapi.lifespan(pool)
    app = FastAPI(lifespan=lifespan, **(CANCELS if where == "application" else {}))

    @app.get("/", **(CANCELS if where == "route" else {}))
    async def endpoint() -> None:
        with steps.noted():
            await anyio.sleep_forever()

    if where == "parameter":

        @app.get("/parameter")
        async def with_parameter(_: Annotated[None, Depends(cancel_on_disconnect)]) -> None:
            await endpoint()

    if where == "router":
        outer = FastAPI(lifespan=lifespan)
        outer.include_router(app.router, prefix="/router", **CANCELS)
        app = outer
    path = {"parameter": "/parameter", "router": "/router/"}.get(where, "/")
    async with serve(app) as client:
        await leave(client, path, steps.began)
        assert await has_ended(steps) == "CancelledError"


async def test_endpoint_without_it_runs_to_its_end(pool: SQLitePool, steps: Steps) -> None:
    """Also beside others that have it."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/with", **CANCELS)
    async def with_it() -> None:
        """Be there."""

    @app.get("/without")
    async def without() -> None:
        with steps.noted():
            await steps.go.wait()

    async with serve(app) as client:
        await leave(client, "/without", steps.began)
        assert not steps.ended.is_set()
        steps.go.set()
        assert await has_ended(steps) == "done"


async def test_query_of_a_client_that_leaves_is_interrupted(
    pool: SQLitePool, stop: Stop, outside: Outside
) -> None:
    """And its connection serves the next one; what it has written in a transaction is undone."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.get("/query")
    async def query(conn: Connection[aiosqlite.Connection]) -> None:
        await conn.execute(Stop.ENDLESS)

    @app.get("/write")
    async def write(conn: Transaction[aiosqlite.Connection]) -> None:
        await conn.execute("INSERT INTO items (name) VALUES ('hat')")
        await conn.execute(Stop.ENDLESS)

    async with serve(app) as client:
        for path in ("/query", "/write"):
            await leave(client, path, stop.began)
            await nothing_is_lost(pool)
            stop.reset()
        assert outside("SELECT * FROM items") == []
        outside("BEGIN IMMEDIATE")


async def test_client_that_leaves_leaves_the_line(pool: SQLitePool) -> None:
    """Nobody serves who has gone: that is half of an overload."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.get("/")
    async def endpoint(conn: Connection[aiosqlite.Connection]) -> None:
        await conn.execute("SELECT 1")

    async with serve(app) as client, contextlib.AsyncExitStack() as held:
        for _ in range(N):
            await held.enter_async_context(pool.acquire())
        async with client.cut("/"):
            await until(lambda: pool.stats().waiting == 1)
        await until(lambda: pool.stats().waiting == 0)
        assert pool.stats().cancelled == 1


async def test_commit_of_a_transaction_of_ones_own_is_cancelled() -> None:
    """As any statement is: whether it has happened, nobody knows."""
    driver = SlowToCommit()
    pool: Any = Pool(driver, max_size=1)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.get("/")
    async def endpoint() -> None:
        async with pool.transaction() as conn:
            await conn.query()

    async with serve(app) as client:
        await leave(client, "/", driver.began)
        await until(lambda: not pool.stats().leased)
        assert driver.committed == 0
        await check_pool(pool)


async def test_commit_under_way_is_carried_out() -> None:
    """Whole; only what comes after it is cancelled."""
    visits: list[Any] = []
    driver = SlowToCommit()
    pool: Any = Pool(driver, max_size=1)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.get("/")
    async def endpoint(request: Request, conn: Transaction[Any]) -> int:
        visits.append(request.scope[VISIT])
        await conn.query()
        return 1

    async with serve(app) as client:
        await leave(client, "/", driver.began)
        await until(lambda: visits[0].is_cancelled)
        assert pool.stats().leased == 1
        driver.go_on.set()
        await until(lambda: not pool.stats().leased)
        assert (driver.committed, pool.stats().connected) == (1, 1)
        await check_pool(pool)


async def test_plain_endpoint_runs_to_its_end_in_its_thread(
    pool: SQLitePool, steps: Steps, stop: Stop
) -> None:
    """Then its transaction is rolled back."""
    visits: list[Any] = []
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.get("/")
    def endpoint(request: Request, conn: Transaction[aiosqlite.Connection]) -> None:
        visits.append(request.scope[VISIT])
        anyio.from_thread.run(conn.execute, "INSERT INTO items (name) VALUES ('hat')")
        anyio.from_thread.run_sync(steps.began.set)
        assert stop.go.wait(10)
        steps.outcome = "done"

    async with serve(app) as client:
        await leave(client, "/", steps.began)
        await until(lambda: visits[0].is_cancelled)
        assert pool.stats().leased == 1
        stop.go.set()
        await nothing_is_lost(pool)
        assert steps.outcome == "done"
        async with pool.acquire() as conn:
            assert await conn.execute_fetchall("SELECT * FROM items") == []


# -- what is not ---------------------------------------------------------------------------------


async def test_response_that_has_begun_is_left_to_starlette(pool: SQLitePool, steps: Steps) -> None:
    """A stream is cancelled by it, and what runs in the background after a response is not."""
    later = Steps()
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            with steps.noted():
                while True:
                    yield b"x" * 1000
                    await anyio.sleep(0.001)

        return StreamingResponse(parts())

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> None:
        async def work() -> None:
            with later.noted():
                await later.go.wait()

        tasks.add_task(work)

    async with serve(app) as client:
        async with client.cut("/stream") as reader:
            await reader.readuntil(b"xxx")
        await until(lambda: not client.server.server_state.tasks)
        await leave(client, "/background", later.began)
        assert not later.ended.is_set()
        later.go.set()
        assert await has_ended(later) == "done"


async def test_requests_of_one_connection_are_each_watched_alone(
    pool: SQLitePool, steps: Steps
) -> None:
    """A client that stays is answered, as often as it asks."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.get("/quick")
    async def quick() -> str:
        return "quick"

    @app.get("/")
    async def endpoint() -> None:
        with steps.noted():
            await anyio.sleep_forever()

    async with serve(app) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        for _ in range(3):
            writer.write(b"GET /quick HTTP/1.1\r\nHost: test\r\n\r\n")
            assert await reader.readuntil(b'"quick"')
        writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await steps.began.wait()
        writer.transport.abort()
        assert await has_ended(steps) == "CancelledError"


async def test_request_that_was_sent_ahead_is_answered(pool: SQLitePool) -> None:
    """The watcher of the one before it takes nothing of it, nor does it end."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.post("/{name}")
    async def endpoint(name: str, numbers: list[int]) -> str:
        await anyio.sleep(0.1)
        return f"{name} {sum(numbers)}"

    async with serve(app) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        for name in ("one", "two", "three"):
            head = f"POST /{name} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
            writer.write(head.encode() + b"Content-Length: 6\r\n\r\n[1, 2]")
        for name in ("one", "two", "three"):
            assert await asyncio.wait_for(reader.readuntil(f'"{name} 3"'.encode()), 10)
        writer.close()


def test_websocket_is_not_concerned(plain_pool: SQLitePool) -> None:
    """Its handler learns of the end by itself."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(plain_pool), **CANCELS)

    @app.websocket("/")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())

    with TestClient(app) as client, client.websocket_connect("/") as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"


class Unusual(BaseException):
    """What only few catch."""


@pytest.mark.parametrize("kind", [ValueError, Unusual])
async def test_error_comes_out_as_it_is(pool: SQLitePool, kind: Any) -> None:
    """In no group, for whoever is around."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.get("/")
    async def endpoint() -> None:
        raise kind("mine")

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418)

    async with app.router.lifespan_context(app):
        with pytest.raises(kind, match="mine"):
            await leave_amid(app, "/")
        await leave_amid(app, "/teapot")


def test_application_without_pools_says_what_is_missing() -> None:
    """In place of not watching."""
    app = FastAPI(**CANCELS)

    @app.get("/")
    async def endpoint() -> None:
        """Be there."""

    with (
        TestClient(app) as client,
        pytest.raises(PoolConfigError, match=r"poolkit\.fastapi\.lifespan"),
    ):
        client.get("/")


def test_nothing_is_around_requests_unless_it_is_used() -> None:
    """Who does not name it does not pay for it."""
    program = (
        "import poolkit.fastapi; from poolkit.fastapi import _applications as applications;"
        "print(applications.around is None); poolkit.fastapi.cancel_on_disconnect;"
        "print(applications.around is None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False"]


# -- the body ------------------------------------------------------------------------------------


def make_upload_app(pool: SQLitePool, steps: Any) -> FastAPI:
    """Return an application that takes bodies in every way."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.post("/stream")
    async def stream(request: Request) -> int:
        size = 0
        with steps.noted():
            await anyio.sleep(0.1)  # what is read ahead meanwhile is not lost
            async for piece in request.stream():
                size += len(piece)
                await checkpoint()
        return size

    @app.post("/json")
    async def json(numbers: list[int]) -> int:
        return sum(numbers)

    @app.post("/unread")
    async def unread() -> None:
        with steps.noted():
            await steps.go.wait()

    @app.post("/polled")
    async def polled(request: Request) -> bool:
        for _ in range(10):
            assert not await request.is_disconnected()
            await anyio.sleep(0.01)
        return True

    return app


CHUNK = b"x" * 65_536


def chunked(path: str, *, more: bytes = b"") -> bytes:
    """Return the beginning of a request whose body comes in chunks."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n".encode()
        + more
        + b"\r\n"
    )


def chunk(data: bytes) -> bytes:
    """Return one of them."""
    return b"%x\r\n%s\r\n" % (len(data), data)


async def test_body_that_is_streamed_arrives_whole(pool: SQLitePool, steps: Steps) -> None:
    """Also if it is slow to come, and slow to be read."""
    async with serve(make_upload_app(pool, steps)) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(chunked("/stream"))
        for _ in range(50):
            writer.write(chunk(CHUNK))
            await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(chunk(CHUNK) + b"0\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(str(51 * len(CHUNK)).encode()), 10)
        writer.close()


async def test_client_that_leaves_amid_its_body_is_noticed_by_who_reads_it(
    pool: SQLitePool, steps: Steps
) -> None:
    """As without the dependency, or by the cancellation, whichever comes first."""
    async with serve(make_upload_app(pool, steps)) as client:
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(chunked("/stream") + chunk(CHUNK))
        await writer.drain()
        await steps.began.wait()
        writer.transport.abort()
        assert await has_ended(steps) in (ClientDisconnect.__name__, "CancelledError")


async def test_body_that_is_read_while_the_response_begins_arrives_whole(pool: SQLitePool) -> None:
    """Though who is between may lose what it has taken when it is cancelled."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)
    pieces = [b"one", b"two", b"three"]
    is_taken, has_begun = anyio.Event(), anyio.Event()
    echoed = b""

    async def receive() -> Any:
        piece = pieces.pop(0)
        if piece == b"two":
            is_taken.set()
            await has_begun.wait()
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        nonlocal echoed
        has_begun.set()
        echoed += message.get("body", b"")

    @app.post("/")
    async def echo(request: Request) -> StreamingResponse:
        body = request.stream()
        first = await anext(body)
        await is_taken.wait()

        async def parts() -> AsyncIterator[bytes]:
            yield first
            async for piece in body:
                yield piece

        return StreamingResponse(parts())

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    spec = {"asgi": {"spec_version": "2.4"}}  # the response itself reads nothing
    async with app.router.lifespan_context(app):
        await app({**scope, **spec, "app": app}, receive, send)
    assert echoed == b"onetwothree"


@pytest.mark.parametrize("body", [b"", b"[1, 2]"])
async def test_client_is_watched_though_nobody_reads_its_body(
    pool: SQLitePool, steps: Steps, body: bytes
) -> None:
    """A body that has come whole is held for who may read it later."""
    async with serve(make_upload_app(pool, steps)) as client:
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        head = f"POST /unread HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await steps.began.wait()
        writer.transport.abort()
        assert await has_ended(steps) == "CancelledError"


class NoSteps:
    """For tests that take none."""

    noted = staticmethod(contextlib.nullcontext)


def test_bodies_that_fastapi_reads_are_read(plain_pool: SQLitePool) -> None:
    """JSON, and what an endpoint asks for by itself."""
    with TestClient(make_upload_app(plain_pool, NoSteps)) as client:
        assert client.post("/json", json=[1, 2]).json() == 3
        assert client.post("/polled", content=b"x").json() is True
        assert client.post("/stream", content=b"abc").json() == 3


def test_file_is_uploaded_whole(plain_pool: SQLitePool) -> None:
    """With all of its form."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(plain_pool), **CANCELS)

    @app.post("/file")
    async def file(file: UploadFile) -> int:
        return len(await file.read())

    with TestClient(app) as client:
        assert client.post("/file", files={"file": CHUNK * 20}).json() == 20 * len(CHUNK)


async def test_client_is_not_told_to_send_what_nobody_reads(pool: SQLitePool, steps: Steps) -> None:
    """``Expect: 100-continue`` is answered when the endpoint reads, and not by the watcher."""
    async with serve(make_upload_app(pool, steps)) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(chunked("/unread", more=b"Expect: 100-continue\r\n"))
        await steps.began.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), 0.1)
        writer.transport.abort()
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(chunked("/stream", more=b"Expect: 100-continue\r\n"))
        assert b"100" in await asyncio.wait_for(reader.readline(), 10)
        writer.write(chunk(b"abc") + b"0\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n3"), 10)
        writer.close()
        steps.go.set()


async def test_server_that_repeats_itself_is_not_asked_for_ever(pool: SQLitePool) -> None:
    """Tests of applications write such a `receive`."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)
    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    @app.get("/")
    async def endpoint() -> None:
        await anyio.sleep(0.1)

    sent: list[str] = []
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    async with app.router.lifespan_context(app):
        await app({**scope, "app": app}, receive, send)
    assert sent == ["http.response.start", "http.response.body"]
    assert asked == 2


# -- what is around ------------------------------------------------------------------------------


async def test_middleware_in_between_changes_nothing(pool: SQLitePool, steps: Steps) -> None:
    """Starlette's own runs the endpoint in another task, and around all it sees an answer."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)
    seen: list[int] = []

    async def inner(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    async def outer(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        seen.append(response.status_code)
        return response

    app.add_middleware(BaseHTTPMiddleware, dispatch=inner)

    @app.get("/")
    async def endpoint() -> None:
        with steps.noted():
            await anyio.sleep_forever()

    @app.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    async with serve(BaseHTTPMiddleware(app, dispatch=outer)) as client:
        await leave(client, "/", steps.began)
        assert await has_ended(steps) == "CancelledError"
        await until(lambda: seen == [499])
        assert await client.request("POST", "/echo") == (200, "0")


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
async def test_mounted_application_is_watched(pool: SQLitePool, steps: Steps, *, own: bool) -> None:
    """With the pools of the outer one, or with its own."""
    inner = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @inner.get("/")
    async def endpoint(conn: Connection[aiosqlite.Connection]) -> None:
        await conn.execute("SELECT 1")
        with steps.noted():
            await anyio.sleep_forever()

    @contextlib.asynccontextmanager
    async def both(outer: FastAPI) -> AsyncIterator[Any]:
        async with poolkit.fastapi.lifespan(pool)(outer) as state:
            async with inner.router.lifespan_context(inner):
                yield state

    app = FastAPI(lifespan=both if own else poolkit.fastapi.lifespan(pool))
    app.mount("/inner", inner)
    async with serve(app) as client:
        await leave(client, "/inner/", steps.began)
        assert await has_ended(steps) == "CancelledError"
        await nothing_is_lost(pool)


async def test_dependency_with_a_task_group_is_left_in_order(
    pool: SQLitePool, steps: Steps
) -> None:
    """Its scope is inside of the one that is cancelled, however late it ends."""

    async def group() -> AsyncIterator[Any]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            yield tasks
            tasks.cancel_scope.cancel()

    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)
    Group = Annotated[Any, Depends(group)]  # noqa: N806

    @app.get("/")
    async def endpoint(_: Group) -> None:
        with steps.noted():
            await anyio.sleep_forever()

    @app.get("/quick")
    async def quick(_: Group) -> str:
        return "quick"

    async with serve(app) as client:
        await leave(client, "/", steps.began)
        assert await has_ended(steps) == "CancelledError"
        assert await client.get("/quick") == (200, '"quick"')
        await until(lambda: not client.server.server_state.tasks)


async def test_plain_generator_dependency_is_ended(pool: SQLitePool, steps: Steps) -> None:
    """By FastAPI in a thread, or by Python when it is collected."""
    ended: list[str] = []

    def session() -> Iterator[str]:
        try:
            yield "session"
        finally:
            ended.append("session")

    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.get("/")
    async def endpoint(_: Annotated[str, Depends(session)]) -> None:
        with steps.noted():
            await anyio.sleep_forever()

    async with serve(app) as client:
        await leave(client, "/", steps.began)
        assert await has_ended(steps) == "CancelledError"
        await until(lambda: ended == ["session"])


@newest
async def test_end_of_a_dependency_is_shielded_by_fastapi(pool: SQLitePool, steps: Steps) -> None:
    """So it may await."""
    ended: list[str] = []

    async def session() -> AsyncIterator[str]:
        try:
            yield "session"
        finally:
            await checkpoint()
            ended.append("session")

    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.get("/")
    async def endpoint(_: Annotated[str, Depends(session)]) -> None:
        with steps.noted():
            await anyio.sleep_forever()

    async with serve(app) as client:
        await leave(client, "/", steps.began)
        assert await has_ended(steps) == "CancelledError"
        await until(lambda: ended == ["session"])


# -- on PostgreSQL -------------------------------------------------------------------------------

SIZE = 5


@pytest.fixture
def dsn(postgres: Postgres) -> Iterator[str]:
    """Return the DSN of an empty database."""
    name = postgres.create_database()
    yield postgres.dsn(name)
    postgres.drop_database(name)


def app_on(dsn: str) -> tuple[Any, FastAPI]:
    """Return a pool, and an application whose statement goes on for ten minutes."""
    pool = poolkit.drivers.asyncpg.create_pool(dsn, min_size=SIZE, max_size=SIZE)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool), **CANCELS)

    @app.get("/sleep")
    async def sleep(conn: Connection[asyncpg.Connection]) -> None:
        await conn.execute("SELECT pg_sleep(600)")

    return pool, app


ACTIVE = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND state = 'active' AND query LIKE 'SELECT pg_sleep%'"
)


async def until_active(outside: asyncpg.Connection, is_so: Callable[[int], bool]) -> None:
    """Wait until so many statements run on the server."""
    with anyio.fail_after(20):
        while not is_so(await outside.fetchval(ACTIVE)):  # noqa: ASYNC110  # no event tells
            await anyio.sleep(0.001)


async def test_query_ends_on_the_server_when_its_client_leaves(dsn: str) -> None:
    """Within half a second; its connection is not replaced."""
    pool, app = app_on(dsn)
    outside = await asyncpg.connect(dsn)
    times: list[float] = []
    async with serve(app) as client:
        while not times or (min(times) >= SOON and len(times) < 5):  # on a busy machine
            async with client.cut("/sleep"):
                await until_active(outside, lambda n: n == 1)
                left = time.monotonic()
            await until_active(outside, lambda n: n == 0)
            times.append(time.monotonic() - left)
            await until(lambda: pool.stats().idle == SIZE)
        assert min(times) < SOON
        assert pool.stats().connected == SIZE
    await outside.close()


async def test_storm_of_clients_that_leave_loses_nothing(dsn: str) -> None:
    """Those at work, those in line, and those that have only just come."""
    many = round(500 * SHARE)
    pool, app = app_on(dsn)
    outside = await asyncpg.connect(dsn)
    async with serve(app) as client:
        writers = []
        for n in range(many):
            _, writer = await asyncio.open_connection("127.0.0.1", client.port)
            writer.write(b"GET /sleep HTTP/1.1\r\nHost: test\r\n\r\n")
            writers.append(writer)
            if n % 10 == 9:
                writers[n // 2].transport.abort()
                await asyncio.sleep(0)
        await until(lambda: pool.stats().leased == SIZE)
        for writer in writers:
            writer.transport.abort()
        await until(lambda: not client.server.server_state.connections)
        await until(lambda: not client.server.server_state.tasks)
        await until(lambda: pool.stats().idle == pool.stats().size)
        await until_active(outside, lambda n: n == 0)
        await check_pool(pool)
    await outside.close()
