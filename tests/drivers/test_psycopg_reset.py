"""What a lease of psycopg's leaves behind, and that the next one does not find it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.numeric import IntLoader

import poolkit
from poolkit import ConnectFailed, PoolConfigError
from poolkit.testing import check_pool
from tests.drivers.asyncpg_help import LOOPS
from tests.drivers.psycopg_help import of_one
from tests.drivers.psycopg_kinds import KINDS, Own, is_seen, leave

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

    from tests.drivers.postgresql_kinds import Kind


#: psycopg says so of the server's cursors.
pytestmark = pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: psycopg knows no others."""
    return request.param


@pytest.mark.parametrize("way", ["acquire", "transaction"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_what_a_lease_leaves_behind_is_not_seen_by_the_next_user(
    dsn: str, outside: asyncpg.Connection, kind: Kind, way: str
) -> None:
    """Whether it was left by SQL or on psycopg's object; and the connection is the same."""
    # A busy machine may take longer than 2 s to end an unfinished stream.
    async with of_one(dsn, connection_class=Own, reset_timeout=30.0) as pool:
        was_seen = refused = False
        try:
            async with getattr(pool, way)() as conn:
                await leave(conn, kind)
                was_seen = not kind.at_once or await is_seen(conn, kind)
        except (poolkit.PoolError, psycopg.Error):
            refused = True
        assert was_seen or refused
        async with pool.acquire() as conn:
            assert bool(kind.note) or not await is_seen(conn, kind)
        await check_pool(pool)
        assert pool.stats().connected == 1 or way == "transaction" or refused


@pytest.mark.parametrize("level", ["full+prepared", "transaction", "none"])
async def test_transactions_end_at_every_level(dsn: str, level: Any) -> None:
    """And what was prepared by SQL at one only."""
    async with of_one(dsn, reset=level) as pool:
        async with pool.acquire() as conn:
            await conn.execute("SET app.tenant = 'alice'; PREPARE mine AS SELECT 1")
            await conn.execute("BEGIN; CREATE TABLE never (x int)")
        async with pool.acquire() as conn:
            cursor = await conn.execute(
                "SELECT to_regclass('never')::text, current_setting('app.tenant', true), "
                "(SELECT count(*)::int FROM pg_prepared_statements WHERE from_sql)"
            )
            row = await cursor.fetchone()
            assert row == ((None, "", 0) if level == "full+prepared" else (None, "alice", 1))
        assert pool.stats().connected == 1


async def test_function_as_reset_gets_the_connection(dsn: str) -> None:
    """What it does happens after each lease; what it makes dies, too."""
    made: list[Any] = []

    async def reset(conn: psycopg.AsyncConnection[Any]) -> None:
        made.append(await conn.execute("SET app.tenant = 'nobody'"))

    async with of_one(dsn, reset=reset) as pool:
        async with pool.acquire() as conn:
            await conn.execute("SET app.tenant = 'alice'")
        async with pool.acquire() as conn:
            cursor = await conn.execute("SELECT current_setting('app.tenant')")
            assert await cursor.fetchone() == ("nobody",)
        with pytest.raises(psycopg.InterfaceError, match="the lease is over"):
            await made[0].execute("SELECT 1")


@pytest.mark.parametrize("kind", [k for k in KINDS if k.to_set_up], ids=lambda kind: kind.name)
async def test_what_on_connect_sets_up_stays_or_is_refused(
    dsn: str, outside: asyncpg.Connection, kind: Kind
) -> None:
    """Each lease finds it, or none is had."""
    seen = []
    failure: BaseException | None = None
    pool = of_one(dsn, connection_class=Own, on_connect=lambda conn: leave(conn, kind))
    try:
        async with pool:
            for _ in range(3):
                async with pool.acquire() as conn:
                    seen.append(await is_seen(conn, kind))
    except ConnectFailed as error:
        failure = error.__cause__
    assert failure is None or isinstance(failure, PoolConfigError)
    assert len({*seen}) <= 1


async def test_lease_undoes_what_differs_from_on_connects(dsn: str) -> None:
    """The reset goes back to the base, and not to what the server begins with."""

    async def set_up(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("SET ROLE pg_monitor")
        await conn.execute("SELECT set_config(%s, 'base', false)", ("app.tenant",))
        conn.row_factory = psycopg.rows.dict_row
        conn.adapters.register_loader("int4", psycopg.types.string.TextLoader)

    asked = "SELECT current_user, current_setting('app.tenant') AS tenant, 1 AS one"
    async with of_one(dsn, on_connect=set_up) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                row = await (await conn.execute(asked)).fetchone()
                assert row == {"current_user": "pg_monitor", "tenant": "base", "one": "1"}
                await conn.execute("RESET ROLE; SET app.tenant = 'alice'")
                conn.row_factory = psycopg.rows.tuple_row
                conn.adapters.register_loader("int4", IntLoader)
        assert pool.stats().connected == 1


async def test_open_transaction_is_reported_once(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With autocommit off, which psycopg's users know, a lease that commits nothing loses it."""
    async with of_one(dsn, connect_kwargs={"autocommit": False}) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
        async with pool.acquire() as conn:
            await conn.execute("INSERT INTO t VALUES (2)")
            await conn.commit()
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO t VALUES (3)")
        async with pool.acquire() as conn:
            rows = await (await conn.execute("SELECT x FROM t ORDER BY x")).fetchall()
            assert rows == [(2,), (3,)]
            await conn.execute("TRUNCATE t")
            await conn.commit()
    assert sum("an open transaction" in record.getMessage() for record in caplog.records) == 1


async def test_statements_that_psycopg_has_prepared_outlive_the_lease(dsn: str) -> None:
    """That is what they are prepared for."""
    async with of_one(dsn) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                await conn.execute("SELECT 4711", prepare=True)
        async with pool.acquire() as conn:
            cursor = await conn.execute("SELECT statement FROM pg_prepared_statements")
            assert await cursor.fetchall() == [("SELECT 4711",)]


@pytest.mark.parametrize(
    "take",
    [
        lambda conn: conn.pgconn,
        lambda conn: conn.info.pgconn,
        lambda conn: conn.cursor().connection.pgconn,
        lambda conn: conn.cursor().connection.info.pgconn,
    ],
)
async def test_connection_whose_pgconn_was_taken_is_not_used_again(
    dsn: str, take: Callable[[Any], Any]
) -> None:
    """What is libpq's own would act on it later."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            assert take(conn).socket > 0
        async with pool.acquire() as conn:
            await conn.execute("SELECT 1")
            assert psycopg.sql.Literal("x").as_string(conn) == "'x'"
        assert pool.stats().connected == 2


async def test_connection_that_a_cursor_shows_is_the_leases(dsn: str) -> None:
    """It costs nothing, and dies with the lease; so does what is made from it."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            seen: Any = conn.cursor().connection
            assert seen is conn.cursor().connection
            assert isinstance(seen, psycopg.AsyncConnection)
            assert seen.info.backend_pid == conn.info.backend_pid
            assert seen.info.encoding == "utf-8"
            assert psycopg.sql.SQL("{}").format("x").as_string(seen) == "'x'"
            cursor = await seen.execute("SET app.x = 'left'")
            async with seen.transaction():
                await seen.execute("SELECT 1")
        for act in (seen.execute, cursor.execute):
            with pytest.raises(psycopg.InterfaceError, match="lease is over"):
                await act("SELECT 1")
        async with pool.acquire() as conn:
            found = await conn.execute("SELECT current_setting('app.x', true)")
            assert await found.fetchone() in [(None,), ("",)]
        assert pool.stats().connected == 1


async def test_cursor_made_by_its_class_is_like_any_other(dsn: str) -> None:
    """As psycopg itself makes some: what it executes is undone, it dies, and costs nothing."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            info = await psycopg.types.TypeInfo.fetch(conn, "int4")
            assert info is not None
            assert psycopg.sql.SQL("{}").format("x").as_string(conn) == "'x'"
            cursor = psycopg.AsyncClientCursor(conn)
            server = psycopg.AsyncServerCursor(conn, "held", withhold=True)
            for sql in ("LISTEN here", "PREPARE mine AS SELECT 1", "SET app.x = 'left'"):
                await cursor.execute(sql)
            await server.execute("SELECT 1")
        async with pool.acquire() as conn:
            for late in (cursor.execute("SELECT 1"), server.fetchone(), cursor.execute("COMMIT")):
                with pytest.raises(psycopg.InterfaceError, match="the lease is over"):
                    await late
            server._closed = True  # psycopg tells of those that nobody has closed
            for sql in (
                "SELECT count(*) FROM pg_listening_channels()",
                "SELECT count(*) FROM pg_prepared_statements WHERE from_sql",
                "SELECT count(*) FROM pg_cursors",
                "SELECT coalesce(length(current_setting('app.x', true)), 0)",
            ):
                assert await (await conn.execute(sql)).fetchone() == (0,), sql
        assert pool.stats().connected == 1
