"""I: what an `AsyncSession` costs over poolkit, beside SQLAlchemy's own pool.

Two kinds of session: the shortest there is, one ``SELECT 1``, and one that reads a row with the
ORM, changes it and commits. By one task, where a reset in the background is in nobody's way, and by
twice as many tasks as there are connections, where it takes time that a session could have had.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import poolkit
from benchmarks.postgres import NoServerError, server
from benchmarks.rounds import Spread
from benchmarks.table import Table

SIZE = 5
THEIRS = "SQLAlchemy's own pool"


class Base(DeclarativeBase):
    """Mapped classes."""


class Counter(Base):
    """A row."""

    __tablename__ = "poolkit_benchmark"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


async def shortest(engine: AsyncEngine, _: int) -> None:
    """Run one statement."""
    async with AsyncSession(engine) as session:
        await session.execute(sa.text("SELECT 1"))


async def change(engine: AsyncEngine, number: int) -> None:
    """Read, change, commit."""
    async with AsyncSession(engine) as session:
        counter = await session.get_one(Counter, number)
        counter.value += 1
        await session.commit()


Work = Callable[[AsyncEngine, int], Awaitable[None]]


class Cost(NamedTuple):
    """What one session takes, in microseconds."""

    wall: float
    """Of the time that all take together."""
    cpu: float
    """Of this process's CPU time, in all its threads."""


async def block(engine: AsyncEngine, work: Work, tasks: int, sessions: int) -> Cost:
    """Run that many sessions."""

    async def several(number: int) -> None:
        for _ in range(sessions // tasks):
            await work(engine, number)

    gc.collect()
    begin, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(several(number) for number in range(tasks)))
    passed, used = time.perf_counter() - begin, time.process_time() - used
    number = sessions // tasks * tasks
    return Cost(passed / number * 1e6, used / number * 1e6)


@contextlib.asynccontextmanager
async def engines(url: str) -> AsyncIterator[dict[str, AsyncEngine]]:
    """Open the pools: of all that are compared, by their names."""
    is_sqlite = url.startswith("sqlite")
    dialect = "sqlite+aiosqlite" if is_sqlite else "postgresql+asyncpg"
    theirs = create_async_engine(
        sa.make_url(url).set(drivername=dialect), pool_size=SIZE, max_overflow=0
    )
    found = {THEIRS: theirs}
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(theirs.dispose)
        if is_sqlite:
            sa.event.listen(theirs.sync_engine, "connect", _as_poolkit_has_it)
            pools = {"poolkit": poolkit.create_pool(url, max_size=SIZE)}
        else:
            pools = {
                f"poolkit, reset={level!r}": poolkit.create_pool(
                    f"{url}?reset={level}", max_size=SIZE
                )
                for level in ("transaction", "full")
            }
        for name, pool in pools.items():
            found[name] = poolkit.sqlalchemy.create_async_engine(
                await stack.enter_async_context(pool)
            )
        yield found


def _as_poolkit_has_it(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


Costs = dict[str, list[Cost]]


async def measure(url: str, work: Work, tasks: int, rounds: int, sessions: int) -> Costs:
    """Return what a session took with each, in each round."""
    async with engines(url) as compared:
        async with compared[THEIRS].begin() as conn:
            await conn.run_sync(Base.metadata.drop_all)
            await conn.run_sync(Base.metadata.create_all)
            rows = [{"id": number, "value": 0} for number in range(2 * SIZE)]
            await conn.execute(sa.insert(Counter), rows)
        found: Costs = {name: [] for name in compared}
        for count in range(-2, rounds):
            for name, engine in compared.items():
                cost = await block(engine, work, tasks, sessions)
                if count >= 0:  # warm by then
                    found[name].append(cost)
        async with compared[THEIRS].begin() as conn:
            await conn.run_sync(Base.metadata.drop_all)
    return found


def times(found: Costs, name: str, column: str) -> Spread:
    """Return how many times as much one took as SQLAlchemy's own, formed inside a round."""
    pairs = zip(found[name], found[THEIRS], strict=True)
    return Spread.of(getattr(a, column) / getattr(b, column) for a, b in pairs)


def run(*, quick: bool) -> Iterator[Table]:
    """Return the tables."""
    with tempfile.TemporaryDirectory() as folder:
        yield _table("SQLite", f"sqlite:///{folder}/benchmark.db", quick=quick)
    try:
        with server() as postgres:
            yield _table("PostgreSQL", postgres.dsn(), quick=quick)
    except NoServerError as missing:
        print(f"I: PostgreSQL is left out: {missing}\n")


def _table(database: str, url: str, *, quick: bool) -> Table:
    rounds, sessions = (5, 50) if quick else (15, 100)
    table = Table(
        name=f"sqlalchemy-{database.lower()}",
        title=f"I: sessions of SQLAlchemy's on {database}",
        about=f"{SIZE} connections, {rounds} interleaved rounds of {sessions} sessions, wall time.",
        columns=["pool", "session", "tasks", "µs", "x their own", "CPU µs", "x their own's CPU"],
    )
    for work, says in ((shortest, "SELECT 1"), (change, "read, change, commit")):
        # (More writers than one make SQLite's lock the thing that is measured.)
        for tasks in (1,) if work is change and database == "SQLite" else (1, 2 * SIZE):
            found = asyncio.run(measure(url, work, tasks, rounds, sessions))
            for name, costs in found.items():
                table.add(
                    *(name, says, tasks),
                    Spread.of(cost.wall for cost in costs),
                    times(found, name, "wall"),
                    Spread.of(cost.cpu for cost in costs),
                    times(found, name, "cpu"),
                )
    return table
