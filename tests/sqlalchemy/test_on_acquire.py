"""What `on_acquire` sets for one user is no part of what resets go back to, whichever came first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

import poolkit
from poolkit.sqlalchemy import create_async_engine
from tests.drivers.asyncpg_help import until
from tests.sqlalchemy.conftest import Database, opened, value

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

SHOWN = (
    "SELECT concat_ws(' ', current_user, current_setting('search_path'),"
    " current_setting('app.tenant', true))"
)


@pytest.fixture(scope="session")
def roles(of_postgresql: Database) -> None:
    """Create two more roles."""
    for sql in ("CREATE ROLE tenant_a", "CREATE ROLE set_up_for_all"):
        of_postgresql.query(sql)


@pytest.fixture
def tenants(roles: None, on_server: Database) -> Database:
    """Return a database with those roles."""
    return on_server


class Greeting:
    """An `on_acquire` that does something for one user, and nothing for the others."""

    def __init__(self, *statements: str) -> None:
        self.statements = statements
        self.is_on = True
        self.count = 0

    async def __call__(self, conn: Any) -> None:
        """Do it, or not."""
        self.count += 1
        for sql in self.statements if self.is_on else ():
            await conn.execute(sql)


async def by_engine(engine: AsyncEngine, sql: str = SHOWN) -> Any:
    """Return what a question of SQLAlchemy's shows."""
    async with engine.connect() as conn:
        return await conn.scalar(sa.text(sql))


async def by_lease(pool: poolkit.Pool[Any], sql: str = SHOWN) -> Any:
    """Return what the pool's other users see."""
    async with pool.acquire() as conn:
        return await value(conn, sql)


def _on_connect(*statements: str) -> Callable[[Any], Any]:
    async def set_up(conn: Any) -> None:
        for sql in statements:
            await conn.execute(sql)

    return set_up


EVENTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "sets": ("SET work_mem = '5MB'",),
    "reads": ("SELECT current_setting('app.tenant', true)",),
}


@pytest.mark.parametrize("does", EVENTS)
@pytest.mark.parametrize("base", [(), ("SET ROLE set_up_for_all",)], ids=["login", "role"])
async def test_the_tenant_of_an_engines_first_lease_is_nobody_elses(
    tenants: Database, base: tuple[str, ...], does: str
) -> None:
    """Its own lease has all that was set for it, and the next one what it has without an engine."""
    greeting = Greeting(
        "RESET ROLE; SET ROLE tenant_a", "SET search_path = theirs", "SET app.tenant = 'a'"
    )
    options = {"max_size": 1, "on_connect": _on_connect(*base), "on_acquire": greeting}
    async with opened(tenants, **options) as pool:
        greeting.is_on = False
        before = await by_lease(pool)
        for engine in (create_async_engine(pool), create_async_engine(pool)):

            @event.listens_for(engine.sync_engine, "connect")
            def connect(dbapi_connection: Any, _: Any) -> None:
                cursor = dbapi_connection.cursor()
                for sql in EVENTS[does]:
                    cursor.execute(sql)
                cursor.close()

            greeting.is_on = True
            for _ in range(2):
                count = greeting.count
                assert await by_engine(engine) == "tenant_a theirs a"
                assert greeting.count == count + 1
            greeting.is_on = False
            assert (await by_lease(pool)).rstrip() == before
            assert (await by_engine(engine)).rstrip() == before
        if does == "sets":
            assert await by_lease(pool, "SHOW work_mem") == "5MB"
        assert pool.stats().connected == 1


@pytest.mark.parametrize(
    "statement",
    ["CREATE TEMP TABLE mine (x int)", "SELECT pg_advisory_lock_shared(1)", "LISTEN news"],
)
async def test_what_on_acquire_makes_is_there_in_an_engines_first_lease(
    on_server: Database, statement: str
) -> None:
    """It was refused, and an event listener blamed, although the reset undoes it."""
    sql = (
        "SELECT (SELECT count(*) FROM pg_listening_channels())"
        " + (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')"
        " + (SELECT count(*) FROM pg_class WHERE relname = 'mine')"
    )
    async with opened(on_server, max_size=1, on_acquire=Greeting(statement)) as pool:
        engine = create_async_engine(pool)
        for _ in range(2):
            assert await by_engine(engine, sql) == 1


async def test_a_listener_of_on_acquire_hears_in_an_engines_first_lease(
    on_postgresql: Database,
) -> None:
    """And in no other lease."""
    heard: list[Any] = []

    async def greet(conn: Any) -> None:
        await conn.add_listener("news", lambda *news: heard.append(news[-1]))

    async with opened(on_postgresql, max_size=1, on_acquire=greet) as pool:
        engine = create_async_engine(pool)
        for number in range(2):
            async with engine.connect() as conn:
                await conn.execute(sa.text(f"NOTIFY news, '{number}'"))
                await conn.commit()
                await until(lambda: len(heard) > number)  # noqa: B023  # called here
    assert heard == ["0", "1"]


async def test_an_on_acquire_that_fails_in_an_engines_first_lease_costs_nothing(
    database: Database,
) -> None:
    """Its error is the caller's, as in a lease of the pool's own."""
    bad = True

    async def greet(_: Any) -> None:
        if bad:
            raise ValueError("no tenant")

    async with opened(database, max_size=1, on_acquire=greet) as pool:
        engine = create_async_engine(pool)
        for _ in range(2):
            with pytest.raises(ValueError, match="no tenant"):
                await by_engine(engine, "SELECT 1")
            assert pool.stats().leased == 0
        bad = False
        assert await by_engine(engine, "SELECT 1") == 1
        bad = True
        with pytest.raises(ValueError, match="no tenant"):
            await by_engine(engine, "SELECT 1")
        bad = False
        assert await by_engine(engine, "SELECT 1") == 1
        assert pool.stats().connected == 1


@pytest.mark.parametrize(
    ("left", "sql"),
    [
        ("SET ROLE tenant_a", "SELECT current_user"),
        ("SET statement_timeout = 54321", "SHOW statement_timeout"),
        ("LISTEN news", "SELECT count(*) FROM pg_listening_channels()"),
        ("SET app.tenant = 'a'", "SELECT current_setting('app.tenant', true)"),
    ],
)
@pytest.mark.parametrize("level", ["transaction", "function"])
async def test_what_a_stranger_has_left_is_not_taken_for_the_base(
    tenants: Database, level: str, left: str, sql: str
) -> None:
    """At levels that leave the session alone: an engine took it for what it had set up itself."""

    async def undo(conn: Any) -> None:
        """Undo nothing."""

    reset: Any = undo if level == "function" else level
    pool = tenants.module.create_pool(tenants.url, max_size=1, reset=reset)
    async with pool:
        before = str(await by_lease(pool, sql) or "")
        pid = await by_lease(pool, "SELECT pg_backend_pid()")
        async with pool.acquire() as conn:
            await conn.execute(left)
        engine = create_async_engine(pool)

        @event.listens_for(engine.sync_engine, "connect")
        def connect(dbapi_connection: Any, _: Any) -> None:
            cursor = dbapi_connection.cursor()
            cursor.execute("SELECT current_setting('app.tenant', true)")
            cursor.close()

        assert str(await by_engine(engine, sql) or "") == before
        assert str(await by_lease(pool, sql) or "") == before
        assert await by_engine(engine, "SELECT pg_backend_pid()") == pid


async def test_sqlites_state_of_on_acquire_is_undone_after_an_engines_first_lease(
    on_sqlite: Database,
) -> None:
    """Pragmas, functions and temporary tables, as after any other lease."""
    is_on = True

    async def greet(conn: Any) -> None:
        if is_on:
            await conn.execute("PRAGMA recursive_triggers = on")
            await conn.execute("CREATE TEMP TABLE t AS SELECT 666 AS x")
            await conn.create_function("twice", 1, lambda x: 2 * x)

    async with opened(on_sqlite, max_size=1, on_acquire=greet) as pool:
        engine = create_async_engine(pool)
        sql = "SELECT (SELECT recursive_triggers FROM pragma_recursive_triggers) + count(*) FROM t"
        for _ in range(2):
            async with engine.connect() as conn:
                assert await conn.scalar(sa.text(sql)) == 2
                assert await conn.scalar(sa.text("SELECT twice(2)")) == 4
        is_on = False
        for _ in range(2):
            async with pool.acquire() as own:
                assert list(await own.execute_fetchall(sql)) == [(0,)]
                with pytest.raises(Exception, match="no such function"):
                    await own.execute_fetchall("SELECT twice(2)")
            async with engine.connect() as conn:
                assert await conn.scalar(sa.text(sql)) == 0
        assert pool.stats().connected == 1


async def test_connection_that_is_rejected_is_replaced(database: Database) -> None:
    """SQLAlchemy's user sees why; the next one gets a new connection."""
    rejects = True

    async def on_acquire(_: Any) -> None:
        if rejects:
            raise poolkit.AnotherConnection("not this one")

    async with opened(database, max_size=1, on_acquire=on_acquire) as pool:
        engine = create_async_engine(pool)
        for _ in range(2):
            with pytest.raises(poolkit.AnotherConnection, match="not this one"):
                await by_engine(engine, "SELECT 1")
        rejects = False
        assert await by_engine(engine, "SELECT 1") == 1
        rejects = True
        with pytest.raises(poolkit.AnotherConnection, match="not this one"):
            await by_engine(engine, "SELECT 1")
        await until(lambda: pool.stats().retired["rejected"] == 3)
        assert pool.stats().leased == 0
