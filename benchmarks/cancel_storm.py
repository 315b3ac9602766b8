"""Everybody gives up at once: what a cancelled waiter costs, and what the release after it costs.

One connection, held; many tasks wait for it and are cancelled, oldest first, newest first or in
random order. A pool that looks for each one in its queue takes quadratic time; one that only marks
them pays at the next release. In CPU time, the cancelled tasks' own included: see the first row.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator

from benchmarks.peers import Acquire, Peer, Want, load
from benchmarks.rounds import Spread
from benchmarks.table import Table, Target

ORDERS: dict[str, Callable[[list[asyncio.Task[None]]], object]] = {
    "oldest first": lambda tasks: tasks,
    "newest first": lambda tasks: tasks.reverse(),
    "random": lambda tasks: random.Random(1).shuffle(tasks),
}
#: CPU seconds that one measurement may take, judged by the one with a tenth of the waiters.
_PATIENCE = 12.0


class _Parked:
    """A context manager that nobody but the first gets through."""

    taken = False

    def __init__(self, future: asyncio.Future[None]) -> None:
        self._future = future

    async def __aenter__(self) -> None:
        """Wait for ever, unless first."""
        if _Parked.taken:
            await self._future
        _Parked.taken = True

    async def __aexit__(self, *error: object) -> None:
        """Let the next one through."""
        _Parked.taken = False


@contextlib.asynccontextmanager
async def _bare(_: Want) -> AsyncIterator[Acquire]:
    _Parked.taken = False
    loop = asyncio.get_running_loop()
    yield lambda: _Parked(loop.create_future())


BARE = Peer(
    name="bare tasks",
    settings="each waits for a future of its own: no pool at all",
    open=_bare,
    is_pool=False,
)


async def storm(peer: Peer, number: int, order: str) -> tuple[float, float]:
    """Return the microseconds of each cancel, and of the release that follows."""
    async with peer.open(Want(size=1, timeout=3600.0)) as acquire:

        async def wait() -> None:
            async with acquire():
                raise AssertionError("nobody gets it")

        holder = acquire()
        await holder.__aenter__()
        tasks = [asyncio.create_task(wait()) for _ in range(number)]
        for _ in range(20):  # some make tasks that make tasks
            await asyncio.sleep(0)
        ORDERS[order](tasks)
        gc.collect()
        gc.disable()
        try:
            begin = time.process_time()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            end = time.process_time()
            await holder.__aexit__(None, None, None)
            released = time.process_time()
        finally:
            gc.enable()
        assert all(task.cancelled() for task in tasks)
        async with acquire():
            pass
        return 1e6 * (end - begin) / number, 1e6 * (released - end)


def run(*, quick: bool) -> Iterator[Table]:
    """Return the table."""
    numbers = (10, 1_000, 10_000) if quick else (10, 1_000, 10_000, 100_000)
    wanted = ("poolkit", "asyncpg.Pool", "psycopg_pool")
    peers, notes = load("PEERS")
    chosen = [BARE, *(p for p in peers if p.is_pool and (p.name in wanted or not quick))]
    table = Table(
        name="cancel-storm",
        title="Everybody gives up: microseconds for each of so many cancelled waiters",
        about="CPU time, median and range over the orders oldest first, newest first and random; "
        "then the release after the largest storm. A dash: it would have taken too long.",
        columns=["pool", *(f"{number:,}" for number in numbers), "the release after it"],
        charted=f"{numbers[2]:,}",
        notes=notes,
    )
    for peer in chosen:
        cells: list[Spread | None] = []
        releases: list[float] = []
        for number in numbers:
            before = cells[-1] if cells else None
            if cells and (before is None or before.high * 10 * number > 1e6 * _PATIENCE):
                cells.append(None)
                continue
            repeats = max(1, (50 if quick else 3_000) // number)
            costs = []
            for order in ORDERS:
                found = [asyncio.run(storm(peer, number, order)) for _ in range(min(repeats, 5))]
                costs.append(Spread.of(cost for cost, _ in found).median)
                releases = [*releases[-2:], Spread.of(after for _, after in found).median]
            cells.append(Spread.of(costs))
        table.add(peer.name, *cells, Spread.of(releases))
        if peer.name == "poolkit":
            last = cells[-1]
            assert last is not None
            most = f"{numbers[-1]:,} cancelled"
            table.targets += [
                Target(f"microseconds for each of {most}, in any order", last.high, "most", 50.0),
                Target("microseconds for the release after it", max(releases), "most", 50.0),
            ]
    yield table
