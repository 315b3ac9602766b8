"""G: a real PostgreSQL whose backends are killed, and which is stopped and started again.

50 tasks that each ask ``SELECT 1`` and think for 50 ms, about 900 requests a second, 10
connections. poolkit waits out an outage of 10 s here (``fail_fast_after=None``, an acquire timeout
of 30 s), as the others are given 30 s where they can be told to wait. Those that cannot be told
fail as long as the server is down, so they are left out of the long outage.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator

import poolkit
from benchmarks import loops
from benchmarks.peers import Postgresql, Request, load
from benchmarks.postgres import NoServerError, own_server
from benchmarks.rounds import Spread
from benchmarks.table import Table, Target
from tests.postgres import Server

TASKS, THINK, SIZE = 50, 0.050, 10
#: Seconds of load before something is done to the server.
BEFORE = 0.5
OURS = "poolkit"
WAITS = "psycopg_pool, autocommit"
FAIL_AT_ONCE = ("asyncpg.Pool", "SQLAlchemy engine, AUTOCOMMIT")


@contextlib.asynccontextmanager
async def _patient(dsn: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
    async with poolkit.drivers.asyncpg.create_pool(
        dsn, min_size=size, max_size=size, acquire_timeout=30.0, fail_fast_after=None
    ) as pool:

        async def request() -> None:
            async with pool.acquire() as connection:
                await connection.fetchval("SELECT 1")

        yield request


PATIENT = Postgresql(
    name=OURS,
    settings="fail_fast_after=None, acquire_timeout=30: waits for a database that comes back",
    reset="the session",
    open=_patient,
)


@dataclasses.dataclass
class Outcome:
    """One run of one pool."""

    failed: int
    first: float
    """Seconds after the server was up until something succeeded."""
    slowest: float
    """Seconds of the slowest success."""


async def load_on(request: Request, during: Callable[[], float], after: float) -> Outcome:
    """Do something to the server under load; ``during`` runs in a thread, and says since when."""
    failures = 0
    successes: list[tuple[float, float]] = []
    clock = time.monotonic
    over = asyncio.Event()

    async def work() -> None:
        nonlocal failures
        while not over.is_set():
            begin = clock()
            try:
                await request()
            except Exception:
                failures += 1
            else:
                successes.append((begin, clock()))
            await asyncio.sleep(THINK)

    tasks = [asyncio.create_task(work()) for _ in range(TASKS)]
    await asyncio.sleep(BEFORE)
    up = await asyncio.to_thread(during)
    await asyncio.sleep(after)
    over.set()
    await asyncio.wait(tasks, timeout=35.0)
    first = min((end for _, end in successes if end > up), default=float("inf")) - up
    return Outcome(failures, first, max(end - begin for begin, end in successes))


async def one(peer: Postgresql, dsn: str, during: Callable[[], float], after: float) -> Outcome:
    """Run one pool through it."""
    async with peer.open(dsn, SIZE, TASKS) as request:
        return await load_on(request, during, after)


def kill(server: Server) -> float:
    """End every backend."""
    server.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return time.monotonic()


def restart(down: float) -> Callable[[Server], float]:
    """Return what stops a server and starts it again after so many seconds."""

    def act(server: Server) -> float:
        server.stop("fast")
        time.sleep(down)
        server.start()
        return time.monotonic()

    return act


def run(*, quick: bool) -> Iterator[Table]:
    """Return a table for each thing that is done to the server."""
    found, notes = load("POSTGRESQL")
    wanted = FAIL_AT_ONCE[:1] if quick else (WAITS, *FAIL_AT_ONCE)
    peers = [PATIENT, *(peer for peer in found if peer.name in wanted)]
    patient = [peer for peer in peers if peer.name not in FAIL_AT_ONCE]
    rounds = 1 if quick else 3
    # (What is done, to whom, the seconds that are watched after it, and how often.)
    cases: dict[str, tuple[str, Callable[[Server], float], list[Postgresql], float, int]] = {
        "kill": ("all backends are killed", kill, peers, 1.0, rounds),
        "restart-2": ("a restart, 2 s down", restart(2.0), peers, 2.0, rounds),
        "restart-10": ("a restart, 10 s down", restart(10.0), patient, 5.0, 2),
    }
    if quick:
        del cases["restart-10"]
    logging.disable(logging.CRITICAL)
    try:
        with own_server() as server:
            for name, (what, act, those, after, times) in cases.items():
                during = functools.partial(act, server)
                outcomes: dict[str, list[Outcome]] = {peer.name: [] for peer in those}
                for _ in range(times):
                    for peer in those:
                        main = functools.partial(one, peer, server.dsn(), during, after)
                        outcomes[peer.name].append(loops.run("asyncio", main))
                yield _table(name, what, those, notes, outcomes)
    except NoServerError as missing:
        print(f"G is left out: {missing}\n")
    finally:
        logging.disable(logging.NOTSET)


def _table(
    name: str,
    what: str,
    peers: list[Postgresql],
    notes: list[str],
    outcomes: dict[str, list[Outcome]],
) -> Table:
    table = Table(
        name=f"recovery-{name}",
        title=f"G: {what}, at {TASKS / (THINK + 0.005):.0f} requests/s",
        about=f"Wall time, {len(outcomes[OURS])} interleaved rounds.",
        columns=["pool", "failed requests", "first success s after", "slowest success s"],
        charted="failed requests",
        notes=[*(f"{peer.name}: {peer.settings}" for peer in peers), *notes],
    )
    for peer in peers:
        runs = outcomes[peer.name]
        table.add(
            peer.name,
            Spread.of(run.failed for run in runs),
            Spread.of(run.first for run in runs),
            Spread.of(run.slowest for run in runs),
        )
    ours = outcomes[OURS]
    failed = max(run.failed for run in ours)
    first = Spread.of(run.first for run in ours)
    if name == "kill":
        table.targets = [Target("failed: at most the queries in flight", failed, "most", SIZE)]
    else:
        table.targets = [
            Target("failed", failed, "most", 0),
            Target("first success, s after the server is up, worst", first.high, "most", 1.5),
            Target("first success, s after the server is up, median", first.median, "most", 0.8),
        ]
    return table
