"""F: what many connections and many waiters cost, in memory and in time.

Memory by tracemalloc: of an idle slot what it takes beyond its connection, of a waiter what it
takes beyond a task that waits for a bare future. What cancelling them costs is in `cancel_storm`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator

from benchmarks import cancel_storm, uncontended
from benchmarks.peers import Peer, Want, load
from benchmarks.table import Table, Target
from benchmarks.wire import Database, Wire

#: In the order of the columns: connections in the pool.
SIZES = (10, 100, 1_000, 10_000)


def _memory() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@contextlib.asynccontextmanager
async def _traced() -> AsyncIterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


async def slot_bytes(peer: Peer, number: int) -> float:
    """Return the bytes of an idle slot, without its connection: the slope between two sizes."""
    database = Database()
    async with peer.open(Want(size=number)):
        pass  # what is made once is made now
    async with _traced():
        before = _memory()
        for _ in range(number):
            await database.connect(Wire)
        wire = (_memory() - before) / number
        taken = []
        for size in (number, 3 * number):
            before = _memory()
            async with peer.open(Want(size=size)):
                taken.append(_memory() - before)
    few, many = taken
    return (many - few) / (2 * number) - wire


async def waiter_bytes(peer: Peer, number: int) -> float:
    """Return the bytes of a waiter, the task's own included."""
    async with peer.open(Want(size=1, timeout=3600.0)) as acquire:

        async def wait() -> None:
            async with acquire():
                pass

        async with acquire(), _traced():
            before = _memory()
            tasks = [asyncio.create_task(wait()) for _ in range(number)]
            for _ in range(20):
                await asyncio.sleep(0)
            each = (_memory() - before) / number
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            return each


async def cycle(peer: Peer, size: int, number: int) -> float:
    """Return the CPU microseconds of acquire and release in a pool of that size."""
    async with peer.open(Want(size=size)) as acquire:
        await uncontended.cycles(acquire, number // 10)
        return 1e6 * min([await uncontended.cycles(acquire, number) for _ in range(3)])


async def served(peer: Peer, number: int) -> float:
    """Return the CPU microseconds of serving each of so many waiters."""
    async with peer.open(Want(size=1, timeout=3600.0)) as acquire:

        async def wait() -> None:
            async with acquire():
                pass

        async with acquire():
            tasks = [asyncio.create_task(wait()) for _ in range(number)]
            for _ in range(20):
                await asyncio.sleep(0)
            begin = time.process_time()
        await asyncio.wait(tasks)
        return 1e6 * (time.process_time() - begin) / number


def run(*, quick: bool) -> Iterator[Table]:
    """Return the table."""
    peers, notes = load("PEERS")
    wanted = ("poolkit", "asyncpg.Pool", "psycopg_pool", "SQLAlchemy QueuePool")
    chosen = [p for p in peers if p.is_pool and (p.name in wanted or not quick)]
    few, many = (200, 2_000) if quick else (1_000, 10_000)
    sizes = SIZES[:3] if quick else SIZES
    crowds = (1_000, 10_000) if quick else (1_000, 20_000)
    bare = asyncio.run(_bare_task_bytes(many))
    table = Table(
        name="scale",
        title="F: many connections, many waiters",
        about=f"A waiter beyond its task ({bare:,.0f} bytes); microseconds of CPU time for a cycle "
        "in a pool of so many connections, and for serving each of so many waiters.",
        columns=[
            "pool",
            "bytes a slot",
            "bytes a waiter",
            *(f"cycle µs, {size:,}" for size in sizes),
            *(f"serve µs, {crowd:,}" for crowd in crowds),
        ],
        charted="bytes a waiter",
        notes=notes,
    )
    for peer in chosen:
        slot = asyncio.run(slot_bytes(peer, few))
        waiter = asyncio.run(waiter_bytes(peer, many)) - bare
        slowly = peer.name != "poolkit"
        cycles = [asyncio.run(cycle(peer, size, 200 if slowly else 5_000)) for size in sizes]
        serves = [asyncio.run(served(peer, crowd)) for crowd in crowds]
        table.add(peer.name, slot, waiter, *cycles, *serves)
        if peer.name == "poolkit":
            table.targets += [
                Target("bytes an idle slot", slot, "most", 400),
                Target("bytes a waiter over its task", waiter, "most", 600),
                Target(
                    f"a cycle with {sizes[-1]:,} connections, x the one with {sizes[0]}",
                    cycles[-1] / cycles[0],
                    "most",
                    1.25,
                ),
            ]
    yield table


async def _bare_task_bytes(number: int) -> float:
    return await waiter_bytes(cancel_storm.BARE, number)
