"""On PostgreSQL: how long a request holds a connection, and what cancelled requests leave behind."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.to_thread
import asyncpg
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi import __version__ as fastapi_version
from fastapi.responses import PlainTextResponse, StreamingResponse

import poolkit.drivers.asyncpg
import poolkit.fastapi
from poolkit import Pool
from poolkit.fastapi import Connection, Transaction, transaction_with
from tests.integrations.live import Answer, Client, Impatient, fetch, leave_amid, serve, until
from tests.postgres import Postgres

Conn = Connection[asyncpg.Connection]
Tx = Transaction[asyncpg.Connection]


@pytest.fixture
def name(postgres: Postgres) -> Iterator[str]:
    """Return the name of a database whose table finds duplicates out when it commits."""
    name = postgres.create_database()
    postgres.query("CREATE TABLE t (x int UNIQUE DEFERRABLE INITIALLY DEFERRED)", database=name)
    yield name
    postgres.drop_database(name)


@pytest.fixture
def rows(postgres: Postgres, name: str) -> Callable[[], list[Any]]:
    """Return what returns what is committed."""
    return lambda: [x for (x,) in postgres.query("SELECT x FROM t ORDER BY x", database=name)]


# -- how long a connection is held ---------------------------------------------------------------

SIZE = 5
CLIENTS = 20
WORK = "SELECT pg_sleep(0.005)"


def make_app(pool: Pool[Any], dependency: Any, over: anyio.Event) -> FastAPI:
    """Return an application whose responses and tasks go on, after their work, until told."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/stream")
    async def stream(conn: Annotated[Any, Depends(dependency)]) -> StreamingResponse:
        await conn.execute(WORK)

        async def lines() -> AsyncIterator[bytes]:
            yield b"first\n"
            await over.wait()
            yield b"last\n"

        return StreamingResponse(lines())

    @app.get("/task")
    async def task(conn: Annotated[Any, Depends(dependency)], tasks: BackgroundTasks) -> str:
        await conn.execute(WORK)
        tasks.add_task(over.wait)
        return "soon"

    return app


def naive(pool: Pool[Any]) -> Callable[[], AsyncIterator[Any]]:
    """Return the dependency that everybody writes first."""

    async def connection() -> AsyncIterator[Any]:
        async with pool.acquire() as conn:
            yield conn

    return connection


async def rush(client: Client, path: str) -> list[Answer]:
    """Send all requests at once."""
    answers: list[Answer] = []
    threads = anyio.CapacityLimiter(CLIENTS)

    async def get() -> None:
        answers.append(
            await anyio.to_thread.run_sync(fetch, client.port, "GET", path, limiter=threads)
        )

    async with anyio.create_task_group() as group:
        for _ in range(CLIENTS):
            group.start_soon(get)
    return answers


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])
async def test_connections_are_held_for_the_work_and_not_for_the_response(
    postgres: Postgres, name: str
) -> None:
    """20 clients, 5 connections: nobody waits for anybody's response, against 15 of 20 in vain."""

    async def count_served(path: str, *, is_naive: bool) -> int:
        """Have all be served, or refused, before the first response or task may end."""
        pool = poolkit.drivers.asyncpg.create_pool(
            postgres.dsn(name),
            min_size=SIZE,
            max_size=SIZE,
            acquire_timeout=2.0 if is_naive else 60.0,  # opening takes that long at most, too
        )
        over = anyio.Event()
        answers: list[Answer] = []
        dependency = naive(pool) if is_naive else poolkit.fastapi.connection
        async with serve(make_app(pool, dependency, over)) as client:

            async def send() -> None:
                answers.extend(await rush(client, path))

            async with anyio.create_task_group() as group:
                group.start_soon(send)
                if is_naive:
                    await until(lambda: pool.stats().timed_out == CLIENTS - SIZE)
                    assert pool.stats().leased == SIZE
                else:
                    await until(lambda: pool.stats().direct + pool.stats().waited == CLIENTS)
                    await until(lambda: not pool.stats().leased)
                over.set()
            await until(lambda: not pool.stats().leased)
        assert len(answers) == CLIENTS
        return sum(answer.status == 200 for answer in answers)

    for path in ("/stream", "/task"):
        assert await count_served(path, is_naive=False) == CLIENTS
        assert await count_served(path, is_naive=True) == SIZE


# -- cancelled in mid-query ----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/connection", "/transaction", "/lazy", "/by-hand"])
async def test_twenty_requests_cancelled_in_mid_query_leave_nothing(
    postgres: Postgres, name: str, rows: Callable[[], list[Any]], path: str
) -> None:
    """No slot, no connection in a transaction, no query that runs on on the server."""
    pool = poolkit.drivers.asyncpg.create_pool(
        postgres.dsn(name), min_size=CLIENTS, max_size=CLIENTS
    )
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    query = "SELECT pg_sleep(60)"

    @app.get("/connection")
    async def connection(conn: Conn) -> None:
        await conn.execute(query)

    @app.get("/transaction")
    async def transaction(conn: Tx) -> None:
        await conn.execute("INSERT INTO t VALUES (1)")
        await conn.execute(query)

    @app.get("/lazy")
    async def lazily(db: poolkit.fastapi.Lazy[asyncpg.Connection]) -> None:
        async with db as conn, poolkit.transaction(conn):
            await conn.execute("INSERT INTO t VALUES (1)")
            await conn.execute(query)

    @app.get("/by-hand")
    async def by_hand(conn: Conn) -> None:
        await conn.execute("BEGIN")
        await conn.execute("INSERT INTO t VALUES (1)")
        await conn.execute(query)

    async def sessions() -> list[tuple[str, bool]]:
        ask = partial(postgres.backends, name)
        return [(one.state, query in one.query) for one in await anyio.to_thread.run_sync(ask)]

    impatient = Impatient(app)
    answers: list[Answer] = []
    async with serve(impatient) as client, anyio.create_task_group() as group:

        async def send() -> None:
            answers.extend(await rush(client, path))

        group.start_soon(send)
        with anyio.fail_after(20):
            while (await sessions()).count(("active", True)) < CLIENTS:
                pass
        assert pool.stats().leased == CLIENTS
        impatient.time_is_up()
        await until(lambda: len(answers) == CLIENTS)
        assert set(answers) == {Answer(504, "too late")}
        await until(lambda: pool.stats().idle == CLIENTS)
        assert {state for state, _ in await sessions()} == {"idle"}
        assert pool.stats().leased == 0
        assert rows() == []


# -- transactions --------------------------------------------------------------------------------


@pytest.mark.parametrize("handled", [False, True], ids=["500", "409"])
async def test_failed_commit_is_not_a_success(
    postgres: Postgres, name: str, rows: Callable[[], list[Any]], handled: bool
) -> None:
    """What only the COMMIT finds out reaches the client, in the form that the application gives it."""
    pool = poolkit.drivers.asyncpg.create_pool(postgres.dsn(name))
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.post("/")
    async def add(conn: Tx) -> str:
        await conn.execute("INSERT INTO t VALUES (1), (1)")
        return "added"

    if handled:

        @app.exception_handler(asyncpg.UniqueViolationError)
        async def conflict(_: object, error: Exception) -> PlainTextResponse:
            return PlainTextResponse(type(error).__name__, 409)

    async with serve(app) as client:
        answer = await client.request("POST", "/")
        assert answer == (
            (409, "UniqueViolationError") if handled else (500, "Internal Server Error")
        )
        assert rows() == []
        assert pool.stats().leased == 0


@pytest.mark.parametrize("sql", ["ROLLBACK", "COMMIT", "ROLLBACK AND CHAIN"])
async def test_transaction_that_the_endpoint_has_ended_is_not_a_success(
    postgres: Postgres, name: str, rows: Callable[[], list[Any]], sql: str
) -> None:
    """What was to be committed with it would be missing, and the client would not know."""
    pool = poolkit.drivers.asyncpg.create_pool(postgres.dsn(name), max_size=1)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.post("/last")
    async def last(conn: Tx) -> str:
        await conn.execute("INSERT INTO t VALUES (1)")
        await conn.execute(sql)
        return "added"

    @app.post("/amid")
    async def amid(conn: Tx) -> str:
        await conn.execute(sql)
        await conn.execute("INSERT INTO t VALUES (2)")
        return "added"

    async with serve(app) as client:
        for path in ("/last", "/amid"):
            answer = await client.request("POST", path)
            assert answer == (500, "Internal Server Error")
        assert rows() == ([1] if sql == "COMMIT" else [])
        assert pool.stats().leased == 0


async def test_settings_of_a_transaction_reach_the_server(postgres: Postgres, name: str) -> None:
    """Isolation and readonly, for one endpoint; and the next lease has nothing of it."""
    pool = poolkit.drivers.asyncpg.create_pool(postgres.dsn(name), max_size=1)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    report = transaction_with(isolation="serializable", readonly=True)

    async def settings(conn: Any) -> list[str]:
        return [
            await conn.fetchval("SHOW transaction_isolation"),
            await conn.fetchval("SHOW transaction_read_only"),
        ]

    @app.get("/report")
    async def read(conn: Annotated[asyncpg.Connection, Depends(report)]) -> list[str]:
        return await settings(conn)

    @app.get("/usual")
    async def usual(conn: Tx) -> list[str]:
        return await settings(conn)

    async with serve(app) as client:
        assert (await client.get("/report")).json == ["serializable", "on"]
        assert (await client.get("/usual")).json == ["read committed", "off"]


@pytest.mark.skipif(
    tuple(map(int, fastapi_version.split(".")[:2])) < (0, 135),
    reason="FastAPI streams what endpoints yield from 0.134 on",
)
@pytest.mark.parametrize("kind", ["asyncpg", "poolkit", "by hand"])
async def test_client_that_leaves_in_a_transaction_is_no_fault_of_the_block(
    postgres: Postgres, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Asyncpg's own block is one too; the stream waits at a ``yield`` in it."""
    pool = poolkit.drivers.asyncpg.create_pool(postgres.dsn(name), max_size=1)
    app = FastAPI()

    @app.get("/", response_class=StreamingResponse)
    async def stream(
        conn: Annotated[Any, Depends(poolkit.fastapi.streaming_connection)],
    ) -> Any:
        async with contextlib.AsyncExitStack() as stack:
            if kind == "asyncpg":
                await stack.enter_async_context(conn.transaction())
            elif kind == "poolkit":
                await stack.enter_async_context(poolkit.transaction(conn))
            else:
                await conn.execute("BEGIN")
            await conn.execute("INSERT INTO t VALUES (1)")
            for _ in range(3):
                yield "x"

    async with poolkit.fastapi.lifespan(pool)(app):
        with caplog.at_level(logging.WARNING, "poolkit"):
            await leave_amid(app, "/")
            await until(lambda: pool.stats().leased == pool.stats().recycling == 0)
            gc.collect()
            await asyncio.sleep(0)
            async with pool.acquire() as conn:
                assert await conn.fetch("SELECT * FROM t") == []
    told = [record for record in caplog.records if "was left behind" in record.getMessage()]
    assert len(told) == (kind == "by hand")


# -- COMMIT and reset in one round trip -----------------------------------------------------------


async def test_transaction_of_a_request_is_undone_with_its_commit(
    postgres: Postgres, name: str
) -> None:
    """Its connection is idle when the response is sent, and the session as it was."""
    pool = poolkit.drivers.asyncpg.create_pool(postgres.dsn(name), max_size=1)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    pids: list[int] = []

    @app.get("/")
    async def change(conn: Tx) -> None:
        pids.append(conn.get_server_pid())
        await conn.execute("SET app.tenant = 'alice'")

    async with serve(app) as client:
        assert (await client.get("/")).status == 200
        (backend,) = await anyio.to_thread.run_sync(partial(postgres.backends, name))
        assert backend.query.startswith("SET poolkit.committed")
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pids[0]
            assert not await conn.fetchval("SELECT current_setting('app.tenant', true)")


async def test_dependency_that_has_the_connection_first_finds_its_session_after_the_commit(
    postgres: Postgres, name: str
) -> None:
    """The reset is at the end of the lease, which is not the transaction's then."""
    pool = poolkit.drivers.asyncpg.create_pool(postgres.dsn(name), max_size=1)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    seen: list[Any] = []

    async def looking(db: poolkit.fastapi.Lazy[asyncpg.Connection]) -> AsyncIterator[None]:
        yield
        async with db as conn:
            seen.append(await conn.fetchval("SELECT current_setting('app.tenant')"))

    @app.get("/")
    async def change(first: Annotated[None, Depends(looking, scope="function")], conn: Tx) -> None:
        await conn.execute("SET app.tenant = 'alice'")

    async with serve(app) as client:
        assert (await client.get("/")).status == 200
        assert seen == ["alice"]
        async with pool.acquire() as conn:
            assert not await conn.fetchval("SELECT current_setting('app.tenant', true)")


async def test_dependency_that_ends_later_finds_the_session_after_the_commit(
    postgres: Postgres, name: str
) -> None:
    """However it has come by the connection: it would go on without its tenant."""

    async def choose(conn: asyncpg.Connection) -> None:
        await conn.execute("SET app.tenant = 'alice'")

    dsn = postgres.dsn(name)
    pool = poolkit.drivers.asyncpg.create_pool(dsn, max_size=1, on_acquire=choose)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    seen: list[Any] = []

    async def looking(
        request: Request, _: Annotated[Any, Depends(poolkit.fastapi.pool)]
    ) -> AsyncIterator[None]:
        yield
        seen.append(await request.state.conn.fetchval("SELECT current_setting('app.tenant')"))

    @app.get("/")
    async def change(
        request: Request, first: Annotated[None, Depends(looking, scope="function")], conn: Tx
    ) -> None:
        request.state.conn = conn

    async with serve(app) as client:
        assert (await client.get("/")).status == 200
        assert seen == ["alice"]


async def test_transaction_on_the_connection_of_another_dependency_is_undone_with_its_commit(
    postgres: Postgres, name: str
) -> None:
    """If nothing of that dependency's is to be done after it."""
    pool = poolkit.drivers.asyncpg.create_pool(postgres.dsn(name), max_size=1)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/")
    async def change(first: Conn, conn: Tx) -> None:
        await conn.execute("SET app.tenant = 'alice'")

    async with serve(app) as client:
        assert (await client.get("/")).status == 200
        (backend,) = await anyio.to_thread.run_sync(partial(postgres.backends, name))
        assert backend.query.startswith("SET poolkit.committed")
