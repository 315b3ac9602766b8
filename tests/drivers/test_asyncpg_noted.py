"""Who holds which process of the server's, and what it has sent last: `LeaseInfo`."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import poolkit
from tests.drivers.asyncpg_help import ENDLESS, LOOPS, of_one, quiet, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


def said(pool: poolkit.Pool[Any]) -> str:
    """Return the last statement of the only lease."""
    (info,) = pool.leases()
    return info.statement


async def _prepare(conn: asyncpg.Connection) -> object:
    statement = await conn.prepare("SELECT 4")
    return await statement.fetchval()


async def _cursor(conn: asyncpg.Connection) -> object:
    async with conn.transaction():
        return [row async for row in conn.cursor("SELECT 5")]


async def _copy(conn: asyncpg.Connection) -> object:
    return await conn.copy_from_query("SELECT 6", output=io.BytesIO())


async def _copy_records(conn: asyncpg.Connection) -> object:
    return await conn.copy_records_to_table("t", records=[(1,)])


SAID: dict[str, tuple[Callable[[asyncpg.Connection], Awaitable[object]], str]] = {
    "execute": (lambda conn: conn.execute("SELECT 1"), "SELECT 1"),
    "execute with arguments": (lambda conn: conn.execute("SELECT $1::int", 5), "SELECT $1::int"),
    "by name": (lambda conn: conn.fetch(query="SELECT 2"), "SELECT 2"),
    "fetchrow": (lambda conn: conn.fetchrow("SELECT 1"), "SELECT 1"),
    "fetchval": (lambda conn: conn.fetchval("SELECT 1"), "SELECT 1"),
    "executemany": (lambda conn: conn.executemany("SELECT $1::int", [(3,)]), "SELECT $1::int"),
    "prepare": (_prepare, "SELECT 4"),
    "cursor": (_cursor, "COMMIT;"),
    "copy": (_copy, "SELECT 6"),
    "copy of records": (_copy_records, "COPY t"),
    "first line": (lambda conn: conn.execute("\n  \n SELECT 1,\n 2"), "SELECT 1,"),
    "hostile": (lambda conn: conn.execute("SELECT '<b>\t\u202e'"), r"SELECT '<b>\t\u202e'"),
    "long": (lambda conn: conn.execute(f"SELECT '{'x' * 900}'"), f"SELECT '{'x' * 191}…"),
}


@pytest.mark.parametrize("level", ["full", "auto"])
@pytest.mark.parametrize("how", SAID)
async def test_last_statement_is_told_of_the_lease_that_sent_it(
    dsn: str, how: str, level: Any
) -> None:
    """Its first line, whichever method has sent it, and nothing in the next lease."""
    run, expected = SAID[how]
    async with of_one(dsn, note_statements=True, reset=level) as pool:
        async with pool.acquire() as conn:
            assert said(pool) == ""
            await conn.execute("CREATE TEMP TABLE t (x int)")
            assert said(pool) == "CREATE TEMP TABLE t (x int)"
            await run(conn)
            assert said(pool) == expected
        await quiet(pool)
        async with pool.acquire():
            assert said(pool) == ""


async def test_statement_under_way_is_told_with_the_process_that_runs_it(dsn: str) -> None:
    """So that somebody can end it there."""
    outside = await asyncpg.connect(dsn)
    async with of_one(dsn, note_statements=True) as pool, pool.acquire() as conn:
        task = asyncio.create_task(conn.fetchval(ENDLESS))
        pid = await running(outside, ENDLESS)
        (info,) = pool.leases()
        assert (info.server_pid, info.statement) == (pid, ENDLESS)
        await outside.execute("SELECT pg_cancel_backend($1)", info.server_pid)
        with pytest.raises(asyncpg.QueryCanceledError):
            await task
    await outside.close()


async def test_no_text_is_noted_unless_that_was_asked_for(dsn: str) -> None:
    """Texts may have values in them; and nobody knows more of a connection that is closed."""
    async with of_one(dsn) as pool, pool.acquire() as conn:
        await conn.execute("SELECT 'secret'")
        (info,) = pool.leases()
        assert (info.server_pid, info.statement) == (conn.get_server_pid(), "")
        assert "secret" not in repr(pool._driver.__dict__)
        driver: Any = pool._driver
        (raw,) = driver.connections
        raw.terminate()
        assert driver.server_pid(raw) is None


async def test_class_of_connections_keeps_its_methods_where_texts_are_noted(dsn: str) -> None:
    """Names, signatures and whether they are awaited are those of asyncpg's class."""

    class Mine(asyncpg.Connection):
        async def hello(self) -> Any:
            return await self.fetchval("SELECT 'hello'")

    options = {"connect_kwargs": {"connection_class": Mine}}
    async with of_one(dsn, note_statements=True, **options) as pool, pool.acquire() as conn:
        assert isinstance(conn, Mine)
        assert await conn.hello() == "hello"
        assert said(pool) == "SELECT 'hello'"
        assert conn.fetch.__doc__ == asyncpg.Connection.fetch.__doc__
        assert asyncio.iscoroutinefunction(conn.fetch) == asyncio.iscoroutinefunction(conn.execute)
