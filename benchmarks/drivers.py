"""J to L: what a pool costs a driver, beside a bare semaphore over the same connections.

One request of one round trip for each acquire, by 1 to 50 tasks on 10 connections. Ways that undo
the same between two users compare. Wall time, in interleaved rounds, on uvloop where it is
installed, with the server on the same machine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from benchmarks.peers import Postgresql, Request
from benchmarks.postgresql import SIZE, Results, measure, rates
from benchmarks.rounds import Spread
from benchmarks.table import Table, Target

Connect = Callable[[], Awaitable[Any]]
Ask = Callable[[Any], Awaitable[object]]
#: A way of poolkit's, what it is compared with, and how many times as many requests it is to do.
Pair = tuple[str, str, float]

SEMAPHORE = "bare semaphore"


@contextlib.asynccontextmanager
async def semaphore(connect: Connect, ask: Ask, size: int) -> AsyncIterator[Request]:
    """Share connections as people write it by hand: nothing is undone, and nothing is found out."""
    free = asyncio.Semaphore(size)
    idle = deque([await connect() for _ in range(size)])

    async def request() -> None:
        async with free:
            connection = idle.pop()
            try:
                await ask(connection)
            finally:
                idle.append(connection)

    yield request


@contextlib.asynccontextmanager
async def pooled(pool: Any, ask: Ask) -> AsyncIterator[Request]:
    """Share the connections of a pool of poolkit's."""
    async with pool:

        async def request() -> None:
            async with pool.acquire() as connection:
                await ask(connection)

        yield request


def tables(
    name: str, title: str, ways: list[Postgresql], place: str, pairs: list[Pair], *, quick: bool
) -> Iterator[Table]:
    """Return a table for each number of tasks."""
    rounds, seconds = (1, 0.2) if quick else (7, 0.4)
    for tasks in (10,) if quick else (1, 10, 50):
        found = measure(ways, place, tasks, rounds, seconds)
        table = Table(
            name=f"{name}-{tasks}",
            title=f"{title} by {tasks} task{'s' * (tasks > 1)} on {SIZE} connections",
            about=f"Wall time, {rounds} interleaved rounds of {seconds:g} s, client and server on "
            "one machine.",
            columns=["pool", "undoes", "requests/s", f"x {SEMAPHORE}", "p99 ms", "client CPU µs"],
            charted="requests/s",
            notes=[f"{way.name}: {way.settings}" for way in ways],
        )
        for way in ways:
            outcomes = found[way.name]
            table.add(
                way.name,
                way.reset,
                Spread.of(outcome.rate for outcome in outcomes),
                rates(found, way.name, SEMAPHORE),
                Spread.of(outcome.p99 for outcome in outcomes),
                Spread.of(outcome.cpu for outcome in outcomes),
            )
        table.targets = list(targets(found, tasks, pairs))
        yield table


def targets(found: Results, tasks: int, pairs: list[Pair]) -> Iterator[Target]:
    """Return what poolkit is held to: requests, and the longest waits where tasks wait."""
    at = f"{tasks} task{'s' * (tasks > 1)}"
    for ours, theirs, least in pairs:
        if theirs not in found:
            continue
        yield Target(f"{ours}: x {theirs}, {at}", rates(found, ours, theirs).median, "least", least)
        if tasks > SIZE and theirs != SEMAPHORE:
            tails = [Spread.of(run.p99 for run in found[name]).median for name in (ours, theirs)]
            yield Target(f"{ours}: p99 / {theirs}'s, {at}", tails[0] / tails[1], "most", 1.0)
