"""What outlives the endpoint: streams, generators, background tasks, WebSockets."""

import asyncio
import contextlib
import functools
import gc
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import aiosqlite
import anyio
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Security, WebSocket
from fastapi import __version__ as fastapi_version
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

import poolkit.fastapi
from poolkit import NotLeased, PoolConfigError
from poolkit.fastapi import Connection, Lazy, Transaction, streaming_connection
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

Conn = Connection[aiosqlite.Connection]
Pooled = Annotated[SQLitePool, Depends(poolkit.fastapi.pool)]
Streaming = Annotated[aiosqlite.Connection, Depends(streaming_connection)]

generators = pytest.mark.skipif(
    tuple(map(int, fastapi_version.split(".")[:2])) < (0, 135),
    reason="FastAPI streams what endpoints yield from 0.134 on",
)


async def two(conn: aiosqlite.Connection) -> AsyncIterator[bytes]:
    """Stream what a cursor reads."""
    async with conn.execute("VALUES (1), (2)") as rows:
        async for (value,) in rows:
            yield str(value).encode()


# -- streaming_connection ------------------------------------------------------------------------


async def test_streaming_connection_is_held_until_the_response_is_sent(
    app: FastAPI, pool: SQLitePool
) -> None:
    """One lease, through all of the stream, by whatever spelling; afterwards it is back."""

    async def user(conn: Streaming) -> aiosqlite.Connection:
        return conn

    @app.get("/")
    async def stream(
        conn: Streaming,
        same: Annotated[Any, Depends(user)],
        secured: Annotated[Any, Security(user, scopes=["read"])],
        too: Annotated[Any, Depends(streaming_connection, use_cache=False)],
        also: Annotated[Any, Depends(streaming_connection, scope="function")],
    ) -> StreamingResponse:
        assert conn is same is secured is too is also
        return StreamingResponse(two(conn))

    watch = Watch(app, pool)
    async with serve(watch) as client:
        assert (await client.get("/")).text == "12"
        await nothing_is_lost(pool)
    assert watch.seen == [("start", 1), ("body", 1), ("body", 1), ("body", 1)]


async def test_streaming_connection_used_after_the_response_is_a_clear_error(
    app: FastAPI, pool: SQLitePool
) -> None:
    """A task that outlives even the response is told when the connection went back."""
    gone = anyio.Event()
    tasks: list[asyncio.Task[Any]] = []

    @app.get("/")
    async def stream(conn: Streaming) -> None:
        async def late() -> Any:
            await gone.wait()
            return await conn.execute_fetchall("SELECT 1")

        tasks.append(asyncio.create_task(late()))

    async with serve(app) as client:
        await client.get("/")
        await nothing_is_lost(pool)
        gone.set()
        with pytest.raises(NotLeased, match=r"GET / \(.*stream\), after its response"):
            await tasks[0]


@pytest.mark.parametrize("path", ["/connection", "/transaction", "/lazy", "/turned"])
async def test_streaming_connection_beside_another_is_refused(
    app: FastAPI, pool: SQLitePool, path: str
) -> None:
    """A request has one connection: it cannot go back before the response and after it."""
    errors: list[Exception] = []

    @app.exception_handler(PoolConfigError)
    async def note(_: object, error: Exception) -> StreamingResponse:
        errors.append(error)
        return StreamingResponse(iter([""]), status_code=500)

    @app.get("/connection")
    async def a(conn: Conn, streaming: Streaming) -> None:
        raise AssertionError

    @app.get("/transaction")
    async def b(conn: Transaction[Any], streaming: Streaming) -> None:
        raise AssertionError

    @app.get("/lazy")
    async def c(conn: Lazy[Any], streaming: Streaming) -> None:
        raise AssertionError

    @app.get("/turned")
    async def d(streaming: Streaming, conn: Conn) -> None:
        raise AssertionError

    async with serve(app) as client:
        assert (await client.get(path)).status == 500
        [error] = errors
        assert f"GET {path} depends on streaming_connection" in str(error)
        assert "a request has one connection" in str(error)
        await nothing_is_lost(pool)


async def test_stream_that_is_cut_gives_back(app: FastAPI, database: Any) -> None:
    """The client vanishes in mid-query: the query ends and the slot comes back."""
    stop = Stop()
    pool = create_pool(database, max_size=3, min_size=3, on_connect=stop.install)
    app.router.lifespan_context = poolkit.fastapi.lifespan(pool)

    @app.get("/")
    async def stream(conn: Streaming) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            yield b"first\n"
            await conn.execute(Stop.ENDLESS)

        return StreamingResponse(lines())

    async with serve(app) as client:
        async with client.cut("/") as reader:
            await reader.readuntil(b"first\n")
            await stop.began.wait()
            assert pool.stats().leased == 1
        await nothing_is_lost(pool)


async def test_acquire_beside_a_streaming_connection_is_reported(
    app: FastAPI, pool: SQLitePool, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream holds one while it waits for another, though its endpoint has ended."""

    @app.get("/")
    async def stream(conn: Streaming, pool: Pooled) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            async with pool.acquire():
                yield b""

        return StreamingResponse(lines())

    async with serve(app) as client:
        await client.get("/")
        await nothing_is_lost(pool)
    [record] = [record for record in caplog.records if record.name == "poolkit"]
    assert "GET / holds a connection of pool 'test' and acquires another" in record.getMessage()


# -- endpoints that are generators ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["connection", "transaction", "lazy", "transaction_with"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async def", "def"])
def test_generator_endpoint_is_told_what_to_take(
    app: FastAPI, pool: SQLitePool, kind: str, is_async: bool
) -> None:
    """Its body begins when connections are given back: the message names the two remedies."""
    ours: Any = getattr(poolkit.fastapi, kind)
    dependency = ours(mode="DEFERRED") if kind == "transaction_with" else ours

    async def stream(conn: Annotated[Any, Depends(dependency)]) -> AsyncIterator[str]:
        raise AssertionError
        yield ""

    def stream_in_thread(conn: Annotated[Any, Depends(dependency)]) -> Iterator[str]:
        raise AssertionError
        yield ""

    endpoint: Any = stream if is_async else stream_in_thread
    app.get("/events", response_model=None)(endpoint)
    with TestClient(app) as client:
        with pytest.raises(PoolConfigError) as caught:
            client.get("/events")
        assert client.portal is not None
        client.portal.call(nothing_is_lost, pool)
    text = str(caught.value)
    assert text.startswith("GET /events is a generator")
    assert "poolkit.fastapi.pool" in text
    assert "poolkit.fastapi.streaming_connection" in text
    assert pool.stats().direct + pool.stats().waited == 3  # what `nothing_is_lost` took


@generators
async def test_authentication_of_a_generator_endpoint_may_use_a_connection(
    app: FastAPI, pool: SQLitePool
) -> None:
    """A dependency has done with it when the stream begins, which holds nothing then."""

    async def user(conn: Conn) -> str:
        ((name,),) = await conn.execute_fetchall("SELECT 'Ada'")
        return str(name)

    @app.get("/events")
    async def events(user: Annotated[str, Depends(user)], pool: Pooled) -> AsyncIterator[Any]:
        yield {"user": user, "leased": pool.stats().leased}
        async with pool.acquire():
            yield {"leased": pool.stats().leased}

    async with serve(app) as client:
        lines = (await client.get("/events")).text.splitlines()
        assert [json.loads(line) for line in lines] == [
            {"user": "Ada", "leased": 0},
            {"leased": 1},
        ]
        await nothing_is_lost(pool)


@generators
async def test_generator_endpoint_may_take_a_streaming_connection(
    app: FastAPI, pool: SQLitePool
) -> None:
    """It is held to the end of the stream."""

    @app.get("/events")
    async def events(conn: Streaming) -> AsyncIterator[Any]:
        async with conn.execute("VALUES (1), (2)") as rows:
            async for (value,) in rows:
                yield value

    async with serve(app) as client:
        assert (await client.get("/events")).text.split() == ["1", "2"]
        await nothing_is_lost(pool)


# -- background tasks and WebSockets -------------------------------------------------------------


async def test_background_task_acquires_from_the_pool(
    app: FastAPI, pool: SQLitePool, outside: Any
) -> None:
    """After the response, and for as long as it takes; what the endpoint held is back."""
    seen: list[Any] = []
    done = anyio.Event()

    @app.post("/")
    async def start(conn: Conn, pool: Pooled, tasks: BackgroundTasks) -> None:
        async def work() -> None:
            seen.append(pool.stats().leased)
            async with pool.transaction() as own:
                await own.execute("INSERT INTO items (name) VALUES ('hat')")
                seen.extend(info.place for info in pool.leases())
            done.set()

        tasks.add_task(work)
        await conn.execute_fetchall("SELECT 1")

    async with serve(app) as client:
        assert (await client.request("POST", "/")).status == 200
        await done.wait()
        await nothing_is_lost(pool)
    assert outside("SELECT name FROM items") == [("hat",)]
    leased, place = seen
    assert leased == 0
    assert "POST /" in place
    assert "work" in place


def test_websocket_that_takes_the_pool_holds_nothing_while_it_waits(
    app: FastAPI, pool: SQLitePool
) -> None:
    """A connection for each message, and `lazy` does the same."""

    @app.websocket("/")
    async def echo(websocket: WebSocket, pool: Pooled, db: Lazy[aiosqlite.Connection]) -> None:
        await websocket.accept()
        await websocket.receive_text()
        async with pool.acquire() as conn:
            first = await conn.execute_fetchall("SELECT 1")
        async with db as conn:
            await websocket.send_json([first, await conn.execute_fetchall("SELECT 2")])
        await websocket.receive_text()

    with TestClient(app) as client:
        with client.websocket_connect("/") as websocket:
            assert pool.stats().leased == 0
            websocket.send_text("go")
            assert websocket.receive_json() == [[[1]], [[2]]]
            websocket.send_text("end")
        assert client.portal is not None
        client.portal.call(nothing_is_lost, pool)


def collecting(generator: Any) -> Any:
    """Return an endpoint of a generator that answers with all it yields."""

    @functools.wraps(generator)
    async def collect(*args: Any, **kwargs: Any) -> list[Any]:
        return [item async for item in generator(*args, **kwargs)]

    return collect


def yielding(function: Any) -> Any:
    """Return an endpoint that is a generator of what a function returns."""

    @functools.wraps(function)
    async def stream(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        for item in await function(*args, **kwargs):
            yield item

    return stream


async def _rows(conn: Conn) -> AsyncIterator[Any]:
    for row in await conn.execute_fetchall("SELECT 1"):
        yield list(row)


async def _row(conn: Conn) -> list[Any]:
    return [list(row) for row in await conn.execute_fetchall("SELECT 1")]


@pytest.mark.skipif(not generators.args[0], reason="there, FastAPI streams it all the same")
@pytest.mark.parametrize("is_partial", [False, True])
async def test_generator_that_its_decorator_collects_is_no_stream(
    app: FastAPI, pool: SQLitePool, is_partial: bool
) -> None:
    """What runs is the decorator's coroutine, to its end, before the connection goes back."""
    endpoint = collecting(_rows)
    app.get("/", response_model=None)(functools.partial(endpoint) if is_partial else endpoint)
    async with serve(app) as client:
        assert (await client.get("/")).json == [[1]]
        await nothing_is_lost(pool)


async def test_generator_that_a_decorator_makes_is_refused(app: FastAPI) -> None:
    """The function in it is none; what runs is."""
    app.get("/")(yielding(_row))
    with TestClient(app) as client, pytest.raises(PoolConfigError, match="GET / is a generator"):
        client.get("/")


# -- clients that leave in the middle of a transaction -------------------------------------------


@pytest.mark.parametrize("where", ["response", pytest.param("endpoint", marks=generators)])
@pytest.mark.parametrize("kind", ["block", "by hand"])
async def test_client_that_leaves_in_a_transaction_is_no_fault_of_the_block(
    app: FastAPI,
    pool: SQLitePool,
    outside: Any,
    where: str,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The stream waits at a ``yield`` for ever; a BEGIN that nobody ends is a fault, and told."""

    async def lines(conn: Any) -> AsyncIterator[str]:
        async with contextlib.AsyncExitStack() as stack:
            if kind == "block":
                await stack.enter_async_context(poolkit.transaction(conn))
            else:
                await conn.execute("BEGIN")
            await conn.execute("INSERT INTO items (name) VALUES ('hat')")
            for _ in range(3):
                yield "x"

    @app.get("/response")
    async def response(
        conn: Annotated[Any, Depends(poolkit.fastapi.streaming_connection)],
    ) -> StreamingResponse:
        return StreamingResponse(lines(conn))

    @app.get("/endpoint", response_class=StreamingResponse)
    async def endpoint(
        conn: Annotated[Any, Depends(poolkit.fastapi.streaming_connection)],
    ) -> Any:
        async for line in lines(conn):
            yield line

    async with poolkit.fastapi.lifespan(pool)(app):
        with caplog.at_level(logging.WARNING, "poolkit"):
            await leave_amid(app, f"/{where}")
            await until(lambda: pool.stats().leased == pool.stats().recycling == 0)
            gc.collect()
            await asyncio.sleep(0)
        await nothing_is_lost(pool)
    told = [record for record in caplog.records if "was left behind" in record.getMessage()]
    assert len(told) == (kind == "by hand")
    assert outside("SELECT * FROM items") == []


@pytest.mark.parametrize("where", ["response", pytest.param("endpoint", marks=generators)])
async def test_streaming_connection_comes_back_without_the_garbage_collector(
    app: FastAPI, pool: SQLitePool, where: str
) -> None:
    """The generator of a client that has left may wait at its ``yield`` for long."""
    kept: list[AsyncIterator[str]] = []  # so that nothing collects them

    async def lines() -> AsyncIterator[str]:
        for _ in range(3):
            yield "x"

    @app.get("/response")
    async def response(conn: Streaming) -> StreamingResponse:
        kept.append(lines())
        return StreamingResponse(kept[0])

    @app.get("/endpoint", response_class=StreamingResponse)
    async def endpoint(conn: Streaming) -> Any:
        kept.append(lines())
        async for line in kept[0]:
            yield line

    gc.disable()
    try:
        async with poolkit.fastapi.lifespan(pool)(app):
            await leave_amid(app, f"/{where}")
            await until(lambda: pool.stats().leased == pool.stats().recycling == 0)
            await nothing_is_lost(pool)
    finally:
        gc.enable()
