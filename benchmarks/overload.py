"""More work than can be done: who still serves anybody in time, and how long until all is well.

10 connections, each request holding one for 20 ms on average (exponential): a capacity of 500
requests a second. They arrive at random (Poisson) at 70 % of it, then 150 %, then 70 % again. On
virtual time, so what shows is what each pool decides, taken from the pool itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import statistics
from bisect import bisect_left
from collections.abc import Iterator

import poolkit
from benchmarks import virtual
from benchmarks.peers import Acquire, Peer, Want, load, ours
from benchmarks.rounds import Spread, percentile
from benchmarks.table import Table, Target

SIZE = 10
SERVICE = 0.020
CAPACITY = SIZE / SERVICE
IN_TIME = 0.250
TIMEOUT = 10.0
TARGET, INTERVAL = 0.05, 0.5
"""Of CoDel."""


@dataclasses.dataclass
class Request:
    """How one went."""

    arrived: float
    began: float | None = None
    """When it got its connection, if it did."""
    service: float = 0.0

    @property
    def wait(self) -> float:
        """How long it has waited for its connection, if it got one."""
        assert self.began is not None
        return self.began - self.arrived

    @property
    def is_in_time(self) -> bool:
        """Whether it got its connection while that was of use."""
        return self.began is not None and self.wait <= IN_TIME


@dataclasses.dataclass(frozen=True)
class Phases:
    """How long each load lasts, in seconds."""

    before: float
    over: float
    after: float

    @property
    def end(self) -> float:
        """When the overload ends."""
        return self.before + self.over


@dataclasses.dataclass
class Outcome:
    """One run of one pool."""

    served: float
    goodput: float
    p50: float
    p99: float
    refused: float
    recovery: float


async def drive(acquire: Acquire, phases: Phases, seed: int) -> list[Request]:
    """Send the load and return how each request went."""
    chance = random.Random(seed)
    loop = asyncio.get_running_loop()
    start = loop.time()
    requests: list[Request] = []
    tasks: set[asyncio.Task[None]] = set()

    async def serve(request: Request) -> None:
        try:
            async with acquire() as connection:
                request.began = loop.time() - start
                await connection.query(request.service)
        except Exception:
            if request.began is not None:
                raise

    at = 0.0
    while at < phases.end + phases.after:
        load_now = 1.5 if phases.before <= at < phases.end else 0.7
        at += chance.expovariate(CAPACITY * load_now)
        await asyncio.sleep(start + at - loop.time())
        request = Request(loop.time() - start, service=chance.expovariate(1 / SERVICE))
        requests.append(request)
        task = loop.create_task(serve(request))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return requests


def judge(requests: list[Request], phases: Phases) -> Outcome:
    """Return what the requests say of the pool."""
    during = [r for r in requests if phases.before <= r.arrived < phases.end]
    waits = [r.wait for r in during if r.began is not None]
    useful = 0.0
    for request in requests:
        if request.is_in_time and request.began is not None:
            begin = max(phases.before, request.began)
            useful += max(0.0, min(phases.end, request.began + request.service) - begin)
    return Outcome(
        served=sum(r.is_in_time for r in during) / phases.over,
        goodput=100 * useful / (SIZE * phases.over),
        p50=1000 * statistics.median(waits) if waits else 0.0,
        p99=1000 * percentile(waits, 99),
        refused=100 * sum(r.began is None for r in during) / len(during),
        recovery=_recovery(requests, phases),
    )


def _recovery(requests: list[Request], phases: Phases) -> float:
    """Return when the first second began in which all but 1 % were in time, after the overload."""
    arrivals = [request.arrived for request in requests]  # in their order
    for step in range(int(10 * (phases.after - 1))):
        begin = phases.end + step / 10
        arrived = requests[bisect_left(arrivals, begin) : bisect_left(arrivals, begin + 1)]
        if sum(not r.is_in_time for r in arrived) <= len(arrived) / 100:
            return step / 10
    return phases.after


def measure(peer: Peer, phases: Phases, seed: int) -> Outcome:
    """Run one pool through it."""

    async def main() -> list[Request]:
        async with peer.open(Want(size=SIZE, timeout=TIMEOUT)) as acquire:
            return await drive(acquire, phases, seed)

    return judge(virtual.run(main), phases)


def competitors() -> tuple[list[Peer], list[str]]:
    """Return the pools to compare, poolkit in its several settings first."""
    found = [
        ours.peer("poolkit", "the defaults"),
        ours.peer("poolkit, max_waiting=20", "refuses what comes when 20 wait", max_waiting=20),
        ours.peer("poolkit, max_waiting=100", "refuses what comes when 100 wait", max_waiting=100),
    ]
    if hasattr(poolkit, "CoDel"):
        policy = poolkit.CoDel(target=TARGET, interval=INTERVAL)
        name = f"poolkit, CoDel({TARGET:g}, {INTERVAL:g})"
        found.append(ours.peer(name, "sheds once every wait was too long", shedding=policy))
    peers, notes = load("PEERS")
    found += [
        peer
        for peer in peers
        if peer.name in ("asyncpg.Pool", "psycopg_pool", "SQLAlchemy QueuePool")
    ]
    return found + load("OVERLOAD")[0], notes


def run(*, quick: bool) -> Iterator[Table]:
    """Return the table."""
    phases = Phases(3, 12, 12) if quick else Phases(5, 25, 40)
    seeds = range(1) if quick else range(3)
    peers, notes = competitors()
    table = Table(
        name="overload",
        title="Overload: 150 % of what 10 connections can do",
        about=f"{phases.over:g} s at 150 % between {phases.before:g} s and {phases.after:g} s at "
        f"70 %; a timeout of {TIMEOUT:g} s and the same random arrivals for all. In "
        "time: the connection was there within 250 ms. Recovery: when the first second began in "
        "which 99 % were. Virtual time.",
        columns=[
            "pool",
            "served in time /s",
            "useful work, % of capacity",
            "wait p50 ms",
            "wait p99 ms",
            "refused or timed out %",
            "recovery s",
        ],
        charted="useful work, % of capacity",
        notes=notes,
    )
    for peer in peers:
        outcomes = [measure(peer, phases, seed) for seed in seeds]
        table.add(
            peer.name,
            *(
                Spread.of(getattr(outcome, field.name) for outcome in outcomes)
                for field in dataclasses.fields(Outcome)
            ),
        )
        if "CoDel" in peer.name:
            middle = {
                field.name: Spread.of(getattr(o, field.name) for o in outcomes).median
                for field in dataclasses.fields(Outcome)
            }
            most = 1000 * (2 * TARGET + SERVICE)
            table.targets += [
                Target("useful work with CoDel, % of capacity", middle["goodput"], "least", 99.0),
                Target("p99 wait with CoDel, ms", middle["p99"], "most", most),
                Target("recovery with CoDel, s", middle["recovery"], "most", 0.0),
            ]
    yield table
