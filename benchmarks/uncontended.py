"""A: what acquire and release cost when a connection is idle, as a multiple of a stated floor.

The floor is a hand-written ``__slots__`` context manager around a deque: what any correct pool has
to do at least. One task, 10 connections to nothing, in CPU time.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterator

from benchmarks import loops
from benchmarks.peers import Acquire, Peer, Want, load, ours
from benchmarks.rounds import Measured, Spread, by_turns, calibrated, ratios
from benchmarks.table import Table, Target

BASE = "floor"
NEW = (3, 13)


async def cycles(acquire: Acquire, number: int) -> float:
    """Return the CPU seconds of one acquire and release."""
    begin = time.process_time()
    for _ in range(number):
        async with acquire():
            pass
    return (time.process_time() - begin) / number


async def measure(peers: list[Peer], rounds: int, seconds: float) -> Measured:
    """Return the CPU seconds of a cycle of each, in each round."""
    async with contextlib.AsyncExitStack() as stack:
        measures = {}
        for peer in peers:
            acquire = await stack.enter_async_context(peer.open(Want()))
            if peer.name.startswith("poolkit"):
                await ours.check_safety(acquire)
            measures[peer.name] = await calibrated(functools.partial(cycles, acquire), seconds)
        return await by_turns(measures, rounds)


def settings(peers: list[Peer]) -> list[str]:
    """Return how each is set up."""
    return [f"{peer.name}: {peer.settings}" for peer in peers]


def run(*, quick: bool) -> Iterator[Table]:
    """Return a table for each event loop."""
    rounds, seconds = (5, 0.02) if quick else (9, 0.1)
    peers, notes = load("PEERS")
    for loop in loops.installed():
        if quick and loop == "uvloop":
            continue
        here = [p for p in peers if loop in p.loops and not p.name.startswith("bare hand-off")]
        measured = loops.run(loop, functools.partial(measure, here, rounds, seconds))
        table = Table(
            name=f"uncontended-{loop}",
            title=f"A: acquire and release with nobody waiting, on {loop}",
            about=f"CPU time, {rounds} interleaved rounds of {1000 * seconds:g} ms; median and "
            "range. poolkit's view, holders, deadline and statistics are on, as asserted before.",
            columns=["pool", "µs", f"x the {BASE}", "x poolkit"],
            charted=f"x the {BASE}",
            notes=[*settings(here), *notes],
        )
        for name, values in measured.items():
            microseconds = Spread.of(1e6 * value for value in values)
            base, mine = ratios(measured, name, BASE), ratios(measured, name, "poolkit")
            table.add(name, microseconds, base, mine)
        table.targets = targets(loop, measured, here)
        yield table


def targets(loop: str, measured: Measured, peers: list[Peer]) -> list[Target]:
    """Return what poolkit is held to on this loop."""
    if loop == "trio":
        own = 1e6 * Spread.of(measured["poolkit"]).median
        return [Target("microseconds of poolkit on trio", own, "most", 2.5)]
    limit = 4.0 if sys.version_info >= NEW else 5.5
    found = [Target("x the floor", ratios(measured, "poolkit", BASE).median, "most", limit)]
    medians = {
        p.name: ratios(measured, p.name, "poolkit").median
        for p in peers
        if p.is_pool and p.name != "poolkit"
    }
    if medians:
        best = min(medians, key=lambda name: medians[name])
        found.append(Target(f"the quickest peer, {best}: x poolkit", medians[best], "least", 1.7))
    for name, least in (("psycopg_pool", 3.5), ("asyncpg.Pool", 10.0)):
        if name in medians:
            found.append(Target(f"{name}: x poolkit", medians[name], "least", least))
    return found
