"""Two thousand tasks on MySQL, cancelled, killed and resized: nothing is lost, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import asyncmy
import pytest
from asyncmy.cursors import SSCursor

from poolkit import PoolError
from poolkit.drivers.asyncmy import create_pool
from poolkit.testing import check_pool
from tests.drivers.asyncmy_help import ask, database_of, execute, quiet, until_asked, until_sessions
from tests.drivers.asyncpg_help import LOOPS
from tests.effort import SHARE
from tests.fakes import gone

if TYPE_CHECKING:
    from poolkit import Pool
    from tests.mariadb import MariaDB

TASKS = max(400, round(2000 * SHARE))
#: What a session has to be like for its next user.
FRESH = (
    "SELECT CONNECTION_ID(), DATABASE(), @tenant, @@time_zone, @@sql_mode, @@autocommit, "
    "@@character_set_client, IS_USED_LOCK(CONCAT('lock', CONNECTION_ID())), "
    "@@session.tx_isolation"
)
#: What a task may leave.
LEAVE = [
    "SET @tenant = 'alice'",
    "SET time_zone = '+01:00', sql_mode = 'ANSI', NAMES latin1",
    "USE information_schema",
    "SET autocommit = 0",
    "START TRANSACTION",
    "DO GET_LOCK(CONCAT('lock', CONNECTION_ID()), 0)",
    "CREATE TEMPORARY TABLE left_over (x INT)",
    "LOCK TABLES account READ",
    "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SELECT 1; SELECT 2; SELECT 3",
]


class Storm:
    """One pool, and what its users do to it."""

    def __init__(self, pool: Pool[Any], database: str) -> None:
        self.pool = pool
        self.random = Random(3)
        self.fresh = (database, None, "SYSTEM", None, 1, "utf8mb4", None, "REPEATABLE-READ")
        self.in_use: set[int] = set()
        self.served = 0

    async def task(self, number: int) -> None:
        """Use a connection, and be cancelled, killed or refused on the way."""
        limit = self.random.choice([None, None, 0.0, 0.005, 0.02, 0.1])
        with contextlib.suppress(PoolError, asyncmy.Error), anyio.move_on_after(limit):
            async with self.pool.acquire() as conn:
                (seen,) = await execute(conn, FRESH)
                me, database, tenant, zone, _, *rest = seen
                assert (database, tenant, zone, None, *rest) == self.fresh, seen
                assert me not in self.in_use, f"two holders of {me}"
                self.in_use.add(me)
                try:
                    await self.use(conn, number)
                    self.served += 1
                finally:
                    self.in_use.discard(me)

    async def use(self, conn: Any, number: int) -> None:
        """Do something, and leave something."""
        what = self.random.randrange(8)
        if what == 0:
            await execute(conn, "SELECT SLEEP(0.05)")
        elif what == 1:
            cursor = conn.cursor(SSCursor)
            await cursor.execute("SELECT seq FROM seq_1_to_20000")
            await cursor.fetchmany(self.random.choice([3, 30_000]))
        elif what == 2:
            statement = await conn.prepare("SELECT ? + 1")
            assert (await statement.execute((number,))).rows == ((number + 1,),)
        elif what == 3:
            await execute(conn, "UPDATE account SET n = n + 1 WHERE id = %s", (number % 5,))
        else:
            assert await execute(conn, "SELECT %s", (number,)) == [(number,)]
            await conn.cursor().execute(self.random.choice(LEAVE))

    async def move(self, number: int) -> None:
        """Move money: all of it, or nothing."""
        one, two = self.random.sample(range(5), 2)
        limit = self.random.choice([None, 0.005, 0.05])
        with contextlib.suppress(PoolError, asyncmy.Error), anyio.move_on_after(limit):
            async with self.pool.transaction() as conn:
                for account, amount in sorted([(one, number), (two, -number)]):
                    sql = "UPDATE account SET balance = balance + %s WHERE id = %s"
                    await execute(conn, sql, (amount, account))


@pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
async def test_storm_on_mysql_loses_nothing(mariadb: MariaDB, mysql: str) -> None:
    """And what one has left, no other has found."""
    database = database_of(mysql)
    sql = "SELECT seq AS id, 0 AS n, 100 AS balance FROM seq_0_to_4"
    sql = f"CREATE TABLE account (id INT PRIMARY KEY, n INT, balance INT) {sql}"
    await asyncio.to_thread(mariadb.query, sql, database=database)
    limits: dict[str, Any] = {"acquire_timeout": None, "reset_timeout": 20, "connect_timeout": 20}
    async with create_pool(mysql, max_size=6, max_overflow=1, **limits) as pool:
        storm = Storm(pool, database)

        async def fate() -> None:
            random = Random(2)
            while True:
                await anyio.sleep(0.02)
                with anyio.CancelScope(shield=True):  # it would go on, and hit who is there by then
                    found = await asyncio.to_thread(mariadb.sessions, database)
                    if found:
                        with contextlib.suppress(asyncmy.Error):  # it has ended meanwhile
                            await ask(mariadb, f"KILL {random.choice([*found])}")
                if random.random() < 0.2:
                    pool.renew()
                pool.resize(max_size=random.choice([3, 6]))

        with anyio.fail_after(100):
            async with anyio.create_task_group() as meanwhile:
                meanwhile.start_soon(fate)
                async with anyio.create_task_group() as users:
                    for number in range(TASKS):
                        work = storm.move if number % 4 == 0 else storm.task
                        users.start_soon(work, number)
                meanwhile.cancel_scope.cancel()
            assert TASKS // 10 < storm.served < TASKS
            assert gone(pool.stats())["broken"] > 5
            # All of them have this database again.
            await until_sessions(mariadb, mysql, lambda seen: set(seen) == numbers_of(pool))
            await quiet(pool)
            assert len(numbers_of(pool)) == pool.stats().size == pool.stats().idle
            await until_asked(mariadb, "SELECT COUNT(*) FROM information_schema.INNODB_TRX", [(0,)])
        await check_pool(pool)
    total = await asyncio.to_thread(mariadb.query, f"SELECT SUM(balance) FROM {database}.account")
    assert total == [(500,)]
    await until_sessions(mariadb, mysql, lambda seen: not seen)


def numbers_of(pool: Pool[Any]) -> set[int]:
    """Return the sessions of the idle connections."""
    return {slot.connection.thread_id() for slot in pool._state.idle}
