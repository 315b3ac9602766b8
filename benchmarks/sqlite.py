"""D: SQLite, one row read, or nine reads to one write, by 1 to 50 tasks on 10 connections.

A file in WAL mode; everybody in autocommit, with the same busy timeout. What costs most here are
the hops to the threads in which SQLite runs, of which aiosqlite makes one for each call. Wall time.
"""

from __future__ import annotations

import contextlib
import functools
import random
import sqlite3
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiosqlite

import poolkit
from benchmarks import loops
from benchmarks.peers import READ, WRITE, Request, Sqlite, load
from benchmarks.peers.floor import HandOff
from benchmarks.postgresql import crowd
from benchmarks.rounds import Spread, percentile
from benchmarks.table import Table, Target

SIZE = 10
OURS = "poolkit"


# -- what to compare with ------------------------------------------------------------------------


async def _connect(path: str) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(path, isolation_level=None)
    await connection.execute("PRAGMA busy_timeout = 5000")
    await connection.execute("PRAGMA synchronous = NORMAL")
    return connection


#: What poolkit's driver does after a lease that may have left something, in one hop to the thread.
RESET = "PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000; PRAGMA synchronous = NORMAL"


def _by_hand(name: str, settings: str, reset: str | None) -> Sqlite:
    """Return plain connections of aiosqlite behind a bare hand-off."""

    @contextlib.asynccontextmanager
    async def open_pool(path: str, size: int) -> AsyncIterator[tuple[Request, Request]]:
        idle: deque[Any] = deque([await _connect(path) for _ in range(size)])
        connections = list(idle)
        line: deque[Any] = deque()

        async def read() -> None:
            async with HandOff(idle, line) as connection:
                await connection.execute_fetchall(READ, (1,))  # type: ignore[attr-defined]
                if reset:
                    await connection.executescript(reset)  # type: ignore[attr-defined]

        async def write() -> None:
            async with HandOff(idle, line) as connection:
                await connection.execute(WRITE, (1,))  # type: ignore[attr-defined]
                if reset:
                    await connection.executescript(reset)  # type: ignore[attr-defined]

        try:
            yield read, write
        finally:
            for connection in connections:
                await connection.close()

    return Sqlite(name=name, settings=settings, open=open_pool)


@contextlib.asynccontextmanager
async def _one_writer(path: str, size: int) -> AsyncIterator[tuple[Request, Request]]:
    """Open two of our pools: one connection that writes beside the others."""
    create = poolkit.drivers.aiosqlite.create_pool
    readers, writers = create(path, min_size=size, max_size=size), create(path, max_size=1)
    async with readers, writers:

        async def read() -> None:
            async with readers.acquire() as connection:
                await connection.execute_fetchall(READ, (1,))

        async def write() -> None:
            async with writers.acquire() as connection:
                await connection.execute(WRITE, (1,))

        yield read, write


@contextlib.asynccontextmanager
async def _no_pool(path: str, size: int) -> AsyncIterator[tuple[Request, Request]]:  # noqa: ARG001
    async def read() -> None:
        async with aiosqlite.connect(path, isolation_level=None) as connection:
            await connection.execute_fetchall(READ, (1,))

    async def write() -> None:
        async with aiosqlite.connect(path, isolation_level=None) as connection:
            await connection.execute("PRAGMA busy_timeout = 5000")
            await connection.execute(WRITE, (1,))

    yield read, write


NAKED = _by_hand("by hand, no reset", "aiosqlite behind a bare hand-off", None)
HAND = _by_hand(
    "by hand, same reset", "and one more hop, always, that undoes what poolkit undoes", RESET
)
SPLIT = Sqlite(
    name="poolkit, one writer beside readers", settings="two pools of one file", open=_one_writer
)
NONE = Sqlite(name="no pool: connect per request", settings="aiosqlite.connect", open=_no_pool)


# -- measuring -----------------------------------------------------------------------------------


async def one_round(
    peer: Sqlite, path: str, tasks: int, seconds: float
) -> tuple[float, float, float, float, float]:
    """Return reads/s, their p99 in ms and CPU in µs; requests/s at 90/10, the writes' p99 in ms."""
    chance = random.Random(1)
    writes: list[float] = []
    async with peer.open(path, SIZE) as (read, write):

        async def mixed() -> None:
            if chance.random() < 0.9:  # noqa: PLR2004  # nine of ten read
                await read()
                return
            begin = time.perf_counter()
            await write()
            writes.append(time.perf_counter() - begin)

        await crowd(read, tasks, seconds / 5)
        reads = await crowd(read, tasks, seconds)
        both = await crowd(mixed, tasks, seconds)
    return *reads, both.rate, 1000 * percentile(writes, 99)


def run(*, quick: bool) -> Iterator[Table]:
    """Return a table for each number of tasks."""
    rounds, seconds = (1, 0.3) if quick else (7, 1.0)
    peers, notes = load("SQLITE")
    peers = [NAKED, HAND, *peers, SPLIT, NONE]
    loop = "uvloop" if "uvloop" in loops.installed() else "asyncio"
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "bench.db")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value INTEGER)")
            connection.execute("INSERT INTO item VALUES (1, 0)")
            connection.commit()
        for tasks in (10, 50) if quick else (1, 10, 50):
            found: dict[str, list[tuple[float, ...]]] = {peer.name: [] for peer in peers}
            for _ in range(rounds):
                for peer in peers:
                    main = functools.partial(one_round, peer, path, tasks, seconds)
                    found[peer.name].append(loops.run(loop, main))
            yield _table(peers, notes, tasks, rounds, found)


def _table(
    peers: list[Sqlite],
    notes: list[str],
    tasks: int,
    rounds: int,
    found: dict[str, list[tuple[float, ...]]],
) -> Table:
    table = Table(
        name=f"sqlite-{tasks}",
        title=f"D: SQLite by {tasks} tasks on {SIZE} connections",
        about=f"Wall time, {rounds} interleaved rounds.",
        columns=[
            "pool",
            "reads/s",
            "x by hand, same reset",
            "p99 ms",
            "CPU µs",
            "90/10 requests/s",
            "write p99 ms",
        ],
        charted="reads/s",
        notes=[*(f"{peer.name}: {peer.settings}" for peer in peers), *notes],
    )

    def times(name: str, to: str, column: int) -> Spread:
        pairs = zip(found[name], found[to], strict=True)
        return Spread.of(a[column] / b[column] for a, b in pairs)

    for peer in peers:
        reads, *others = (Spread.of(values) for values in zip(*found[peer.name], strict=True))
        table.add(peer.name, reads, times(peer.name, HAND.name, 0), *others)
    table.targets = [
        Target("reads: x by hand, same reset", times(OURS, HAND.name, 0).median, "least", 0.95),
    ]
    for other, least in (("aiosqlitepool", 1.5), ("SQLAlchemy engine", 3.0)):
        if other in found:
            table.targets.append(
                Target(f"reads: x {other}", times(OURS, other, 0).median, "least", least)
            )
    if tasks == 50 and "aiosqlitepool" in found:  # noqa: PLR2004  # where unfairness shows
        tail = times(OURS, "aiosqlitepool", 1).median
        table.targets.append(Target("p99 / aiosqlitepool's", tail, "most", 0.1))
    if tasks == 10:  # noqa: PLR2004  # where writers meet and do not queue for long
        split = times(SPLIT.name, OURS, 4).median
        table.targets.append(Target("write p99, one writer / equals", split, "most", 0.2))
    return table
