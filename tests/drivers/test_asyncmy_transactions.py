"""Transactions on MySQL: one that the server has ended is an error, and not half a transaction."""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING, Any

import pytest
from asyncmy.cursors import SSCursor
from asyncmy.errors import IntegrityError, OperationalError, ProgrammingError

import poolkit
from poolkit import TransactionEnded
from poolkit.drivers.asyncmy import create_pool
from poolkit.drivers.asyncmy._transaction import Transaction
from poolkit.testing import check_pool
from tests.drivers.asyncmy_help import TABLE, ask, execute, rows, until_asked, value, with_table
from tests.drivers.asyncpg_help import LOOPS

if TYPE_CHECKING:
    from tests.mariadb import MariaDB


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncmy knows no others."""
    return request.param


async def insert(conn: Any, *numbers: int) -> None:
    """Write something."""
    for number in numbers:
        await execute(conn, f"INSERT INTO t VALUES ({number})")


async def test_block_commits_or_rolls_back(mysql: str) -> None:
    """And a block inside of it is a savepoint."""
    async with with_table(mysql) as pool:
        async with pool.transaction() as conn:
            await insert(conn, 1)
            with pytest.raises(IntegrityError):
                async with poolkit.transaction(conn):
                    await insert(conn, 2, 2)
            async with poolkit.transaction(conn):
                await insert(conn, 3)
        with pytest.raises(ZeroDivisionError):
            async with pool.transaction() as conn:
                await insert(conn, 4)
                raise ZeroDivisionError
        assert await rows(pool) == [1, 3]
        assert pool.stats().connected == 1


async def test_settings_are_of_one_transaction(mysql: str) -> None:
    """And of a whole one."""
    async with with_table(mysql) as pool:
        async with pool.acquire() as conn:
            async with poolkit.transaction(conn, isolation="serializable", readonly=True):
                await execute(conn, "SELECT * FROM t")
                with pytest.raises(OperationalError, match="READ ONLY"):
                    await insert(conn, 1)
                with pytest.raises(ProgrammingError, match="whole transaction"):
                    async with poolkit.transaction(conn, readonly=True):
                        pass
            async with poolkit.transaction(conn):
                await insert(conn, 2)
            with pytest.raises(ValueError, match="give one of read_uncommitted"):
                async with poolkit.transaction(conn, isolation="snapshot"):
                    pass
        assert await rows(pool) == [2]


@pytest.mark.parametrize("level", ["read_uncommitted", "serializable"])
async def test_isolation_is_what_was_asked_for(mysql: str, mariadb: MariaDB, level: str) -> None:
    """The server says so itself."""
    async with with_table(mysql) as pool, pool.transaction(isolation=level) as conn:
        await execute(conn, "SELECT * FROM t FOR UPDATE")
        asked = "SELECT TRX_ISOLATION_LEVEL FROM information_schema.INNODB_TRX"
        await until_asked(mariadb, asked, [(level.replace("_", " ").upper(),)])


async def deadlock(pool: Any, conn: Any, *, unbuffered: bool = False) -> None:
    """Be the victim of a deadlock, and catch the error."""
    async with pool.transaction() as other:
        await execute(other, "UPDATE t SET x = x + 0 WHERE x = 1")
        # The victim is the one that has written less.
        await insert(other, *range(100, 140))
        await execute(conn, "SELECT * FROM t WHERE x = 2 FOR UPDATE")
        waiting = asyncio.ensure_future(execute(other, "UPDATE t SET x = x + 0 WHERE x = 2"))
        await asyncio.sleep(0)
        with pytest.raises(OperationalError, match="Deadlock"):
            if unbuffered:
                cursor = conn.cursor(SSCursor)
                await cursor.execute("SELECT * FROM t WHERE x = 1 FOR UPDATE")
                await cursor.fetchall()
            else:
                await execute(conn, "SELECT * FROM t WHERE x = 1 FOR UPDATE")
        await waiting


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("goes_on", [False, True])
async def test_transaction_that_a_deadlock_has_ended_is_an_error(
    mysql: str, unbuffered: bool, goes_on: bool
) -> None:
    """The server has undone all of it, and would commit what comes after by itself."""
    async with with_table(mysql) as one, create_pool(mysql, max_size=2) as pool:
        async with one.acquire() as conn:
            await insert(conn, 1, 2)
        with pytest.raises(TransactionEnded):
            async with pool.transaction() as conn:
                await insert(conn, 3)
                await deadlock(pool, conn, unbuffered=unbuffered)
                if goes_on:
                    await insert(conn, 4)
        assert {3, 4}.isdisjoint(await rows(one))
        await check_pool(pool)


async def test_error_that_leaves_the_transaction_open_is_no_end(mysql: str) -> None:
    """The server undoes the statement alone."""
    async with with_table(mysql) as pool:
        async with pool.transaction() as conn:
            await insert(conn, 1)
            with pytest.raises(IntegrityError):
                await insert(conn, 1)
            await insert(conn, 2)
        assert await rows(pool) == [1, 2]


ENDS = [
    "CREATE TABLE u (x INT)",
    "COMMIT",
    "ROLLBACK",
    "BEGIN",
    "/* mine */ -- yours\n START TRANSACTION READ ONLY",
    "/*!50001 BEGIN */",
    "COMMIT; BEGIN",
    "SET autocommit = 0; SET autocommit = 1",
    "LOCK TABLES t WRITE",
]


@pytest.mark.parametrize("statement", ENDS)
async def test_statement_that_ends_the_transaction_is_an_error(mysql: str, statement: str) -> None:
    """What comes after it would take effect by itself."""
    async with with_table(mysql) as pool:
        with pytest.raises(TransactionEnded):
            async with pool.transaction() as conn:
                await insert(conn, 1)
                await execute(conn, statement)
                with pytest.raises(TransactionEnded):
                    await insert(conn, 2)
        assert 2 not in await rows(pool)
        async with pool.transaction() as conn:
            await insert(conn, 3)
        assert 3 in await rows(pool)


async def test_block_of_statements_is_no_begin(mysql: str) -> None:
    """MariaDB's BEGIN NOT ATOMIC leaves the transaction open."""
    async with with_table(mysql) as pool:
        async with pool.transaction() as conn:
            await execute(conn, "BEGIN NOT ATOMIC INSERT INTO t VALUES (1); END")
        assert await rows(pool) == [1]


async def test_prepared_statement_that_ends_the_transaction_is_an_error(mysql: str) -> None:
    """Also where the server's status is 0 then, which asyncmy takes for none."""
    async with with_table(mysql + "?autocommit=no") as pool:
        with pytest.raises(TransactionEnded):
            async with pool.transaction() as conn:
                await insert(conn, 1)
                await (await conn.prepare("COMMIT")).execute()


@pytest.mark.parametrize("method", ["begin", "commit", "rollback"])
async def test_method_that_ends_the_transaction_is_an_error(mysql: str, method: str) -> None:
    """As the statement is."""
    async with with_table(mysql) as pool:
        with pytest.raises(TransactionEnded):
            async with pool.transaction() as conn:
                await getattr(conn, method)()


async def test_transaction_of_a_cancelled_block_is_undone(mysql: str, mariadb: MariaDB) -> None:
    """Whether the statement was under way or not."""
    async with with_table(mysql, reset_timeout=20) as pool:
        for under_way in (False, True):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), pool.transaction() as conn:
                    await insert(conn, 1)
                    await (execute(conn, "DO SLEEP(600)") if under_way else asyncio.sleep(600))
            assert await rows(pool) == []
        await until_asked(mariadb, "SELECT COUNT(*) FROM information_schema.INNODB_TRX", [(0,)])


async def test_transaction_without_autocommit(mysql: str) -> None:
    """Begins one all the same; where the lease has one, it is a savepoint in that."""
    async with with_table(mysql) as outside, create_pool(mysql + "?autocommit=no") as pool:
        async with pool.transaction() as conn:
            await insert(conn, 1)
        async with pool.acquire() as conn:
            await insert(conn, 2)
            async with poolkit.transaction(conn):
                await insert(conn, 3)
        assert await rows(outside) == [1]


async def test_transaction_of_xa_ends_with_its_lease(mysql: str) -> None:
    """It is no other lease's."""
    async with with_table(mysql) as pool:
        async with pool.acquire() as conn:
            await execute(conn, "XA START 'here'")
            await insert(conn, 1)
        async with pool.acquire() as conn:
            assert await value(conn, "SELECT COUNT(*) FROM t") == 0
            await execute(conn, TABLE.replace("TABLE t", "TABLE u"))


@pytest.mark.parametrize("level", ["full", "transaction", "none"])
async def test_prepared_transaction_of_xa_is_no_other_leases(mysql: str, level: str) -> None:
    """It is the server's then, and the session that has prepared it can do nothing else."""
    async with with_table(mysql, reset=level) as pool:
        async with pool.acquire() as conn:
            for end in ("START", "END", "PREPARE"):
                await execute(conn, f"XA {end} 'there'")
                if end == "START":
                    await insert(conn, 2)
        try:
            async with pool.acquire() as conn:
                await insert(conn, 1)
            assert await rows(pool) == [1]
        finally:
            async with pool.acquire() as conn:
                await execute(conn, "XA ROLLBACK 'there'")


async def test_transaction_that_was_in_a_deadlock_is_run_again(mysql: str) -> None:
    """By `Pool.run`, and it succeeds then."""
    async with with_table(mysql) as one, create_pool(mysql, max_size=3) as pool:
        async with one.acquire() as conn:
            await insert(conn, 1, 2)
        tries = 0

        async def work(conn: Any) -> None:
            nonlocal tries
            tries += 1
            await insert(conn, 3)
            if tries == 1:
                await deadlock(pool, conn)
                raise OperationalError(1213, "Deadlock found, as the caller lets it out")

        await pool.run(work)
        assert tries == 2
        assert 3 in await rows(one)


LOCK_MISSED = [
    ("ALTER TABLE u NOWAIT ADD y INT", False),  # it has committed before
    ("SELECT * FROM u FOR UPDATE NOWAIT", True),
]


@pytest.mark.parametrize(("statement", "again"), LOCK_MISSED)
async def test_lock_that_was_not_had_is_tried_again_if_all_was_undone(
    mysql: str, statement: str, *, again: bool
) -> None:
    """And not if its statement has committed what came before it."""
    calls = 0

    async def work(conn: Any) -> None:
        nonlocal calls
        calls += 1
        await insert(conn, calls)
        if calls == 1:
            await execute(conn, statement)

    async with with_table(mysql) as one, create_pool(mysql) as pool:
        async with one.acquire() as conn:
            await execute(conn, TABLE.replace("TABLE t", "TABLE u"))
            await execute(conn, "INSERT INTO u VALUES (1)")
        async with one.transaction() as other:
            await execute(other, "SELECT * FROM u FOR UPDATE")
            if again:
                await pool.run(work)
            else:
                with pytest.raises(OperationalError, match="Lock wait timeout"):
                    await pool.run(work)
        assert (calls, await rows(one)) == ((2, [2]) if again else (1, [1]))
        await check_pool(pool)


@pytest.mark.parametrize(
    ("code", "unknown"), [(1053, True), (1927, True), (2013, True), (1213, False), (1062, False)]
)
def test_commit_is_unknown_if_the_answer_is_the_end_of_a_session(
    code: int, *, unknown: bool
) -> None:
    """A proxy (MaxScale) says so of the server behind it, and may keep the client."""
    session: Any = types.SimpleNamespace(is_closed=bool, abandoned="", inner=None, reading=0)
    transaction = Transaction(session, "pool", isolation=None, readonly=False)
    transaction._has_sent_commit = True
    assert transaction.may_have_committed(OperationalError(code, "")) is unknown


async def test_commit_whose_answer_never_came_is_unknown(mariadb: MariaDB, mysql: str) -> None:
    """It may have taken effect; not if it was not sent."""
    async with with_table(mysql, reset_timeout=20) as pool:
        with pytest.raises(poolkit.CommitUnknown):
            async with pool.transaction() as conn:
                await insert(conn, 1)
                await ask(mariadb, f"KILL {conn.thread_id()}")
        with pytest.raises(ProgrammingError, match="another task"):
            async with pool.transaction() as conn:
                task = asyncio.ensure_future(conn.cursor().execute("SELECT SLEEP(600)"))
                await asyncio.sleep(0)
        await asyncio.wait([task])
        assert task.exception() is not None
