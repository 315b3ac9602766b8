"""Opening without waiting, waiting for `min_size` connections, and pinging all that are idle."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from poolkit import (
    ConnectFailed,
    Pool,
    PoolClosed,
    PoolConfigError,
    PoolTimeout,
    Verdict,
    WrongLoop,
)
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeDriver, FullDriver, gone
from tests.pool.virtual import RUNNERS

# -- open(wait=False) ----------------------------------------------------------------------------


async def test_open_without_waiting_returns_before_anything_is_connected() -> None:
    """Who acquires waits in line; `wait` returns when all are there."""
    gate = anyio.Event()
    pool = await Pool(FakeDriver(connect=[gate, gate]), min_size=2).open(wait=False)
    assert pool.is_open
    assert pool.stats().connecting == 2
    async with anyio.create_task_group() as group:
        group.start_soon(pool.wait)
        async with anyio.create_task_group() as inner:

            async def use() -> None:
                async with pool.acquire() as conn:
                    assert await conn.query() == "row"

            inner.start_soon(use)
            await wait_all_tasks_blocked()
            assert pool.stats().waiting == 1
            gate.set()
    await wait_all_tasks_blocked()
    assert pool.stats().idle == 2
    await pool.aclose()


async def test_open_without_waiting_raises_nothing_of_the_database() -> None:
    """The pool is open, tries again by itself, and works when the database does."""
    driver = FakeDriver(connect=Boom("no route"))
    pool = Pool(driver, backoff_min=0.001, backoff_max=0.001)
    assert await pool.open(wait=False) is pool
    with pytest.raises(ConnectFailed, match="no route"):
        await pool.wait()
    assert pool.is_open
    driver.script["connect"] = None
    await _wait_through(pool)
    assert pool.stats().idle == 1
    await pool.aclose()
    assert not driver.alive


async def _wait_through(pool: Pool[Any]) -> None:
    """Wait until the pool is ready, whatever failed before."""
    with anyio.fail_after(5):
        while True:
            try:
                return await pool.wait()
            except ConnectFailed:
                await anyio.sleep(0.001)


async def test_pool_opened_without_waiting_is_left_open_by_blocks() -> None:
    """As with `open`: whoever has opened it closes it."""
    pool = await Pool(FakeDriver()).open(wait=False)
    async with pool:
        pass
    assert pool.is_open
    await pool.aclose()


async def test_open_that_fails_leaves_open_what_another_has_opened_without_waiting() -> None:
    """The one raises, the other has an open pool."""
    driver = FakeDriver(connect=[(0.01, Boom("once")), anyio.Event()])
    pool = Pool(driver)
    async with anyio.create_task_group() as group:

        async def open_and_fail() -> None:
            with pytest.raises(ConnectFailed):
                await pool.open()

        group.start_soon(open_and_fail)
        await wait_all_tasks_blocked()
        await pool.open(wait=False)
    assert pool.is_open
    await pool.aclose()


async def test_open_without_waiting_of_an_open_pool_keeps_it_open() -> None:
    """It counts as `open` does."""
    pool = Pool(FakeDriver())
    async with pool:
        await pool.open(wait=False)
    assert pool.is_open
    await pool.aclose()


# -- wait ----------------------------------------------------------------------------------------


async def test_wait_counts_the_leased_and_returns_at_once_when_all_are_there() -> None:
    """Nothing is connected for it."""
    driver = FakeDriver()
    async with Pool(driver, min_size=2) as pool, pool.acquire():
        await pool.wait(timeout=0)
        await pool.wait(timeout=None)
        assert driver.calls["connect"] == 2


async def test_wait_ends_at_its_deadline_with_the_cause() -> None:
    """The pool stays open."""
    driver = FullDriver(connect=[None])
    driver.verdicts[Boom] = Verdict.TRANSIENT
    async with Pool(driver, max_size=2, backoff_min=0.002, backoff_max=0.002) as pool:
        driver.script["connect"] = Boom("starting up")
        pool.resize(min_size=2)
        with pytest.raises(PoolTimeout, match=r"min_size=2 .+ starting up") as caught:
            await pool.wait(timeout=0.05)
        assert isinstance(caught.value.__cause__, Boom)
        with pytest.raises(PoolTimeout):
            await pool.wait(timeout=0)
        with pytest.raises(PoolTimeout):
            await pool.wait(timeout=-1)
        assert pool.is_open


@RUNNERS
def test_wait_has_the_acquire_timeout_unless_told_otherwise(run: Any) -> None:
    """None is no limit."""

    async def main() -> None:
        pool = await Pool(FakeDriver(connect=30.0), connect_timeout=None).open(wait=False)
        began = anyio.current_time()
        with pytest.raises(PoolTimeout):
            await pool.wait()
        assert anyio.current_time() == pytest.approx(began + 10.0)
        await pool.wait(timeout=None)
        assert anyio.current_time() == pytest.approx(began + 30.0)
        await pool.aclose()

    run(main)


async def test_cancelled_wait_changes_nothing() -> None:
    """The connect goes on, and others who wait are told."""
    gate = anyio.Event()
    driver = FakeDriver(connect=[gate])
    pool = await Pool(driver).open(wait=False)
    async with anyio.create_task_group() as group:
        group.start_soon(pool.wait)
        with anyio.move_on_after(0.01) as scope:
            await pool.wait()
        assert scope.cancelled_caught
        assert not pool._state.to_wake
        gate.set()
    assert driver.calls["connect"] == pool.stats().idle == 1
    await pool.aclose()


async def test_wait_and_check_of_a_closed_pool_say_so() -> None:
    """Before it was opened, when it is closed meanwhile, and after."""
    pool = Pool(FakeDriver(connect=anyio.Event()))
    for _ in range(2):
        for call in (pool.wait, pool.check):
            with pytest.raises(PoolClosed, match="not open"):
                await call()
        await pool.open(wait=False)
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                with pytest.raises(PoolClosed):
                    await pool.wait()

            group.start_soon(wait)
            await wait_all_tasks_blocked()
            await pool.aclose()


async def test_wait_refuses_what_is_no_number_of_seconds() -> None:
    """As an acquire does."""
    async with Pool(FakeDriver()) as pool:
        with pytest.raises(PoolConfigError, match="timeout='soon'"):
            await pool.wait(timeout="soon")  # type: ignore[arg-type]


def test_wait_and_check_on_another_loop_are_refused() -> None:
    """They could never be woken."""
    loop = asyncio.new_event_loop()
    pool = loop.run_until_complete(Pool(FakeDriver()).open())

    async def elsewhere() -> None:
        for call in (pool.wait, pool.check):
            with pytest.raises(WrongLoop):
                await call()

    asyncio.run(elsewhere())
    loop.run_until_complete(pool.aclose())
    loop.close()


# -- check ---------------------------------------------------------------------------------------


async def test_check_pings_every_idle_connection_and_leaves_the_leased_alone() -> None:
    """However lately they were heard from; afterwards they are idle as before."""
    driver = FakeDriver()
    async with Pool(driver, min_size=3, ping_after=None, ping_every=None) as pool:
        async with pool.acquire():
            assert await pool.check() == 0
            assert driver.calls["ping"] == 2
        assert await pool.check() == 0
        assert driver.calls["ping"] == 5
        assert pool.stats().connected == 3


async def test_check_of_a_pool_without_an_idle_connection_returns_at_once() -> None:
    """There is nothing to do."""
    async with Pool(FakeDriver(), min_size=0) as pool:
        assert await pool.check() == 0
        assert pool.stats().connected == 0


async def test_check_says_how_many_were_dead_and_they_are_replaced() -> None:
    """Up to `min_size`; `wait` waits for that."""
    driver = FakeDriver(ping=[Boom("reset by peer"), None, Boom("reset by peer")])
    async with Pool(driver, min_size=2, max_size=3, ping_after=None) as pool:
        async with pool.acquire(), pool.acquire(), pool.acquire():
            pass
        assert await pool.check() == 2
        assert gone(pool.stats()) == {"broken": 2}
        await pool.wait()
        assert pool.stats().idle == 2
        assert await pool.check() == 0


async def test_check_while_the_database_is_down_counts_all_and_raises_nothing() -> None:
    """The pool goes on connecting; who acquires is told."""
    driver = FullDriver(ping=Boom("gone"))
    async with Pool(driver, min_size=3, max_size=3, ping_after=None) as pool:
        driver.script["connect"] = Boom("refused")
        assert await pool.check() == 3
        assert not driver.alive
        with pytest.raises(ConnectFailed, match="refused"):
            async with pool.acquire():
                pass
        driver.script |= {"connect": None, "ping": None}
        await _wait_through(pool)
        assert await pool.check() == 0


async def test_check_waits_for_pings_that_are_under_way_and_begins_no_second_one() -> None:
    """Two callers at once cause one ping for each connection."""
    gate = anyio.Event()
    driver = FakeDriver(ping=gate)
    async with Pool(driver, min_size=2, ping_after=None, ping_timeout=None) as pool:
        dead: list[int] = []

        async def check() -> None:
            dead.append(await pool.check())

        async with anyio.create_task_group() as group:
            group.start_soon(check)
            group.start_soon(check)
            await wait_all_tasks_blocked()
            assert (dead, driver.calls["ping"]) == ([], 2)
            gate.set()
        assert (dead, driver.calls["ping"]) == ([0, 0], 2)


async def test_check_waits_for_a_reset_that_is_under_way() -> None:
    """It is a round trip as well."""
    gate = anyio.Event()
    driver = FakeDriver(reset=[gate])
    async with Pool(driver, ping_after=None, reset_timeout=None) as pool:
        async with pool.acquire() as conn:
            await conn.query()
        done = anyio.Event()

        async def check() -> None:
            assert await pool.check() == 0
            done.set()

        async with anyio.create_task_group() as group:
            group.start_soon(check)
            await wait_all_tasks_blocked()
            assert not done.is_set()
            gate.set()
        assert driver.calls["ping"] == 0


async def test_cancelled_check_ends_no_ping_and_loses_nothing() -> None:
    """The pings are the pool's."""
    gate = anyio.Event()
    driver = FakeDriver(ping=gate)
    async with Pool(driver, min_size=2, ping_after=None, ping_timeout=None) as pool:
        with anyio.move_on_after(0.01) as scope:
            await pool.check()
        assert scope.cancelled_caught
        assert pool.stats().recycling == 2
        gate.set()
        await wait_all_tasks_blocked()
        assert (pool.stats().idle, pool.stats().connected) == (2, 2)


async def test_caller_who_acquires_during_a_check_is_given_the_first_that_answers() -> None:
    """No other connection is opened for it, and the check does not count what it does later."""
    first, second = anyio.Event(), anyio.Event()
    driver = FakeDriver(ping=[first, second])
    async with Pool(driver, min_size=2, max_size=3, ping_after=None, ping_timeout=None) as pool:
        dead: list[int] = []

        async def check() -> None:
            dead.append(await pool.check())

        async with anyio.create_task_group() as group:
            group.start_soon(check)
            await wait_all_tasks_blocked()
            group.start_soon(_lose_one, pool)
            await wait_all_tasks_blocked()
            first.set()
            await wait_all_tasks_blocked()
            assert gone(pool.stats()) == {"broken": 1}
            second.set()
        assert dead == [0]


async def _lose_one(pool: Pool[FakeConnection]) -> None:
    async with pool.acquire() as conn:
        assert pool.stats().connecting == 0
        await conn.query()
        next(one for one in pool._driver.alive if one.dirty).dead = True  # type: ignore[attr-defined]


@RUNNERS
def test_check_of_a_pool_that_is_closed_meanwhile_says_so(run: Any) -> None:
    """And delays its close no longer than a ping may take."""

    async def main() -> None:
        driver = FakeDriver(ping=...)
        pool = await Pool(driver, ping_after=None).open()
        began = anyio.current_time()

        async def check() -> None:
            with pytest.raises(PoolClosed, match="while its connections were pinged"):
                await pool.check()

        async with anyio.create_task_group() as group:
            group.start_soon(check)
            await anyio.sleep(0.5)
            await pool.aclose()
        assert not driver.alive
        assert anyio.current_time() == pytest.approx(began + 1.0)

    run(main)


@RUNNERS
def test_check_of_connections_that_hang_takes_as_long_as_one_ping(run: Any) -> None:
    """All are pinged at once."""

    async def main() -> None:
        driver = CleanDriver(ping=...)
        async with Pool(driver, min_size=5, ping_after=None) as pool:
            began = anyio.current_time()
            assert await pool.check() == 5
            assert anyio.current_time() == pytest.approx(began + 1.0)

    run(main)


@RUNNERS
def test_check_does_not_wait_for_ever_for_a_ping_that_ignores_its_limit(run: Any) -> None:
    """It is stuck, and counts as dead; its slot comes back when the library does."""

    class Deaf(CleanDriver):
        async def ping(self, c: FakeConnection, /) -> None:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(100.0)

    async def main() -> None:
        async with Pool(Deaf(), ping_after=None, ping_every=None) as pool:
            began = anyio.current_time()
            assert await pool.check() == 1
            assert anyio.current_time() < began + 5.0
            assert pool.stats().stuck == 1
            await anyio.sleep(100.0)
            assert pool.stats().stuck == 0

    run(main)
