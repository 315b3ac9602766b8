"""B: more tasks than connections: the cost of waiting, and whose turn it is.

10 connections to nothing, 100 and 1,000 tasks in a closed loop, each holding one for one turn of
the event loop. The base is a bare hand-off: a deque of futures, without a timeout. CPU time; waits
in wall time. Jain's index is 1 when all tasks were served equally often, 0.01 when 10 of 1,000 did
all the work. Overtaken: the share of requests that were served after one that came later, with
random arrivals in an open loop, at 90 % of the capacity and 150 % in between, in virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import time
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel

from benchmarks import loops, virtual
from benchmarks.peers import Acquire, Peer, Want, load, ours
from benchmarks.rounds import Measured, Spread, by_turns, jain, percentile, ratios
from benchmarks.table import Table, Target
from benchmarks.uncontended import settings

SIZE = 10
#: In the open loop: a power of two, so that sums of ticks are exact; and for how many to hold.
TICK, HOLD = 2.0**-10, 5
TASKS = (100, 1_000)
#: With it: what is compared has a timeout, as applications have.
TIMEOUT = 30.0


async def crowd(acquire: Acquire, loop: str, tasks: int, operations: int) -> float:
    """Return the CPU seconds of one operation, by that many tasks in a closed loop."""
    left = operations
    begin = 0.0
    turn = loops.one_turn(loop)
    gate = anyio.Event()

    async def work() -> None:
        nonlocal left
        await gate.wait()
        while left > 0:
            left -= 1
            async with acquire():
                await turn()

    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(work)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        begin = time.process_time()
        gate.set()
    return (time.process_time() - begin) / operations


async def watch(
    acquire: Acquire, loop: str, tasks: int, operations: int
) -> tuple[list[int], list[float]]:
    """Return how often each task was served, and all waits in seconds."""
    left = operations
    counts = [0] * tasks
    waits: list[float] = []
    turn = loops.one_turn(loop)
    clock = time.perf_counter

    async def work(number: int) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            begin = clock()
            async with acquire():
                if left > 0:  # else nobody competes any more
                    counts[number] += 1
                    waits.append(clock() - begin)
                await turn()

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(work, number)
    return counts, waits


async def measure(
    peers: list[Peer], loop: str, rounds: int, each: int
) -> tuple[dict[int, Measured], dict[str, Any]]:
    """Return CPU seconds by the number of tasks, and how fair each was."""
    async with contextlib.AsyncExitStack() as stack:
        opened = {}
        for peer in peers:
            opened[peer.name] = await stack.enter_async_context(
                peer.open(Want(size=SIZE, timeout=TIMEOUT))
            )
            if peer.name.startswith("poolkit"):
                await ours.check_safety(opened[peer.name])
        measured = {
            tasks: await by_turns(
                {
                    name: functools.partial(crowd, acquire, loop, tasks, each * tasks)
                    for name, acquire in opened.items()
                },
                rounds,
            )
            for tasks in TASKS
        }
        watched = {
            name: await watch(acquire, loop, TASKS[-1], 2 * each * TASKS[-1])
            for name, acquire in opened.items()
        }
    return measured, watched


def overtaken(peer: Peer, ticks: int = 4_000) -> float:
    """Return the per cent of requests that were served after one that had come later.

    Everything happens on ticks of a millisecond, as on a loop that is busy meanwhile: what ends and
    who comes then meet in the same turn of the loop, and a pool has to say whose turn it is. Within
    a tick no order is asked for.
    """

    async def main() -> list[tuple[int, int]]:
        chance = random.Random(1)
        loop = asyncio.get_running_loop()
        start = loop.time() + 1
        served: list[tuple[int, int]] = []

        async def serve(arrived: int) -> None:
            async with acquire() as connection:
                served.append((arrived, round((loop.time() - start) / TICK)))
                await connection.query(HOLD * TICK)

        async with peer.open(Want(size=SIZE, timeout=TIMEOUT)) as acquire:
            tasks = []
            for tick in range(ticks):
                await asyncio.sleep(start + tick * TICK - loop.time())
                burst = ticks / 4 <= tick < ticks / 2
                come, chances = 0, SIZE * (1.5 if burst else 0.9) / HOLD
                while (chances := chances - chance.expovariate(1)) > 0:
                    come += 1
                tasks += [loop.create_task(serve(tick)) for _ in range(come)]
            await asyncio.wait(tasks)
        return sorted(served, reverse=True)

    passed, earliest = 0, float("inf")
    served = virtual.run(main)
    for _, group in itertools.groupby(served, key=lambda request: request[0]):
        began = [at for _, at in group]
        passed += sum(earliest < at for at in began)
        earliest = min(earliest, *began)
    return 100 * passed / len(served)


def run(*, quick: bool) -> Iterator[Table]:
    """Return a table for each event loop."""
    rounds, each = (2, 5) if quick else (5, 12)
    peers, notes = load("PEERS")
    for loop in loops.installed():
        if quick and loop == "uvloop":
            continue
        base = "bare hand-off (trio)" if loop == "trio" else "bare hand-off"
        here = [peer for peer in peers if loop in peer.loops and peer.name != "floor"]
        measured, watched = loops.run(loop, functools.partial(measure, here, loop, rounds, each))
        table = Table(
            name=f"contended-{loop}",
            title=f"B: {SIZE} connections, more tasks, on {loop}",
            about=f"CPU time of one operation, {rounds} interleaved rounds, a timeout of "
            f"{TIMEOUT:g} s where the pool has one; fairness and waits with {TASKS[-1]:,} tasks.",
            columns=[
                "pool",
                *(f"{what} {n:,}" for n in TASKS for what in ("µs,", "x bare,")),
                "Jain",
                "wait p50 ms",
                "p99",
                "longest",
                "overtaken %",
            ],
            charted=f"µs, {TASKS[-1]:,}",
            notes=[*settings(here), *notes],
        )
        for peer in here:
            costs = [
                spread
                for tasks in TASKS
                for spread in (
                    Spread.of(1e6 * value for value in measured[tasks][peer.name]),
                    ratios(measured[tasks], peer.name, base),
                )
            ]
            counts, waits = watched[peer.name]
            p50, p99 = (1000 * percentile(waits, percent) for percent in (50, 99))
            passed = (
                overtaken(peer, 1_000 if quick else 4_000)
                if loop == "asyncio" and peer.has_query
                else None
            )
            table.add(peer.name, *costs, jain(counts), p50, p99, 1000 * max(waits), passed)
            if peer.name == "poolkit":
                fairness = Target(f"Jain, {TASKS[-1]:,} tasks", jain(counts), "least", 0.999)
                table.targets.append(fairness)
                if passed is not None:
                    table.targets.append(Target("overtaken, %", passed, "most", 0.0))
        table.targets += targets(loop, measured, base)
        yield table


def targets(loop: str, measured: dict[int, Measured], base: str) -> list[Target]:
    """Return what poolkit is held to on this loop."""
    limit = 1.3 if loop == "trio" else 1.5
    found = []
    for tasks in TASKS:
        times = ratios(measured[tasks], "poolkit", base).median
        found.append(Target(f"x {base}, {tasks:,} tasks", times, "most", limit))
        for name in ("asyncpg.Pool", "psycopg_pool"):
            if name in measured[tasks]:
                cheaper = ratios(measured[tasks], name, "poolkit").median
                found.append(Target(f"{name}: x poolkit, {tasks:,} tasks", cheaper, "least", 4.0))
    return found
