"""Connections that their holder closes, in every driver, under SQLAlchemy and under FastAPI."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import asyncpg
import pytest
import sqlalchemy
from anyio import to_thread
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

import poolkit.fastapi
import poolkit.sqlalchemy
from poolkit import NotLeased
from poolkit.compat import asyncpg as compat
from poolkit.drivers import aiosqlite as with_aiosqlite
from poolkit.drivers.asyncpg import create_pool
from tests.drivers.asyncpg_help import LOOPS, nothing_is_lost, of_one, quiet, until
from tests.drivers.sqlite_help import PATIENCE, look

#: The files that this process has open, where the system says.
OPEN = Path("/proc/self/fd")


async def close(conn: Any) -> None:
    """Close politely."""
    await conn.close()


async def terminate(conn: Any) -> None:
    """Close at once: `terminate` of asyncpg, `stop` of the others."""
    (conn.terminate if isinstance(conn, asyncpg.Connection) else conn.stop)()


async def close_in_a_child(conn: Any) -> None:
    """Have another task close it."""
    async with anyio.create_task_group() as group:
        group.start_soon(conn.close)


async def leave(conn: Any) -> None:
    """Have `contextlib` call it."""

    async def leave() -> None:
        await conn.close()

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(leave)


WAYS = [close, terminate, close_in_a_child, leave]


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio, where a test does not say on what."""
    return getattr(request, "param", LOOPS[0].values[0])


# -- SQLite --------------------------------------------------------------------------------------


def open_files(path: Path) -> int:
    """Return how often this process has a file open; 0 where the system does not say."""
    if not OPEN.is_dir():
        return 0
    found = 0
    for link in OPEN.iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(link) == str(path)  # noqa: PTH115
    return found


@pytest.mark.parametrize("close", WAYS, ids=lambda close: close.__name__)
@pytest.mark.usefixtures("no_thread_is_left")
class TestSQLite:
    """Both drivers."""

    @pytest.fixture
    def anyio_backend(self, case: Any) -> Any:
        """Run on the case's event loop."""
        return case[1]

    async def test_closed_connection_is_given_back(
        self, close: Any, module: Any, path: Path
    ) -> None:
        """A pool of two is as good as new after any number of them; never are there three files."""
        async with module.create_pool(path, max_size=2, min_size=0) as pool:
            for _ in range(5):
                conn: Any = await pool.acquire(timeout=PATIENCE)
                await conn.execute("INSERT INTO t VALUES (1)")
                await close(conn)
                with anyio.fail_after(PATIENCE):
                    while pool.stats().leased:  # `stop` ends in its thread
                        await anyio.lowlevel.checkpoint()
                if close is not terminate:
                    assert open_files(path) == 0
                with pytest.raises(NotLeased, match=r"closed .*by its holder"):
                    await conn.execute("SELECT 1")
                pool.release(conn)
                await conn.close()
            assert pool.stats().size == 0
        assert look(path) == 5

    async def test_transaction_is_no_success(self, close: Any, module: Any, path: Path) -> None:
        """Nothing of it is there."""
        async with module.create_pool(path, max_size=1) as pool:
            with pytest.raises(NotLeased, match=r"closed .*by its holder"):
                async with pool.transaction() as conn:
                    await conn.execute("INSERT INTO t VALUES (1)")
                    await close(conn)
                    await until_over(pool)
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (2)")
        assert look(path) == 1


async def until_over(pool: Any) -> None:
    """Wait until the lease has ended: `stop` ends it in its thread."""
    with anyio.fail_after(PATIENCE):
        while pool.stats().leased:
            await anyio.lowlevel.checkpoint()


@pytest.mark.usefixtures("no_thread_is_left")
async def test_cancelled_close_of_aiosqlite_is_waited_for(path: Path) -> None:
    """Its thread closes the file later: only then is there another connection."""
    gate, begun = threading.Event(), threading.Event()
    async with with_aiosqlite.create_pool(path, max_size=1, close_timeout=None) as pool:
        conn: Any = await pool.acquire()

        def hold() -> None:
            begun.set()
            assert gate.wait(PATIENCE)

        conn._poolkit_slot.connection._worker.put(hold, None)
        closing = asyncio.ensure_future(conn.close())
        await to_thread.run_sync(begun.wait, PATIENCE)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert (pool.stats().leased, pool.stats().closing) == (0, 1)
        waiting = asyncio.ensure_future(pool.acquire().__aenter__())
        await until(lambda: pool.stats().waiting)
        assert pool.stats().connecting == 0
        gate.set()
        async with asyncio.timeout(PATIENCE):
            pool.release(await waiting)


@pytest.mark.usefixtures("no_thread_is_left")
async def test_connection_behind_a_cursor_cannot_be_closed(path: Path) -> None:
    """It is of its thread, as in aiosqlite; nothing is lost by trying."""
    async with with_aiosqlite.create_pool(path, max_size=1) as pool:
        async with pool.acquire() as conn:
            cursor = await conn.execute("SELECT 1")
            with pytest.raises(Exception, match="thread"):
                cursor.connection.close()
            assert await cursor.fetchone() == (1,)
        async with pool.acquire() as conn:
            assert list(await conn.execute_fetchall("SELECT 2")) == [(2,)]


# -- asyncpg -------------------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
@pytest.mark.parametrize("close", WAYS, ids=lambda close: close.__name__)
async def test_closed_connection_of_asyncpg_is_given_back(
    close: Any, dsn: str, outside: asyncpg.Connection
) -> None:
    """The server has no more of them than the pool; others wait for nothing."""
    async with create_pool(dsn, max_size=2) as pool:
        for _ in range(5):
            conn: Any = await pool.acquire(timeout=PATIENCE)
            assert await conn.fetchval("SELECT 1") == 1
            await close(conn)
            assert pool.stats().leased == 0
            with pytest.raises(NotLeased, match=r"closed .*by its holder"):
                await conn.fetchval("SELECT 1")
            assert conn.is_closed()
            pool.release(conn)
            await conn.close()
        await nothing_is_lost(pool, outside)


async def test_close_of_a_connection_that_was_lost_ends_its_lease(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """A library that is told of an error closes, and has nothing more to do."""
    async with of_one(dsn) as pool:
        conn: Any = await pool.acquire()
        await outside.execute("SELECT pg_terminate_backend($1)", conn.get_server_pid())
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await conn.fetchval("SELECT 1")
        await until(conn.is_closed)
        assert pool.stats().leased == 1
        await conn.close()
        assert pool.stats().leased == 0


async def test_cancelled_close_of_asyncpg_loses_nothing(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Asyncpg cuts the connection then, and so does the pool."""
    async with of_one(dsn) as pool:
        for turns in range(4):
            conn: Any = await pool.acquire(timeout=PATIENCE)
            closing = asyncio.ensure_future(conn.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            await quiet(pool)
            pool.release(conn)
        await quiet(pool)
        await nothing_is_lost(pool, outside)


async def test_transaction_of_asyncpg_is_no_success(dsn: str, outside: asyncpg.Connection) -> None:
    """Neither the pool's nor the library's own."""
    async with of_one(dsn) as pool:
        with pytest.raises(NotLeased, match=r"closed .*by its holder"):
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
                await conn.close()
        async with pool.acquire() as conn:
            with pytest.raises(asyncpg.InterfaceError):
                async with conn.transaction():
                    await conn.execute("INSERT INTO t VALUES (1)")
                    await conn.close()
    assert await outside.fetchval("SELECT count(*) FROM t") == 0


async def test_closed_connection_of_compat_is_given_back(dsn: str) -> None:
    """With asyncpg's error, which says so."""
    async with compat.create_pool(dsn, min_size=1, max_size=1) as pool:
        for close in (close_in_a_child, leave, terminate):
            conn: Any = await pool.acquire(timeout=PATIENCE)
            await close(conn)
            assert pool.stats().leased == 0
            with pytest.raises(asyncpg.InterfaceError, match=r"closed .*by its holder"):
                await conn.fetchval("SELECT 1")
            await pool.release(conn)


# -- over them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
async def test_driver_connection_of_sqlalchemy_may_be_closed(
    kind: str, dsn: str, path: Path
) -> None:
    """By who has reached for it; the engine goes on with another."""
    url = dsn if kind == "postgresql" else f"sqlite:///{path}"
    async with poolkit.create_pool(url, max_size=1) as pool:
        engine = poolkit.sqlalchemy.create_async_engine(pool)
        for _ in range(3):
            async with engine.connect() as conn:
                raw = await conn.get_raw_connection()
                assert raw.driver_connection is not None
                await raw.driver_connection.close()
                assert pool.stats().leased == 0
        async with engine.begin() as conn:
            assert await conn.scalar(sqlalchemy.text("SELECT 1")) == 1
        with pytest.raises(Exception, match="connection"):
            async with engine.begin() as conn:
                await conn.execute(sqlalchemy.text("INSERT INTO t VALUES (1)"))
                raw = await conn.get_raw_connection()
                assert raw.driver_connection is not None
                await raw.driver_connection.close()
        async with engine.begin() as conn:
            assert await conn.scalar(sqlalchemy.text("SELECT count(*) FROM t")) == 0
        await until(lambda: not pool.stats().leased)


@pytest.mark.parametrize("dependency", ["connection", "transaction", "lazy"])
def test_endpoint_that_closes_its_connection_costs_no_slot(dependency: str, path: Path) -> None:
    """A request that was in a transaction is an error."""
    pool: Any = poolkit.create_pool(f"sqlite:///{path}", max_size=1, acquire_timeout=PATIENCE)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/")
    async def endpoint(conn: Any = Depends(getattr(poolkit.fastapi, dependency))) -> int:  # noqa: B008, FAST002
        conn = await conn if dependency == "lazy" else conn
        await conn.execute("INSERT INTO t VALUES (1)")
        await conn.close()
        return pool.stats().leased  # type: ignore[no-any-return]

    with TestClient(app, raise_server_exceptions=False) as client:
        for _ in range(3):
            answer = client.get("/")
            if dependency == "transaction":
                assert answer.status_code == 500
            else:
                assert (answer.status_code, answer.json()) == (200, 0)
    assert look(path) == (0 if dependency == "transaction" else 3)
