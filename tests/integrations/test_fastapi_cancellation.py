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
from anyio.lowlevel import checkpoint
from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

import poolkit.fastapi
from poolkit import CommitUnknown, Pool
from poolkit.fastapi import Connection, Transaction
from poolkit.testing import FakeDriver, check_pool
from tests.integrations.live import (
    Impatient,
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


# -- in the COMMIT -------------------------------------------------------------------------------


class SlowToCommit(FakeDriver):
    """Its COMMITs last until a test lets them go."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.go_on = anyio.Event(), anyio.Event()
        self.committed = 0

    @contextlib.asynccontextmanager
    async def transaction(self, _: Any, /) -> AsyncIterator[None]:  # type: ignore[override]
        """Commit when that is allowed."""
        yield
        self.began.set()
        await self.go_on.wait()
        self.committed += 1


def app_that_commits(driver: SlowToCommit) -> tuple[Any, FastAPI]:
    """Return a pool, and an application with one endpoint in a transaction."""
    pool: Any = Pool(driver, max_size=1)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/")
    async def endpoint(conn: Transaction[Any]) -> int:
        await conn.query()
        return 1

    return pool, app


async def test_commit_under_way_is_not_cancelled_with_its_request() -> None:
    """It is carried out whole, on a connection that serves the next one; then the request ends."""
    driver = SlowToCommit()
    pool, app = app_that_commits(driver)
    limited = Impatient(app)
    async with serve(limited) as client:
        request = asyncio.create_task(client.get("/"))
        await driver.began.wait()
        limited.time_is_up()
        for _ in range(10):
            await checkpoint()
        assert pool.stats().leased == 1
        driver.go_on.set()
        assert (await request).status in (200, 504)  # cancelled at its next await, if there is one
        assert driver.committed == 1
        assert pool.stats().connected == 1
        await check_pool(pool)


async def test_commit_that_never_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """After half a minute nobody knows whether it took effect: 500, and no 503 to try again after."""
    monkeypatch.setattr("poolkit.fastapi._transaction._COMMIT_LIMIT", 0.0)
    driver = SlowToCommit()
    pool, app = app_that_commits(driver)
    async with serve(app) as client:
        assert (await client.get("/")).status == 500
        assert driver.committed == 0
        await until(lambda: pool.stats().leased + pool.stats().recycling == 0)
        await check_pool(pool)


def test_commit_of_a_closed_websocket_that_never_ends_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The handler has closed it, and believes that what it has done is committed."""
    monkeypatch.setattr("poolkit.fastapi._transaction._COMMIT_LIMIT", 0.0)
    driver = SlowToCommit()
    pool, app = app_that_commits(driver)

    @app.websocket("/talk")
    async def talk(websocket: WebSocket, conn: Transaction[Any]) -> None:
        await websocket.accept()
        await conn.query()
        await websocket.close()
        raise WebSocketDisconnect(1000)

    with TestClient(app) as client, pytest.raises(CommitUnknown, match="COMMIT was not done"):
        with client.websocket_connect("/talk") as websocket:
            websocket.receive()
    assert driver.committed == 0
    assert pool.stats().leased == 0


# -- at every step -------------------------------------------------------------------------------


def app_of_every_kind(pool: Any, kind: str) -> FastAPI:
    """Return an application whose endpoint uses one dependency in every way there is."""
    app = FastAPI()
    app.state.poolkit = pool

    @app.get("/")
    async def use(it: Annotated[Any, Depends(getattr(poolkit.fastapi, kind))]) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            yield b"first"
            if kind == "streaming_connection":
                await it.query("last")
            elif kind == "pool":
                async with it.transaction() as conn:
                    await conn.query("last")
            yield b"last"

        if kind == "lazy":
            async with it as conn, poolkit.transaction(conn):
                await conn.query("in a block")
            await (await it).query("awaited")
            it.release()
            await (await it).query("kept")
        elif kind != "pool":
            await it.query("one")
        return StreamingResponse(lines())

    return app


@pytest.mark.parametrize("is_busy", [False, True], ids=["free", "busy"])
@pytest.mark.parametrize("by", ["scope", "task"])
@pytest.mark.parametrize(
    "kind", ["connection", "transaction", "lazy", "streaming_connection", "pool"]
)
async def test_request_cancelled_at_any_step_loses_nothing(
    kind: str, by: str, is_busy: bool
) -> None:
    """One step further each time, until it gets to its end: the one connection is always there."""
    driver = FakeDriver()
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    cancelled = 0
    held: list[int] = []  # at which steps it held the connection

    async def receive() -> Any:
        await anyio.sleep_forever()

    async def send(_: Any) -> None:
        await checkpoint()

    async with Pool(driver, max_size=1, deadlock="off") as pool:
        app = app_of_every_kind(pool, kind)
        for steps in range(500):
            limit = anyio.CancelScope()

            async def request(limit: anyio.CancelScope = limit) -> None:
                with limit:
                    await app(dict(scope), receive, send)

            kept = await pool.acquire() if is_busy else None
            task = asyncio.create_task(request())
            for step in range(steps):
                if step == steps // 2 and kept is not None:
                    pool.release(kept)
                    kept = None
                await checkpoint()
            if task.done():
                break
            cancelled += 1
            held += [steps] * (pool.stats().leased and kept is None)
            if by == "scope":
                limit.cancel()
            else:
                task.cancel()
            await asyncio.wait([task])
            if kept is not None:
                pool.release(kept)
            await check_pool(pool)
            assert not any(conn.in_transaction for conn in driver.alive)
        await check_pool(pool)
        assert task.done()
        await task
    assert held or is_busy
    assert cancelled > len(held)


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
