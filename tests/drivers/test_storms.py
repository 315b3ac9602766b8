"""Storms on real databases: many callers, cancelled at any moment, connections killed under them.

Afterwards no money is lost, and the server knows of exactly the connections that the pool says it
has.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg
import psycopg
import pytest

import poolkit.drivers.aiosqlite
import poolkit.drivers.asyncpg
import poolkit.drivers.psycopg
import poolkit.drivers.sqlite
from poolkit import Pool, PoolError
from tests.drivers.asyncpg_help import GIVEN_UP, loop_is_told_only
from tests.effort import SHARE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from tests.postgres import Postgres

USERS = 12
ROUNDS = round(12 * SHARE)
#: What has to succeed in a storm, which goes on for as long as that takes: on a busy machine most
#: turns end by their short time limits.
ENOUGH = USERS * ROUNDS // 10
ACCOUNTS = 5
TABLES = """
    CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
    INSERT INTO account VALUES (0, 100), (1, 100), (2, 100), (3, 100), (4, 100);
"""


class Storm:
    """One pool, and what its users do to it."""

    def __init__(
        self,
        pool: Pool[Any],
        who: Callable[[Any], Awaitable[object]],
        expected: tuple[type[Exception], ...],
        seed: int,
        read: Callable[[Any, Random], Awaitable[object]] | None = None,
    ) -> None:
        self.pool = pool
        self.read = read or (lambda conn, _: conn.execute("SELECT balance FROM account"))
        self.who = who  # tells which connection it is, by asking the database
        self.expected = expected
        self.random = Random(seed)
        self.in_use: set[object] = set()
        self.done = 0

    async def user(self) -> None:
        """Read and move money; be cancelled, give up, or fail on the way."""
        rounds = 0
        while rounds < ROUNDS or self.done < ENOUGH:
            rounds += 1
            with contextlib.suppress(PoolError, *self.expected):
                with anyio.move_on_after(self.random.choice([None, None, 0.0, 0.002, 0.01, 0.05])):
                    await self.use()

    async def use(self) -> None:
        """Check that nobody else is on this connection, and do something."""
        ways: list[Callable[..., Any]] = [self.pool.acquire, self.pool.transaction]
        begin = self.random.choice(ways)
        async with begin(timeout=self.random.choice([0.01, 1.0, 5.0])) as conn:
            me = await self.who(conn)
            assert me not in self.in_use, f"two holders of {me}"
            self.in_use.add(me)
            try:
                if begin == self.pool.transaction:
                    await self.move_money(conn)
                else:
                    await self.read(conn, self.random)
                self.done += 1
            finally:
                self.in_use.discard(me)

    async def move_money(self, conn: Any) -> None:
        """Move some; an error half way undoes it."""
        amount, accounts = self.random.randrange(9), sorted(self.random.sample(range(ACCOUNTS), 2))
        update = "UPDATE account SET balance = balance + {} WHERE id = {}"
        await conn.execute(update.format(-amount, accounts[0]))
        if self.random.random() < 0.2:
            raise PoolError("changed my mind")
        await conn.execute(update.format(amount, accounts[1]))

    async def rage(self, fate: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Have all of it happen at once."""
        with anyio.fail_after(max(60, 240 * SHARE)):
            async with anyio.create_task_group() as meanwhile:
                meanwhile.start_soon(fate)
                async with anyio.create_task_group() as users:
                    for _ in range(USERS):
                        users.start_soon(self.user)
                meanwhile.cancel_scope.cancel()

    async def come_to_rest(self) -> None:
        """Wait until every job has ended; then nothing is leased, and all can be had."""
        with anyio.fail_after(30):
            while True:
                stats = self.pool.stats()
                if not stats.recycling + stats.connecting + stats.closing:
                    break
                await anyio.sleep(0.005)
            assert (stats.leased, stats.waiting, stats.size) == (0, 0, stats.idle), stats
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(self.pool.stats().max_size):
                    conn = await stack.enter_async_context(self.pool.acquire(timeout=20))
                    await self.who(conn)


@pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(
            ("asyncio", {"use_uvloop": True}),
            id="uvloop",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="no uvloop on Windows"),
        ),
    ],
)
@pytest.mark.parametrize("module", ["asyncpg", "psycopg"])
async def test_storm_on_postgresql_loses_nothing(
    postgres: Postgres, database: str, anyio_backend: Any, module: str
) -> None:
    """With backends ended from outside all the time, and the pool renewed and resized."""
    async with contextlib.AsyncExitStack() as stack:
        outside = await asyncpg.connect(database)
        stack.callback(outside.terminate)
        await storm_on_postgresql(module, database, outside)
        await outside.close()


async def pid_of(conn: Any) -> object:
    """Ask psycopg's connection which one it is, and see that nobody has left anything on it."""
    asked = "SELECT pg_backend_pid(), coalesce(current_setting('app.tenant', true), '')"
    pid, tenant = await (await conn.execute(asked)).fetchone()
    assert tenant == ""
    return pid


async def read_by_psycopg(conn: Any, random: Random) -> None:
    """Read in one of psycopg's ways, and leave a setting."""
    await conn.execute("SET app.tenant = 'alice'")
    query = "SELECT generate_series(1, 1000), balance FROM account"
    way, cursor = random.randrange(5), conn.cursor()
    if way == 0:
        await cursor.execute(query, prepare=True)
    elif way == 1:
        async for _ in cursor.stream(query):
            pass
    elif way == 2:
        async with cursor.copy(f"COPY ({query}) TO STDOUT") as copy:
            async for _ in copy:
                pass
    elif way == 3:
        async with conn.pipeline():
            for _ in range(3):
                await conn.execute(query)
    else:
        await cursor.executemany("SELECT %s::int", [(n,) for n in range(30)])


async def storm_on_postgresql(module: str, database: str, outside: asyncpg.Connection) -> None:
    """Storm, come to rest, and compare what the pool has with what the server knows."""
    await outside.execute(TABLES)
    mine = f"storm-{os.getpid()}"
    sizes: dict[str, Any] = {"min_size": 1, "max_size": 4, "max_overflow": 1}
    pool: Pool[Any]
    if module == "asyncpg":
        given = {"server_settings": {"application_name": mine}}
        pool = poolkit.drivers.asyncpg.create_pool(database, **sizes, connect_kwargs=given)
    else:
        pool = poolkit.drivers.psycopg.create_pool(
            database, **sizes, connect_kwargs={"application_name": mine}
        )
    sessions = f"FROM pg_stat_activity WHERE application_name = '{mine}'"
    ended: set[tuple[Any, ...]] = set()

    async def there() -> set[tuple[Any, ...]]:
        return {tuple(row) for row in await outside.fetch(f"SELECT pid, backend_start {sessions}")}

    async def fate() -> None:
        random = Random(2)
        while True:
            await anyio.sleep(0.02)
            with anyio.CancelScope(shield=True):  # it would go on, and hit who is there by then
                hit = await outside.fetch(
                    "SELECT pid, backend_start FROM (SELECT pid, backend_start "
                    f"{sessions} ORDER BY random() LIMIT 1) x WHERE pg_terminate_backend(pid)"
                )
            ended.update(map(tuple, hit))
            if random.random() < 0.2:
                pool.renew()
            pool.resize(max_size=random.choice([2, 4]))

    async with pool:
        storm = Storm(
            pool,
            pid_of
            if module == "psycopg"
            else lambda conn: conn.fetchval("SELECT pg_backend_pid()"),
            (
                *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
                psycopg.Error,
            ),
            seed=1,
            read=read_by_psycopg if module == "psycopg" else None,
        )
        with loop_is_told_only(GIVEN_UP):
            await storm.rage(fate)
            # The last ones take a moment to end, and the pool a moment to see it.
            await until_true(
                there,
                lambda rows: not rows & ended and {pid for pid, _ in rows} == pids_of(pool),
            )
            await storm.come_to_rest()
        await until_true(there, lambda rows: {pid for pid, _ in rows} == pids_of(pool))
        assert await outside.fetchval(f"SELECT count(*) {sessions} AND state <> 'idle'") == 0
    assert await outside.fetchval("SELECT sum(balance) FROM account") == ACCOUNTS * 100
    await until_true(there, lambda rows: not rows)


def pids_of(pool: Pool[Any]) -> set[int]:
    """Return the backends of the idle connections."""
    found = (slot.connection for slot in pool._state.idle)
    return {
        c.info.backend_pid if isinstance(c, psycopg.AsyncConnection) else c.get_server_pid()
        for c in found
    }


async def until_true(
    look: Callable[[], Awaitable[Any]], is_so: Callable[[Any], bool], seconds: float = 30.0
) -> None:
    """Look again and again until it is so."""
    end = anyio.current_time() + seconds
    while True:
        seen = await look()
        if is_so(seen):
            return
        assert anyio.current_time() < end, seen
        await anyio.sleep(0.01)


@pytest.mark.parametrize("module", ["aiosqlite", "sqlite"])
async def test_storm_on_sqlite_loses_nothing(
    module: str, tmp_path: Path, anyio_backend_name: str
) -> None:
    """With statements interrupted, and the pool renewed and resized."""
    if (module, anyio_backend_name) == ("aiosqlite", "trio"):
        pytest.skip("aiosqlite runs on asyncio only")
    path = tmp_path / "storm.db"
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.executescript(TABLES)
    pool: Pool[Any] = getattr(poolkit.drivers, module).create_pool(path, max_size=3, busy_timeout=1)

    async def who(conn: Any) -> object:
        await conn.execute("SELECT count(*) FROM account")
        return id(conn._poolkit_slot.connection)

    async def fate() -> None:
        random = Random(2)
        while True:
            await anyio.sleep(0.05)
            pool.renew()
            pool.resize(max_size=random.choice([2, 3]))

    async with pool:
        storm = Storm(pool, who, (sqlite3.Error,), seed=1)
        await storm.rage(fate)
        await storm.come_to_rest()
    with contextlib.closing(sqlite3.connect(path, timeout=0)) as conn:
        assert conn.execute("SELECT sum(balance) FROM account").fetchone() == (ACCOUNTS * 100,)
        conn.execute("BEGIN EXCLUSIVE")
