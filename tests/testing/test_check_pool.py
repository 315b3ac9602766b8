"""`check_pool`: a pool at rest passes, and one that is not is told of with names and places."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from poolkit import Pool, WrongLoop
from poolkit.testing import NEVER, FakeDriver, check_pool


async def test_pool_at_rest_passes() -> None:
    """Open, used, closed, or never opened."""
    pool = Pool(FakeDriver(), max_size=2)
    await check_pool(pool)
    async with pool:
        await check_pool(pool)
        async with pool.acquire() as conn:
            await conn.query()
        await check_pool(pool)
    await check_pool(pool)


async def test_jobs_under_way_are_waited_for() -> None:
    """A reset, here; the check ends with it, and not with its time limit."""
    gate = anyio.Event()
    driver = FakeDriver(reset=[gate])
    async with Pool(driver) as pool, anyio.create_task_group() as group:
        async with pool.acquire() as conn:
            conn.session["role"] = "admin"
        ended: list[bool] = []

        async def check() -> None:
            await check_pool(pool, timeout=60.0)
            ended.append(True)

        group.start_soon(check)
        await wait_all_tasks_blocked()
        assert not ended
        gate.set()
    assert ended


async def test_who_holds_is_told() -> None:
    """By task and place."""
    async with Pool(FakeDriver(), name="shop") as pool, pool.acquire():
        with pytest.raises(AssertionError) as caught:
            await check_pool(pool)
    message = str(caught.value)
    assert "'shop' is not at rest: held by" in message
    assert "test_who_holds_is_told" in message


async def test_who_waits_is_told() -> None:
    """With the place, too."""

    async def wait_for_one(pool: Pool[Any]) -> None:
        async with pool.acquire():
            pass

    async with Pool(FakeDriver(), max_size=1) as pool, anyio.create_task_group() as group:
        async with pool.acquire():
            group.start_soon(wait_for_one, pool)
            await wait_all_tasks_blocked()
            with pytest.raises(AssertionError, match=r"waited for, for .* in .*wait_for_one"):
                await check_pool(pool)


async def test_job_that_does_not_end_is_told() -> None:
    """When the time is up."""
    driver = FakeDriver(reset=NEVER)
    async with Pool(driver, reset_timeout=None) as pool:
        async with pool.acquire() as conn:
            conn.session["role"] = "admin"
        with pytest.raises(AssertionError, match=r"1 still recycling after 0\.01 s"):
            await check_pool(pool, timeout=0.01)
        driver.crash()


async def test_books_out_of_order_are_told() -> None:
    """A slot in a container that its state does not say: a defect of the pool's."""
    async with Pool(FakeDriver()) as pool:
        (slot,) = pool._state.idle
        slot.state = "leased"
        with pytest.raises(AssertionError, match="I1"):
            await check_pool(pool)
        slot.state = "idle"


def test_pool_of_another_loop_is_refused() -> None:
    """It cannot be waited for here."""
    pool = Pool(FakeDriver())
    with asyncio.Runner() as one, asyncio.Runner() as two:
        one.run(pool.open())
        with pytest.raises(WrongLoop):
            two.run(check_pool(pool))
        one.run(pool.aclose())
