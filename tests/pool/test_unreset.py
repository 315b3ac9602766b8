"""A reset that is put off while somebody waits: for whom, how often, how long, and when it is made up."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from poolkit import Pool, PoolTimeout
from poolkit._core import placement
from poolkit._core.slot import NEVER
from poolkit.testing import check_pool
from tests.conftest import BACKENDS
from tests.fakes import FakeConnection, FakeCursor, FullDriver
from tests.pool.virtual import RUNNERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


#: Where a task can be cancelled that is about to run.
LOOPS = [backend for backend in BACKENDS if backend.id != "trio"]


@pytest.fixture(autouse=True)
def no_reset_is_due_by_time(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the machine is, but where time is virtual."""
    if "run" not in request.fixturenames:
        monkeypatch.setattr(placement, "_LONGEST_UNRESET", NEVER)


class Driver(FullDriver):
    """Every lease needs a reset, which may be put off unless a test says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.resets = 0
        self.is_plain = True
        self.asked: list[Any] = []

    def is_clean(self, c: FakeConnection) -> bool:
        """Say no."""
        return False

    def can_hand_on(self, c: FakeConnection) -> bool:
        """Say what the test says."""
        self.asked.append(c)
        return self.is_plain

    async def reset(self, c: FakeConnection, /) -> str | None:
        """Count."""
        self.resets += 1
        return await super().reset(c)


@contextlib.asynccontextmanager
async def held(driver: Driver, **options: Any) -> AsyncIterator[tuple[Pool[Any], Any]]:
    """Open a pool of one connection, and hold it; release it, and see that it comes to rest."""
    async with Pool(driver, **{"max_size": 1, **options}) as pool:
        lease = pool.acquire()
        conn = await lease
        await conn.query()
        try:
            yield pool, conn
        finally:
            with contextlib.suppress(Exception):
                pool.release(conn)
            await check_pool(pool)


async def waiting(pool: Pool[Any], many: int) -> None:
    """Wait until so many wait."""
    while pool.stats().waiting != many:
        await checkpoint()


async def use(pool: Pool[Any]) -> None:
    """Acquire, do something, and give back."""
    async with pool.acquire() as conn:
        await conn.query()


async def test_reset_is_put_off_while_somebody_waits() -> None:
    """Three in a row get the connection as it is; after the last one it is reset, once."""
    driver = Driver()
    async with held(driver) as (pool, conn), anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(use, pool)
        await waiting(pool, 3)
        pool.release(conn)
        assert pool.stats().recycling == 0
    assert driver.resets == 1
    assert len(driver.asked) == 3  # not when nobody waits any more


async def test_reset_is_not_put_off_when_nobody_waits() -> None:
    """The driver is not even asked."""
    driver = Driver()
    async with held(driver) as (pool, conn):
        pool.release(conn)
        assert pool.stats().recycling == 1
    assert (driver.resets, driver.asked) == (1, [])


async def test_reset_is_not_put_off_if_the_driver_says_no() -> None:
    """Nor for a driver without an answer."""

    class Raising(Driver):
        def can_hand_on(self, c: FakeConnection) -> bool:
            raise RuntimeError("cannot tell")

    for driver in (Driver(), Raising()):
        driver.is_plain = False
        async with held(driver) as (pool, conn), anyio.create_task_group() as group:
            group.start_soon(use, pool)
            await waiting(pool, 1)
            pool.release(conn)
            assert pool.stats().recycling == 1
        assert driver.resets == 2


async def test_lease_that_did_nothing_leaves_the_reset_owed() -> None:
    """The one before it has done something."""
    driver = Driver()

    async def look() -> None:
        async with pool.acquire():
            pass

    async with held(driver) as (pool, conn), anyio.create_task_group() as group:
        group.start_soon(look)
        await waiting(pool, 1)
        pool.release(conn)
    assert driver.resets == 1


@pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
@pytest.mark.parametrize("others", [0, 1])
async def test_connection_for_a_waiter_that_is_cancelled_before_it_runs_is_not_put_idle(
    others: int,
) -> None:
    """It goes to the next in line, unreset still; if there is nobody, it is reset."""
    driver = Driver()
    async with held(driver) as (pool, conn):
        first, *rest = [asyncio.ensure_future(use(pool)) for _ in range(1 + others)]
        await waiting(pool, 1 + others)
        pool.release(conn)
        assert pool.stats().leased == 1  # the waiter's, who does not know yet
        first.cancel()
        await asyncio.wait([first, *rest])
        assert first.cancelled()
    assert driver.resets == 1
    assert len(driver.asked) == 1


@RUNNERS
def test_connection_is_reset_if_the_deadlines_of_all_who_wait_have_passed(
    run: Callable[[Any], Any],
) -> None:
    """The alarm has not rung yet."""
    driver = Driver()

    async def too_late(pool: Pool[Any]) -> None:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=1.0)

    async def main() -> None:
        async with held(driver) as (pool, conn), anyio.create_task_group() as group:
            group.start_soon(too_late, pool)
            await waiting(pool, 1)
            now = pool._runtime.now
            pool._runtime.now = lambda: now() + 2.0
            try:
                pool.release(conn)
            finally:
                pool._runtime.now = now
            assert pool.stats().recycling == 1
        assert driver.resets == 1

    run(main)


async def test_after_a_hundred_leases_in_a_row_there_is_a_reset() -> None:
    """Whoever waits."""
    driver = Driver()
    async with held(driver, acquire_timeout=60) as (pool, conn):
        async with anyio.create_task_group() as group:
            for _ in range(250):
                group.start_soon(use, pool)
            await waiting(pool, 250)
            pool.release(conn)
    # After 101, after 101 more, and at the end of 49.
    assert driver.resets == 3


@RUNNERS
def test_after_five_seconds_there_is_a_reset(run: Callable[[Any], Any]) -> None:
    """Since the first lease without one has ended."""
    driver = Driver()

    async def slowly(pool: Pool[Any]) -> None:
        async with pool.acquire(timeout=None) as conn:
            await anyio.sleep(2.0)
            await conn.query()

    async def main() -> None:
        async with held(driver) as (pool, conn), anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(slowly, pool)
            await waiting(pool, 8)
            await anyio.sleep(100.0)  # which has nothing to do with it
            pool.release(conn)
        # At 6 s, at 14 s and at the end.
        assert driver.resets == 3

    run(main)


async def test_operation_under_way_or_cancelled_is_followed_by_a_reset() -> None:
    """The driver is not asked."""
    driver = Driver()
    async with held(driver) as (pool, conn), anyio.create_task_group() as group:
        group.start_soon(use, pool)
        await waiting(pool, 1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await conn.query()
        pool.release(conn)
        assert pool.stats().recycling == 1
        assert not driver.asked
    assert driver.resets == 2


async def test_driver_is_asked_about_connections_of_which_objects_were_made() -> None:
    """`revoke` has ended them."""
    driver = Driver()
    async with held(driver) as (pool, conn), anyio.create_task_group() as group:
        group.start_soon(use, pool)
        await waiting(pool, 1)
        cursor = conn.cursor()
        assert isinstance(cursor, FakeCursor)
        pool.release(conn)
        assert driver.asked
        assert pool.stats().recycling == 0
    assert driver.resets == 1


async def test_connection_that_owes_a_reset_is_retired_for_its_age_like_any_other() -> None:
    """And closed without the reset."""
    driver = Driver()
    async with held(driver) as (pool, conn), anyio.create_task_group() as group:
        group.start_soon(use, pool)
        await waiting(pool, 1)
        pool.renew()
        pool.release(conn)
    assert driver.resets == 1  # of the new one
    assert pool.stats().retired["stale"] == 1
