"""What poolkit's adapter for SQLite does in SQLAlchemy's place: begin transactions, and fetch."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.asyncio import create_async_engine as create_their_engine

from poolkit.drivers.sqlite._connection import Raw
from poolkit.sqlalchemy import create_async_engine
from tests.sqlalchemy.conftest import Database, at_rest, opened

if TYPE_CHECKING:
    from pathlib import Path

STATEMENTS = [
    "SELECT 1",
    "INSERT INTO t VALUES (1)",
    "insert into t values (1)",
    "  -- a comment\n /* and\n another */ INSERT INTO t VALUES (1)",
    "REPLACE INTO t VALUES (1)",
    "UPDATE t SET x = 2",
    "DELETE FROM t",
    "CREATE TABLE u (x)",
    "PRAGMA user_version",
    "SELECT 'INSERT'",
]


@pytest.mark.parametrize("sql", STATEMENTS)
async def test_transactions_begin_when_they_do_with_sqlalchemys_own(
    on_sqlite: Database, tmp_path: Path, sql: str
) -> None:
    """Before the first write; a reader holds no snapshot, and what defines a table none either."""
    theirs = create_their_engine(f"sqlite+aiosqlite:///{tmp_path}/theirs.db")
    async with opened(on_sqlite) as pool:
        begun = []
        for engine in (theirs, create_async_engine(pool)):
            async with engine.connect() as conn:
                if engine is theirs:
                    await conn.execute(sa.text("CREATE TABLE t (x int)"))
                    await conn.commit()
                await conn.exec_driver_sql(sql)
                own: Any = (await conn.get_raw_connection()).driver_connection
                begun.append(own.in_transaction)
    await theirs.dispose()
    assert begun[0] == begun[1]


async def test_a_session_that_reads_goes_to_the_thread_once(
    on_sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each statement; SQLAlchemy's own goes four times, and once more to roll nothing back."""
    ran = []
    run = Raw.run

    def counted(self: Raw, operation: Any) -> Any:
        ran.append(threading.current_thread().name)
        return run(self, operation)

    async with opened(on_sqlite) as pool:
        engine = create_async_engine(pool)
        async with AsyncSession(engine) as session:
            await session.execute(sa.text("SELECT x FROM t"))
        await at_rest(pool)
        monkeypatch.setattr(Raw, "run", counted)
        async with AsyncSession(engine) as session:
            await session.execute(sa.text("SELECT x FROM t"))
            await session.execute(sa.text("SELECT x FROM t"))
        await at_rest(pool)
    assert ran == ["poolkit-aiosqlite"] * 2


async def test_a_write_is_begun_immediately_if_the_pool_says_so(on_sqlite: Database) -> None:
    """The isolation level that ``on_connect`` has set is what follows BEGIN."""

    async def set_up(conn: Any) -> None:
        conn.isolation_level = "IMMEDIATE"

    heard: list[str] = []
    async with opened(on_sqlite, on_connect=set_up, max_size=1) as pool:
        for options, expected in (
            ({}, ["BEGIN IMMEDIATE"]),
            ({"isolation_level": "AUTOCOMMIT"}, []),
        ):
            engine = create_async_engine(pool, **options)
            async with engine.connect() as conn:
                own: Any = (await conn.get_raw_connection()).driver_connection
                await own.set_trace_callback(heard.append)
                await conn.execute(sa.text("INSERT INTO t VALUES (1)"))
                await own.set_trace_callback(None)
            assert [sql for sql in heard if sql.startswith("BEGIN")] == expected
            heard.clear()
            await at_rest(pool)
    assert on_sqlite.rows() == [1]


async def test_a_half_read_stream_is_closed_by_poolkits_reset(on_sqlite: Database) -> None:
    """A cursor that is left open would hold its snapshot of the database."""
    on_sqlite.query("INSERT INTO t VALUES (1), (2), (3)")
    async with opened(on_sqlite, max_size=1) as pool:
        engine = create_async_engine(pool)
        fairy: Any = await engine.raw_connection()
        cursor = fairy.dbapi_connection.cursor(server_side=True)
        spawn = sa.util.concurrency.greenlet_spawn
        await spawn(cursor.execute, "SELECT x FROM t")
        assert await spawn(cursor.fetchone) == (1,)
        assert next(iter(await spawn(cursor.fetchmany, 1))) == (2,)
        await spawn(fairy.close)
        await at_rest(pool)
        await spawn(cursor.close)  # too late, and harmless
        on_sqlite.query("INSERT INTO t VALUES (4)")
        assert on_sqlite.query("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0
        assert pool.stats().connected == 1


async def test_what_a_text_is_made_of_is_the_pools_own_affair(on_sqlite: Database) -> None:
    """SQLAlchemy gets strings; the pool's other users what ``on_connect`` has set."""

    async def set_up(conn: Any) -> None:
        conn.text_factory = bytes

    async with opened(on_sqlite, on_connect=set_up, max_size=1) as pool:
        async with create_async_engine(pool).connect() as conn:
            assert await conn.scalar(sa.text("SELECT 'a'")) == "a"
        await at_rest(pool)
        async with pool.acquire() as own:
            assert await own.execute_fetchall("SELECT 'a'") == [(b"a",)]


async def test_to_choose_autocommit_is_to_commit(on_sqlite: Database) -> None:
    """As it is with sqlite3; SQLAlchemy itself refuses to in the midst of a transaction."""
    spawn = sa.util.concurrency.greenlet_spawn
    async with opened(on_sqlite) as pool:
        fairy: Any = await create_async_engine(pool).raw_connection()
        cursor = await spawn(fairy.cursor)
        await spawn(cursor.execute, "INSERT INTO t VALUES (1)")
        assert on_sqlite.rows() == []
        await spawn(setattr, fairy.dbapi_connection, "isolation_level", None)
        assert on_sqlite.rows() == [1]
        await spawn(fairy.close)
