"""A COMMIT or ROLLBACK executed as a statement ends SQLAlchemy's transaction: it is told so."""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints.

import pytest
import sqlalchemy as sa
from fastapi import FastAPI

import poolkit
from poolkit.sqlalchemy import create_async_engine
from tests.integrations.live import serve
from tests.sqlalchemy.conftest import Database, at_rest, opened

INSERT = sa.text("INSERT INTO t VALUES (1)")
COUNT = sa.text("SELECT count(*) FROM t")


@pytest.mark.parametrize("by", ["/* no */ rollback", "COMMIT"])
async def test_going_on_is_an_error_and_so_is_the_commit(database: Database, by: str) -> None:
    """What follows would stand by itself, and the end look like a success."""
    async with opened(database, max_size=1) as pool:
        engine = create_async_engine(pool)
        for _ in range(2):  # in which the statements are prepared, and in which they are kept
            database.query("DELETE FROM t")
            async with engine.connect() as conn:
                await conn.execute(INSERT)
                await conn.execute(sa.text(by))
                for statement in (INSERT, COUNT, sa.text("CREATE TABLE u (x int)")):
                    with pytest.raises(poolkit.TransactionEnded, match=r"rollback\(\)"):
                        await conn.execute(statement)
                with pytest.raises(poolkit.TransactionEnded):
                    await conn.execute(sa.insert(sa.table("t", sa.column("x"))), [{"x": 2}] * 2)
                with pytest.raises(poolkit.TransactionEnded) as caught:
                    await conn.commit()
                assert pool.name in str(caught.value)
                await conn.rollback()
                await conn.execute(sa.text("INSERT INTO t VALUES (9)"))
                await conn.commit()
            assert database.rows() == ([1, 9] if by == "COMMIT" else [9])
        await at_rest(pool)
        assert pool.stats().connected == 1


async def test_a_rollback_that_the_database_makes_by_itself(on_sqlite: Database) -> None:
    """Whoever catches its error goes on with half of what was written."""
    on_sqlite.query("CREATE UNIQUE INDEX only ON t (x)")
    async with opened(on_sqlite, max_size=1) as pool, create_async_engine(pool).connect() as conn:
        await conn.execute(INSERT)
        with pytest.raises(sa.exc.IntegrityError):
            await conn.execute(sa.text("INSERT OR ROLLBACK INTO t VALUES (1)"))
        with pytest.raises(poolkit.TransactionEnded):
            await conn.execute(COUNT)
        with pytest.raises(poolkit.TransactionEnded):
            await conn.commit()
    assert on_sqlite.rows() == []


async def test_a_session_with_a_rollback_is_no_success(database: Database) -> None:
    """The client was answered 200, and the row was not there."""
    pool = poolkit.create_pool(database.url)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/")
    async def endpoint(session: poolkit.fastapi.Session) -> str:
        await session.execute(INSERT)
        await session.execute(sa.text("ROLLBACK"))
        return "fine"

    async with serve(app) as client:
        assert (await client.get("/")).status == 500
    assert database.rows() == []


async def test_what_is_rolled_back_or_in_autocommit_is_free_to_end_by_hand(
    database: Database,
) -> None:
    """And so is what no transaction allows, behind a COMMIT."""
    async with opened(database, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            await conn.execute(INSERT)
            await conn.execute(sa.text("COMMIT"))
            if database.module is not poolkit.drivers.psycopg:  # which begins a transaction
                await conn.execute(sa.text("VACUUM"))
            await conn.rollback()
            assert await conn.scalar(COUNT) == 1
        async with engine.connect() as conn:
            await conn.execution_options(isolation_level="AUTOCOMMIT")
            for sql in ("BEGIN", "INSERT INTO t VALUES (2)", "COMMIT"):
                await conn.execute(sa.text(sql))
            assert await conn.scalar(COUNT) == 2
            await conn.commit()
        async with engine.begin() as conn:
            async with conn.begin_nested():
                await conn.execute(INSERT)
            assert await conn.scalar(COUNT) == 3
