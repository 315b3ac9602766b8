"""Transactions of asyncpg's that are over before their block is: never a success, and no rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import poolkit
from poolkit import TransactionEnded
from poolkit.drivers._postgresql.sql import goes_on
from tests.drivers.asyncpg_help import LOOPS, of_one, quiet, rows, warnings_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@pytest.fixture(params=LOOPS[:1])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio: none of this is the loop's affair."""
    return request.param


#: What ends the transaction of a block, and what of the row before it remains.
ENDS = {
    "ROLLBACK": ("ROLLBACK", []),
    "rollback, with words": ("  rollback work", []),
    "ABORT": ("ABORT", []),
    "COMMIT": ("COMMIT", [1]),
    "END": ("END", [1]),
    "AND CHAIN": ("ROLLBACK AND CHAIN", []),
    "commit and chain": ("/* go on */ commit and chain", [1]),
    "another one": ("ROLLBACK; BEGIN", []),
    "another one, in other words": ("SELECT 1; COMMIT; START TRANSACTION", [1]),
    "another one, used at once": ("ROLLBACK; BEGIN; INSERT INTO t VALUES (2)", []),
    "another one, amidst others": (
        "INSERT INTO t VALUES (5); COMMIT; BEGIN; INSERT INTO t VALUES (6)",
        [1, 5],
    ),
    "and chain, after another": ("INSERT INTO t VALUES (5); COMMIT AND CHAIN", [1, 5]),
    "a comment in a comment": ("/* a /* nested */ b */ COMMIT; BEGIN", [1]),
}


@pytest.mark.parametrize("level", ["full", "transaction"])
@pytest.mark.parametrize("end", ENDS)
async def test_transaction_ended_by_hand_is_no_success(
    dsn: str, outside: asyncpg.Connection, end: str, level: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Every later operation is refused, and so is the end of the block."""
    sql, remain = ENDS[end]
    async with of_one(dsn, reset=level) as pool:
        with pytest.raises(TransactionEnded, match=r"is over.*raise an exception"):
            async with pool.transaction() as conn:
                statement = await conn.prepare("INSERT INTO t VALUES (3)")
                await conn.execute("INSERT INTO t VALUES (1)")
                await conn.execute(sql)
                later: list[Callable[[], Awaitable[object]]] = [
                    lambda: conn.execute("INSERT INTO t VALUES (3)"),
                    lambda: conn.fetch("INSERT INTO t VALUES (3)"),
                    lambda: conn.copy_records_to_table("t", records=[(3,)]),
                    lambda: conn.execute("BEGIN"),
                    lambda: nested(conn.transaction()),
                    lambda: nested(poolkit.transaction(conn)),
                    statement.fetch,
                ]
                for operation in later:
                    with pytest.raises(TransactionEnded):
                        await operation()
        await quiet(pool)
        assert await rows(outside) == remain
        async with pool.acquire() as conn:
            assert not conn.is_in_transaction()
            assert await conn.fetchval("SELECT 17") == 17
        assert pool.stats().connected == 1
        assert not warnings_in(caplog)


async def nested(block: Any) -> None:
    """Enter, and write."""
    async with block:
        raise AssertionError("entered")


async def test_transaction_ended_by_a_prepared_statement_is_no_success(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Nobody reads its text again."""
    async with of_one(dsn) as pool:
        with pytest.raises(TransactionEnded):
            async with pool.transaction() as conn:
                await (await conn.prepare("ROLLBACK")).fetch()
                with pytest.raises(TransactionEnded):
                    await conn.execute("INSERT INTO t VALUES (1)")
        assert await rows(outside) == []


async def by_cursor(conn: asyncpg.Connection, sql: str) -> None:
    """Have its rows, of which there are none."""
    async for _ in conn.cursor(sql):
        pass


#: How a statement is executed but by `execute`.
WAYS: dict[str, Callable[[Any, str], Awaitable[object]]] = {
    "fetch": lambda c, sql: c.fetch(sql),
    "fetchval": lambda c, sql: c.fetchval(sql),
    "fetchrow": lambda c, sql: c.fetchrow(sql),
    "fetchmany": lambda c, sql: c.fetchmany(sql, [()]),
    "executemany": lambda c, sql: c.executemany(sql, [()]),
    "cursor": by_cursor,
}


@pytest.mark.parametrize("how", [*WAYS, "prepared", "prepared for many"])
async def test_transaction_that_goes_on_as_another_is_no_success(
    dsn: str, outside: asyncpg.Connection, how: str
) -> None:
    """However it was executed; one that was only prepared ends nothing."""
    sql = " -- and on\n Commit/**/and chain"
    async with of_one(dsn) as pool, pool.acquire() as conn:
        statement = await conn.prepare(sql)
        async with poolkit.transaction(conn):
            await conn.execute("INSERT INTO t VALUES (0)")
            await conn.prepare(sql)
        with pytest.raises(TransactionEnded):
            async with poolkit.transaction(conn):
                await conn.execute("INSERT INTO t VALUES (1)")
                if how == "prepared":
                    await statement.fetch()
                elif how == "prepared for many":
                    await statement.executemany([()])
                else:
                    await WAYS[how](conn, sql)
                with pytest.raises(TransactionEnded):
                    await conn.execute("INSERT INTO t VALUES (2)")
        assert await rows(outside) == [0, 1]


GOES_ON = [
    "COMMIT; BEGIN",
    "commit work and chain",
    "ABORT TRANSACTION AND CHAIN",
    "SELECT 1; END; SELECT 2; START TRANSACTION",
    "PREPARE TRANSACTION 'x'; BEGIN",
    r"SELECT E'\';'; COMMIT; BEGIN",
    r"SELECT '\'; COMMIT; BEGIN; --'",
    "SELECT $a$ ; $b$ ; $a$; COMMIT; BEGIN",
    "SELECT date'2020-01-01'; COMMIT; BEGIN",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; COMMIT; BEGIN",
]
ENDS_NOTHING = [
    "COMMIT AND NO CHAIN",
    "ROLLBACK /* x */ TO s; BEGIN",
    "ROLLBACK WORK TO s; BEGIN",
    "COMMIT PREPARED 'x'; BEGIN",
    "BEGIN; COMMIT",
    "SELECT ';commit;begin;'",
    r"SELECT E'\';commit;begin;'",
    'SELECT ";commit;begin;"',
    "SELECT 1 -- ;commit;begin;",
    "SELECT 1 /* ;commit;begin; */",
    "DO $x$BEGIN; COMMIT; BEGIN; $x$",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; BEGIN",
    "SELECT 'never closed;commit;begin",
    "SELECT 1 /* never closed;commit;begin",
    "SELECT $$ never closed;commit;begin",
]


@pytest.mark.parametrize("sql", GOES_ON + ENDS_NOTHING)
def test_ends_of_transactions_are_found_in_texts(sql: str) -> None:
    """Not in strings, comments or bodies of functions."""
    assert goes_on(sql) == (sql in GOES_ON)


def test_backslashes_in_strings_are_read_as_the_server_does() -> None:
    """It may have been told otherwise."""
    sql = r"SELECT '\'; COMMIT; BEGIN; --'"
    assert goes_on(sql)
    assert not goes_on(sql, is_standard=False)


@pytest.mark.parametrize("part", ["'", '"', "/*", "$a$", "e'\\", "$", "--", "begin atomic"])
def test_long_texts_are_read_in_no_time(part: str) -> None:
    """Linear in their length: the test would not end otherwise."""
    assert not goes_on("begin " + part * 100_001)


@pytest.mark.parametrize("inner", ["conn.transaction", "poolkit.transaction"])
async def test_rollback_by_hand_in_a_transaction_inside_ends_all_of_them(
    dsn: str, outside: asyncpg.Connection, inner: str
) -> None:
    """The error is the same in each of the blocks."""
    async with of_one(dsn) as pool, pool.acquire() as conn:
        with pytest.raises(TransactionEnded):
            async with poolkit.transaction(conn):
                await conn.execute("INSERT INTO t VALUES (1)")
                block: Any = conn.transaction() if inner[0] == "c" else poolkit.transaction(conn)
                with pytest.raises(TransactionEnded):
                    async with block:
                        await conn.execute("ROLLBACK")
                with pytest.raises(TransactionEnded):
                    await conn.execute("INSERT INTO t VALUES (2)")
        async with poolkit.transaction(conn):
            await conn.execute("INSERT INTO t VALUES (3)")
        assert await rows(outside) == [3]


async def test_savepoints_by_hand_and_transactions_inside_go_on(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """They end nothing; nor does a BEGIN that the server takes for a mistake, nor a function."""
    function = (
        "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE plpgsql AS $$BEGIN RETURN 1; END;$$"
    )
    async with of_one(dsn) as pool:
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO t VALUES (1); SAVEPOINT s")
            await conn.execute("INSERT INTO t VALUES (2)")
            await conn.execute("ROLLBACK TO SAVEPOINT s")
            await conn.execute("ROLLBACK WORK TO s; INSERT INTO t VALUES (3); BEGIN")
            await conn.execute("ROLLBACK /* not all */ TO s; INSERT INTO t VALUES (3)")
            await conn.execute(f"{function}; {function.replace('.f', '.g')}")
            await conn.execute("/* commit */ SELECT 'rollback; begin'")
            await conn.execute("SELECT CASE WHEN true THEN 1 END; BEGIN")
            with pytest.raises(asyncpg.DivisionByZeroError):
                async with conn.transaction():
                    await conn.execute("INSERT INTO t VALUES (4)")
                    await conn.execute("SELECT 1 / 0")
            with pytest.raises(asyncpg.DivisionByZeroError):
                async with poolkit.transaction(conn):
                    await conn.execute("SELECT 1 / 0")
            async with conn.transaction(), poolkit.transaction(conn):
                await conn.execute("INSERT INTO t VALUES (5)")
        assert await rows(outside) == [1, 3, 5]


async def test_transaction_of_asyncpgs_own_is_as_in_asyncpg(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Its end after a ROLLBACK is a warning of the server's."""
    async with of_one(dsn) as pool, pool.acquire() as conn:
        async with conn.transaction():
            await conn.execute("ROLLBACK; INSERT INTO t VALUES (1)")
        assert await rows(outside) == [1]
