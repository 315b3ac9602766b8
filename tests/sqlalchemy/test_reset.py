"""Which reset runs, what it costs, and that no statement is prepared twice."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.asyncio import create_async_engine as create_their_engine

import poolkit
from poolkit.sqlalchemy import create_async_engine
from poolkit.testing import rollback
from tests.drivers.asyncpg_help import ENDLESS, CountingProxy, until_true
from tests.sqlalchemy.conftest import Database, at_rest, opened

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

PREPARED = sa.text(
    "SELECT count(*), max(prepare_time) FROM pg_prepared_statements WHERE NOT from_sql"
)
STATEMENTS = [sa.text(f"SELECT {n} FROM t") for n in range(5)]
READ = sa.text("SELECT current_setting('app.user', true)")
PUT = sa.text("SELECT set_config('app.user', 'me', false)")


async def session(engine: AsyncEngine) -> Any:
    """Do what a request does; return what the server has prepared by then."""
    async with AsyncSession(engine) as session:
        for statement in STATEMENTS:
            await session.execute(statement)
        prepared = (await session.execute(PREPARED)).one()
        await session.commit()
    return prepared


# -- prepared statements -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pool_reset_on_return": None}])
@pytest.mark.parametrize("level", ["full", "full+prepared", "transaction", "none"])
async def test_nothing_is_prepared_twice(
    on_server: Database, options: dict[str, Any], level: str
) -> None:
    """Whichever reset runs: the server has prepared each statement once, at the first session."""
    url = f"{on_server.url}?reset={level.replace('+', '%2B')}"
    if on_server.module is poolkit.drivers.psycopg:
        url += "&prepare_threshold=0"
    async with opened(Database(url, on_server.query), max_size=1) as pool:
        engine = create_async_engine(pool, **options)
        first = await session(engine)
        await at_rest(pool)
        assert first[0] >= len(STATEMENTS) + 1
        second = await session(engine)  # finds all, the last one included
        for _ in range(10):
            await at_rest(pool)
            assert await session(engine) == second
        assert second[0] <= first[0] + 1
        assert pool.stats().connected == 1


async def test_statements_outlive_other_users_of_the_connection(on_postgresql: Database) -> None:
    """Of the pool, and of another engine: asyncpg ends their statements, and not SQLAlchemy's."""
    async with opened(on_postgresql, max_size=1) as pool:
        engine, other = create_async_engine(pool), create_async_engine(pool)
        await session(engine)
        await at_rest(pool)
        before = await session(engine)
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT 7") == 7
            statement = await conn.prepare("SELECT 8", name="mine")
            assert await statement.fetchval() == 8
        await at_rest(pool)
        await session(other)
        await at_rest(pool)
        assert (await session(engine))[1] >= before[1]
        async with engine.connect() as conn:
            sql = "SELECT max(prepare_time) FROM pg_prepared_statements WHERE statement = 'SELECT 0 FROM t'"
            newest = await conn.scalar(sa.text(sql))
            assert newest is not None
        await at_rest(pool)
        await session(engine)
        async with engine.connect() as conn:
            assert await conn.scalar(sa.text(sql)) == newest


async def test_statements_with_names_of_the_users_making_live_on(on_postgresql: Database) -> None:
    """SQLAlchemy's recipe for poolers names them; poolkit's reset ends only what others have named."""
    numbers = iter(range(10_000))
    arguments = {"prepared_statement_name_func": lambda: f"named_{next(numbers)}"}
    async with opened(on_postgresql, max_size=1) as pool:
        engine = create_async_engine(pool, connect_args=arguments)
        await session(engine)
        second = await session(engine)
        for _ in range(3):
            await at_rest(pool)
            assert await session(engine) == second


async def test_a_cache_of_none_prepares_and_forgets(on_postgresql: Database) -> None:
    """As behind a pooler; with ``pooler="transaction"`` it is what there is without asking."""
    pool = poolkit.create_pool(f"{on_postgresql.url}?pooler=transaction", max_size=1)
    async with pool:
        engine = create_async_engine(pool)
        for _ in range(3):
            assert (await session(engine))[0] == 0
        fairy: Any = await engine.raw_connection()
        assert fairy.dbapi_connection._prepared_statement_cache is None
        await sa.util.concurrency.greenlet_spawn(fairy.close)
    numbers = iter(range(10_000))
    arguments = {
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: f"named_{next(numbers)}",
    }
    async with opened(on_postgresql, max_size=1) as pool:
        engine = create_async_engine(pool, connect_args=arguments)
        for _ in range(5):
            await session(engine)
            await at_rest(pool)
        assert pool.stats().connected == 1


# -- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine_options", [{}, {"pool_reset_on_return": "commit"}])
async def test_a_session_takes_one_trip_more_than_with_sqlalchemys_own_pool(
    on_server: Database, engine_options: dict[str, Any]
) -> None:
    """For the full reset, in no task of the session's; none at the level ``"transaction"``."""
    address = urlsplit(on_server.url)
    trips = []
    with CountingProxy(str(address.hostname), address.port or 0) as proxy:
        dsn = on_server.url.replace(f":{address.port}/", f":{proxy.port}/")
        light = Database(f"{dsn}?reset=transaction", on_server.query)
        scheme = "postgresql+asyncpg" if address.scheme == "postgresql" else address.scheme
        theirs = create_their_engine(
            dsn.replace(f"{address.scheme}://", f"{scheme}://"), **engine_options
        )
        async with (
            opened(light, max_size=1) as light_pool,
            opened(Database(dsn, on_server.query), max_size=1) as pool,
        ):
            for engine in (
                theirs,
                create_async_engine(light_pool, **engine_options),
                create_async_engine(light_pool, pool_reset_on_return=None),
                create_async_engine(pool, **engine_options),
                create_async_engine(pool, pool_reset_on_return=None),
            ):
                for _ in range(2):
                    await session(engine)
                    await at_rest(pool)
                before = proxy.trips
                await session(engine)
                await at_rest(pool)
                trips.append(proxy.trips - before)
        await theirs.dispose()
    of_theirs = len(STATEMENTS) + 3  # BEGIN, one more, COMMIT
    assert trips == [of_theirs] * 3 + [of_theirs + 1] * 2


# -- what is undone ------------------------------------------------------------------------------


async def test_a_function_given_as_reset_always_runs(on_server: Database) -> None:
    """Somebody relies on it."""

    async def reset(conn: Any) -> None:
        await conn.execute("RESET ALL")

    async with on_server.module.create_pool(on_server.url, max_size=1, reset=reset) as pool:
        engine = create_async_engine(pool)
        async with engine.begin() as conn:
            await conn.execute(PUT)
        await at_rest(pool)
        async with engine.connect() as conn:
            assert await conn.scalar(READ) == ""


@pytest.mark.parametrize("left", ["listener", "codec", "settings"])
async def test_what_is_changed_beside_sqlalchemy_is_undone(
    on_postgresql: Database, left: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On the driver's connection: what its methods have left behind is seen without asking."""
    async with opened(on_postgresql, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            own: Any = (await conn.get_raw_connection()).driver_connection
            if left == "listener":
                await own.add_listener("channel", print)
            elif left == "codec":
                await own.set_type_codec("int4", encoder=str, decoder=str, schema="pg_catalog")
            else:
                await own.execute("BEGIN")
        await at_rest(pool)
        async with pool.acquire() as own:
            assert await own.fetchval("SELECT 1") == 1
            assert await own.fetch("SELECT pg_listening_channels()") == []
            assert not own.is_in_transaction()
        assert pool.stats().connected == 1


@pytest.mark.parametrize("by", ["SQLAlchemy", "the driver"])
async def test_a_statement_still_under_way_is_ended_for_the_next_user(
    on_server: Database, by: str
) -> None:
    """Another task's, on a connection in autocommit: no rollback meets it."""
    spawn = sa.util.concurrency.greenlet_spawn
    async with opened(on_server, max_size=1) as pool:
        engine = create_async_engine(pool, isolation_level="AUTOCOMMIT")
        fairy: Any = await engine.raw_connection()
        cursor = await spawn(fairy.cursor)
        work = (
            spawn(cursor.execute, ENDLESS)
            if by == "SQLAlchemy"
            else fairy.driver_connection.execute(ENDLESS)
        )
        busy = asyncio.create_task(work)
        sleeping = "wait_event = 'PgSleep' AND datname = current_database()"
        sql = f"SELECT count(*) FROM pg_stat_activity WHERE {sleeping}"

        async def asleep() -> bool:
            return await asyncio.to_thread(on_server.query, sql) == [(1,)]

        await until_true(asleep)
        await spawn(fairy.close)
        async with engine.connect() as conn:
            assert await conn.scalar(sa.text("SELECT 1")) == 1
        with pytest.raises(Exception, match=r"no longer leased|canceling statement|is over"):
            await busy


async def test_an_open_transaction_is_rolled_back_without_sqlalchemys_help(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """With ``pool_reset_on_return=None``, and the next session begins one of its own."""
    async with opened(database, max_size=1) as pool:
        engine = create_async_engine(pool, pool_reset_on_return=None)
        for _ in range(2):
            fairy: Any = await engine.raw_connection()
            cursor = await sa.util.concurrency.greenlet_spawn(fairy.cursor)
            await sa.util.concurrency.greenlet_spawn(cursor.execute, "INSERT INTO t VALUES (1)")
            await sa.util.concurrency.greenlet_spawn(cursor.close)
            await sa.util.concurrency.greenlet_spawn(fairy.close)
            await at_rest(pool)
        assert database.rows() == []
        async with engine.begin() as conn:
            await conn.execute(sa.text("INSERT INTO t VALUES (2)"))
            await asyncio.sleep(0)
            assert database.rows() == [] or database.is_sqlite
        assert database.rows() == [2]
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "an open transaction was left behind" in warnings[0].getMessage()
    assert "test_reset.py" in warnings[0].getMessage()


async def test_the_pools_own_users_find_sqlite_in_autocommit(on_sqlite: Database) -> None:
    """SQLAlchemy's transactions begin by themselves; theirs do not, on the same connection."""
    async with opened(on_sqlite, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            await conn.execute(sa.text("INSERT INTO t VALUES (1)"))
        async with pool.acquire() as own:
            assert own.isolation_level is None
            await own.execute("INSERT INTO t VALUES (2)")
        assert on_sqlite.rows() == [2]


@pytest.mark.parametrize("where", ["on_psycopg", "on_sqlite"])
async def test_an_engine_over_another_pool_that_is_rolled_back_is_refused(
    where: str, request: pytest.FixtureRequest
) -> None:
    """Its first commit would be found out later, and less clearly."""
    async with opened(request.getfixturevalue(where)) as pool, rollback(pool) as pinned:
        with pytest.raises(poolkit.PoolConfigError, match="on asyncpg only"):
            create_async_engine(pinned)


async def test_an_engine_over_a_pool_that_is_rolled_back(on_postgresql: Database) -> None:
    """`poolkit.testing.rollback`: what a session commits, the next one sees, and nobody else."""
    async with opened(on_postgresql) as pool, rollback(pool) as pinned:
        engine = create_async_engine(pinned)
        async with AsyncSession(engine) as session:
            await session.execute(sa.text("INSERT INTO t VALUES (1)"))
            await session.commit()
        async with AsyncSession(engine) as session:
            await session.execute(sa.text("INSERT INTO t VALUES (2)"))
        async with AsyncSession(engine) as session:
            assert (await session.scalars(sa.text("SELECT x FROM t"))).all() == [1]
        assert on_postgresql.rows() == []
