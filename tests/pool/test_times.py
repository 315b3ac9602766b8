"""What a pool says of itself: how long waits, leases and connects took; whether it is open."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from poolkit import Histogram, Pool, PoolStats
from poolkit._core.slot import BATCH
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeDriver
from tests.pool.virtual import on_asyncio, on_trio


async def test_stats_have_three_histograms() -> None:
    """One wait, one use, one connect."""
    async with Pool(CleanDriver(), max_size=1, ping_after=None) as pool:
        async with pool.acquire():
            assert pool.stats().use_times.count == 0
        stats = pool.stats()
        for found in (stats.wait_times, stats.use_times, stats.create_times):
            assert isinstance(found, Histogram)
            assert found.count == 1
        assert stats.wait_times.percentile(1.0) == 0.0
        assert stats.most_leased == 1


@pytest.mark.parametrize("run", [on_asyncio, on_trio])
def test_times_are_those_of_the_pools_clock(run: Any) -> None:
    """A lease of a quarter of a second makes the next caller wait for as long."""

    async def main() -> None:
        async with Pool(CleanDriver(), max_size=1) as pool:

            async def hold() -> None:
                async with pool.acquire():
                    await anyio.sleep(0.25)

            async with anyio.create_task_group() as group:
                group.start_soon(hold)
                group.start_soon(hold)
            stats = pool.stats()
            assert stats.use_times.mean == pytest.approx(0.25)
            assert stats.wait_times.sum == pytest.approx(0.25)
            assert stats.wait_times.counts[0] == 1
            assert stats.open_for == pytest.approx(0.5)

    run(main)


async def test_acquire_that_its_hook_fails_has_waited_and_used() -> None:
    """It was given a connection, and gave it back; as an acquire it has failed."""

    async def on_acquire(_: FakeConnection) -> None:
        raise Boom

    async with Pool(CleanDriver(), max_size=1, on_acquire=on_acquire) as pool:
        with pytest.raises(Boom):
            await pool.acquire()
        stats = pool.stats()
        assert (stats.direct, stats.failed) == (0, 1)
        assert (stats.wait_times.count, stats.use_times.count) == (1, 1)


async def test_histograms_go_on_when_a_pool_is_opened_again() -> None:
    """As the counters do; the time in between does not count as open."""
    pool = Pool(CleanDriver(), max_size=1, ping_after=None)
    for lives in (1, 2):
        async with pool, pool.acquire():
            pass
        stats = pool.stats()
        assert (stats.direct, stats.connected) == (lives, lives)
        assert stats.wait_times.count == stats.use_times.count == lives
        assert stats.create_times.count == lives
        assert stats.open_for == pool.stats().open_for


async def test_another_thread_reads_while_the_pool_counts() -> None:
    """What it sees never falls, and fits: nobody has used what nobody was given."""
    found: list[Any] = []
    began, done = threading.Event(), threading.Event()

    def look() -> None:
        while not done.is_set():
            found.append(pool.stats())
            began.set()

    async with Pool(CleanDriver(), max_size=2) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, look)
            await anyio.to_thread.run_sync(began.wait, 10)
            for _ in range(20 * BATCH):
                async with pool.acquire():
                    pass
            done.set()
        found.append(pool.stats())
    assert found[-1].use_times.count == 20 * BATCH
    counts = [stats.use_times.count for stats in found]
    assert counts == sorted(counts)


async def test_open_pool_says_so() -> None:
    """From the beginning of `open` to the beginning of `aclose`."""
    driver = FakeDriver()
    pool = Pool(driver, max_size=1)
    assert not pool.is_open
    async with pool:
        assert pool.is_open
        conn = await pool.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(pool.aclose)
            await wait_all_tasks_blocked()
            assert not pool.is_open
            pool.release(conn)
    assert not pool.is_open


def test_pool_whose_loop_has_ended_is_not_open() -> None:
    """Also before anybody has noticed."""
    pool = Pool(FakeDriver(), max_size=1)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.open())
    assert pool.is_open
    loop.close()
    assert not pool.is_open
    asyncio.run(pool.aclose())


async def test_snapshot_minus_an_earlier_one_has_counted_what_came_between() -> None:
    """Counters, histograms, reasons and seconds; the sizes are those of the later one."""
    async with Pool(FakeDriver(), min_size=2, max_uses=2) as pool:

        async def use() -> None:
            async with pool.acquire() as conn:
                await conn.query()

        await use()
        await wait_all_tasks_blocked()
        before = pool.stats()
        assert before - before == _nothing(before)
        async with pool.acquire(), pool.acquire():
            pass
        await wait_all_tasks_blocked()
        now = pool.stats()
        found = now - before
        assert (found.direct, found.connected, found.size) == (2, 1, now.size)
        assert found.use_times.count == found.wait_times.count == 2
        assert found.retired["used_up"] == sum(found.retired.values()) == 1
        assert found.leased_at_once[1:3] == (1, 1)
        assert found.open_for == now.open_for - before.open_for
        with pytest.raises(ValueError, match="earlier snapshot"):
            before - now
        with pytest.raises(TypeError):
            now - 1  # type: ignore[operator]


def _nothing(stats: PoolStats) -> PoolStats:
    times = {name: getattr(stats, name) for name in ("wait_times", "use_times", "create_times")}
    none: dict[str, Any] = dict.fromkeys(("direct", "connected", "open_for"), 0)
    none["retired"] = dict.fromkeys(stats.retired, 0)
    none["leased_at_once"] = (0,) * len(stats.leased_at_once)
    none |= {name: time - time for name, time in times.items()}
    return dataclasses.replace(stats, **none)
