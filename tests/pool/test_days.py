"""Days of traffic in seconds: lifetimes, idle times and outages, in virtual time."""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

import anyio
import pytest

from poolkit import ConnectFailed, Pool, PoolTimeout, Verdict
from poolkit.testing._invariants import check_state
from tests.effort import SHARE
from tests.fakes import Boom, FakeConnection, FullDriver
from tests.pool.storm import come_to_rest
from tests.pool.virtual import on_asyncio, on_trio

DAY = 86_400.0
LIFETIME = 1800.0
DAYS = SHARE


class AgingDriver(FullDriver):
    """A database that is down at times, and remembers when each connection was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.born: dict[FakeConnection, float] = {}
        self.oldest = 0.0
        self.attempts: list[float] = []
        self.back_at = 0.0

    async def step(self, call: str) -> None:
        """Take a while, or be refused."""
        if call == "connect":
            self.attempts.append(anyio.current_time())
        await anyio.sleep(0.002)
        if self.down:
            raise Boom(call)
        await super().step(call)

    async def connect(self) -> FakeConnection:
        """Note the time."""
        connection = await super().connect()
        self.born[connection] = anyio.current_time()
        return connection

    def classify(self, exc: BaseException, c: FakeConnection | None) -> Verdict | None:
        """Say that the database may come back."""
        return Verdict.TRANSIENT if c is None else Verdict.SERVER_GONE

    def crash(self) -> None:
        """End every connection, and accept none."""
        self.down = True
        for connection in list(self.alive):
            connection.dead = True


@pytest.mark.parametrize("run", [on_asyncio, on_trio])
def test_days_of_traffic_with_outages_lose_nothing(run: Any) -> None:
    """Nobody gets a connection past its lifetime; each outage ends when the database is back."""
    run(lambda: _days(Random(7), Random(10)))


async def _days(random: Random, outage: Random) -> None:
    """Let users come at random, and outages whatever the users do, so that all days have the same.

    Between two of them is more than a connection's lifetime, however few the hours are.
    """
    driver = AgingDriver()
    pool = Pool(
        driver, min_size=2, max_size=8, max_lifetime=LIFETIME, max_idle_time=300.0, max_overflow=2
    )
    apart = min(20_000.0, DAY * DAYS / 3)  # of two outages, at most: two fall into few hours
    served = itertools.count()
    outages: list[tuple[float, float]] = []

    async def user() -> None:
        while True:
            await anyio.sleep(random.expovariate(1 / 40))
            try:
                async with pool.acquire() as conn:
                    next(served)
                    age = anyio.current_time() - driver.born[_real(pool, conn)]
                    driver.oldest = max(driver.oldest, age)
                    await anyio.sleep(random.expovariate(1 / 0.2))
            except (PoolTimeout, ConnectFailed):
                recently = anyio.current_time() < driver.back_at + 3.0
                assert driver.down or recently, "refused while the database was up"

    async def fate() -> None:
        while True:
            await anyio.sleep(outage.uniform(apart / 5, apart))
            began = anyio.current_time()
            driver.crash()
            await anyio.sleep(outage.uniform(0.5, 600))
            driver.down, driver.back_at = False, anyio.current_time()
            outages.append((began, driver.back_at))
            await anyio.sleep(3.0)  # more than the longest pause between two attempts
            async with pool.acquire(timeout=1.0):
                pass

    async with pool:
        with anyio.move_on_after(DAY * DAYS):
            async with anyio.create_task_group() as group:
                for _ in range(6):
                    group.start_soon(user)
                group.start_soon(fate)
        check_state(pool._state, pool._now())
        driver.down = False  # the days may end in an outage, and nobody is left to end it
        await come_to_rest(pool, driver)
    acquires = next(served)
    print(f"{DAYS:g} days, {acquires} acquires, {len(outages)} outages")
    assert acquires > 10_000 * DAYS
    assert LIFETIME * 0.9 <= driver.oldest <= LIFETIME + 60, driver.oldest
    # One attempt at a time in an outage, after pauses that grow to 1.5 s at most, half of it jitter.
    during = sum(any(a <= t < b for a, b in outages) for t in driver.attempts)
    down = sum(b - a for a, b in outages)
    assert len(outages) >= 2 * DAYS
    assert down / 1.6 - 10 * len(outages) < during < down / 0.75 + 10 * len(outages)


def _real(pool: Pool[FakeConnection], conn: FakeConnection) -> FakeConnection:
    view: Any = conn
    connection: FakeConnection = view._poolkit_slot.connection
    return connection
