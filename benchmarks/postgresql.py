"""C: PostgreSQL, ``SELECT 1`` per acquire, by 1 to 200 tasks on 10 connections.

Ways that undo the same between two users compare with each other: nothing (or only what nobody has
begun), an open transaction, the whole session. On uvloop where it is installed. Wall time, with the
server on the same machine: differences under a quarter are none, and one task alone says little,
for it depends on whether client and server happen to share a processor.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks import loops
from benchmarks.peers import Postgresql, Request, load
from benchmarks.postgres import NoServerError, server
from benchmarks.rounds import Spread, percentile
from benchmarks.table import Table, Target

SIZE = 10
LIMIT = "limit: a connection per task"


class Crowd(NamedTuple):
    """What a closed loop of many tasks has come to."""

    rate: float
    """Requests a second."""
    p99: float
    """Milliseconds that 99 of 100 did not exceed."""
    cpu: float
    """Microseconds of this process's CPU time for each request, in all its threads."""
    served: int
    """How many of the tasks had an answer in time. The others waited until it was over."""
    p99_served: float
    """The same percentile, of the requests of these."""


async def crowd(
    request: Request, tasks: int, seconds: float, pause: Callable[[], float] | None = None
) -> Crowd:
    """Have that many tasks ask in a closed loop, with pauses of so many seconds if it is given."""
    clock = time.perf_counter

    async def work() -> list[float]:
        took: list[float] = []
        while not took or clock() < end:
            begin = clock()
            await request()
            took.append(clock() - begin)
            if pause is not None:
                await asyncio.sleep(pause())
        return took

    start, used = clock(), time.process_time()
    end = start + seconds
    each = await asyncio.gather(*(work() for _ in range(tasks)))
    used, passed = time.process_time() - used, clock() - start
    took = [one for task in each for one in task]
    # A task's first request begins at the start, and a task that had no answer in time has but one.
    served = [task for task in each if task[0] < seconds]
    return Crowd(
        len(took) / passed,
        1e3 * percentile(took, 99),
        1e6 * used / len(took),
        len(served),
        1e3 * percentile([one for task in served for one in task], 99),
    )


async def one_round(peer: Postgresql, dsn: str, tasks: int, seconds: float) -> Crowd:
    """Run one of them, warm."""
    async with peer.open(dsn, SIZE, tasks) as request:
        await crowd(request, tasks, seconds / 5)
        return await crowd(request, tasks, seconds)


Results = dict[str, list[Crowd]]


def measure(peers: list[Postgresql], dsn: str, tasks: int, rounds: int, seconds: float) -> Results:
    """Return what each did in each round."""
    loop = "uvloop" if "uvloop" in loops.installed() else "asyncio"
    found: Results = {peer.name: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            main = functools.partial(one_round, peer, dsn, tasks, seconds)
            found[peer.name].append(loops.run(loop, main))
    return found


def rates(found: Results, name: str, to: str) -> Spread:
    """Return how many times as many requests one did as another, formed inside a round."""
    return Spread.of(a.rate / b.rate for a, b in zip(found[name], found[to], strict=True))


def run(*, quick: bool) -> Iterator[Table]:
    """Return a table for each number of tasks."""
    rounds, seconds = (1, 0.3) if quick else (5, 0.3)
    peers, notes = load("POSTGRESQL")
    peers.sort(key=lambda peer: peer.reset)
    try:
        with server() as postgres:
            for tasks in (10, 50) if quick else (1, 10, 50, 200):
                found = measure(peers, postgres.dsn(), tasks, rounds, seconds)
                yield _table(peers, notes, tasks, seconds, found)
    except NoServerError as missing:
        print(f"C is left out: {missing}\n")


def _table(
    peers: list[Postgresql], notes: list[str], tasks: int, seconds: float, found: Results
) -> Table:
    table = Table(
        name=f"postgresql-{tasks}",
        title=f"C: PostgreSQL, SELECT 1 by {tasks} tasks on {SIZE} connections",
        about=f"Wall time, {len(found[LIMIT])} interleaved rounds of {seconds:g} s, client and "
        "server on one machine.",
        columns=["pool", "undoes", "requests/s", "x the limit", "p99 ms", "client CPU µs"],
        charted="requests/s",
        notes=[*(f"{peer.name}: {peer.settings}" for peer in peers), *notes],
    )
    for peer in peers:
        outcomes = found[peer.name]
        table.add(
            peer.name,
            peer.reset,
            Spread.of(outcome.rate for outcome in outcomes),
            rates(found, peer.name, LIMIT),
            Spread.of(outcome.p99 for outcome in outcomes),
            Spread.of(outcome.cpu for outcome in outcomes),
        )
    table.targets = _targets(tasks, found)
    return table


def _targets(tasks: int, found: Results) -> list[Target]:
    light, full = "poolkit, reset='transaction'", "poolkit, reset='full'"
    auto = "poolkit, reset='auto'"
    session, off, psycopg = "asyncpg.Pool", "asyncpg.Pool, reset off", "psycopg_pool"
    if tasks == 1:
        times = rates(found, full, session).median
        return [Target(f"{full}: x {session}, 1 task", times, "least", 1.0)]
    at = f"{tasks} tasks"
    targets = [
        Target(f"{light}: x the limit, {at}", rates(found, light, LIMIT).median, "least", 0.95),
        Target(f"{full}: x {session}, {at}", rates(found, full, session).median, "least", 0.95),
        Target(f"{auto}: x {session}, {at}", rates(found, auto, session).median, "least", 1.8),
    ]
    if tasks == 10:  # noqa: PLR2004  # where the issue of a pool is its own cost
        for other, least in ((off, 1.5), (session, 2.5), (psycopg, 2.5)):
            if other in found:
                times = rates(found, light, other).median
                targets.append(Target(f"{light}: x {other}, {at}", times, "least", least))
    if tasks == 50:  # noqa: PLR2004  # where unfairness shows
        tails = {name: Spread.of(run.p99 for run in found[name]).median for name in found}
        others = [tails[n] for n in tails if not n.startswith(("poolkit", "limit"))]
        targets += [
            Target(f"{light}: p99 / the best peer's, {at}", tails[light] / min(others), "most", 1),
            Target(f"{full}: p99 / {session}'s, {at}", tails[full] / tails[session], "most", 1 / 3),
        ]
    return targets
