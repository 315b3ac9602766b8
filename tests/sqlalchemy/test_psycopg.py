"""What is psycopg's alone of an engine over a pool of it; the rest is with the other drivers'."""

from __future__ import annotations

import asyncio
import gc
import inspect
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.rows import dict_row
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import HSTORE, INET, JSONB
from sqlalchemy.dialects.postgresql.base import PGDialect

import poolkit
from poolkit.drivers.psycopg import create_pool
from poolkit.sqlalchemy import create_async_engine
from tests.drivers.asyncpg_help import until
from tests.drivers.psycopg_kinds import value
from tests.fakes import gone
from tests.sqlalchemy.conftest import Database, at_rest, noted_resets, opened, terminate

if TYPE_CHECKING:
    from collections.abc import Callable

ONE = sa.text("SELECT 1")
JSON = """SELECT '{"a": 1}'::jsonb"""
TYPED = sa.text(JSON).columns(sa.column("x", JSONB))


async def own_of(conn: Any) -> Any:
    """Return psycopg's connection of one of SQLAlchemy's."""
    return (await conn.get_raw_connection()).driver_connection


# -- psycopg's object ----------------------------------------------------------------------------


async def test_pools_other_users_have_psycopgs_object_as_on_connect_has_left_it(
    on_psycopg: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLAlchemy's sessions have it as SQLAlchemy needs it, whoever came first."""

    async def set_up(conn: Any) -> None:
        conn.row_factory = dict_row
        conn.cursor_factory = psycopg.AsyncRawCursor
        conn.prepare_threshold = 7

    async with opened(on_psycopg, max_size=1, on_connect=set_up) as pool:
        engine = create_async_engine(pool, isolation_level="SERIALIZABLE")
        for _ in range(3):
            async with pool.acquire() as own:
                assert own.autocommit
                assert own.isolation_level is None
                assert own.prepare_threshold == 7
                cursor = await own.execute("SELECT $1::int AS x", (1,))
                assert await cursor.fetchone() == {"x": 1}
            async with engine.connect() as conn:
                assert await conn.scalar(sa.text("SELECT CAST(:x AS int)"), {"x": 2}) == 2
                assert await conn.scalar(sa.text("SHOW transaction_isolation")) == "serializable"
                assert not (await own_of(conn)).autocommit
        await at_rest(pool)
        assert pool.stats().connected == 1
    assert caplog.records == []


async def test_what_a_connect_event_sets_on_psycopgs_object_is_the_engines(
    on_psycopg: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """In each of its leases, and in nobody else's; other engines have their own."""
    heard: list[Any] = []
    async with opened(on_psycopg, max_size=1) as pool:
        engine, other = create_async_engine(pool), create_async_engine(pool)

        @event.listens_for(engine.sync_engine, "connect")
        def connect(dbapi_connection: Any, _: Any) -> None:
            dbapi_connection.set_deferrable(True)
            own = dbapi_connection.driver_connection
            own.adapters.register_loader("int4", psycopg.types.string.TextLoader)
            own.add_notice_handler(heard.append)
            own.prepare_threshold = 9
            own.mark = "engine's"

        notice = "DO $$BEGIN RAISE NOTICE 'heard'; END$$"
        for number in range(1, 4):
            async with engine.connect() as conn:
                own = await own_of(conn)
                assert (own.deferrable, own.prepare_threshold, own.mark) == (True, 9, "engine's")
                assert await conn.scalar(ONE) == "1"
                await conn.execute(sa.text(notice))
                assert len(heard) == number
            async with other.connect() as conn:
                assert await conn.scalar(ONE) == 1
                await conn.execute(sa.text(notice))
                assert not hasattr(await own_of(conn), "mark")
            async with pool.acquire() as own:
                assert (own.deferrable, own.prepare_threshold) == (None, 5)
                assert await value(own, "SELECT 1") == 1
                await own.execute(notice)
            assert len(heard) == number
        await at_rest(pool)
        assert pool.stats().connected == 1
    assert caplog.records == []


async def test_what_on_acquire_sets_on_psycopgs_object_stays_in_sqlalchemys_lease(
    on_psycopg: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside SQLAlchemy's own, from the first lease on, and in that lease only."""
    is_on, heard = True, list[Any]()

    async def greet(conn: Any) -> None:
        if is_on:
            assert conn.autocommit
            await conn.execute("SET app.tenant = 'a'")
            await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
            conn.adapters.register_loader("int4", psycopg.types.string.TextLoader)
            conn.add_notice_handler(heard.append)

    async with opened(on_psycopg, max_size=1, on_acquire=greet) as pool:
        engine = create_async_engine(pool, json_deserializer=lambda _: "parsed")
        for is_on in (True, True, False, True):
            heard.clear()
            async with engine.connect() as conn:
                assert await conn.scalar(ONE) == ("1" if is_on else 1)
                assert await conn.scalar(TYPED) == "parsed"
                level = await conn.scalar(sa.text("SHOW transaction_isolation"))
                assert level == ("serializable" if is_on else "read committed")
                tenant = await conn.scalar(sa.text("SELECT current_setting('app.tenant', true)"))
                assert (tenant or "") == ("a" if is_on else "")
                await conn.execute(sa.text("DO $$BEGIN RAISE NOTICE 'heard'; END$$"))
                assert len(heard) == is_on
        await at_rest(pool)
        assert pool.stats().connected == 1
    assert caplog.records == []


async def test_json_inet_and_hstore_are_what_sqlalchemy_is_told(on_psycopg: Database) -> None:
    """On the first connection, from which it learns, and on the second."""
    on_psycopg.query("CREATE EXTENSION IF NOT EXISTS hstore")
    hstore = sa.text("SELECT 'a=>1'::hstore").columns(sa.column("x", HSTORE))
    inet = sa.text("SELECT '::1'::inet").columns(sa.column("x", INET))

    def loads(text: Any) -> Any:
        return f"loaded {len(text)}"

    has_option = "native_inet_types" in inspect.signature(PGDialect.__init__).parameters
    as_text: Any = {"native_inet_types": False} if has_option else {}
    async with opened(on_psycopg, max_size=2) as pool:
        plain = create_async_engine(pool)
        told = create_async_engine(
            *(pool,),
            json_deserializer=loads,
            json_serializer=lambda _: '"dumped"',
            **as_text,
        )
        for _ in range(2):
            async with plain.connect() as one, plain.connect() as two:
                for conn in (one, two):
                    assert await conn.scalar(hstore) == {"a": "1"}
                    assert await conn.scalar(TYPED) == {"a": 1}
                    assert not isinstance(await conn.scalar(inet), str)
            async with told.connect() as one, told.connect() as two:
                for conn in (one, two):
                    assert await conn.scalar(TYPED) == "loaded 8"
                    sent = sa.select(sa.cast(sa.bindparam("x", {"b": 1}, JSONB), sa.Text))
                    assert await conn.scalar(sent) == '"dumped"'
                    assert isinstance(await conn.scalar(inet), str) == has_option
            async with pool.acquire() as own:
                assert await value(own, JSON) == {"a": 1}
                assert await value(own, "SELECT 'a=>1'::hstore") == '"a"=>"1"'


async def test_adapters_of_on_connect_are_sqlalchemys_as_well(on_psycopg: Database) -> None:
    """What is set up for all users of the pool."""

    async def set_up(conn: Any) -> None:
        conn.adapters.register_loader("int4", psycopg.types.string.TextLoader)

    async with opened(on_psycopg, max_size=1, on_connect=set_up) as pool:
        engine = create_async_engine(pool, json_deserializer=lambda _: "parsed")
        for _ in range(2):
            async with engine.connect() as conn:
                assert await conn.scalar(ONE) == "1"
                assert await conn.scalar(TYPED) == "parsed"


def test_options_of_connecting_are_refused() -> None:
    """The pool opens the connections; the error says where to give it."""
    pool = create_pool("postgresql://db.example/shop")
    for options in ({"client_encoding": "latin1"}, {"connect_args": {"prepare_threshold": 3}}):
        with pytest.raises(poolkit.PoolConfigError, match="connect_kwargs=") as refused:
            create_async_engine(pool, **options)
        assert next(iter(options)) in str(refused.value)


# -- transactions --------------------------------------------------------------------------------


async def test_level_of_one_checkout_ends_with_it(on_psycopg: Database) -> None:
    """By the execution options, and by psycopg's own settings on SQLAlchemy's connection."""
    level = sa.text("SHOW transaction_isolation")
    async with opened(on_psycopg, max_size=1) as pool:
        engine = create_async_engine(pool)
        for _ in range(2):
            async with engine.connect() as conn:
                await conn.execution_options(isolation_level="AUTOCOMMIT")
                await conn.execute(sa.text("INSERT INTO t VALUES (1)"))
                await conn.rollback()
            async with engine.connect() as conn:
                assert await conn.scalar(level) == "read committed"
                await conn.execute(sa.text("INSERT INTO t VALUES (2)"))
                await conn.rollback()
                options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
                await conn.execution_options(**options)
                assert await conn.scalar(level) == "repeatable read"
                await conn.rollback()
                adapter: Any = (await conn.get_raw_connection()).dbapi_connection
                await sa.util.concurrency.greenlet_spawn(adapter.set_autocommit, True)
            async with engine.connect() as conn:
                assert await conn.get_isolation_level() == "READ COMMITTED"
                await conn.execute(sa.text("INSERT INTO t VALUES (3)"))
                await conn.rollback()
        assert on_psycopg.rows() == [1, 1]
        assert pool.stats().connected == 1


async def test_statement_beside_sqlalchemy_ends_its_transaction(on_psycopg: Database) -> None:
    """Also if it is the first one, or in one text with others."""

    async def by_the_driver(conn: Any) -> None:
        await conn.execute(sa.text("INSERT INTO t VALUES (1)"))
        await (await own_of(conn)).execute("ROLLBACK")

    async def in_one_text(conn: Any) -> None:
        await conn.exec_driver_sql("INSERT INTO t VALUES (1); ROLLBACK")

    async with opened(on_psycopg, max_size=1) as pool:
        engine = create_async_engine(pool)
        ways: list[Callable[[Any], Any]] = [by_the_driver, in_one_text]
        for end in ways:
            async with engine.connect() as conn:
                await end(conn)
                with pytest.raises(poolkit.TransactionEnded):
                    await conn.execute(ONE)
                with pytest.raises(poolkit.TransactionEnded):
                    await conn.commit()
        async with engine.connect() as conn:  # a transaction of psycopg's own is none of it
            async with (await own_of(conn)).transaction():
                await (await own_of(conn)).execute("INSERT INTO t VALUES (7)")
            assert await conn.scalar(sa.text("SELECT count(*) FROM t")) == 1
            await conn.commit()
    assert on_psycopg.rows() == [7]


async def test_checkout_that_commits_nothing_is_no_use_of_its_lease(
    on_psycopg: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing is sent, and nothing reset."""
    resets = noted_resets(on_psycopg, monkeypatch)
    async with opened(on_psycopg, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.begin() as conn:
            await conn.execute(ONE)
        await at_rest(pool)
        resets.clear()
        async with engine.begin():
            pass
        async with engine.connect() as conn:
            await conn.commit()
            await conn.rollback()
        await at_rest(pool)
    assert resets == []


# -- what dies, and what is lost -----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
async def test_cursor_made_beside_sqlalchemy_is_dead_after_the_checkout(
    on_psycopg: Database,
) -> None:
    """And so is one of SQLAlchemy's own, also on the server."""
    async with opened(on_psycopg, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            cursor = (await own_of(conn)).cursor()
            fairy: Any = await conn.get_raw_connection()
            raw = await sa.util.concurrency.greenlet_spawn(fairy.dbapi_connection.cursor, "named")
            await sa.util.concurrency.greenlet_spawn(raw.execute, "SELECT 1 FROM pg_class")
            result = await conn.stream(sa.text("SELECT generate_series(1, 1000)"))
            assert (await result.fetchone()) == (1,)
        async with engine.connect() as conn:
            await conn.execute(ONE)
            with pytest.raises(psycopg.InterfaceError, match="the lease is over"):
                await cursor.execute("SELECT 1")
            for use, arguments in ((raw.fetchone, ()), (raw.execute, ("SELECT 1",))):
                with pytest.raises(psycopg.InterfaceError, match="the lease is over"):
                    await sa.util.concurrency.greenlet_spawn(use, *arguments)
            assert await conn.scalar(sa.text("SELECT count(*) FROM pg_cursors")) == 0
        del raw, result
        gc.collect()  # psycopg tells of those that nobody has closed


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_generator_that_somebody_keeps_does_not_hold_up_the_session(
    on_psycopg: Database, end: str
) -> None:
    """A commit says what is wrong, where it would wait for ever; and so does a rollback."""
    async with opened(on_psycopg, max_size=1) as pool:
        engine = create_async_engine(pool)
        kept = []
        async with asyncio.timeout(10):
            async with engine.connect() as conn:
                await conn.execute(sa.text("INSERT INTO t VALUES (1)"))
                rows = (await own_of(conn)).cursor().stream("SELECT generate_series(1, 9999999)")
                kept.append(rows)
                await anext(rows)
                with pytest.raises(sa.exc.InterfaceError, match="has not ended"):
                    await getattr(conn, end)()
            async with engine.connect() as conn:
                assert await conn.scalar(sa.text("SELECT count(*) FROM t")) == 0
    assert kept


async def test_lost_connection_is_a_disconnect_and_is_replaced(on_psycopg: Database) -> None:
    """SQLAlchemy's dialect finds out; an error of a statement is none."""
    async with opened(on_psycopg, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            with pytest.raises(sa.exc.ProgrammingError) as wrong:
                await conn.execute(sa.text("SELECT nonsense"))
            assert not wrong.value.connection_invalidated
            assert isinstance(wrong.value.orig, psycopg.errors.UndefinedColumn)
        async with engine.connect() as conn:
            pid = await conn.scalar(sa.text("SELECT pg_backend_pid()"))
            await terminate(on_psycopg, pid)
            with pytest.raises(sa.exc.OperationalError) as lost:
                await conn.execute(ONE)
            assert lost.value.connection_invalidated
        await until(lambda: gone(pool.stats()) == {"broken": 1})
        async with engine.connect() as conn:
            assert await conn.scalar(ONE) == 1


async def test_engine_works_behind_a_pooler_by_transaction(on_psycopg: Database) -> None:
    """Nothing is prepared, and no base is looked for."""
    async with opened(on_psycopg._replace(url=f"{on_psycopg.url}?pooler=transaction")) as pool:
        engine = create_async_engine(pool)
        prepared = sa.text("SELECT count(*) FROM pg_prepared_statements")
        for _ in range(7):
            async with engine.begin() as conn:
                assert await conn.scalar(prepared) == 0


async def test_plain_statements_of_a_session_put_its_reset_off_at_auto(
    on_psycopg: Database,
) -> None:
    """They are judged like any others; a setting is not plain."""
    async with opened(on_psycopg._replace(url=f"{on_psycopg.url}?reset=auto"), max_size=1) as pool:
        engine = create_async_engine(pool)
        driver: Any = pool._driver
        for statement in ("SELECT x FROM t", "SELECT set_config('app.x', 'left', false)"):
            async with engine.connect():
                pass  # and set up the connection
            await at_rest(pool)
            waiting: list[Any] = []
            async with engine.connect() as conn:
                await conn.execute(sa.text(statement))
                await conn.commit()
                c: Any = (await own_of(conn))._poolkit_slot.connection
                assert driver.has_run_only_plain(c) == ("app.x" not in statement)
                waiting.append(asyncio.ensure_future(_setting(pool)))
                await until(lambda: pool.stats().waiting == 1)
            assert not await waiting.pop()
        assert pool.stats().connected == 1


async def _setting(pool: poolkit.Pool[Any]) -> Any:
    async with pool.acquire() as own:
        return await value(own, "SELECT current_setting('app.x', true)")


async def test_transaction_in_two_phases_is_no_ended_one(on_psycopg: Database) -> None:
    """The server allows none, unless it is told to; what follows is another transaction."""
    allowed = on_psycopg.query("SHOW max_prepared_transactions") != [("0",)]
    async with opened(on_psycopg, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            for _ in range(2):
                two: Any = await conn.run_sync(lambda sync: sync.begin_twophase())
                await conn.execute(sa.text("INSERT INTO t VALUES (1)"))
                if allowed:
                    await sa.util.concurrency.greenlet_spawn(two.prepare)
                await sa.util.concurrency.greenlet_spawn(two.commit)
            assert await conn.scalar(sa.text("SELECT count(*) FROM t")) == 2
