"""Transactions that are run again, on SQLite: another connection has the lock."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poolkit import Observer, PoolTimeout
from poolkit.testing import check_pool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANY = 4


@pytest.fixture
def anyio_backend(case: Any) -> Any:
    """Run on the event loop of the case."""
    return case[1]


@pytest.fixture
def outside(path: Path) -> Iterator[sqlite3.Connection]:
    """Return a connection of nobody's pool."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as conn:
        conn.execute("INSERT INTO t VALUES (0)")
        yield conn


class LettingGo(Observer):
    """Ends what is in the way as soon as an attempt was undone."""

    def __init__(self, outside: sqlite3.Connection) -> None:
        self.outside = outside
        self.errors: list[int] = []

    def retried(self, pool: Any, label: Any, seconds: float, error: Any) -> None:
        """Roll back."""
        self.errors.append(error.sqlite_errorcode & 0xFF)
        if self.outside.in_transaction:
            self.outside.execute("ROLLBACK")


@pytest.mark.usefixtures("no_thread_is_left")
@pytest.mark.parametrize("how", ["run", "attempts"])
async def test_incrementers_that_meet_count_right(
    module: Any, path: Path, outside: sqlite3.Connection, how: str
) -> None:
    """All have read before the first one writes: all but that one have read what is old now."""
    missing, all_here = MANY, anyio.Event()

    async def increment(conn: Any) -> None:
        nonlocal missing
        ((x,),) = await conn.execute_fetchall("SELECT x FROM t")
        missing -= 1
        if missing <= 0:
            all_here.set()
        await all_here.wait()
        await conn.execute(f"UPDATE t SET x = {x + 1}")

    async def user() -> None:
        options: Any = {"retries": 1000, "timeout": None, "mode": "DEFERRED"}
        if how == "run":
            await pool.run(increment, **options)
            return
        async for attempt in pool.attempts(**options):
            async with attempt as conn:
                await increment(conn)

    async with module.create_pool(path, max_size=MANY) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(MANY):
                group.start_soon(user)
        assert outside.execute("SELECT x FROM t").fetchall() == [(MANY,)]
        assert pool.stats().retried >= MANY - 1
        await check_pool(pool)


@pytest.mark.usefixtures("no_thread_is_left")
async def test_begin_that_does_not_get_the_lock_is_tried_again(
    module: Any, path: Path, outside: sqlite3.Connection
) -> None:
    """After ``busy_timeout``."""
    letting_go = LettingGo(outside)

    async def write(conn: Any) -> None:
        await conn.execute("UPDATE t SET x = x + 1")

    async with module.create_pool(path, busy_timeout=0.05, observers=[letting_go]) as pool:
        outside.execute("BEGIN IMMEDIATE")
        await pool.run(write)
        assert letting_go.errors == [sqlite3.SQLITE_BUSY]
        assert outside.execute("SELECT x FROM t").fetchall() == [(1,)]
        await check_pool(pool)


@pytest.mark.usefixtures("no_thread_is_left")
@pytest.mark.parametrize("how", ["run", "attempts"])
async def test_commit_that_does_not_get_the_lock_is_tried_again(
    module: Any, path: Path, outside: sqlite3.Connection, how: str
) -> None:
    """Without a write-ahead log, who reads keeps a COMMIT out."""
    letting_go = LettingGo(outside)
    calls = 0

    async def write(conn: Any) -> None:
        nonlocal calls
        calls += 1
        await conn.execute("UPDATE t SET x = x + 1")

    settings: Any = {"busy_timeout": 0.05, "journal_mode": "DELETE", "observers": [letting_go]}
    async with module.create_pool(path, **settings) as pool:
        outside.execute("BEGIN")
        outside.execute("SELECT x FROM t").fetchall()
        if how == "run":
            await pool.run(write)
        else:
            async for attempt in pool.attempts():
                async with attempt as conn:
                    await write(conn)
        assert (calls, letting_go.errors) == (2, [sqlite3.SQLITE_BUSY])
        assert outside.execute("SELECT x FROM t").fetchall() == [(1,)]
        await check_pool(pool)


@pytest.mark.usefixtures("no_thread_is_left")
async def test_lock_that_does_not_come_in_time_is_a_timeout(
    module: Any, path: Path, outside: sqlite3.Connection
) -> None:
    """The deadline covers the wait for it."""

    async def write(conn: Any) -> None:
        raise AssertionError

    async with module.create_pool(path) as pool:
        outside.execute("BEGIN IMMEDIATE")
        with pytest.raises(PoolTimeout, match="locked"):
            await pool.run(write, timeout=0.1)
        outside.execute("ROLLBACK")
        await check_pool(pool)


@pytest.mark.usefixtures("no_thread_is_left")
async def test_error_of_a_statement_is_raised_at_once(
    module: Any, path: Path, outside: sqlite3.Connection
) -> None:
    """It would come again."""
    calls = 0

    async def write(conn: Any) -> None:
        nonlocal calls
        calls += 1
        await conn.execute("INSERT INTO nowhere VALUES (1)")

    async with module.create_pool(path) as pool:
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await pool.run(write)
        assert (calls, pool.stats().retried) == (1, 0)
        await check_pool(pool)
