"""Many processes behind a pooler: each asks until it has had its share, and checks every answer.

``python -m tests.drivers.pgbouncer_worker DSN PROCESSES QUERIES SETTINGS`` prints a line of JSON for
each: how many queries were made, which parts of the work are done, the errors by kind, and the
answers that were not what was asked for. QUERIES are those of each. SETTINGS is JSON too, the
keywords of ``create_pool``. The server needs what `TABLES` creates.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import multiprocessing
import sys
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from poolkit.drivers.asyncpg import create_pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection

    import asyncpg

    from poolkit import Pool

    Part = Callable[["Work", int], Awaitable[int]]

logging.basicConfig()  # to standard error

TABLES = """
    CREATE TABLE work (name text, n int);
    CREATE TABLE batch (name text, n int);
    CREATE INDEX ON work (name, n);
    CREATE INDEX ON batch (name, n);
    CREATE TYPE mood AS ENUM ('fine', 'sad');
"""
#: More than the pool has connections.
TASKS = 6


class Wrong(AssertionError):
    """An answer to somebody else's question."""


class Work:
    """The parts of the work; each returns how many queries it has made.

    The name of the process is in the text of every statement, not in an argument: were it another
    process's statement that is executed, the answer would show it.
    """

    def __init__(self, pool: Pool[asyncpg.Connection], name: str) -> None:
        self.pool = pool
        self.name = name

    def check(self, answer: Any, expected: Any) -> None:
        """Raise if this is not the answer to what was asked."""
        if answer != expected:
            raise Wrong(f"{answer!r} instead of {expected!r}")

    async def fetch(self, n: int) -> int:
        """Ask three different questions with arguments."""
        async with self.pool.acquire() as conn:
            for factor in range(3):
                query = f"SELECT '{self.name}' AS name, $1::int * {factor} AS product"
                row = await conn.fetchrow(query, n)
                self.check(row and tuple(row), (self.name, n * factor))
        return 3

    async def transact(self, n: int) -> int:
        """Write and read what was written, under a setting of the transaction's own."""
        async with self.pool.transaction() as conn:
            setting = f"{2001 + n % 40}kB"
            await conn.execute(f"SET LOCAL work_mem = '{setting}'")
            await conn.execute("INSERT INTO work VALUES ($1, $2)", self.name, n)
            query = f"SELECT n FROM work WHERE name = '{self.name}' AND n = $1"
            self.check(await conn.fetchval(query, n), n)
            self.check(await conn.fetchval("SHOW work_mem"), setting)
        return 4

    async def execute(self, _: int) -> int:
        """Send statements without arguments, two at once."""
        async with self.pool.acquire() as conn:
            self.check(await conn.execute(f"SELECT 1; SELECT '{self.name}'"), "SELECT 1")
        return 1

    async def execute_many(self, n: int) -> int:
        """Write five rows by one statement."""
        async with self.pool.acquire() as conn:
            query = f"INSERT INTO batch VALUES ('{self.name}', $1)"
            await conn.executemany(query, [(n * 10 + k,) for k in range(5)])
            query = f"SELECT count(*) FROM batch WHERE name = '{self.name}' AND n >= $1 AND n < $2"
            self.check(await conn.fetchval(query, n * 10, n * 10 + 10), 5)
        return 2

    async def iterate(self, n: int) -> int:
        """Read through a cursor."""
        async with self.pool.transaction() as conn:
            query = f"SELECT '{self.name}' || i FROM generate_series(1, $1::int) AS i"
            rows = [row[0] async for row in conn.cursor(query, 12, prefetch=5)]
            self.check(rows, [f"{self.name}{i}" for i in range(1, 13)])
        return 1

    async def introspect(self, n: int) -> int:
        """Use types that asyncpg has to ask the server about first."""
        async with self.pool.acquire() as conn:
            await conn.reload_schema_state()
            query = f"SELECT '{self.name}' AS name, $1::numeric[] AS numbers, $2::mood AS mood"
            numbers = [Decimal(n), Decimal("0.5")]
            row = await conn.fetchrow(query, numbers, "fine")
            self.check(row and tuple(row), (self.name, numbers, "fine"))
        return 2

    async def prepare(self, n: int) -> int:
        """Prepare a statement, and execute it three times."""
        async with self.pool.acquire() as conn:
            statement = await conn.prepare(f"SELECT '{self.name}' || $1::int")
            for k in range(3):
                self.check(await statement.fetchval(n + k), f"{self.name}{n + k}")
        return 3


PARTS: list[Part] = [
    Work.fetch,
    Work.transact,
    Work.execute,
    Work.execute_many,
    Work.iterate,
    Work.introspect,
    Work.prepare,
]


async def main(dsn: str, name: str, queries: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Share the queries out among tasks, and return how they went."""
    made = 0
    parts, errors = Counter[str](), Counter[str]()
    wrong: list[str] = []
    numbers = itertools.count()

    async def take_turns(work: Work) -> None:
        nonlocal made
        while made < queries:
            n = next(numbers)
            part = PARTS[n % len(PARTS)]
            try:
                queries_made = await part(work, n)
                made += queries_made
                parts[part.__name__] += 1
            except Wrong as answer:
                made += 1
                wrong.append(f"{part.__name__}: {answer}")
            except Exception as error:
                made += 1
                errors[f"{part.__name__}: {type(error).__name__}"] += 1

    async with create_pool(dsn, min_size=1, max_size=4, **settings) as pool:
        await asyncio.gather(*(take_turns(Work(pool, name)) for _ in range(TASKS)))
    return {"made": made, "parts": parts, "errors": errors, "wrong": wrong}


def work_alone(there: Connection, *args: Any) -> None:
    """Work in a process of its own, and say how it went."""
    there.send(asyncio.run(main(*args)))


def work_together(dsn: str, processes: int, queries: int, settings: dict[str, Any]) -> None:
    """Print how it went in each of the processes."""
    fork = multiprocessing.get_context("fork")  # what they import is imported once
    here: list[Connection] = []
    for n in range(processes):
        mine, its = fork.Pipe()
        arguments = (its, dsn, f"worker {n}", queries, settings)
        fork.Process(target=work_alone, args=arguments, daemon=True).start()
        its.close()  # so that its end is noticed
        here.append(mine)
    for one in here:
        print(json.dumps(one.recv()))


if __name__ == "__main__":
    work_together(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
