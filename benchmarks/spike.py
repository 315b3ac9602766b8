"""A spike: 50 requests at once, 5 connections idle, connecting slow, queries quick.

Fifty queries of 2 ms on five connections are done in 20 ms; a connect takes 150 ms. Whoever opens a
connection for each request makes the database pay for work that is long done when they arrive.
(HikariCP's spike test.) On virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from benchmarks import virtual
from benchmarks.peers import Peer, Want, load
from benchmarks.rounds import percentile
from benchmarks.table import Table, Target
from benchmarks.wire import Database

REQUESTS, OPENED, SIZE = 50, 5, 50
CONNECT, QUERY = 0.150, 0.002


def measure(peer: Peer) -> tuple[int, list[float]]:
    """Return how many connections it ended with, and how long each request took."""

    async def main() -> tuple[int, list[float]]:
        database = Database(connect_seconds=CONNECT)
        want = Want(database=database, size=SIZE, opened=OPENED)
        loop = asyncio.get_running_loop()
        async with peer.open(want) as acquire:
            assert database.attempts == OPENED, f"{peer.name}: {database.attempts} opened"

            async def request() -> float:
                begin = loop.time()
                async with acquire() as connection:
                    await connection.query(QUERY)
                return loop.time() - begin

            took = await asyncio.gather(*(request() for _ in range(REQUESTS)))
            await asyncio.sleep(10 * CONNECT)  # whoever has begun to connect goes on
            return database.attempts, took

    return virtual.run(main)


def run(*, quick: bool) -> Iterator[Table]:  # noqa: ARG001  # it takes no time
    """Return the table."""
    peers, notes = load("PEERS")
    table = Table(
        name="spike",
        title="A spike: 50 requests at once, 5 of 50 connections open",
        about="Connecting takes 150 ms, a query 2 ms. Virtual time.",
        columns=["pool", "connections in the end", "last request ms", "p99 ms", "p50 ms"],
        charted="connections in the end",
        notes=notes,
    )
    for peer in peers:
        if peer.is_pool and peer.has_query:
            opened, took = measure(peer)
            p50, p99 = (1000 * percentile(took, percent) for percent in (50, 99))
            table.add(peer.name, opened, 1000 * max(took), p99, p50)
            if peer.name == "poolkit":
                table.targets.append(Target("connections in the end", opened, "most", 6))
    yield table
