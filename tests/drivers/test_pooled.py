"""The SQLite drivers under the pool: real files, real threads, real cancellation."""

from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

import poolkit
from poolkit import NotLeased, Pool

if TYPE_CHECKING:
    from pathlib import Path

#: Counts for minutes unless it is interrupted.
ENDLESS = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000)
    SELECT count(*) FROM n
"""


@pytest.fixture(params=["sqlite", "sqlite+threads"])
def url(request: pytest.FixtureRequest, anyio_backend: Any, tmp_path: Path) -> str:
    """Return the URL of an empty database, for each driver that runs on this event loop."""
    if request.param == "sqlite" and anyio_backend[0] == "trio":
        pytest.skip("aiosqlite runs on asyncio only")
    with sqlite3.connect(tmp_path / "a.db") as made:
        made.execute("CREATE TABLE t (a)")
    made.close()
    return f"{request.param}:///{tmp_path}/a.db"


async def rows(pool: Pool[Any]) -> int:
    """Count what is there."""
    async with pool.acquire() as conn:
        ((count,),) = await conn.execute_fetchall("SELECT count(*) FROM t")
        return int(count)


async def test_insert_is_there_after_the_lease(url: str) -> None:
    """Connections are in autocommit."""
    async with poolkit.create_pool(url, max_size=2) as pool:
        async with pool.acquire() as conn:
            await conn.execute("INSERT INTO t VALUES (1)")
        assert await rows(pool) == 1
    async with poolkit.create_pool(url) as pool:
        assert await rows(pool) == 1


async def test_transaction_left_open_is_rolled_back_and_logged(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the place that left it."""
    async with poolkit.create_pool(url, max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.execute("BEGIN")
            await conn.execute("INSERT INTO t VALUES (1)")
        assert await rows(pool) == 0
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "an open transaction was left behind" in record.getMessage()
    assert "test_pooled.py:" in record.getMessage()


async def test_cancelled_statement_does_not_hold_up_the_next_user(url: str) -> None:
    """It is interrupted, and its connection is used again."""
    async with poolkit.create_pool(url, max_size=1) as pool:
        with anyio.move_on_after(0.05) as scope:
            async with pool.acquire() as conn:
                await conn.execute(ENDLESS)
        assert scope.cancelled_caught
        with anyio.fail_after(20):
            assert await rows(pool) == 0
        assert pool.stats().connected == 1


async def test_cancelled_transaction_is_rolled_back_before_the_next_use(url: str) -> None:
    """Nothing of it is there, and no lock is left."""
    async with poolkit.create_pool(url, max_size=2) as pool:
        with anyio.move_on_after(0.05) as scope:
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
                await conn.execute(ENDLESS)
        assert scope.cancelled_caught
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO t VALUES (2)")
        assert await rows(pool) == 1


async def test_statement_after_a_cancelled_transaction_is_refused(url: str) -> None:
    """It would join the open transaction, and be undone with it."""
    async with poolkit.create_pool(url, max_size=1) as pool:
        async with pool.acquire() as conn:
            with anyio.CancelScope() as scope:
                async with poolkit.transaction(conn):
                    await conn.execute("INSERT INTO t VALUES (1)")
                    scope.cancel()
                    await anyio.sleep_forever()
            with pytest.raises(NotLeased, match="was cancelled"):
                await conn.execute("INSERT INTO t VALUES (2)")
        assert await rows(pool) == 0


async def test_cursor_kept_past_release_is_dead(url: str) -> None:
    """It cannot read the next user's session."""
    async with poolkit.create_pool(url, max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.execute("INSERT INTO t VALUES (1), (2), (3)")
            cursor = await conn.execute("SELECT a FROM t")
            assert await cursor.fetchone() == (1,)
        async with pool.acquire() as conn:
            with pytest.raises(NotLeased):
                await cursor.fetchone()
            ((count,),) = await conn.execute_fetchall("SELECT count(*) FROM t")
            assert count == 3


async def test_query_of_a_child_task_does_not_reach_the_next_user(url: str) -> None:
    """A connection is not handed on while an operation may still be under way."""
    async with poolkit.create_pool(url, max_size=1) as pool:

        async def child(conn: Any) -> None:
            with pytest.raises(Exception, match=r"interrupted|given back"):
                await conn.execute(ENDLESS)

        async with anyio.create_task_group() as group:
            async with pool.acquire() as conn:
                group.start_soon(child, conn)
                await wait_all_tasks_blocked()
            with anyio.fail_after(20):
                assert await rows(pool) == 0


async def test_storm_loses_no_connection_and_no_money(url: str) -> None:
    """Transfers, some cancelled at any step: the sum stays, the counts return, files are closed."""
    pool = poolkit.create_pool(url, max_size=3, max_overflow=1)
    async with pool:
        async with pool.acquire() as conn:
            await conn.executescript(
                "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER);"
                "INSERT INTO account VALUES (0, 100), (1, 100), (2, 100);"
            )

        async def transfer(number: int) -> None:
            with anyio.move_on_after(0.002 * (number % 7) if number % 3 else 60):
                async with pool.transaction() as conn:
                    for account, change in ((number % 3, -5), ((number + 1) % 3, 5)):
                        update = "UPDATE account SET balance = balance + ? WHERE id = ?"
                        await conn.execute(update, (change, account))

        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(transfer, number)
        async with pool.acquire() as conn:
            ((total,),) = await conn.execute_fetchall("SELECT sum(balance) FROM account")
        assert total == 300
    stats = pool.stats()
    assert stats.size == stats.waiting == 0
    ended = stats.direct + stats.waited + stats.timed_out + stats.cancelled
    assert ended == 62
