"""The psycopg driver behind a real PgBouncer that pools by transaction."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from poolkit import ConnectFailed
from poolkit.drivers.psycopg import create_pool
from poolkit.testing import check_pool
from tests.drivers.asyncpg_help import LOOPS, warnings_in
from tests.drivers.psycopg_kinds import value

if TYPE_CHECKING:
    from tests.pgbouncer import StartPgBouncer


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: psycopg knows no others."""
    return request.param


async def test_callers_share_few_sessions_and_leave_nothing(pgbouncer: StartPgBouncer) -> None:
    """Statements are not prepared, transactions are rolled back, and cancelling costs nothing."""
    bouncer = pgbouncer(default_pool_size=2)
    async with create_pool(bouncer.dsn(), pooler="transaction", max_size=6) as pool:

        async def use(n: int) -> None:
            async with pool.transaction() as conn:
                for _ in range(8):
                    assert await value(conn, f"SELECT {n % 3}") == n % 3
                assert await value(conn, "SELECT count(*) FROM pg_prepared_statements") == 0

        await asyncio.gather(*(use(n) for n in range(24)))
        async with pool.acquire() as conn:
            await conn.execute("BEGIN; CREATE TABLE undone ()")
        async with pool.acquire() as conn:
            assert await value(conn, "SELECT to_regclass('undone') IS NULL")
        connected = pool.stats().connected
        async with pool.acquire() as conn:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await conn.execute("SELECT pg_sleep(600)")
            assert await value(conn, "SELECT 1") == 1
        assert pool.stats().connected == connected
        await check_pool(pool)


async def test_pooler_that_nobody_has_told_of_is_warned_of_once(
    pgbouncer: StartPgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    """The process that answers is another one than the pooler has told."""
    async with create_pool(pgbouncer().dsn(), max_size=2, min_size=2):
        pass
    assert sum("there is a pooler" in said for said in warnings_in(caplog)) == 1


async def test_unknown_database_behind_the_pooler_is_told_at_once(
    pgbouncer: StartPgBouncer,
) -> None:
    """By PgBouncer's own words."""
    pool = create_pool(pgbouncer().dsn("no_such_database"), pooler="transaction")
    with pytest.raises(ConnectFailed) as failed:
        await pool.open()
    assert isinstance(failed.value.__cause__, psycopg.OperationalError)
    assert "no_such_database" in str(failed.value.__cause__)


async def test_pools_that_keep_nothing_share_the_sessions_of_a_pooler(
    pgbouncer: StartPgBouncer,
) -> None:
    """By session, each client has one for as long as it is connected; there is one for all here."""
    bouncer = pgbouncer(pool_mode="session", default_pool_size=1)
    keeps_none: Any = {"pooler": "session", "min_size": 0, "max_idle_time": 0}
    async with (
        create_pool(bouncer.dsn(), **keeps_none) as one,
        create_pool(bouncer.dsn(), **keeps_none) as other,
    ):
        for pool in (one, other) * 3:
            async with pool.acquire(timeout=10) as conn:
                assert await value(conn, "SELECT 1") == 1
        assert (one.stats().connected, other.stats().connected) == (3, 3)
        async with create_pool(bouncer.dsn(), pooler="session") as keeping:
            async with keeping.acquire() as conn:
                assert await value(conn, "SELECT 1") == 1
            async with one.acquire() as conn:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await value(conn, "SELECT 1")
