"""Bad days in virtual time: overload, a spike, an outage, and a hundred thousand who give up."""

from __future__ import annotations

import statistics
from random import Random
from typing import Any

import anyio
import pytest

import poolkit
from poolkit import Pool, PoolUnavailable, Verdict
from poolkit.testing import FakeDriver, Fault, check_pool
from tests.effort import EFFORT
from tests.pool.virtual import RUNNERS

SERVICE = 0.02
#: Leases a second that ten connections can serve.
CAPACITY = 10 / SERVICE
#: How long it is quiet before an overload and after it, and how long that lasts.
QUIET, OVERLOAD = (5.0, 10.0) if EFFORT >= 4 else (2.0, 4.0)
#: When it is over, counted from the first who comes.
OVER = QUIET + OVERLOAD
#: How long a database is down for long: longer than anybody waits for it.
LONG = 60.0 if EFFORT >= 4 else 15.0


class Clients:
    """Callers who come at random, and whose patience is a quarter of a second."""

    def __init__(self, pool: Pool[Any], seed: int) -> None:
        self.pool = pool
        self.random = Random(seed)
        self.waits: list[tuple[float, float]] = []  # when served, after how long

    async def come(self) -> None:
        """Wait for a connection, and hold it for a while."""
        begun = anyio.current_time()
        try:
            async with self.pool.acquire():
                now = anyio.current_time()
                self.waits.append((now, now - begun))
                await anyio.sleep(self.random.expovariate(1 / SERVICE))
        except PoolUnavailable:
            pass

    async def run(self, phases: list[tuple[float, float]]) -> None:
        """Come, for so many seconds at so much of the capacity."""
        async with anyio.create_task_group() as group:
            for seconds, load in phases:
                end = anyio.current_time() + seconds
                while anyio.current_time() < end:
                    group.start_soon(self.come)
                    await anyio.sleep(self.random.expovariate(load * CAPACITY))


def useful(waits: list[tuple[float, float]], begin: float, end: float) -> float:
    """Return how many were served in time, of those that the connections had time for."""
    served = sum(begin <= when < end and wait <= 0.25 for when, wait in waits)
    return served / (CAPACITY * (end - begin))


@RUNNERS
def test_codel_keeps_the_work_useful_in_an_overload(run: Any) -> None:
    """At 150 %: all the capacity is of use, waits are bounded, and it is over when it is over."""

    async def main() -> Clients:
        policy = poolkit.CoDel(target=0.05, interval=0.5)
        async with Pool(FakeDriver(), min_size=10, max_size=10, shedding=policy) as pool:
            clients = Clients(pool, seed=1)
            await clients.run([(QUIET, 0.7), (OVERLOAD, 1.5), (QUIET, 0.7)])
            await check_pool(pool)
            assert pool.stats().shed > 0.3 * CAPACITY * OVERLOAD
        return clients

    waits = run(main).waits
    begin = waits[0][0]
    assert useful(waits, begin + QUIET, begin + OVER) >= 0.97
    known = begin + QUIET + 1
    overload = sorted(wait for when, wait in waits if known <= when < begin + OVER)
    assert overload[int(0.99 * len(overload))] <= 2 * 0.05 + SERVICE
    after = [wait for when, wait in waits if when >= begin + OVER + 0.5]
    assert statistics.median(after) <= 0.05
    assert useful(waits, begin + OVER, begin + OVER + QUIET) >= 0.9 * 0.7


@RUNNERS
def test_first_come_first_served_alone_serves_nobody_in_time(run: Any) -> None:
    """So the policy is what helps, and not the test that is too easy."""

    async def main() -> Clients:
        async with Pool(FakeDriver(), min_size=10, max_size=10, acquire_timeout=30.0) as pool:
            clients = Clients(pool, seed=1)
            await clients.run([(QUIET, 0.7), (OVERLOAD, 1.5)])
        return clients

    waits = run(main).waits
    begin = waits[0][0]
    assert useful(waits, begin + QUIET + 2, begin + OVER) <= 0.01


@RUNNERS
def test_max_waiting_keeps_the_work_useful_too(run: Any) -> None:
    """If one knows how many can be served in time."""

    async def main() -> Clients:
        async with Pool(FakeDriver(), min_size=10, max_size=10, max_waiting=20) as pool:
            clients = Clients(pool, seed=1)
            await clients.run([(QUIET, 0.7), (OVERLOAD, 1.5)])
        return clients

    waits = run(main).waits
    begin = waits[0][0]
    assert useful(waits, begin + QUIET, begin + OVER) >= 0.97


@RUNNERS
@pytest.mark.parametrize("gap", [0.0, 0.0001, 0.001])
def test_spike_opens_hardly_more_connections_than_there_were(run: Any, gap: float) -> None:
    """Fifty requests of 2 ms on five connections, where connecting takes 150 ms."""

    async def main() -> int:
        driver = FakeDriver()
        async with Pool(driver, min_size=5, max_size=50) as pool:
            driver.script["connect"] = 0.15

            async def request() -> None:
                async with pool.acquire():
                    await anyio.sleep(0.002)

            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(request)
                    await anyio.sleep(gap)
            await anyio.sleep(1.0)
            await check_pool(pool)
        return driver.calls["connect"]

    assert run(main) <= 6


@RUNNERS
@pytest.mark.parametrize("seconds", [3.0, LONG], ids=["short", "long"])
def test_database_that_comes_back_is_used_soon_and_was_not_rushed(run: Any, seconds: float) -> None:
    """One attempt at a time meanwhile, and the first success within twice the longest pause."""

    async def main() -> None:
        driver = FakeDriver()
        attempts: list[float] = []
        step = driver.step

        async def noted(call: str) -> None:
            if call == "connect":
                attempts.append(anyio.current_time())
            await step(call)

        driver.step = noted  # type: ignore[method-assign]
        async with Pool(driver, min_size=2, max_size=10) as pool:
            back_at = 0.0
            first: list[float] = []

            async def client() -> None:
                while not first:
                    try:
                        async with pool.acquire(timeout=1.0) as conn:
                            await conn.query()
                            if back_at:
                                first.append(anyio.current_time())
                    except (PoolUnavailable, Fault):
                        pass
                    await anyio.sleep(0.05)

            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(client)
                await anyio.sleep(1.0)
                driver.script["connect"] = Fault("no route", verdict=Verdict.TRANSIENT)
                driver.crash()
                attempts.clear()
                await anyio.sleep(seconds)
                during = len(attempts)
                del driver.script["connect"]
                back_at = anyio.current_time()
            assert first[0] - back_at <= 2 * 1.5
            assert during / seconds <= 4.0
            await check_pool(pool)

    run(main)


@RUNNERS
@pytest.mark.parametrize("many", [1_000, 4_000])
def test_many_who_give_up_at_once_leave_nothing_behind(run: Any, many: int) -> None:
    """And whoever comes next is served at once."""

    async def main() -> None:
        async with Pool(FakeDriver(), max_size=1, acquire_timeout=None) as pool:

            async def wait() -> None:
                async with pool.acquire():
                    raise AssertionError("served")

            async with pool.acquire():
                async with anyio.create_task_group() as group:
                    for _ in range(many):
                        group.start_soon(wait)
                    await anyio.wait_all_tasks_blocked()
                    assert pool.stats().waiting == many
                    group.cancel_scope.cancel()
                assert pool.stats().waiting == 0
            async with pool.acquire(timeout=0):
                pass
            await check_pool(pool)

    run(main)
