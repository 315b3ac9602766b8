"""On PostgreSQL: how long a request holds a connection, and what cancelled requests leave behind."""

import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.to_thread
import asyncpg
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse

import poolkit.drivers.asyncpg
import poolkit.fastapi
from poolkit import Pool
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.fastapi import Connection, Transaction, transaction_with
from tests.integrations.live import Answer, Client, Impatient, fetch, serve, until
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
STREAM = 2.0  # seconds
TASK = 1.5
WORK = "SELECT pg_sleep(0.005)"


class TimedPool(Pool[Any]):
    """A pool that notes how long each connection is held."""

    def __init__(self, dsn: str) -> None:
        super().__init__(AsyncpgDriver(dsn), min_size=SIZE, max_size=SIZE, acquire_timeout=1.0)
        self.holds: list[float] = []

    def _give_back(self, lease: Any, over: Any, error: BaseException | None) -> None:
        if lease._turn == lease._slot.turn:
            self.holds.append(self._runtime.now() - lease._slot.leased_at)
        super()._give_back(lease, over, error)


def make_app(pool: TimedPool, dependency: Any) -> FastAPI:
    """Return an application whose responses take longer than its work."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    work: list[float] = []

    async def do(conn: Any) -> None:
        began = time.perf_counter()
        await conn.execute(WORK)
        work.append(time.perf_counter() - began)

    @app.get("/stream")
    async def stream(conn: Annotated[Any, Depends(dependency)]) -> StreamingResponse:
        await do(conn)

        async def lines() -> AsyncIterator[bytes]:
            yield b"first\n"
            await anyio.sleep(STREAM)
            yield b"last\n"

        return StreamingResponse(lines())

    @app.get("/task")
    async def task(conn: Annotated[Any, Depends(dependency)], tasks: BackgroundTasks) -> str:
        await do(conn)
        tasks.add_task(anyio.sleep, TASK)
        return "soon"

    @app.get("/holds")
    async def holds() -> dict[str, float]:
        return {
            "hold": statistics.mean(pool.holds),
            "work": statistics.mean(work),
            "number": len(pool.holds),
        }

    return app


def naive(pool: TimedPool) -> Callable[[], AsyncIterator[Any]]:
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
    """20 clients, 5 connections, 2 s streams and 1.5 s tasks: nobody fails, against 15 of 20."""
    table: dict[str, tuple[int, int, float, float]] = {}

    async def measure(spelling: str, path: str) -> None:
        pool = TimedPool(postgres.dsn(name))
        dependency = poolkit.fastapi.connection if spelling == "connection" else naive(pool)
        async with serve(make_app(pool, dependency)) as client:
            answers = await rush(client, path)
            await until(lambda: not pool.stats().leased)
            told = (await client.get("/holds")).json
        good = sum(answer.status == 200 for answer in answers)
        assert told["number"] == good
        table[f"{spelling} {path}"] = good, CLIENTS - good, told["hold"], told["work"]

    for spelling in ("connection", "naive"):
        async with anyio.create_task_group() as group:
            group.start_soon(measure, spelling, "/stream")
            group.start_soon(measure, spelling, "/task")

    print(f"\n{'':<20}{'served':>8}{'failed':>8}{'held ms':>10}{'work ms':>10}")
    for which, (good, bad, hold, work) in table.items():
        print(f"{which:<20}{good:>8}{bad:>8}{hold * 1e3:>10.1f}{work * 1e3:>10.1f}")
    for path, seconds in (("/stream", STREAM), ("/task", TASK)):
        good, bad, hold, work = table[f"connection {path}"]
        assert (good, bad) == (CLIENTS, 0)
        assert hold < 3 * work
        good, bad, hold, work = table[f"naive {path}"]
        assert (good, bad) == (SIZE, CLIENTS - SIZE)
        assert hold > seconds


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
