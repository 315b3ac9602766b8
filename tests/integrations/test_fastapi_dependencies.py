"""`connection`, `transaction` and `pool`: what a request gets, when it goes back, what is committed."""

import asyncio
import inspect
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import aiosqlite
import anyio
import anyio.from_thread
import pytest
from fastapi import (
    BackgroundTasks,
    Depends,
    FastAPI,
    HTTPException,
    Security,
    WebSocket,
    WebSocketDisconnect,
)
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

import poolkit.fastapi
from poolkit import NotLeased, PoolError
from poolkit.fastapi import Connection, Lazy, Transaction
from tests.integrations.live import (
    N,
    SQLitePool,
    Stop,
    Watch,
    create_pool,
    nothing_is_lost,
    quiet,
    serve,
)

Outside = Callable[[str], list[Any]]
Conn = Connection[aiosqlite.Connection]
Tx = Transaction[aiosqlite.Connection]
Pooled = Annotated[SQLitePool, Depends(poolkit.fastapi.pool)]


# -- the life of a request -----------------------------------------------------------------------


async def test_a_request_takes_one_connection_and_gives_it_back(
    app: FastAPI, database: Any
) -> None:
    """The table of a request's life: what is free, leased and closed at each moment."""
    closed = 0

    async def on_close(_: aiosqlite.Connection) -> None:
        nonlocal closed
        closed += 1

    stop = Stop()
    pool = create_pool(database, min_size=N, max_size=N, on_connect=stop.install, on_close=on_close)
    app.router.lifespan_context = poolkit.fastapi.lifespan(pool)

    @app.get("/")
    async def read(conn: Conn) -> Any:
        return await conn.execute_fetchall(Stop.GATED)

    table: list[tuple[str, int, int, int, int]] = []

    async def note(moment: str) -> None:
        await quiet(pool)
        stats = pool.stats()
        table.append((moment, stats.idle, stats.leased, stats.connected, closed))

    async with serve(app) as client:
        await note("after start")
        for which in ("a request", "the next request"):
            stop.reset()
            request = asyncio.create_task(client.get("/"))
            await stop.began.wait()
            await note(f"during {which}")
            stop.go.set()
            assert (await request).json == [[1]]
            await note(f"after {which}")
    await note("after shutdown")

    print("\n{:<24}{:>6}{:>8}{:>8}{:>8}".format("", "idle", "leased", "opened", "closed"))
    for moment, *numbers in table:
        print(f"{moment:<24}{{:>6}}{{:>8}}{{:>8}}{{:>8}}".format(*numbers))
    assert table == [
        ("after start", N, 0, N, 0),
        ("during a request", N - 1, 1, N, 0),
        ("after a request", N, 0, N, 0),
        ("during the next request", N - 1, 1, N, 0),
        ("after the next request", N, 0, N, 0),
        ("after shutdown", 0, 0, N, N),
    ]


async def test_connection_is_given_back_before_the_response_starts(
    app: FastAPI, pool: SQLitePool
) -> None:
    """Nothing is leased any more while a response is sent, of whatever kind it is."""
    leased: dict[str, int] = {}

    @app.get("/plain")
    async def plain(conn: Conn) -> int:
        leased["plain"] = pool.stats().leased
        return 1

    @app.get("/stream")
    async def stream(conn: Conn) -> StreamingResponse:
        leased["stream"] = pool.stats().leased

        async def lines() -> AsyncIterator[bytes]:
            leased["in the stream"] = pool.stats().leased
            yield b"1"

        return StreamingResponse(lines())

    @app.get("/background")
    async def background(conn: Tx, tasks: BackgroundTasks) -> int:
        leased["background"] = pool.stats().leased
        tasks.add_task(lambda: leased.update({"in the task": pool.stats().leased}))
        return 1

    watch = Watch(app, pool)
    async with serve(watch) as client:
        for path in ("/plain", "/stream", "/background"):
            assert (await client.get(path)).text == "1"
    assert leased == {
        **dict.fromkeys(("plain", "stream", "background"), 1),
        **dict.fromkeys(("in the stream", "in the task"), 0),
    }
    assert [what for what, _ in watch.seen].count("start") == 3
    assert {leased for _, leased in watch.seen} == {0}


async def test_connection_used_in_a_stream_is_a_clear_error(app: FastAPI, pool: SQLitePool) -> None:
    """A stream that uses the endpoint's connection is told that it was given back, and where."""
    told: list[str] = []

    @app.get("/")
    async def stream_items(conn: Conn) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            try:
                await conn.execute("SELECT 1")
            except NotLeased as error:
                told.append(str(error))
            yield b""

        return StreamingResponse(lines())

    async with serve(app) as client:
        await client.get("/")
        await nothing_is_lost(pool)
    assert "no longer leased" in told[0]
    assert "stream_items" in told[0]


@pytest.mark.parametrize("scope", ["function", "request"])
async def test_own_dependency_keeps_the_connection_as_long_as_its_scope_allows(
    app: FastAPI, pool: SQLitePool, scope: Any
) -> None:
    """Code after a ``yield`` has the connection if it runs before the response, else an error."""
    ended: list[object] = []

    async def own(conn: Conn) -> AsyncIterator[None]:
        yield
        try:
            ended.append(await conn.execute_fetchall("SELECT 1"))
        except NotLeased as error:
            ended.append(type(error))

    @app.get("/")
    async def read(own: Annotated[None, Depends(own, scope=scope)]) -> None:
        pass

    async with serve(app) as client:
        assert (await client.get("/")).status == 200
        await nothing_is_lost(pool)
    assert ended == ([[(1,)]] if scope == "function" else [NotLeased])


async def test_stream_that_acquires_from_the_pool_holds_a_connection_while_it_lasts(
    app: FastAPI, pool: SQLitePool
) -> None:
    """Streaming takes `pool`, and a connection for as long as rows are read."""

    @app.get("/")
    async def stream(pool: Pooled) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            async with pool.acquire() as conn, conn.execute("VALUES (1), (2)") as rows:
                async for (value,) in rows:
                    yield str(value).encode()

        return StreamingResponse(lines())

    watch = Watch(app, pool)
    async with serve(watch) as client:
        assert (await client.get("/")).text == "12"
        await nothing_is_lost(pool)
    assert watch.seen == [("start", 0), ("body", 1), ("body", 1), ("body", 0)]


async def test_connection_works_in_an_endpoint_that_runs_in_a_thread(
    app: FastAPI, pool: SQLitePool
) -> None:
    """A ``def`` endpoint reaches its connection through `anyio.from_thread`."""

    async def work(conn: aiosqlite.Connection, db: Any) -> Any:
        async with db as same:
            assert same is conn
        return [isinstance(conn, aiosqlite.Connection), await conn.execute_fetchall("SELECT 2")]

    @app.get("/")
    def read(conn: Tx, db: Lazy[aiosqlite.Connection]) -> Any:
        assert conn.in_transaction
        assert conn.total_changes == 0
        return [
            anyio.from_thread.run(conn.execute_fetchall, "SELECT 1"),
            *anyio.from_thread.run(work, conn, db),
        ]

    async with serve(app) as client:
        assert (await client.get("/")).json == [[[1]], True, [[2]]]
        await nothing_is_lost(pool)


@pytest.mark.parametrize("path", ["/forgotten", "/returned", "/transaction", "/lazy"])
def test_connection_used_in_a_thread_without_the_loop_is_a_clear_error(
    app: FastAPI, pool: SQLitePool, outside: Outside, path: str
) -> None:
    """Nothing awaits there: an INSERT would be lost without a word."""
    insert = "INSERT INTO items (name) VALUES ('hat')"

    @app.get("/forgotten")
    def forgotten(conn: Conn) -> str:
        conn.execute(insert)
        return "added"

    @app.get("/returned")
    def returned(conn: Conn) -> Any:
        return conn.execute_fetchall("SELECT 1")

    @app.get("/transaction")
    def transaction(conn: Tx) -> str:
        conn.execute(insert)
        return "added"

    @app.get("/lazy")
    def lazily(db: Lazy[aiosqlite.Connection]) -> Any:
        with db:
            pass

    with TestClient(app) as client:
        with pytest.raises(PoolError, match=r"plain `def` endpoint.*anyio\.from_thread\.run\("):
            client.get(path)
        assert client.portal is not None
        client.portal.call(nothing_is_lost, pool)
    assert outside("SELECT * FROM items") == []


async def test_invalid_request_leaves_no_lease(app: FastAPI, pool: SQLitePool) -> None:
    """A 422 never reaches the endpoint, and leaves no connection behind."""

    @app.get("/")
    async def read(conn: Tx, number: int) -> int:
        raise AssertionError

    async with serve(app) as client:
        assert (await client.get("/?number=x")).status == 422
        await nothing_is_lost(pool)


async def test_request_that_gets_no_connection_fails_before_its_endpoint(
    app: FastAPI, database: Any
) -> None:
    """What `acquire` raises ends the request; the queue and the slots are as before."""
    pool = create_pool(database, max_size=1, max_waiting=0)
    app.router.lifespan_context = poolkit.fastapi.lifespan(pool)
    ran = False

    @app.get("/")
    async def read(conn: Conn) -> None:
        nonlocal ran
        ran = True

    async with serve(app) as client:
        async with pool.acquire():
            assert (await client.get("/")).status == 503
            assert not ran
            assert pool.stats().busy == 1
        assert (await client.get("/")).status == 200
        assert ran


# -- what is written -----------------------------------------------------------------------------


async def test_insert_through_connection_is_there_afterwards(
    app: FastAPI, pool: SQLitePool, outside: Outside
) -> None:
    """A plain INSERT is not undone when its connection goes back."""

    @app.post("/")
    async def add(conn: Conn) -> None:
        await conn.execute("INSERT INTO items (name) VALUES ('hat')")

    async with serve(app) as client:
        assert (await client.request("POST", "/")).status == 200
        assert outside("SELECT name FROM items") == [("hat",)]
        await nothing_is_lost(pool)


async def test_transaction_is_committed_before_the_response_starts(
    app: FastAPI, pool: SQLitePool, outside: Outside
) -> None:
    """Whoever has the answer can see the row, by whatever connection."""

    @app.post("/")
    async def add(conn: Tx) -> None:
        await conn.execute("INSERT INTO items (name) VALUES ('hat')")
        assert outside("SELECT * FROM items") == []

    watch = Watch(app, pool, look=lambda: outside("SELECT name FROM items"))
    async with serve(watch) as client:
        assert (await client.request("POST", "/")).status == 200
        await nothing_is_lost(pool)
    assert watch.seen[0] == ("start", [("hat",)])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        pytest.param(HTTPException(409, "no"), 409, id="HTTPException"),
        pytest.param(RuntimeError("no"), 500, id="any other"),
    ],
)
async def test_exception_rolls_the_transaction_back(
    app: FastAPI, pool: SQLitePool, outside: Outside, error: Exception, status: int
) -> None:
    """Nothing of a request that ends in an error is kept, when the error is meant as an answer too."""

    @app.post("/")
    async def add(conn: Tx) -> None:
        await conn.execute("INSERT INTO items (name) VALUES ('hat')")
        raise error

    async with serve(app) as client:
        assert (await client.request("POST", "/")).status == status
        assert outside("SELECT * FROM items") == []
        await nothing_is_lost(pool)


async def test_failed_commit_is_not_a_success(
    app: FastAPI, pool: SQLitePool, outside: Outside
) -> None:
    """What only the COMMIT finds out, such as a deferred foreign key, still is an error."""

    @app.post("/")
    async def add(conn: Tx) -> str:
        await conn.execute("INSERT INTO items (name) VALUES ('hat')")
        await conn.execute("INSERT INTO parts (item) VALUES (4711)")
        return "added"

    async with serve(app) as client:
        answer = await client.request("POST", "/")
        assert answer.status == 500
        assert "added" not in answer.text
        assert outside("SELECT * FROM items") == []
        await nothing_is_lost(pool)


async def test_failed_commit_can_be_answered_by_an_exception_handler(
    app: FastAPI, pool: SQLitePool
) -> None:
    """The driver's own error reaches the application's handlers, in time for an answer."""

    @app.exception_handler(sqlite3.IntegrityError)
    async def conflict(_: object, error: Exception) -> StreamingResponse:
        return StreamingResponse(iter([str(error)]), status_code=409)

    @app.post("/")
    async def add(conn: Tx) -> None:
        await conn.execute("INSERT INTO parts (item) VALUES (4711)")

    async with serve(app) as client:
        assert await client.request("POST", "/") == (409, "FOREIGN KEY constraint failed")
        await nothing_is_lost(pool)


async def test_open_transaction_left_by_hand_is_rolled_back_and_reported(
    app: FastAPI, pool: SQLitePool, outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    """A BEGIN without a COMMIT is undone, and the log names the endpoint that left it."""

    @app.post("/")
    async def careless(conn: Conn) -> None:
        await conn.execute("BEGIN")
        await conn.execute("INSERT INTO items (name) VALUES ('hat')")

    with caplog.at_level(logging.WARNING, "poolkit"):
        async with serve(app) as client:
            assert (await client.request("POST", "/")).status == 200
            await nothing_is_lost(pool)
    assert outside("SELECT * FROM items") == []
    [message] = [record.getMessage() for record in caplog.records if record.name == "poolkit"]
    assert "an open transaction was left behind" in message
    assert __file__ in message
    assert "careless" in message


# -- one request, one lease ----------------------------------------------------------------------


async def test_connection_and_transaction_share_one_lease(
    app: FastAPI, pool: SQLitePool, outside: Outside
) -> None:
    """A request that uses both has one connection, in a transaction."""

    async def user(conn: Conn) -> aiosqlite.Connection:
        return conn

    @app.post("/")
    async def add(
        first: Annotated[aiosqlite.Connection, Depends(user)], second: Tx, third: Conn
    ) -> bool:
        assert first is second is third
        assert pool.stats().leased == 1
        await first.execute("INSERT INTO items (name) VALUES ('hat')")
        return first.in_transaction

    async with serve(app) as client:
        assert (await client.request("POST", "/")).json is True
        assert outside("SELECT name FROM items") == [("hat",)]
        await nothing_is_lost(pool)


async def test_every_spelling_shares_one_lease(app: FastAPI, pool: SQLitePool) -> None:
    """Caching and scopes, which split other dependencies, do not split this one."""

    async def request_scoped(conn: Conn) -> AsyncIterator[aiosqlite.Connection]:
        yield conn

    @app.get("/")
    async def read(
        a: Conn,
        b: Annotated[aiosqlite.Connection, Depends(poolkit.fastapi.connection)],
        c: Annotated[Any, Depends(poolkit.fastapi.connection, use_cache=False)],
        d: Annotated[Any, Depends(poolkit.fastapi.connection, scope="function")],
        e: Annotated[Any, Depends(poolkit.fastapi.transaction, use_cache=False)],
        f: Annotated[Any, Depends(request_scoped)],
        lazy: Lazy[aiosqlite.Connection],
        lazy_too: Annotated[Any, Depends(poolkit.fastapi.lazy, use_cache=False, scope="request")],
        g: aiosqlite.Connection = Depends(poolkit.fastapi.connection),  # noqa: B008, FAST002
    ) -> int:
        assert lazy is lazy_too
        assert {id(conn) for conn in (a, b, c, d, e, f, g, await lazy)} == {id(a)}
        return pool.stats().leased

    async with serve(app) as client:
        assert (await client.get("/")).json == 1
        await nothing_is_lost(pool)


async def test_security_scopes_share_one_lease(
    app: FastAPI, pool: SQLitePool, outside: Outside
) -> None:
    """The connection of an authentication with scopes is the endpoint's, to the end of both.

    Before FastAPI 0.123 a dependency is cached, hence solved, for each set of security scopes.
    """

    async def user(conn: Tx) -> aiosqlite.Connection:
        await conn.execute("INSERT INTO items (name) VALUES ('hat')")
        return conn

    @app.get("/")
    async def read(first: Annotated[Any, Security(user, scopes=["read"])], second: Conn) -> bool:
        return first is second and first.in_transaction

    async with serve(app) as client:
        assert (await client.get("/")).json is True
        assert outside("SELECT name FROM items") == [("hat",)]
        await nothing_is_lost(pool)


async def test_request_that_a_middleware_sends_on_twice_holds_one_at_a_time(
    app: FastAPI, pool: SQLitePool
) -> None:
    """Each time through the same scope acquires, and gives back."""
    leased: list[int] = []

    @app.get("/")
    async def read(conn: Conn) -> None:
        leased.append(pool.stats().leased)

    @app.get("/stream")
    async def stream(
        conn: Annotated[Any, Depends(poolkit.fastapi.streaming_connection)],
    ) -> None:
        leased.append(pool.stats().leased)

    async def twice(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await app(scope, receive, ignore)
        await app(scope, receive, send)

    async def ignore(_: Any) -> None:
        pass

    async with serve(twice) as client:
        for overrides in ({}, {poolkit.fastapi.pool: lambda: pool}):
            app.dependency_overrides = overrides
            for path in ("/", "/stream"):
                assert (await client.get(path)).status == 200
                await nothing_is_lost(pool)
    assert leased == [1] * 8


# -- where the pool comes from -------------------------------------------------------------------


async def test_override_of_pool_moves_everything(
    app: FastAPI, pool: SQLitePool, tmp_path: Any
) -> None:
    """One line in a test gives all dependencies another database."""
    path = "SELECT file FROM pragma_database_list"

    @app.get("/")
    async def read(a: Conn, b: Pooled) -> Any:
        return [await a.execute_fetchall(path), b.name]

    @app.get("/transaction")
    async def read_in_transaction(a: Tx) -> Any:
        return [await a.execute_fetchall(path), a.in_transaction]

    other = create_pool(tmp_path / "other.db", name="other")
    app.dependency_overrides[poolkit.fastapi.pool] = lambda: other
    async with serve(app) as client, other:
        file = str(tmp_path / "other.db")
        assert (await client.get("/")).json == [[[file]], "other"]
        assert (await client.get("/transaction")).json == [[[file]], True]
        assert other.stats().direct + other.stats().waited == 2
        assert pool.stats().direct + pool.stats().waited == 0


async def test_override_of_connection_acquires_nothing(app: FastAPI, pool: SQLitePool) -> None:
    """A test that needs no database replaces the connection itself."""

    @app.get("/")
    async def read(conn: Conn) -> Any:
        return conn

    app.dependency_overrides[poolkit.fastapi.connection] = lambda: "a fake"
    async with serve(app) as client:
        assert (await client.get("/")).json == "a fake"
    assert pool.stats().direct + pool.stats().waited == 0


async def test_mounted_application_uses_the_pool_of_its_parent(
    app: FastAPI, pool: SQLitePool
) -> None:
    """No lifespan runs for a mounted application: the parent's state reaches it."""
    sub = FastAPI()

    @sub.get("/")
    async def read(conn: Tx) -> Any:
        return await conn.execute_fetchall("SELECT 1")

    app.mount("/sub", sub)
    async with serve(app) as client:
        assert (await client.get("/sub/")).json == [[1]]
        await nothing_is_lost(pool)


def test_websocket_holds_its_connection_until_it_ends(app: FastAPI, pool: SQLitePool) -> None:
    """The same dependency serves WebSockets; a client that vanishes gives the connection back."""

    @app.websocket("/")
    async def echo(websocket: WebSocket, conn: Conn) -> None:
        await websocket.accept()
        try:
            while True:
                text = await websocket.receive_text()
                await websocket.send_json(await conn.execute_fetchall("SELECT ?", [text]))
        except WebSocketDisconnect:
            return

    with TestClient(app) as client:
        with client.websocket_connect("/") as websocket:
            websocket.send_text("hello")
            assert websocket.receive_json() == [["hello"]]
            assert pool.stats().leased == 1
        assert client.portal is not None
        client.portal.call(nothing_is_lost, pool)


# -- the surface ---------------------------------------------------------------------------------


def test_every_public_name_is_documented() -> None:
    """By a docstring, and on the page of the reference; `__all__` is in order."""
    names = poolkit.fastapi.__all__
    page = (Path(__file__).parents[2] / "docs" / "reference" / "fastapi.md").read_text()
    assert names == sorted(names)
    for name in names:
        assert inspect.getdoc(getattr(poolkit.fastapi, name)), name
        assert f"`{name}" in page, name
