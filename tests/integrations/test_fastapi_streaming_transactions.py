"""A transaction that lasts as long as its response, and how either may end."""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints.

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

import aiosqlite
import anyio
import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from fastapi import __version__ as fastapi_version
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount
from starlette.websockets import WebSocketDisconnect

import poolkit.fastapi
from poolkit import PoolConfigError
from poolkit.fastapi import streaming_connection, streaming_transaction, streaming_transaction_with
from tests.integrations.live import (
    SQLitePool,
    Stop,
    Watch,
    create_pool,
    leave_amid,
    nothing_is_lost,
    serve,
    until,
)

Streaming = Annotated[aiosqlite.Connection, Depends(streaming_transaction)]
Connection = Annotated[aiosqlite.Connection, Depends(streaming_connection)]
INSERT = "INSERT INTO items (name) VALUES ('hat')"
ITEMS = "SELECT name FROM items"

generators = pytest.mark.skipif(
    tuple(map(int, fastapi_version.split(".")[:2])) < (0, 135),
    reason="FastAPI streams what endpoints yield from 0.134 on",
)


async def writing(conn: aiosqlite.Connection, parts: int = 3) -> AsyncIterator[str]:
    """Write something before each part."""
    for _ in range(parts):
        await conn.execute(INSERT)
        yield "x"


# -- commit and roll back ------------------------------------------------------------------------


async def test_transaction_commits_when_the_response_was_sent(
    app: FastAPI, pool: SQLitePool, outside: Any
) -> None:
    """What the stream has written is seen by nobody before that."""

    @app.get("/")
    async def stream(conn: Streaming) -> StreamingResponse:
        await conn.execute(INSERT)
        return StreamingResponse(writing(conn))

    watch = Watch(app, pool, lambda: len(outside(ITEMS)))
    async with serve(watch) as client:
        assert (await client.get("/")).text == "xxx"
        await nothing_is_lost(pool)
    assert {seen for _, seen in watch.seen} == {0}
    assert len(outside(ITEMS)) == 4


@pytest.mark.parametrize("where", ["endpoint", "http", "stream"])
async def test_any_exception_rolls_back(
    app: FastAPI, pool: SQLitePool, outside: Any, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that is raised when half of the response was sent."""

    @app.get("/")
    async def stream(conn: Streaming) -> StreamingResponse:
        await conn.execute(INSERT)
        if where == "endpoint":
            raise ValueError(where)
        if where == "http":
            raise HTTPException(409)

        async def lines() -> AsyncIterator[str]:
            async for part in writing(conn):
                yield part
            raise ValueError(where)

        return StreamingResponse(lines())

    with TestClient(app, raise_server_exceptions=False) as client:
        status = client.get("/").status_code
    assert status == {"endpoint": 500, "http": 409, "stream": 200}[where]
    assert outside(ITEMS) == []
    assert not [record for record in caplog.records if record.name == "poolkit"]


@pytest.mark.parametrize("where", ["response", pytest.param("endpoint", marks=generators)])
async def test_client_that_leaves_rolls_back(
    app: FastAPI,
    pool: SQLitePool,
    outside: Any,
    where: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The stream was cancelled at a ``yield``, so half of it was done; nobody is to blame."""

    @app.get("/response")
    async def response(conn: Streaming) -> StreamingResponse:
        return StreamingResponse(writing(conn))

    @app.get("/endpoint", response_class=StreamingResponse)
    async def endpoint(conn: Streaming) -> Any:
        async for line in writing(conn):
            yield line

    gc.disable()
    try:
        async with poolkit.fastapi.lifespan(pool)(app):
            with caplog.at_level(logging.WARNING, "poolkit"):
                await leave_amid(app, f"/{where}")
                await until(lambda: pool.stats().leased == pool.stats().recycling == 0)
                await nothing_is_lost(pool)
    finally:
        gc.enable()
    assert outside(ITEMS) == []
    assert not [record for record in caplog.records if record.name == "poolkit"]


def around(app: FastAPI, middleware: str | None) -> None:
    """Put middleware around an application that has messages of its own."""

    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    if middleware == "base":
        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    elif middleware == "gzip":
        app.add_middleware(GZipMiddleware, minimum_size=1)


@pytest.mark.parametrize("middleware", ["base", "gzip"])
async def test_transaction_commits_behind_middleware(
    app: FastAPI, pool: SQLitePool, outside: Any, middleware: str
) -> None:
    """Which may send the end of the response long after it was given it."""
    around(app, middleware)

    @app.get("/")
    async def stream(conn: Streaming) -> StreamingResponse:
        return StreamingResponse(writing(conn))

    async with serve(app) as client:
        for _ in range(20):
            assert (await client.get("/")).status == 200
        await nothing_is_lost(pool)
    assert len(outside(ITEMS)) == 60


@pytest.mark.parametrize("mounted", ["routes", "router"])
async def test_transaction_ends_with_the_response_behind_middleware_of_a_mount(
    app: FastAPI, pool: SQLitePool, outside: Any, mounted: str
) -> None:
    """Though its routes are the same application's: a client may leave there, too."""

    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    router = APIRouter()

    @router.get("/")
    async def stream(conn: Streaming) -> StreamingResponse:
        return StreamingResponse(writing(conn))

    @router.get("/plain")
    async def plain(conn: Streaming) -> str:
        await conn.execute(INSERT)
        return "done"

    @router.get("/endless")
    async def endless(conn: Streaming) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            await conn.execute(INSERT)
            yield "first\n"
            await anyio.sleep_forever()

        return StreamingResponse(lines())

    what: Any = {"app": router} if mounted == "router" else {"routes": router.routes}
    middleware = [Middleware(BaseHTTPMiddleware, dispatch=dispatch)] * 2
    app.router.routes.append(Mount("/mount", middleware=middleware, **what))
    async with serve(app) as client:
        for _ in range(20):
            assert (await client.get("/mount/")).text == "xxx"
            assert (await client.get("/mount/plain")).status == 200
        async with client.cut("/mount/endless") as reader:
            await reader.readuntil(b"first\n")
            assert pool.stats().leased == 1
        await nothing_is_lost(pool)
    assert len(outside(ITEMS)) == 80


@pytest.mark.parametrize("middleware", [None, "base", "gzip"])
async def test_client_that_leaves_while_the_stream_waits_rolls_back(
    app: FastAPI, pool: SQLitePool, outside: Any, middleware: str | None
) -> None:
    """For something else than the database, which does not know of it."""
    around(app, middleware)

    @app.get("/")
    async def stream(conn: Streaming) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            await conn.execute(INSERT)
            yield "first\n" * 1000
            await anyio.sleep_forever()

        return StreamingResponse(lines())

    async with serve(app) as client:
        async with client.cut("/") as reader:
            await reader.readuntil(b"first\n")
            assert pool.stats().leased == 1
        await nothing_is_lost(pool)
    assert outside(ITEMS) == []


async def test_client_that_leaves_in_mid_query_rolls_back(
    app: FastAPI, database: Any, outside: Any
) -> None:
    """The query ends and the slot comes back."""
    stop = Stop()
    pool = create_pool(database, max_size=3, min_size=3, on_connect=stop.install)
    app.router.lifespan_context = poolkit.fastapi.lifespan(pool)

    @app.get("/")
    async def stream(conn: Streaming) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            await conn.execute(INSERT)
            yield b"first\n"
            await conn.execute(Stop.ENDLESS)

        return StreamingResponse(lines())

    async with serve(app) as client:
        async with client.cut("/") as reader:
            await reader.readuntil(b"first\n")
            await stop.began.wait()
            assert pool.stats().leased == 1
        await nothing_is_lost(pool)
    assert outside(ITEMS) == []


async def test_commit_that_fails_after_the_response_is_logged_and_raised(
    app: FastAPI, pool: SQLitePool, outside: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The client has its 200, which nobody can take back."""

    @app.get("/")
    async def stream(conn: Streaming) -> StreamingResponse:
        await conn.execute("INSERT INTO parts VALUES (17)")  # there is no such item
        return StreamingResponse(writing(conn, 1))

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.portal is not None
        client.portal.call(foreign_keys, pool)
        answer = client.get("/")
        assert (answer.status_code, answer.text) == (200, "x")
    (record,) = [record for record in caplog.records if record.name == "poolkit"]
    assert record.levelno == logging.ERROR
    assert record.poolkit_event == "late_commit_failed"  # type: ignore[attr-defined]
    assert record.poolkit_label == "GET /"  # type: ignore[attr-defined]
    assert "GET /: the COMMIT has failed after the response was sent" in record.getMessage()
    assert "FOREIGN KEY" in record.getMessage()
    assert outside(ITEMS) == []


async def foreign_keys(pool: SQLitePool) -> None:
    """Have all connections look at them, as they do by default."""
    async with pool.acquire() as conn:
        ((are_on,),) = await conn.execute_fetchall("PRAGMA foreign_keys")
        assert are_on


# -- what else a request has ---------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/connection", "/transaction", "/lazy", "/turned"])
async def test_streaming_transaction_beside_another_is_refused(
    app: FastAPI, pool: SQLitePool, path: str
) -> None:
    """A request has one connection: it cannot go back before the response and after it."""
    errors: list[Exception] = []

    @app.exception_handler(PoolConfigError)
    async def note(_: object, error: Exception) -> StreamingResponse:
        errors.append(error)
        return StreamingResponse(iter([""]), status_code=500)

    @app.get("/connection")
    async def a(conn: poolkit.fastapi.Connection[Any], streaming: Streaming) -> None:
        raise AssertionError

    @app.get("/transaction")
    async def b(conn: poolkit.fastapi.Transaction[Any], streaming: Streaming) -> None:
        raise AssertionError

    @app.get("/lazy")
    async def c(conn: poolkit.fastapi.Lazy[Any], streaming: Streaming) -> None:
        raise AssertionError

    @app.get("/turned")
    async def d(streaming: Streaming, conn: poolkit.fastapi.Connection[Any]) -> None:
        raise AssertionError

    async with serve(app) as client:
        assert (await client.get(path)).status == 500
        [error] = errors
        assert f"GET {path} depends on streaming_connection or streaming_transaction" in str(error)
        await nothing_is_lost(pool)


@pytest.mark.parametrize("path", ["/first", "/last"])
async def test_streaming_connection_and_transaction_are_one_lease(
    app: FastAPI, pool: SQLitePool, outside: Any, path: str
) -> None:
    """Whichever comes first, it goes back when both have ended."""

    @app.get("/first")
    async def first(conn: Connection, streaming: Streaming, too: Streaming) -> StreamingResponse:
        assert conn is streaming is too
        return StreamingResponse(writing(conn))

    @app.get("/last")
    async def last(streaming: Streaming, conn: Connection) -> StreamingResponse:
        assert conn is streaming
        return StreamingResponse(writing(conn))

    async with serve(app) as client:
        assert (await client.get(path)).text == "xxx"
        await nothing_is_lost(pool)
    assert len(outside(ITEMS)) == 3


async def test_streaming_transactions_of_different_settings_are_refused(
    app: FastAPI, pool: SQLitePool
) -> None:
    """A request has one."""
    errors: list[Exception] = []
    other = streaming_transaction_with(mode="DEFERRED")
    assert other is streaming_transaction_with(mode="DEFERRED")
    assert poolkit.fastapi.streaming_transaction is streaming_transaction

    @app.exception_handler(PoolConfigError)
    async def note(_: object, error: Exception) -> StreamingResponse:
        errors.append(error)
        return StreamingResponse(iter([""]), status_code=500)

    @app.get("/")
    async def both(conn: Streaming, other: Annotated[Any, Depends(other)]) -> None:
        raise AssertionError

    async with serve(app) as client:
        assert (await client.get("/")).status == 500
        [error] = errors
        assert "mode='DEFERRED' and for one with no settings" in str(error)
        await nothing_is_lost(pool)


async def test_dependency_that_ends_after_the_response_may_still_write(
    app: FastAPI, pool: SQLitePool, outside: Any
) -> None:
    """It has begun later than the transaction, so it ends before; so does a background task."""
    seen: list[Any] = []

    async def noting(conn: Streaming) -> AsyncIterator[None]:
        yield
        await conn.execute("INSERT INTO items (name) VALUES ('of the dependency')")

    @app.get("/")
    async def stream(
        conn: Streaming, noted: Annotated[None, Depends(noting)], tasks: BackgroundTasks
    ) -> StreamingResponse:
        async def work() -> None:
            seen.extend(lease.label for lease in pool.leases() if lease.label == "GET /")

        tasks.add_task(work)
        return StreamingResponse(writing(conn, 1), background=tasks)

    async with serve(app) as client:
        assert (await client.get("/")).text == "x"
        await nothing_is_lost(pool)
    assert seen == ["GET /"]
    assert outside(ITEMS) == [("hat",), ("of the dependency",)]


async def test_plain_response_commits_as_well(app: FastAPI, pool: SQLitePool, outside: Any) -> None:
    """It is sent to its end, too."""

    @app.get("/")
    async def plain(conn: Streaming) -> str:
        await conn.execute(INSERT)
        return "done"

    @app.head("/")
    async def none(conn: Streaming) -> None:
        await conn.execute(INSERT)

    async with serve(app) as client:
        assert (await client.get("/")).status == 200
        assert (await client.request("HEAD", "/")).status == 200
        await nothing_is_lost(pool)
    assert len(outside(ITEMS)) == 2


@generators
async def test_generator_endpoint_has_a_transaction_to_its_end(
    app: FastAPI, pool: SQLitePool, outside: Any
) -> None:
    """Its body begins when others' connections were given back."""

    @app.get("/")
    async def events(conn: Streaming) -> AsyncIterator[Any]:
        async for part in writing(conn):
            yield part

    async with serve(app) as client:
        assert (await client.get("/")).text.split() == ['"x"'] * 3
        await nothing_is_lost(pool)
    assert len(outside(ITEMS)) == 3


@pytest.mark.parametrize("ends", ["returns", "raises", "leaves"])
async def test_websocket_has_a_transaction_as_long_as_its_handler(
    app: FastAPI, pool: SQLitePool, outside: Any, ends: str
) -> None:
    """As `transaction` is there: no response tells how it ends."""

    @app.websocket("/")
    async def talk(websocket: WebSocket, conn: Streaming) -> None:
        await websocket.accept()
        await conn.execute(INSERT)
        await websocket.send_text("x")
        if ends == "raises":
            raise ValueError
        if ends == "leaves":
            await websocket.receive_text()

    with TestClient(app, raise_server_exceptions=False) as client:
        try:
            with client.websocket_connect("/") as websocket:
                assert websocket.receive_text() == "x"
        except (ValueError, WebSocketDisconnect):
            assert ends != "returns"
        assert client.portal is not None
        client.portal.call(nothing_is_lost, pool)
    assert len(outside(ITEMS)) == (ends == "returns")


async def test_request_that_is_cancelled_rolls_back(
    app: FastAPI, pool: SQLitePool, outside: Any
) -> None:
    """By a time limit, say; nothing is awaited then."""
    began = anyio.Event()

    @app.get("/")
    async def stream(conn: Streaming) -> StreamingResponse:
        await conn.execute(INSERT)
        began.set()
        await anyio.sleep_forever()
        raise AssertionError

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    async with poolkit.fastapi.lifespan(pool)(app):
        task = asyncio.create_task(app({**scope, "app": app}, None, None))  # type: ignore[arg-type]
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: pool.stats().leased == pool.stats().recycling == 0)
        await nothing_is_lost(pool)
    assert outside(ITEMS) == []


# -- where nobody sees the end of the response ---------------------------------------------------


async def test_application_without_its_lifespan_is_refused(pool: SQLitePool) -> None:
    """Nobody would know whether to commit."""
    app = FastAPI()
    app.state.poolkit = pool

    @app.get("/")
    async def stream(conn: Streaming) -> None:
        raise AssertionError

    async with pool:
        with pytest.raises(PoolConfigError, match="lifespan of its application has not run"):
            await leave_amid(app, "/")
        await nothing_is_lost(pool)


async def test_test_that_overrides_the_pool_needs_no_lifespan(
    pool: SQLitePool, outside: Any
) -> None:
    """As with the other dependencies: the clients of tests do not leave."""
    app = FastAPI()

    @app.get("/")
    async def stream(conn: Streaming) -> StreamingResponse:
        return StreamingResponse(writing(conn))

    app.dependency_overrides[poolkit.fastapi.pool] = lambda: pool
    transport = httpx.ASGITransport(app)
    async with pool, httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/")).text == "xxx"
        await nothing_is_lost(pool)
    assert len(outside(ITEMS)) == 3


@pytest.mark.parametrize("middleware", [None, "base"])
async def test_mounted_application_commits_and_rolls_back(
    app: FastAPI, pool: SQLitePool, outside: Any, middleware: str | None
) -> None:
    """With middleware of its own, and no lifespan."""
    inner, amid = FastAPI(), FastAPI()
    around(inner, middleware)

    @inner.get("/stream")
    async def stream(conn: Streaming) -> StreamingResponse:
        return StreamingResponse(writing(conn))

    amid.mount("/inner", inner)
    app.mount("/amid", amid)
    async with serve(app) as client:
        assert (await client.get("/amid/inner/stream")).text == "xxx"
        await nothing_is_lost(pool)
    assert len(outside(ITEMS)) == 3
    if middleware is None:  # else it is the middleware that sends, and does not listen
        async with poolkit.fastapi.lifespan(pool)(app):
            await leave_amid(app, "/amid/inner/stream")
            await until(lambda: pool.stats().leased == pool.stats().recycling == 0)
            await nothing_is_lost(pool)
        assert len(outside(ITEMS)) == 3


async def test_application_mounted_while_its_parent_runs_is_refused(
    app: FastAPI, pool: SQLitePool
) -> None:
    """Its responses are not looked at."""
    inner = FastAPI()

    @inner.get("/")
    async def stream(conn: Streaming) -> None:
        raise AssertionError

    async with poolkit.fastapi.lifespan(pool)(app):
        app.mount("/inner", inner)
        with pytest.raises(PoolConfigError, match="mounted before its parent starts"):
            await leave_amid(app, "/inner/")
        await nothing_is_lost(pool)
