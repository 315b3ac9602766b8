"""Money on real SQLite files: whatever is cancelled or ended, none is made and none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import uvloop

import poolkit

if TYPE_CHECKING:
    from scripts.soak.model import World

ACCOUNTS = 5
EACH = 1000
KINDS = ("transfer",) * 6 + ("change", "change", "stop", "by hand")


class ChangedHisMind(Exception):
    """Ends a transfer that must not be there afterwards."""


class Bank:
    """Accounts in a file, and those who move money between them."""

    def __init__(self, world: World, path: Path, driver: Any) -> None:
        self.world = world
        self.random = world.random
        self.path = path
        self.pool: poolkit.Pool[Any] = driver.create_pool(
            path,
            min_size=0,
            max_size=self.random.choice((1, 2, 4)),
            acquire_timeout=self.random.choice((0.1, 5.0)),
            max_lifetime=self.random.choice((None, 0.2)),
            ping_after=self.random.choice((0.0, None)),
        )
        self.done: set[int] = set()  # transfers whose commit was told
        self.undone: set[int] = set()  # those that never came to it
        self.query("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL)")
        self.query("CREATE TABLE transfer (id INTEGER PRIMARY KEY)")
        for account in range(ACCOUNTS):
            self.query(f"INSERT INTO account VALUES ({account}, {EACH})")

    def query(self, sql: str) -> list[Any]:
        """Ask beside the pool, without waiting for a lock."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=0)) as connection, connection:
            return connection.execute(sql).fetchall()

    async def day(self, transfers: int) -> None:
        """Move money by many tasks at once, and count it while the pool is open, and after."""
        async with self.pool:
            async with anyio.create_task_group() as group:
                room = anyio.Semaphore(8)
                for number in range(transfers):
                    await room.acquire()
                    group.start_soon(self._customer, number, room)
            await self._count()
        await self._count()

    async def _customer(self, number: int, room: anyio.Semaphore) -> None:
        try:
            with anyio.move_on_after(self.random.choice((None, 0.0, 0.001, 0.003, 0.01))):
                await self._transfer(number)
        except (poolkit.PoolTimeout, sqlite3.Error, ChangedHisMind) as error:
            self.world.note(f"transfer {number}: {type(error).__name__}: {error}")
        except Exception as error:
            self.world.fail(error)
            raise
        finally:
            room.release()

    async def _transfer(self, number: int) -> None:
        kind = self.random.choice(KINDS)
        self.world.note(f"transfer {number}: {kind}")
        if kind != "transfer":
            self.undone.add(number)
        if kind == "by hand":  # and left open: the reset rolls back
            async with self.pool.acquire() as connection:
                await connection.execute("BEGIN IMMEDIATE")
                await self._move(connection, number)
            return
        async with self.pool.transaction() as connection:
            await self._move(connection, number)
            if kind == "stop":
                connection.stop()  # ended from elsewhere, in the middle
            if kind != "transfer":
                raise ChangedHisMind
        self.done.add(number)
        self.world.note(f"transfer {number}: done")

    async def _move(self, connection: Any, number: int) -> None:
        """Read and write in steps, so that two transfers at once would lose money."""
        payer, payee = self.random.sample(range(ACCOUNTS), 2)
        rows = await connection.execute_fetchall("SELECT id, amount FROM account")
        has = dict(map(tuple, rows))
        amount = self.random.randint(0, has[payer])
        for account, left in ((payer, has[payer] - amount), (payee, has[payee] + amount)):
            await anyio.sleep(self.random.choice((0, 0.001)))
            change = "UPDATE account SET amount = ? WHERE id = ?"
            await connection.execute(change, (left, account))
        await connection.execute("INSERT INTO transfer VALUES (?)", (number,))

    async def _count(self) -> None:
        """See that all money is there, that what was told is true, and that no lock stays."""
        for _ in range(1000):  # a thread may be about to end
            stats = self.pool.stats()
            rest = stats.size == stats.idle and not stats.waiting
            with contextlib.suppress(sqlite3.OperationalError):
                if rest and self.query("BEGIN EXCLUSIVE") == []:
                    break
            await anyio.sleep(0.01)
        else:
            self.world.check(holds=False, text=f"no rest, or a lock stays: {self.pool!r}")
        check = self.world.check
        ((total,),) = self.query("SELECT sum(amount) FROM account")
        check(total == ACCOUNTS * EACH, f"{total} in all, and not {ACCOUNTS * EACH}")
        there = {number for (number,) in self.query("SELECT id FROM transfer")}
        check(self.done <= there, f"told as done, and not there: {self.done - there}")
        check(not self.undone & there, f"undone, and there: {self.undone & there}")


def run(world: World, steps: int) -> None:
    """Run one seed, on one of the two drivers and one of the event loops."""
    threads, aiosqlite = poolkit.drivers.sqlite, poolkit.drivers.aiosqlite
    turns = [(threads, "trio"), (threads, "asyncio"), (aiosqlite, "asyncio"), (aiosqlite, "uvloop")]
    driver, loop = turns[world.seed % len(turns)]
    with tempfile.TemporaryDirectory() as folder:
        bank = Bank(world, Path(folder) / "bank.db", driver)
        if loop == "trio":
            anyio.run(bank.day, steps, backend="trio")
        else:
            factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(bank.day(steps))
    if world.failure is not None:
        raise world.failure
