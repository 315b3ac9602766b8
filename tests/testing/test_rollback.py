"""`rollback`: one connection, whose transaction never commits, as a pool."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg
import fastapi
import httpx
import pytest
from anyio import wait_all_tasks_blocked

import poolkit
from poolkit import ConnectFailed, Pool, PoolError, TransactionEnded
from poolkit.drivers import aiosqlite, sqlite
from poolkit.drivers import asyncpg as pooled_asyncpg
from poolkit.testing import check_pool, rollback
from tests.conftest import BACKENDS
from tests.fakes import gone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

PATIENCE = 20.0
DATABASES = [
    pytest.param(*loop.values, kind, id=f"{kind}-{loop.id}")
    for kind, loops in (
        ("asyncpg", ("asyncio", "uvloop")),
        ("aiosqlite", ("asyncio",)),
        ("threads", ("asyncio", "trio")),
    )
    for loop in BACKENDS
    if loop.id in loops
]
SLOW = {
    "asyncpg": "SELECT pg_sleep(60)",
    "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n",
}

every_database = pytest.mark.parametrize(
    ("anyio_backend", "pool"), DATABASES, indirect=["anyio_backend", "pool"]
)


@pytest.fixture
async def pool(
    anyio_backend: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Pool[Any]]:
    """Return an open pool on an empty table ``t``; nothing may be in it at the end."""
    if request.param == "asyncpg":
        made: Pool[Any] = pooled_asyncpg.create_pool(
            request.getfixturevalue("database"), max_size=2, reset_timeout=1.0
        )
    else:
        create = aiosqlite.create_pool if request.param == "aiosqlite" else sqlite.create_pool
        made = create(tmp_path / "test.db", max_size=2, reset_timeout=1.0)
    async with made:
        async with made.acquire() as conn:
            await conn.execute("CREATE TABLE t (x int UNIQUE)")
        yield made
        with anyio.fail_after(PATIENCE):
            await check_pool(made)
            assert await rows(made) == []


async def rows(pool: Pool[Any]) -> list[int]:
    """Return what a checkout sees."""
    async with pool.acquire() as conn:
        fetch = conn.fetch if hasattr(conn, "fetch") else conn.execute_fetchall
        return [row[0] for row in await fetch("SELECT x FROM t ORDER BY x")]


async def write(pool: Pool[Any], x: int) -> None:
    """Write in a checkout of its own."""
    async with pool.acquire() as conn:
        await conn.execute(f"INSERT INTO t VALUES ({x})")


@every_database
async def test_one_checkout_sees_what_another_wrote_and_nobody_else_does(pool: Pool[Any]) -> None:
    """And nothing of it is there afterwards."""
    async with rollback(pool) as test_pool:
        await write(test_pool, 1)
        await write(test_pool, 2)
        assert await rows(test_pool) == [1, 2]
        assert await rows(pool) == []
        assert isinstance(test_pool, Pool)
        await check_pool(test_pool)


@every_database
async def test_connection_goes_back_to_the_pool_as_it_was(pool: Pool[Any]) -> None:
    """Reset, not terminated."""
    connected = pool.stats().connected
    for _ in range(3):
        async with rollback(pool) as test_pool:
            await write(test_pool, 1)
    await check_pool(pool)
    assert pool.stats().connected == connected
    assert not gone(pool.stats())


@every_database
async def test_error_in_one_checkout_does_not_spoil_the_next(pool: Pool[Any]) -> None:
    """Although PostgreSQL refuses everything after an error in a transaction."""
    async with rollback(pool) as test_pool:
        await write(test_pool, 1)
        with pytest.raises((asyncpg.UniqueViolationError, sqlite3.IntegrityError)):
            await write(test_pool, 1)
        await write(test_pool, 2)
        assert await rows(test_pool) == [1, 2]


@every_database
async def test_transactions_are_savepoints(pool: Pool[Any]) -> None:
    """They keep, or undo, their own; also one inside of another."""
    async with rollback(pool) as test_pool:
        await write(test_pool, 1)
        async with test_pool.transaction() as conn:
            await conn.execute("INSERT INTO t VALUES (2)")
            with pytest.raises(KeyError):
                async with poolkit.transaction(conn):
                    await conn.execute("INSERT INTO t VALUES (3)")
                    raise KeyError
        with pytest.raises(KeyError):
            async with test_pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (4)")
                raise KeyError
        assert await rows(test_pool) == [1, 2]


@every_database
async def test_transaction_that_is_cancelled_is_undone(pool: Pool[Any]) -> None:
    """With its checkout, as on a real pool."""
    async with rollback(pool) as test_pool:
        await write(test_pool, 1)
        with anyio.CancelScope() as scope:
            async with test_pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (2)")
                scope.cancel()
                await anyio.sleep_forever()
        assert await rows(test_pool) == [1]


@every_database
async def test_checkout_that_is_cancelled_in_an_operation_does_not_spoil_the_next(
    pool: Pool[Any],
) -> None:
    """What earlier checkouts have written is still there."""
    async with rollback(pool) as test_pool:
        await write(test_pool, 1)
        with anyio.move_on_after(0.05) as scope:
            async with test_pool.acquire() as conn:
                kind = "asyncpg" if hasattr(conn, "fetch") else "sqlite"
                await conn.execute(SLOW[kind])
        assert scope.cancelled_caught
        assert await rows(test_pool) == [1]
        await write(test_pool, 2)
        assert await rows(test_pool) == [1, 2]


@every_database
async def test_checkout_that_is_cancelled_in_a_write_does_not_spoil_the_next(
    pool: Pool[Any],
) -> None:
    """SQLite would roll back all of a transaction in which it interrupts a write."""
    many = {
        "asyncpg": "INSERT INTO t SELECT x FROM generate_series(10, 50000) AS s(x)",
        "sqlite": "INSERT INTO t WITH RECURSIVE n(x) AS (SELECT 10 UNION ALL SELECT x + 1 FROM n "
        "LIMIT 50000) SELECT x FROM n",
    }
    async with rollback(pool) as test_pool:
        await write(test_pool, 1)
        with anyio.move_on_after(0.01):
            async with test_pool.acquire() as conn:
                kind = "asyncpg" if hasattr(conn, "fetch") else "sqlite"
                await conn.execute(many[kind])
        assert 1 in await rows(test_pool)


@pytest.mark.parametrize(
    ("anyio_backend", "pool"), DATABASES[:2], indirect=["anyio_backend", "pool"]
)
async def test_commit_of_the_code_under_test_is_found_out(pool: Pool[Any]) -> None:
    """Nothing that comes after it can reach the database."""
    async with rollback(pool) as test_pool:
        async with test_pool.acquire() as conn:
            await conn.execute("COMMIT")
        with pytest.raises(ConnectFailed) as caught:
            await write(test_pool, 1)
        assert isinstance(caught.value.__cause__, PoolError)
        assert "ended the transaction itself" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("anyio_backend", "pool"), DATABASES[2:], indirect=["anyio_backend", "pool"]
)
async def test_commit_of_the_code_under_test_is_refused(pool: Pool[Any]) -> None:
    """In every checkout, and they go on; SQLite can tell."""
    async with rollback(pool) as test_pool:
        for x in (1, 2):
            async with test_pool.acquire() as conn:
                await conn.execute(f"INSERT INTO t VALUES ({x})")
                for end in ("COMMIT", "ROLLBACK"):
                    with pytest.raises(TransactionEnded, match=f"{end} was refused"):
                        await conn.execute(end)
                with pytest.raises(TransactionEnded, match="COMMIT was refused"):
                    await conn.commit()
        assert await rows(test_pool) == [1, 2]
        assert await rows(pool) == []


@pytest.mark.parametrize(
    ("anyio_backend", "pool"), DATABASES[2:], indirect=["anyio_backend", "pool"]
)
async def test_lock_is_free_at_the_end_of_the_block(pool: Pool[Any]) -> None:
    """What comes next need not wait for a reset."""
    async with pool.acquire() as conn:
        await conn.execute("PRAGMA busy_timeout=0")
        async with rollback(pool) as test_pool:
            await write(test_pool, 1)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await conn.execute("INSERT INTO t VALUES (7)")
        await conn.execute("INSERT INTO t VALUES (7)")
        await conn.execute("DELETE FROM t")


@pytest.mark.parametrize(
    ("anyio_backend", "pool"), DATABASES[::4], indirect=["anyio_backend", "pool"]
)
async def test_checkout_that_is_not_given_back_is_told(pool: Pool[Any]) -> None:
    """With its place; the connection is cut off."""
    kept = []
    with pytest.raises(AssertionError, match="test_checkout_that_is_not_given_back"):
        async with rollback(pool) as test_pool, anyio.create_task_group() as group:

            async def keep() -> None:
                kept.append(await test_pool.acquire())

            group.start_soon(keep)
            await wait_all_tasks_blocked()


@every_database
async def test_cancelled_block_leaves_nothing(pool: Pool[Any]) -> None:
    """Whatever is held or under way."""
    with anyio.move_on_after(0.05) as scope:
        async with rollback(pool) as test_pool:
            await write(test_pool, 1)
            async with test_pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (2)")
                await anyio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("anyio_backend", "pool"), DATABASES[:1], indirect=["anyio_backend", "pool"]
)
async def test_asyncpgs_own_transactions_are_savepoints(pool: Pool[Any]) -> None:
    """Of any checkout: asyncpg forgets at release that there is a transaction around."""
    async with rollback(pool) as test_pool:
        for x in (1, 2):
            async with test_pool.acquire() as conn, conn.transaction():
                await conn.execute(f"INSERT INTO t VALUES ({x})")
            with pytest.raises(KeyError):
                async with test_pool.acquire() as conn, conn.transaction():
                    await conn.execute(f"INSERT INTO t VALUES ({10 + x})")
                    raise KeyError
        assert await rows(test_pool) == [1, 2]


@pytest.mark.parametrize(
    ("anyio_backend", "pool"), DATABASES[:1], indirect=["anyio_backend", "pool"]
)
async def test_settings_of_transactions_have_no_effect_and_asyncpg_refuses_another_isolation(
    pool: Pool[Any],
) -> None:
    """Those of poolkit's are not looked at; asyncpg compares its level with the outermost one's."""
    ask = (
        "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    )
    usual = ("read committed", "off")
    async with rollback(pool) as test_pool:
        for settings in ({"isolation": "serializable"}, {"readonly": True}, {"isloation": "x"}):
            async with test_pool.transaction(**settings) as conn:
                assert tuple(await conn.fetchrow(ask)) == usual
            async with (
                test_pool.acquire() as conn,
                poolkit.transaction(conn, **settings),
            ):
                assert tuple(await conn.fetchrow(ask)) == usual
        async with test_pool.acquire() as conn, conn.transaction(readonly=True):
            assert tuple(await conn.fetchrow(ask)) == usual
        with pytest.raises(asyncpg.InterfaceError, match="different isolation level"):
            async with test_pool.acquire() as conn, conn.transaction(isolation="serializable"):
                raise AssertionError


@pytest.mark.parametrize(
    ("anyio_backend", "pool"),
    [DATABASES[0], DATABASES[-2]],
    indirect=["anyio_backend", "pool"],
)
async def test_fastapi_application_runs_on_it(pool: Pool[Any]) -> None:
    """One override moves all dependencies; each request is a checkout."""
    app = fastapi.FastAPI()

    @app.post("/{x}")
    async def create(x: int, conn: poolkit.fastapi.Transaction[Any]) -> None:
        await conn.execute(f"INSERT INTO t VALUES ({x})")
        if x > 10:
            raise fastapi.HTTPException(409)

    @app.get("/")
    async def count(conn: poolkit.fastapi.Connection[Any]) -> list[int]:
        fetch: Callable[[str], Any]
        fetch = conn.fetch if hasattr(conn, "fetch") else conn.execute_fetchall
        return [row[0] for row in await fetch("SELECT x FROM t ORDER BY x")]

    async with contextlib.AsyncExitStack() as stack:
        test_pool = await stack.enter_async_context(rollback(pool))
        app.dependency_overrides[poolkit.fastapi.pool] = lambda: test_pool
        transport = httpx.ASGITransport(app)
        client = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://test")
        )
        assert (await client.post("/1")).status_code == 200
        assert (await client.post("/11")).status_code == 409
        assert (await client.post("/2")).status_code == 200
        assert (await client.get("/")).json() == [1, 2]


# -- settings and a role -------------------------------------------------------------------------

TENANT = "SELECT current_setting('app.tenant', true), current_user::text"
on_postgresql = pytest.mark.parametrize(
    ("anyio_backend", "pool"),
    [one for one in DATABASES if "asyncpg" in str(one.id)],
    indirect=["anyio_backend", "pool"],
)


@on_postgresql
async def test_settings_of_a_transaction_hold_in_its_savepoint(pool: Pool[Any]) -> None:
    """And are set back when it ends, however it ends: what it has written stays."""
    async with rollback(pool) as test_pool:

        async def seen() -> tuple[Any, ...]:
            async with test_pool.acquire() as conn:
                return tuple(await conn.fetchrow(TENANT))

        _, login = await seen()
        for tenant in ("1", "2"):
            settings = {"app.tenant": tenant, "session_replication_role": "replica"}
            async with test_pool.transaction(settings=settings, role="pg_monitor") as conn:
                assert tuple(await conn.fetchrow(TENANT)) == (tenant, "pg_monitor")
            assert await seen() == ("", login)
        async with test_pool.transaction(settings={"app.tenant": "3"}) as conn:
            await conn.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(ValueError, match="undone"):
            async with test_pool.transaction(settings={"app.tenant": "4"}, role="pg_monitor"):
                raise ValueError("undone")
        with pytest.raises(asyncpg.PostgresError, match="does not exist"):
            async with test_pool.transaction(settings={"app.tenant": "5"}, role="nobody_here"):
                raise AssertionError
        async with test_pool.acquire() as conn:
            async with poolkit.transaction(conn, settings={"app.tenant": "6"}):
                with pytest.raises(poolkit.PoolConfigError, match="inside of another"):
                    async with poolkit.transaction(conn, settings={"app.tenant": "7"}):
                        raise AssertionError
                async with poolkit.transaction(conn):
                    assert tuple(await conn.fetchrow(TENANT)) == ("6", login)
            assert await conn.fetchval("SHOW session_replication_role") == "origin"
        assert await seen() == ("", login)
        assert await rows(test_pool) == [1]


@every_database
async def test_driver_without_settings_refuses_them_in_a_savepoint(pool: Pool[Any]) -> None:
    """They would be lost without a word."""
    if hasattr(pool._driver, "set_locally"):
        return
    async with rollback(pool) as test_pool:
        with pytest.raises(poolkit.PoolConfigError, match="has no settings and no role"):
            async with test_pool.transaction(settings={"app.tenant": "1"}):
                raise AssertionError
        assert await rows(test_pool) == []
