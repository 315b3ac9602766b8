"""Changes that all connections of a pool have to learn of: of the schema, and of the server's role."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import sqlalchemy as sa

from poolkit.drivers.asyncpg import create_pool
from poolkit.sqlalchemy import create_async_engine
from tests.drivers.asyncpg_help import LOOPS, quiet, until
from tests.fakes import gone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.drivers.asyncpg_help import Pooled
    from tests.postgres import Server


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


@contextlib.asynccontextmanager
async def raw(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect without a pool."""
    conn = await asyncpg.connect(dsn)
    try:
        yield conn
    finally:
        conn.terminate()


# -- changes of the schema -----------------------------------------------------------------------

SIZE = 5


@contextlib.asynccontextmanager
async def all_of(pool: Pooled) -> AsyncIterator[list[Any]]:
    """Hold every connection of a pool."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(pool.acquire()) for _ in range(SIZE)]


async def errors_of(conns: list[Any], query: str, *, in_transaction: bool) -> int:
    """Run a query on each connection, and count the errors."""
    errors = 0
    for conn in conns:
        try:
            if in_transaction:
                async with conn.transaction():
                    await conn.fetch(query)
            else:
                await conn.fetch(query)
        except (asyncpg.InvalidCachedStatementError, asyncpg.OutdatedSchemaCacheError):
            errors += 1
    return errors


CHANGES = {
    "a column in a transaction": ("SELECT * FROM w", "ALTER TABLE w ADD COLUMN z int", True),
    "a column": ("SELECT * FROM w", "ALTER TABLE w ADD COLUMN z int", False),
    "a type": ("SELECT y FROM w", "ALTER TYPE pair ADD ATTRIBUTE c int", False),
}
TABLE = """
    DROP TABLE IF EXISTS w; DROP TYPE IF EXISTS pair;
    CREATE TYPE pair AS (a int, b int);
    CREATE TABLE w (x int, y pair); INSERT INTO w VALUES (1, (2, 3));
"""


@pytest.mark.parametrize(
    ("what", "of_raw", "of_pool"),
    [("a column in a transaction", SIZE, 1), ("a column", 0, 0), ("a type", SIZE, 1)],
)
async def test_change_of_the_schema_is_met_once(
    dsn: str, outside: asyncpg.Connection, what: str, of_raw: int, of_pool: int
) -> None:
    """Connections of asyncpg's own each meet it; those of a pool tell each other."""
    query, change, in_transaction = CHANGES[what]
    async with contextlib.AsyncExitStack() as stack:
        await outside.execute(TABLE)
        conns = [await stack.enter_async_context(raw(dsn)) for _ in range(SIZE)]
        assert await errors_of(conns, query, in_transaction=in_transaction) == 0
        await outside.execute(change)
        assert await errors_of(conns, query, in_transaction=in_transaction) == of_raw

    await outside.execute(TABLE)
    async with create_pool(dsn, min_size=SIZE, max_size=SIZE) as pool:
        async with all_of(pool) as conns:
            assert await errors_of(conns, query, in_transaction=in_transaction) == 0
        await outside.execute(change)
        # Each user after the other, as it comes, and all connections in the end.
        errors = 0
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(SIZE):
                conn = await stack.enter_async_context(pool.acquire())
                errors += await errors_of([conn], query, in_transaction=in_transaction)
        assert errors <= of_pool
        await quiet(pool)
        assert pool.stats().connected == SIZE
        async with all_of(pool) as conns:
            assert await errors_of(conns, query, in_transaction=in_transaction) == 0


# -- changes of the server's role ----------------------------------------------------------------


def demote(server: Server) -> None:
    """Let the server run on as a standby: of nobody, but it does not know that."""
    server.stop()
    (server._data / "standby.signal").touch()
    server.folder.give()
    server.start()
    assert server.query("SELECT pg_is_in_recovery()") == [(True,)]


@pytest.fixture
def changing(own_postgres: Server) -> Iterator[Server]:
    """Return a server that may be demoted; it is a primary again at the end."""
    yield own_postgres
    if own_postgres.query("SELECT pg_is_in_recovery()") == [(True,)]:
        own_postgres.query("SELECT pg_promote()")


async def write(pool: Pooled) -> None:
    """Write as a user does."""
    async with pool.acquire() as conn:
        await conn.execute("CREATE TABLE IF NOT EXISTS written (x int)")


async def backends(pool: Pooled) -> set[int]:
    """Return the backends of all connections."""
    async with contextlib.AsyncExitStack() as stack:
        conns = [await stack.enter_async_context(pool.acquire()) for _ in range(3)]
        return {conn.get_server_pid() for conn in conns}


async def test_standby_in_the_place_of_a_primary_has_all_replaced(changing: Server) -> None:
    """One user sees the error; then no connection to the standby is left, though all are well."""
    async with create_pool(changing.dsn(), min_size=3, max_size=3) as pool:
        await write(pool)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with pool.transaction(readonly=True) as conn:
                await conn.execute("CREATE TABLE elsewhere (x int)")
        assert gone(pool.stats()) == {}

        await asyncio.to_thread(demote, changing)
        await until(lambda: pool.stats().retired["broken"] == 3)
        before = await backends(pool)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await write(pool)
        await until(lambda: pool.stats().retired.get("stale") == 3)
        assert not before & await backends(pool)

        await asyncio.to_thread(changing.query, "SELECT pg_promote()")
        before = await backends(pool)
        await write(pool)
        assert before == await backends(pool)
        assert pool.stats().retired["stale"] == 3


INSERT = "INSERT INTO written VALUES (1) RETURNING x"


async def by_statement(conn: asyncpg.Connection) -> None:
    """Write by a statement that was prepared."""
    await (await conn.prepare(INSERT)).fetch()


async def by_cursor(conn: asyncpg.Connection) -> None:
    """Write by a cursor that is iterated."""
    async with conn.transaction():
        async for _ in conn.cursor(INSERT):
            pass


async def by_cursor_awaited(conn: asyncpg.Connection) -> None:
    """Write by a cursor that is asked for rows."""
    async with conn.transaction():
        await (await conn.cursor(INSERT)).fetch(1)


async def by_cursor_of_a_statement(conn: asyncpg.Connection) -> None:
    """Write by a cursor of a statement that was prepared, iterated."""
    async with conn.transaction():
        async for _ in (await conn.prepare(INSERT)).cursor():
            pass


async def by_cursor_of_a_statement_awaited(conn: asyncpg.Connection) -> None:
    """Write by such a cursor that is asked for rows."""
    async with conn.transaction():
        await (await (await conn.prepare(INSERT)).cursor()).fetch(1)


async def by_copying(conn: asyncpg.Connection) -> None:
    """Write by COPY."""
    await conn.copy_records_to_table("written", records=[(1,)])


async def by_a_task(conn: asyncpg.Connection) -> None:
    """Write in a task of its own."""
    async with asyncio.TaskGroup() as group:
        group.create_task(conn.execute(INSERT))


async def by_a_wrapper(conn: asyncpg.Connection) -> None:
    """Write by way of a repository that has errors of its own."""
    try:
        await conn.execute(INSERT)
    except asyncpg.PostgresError as error:
        raise LookupError("could not save") from error


async def by_sqlalchemy(conn: asyncpg.Connection) -> None:
    """Write by an engine over the same pool, in a lease of its own."""
    engine = create_async_engine(conn._poolkit_pool)  # type: ignore[attr-defined]
    async with engine.connect() as theirs:
        with contextlib.suppress(sa.exc.DBAPIError):
            await theirs.execute(sa.text(INSERT))
        await theirs.rollback()


async def by_stream_of_sqlalchemy(conn: asyncpg.Connection) -> None:
    """Write by such an engine, and ask for the rows one after the other."""
    engine = create_async_engine(conn._poolkit_pool)  # type: ignore[attr-defined]
    async with engine.connect() as theirs:
        with contextlib.suppress(sa.exc.DBAPIError):
            async for _ in await theirs.stream(sa.text(INSERT)):
                pass
        await theirs.rollback()


WRITES = [
    by_statement,
    by_cursor,
    by_cursor_awaited,
    by_cursor_of_a_statement,
    by_cursor_of_a_statement_awaited,
    by_copying,
    by_a_task,
    by_a_wrapper,
    by_sqlalchemy,
    by_stream_of_sqlalchemy,
]


async def test_next_user_is_not_given_the_standby_though_the_error_was_caught(
    changing: Server,
) -> None:
    """However it was written there, and whoever has caught the error inside the block."""
    pause = 0.001  # between renewals, too
    async with create_pool(
        changing.dsn(), min_size=3, max_size=3, backoff_min=pause, backoff_max=pause
    ) as pool:
        await write(pool)
        await asyncio.to_thread(demote, changing)
        await until(lambda: pool.stats().retired["broken"] == 3)
        for by in WRITES:
            before = await backends(pool)
            async with pool.acquire() as conn:
                await conn.execute("SELECT 1")
                with contextlib.suppress(asyncpg.PostgresError, LookupError, ExceptionGroup):
                    await by(conn)
            await quiet(pool)
            assert not before & await backends(pool), by.__name__


async def test_pool_of_a_standby_alone_is_left_alone(changing: Server) -> None:
    """Whoever writes there has made a mistake, and costs the others nothing."""
    await asyncio.to_thread(demote, changing)
    async with create_pool(changing.dsn(), min_size=3, max_size=3) as pool:
        before = await backends(pool)
        for _ in range(3):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await write(pool)
        assert before == await backends(pool)
        assert gone(pool.stats()) == {}
