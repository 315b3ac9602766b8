"""What pages warn of, which is nobody's bug: each warning is true, and each remedy works."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import asyncpg
import httpx
import pytest
from anyio import wait_all_tasks_blocked
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from starlette.middleware.base import BaseHTTPMiddleware

import poolkit
from poolkit.fastapi import Connection, Lazy, Session, Transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

    from tests.postgres import Postgres

AnyPool = poolkit.Pool[Any]
Pool = Annotated[AnyPool, Depends(poolkit.fastapi.pool)]


@pytest.fixture
def anyio_backend() -> Any:
    """Run on asyncio: what is under test is not the loop."""
    return "asyncio"


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[AnyPool]:
    """Return an open pool on a file with an empty table."""
    async with poolkit.create_pool(f"sqlite:///{tmp_path}/test.db", max_size=5) as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TABLE item (name TEXT)")
        yield pool


@pytest.fixture
def dsn(postgres: Postgres) -> Iterator[str]:
    """Return the DSN of an empty database."""
    name = postgres.create_database()
    yield postgres.dsn(name)
    postgres.drop_database(name)


async def names(pool: AnyPool) -> list[str]:
    """Return what is committed."""
    async with pool.acquire() as conn:
        return [name for (name,) in await conn.execute_fetchall("SELECT name FROM item")]


def client_of(app: ASGIApp, application: FastAPI, pool: AnyPool) -> httpx.AsyncClient:
    """Return a client of an application whose pool is this one."""
    application.dependency_overrides[poolkit.fastapi.pool] = lambda: pool
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


# -- one operation at a time ----------------------------------------------------------------------


async def test_two_operations_at_a_time_are_an_error_of_asyncpgs_and_wait_on_sqlite(
    dsn: str, pool: AnyPool
) -> None:
    """On one connection, whoever asks for them."""
    async with poolkit.create_pool(dsn, max_size=1) as postgresql:
        async with postgresql.acquire() as conn:
            both = [conn.fetchval("SELECT pg_sleep(0.05)") for _ in range(2)]
            answers = await asyncio.gather(*both, return_exceptions=True)
        (error,) = [answer for answer in answers if answer is not None]
        assert isinstance(error, asyncpg.InterfaceError)
        assert "another operation is in progress" in str(error)
    async with pool.acquire() as conn:
        both = [conn.execute_fetchall("SELECT 1") for _ in range(2)]
        assert await asyncio.gather(*both) == [[(1,)], [(1,)]]


@pytest.mark.parametrize("way", ["connection", "lazy", "pool"])
async def test_parallel_resolvers_of_a_request_need_a_connection_each(dsn: str, way: str) -> None:
    """They get one from the pool; `connection` and `lazy` are one connection for the request."""
    app = FastAPI()

    async def resolve(acquired: Callable[[], Any]) -> Any:
        async with acquired() as conn:
            return await conn.fetchval("SELECT 1 FROM pg_sleep(0.05)")

    @app.get("/lazy")
    async def lazy(db: Lazy[asyncpg.Connection]) -> Any:
        return await asyncio.gather(*(resolve(lambda: db) for _ in range(3)))

    @app.get("/connection")
    async def connection(db: Connection[asyncpg.Connection]) -> Any:
        return await asyncio.gather(*(db.fetchval("SELECT pg_sleep(0.05)") for _ in range(3)))

    @app.get("/pool")
    async def by_pool(pool: Pool) -> Any:
        return await asyncio.gather(*(resolve(pool.acquire) for _ in range(3)))

    async with (
        poolkit.create_pool(dsn, max_size=2) as postgresql,
        client_of(app, app, postgresql) as client,
    ):
        if way == "pool":
            assert (await client.get("/pool")).json() == [1, 1, 1]
        else:
            with pytest.raises(asyncpg.InterfaceError, match="another operation is in progress"):
                await client.get(f"/{way}")


# -- transactions ---------------------------------------------------------------------------------


async def test_response_that_says_500_commits_and_an_exception_does_not(pool: AnyPool) -> None:
    """What is returned is no exception, whatever its status."""
    app = FastAPI()

    @app.post("/{how}")
    async def write(how: str, db: Transaction[Any]) -> Any:
        await db.execute("INSERT INTO item VALUES (?)", (how,))
        if how == "raised":
            raise HTTPException(500)
        return JSONResponse({"detail": "no"}, status_code=500)

    async with client_of(app, app, pool) as client:
        assert (await client.post("/raised")).status_code == 500
        assert (await client.post("/returned")).status_code == 500
    assert await names(pool) == ["returned"]


async def test_session_beside_a_transaction_is_a_second_connection(pool: AnyPool) -> None:
    """It does not see what the other has not committed; on SQLite it cannot write beside it."""
    app = FastAPI()

    @app.post("/")
    async def write(db: Transaction[Any], session: Session) -> Any:
        await db.execute("INSERT INTO item VALUES ('spade')")
        seen = (await session.execute(text("SELECT count(*) FROM item"))).scalar()
        return [seen, pool.stats().leased]

    async with client_of(app, app, pool) as client:
        assert (await client.post("/")).json() == [0, 2]


async def test_session_cannot_write_on_sqlite_beside_a_transaction(tmp_path: Path) -> None:
    """One connection writes at a time; the connection of the session itself can."""
    app = FastAPI()

    @app.post("/beside")
    async def beside(db: Transaction[Any], session: Session) -> None:
        await session.execute(text("INSERT INTO item VALUES ('rake')"))

    @app.post("/within")
    async def within(session: Session) -> int:
        await session.execute(text("INSERT INTO item VALUES ('rake')"))
        raw = await (await session.connection()).get_raw_connection()
        db: Any = raw.driver_connection
        await db.execute("INSERT INTO item VALUES ('spade')")
        return len(await db.execute_fetchall("SELECT * FROM item"))

    async with poolkit.create_pool(f"sqlite:///{tmp_path}/a.db?busy_timeout=0.05") as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TABLE item (name TEXT)")
        async with client_of(app, app, pool) as client:
            with pytest.raises(OperationalError, match="database is locked"):
                await client.post("/beside")
            assert (await client.post("/within")).json() == 2
        assert await names(pool) == ["rake", "spade"]


# -- time limits in middlewares -------------------------------------------------------------------


class PatientFor:
    """The plain ASGI middleware of `docs/howto/fastapi.md`."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Cancel what takes too long, and answer for it unless it has begun to."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        with anyio.move_on_after(self.seconds) as limit:
            await self.app(scope, receive, sending)
        if limit.cancelled_caught and not begun:
            await PlainTextResponse("too slow", 504)(scope, receive, send)


async def test_time_limit_of_a_base_http_middleware_lets_the_endpoint_run_on_and_commit(
    pool: AnyPool,
) -> None:
    """After the client was told that it was too slow."""
    app = FastAPI()
    told, go_on = anyio.Event(), anyio.Event()
    limit = anyio.CancelScope()

    class Basic(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            with limit:
                return await call_next(request)
            told.set()
            return PlainTextResponse("too slow", 504)

    @app.post("/")
    async def write(db: Transaction[Any]) -> None:
        await db.execute("INSERT INTO item VALUES ('late')")
        limit.cancel()  # as its time is over
        await told.wait()
        await go_on.wait()

    async with client_of(Basic(app), app, pool) as client, asyncio.TaskGroup() as group:
        answer = group.create_task(client.post("/"))
        await told.wait()
        await wait_all_tasks_blocked()
        assert pool.stats().leased == 1
        go_on.set()
    assert answer.result().status_code == 504
    assert await names(pool) == ["late"]


async def test_time_limit_of_a_plain_middleware_cancels_the_endpoint_and_rolls_back(
    pool: AnyPool,
) -> None:
    """And the connection is back when the client is told."""
    app = FastAPI()

    @app.post("/")
    async def write(db: Transaction[Any]) -> None:
        await db.execute("INSERT INTO item VALUES ('late')")
        await anyio.sleep_forever()

    async with client_of(PatientFor(app, 0.05), app, pool) as client:
        assert (await client.post("/")).status_code == 504
        assert pool.stats().leased == 0
    assert await names(pool) == []


# -- settings of a session ------------------------------------------------------------------------


async def test_setting_that_was_reset_is_empty_and_not_null(dsn: str) -> None:
    """PostgreSQL goes on knowing its name; `nullif` makes both the same."""
    ask = "SELECT current_setting('app.tenant', true)"
    async with poolkit.create_pool(dsn, max_size=1) as pool:
        async with pool.acquire() as conn:
            assert await conn.fetchval(ask) is None
        for statement in ("SET app.tenant = 'eu'", "SET LOCAL app.tenant = 'eu'"):
            async with pool.transaction() as conn:
                await conn.execute(statement)
            async with pool.acquire() as conn:
                assert await conn.fetchval(ask) == ""
                both = "SELECT nullif(current_setting('app.tenant', true), '')"
                assert await conn.fetchval(both) is None
        assert pool.stats().connected == 1
