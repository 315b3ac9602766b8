"""`max_idle_time=0`: a connection that nobody waits for is closed when it comes back."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from poolkit import Pool, PoolBusy, PoolTimeout
from tests.fakes import CleanDriver, FakeConnection, FakeDriver, gone
from tests.pool.virtual import RUNNERS


async def test_connection_is_closed_at_its_return() -> None:
    """Clean or not; the next caller has another."""
    driver = FakeDriver()
    async with Pool(driver, min_size=0, max_size=2, max_idle_time=0) as pool:
        for many, is_used in ((1, True), (2, False), (3, True)):
            async with pool.acquire() as conn:
                if is_used:
                    await conn.query()
            await wait_all_tasks_blocked()
            assert not driver.alive
            assert (pool.stats().size, driver.calls["connect"], driver.calls["close"]) == (
                0,
                many,
                many,
            )
        assert gone(pool.stats()) == {"unused": 3}


@pytest.mark.parametrize("driver_class", [FakeDriver, CleanDriver])
async def test_connection_goes_to_the_first_in_line(driver_class: type[FakeDriver]) -> None:
    """Whoever waits is served by hand-off, as ever; only the last one out closes."""
    driver = driver_class()
    async with Pool(driver, min_size=0, max_size=2, max_idle_time=0) as pool:

        async def use() -> None:
            async with pool.acquire() as conn:
                await conn.query()

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(use)
        await wait_all_tasks_blocked()
        assert (driver.calls["connect"], driver.most_alive, len(driver.alive)) == (2, 2, 0)


async def test_waiter_that_has_given_up_leaves_nothing_behind() -> None:
    """The connect that was begun for it ends, and so does the connection."""
    gate = anyio.Event()
    driver = FakeDriver(connect=[gate])
    async with Pool(driver, min_size=0, max_idle_time=0) as pool:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.01)
        gate.set()
        await wait_all_tasks_blocked()
        assert not driver.alive
        assert pool.stats().size == 0


async def test_caller_that_waits_for_nobody_begins_no_connect_in_vain() -> None:
    """Elsewhere the next one would have it; here it would be closed at once."""
    driver = FakeDriver()
    async with Pool(driver, min_size=0, max_idle_time=0) as pool:
        with pytest.raises((PoolTimeout, PoolBusy)):
            await pool.acquire(timeout=0)
        await wait_all_tasks_blocked()
        assert driver.calls["connect"] == 0


async def test_min_size_is_kept_all_the_same() -> None:
    """What is beyond it is not; shrinking closes the rest."""
    driver = FakeDriver()
    async with Pool(driver, min_size=2, max_size=4, max_idle_time=0) as pool:
        async with pool.acquire(), pool.acquire(), pool.acquire():
            pass
        await wait_all_tasks_blocked()
        assert len(driver.alive) == pool.stats().idle == 2
        pool.resize(min_size=1)
        await wait_all_tasks_blocked()
        assert len(driver.alive) == pool.stats().idle == 1


@RUNNERS
def test_connection_in_place_of_one_that_hangs_is_kept(run: Any) -> None:
    """It was closed as one too many, opened again, and so on, as fast as the database allows."""

    class Deaf(FakeDriver):
        async def ping(self, c: FakeConnection, /) -> None:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(100.0)

    async def main() -> None:
        driver = Deaf(connect=0.1)
        async with Pool(driver, max_idle_time=0, ping_every=None) as pool:
            await pool.check()
            await anyio.sleep(50.0)
            assert (pool.stats().stuck, pool.stats().idle) == (1, 1)
            assert driver.calls["connect"] == 2
            await anyio.sleep(100.0)
            assert (pool.stats().stuck, pool.stats().idle) == (0, 1)
            assert driver.calls["connect"] == 2

    run(main)
