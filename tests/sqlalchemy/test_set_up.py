"""What SQLAlchemy sets up on a connection: codecs for its own leases, and a session for all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.ext.asyncio import AsyncSession

import poolkit
from poolkit.sqlalchemy import create_async_engine
from tests.drivers.asyncpg_help import until
from tests.sqlalchemy.conftest import Database, at_rest, opened, value

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

VALUE = """SELECT '{"a": [1]}'::jsonb"""
JSON_VALUE = """SELECT '{"a": [1]}'::json"""
TYPED = sa.text(VALUE).columns(sa.column("x", JSONB))
JSON_TYPED = sa.text(JSON_VALUE).columns(sa.column("x", JSON))
PARSED = {"a": [1]}


async def of_session(engine: AsyncEngine) -> list[Any]:
    """Return what a session makes of json and jsonb, its types and the driver's connection."""
    async with AsyncSession(engine) as session:
        own: Any = (await (await session.connection()).get_raw_connection()).driver_connection
        found = [await session.scalar(TYPED), await session.scalar(JSON_TYPED)]
        found += [await own.fetchval(VALUE), await own.fetchval(JSON_VALUE)]
        await session.commit()
    return found


async def of_lease(pool: poolkit.Pool[Any]) -> list[Any]:
    """Return what a lease of the pool's own users makes of them."""
    async with pool.acquire() as conn:
        statement = await conn.prepare(VALUE)
        found = [await conn.fetchval(VALUE), await conn.fetchval(JSON_VALUE)]
        return [*found, await statement.fetchval()]


# -- codecs --------------------------------------------------------------------------------------


async def test_json_is_what_each_expects_on_one_connection(on_postgresql: Database) -> None:
    """SQLAlchemy's users get dictionaries and the pool's strings, whoever came first."""
    async with opened(on_postgresql, max_size=1) as pool:
        engine = create_async_engine(pool)
        for _ in range(3):
            assert await of_lease(pool) == ['{"a": [1]}'] * 3
            assert await of_session(engine) == [PARSED] * 4
            async with engine.connect():
                pass  # nothing is done with it, and so nothing reset
        assert await of_lease(pool) == ['{"a": [1]}'] * 3
        assert pool.stats().connected == 1


async def test_codecs_of_on_connect_are_the_pools_users(on_postgresql: Database) -> None:
    """SQLAlchemy's take their place in its own leases only; so do another engine's."""

    class Parsed(dict[str, Any]):
        pass

    async def set_up(conn: Any) -> None:
        for name in ("json", "jsonb"):
            await conn.set_type_codec(
                name,
                schema="pg_catalog",
                encoder=json.dumps,
                decoder=lambda x: Parsed(json.loads(x)),
            )

    async with opened(on_postgresql, max_size=1, on_connect=set_up) as pool:
        engine = create_async_engine(pool)
        other = create_async_engine(pool, json_deserializer=lambda text: text.upper())
        for _ in range(3):
            assert {type(found) for found in await of_lease(pool)} == {Parsed}
            assert {type(found) for found in await of_session(engine)} == {dict}
            assert await of_session(other) == ['{"A": [1]}'] * 4
        assert pool.stats().connected == 1


async def test_statements_of_both_are_prepared_once(on_postgresql: Database) -> None:
    """Each has those that were prepared for its codecs."""
    async with opened(on_postgresql, max_size=1) as pool:
        engine = create_async_engine(pool)

        async def prepared() -> list[Any]:
            async with pool.acquire() as conn:
                sql = "SELECT name FROM pg_prepared_statements WHERE NOT from_sql AND statement LIKE $1"
                return sorted(row[0] for row in await conn.fetch(sql, "%json%"))

        async def both() -> None:
            async with pool.acquire() as conn:
                await conn.fetchval(VALUE)
            async with AsyncSession(engine) as session:
                await session.scalar(TYPED)

        await both()
        await both()
        first = await prepared()
        for _ in range(5):
            await both()
        assert await prepared() == first


async def test_types_are_asked_for_once(
    on_postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To change codecs has asyncpg forget the types that it has asked the server about."""
    import asyncpg

    asked: list[Any] = []
    introspect = asyncpg.Connection._introspect_types  # type: ignore[attr-defined]

    async def noted(self: Any, types: Any, timeout: Any) -> Any:
        asked.append(types)
        return await introspect(self, types, timeout)

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", noted)
    on_postgresql.query("DROP TYPE IF EXISTS mood, moods")
    on_postgresql.query("CREATE TYPE mood AS ENUM ('happy', 'sad')")
    on_postgresql.query("CREATE TYPE moods AS (one mood, more mood[])")
    sql = "SELECT ROW('sad', '{happy,sad}')::moods, '{sad}'::mood[], %s"
    async with opened(on_postgresql, max_size=1) as pool:
        engine = create_async_engine(pool)
        for number in range(6):
            async with pool.acquire() as conn:
                row = await conn.fetchrow(sql % number)
                assert (tuple(row[0]), row[1]) == (("sad", ["happy", "sad"]), ["sad"])
            async with engine.connect() as conn:
                row = (await conn.execute(sa.text((sql % number).replace(":", "\\:")))).one()
                assert (tuple(row[0]), row[1]) == (("sad", ["happy", "sad"]), ["sad"])
    assert len(asked) == 1


@pytest.mark.parametrize("by", ["session", "on_acquire"])
async def test_a_codec_set_in_a_lease_ends_with_it_for_all(
    on_postgresql: Database, by: str
) -> None:
    """Also for the statements that SQLAlchemy has prepared with it."""
    greets = by == "on_acquire"

    async def greet(conn: Any) -> None:
        if greets:
            await set_codec(conn)

    async def set_codec(conn: Any) -> None:
        await conn.set_type_codec(
            "int8", schema="pg_catalog", encoder=str, decoder=lambda x: f"<{x}>"
        )

    number = sa.text("SELECT CAST(7 AS int8)")
    async with opened(on_postgresql, max_size=1, on_acquire=greet) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            if by == "session":
                assert await conn.scalar(number) == 7
                own: Any = (await conn.get_raw_connection()).driver_connection
                await set_codec(own)
                assert await conn.scalar(sa.text("SELECT CAST(8 AS int8)")) == "<8>"
            else:
                assert await conn.scalar(number) == "<7>"
        greets = False
        async with engine.connect() as conn:
            assert await conn.scalar(number) == 7
            assert await conn.scalar(sa.text("SELECT CAST(8 AS int8)")) == 8
            assert await conn.scalar(TYPED) == PARSED
        async with pool.acquire() as own:
            assert await own.fetchval("SELECT CAST(7 AS int8)") == 7
        assert pool.stats().connected == 1


@pytest.mark.parametrize("by", ["session", "lease"])
async def test_statements_that_the_server_has_forgotten_are_prepared_anew(
    on_postgresql: Database, by: str
) -> None:
    """After DISCARD ALL, in whosever lease that was."""
    async with opened(on_postgresql, max_size=1) as pool:
        engine, other = create_async_engine(pool), create_async_engine(pool)
        for _ in range(2):
            for one in (engine, other):
                assert await of_session(one) == [PARSED] * 4
            assert await of_lease(pool) == ['{"a": [1]}'] * 3
            if by == "session":
                async with engine.connect() as conn:
                    await conn.execution_options(isolation_level="AUTOCOMMIT")
                    await conn.execute(sa.text("DISCARD ALL"))
            else:
                async with pool.acquire() as own:
                    await own.execute("DISCARD ALL")
        assert await of_lease(pool) == ['{"a": [1]}'] * 3
        assert await of_session(engine) == [PARSED] * 4
        assert pool.stats().connected == 1


# -- the session ---------------------------------------------------------------------------------


def _plainly(dbapi_connection: Any, *statements: str) -> None:
    cursor = dbapi_connection.cursor()
    for sql in statements:
        cursor.execute(sql)
    cursor.close()


def _committed(dbapi_connection: Any, *statements: str) -> None:
    _plainly(dbapi_connection, *statements)
    dbapi_connection.commit()


def _in_autocommit(dbapi_connection: Any, *statements: str) -> None:
    """SQLAlchemy's own recipe."""
    before = dbapi_connection.autocommit
    dbapi_connection.autocommit = True
    _plainly(dbapi_connection, *statements)
    dbapi_connection.autocommit = before


def _by_the_driver(dbapi_connection: Any, *statements: str) -> None:
    for sql in statements:
        dbapi_connection.run_async(lambda own, sql=sql: own.execute(sql))


WAYS: list[Callable[..., None]] = [_plainly, _committed, _in_autocommit, _by_the_driver]
SET_UP = ("SET ROLE set_up", "SET search_path = elsewhere", "SET app.tenant = 'alice'")
SHOWN = sa.text(
    "SELECT concat_ws(' ', current_user, current_setting('search_path'),"
    " current_setting('app.tenant', true))"
)
AS_SET_UP = "set_up elsewhere alice"


@pytest.fixture(scope="session")
def role(of_postgresql: Database) -> None:
    """Create another role."""
    of_postgresql.query("CREATE ROLE set_up")


@pytest.fixture
def with_role(role: None, on_server: Database) -> Database:
    """Return a database with that role."""
    return on_server


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_connect_event_sets_holds_for_every_lease(
    with_role: Database, way: Callable[..., None]
) -> None:
    """It held for the first: then the engine went on with the rights of the login."""
    async with opened(with_role, max_size=1) as pool:
        engine = create_async_engine(pool)

        @event.listens_for(engine.sync_engine, "connect")
        def connect(dbapi_connection: Any, _: Any) -> None:
            way(dbapi_connection, *SET_UP)

        for _ in range(3):
            async with engine.connect() as conn:
                assert await conn.scalar(SHOWN) == AS_SET_UP
                for sql in ("RESET ROLE", "SET search_path = public", "SET app.tenant = 'bob'"):
                    await conn.execute(sa.text(sql))
                await conn.commit()
        async with pool.acquire() as own:
            assert await value(own, SHOWN.text) == AS_SET_UP
        assert pool.stats().connected == 1


async def test_a_second_engine_adds_to_what_was_set_up(with_role: Database) -> None:
    """Its connect events run on a connection that has the first one's."""
    async with opened(with_role, max_size=1) as pool:
        engines = [create_async_engine(pool) for _ in SET_UP]
        for engine, sql in zip(engines, SET_UP, strict=True):
            event.listen(engine.sync_engine, "connect", lambda c, _, sql=sql: _committed(c, sql))
            async with engine.connect():
                pass
        for engine in engines:
            async with engine.connect() as conn:
                assert await conn.scalar(SHOWN) == AS_SET_UP


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("CREATE TEMP TABLE mine (x int)", "table mine"),
        ("SELECT pg_advisory_lock(12)", "1 advisory lock"),
        ("LISTEN news", "LISTEN 'news'"),
    ],
)
async def test_what_a_connect_event_leaves_that_cannot_be_restored_is_refused(
    on_server: Database, statement: str, says: str
) -> None:
    """At once, in SQLAlchemy's words for who has done it; the slot is free again."""
    async with opened(on_server, max_size=1) as pool:
        engine = create_async_engine(pool)
        bad = True

        @event.listens_for(engine.sync_engine, "connect")
        def connect(dbapi_connection: Any, _: Any) -> None:
            if bad:
                _committed(dbapi_connection, statement)

        with pytest.raises(poolkit.PoolConfigError) as caught:
            await engine.connect()
        assert "an event listener has left" in str(caught.value)
        assert says in str(caught.value)
        await until(lambda: pool.stats().leased == 0)
        bad = False
        async with engine.connect() as conn:
            assert await conn.scalar(sa.text("SELECT 1")) == 1


async def test_callbacks_of_a_connect_event_stay(
    on_postgresql: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is blamed for them, and `on_acquire`'s end with the lease all the same."""
    heard: list[str] = []
    async with opened(on_postgresql, max_size=1) as pool:
        engine = create_async_engine(pool)

        @event.listens_for(engine.sync_engine, "connect")
        def connect(dbapi_connection: Any, _: Any) -> None:
            dbapi_connection.driver_connection.add_query_logger(lambda q: heard.append(q.query))

        for _ in range(3):
            async with engine.connect() as conn:
                await conn.execute(sa.text("SELECT 1"))
            await at_rest(pool)
            heard.clear()
            async with pool.acquire() as own:
                await own.execute("SELECT 2")
            await at_rest(pool)
            assert "SELECT 2" in heard
    assert "left behind" not in caplog.text


# -- SQLite --------------------------------------------------------------------------------------


async def test_what_a_connect_event_sets_on_sqlite_holds_for_every_lease(
    on_sqlite: Database,
) -> None:
    """SQLAlchemy's own functions among it; what a lease sets beside it is undone."""
    async with opened(on_sqlite, max_size=1) as pool:
        engine = create_async_engine(pool)

        @event.listens_for(engine.sync_engine, "connect")
        def connect(dbapi_connection: Any, _: Any) -> None:
            _plainly(dbapi_connection, "PRAGMA recursive_triggers = on")
            dbapi_connection.create_function("twice", 1, lambda x: 2 * x)

        shown = (
            "SELECT twice(21), 'abc' REGEXP 'b', recursive_triggers FROM pragma_recursive_triggers"
        )
        for _ in range(3):
            async with engine.connect() as conn:
                assert tuple((await conn.exec_driver_sql(shown)).one()) == (42, 1, 1)
                await conn.exec_driver_sql("PRAGMA recursive_triggers = off")
                await conn.exec_driver_sql("PRAGMA query_only = on")
            async with pool.acquire() as own:
                assert list(await own.execute_fetchall(shown)) == [(42, 1, 1)]
                await own.execute("INSERT INTO t VALUES (1)")
        assert pool.stats().connected == 1


async def test_a_class_of_connections_that_sets_codecs_in_its_own_way_keeps_sqlalchemys(
    on_postgresql: Database,
) -> None:
    """What it does cannot be done again: then they are for everybody, as long as it lives."""
    import asyncpg

    class Own(asyncpg.Connection):  # type: ignore[misc, unused-ignore]
        async def set_type_codec(self, *args: Any, **kwargs: Any) -> None:
            await super().set_type_codec(*args, **kwargs)

    async with poolkit.drivers.asyncpg.create_pool(
        on_postgresql.url, max_size=1, connect_kwargs={"connection_class": Own}
    ) as pool:
        engine = create_async_engine(pool)
        for _ in range(3):
            assert await of_session(engine) == [PARSED] * 4
        assert await of_lease(pool) == [PARSED] * 3


async def test_statements_kept_from_before_get_the_codecs_of_on_acquire(
    on_postgresql: Database,
) -> None:
    """An encoder that was skipped would write what it is there to hide."""
    is_on = False

    async def greet(conn: Any) -> None:
        if is_on:
            await conn.set_type_codec(
                "text", schema="pg_catalog", encoder=lambda x: f"<{x}>", decoder=str
            )

    async with opened(on_postgresql, max_size=1, on_acquire=greet) as pool:
        engine = create_async_engine(pool)
        for is_on in (False, True, True, False, False, True):
            async with engine.connect() as conn:
                sent = await conn.scalar(sa.text("SELECT CAST(:x AS text)"), {"x": "secret"})
                assert sent == ("<secret>" if is_on else "secret")
                assert await conn.scalar(TYPED) == PARSED


@pytest.fixture(params=["on_postgresql", "on_sqlite"])
def on_another(request: pytest.FixtureRequest) -> Database:
    """Return a database of each kind but psycopg's, whose settings have other names."""
    found: Database = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("level", [None, "AUTOCOMMIT"])
async def test_what_a_session_sets_on_sqlalchemys_own_connection_ends_with_it(
    on_another: Database, level: Any
) -> None:
    """Somebody's autocommit would have the next one's rollback undo nothing."""
    database = on_another
    async with opened(database, max_size=1) as pool:
        options = {} if level is None else {"isolation_level": level}
        engine = create_async_engine(pool, **options)

        @event.listens_for(engine.sync_engine, "connect")
        def connect(dbapi_connection: Any, _: Any) -> None:
            if not database.is_sqlite:
                dbapi_connection.deferrable = True

        def settings(adapter: Any) -> list[Any]:
            names = ("isolation_level", "readonly", "deferrable", "autocommit")
            return [getattr(adapter, name, None) for name in names]

        before: list[Any] = []
        for number in range(3):
            async with engine.connect() as conn:
                adapter: Any = (await conn.get_raw_connection()).dbapi_connection
                before = before or settings(adapter)
                assert settings(adapter) == before
                await conn.execute(sa.text(f"INSERT INTO t VALUES ({number})"))
                await conn.rollback()
                adapter.isolation_level = "IMMEDIATE" if database.is_sqlite else "serializable"
                if number == 1:
                    adapter.isolation_level = None if database.is_sqlite else "autocommit"
                if not database.is_sqlite:
                    adapter.readonly, adapter.deferrable = True, False
        assert database.rows() == ([] if level is None else [0, 1, 2])
        assert pool.stats().connected == 1
