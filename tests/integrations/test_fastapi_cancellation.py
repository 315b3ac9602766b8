"""Clients that vanish and requests that are cancelled in mid-query cost no slot and commit nothing."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import aiosqlite
import anyio
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse

import poolkit.fastapi
from poolkit.fastapi import Connection, Transaction
from tests.integrations.live import (
    N,
    SQLitePool,
    Stop,
    create_pool,
    nothing_is_lost,
    serve,
    until,
)

Outside = Callable[[str], list[Any]]
Pooled = Annotated[SQLitePool, Depends(poolkit.fastapi.pool)]


@pytest.fixture
async def stop() -> Stop:
    """Return the functions by which a statement stops."""
    return Stop()


@pytest.fixture
def pool(database: Path, stop: Stop) -> SQLitePool:
    """Return a pool whose connections have those functions."""
    return create_pool(database, min_size=N, max_size=N, on_connect=stop.install)


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


def make_app(pool: SQLitePool) -> FastAPI:
    """Return an application whose endpoints are at work until somebody ends them."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.post("/connection")
    async def with_connection(conn: Connection[aiosqlite.Connection]) -> None:
        await conn.execute(Stop.ENDLESS)

    @app.post("/transaction")
    async def with_transaction(conn: Transaction[aiosqlite.Connection]) -> None:
        await conn.execute("INSERT INTO items (name) VALUES ('hat')")
        await conn.execute(Stop.ENDLESS)

    @app.post("/by-hand")
    async def with_begin(conn: Connection[aiosqlite.Connection]) -> None:
        await conn.execute("BEGIN IMMEDIATE")
        await conn.execute("INSERT INTO items (name) VALUES ('hat')")
        await conn.execute(Stop.ENDLESS)

    @app.get("/stream")
    async def stream(pool: Pooled) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            async with pool.acquire() as conn:
                yield b"first\n"
                await conn.execute(Stop.ENDLESS)

        return StreamingResponse(lines())

    return app


# -- a time limit around the application ---------------------------------------------------------


@pytest.mark.parametrize("path", ["/connection", "/transaction", "/by-hand"])
async def test_request_cancelled_in_mid_query_leaves_nothing(
    pool: SQLitePool, stop: Stop, outside: Outside, path: str
) -> None:
    """No slot is lost, no transaction stays open, and nothing is committed."""
    app = Impatient(make_app(pool))
    async with serve(app) as client:
        request = asyncio.create_task(client.request("POST", path))
        await stop.began.wait()
        app.time_is_up()
        assert await request == (504, "too late")
        await nothing_is_lost(pool)
        assert outside("SELECT * FROM items") == []
        outside("BEGIN IMMEDIATE")  # fails if anybody holds a lock


async def test_many_requests_cancelled_at_once_leave_nothing(
    pool: SQLitePool, stop: Stop, outside: Outside
) -> None:
    """Those that hold a connection and those that wait for one are cancelled alike."""
    app = Impatient(make_app(pool))
    async with serve(app) as client:
        requests = [asyncio.create_task(client.request("POST", "/connection")) for _ in range(12)]
        await until(lambda: pool.stats().leased == N and pool.stats().waiting == 12 - N)
        await stop.began.wait()
        app.time_is_up()
        assert {(await request).status for request in requests} == {504}
        await nothing_is_lost(pool)
        outside("BEGIN IMMEDIATE")


# -- clients that vanish -------------------------------------------------------------------------


async def test_stream_cut_in_mid_query_leaves_nothing(pool: SQLitePool, stop: Stop) -> None:
    """The generator is cancelled while its query runs: the query ends and the slot comes back."""
    async with serve(make_app(pool)) as client:
        async with client.cut("/stream") as reader:
            await reader.readuntil(b"first\n")
            await stop.began.wait()
            assert pool.stats().leased == 1
        await nothing_is_lost(pool)


async def test_stream_abandoned_at_a_yield_gives_back_when_it_is_collected(
    pool: SQLitePool,
) -> None:
    """A generator that is cut between two reads is closed by nobody but the garbage collector.

    Python leaves it to the caller, and Starlette leaves it at that. uvicorn wakes the generator
    once more, so this takes a layer in between that stops the sending.
    """
    stuck = anyio.Event()
    app = make_app(pool)

    async def blocking(scope: Any, receive: Any, send: Any) -> None:
        async def slowly(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.body":
                stuck.set()
                await anyio.sleep_forever()

        await app(scope, receive, slowly)

    async with serve(blocking) as client:
        async with client.cut("/stream"):
            await stuck.wait()
            assert pool.stats().leased == 1
        await until(lambda: not client.server.server_state.tasks)
        gc.collect()
        await nothing_is_lost(pool)


async def test_stream_cut_while_the_client_does_not_read_leaves_nothing(pool: SQLitePool) -> None:
    """A client that is too slow for the server, and then gone, keeps no connection."""
    app = make_app(pool)

    @app.get("/flood")
    async def flood(pool: Pooled) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            async with pool.acquire() as conn:
                while await conn.execute_fetchall("SELECT 1"):
                    yield b"x" * 1_000_000

        return StreamingResponse(chunks())

    async with serve(app) as client:
        async with client.cut("/flood") as reader:
            await reader.readuntil(b"x")
            assert pool.stats().leased == 1
        await nothing_is_lost(pool)


async def test_client_that_vanishes_in_mid_query_costs_nothing(
    pool: SQLitePool, stop: Stop, outside: Outside
) -> None:
    """A plain endpoint is not cancelled: it runs to its end, commits, and gives back."""
    app = make_app(pool)

    @app.get("/gated")
    async def gated(conn: Transaction[aiosqlite.Connection]) -> None:
        await conn.execute("INSERT INTO items (name) VALUES ('hat')")
        await conn.execute(Stop.GATED)

    async with serve(app) as client:
        async with client.cut("/gated"):
            await stop.began.wait()
        assert pool.stats().leased == 1
        assert outside("SELECT * FROM items") == []
        stop.go.set()
        await until(lambda: not client.server.server_state.tasks)
        await nothing_is_lost(pool)
        assert outside("SELECT name FROM items") == [("hat",)]


async def test_shutdown_in_mid_query_closes_everything(pool: SQLitePool, stop: Stop) -> None:
    """A server that will not wait for its requests cancels them, and then closes the pool."""
    async with serve(make_app(pool)) as client:
        request = asyncio.create_task(client.request("POST", "/connection"))
        await stop.began.wait()
        client.server.config.timeout_graceful_shutdown = 0
    with contextlib.suppress(OSError):
        assert (await request).status == 500
    assert pool.stats().size == 0
