"""What acquiring and releasing costs when a connection is idle, as a multiple of a stated floor.

The floor is a hand-written ``__slots__`` context manager around a deque: what any correct pool has
to do at least. Both run in turn within each round, in CPU time; shown are the median of the ratios
and their range. Run it: ``make bench``.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import sys
import time
from collections import deque

import anyio

import poolkit

ROUNDS = 9
CYCLES = 20_000


class Connection:
    """Nothing."""


class Driver:
    """A driver that does nothing, and can tell that nothing was done."""

    name = "nothing"

    async def connect(self) -> Connection:
        """Connect."""
        return Connection()

    def is_dead(self, c: Connection) -> bool:  # noqa: ARG002  # the protocol's
        """Tell."""
        return False

    async def reset(self, c: Connection) -> None:
        """Reset."""

    async def ping(self, c: Connection) -> None:
        """Ping."""

    async def close(self, c: Connection) -> None:
        """Close."""

    def terminate(self, c: Connection) -> None:
        """Terminate."""


class Floor:
    """The least that acquiring and releasing can be."""

    __slots__ = ("_connection", "_idle")

    def __init__(self, idle: deque[Connection]) -> None:
        self._idle = idle

    async def __aenter__(self) -> Connection:
        """Take."""
        self._connection = self._idle.pop()
        return self._connection

    async def __aexit__(self, *error: object) -> None:
        """Give back."""
        self._idle.append(self._connection)


async def measure() -> None:
    """Measure both in turn and print what came out."""
    idle = deque(Connection() for _ in range(10))
    floors, ours = [], []
    async with poolkit.Pool(Driver(), min_size=10) as pool:
        for _ in range(ROUNDS):
            begin = time.process_time()
            for _ in range(CYCLES):
                async with Floor(idle):
                    pass
            middle = time.process_time()
            for _ in range(CYCLES):
                async with pool.acquire():
                    pass
            floors.append((middle - begin) / CYCLES * 1e6)
            ours.append((time.process_time() - middle) / CYCLES * 1e6)
        assert pool.stats().direct == ROUNDS * CYCLES, "the statistics are on"
    ratios = [mine / floor for mine, floor in zip(ours, floors, strict=True)]
    print(
        f"floor {statistics.median(floors):.2f} µs, poolkit {statistics.median(ours):.2f} µs: "
        f"{statistics.median(ratios):.1f} x the floor ({min(ratios):.1f} to {max(ratios):.1f})"
    )


def main() -> None:
    """Measure on each event loop asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backends", nargs="*", default=["asyncio", "trio"])
    print(f"Python {sys.version.split()[0]}, {platform.machine()}, poolkit {poolkit.__version__}")
    for backend in parser.parse_args().backends:
        print(f"{backend:8}", end=" ", flush=True)
        if backend == "asyncio":
            asyncio.run(measure())
        else:
            anyio.run(measure, backend=backend)


if __name__ == "__main__":
    main()
