"""The database is down for a minute: how hard it is knocked at meanwhile, and who is back when.

100 requests a second, each with a timeout, 10 connections. At second 10 every connection ends, and
connecting is refused; at second 70 it works again. On virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Iterator

from benchmarks import virtual
from benchmarks.peers import Peer, Want, load
from benchmarks.rounds import Spread
from benchmarks.table import Table, Target
from benchmarks.wire import Database
from poolkit._options import Options

RATE, QUERY, TIMEOUT = 100, 0.005, 10.0
BEGIN, AFTER = 10.0, 60.0


@dataclasses.dataclass
class Outcome:
    """One run of one pool."""

    attempts: float
    """To connect, per second of the outage."""
    peak: int
    """In the busiest of its seconds."""
    failed: int
    first: float
    """Seconds after the end until something succeeds."""
    last_failure: float
    """Seconds after the end until nothing fails any more."""
    waited: float
    """The longest that somebody waited in order to fail, in seconds."""


def measure(peer: Peer, down: float, phase: float) -> Outcome:
    """Run one pool through it; the outage ends at so many seconds and that phase."""

    async def main() -> Outcome:
        database = Database(connect_seconds=0.002)
        loop = asyncio.get_running_loop()
        successes: list[float] = []
        failures: list[float] = []
        waits: list[float] = [0.0]
        tasks: set[asyncio.Task[None]] = set()
        end = BEGIN + down + phase

        async with peer.open(Want(database=database, timeout=TIMEOUT)) as acquire:
            start = loop.time()

            async def request() -> None:
                begin = loop.time()
                try:
                    async with acquire() as connection:
                        await connection.query(QUERY)
                except Exception:
                    failures.append(loop.time() - start)
                    waits.append(loop.time() - begin)
                else:
                    successes.append(loop.time() - start)

            def arrive() -> None:
                task = loop.create_task(request())
                tasks.add(task)
                task.add_done_callback(tasks.discard)

            arrivals = int((end + AFTER) * RATE)
            for index in range(arrivals):
                loop.call_at(start + index / RATE, arrive)
            await asyncio.sleep(BEGIN)
            database.go_down()
            seconds = []
            for _ in range(int(down)):
                before = database.attempts
                await asyncio.sleep(1.0)
                seconds.append(database.attempts - before)
            await asyncio.sleep(phase)
            database.come_back()
            await asyncio.sleep(AFTER + TIMEOUT)
            assert not tasks, f"{peer.name}: {len(tasks)} requests never ended"
        return Outcome(
            attempts=sum(seconds) / len(seconds),
            peak=max(seconds),
            failed=len(failures),
            first=min((at for at in successes if at > end), default=float("inf")) - end,
            last_failure=max(0.0, max(failures, default=0.0) - end),
            waited=max(waits),
        )

    return virtual.run(main)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Let nobody log what is done to them on purpose."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def run(*, quick: bool) -> Iterator[Table]:
    """Return the table."""
    down = 20.0 if quick else 60.0
    phases = [0.2 * i + 0.05 for i in range(2 if quick else 5)]
    peers, notes = load("PEERS")
    table = Table(
        name="outage",
        title=f"The database is down for {down:g} s",
        about=f"{RATE} requests a second, a timeout of {TIMEOUT:g} s, the outage ending at "
        f"{len(phases)} different fractions of a second. Virtual time.",
        columns=[
            "pool",
            "connects tried /s",
            "in the busiest second",
            "failed requests",
            "first success s after",
            "last failure s after",
            "longest wait to fail s",
        ],
        charted="connects tried /s",
        notes=notes,
    )
    wanted = ("poolkit", "asyncpg.Pool", "psycopg_pool", "SQLAlchemy QueuePool", "connpool")
    for peer in peers:
        if peer.name in wanted:
            with _silence():
                outcomes = [measure(peer, down, phase) for phase in phases]
            spreads = {
                field.name: Spread.of(getattr(outcome, field.name) for outcome in outcomes)
                for field in dataclasses.fields(Outcome)
            }
            table.add(peer.name, *spreads.values())
            if peer.name == "poolkit":
                limit = 2 * Options().backoff_max
                first = spreads["first"].high
                table.targets.append(Target("first success, s after", first, "most", limit))
    yield table
