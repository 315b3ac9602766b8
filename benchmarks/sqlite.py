"""D: SQLite, one row read, or nine reads to one write, by 1 to 50 tasks on 10 connections.

A file in WAL mode; everybody in autocommit, with the same busy timeout, and with synchronous
NORMAL. What costs most here are the hops to the threads in which SQLite runs, of which aiosqlite
makes one for each call. Wall time.

In a closed loop a pool is quick that serves ten tasks and lets forty wait until the end. So a row
says how many tasks it has served, its p99 is that of these tasks, and the p99 of a load that every
pool can carry stands beside it. The last table has one task that writes beside many that read.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import sqlite3
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiosqlite

import poolkit
from benchmarks import loops
from benchmarks.peers import READ, WRITE, Request, Sqlite, load
from benchmarks.peers.floor import HandOff
from benchmarks.postgresql import crowd
from benchmarks.rounds import Spread, percentile
from benchmarks.table import Table, Target

SIZE = 10
#: Tasks, where it shows whether all of them are served.
MANY = 50
#: Seconds between two reads of a task, on average, so that no pool has more to do than it can.
PAUSE = 0.020
OURS = "poolkit"


# -- what to compare with ------------------------------------------------------------------------


async def _connect(path: str) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(path, isolation_level=None)
    await connection.executescript(SETTINGS)
    return connection


#: What poolkit's connections have, and so all others.
SETTINGS = "PRAGMA busy_timeout = 5000; PRAGMA synchronous = NORMAL"
#: What poolkit's driver does after a lease that may have left something, in one hop to the thread.
RESET = f"PRAGMA foreign_keys = ON; {SETTINGS}"


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
            await connection.executescript(SETTINGS)
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


class Round(NamedTuple):
    """What a way has come to in one round."""

    reads: float
    """A second."""
    served: float
    """Tasks that had a row in time."""
    p99: float
    """Of the reads of these tasks, in ms."""
    cpu: float
    """Of a read, in µs."""
    both: float
    """Requests a second, one in ten of which writes."""
    write_p99: float
    """Of the writes among these, in ms."""
    paced_p99: float | None
    """Of reads with a pause after each, in ms."""


async def warm_up(read: Request, write: Request, tasks: int, seconds: float) -> None:
    """Do a little of what is measured next.

    The write is first, while nobody reads. If the write-ahead log is empty, SQLite may keep the
    first one that comes beside readers waiting until they pause.
    """
    await write()
    await crowd(read, tasks, seconds / 5)


async def one_round(peer: Sqlite, path: str, tasks: int, seconds: float) -> Round:
    """Run one of them, warm."""
    turn, chance = itertools.count(), random.Random(1)
    writes: list[float] = []
    paced = None
    async with peer.open(path, SIZE) as (read, write):

        async def mixed() -> None:
            if next(turn) % 10:
                await read()
                return
            begin = time.perf_counter()
            await write()
            writes.append(time.perf_counter() - begin)

        await warm_up(read, write, tasks, seconds)
        reads = await crowd(read, tasks, seconds)
        both = await crowd(mixed, tasks, seconds)
        if tasks == MANY:
            paced = (await crowd(read, tasks, seconds, lambda: chance.expovariate(1 / PAUSE))).p99
    return Round(
        *(reads.rate, reads.served, reads.p99_served, reads.cpu),
        *(both.rate, 1000 * percentile(writes, 99), paced),
    )


class Beside(NamedTuple):
    """What readers and one writer beside them have come to in one round."""

    reads: float
    read_p99: float
    writes: float
    write_p99: float


async def one_writer(peer: Sqlite, path: str, readers: int, seconds: float) -> Beside:
    """Have one task write and the others read, warm."""
    async with peer.open(path, SIZE) as (read, write):
        await warm_up(read, write, readers, seconds)
        reading, writing = await asyncio.gather(
            crowd(read, readers, seconds), crowd(write, 1, seconds)
        )
    return Beside(reading.rate, reading.p99_served, writing.rate, writing.p99)


T = TypeVar("T")
Measure = Callable[[Sqlite, str, int, float], Coroutine[Any, Any, T]]


def measure(
    one: Measure[T], peers: list[Sqlite], path: str, tasks: int, rounds: int, seconds: float
) -> dict[str, list[T]]:
    """Return what each has come to in each round."""
    loop = "uvloop" if "uvloop" in loops.installed() else "asyncio"
    found: dict[str, list[T]] = {peer.name: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            main = functools.partial(one, peer, path, tasks, seconds)
            found[peer.name].append(loops.run(loop, main))
    return found


def make_file(folder: Path) -> str:
    """Make a database with one row, and return its path."""
    path = str(folder / "bench.db")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value INTEGER)")
        connection.execute("INSERT INTO item VALUES (1, 0)")
        connection.commit()
    return path


def run(*, quick: bool) -> Iterator[Table]:
    """Return a table for each number of tasks, and one of a writer beside readers."""
    rounds, seconds = (1, 0.2) if quick else (5, 0.3)
    peers, notes = load("SQLITE")
    peers = [NAKED, HAND, *peers, SPLIT, NONE]
    notes = [*(f"{peer.name}: {peer.settings}" for peer in peers), *notes]
    with tempfile.TemporaryDirectory() as folder:
        path = make_file(Path(folder))
        for tasks in (SIZE, MANY) if quick else (1, SIZE, MANY):
            made = table(tasks, measure(one_round, peers, path, tasks, rounds, seconds))
            made.notes = notes
            yield made
        peers = [peer for peer in peers if peer not in (HAND, NONE)]
        found = {
            readers: measure(one_writer, peers, path, readers, rounds, 2 * seconds)
            for readers in (SIZE - 1, MANY - 1)
        }
        yield beside(found)


def _times(found: dict[str, list[Any]], name: str, to: str, what: str) -> Spread:
    pairs = zip(found[name], found[to], strict=True)
    return Spread.of(getattr(a, what) / getattr(b, what) for a, b in pairs)


def table(tasks: int, found: dict[str, list[Round]]) -> Table:
    """Return the table of that many tasks."""
    columns = {
        "reads/s": "reads",
        "tasks served": "served",
        "p99 ms": "p99",
        "CPU µs": "cpu",
        "90/10 requests/s": "both",
        "write p99 ms": "write_p99",
        "paced p99 ms": "paced_p99",
    }
    about = "p99: of the reads of those tasks that had a row in time."
    if tasks == MANY:
        about += f" Paced: with a pause of {1000 * PAUSE:g} ms after each read, on average."
    else:
        del columns["paced p99 ms"]
    rounds = len(found[OURS])
    made = Table(
        name=f"sqlite-{tasks}",
        title=f"D: SQLite by {tasks} tasks on {SIZE} connections",
        about=f"Wall time, {rounds} interleaved rounds. {about}",
        columns=["pool", "x by hand, same reset", *columns],
        charted="reads/s",
    )
    for name, outcomes in found.items():
        spreads = (Spread.of(getattr(one, what) for one in outcomes) for what in columns.values())
        made.add(name, _times(found, name, HAND.name, "reads"), *spreads)
    reads = functools.partial(_times, found, OURS, what="reads")
    made.targets = [Target("reads: x by hand, same reset", reads(HAND.name).median, "least", 0.95)]
    for other, least in (("aiosqlitepool", 1.5), ("SQLAlchemy engine", 3.0)):
        if other in found:
            made.targets.append(Target(f"reads: x {other}", reads(other).median, "least", least))
    if "aiosqlitepool" in found and tasks > 1:
        of = functools.partial(_times, found, OURS, "aiosqlitepool")
        served = Spread.of(one.served for one in found["aiosqlitepool"]).median
        says = f"p99 of {tasks} tasks / aiosqlitepool's, of the {served:.0f} it serves"
        made.targets.append(Target(says, of("p99").median, "most", 1.0))
        if tasks == MANY:
            says = "p99 / aiosqlitepool's, paced, where it serves all"
            made.targets.append(Target(says, of("paced_p99").median, "most", 1.0))
    if tasks == SIZE:  # where writers meet and do not queue for long
        split = _times(found, SPLIT.name, OURS, "write_p99").median
        made.targets.append(Target("write p99, one writer / equals", split, "most", 0.2))
    return made


def beside(found: dict[int, dict[str, list[Beside]]]) -> Table:
    """Return the table of readers and a writer, by the number of readers."""
    columns = {
        "reads/s": "reads",
        "read p99 ms": "read_p99",
        "writes/s": "writes",
        "write p99 ms": "write_p99",
    }
    some = next(iter(found.values()))
    made = Table(
        name="sqlite-writer",
        title=f"D: one task that writes beside others that read, on {SIZE} connections",
        about=f"WAL. Wall time, {len(some[OURS])} interleaved rounds.",
        columns=["pool", "readers", *columns],
    )
    for readers, outcomes in found.items():
        for name, rounds in outcomes.items():
            spreads = (Spread.of(getattr(one, what) for one in rounds) for what in columns.values())
            made.add(name, readers, *spreads)
    return made
