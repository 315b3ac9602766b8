"""What a session of SQLAlchemy's has left: neither the next `Connection` nor the next `Session` sees it."""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints.

import asyncio
import random
from typing import Annotated, Any, NamedTuple

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.util.concurrency import greenlet_spawn

import poolkit
from poolkit.sqlalchemy import create_async_engine, session_dependency
from tests.integrations.live import serve
from tests.sqlalchemy.conftest import Database, at_rest, noted_resets, opened, value


class State(NamedTuple):
    """Something that a session can leave, and how it is seen."""

    left_by: tuple[str, ...]
    seen_by: str


def _is_set(name: str) -> str:
    return f"SELECT current_setting('{name}', true)"


STATES = {
    "role": State(("SET ROLE handed_on",), "SELECT current_user"),
    "session_authorization": State(("SET SESSION AUTHORIZATION handed_on",), "SELECT session_user"),
    "set_config": State(
        ("SELECT set_config('app.tenant', 'alice', false)",),
        "SELECT coalesce(current_setting('app.tenant', true), '')",
    ),
    "search_path": State(("SET search_path = elsewhere",), _is_set("search_path")),
    "read_only": State(
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",),
        _is_set("default_transaction_read_only"),
    ),
    "time_limit": State(("SET statement_timeout = 54321",), _is_set("statement_timeout")),
    "triggers_off": State(
        ("SET session_replication_role = replica",), _is_set("session_replication_role")
    ),
    "temporary_table": State(
        ("CREATE TEMP TABLE t (x int)", "INSERT INTO t VALUES (666)"), "SELECT count(*) FROM t"
    ),
    "temporary_view": State(("CREATE TEMP VIEW t AS SELECT 666",), "SELECT count(*) FROM t"),
    "temporary_function": State(
        ("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",),
        "SELECT count(*) FROM pg_proc WHERE proname = 'f'",
    ),
    "advisory_lock": State(
        ("SELECT pg_advisory_lock(4711)",),
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
    ),
    "LISTEN": State(("LISTEN news",), "SELECT count(*) FROM pg_listening_channels()"),
    "held_cursor": State(
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1",),
        "SELECT count(*) FROM pg_cursors WHERE name = 'c'",
    ),
    "sequence": State(
        ("CREATE SEQUENCE IF NOT EXISTS s", "SELECT nextval('s')"), "SELECT lastval()"
    ),
}


@pytest.fixture(scope="session")
def role(of_postgresql: Database) -> None:
    """Create another role, which a superuser may become."""
    of_postgresql.query("CREATE ROLE handed_on")


@pytest.fixture
def handed_on(role: None, on_server: Database) -> Database:
    """Return a database with that role."""
    return on_server


async def look(fetch: Any, sql: str) -> str:
    """Return what a question shows, or the kind of error."""
    try:
        return str(await fetch(sql))
    except (asyncpg.PostgresError, psycopg.Error) as error:
        return type(error).__name__
    except sa.exc.DBAPIError as error:  # of SQLAlchemy's adapter for asyncpg
        return type(getattr(error.orig, "__cause__", None) or error.orig).__name__


def application(pool: poolkit.Pool[Any], session: Any) -> FastAPI:
    """Return one whose endpoints leave something, and look."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    Session = Annotated[AsyncSession, Depends(session)]  # noqa: N806

    @app.get("/leave/{name}")
    async def leave(name: str, session: Session) -> None:
        for sql in STATES[name].left_by:
            await session.execute(sa.text(sql))

    @app.get("/session/{name}")
    async def by_session(name: str, session: Session) -> str:
        return await look(lambda sql: session.scalar(sa.text(sql)), STATES[name].seen_by)

    @app.get("/connection/{name}")
    async def by_connection(name: str, conn: poolkit.fastapi.Connection[Any]) -> str:
        return await look(lambda sql: value(conn, sql), STATES[name].seen_by)

    return app


def maker_with(pool: poolkit.Pool[Any], **options: Any) -> Any:
    """Return the dependency on sessions of an engine with options."""
    return session_dependency(async_sessionmaker(create_async_engine(pool, **options)))


ENGINES: dict[str, Any] = {
    "Session": lambda _: poolkit.fastapi.session,
    "AUTOCOMMIT": lambda pool: maker_with(pool, isolation_level="AUTOCOMMIT"),
    "commit": lambda pool: maker_with(pool, pool_reset_on_return="commit"),
    "None": lambda pool: maker_with(pool, pool_reset_on_return=None),
}


@pytest.mark.parametrize("kind", ENGINES)
async def test_what_a_session_has_left_the_next_request_does_not_see(
    handed_on: Database, kind: str
) -> None:
    """Whatever SQLAlchemy's own reset is: the pool's runs after it, on the same connection."""
    pool = poolkit.create_pool(handed_on.url, max_size=1)
    async with serve(application(pool, ENGINES[kind](pool))) as client:
        for name in STATES:
            before = {where: (await client.get(f"/{where}/{name}")).json for where in LOOKS}
            for where in LOOKS:
                assert (await client.get(f"/leave/{name}")).status == 200, name
                assert (await client.get(f"/{where}/{name}")).json == before[where], name
        await at_rest(pool)
        assert pool.stats().connected == 1


LOOKS = ("connection", "session")


@pytest.mark.parametrize("how", ["connect", "begin", "raw", "AUTOCOMMIT", "rolled back", "detach"])
async def test_whichever_way_an_engine_is_used_its_state_ends_with_the_checkout(
    handed_on: Database, how: str
) -> None:
    """Core as well, a rollback of the user's, and a level of isolation for one checkout."""
    async with opened(handed_on, max_size=1) as pool:
        engine = create_async_engine(pool)
        if how == "raw":
            fairy: Any = await engine.raw_connection()
            cursor = await greenlet_spawn(fairy.cursor)
            await greenlet_spawn(cursor.execute, "SET ROLE handed_on")
            await greenlet_spawn(fairy.dbapi_connection.commit)
            await greenlet_spawn(fairy.close)
        elif how == "begin":
            async with engine.begin() as conn:
                await conn.execute(sa.text("SET ROLE handed_on"))
        else:
            async with engine.connect() as conn:
                if how == "AUTOCOMMIT":
                    await conn.execution_options(isolation_level="AUTOCOMMIT")
                await conn.execute(sa.text("SET ROLE handed_on"))
                if how != "rolled back":
                    await conn.commit()
                if how == "detach":
                    (await conn.get_raw_connection()).detach()
        async with pool.acquire() as own:
            assert await value(own, "SELECT current_user = session_user")
        async with engine.connect() as conn:
            assert await conn.scalar(sa.text("SELECT current_user = session_user"))


async def test_at_the_level_transaction_a_session_costs_no_trip_and_keeps_what_it_sets(
    handed_on: Database,
) -> None:
    """The documented way out: for those who use SET LOCAL and pg_advisory_xact_lock."""
    url = f"{handed_on.url}?reset=transaction"
    async with opened(Database(url, handed_on.query), max_size=1) as pool:
        engine = create_async_engine(pool)
        for level in ("", "LOCAL"):
            async with AsyncSession(engine) as session:
                await session.execute(sa.text(f"SET {level} ROLE handed_on"))
                await session.commit()
            async with pool.acquire() as own:
                stays = await value(own, "SELECT current_user <> session_user")
                assert stays == (not level)
                await own.execute("RESET ROLE")


async def test_a_checkout_that_did_nothing_has_nothing_reset(
    handed_on: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with every lease: what was not touched needs no clean-up."""
    resets = noted_resets(handed_on, monkeypatch)
    async with opened(handed_on, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            await conn.execute(sa.text("SELECT 1"))
        await at_rest(pool)
        assert len(resets) == 1
        for _ in range(3):
            async with engine.connect():
                pass
            await at_rest(pool)
        assert len(resets) == 1


# -- SQLite --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_by", "seen_by"),
    [
        ("PRAGMA foreign_keys = off", "PRAGMA foreign_keys"),
        ("PRAGMA busy_timeout = 1", "PRAGMA busy_timeout"),
    ],
)
async def test_what_a_session_sets_on_sqlite_ends_with_it(
    on_sqlite: Database, left_by: str, seen_by: str
) -> None:
    """Settings of the driver's are what they were for the pool's own users and the next session."""
    async with opened(on_sqlite, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            before = await conn.scalar(sa.text(seen_by))
        async with engine.connect() as conn:
            await conn.exec_driver_sql(left_by)
            assert await conn.scalar(sa.text(seen_by)) != before
        async with pool.acquire() as own:
            assert list(await own.execute_fetchall(seen_by)) == [(before,)]
        async with engine.connect() as conn:
            await conn.exec_driver_sql(left_by)
        async with engine.connect() as conn:
            assert await conn.scalar(sa.text(seen_by)) == before


async def test_a_session_that_reads_and_writes_on_sqlite_needs_no_reset(
    on_sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statements that can have left nothing, transactions and savepoints among them."""
    from poolkit.drivers.sqlite._connection import Raw

    cleaned = []
    async with opened(on_sqlite, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect():  # SQLAlchemy sets up the connection, and gets to know it
            pass
        await at_rest(pool)
        monkeypatch.setattr(Raw, "clean", lambda self: cleaned.append(self))
        async with AsyncSession(engine) as session:
            await session.execute(sa.text("INSERT INTO t VALUES (1)"))
            async with session.begin_nested():
                await session.execute(sa.text("INSERT INTO t VALUES (2)"))
            nested = await session.begin_nested()
            await session.execute(sa.text("INSERT INTO t VALUES (3)"))
            await nested.rollback()
            await session.execute(sa.text("INSERT INTO t VALUES (:x)"), [{"x": 4}, {"x": 5}])
            await session.commit()
            assert (await session.scalar(sa.text("SELECT count(*) FROM t"))) == 4
            await session.execute(sa.text("DELETE FROM t"))
            await session.rollback()
        await at_rest(pool)
    assert cleaned == []
    assert on_sqlite.rows() == [1, 2, 4, 5]


# -- many at once --------------------------------------------------------------------------------


def upper(json: Any) -> str:
    """Parse nothing; psycopg gives bytes."""
    return (json.decode() if isinstance(json, bytes) else str(json)).upper()


async def test_many_at_once_and_cancelled_see_nothing_of_each_other(handed_on: Database) -> None:
    """Sessions of two engines and leases of the pool's, by turns on three connections."""
    chance = random.Random(16)
    tenant = "SELECT coalesce(current_setting('app.tenant', true), '')"
    json = """SELECT '{"a": 1}'::jsonb"""
    typed = sa.text(json).columns(sa.column("x", JSONB))
    of_lease: Any = {"a": 1} if handed_on.module is poolkit.drivers.psycopg else '{"a": 1}'

    async def by_session(engine: AsyncEngine, name: str, parsed: object) -> None:
        async with AsyncSession(engine) as session:
            assert await session.scalar(sa.text(tenant)) == ""
            await session.execute(sa.text(f"SELECT set_config('app.tenant', '{name}', false)"))
            assert await session.scalar(typed) == parsed
            assert await session.scalar(sa.text(tenant)) == name
            await session.commit()

    async def by_lease(name: str) -> None:
        async with pool.acquire() as conn:
            assert await value(conn, tenant) == ""
            await conn.execute(f"SET app.tenant = '{name}'")
            assert await value(conn, json) == of_lease
            assert await value(conn, tenant) == name

    async with opened(handed_on, max_size=3, acquire_timeout=None) as pool:
        plain = create_async_engine(pool)
        loud = create_async_engine(pool, json_deserializer=upper)
        tasks = []
        for number in range(60):
            name = f"tenant-{number}"
            kind = chance.randrange(3)
            work = (
                by_lease(name)
                if kind == 0
                else by_session(plain, name, {"a": 1})
                if kind == 1
                else by_session(loud, name, '{"A": 1}')
            )
            tasks.append(asyncio.create_task(work))
        while pending := [task for task in tasks if not task.done()]:
            if len(pending) > 30 and chance.random() < 0.3:
                pending[0].cancel()
            await asyncio.wait(pending, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
        errors = [task.exception() for task in tasks if not task.cancelled()]
        assert [error for error in errors if error is not None] == []
        await at_rest(pool)
