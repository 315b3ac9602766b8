"""One observer of a kind for each pool, however many need it; and what one task holds."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import anyio
from anyio import wait_all_tasks_blocked

from poolkit import Pool
from poolkit._shell.runtime import running_task
from poolkit._shell.shared import OnePerPool, Shared
from tests.fakes import FakeConnection, FakeDriver


class Counting(Shared):
    """Counts acquires."""

    def __init__(self) -> None:
        self.acquires = 0

    def acquire_began(self, pool: Pool[Any], label: str | None) -> None:
        """Count."""
        self.acquires += 1


async def acquire(pool: Pool[FakeConnection]) -> None:
    """Acquire, and give back."""
    async with pool.acquire():
        pass


async def test_observer_is_there_until_the_last_one_needs_it_no_longer() -> None:
    """It is told of each event once; ending what nobody has begun changes nothing."""
    counting = OnePerPool(Counting)
    async with Pool(FakeDriver()) as pool, Pool(FakeDriver()) as other:
        first = counting.begin(pool)
        assert counting.begin(pool) is counting.of(pool) is first
        await acquire(pool)
        counting.end(pool)
        await acquire(pool)
        counting.end(other)
        counting.end(pool)
        assert counting.of(pool) is None
        counting.end(pool)
        await acquire(pool)
        assert first.acquires == 2
        assert counting.begin(pool) is not first


async def test_pool_that_is_observed_for_ever_can_be_collected() -> None:
    """What knows its observer does not hold it."""
    counting = OnePerPool(Counting)
    async with Pool(FakeDriver()) as pool:
        there = weakref.ref(pool), weakref.ref(counting.begin(pool))
    del pool
    gc.collect()
    assert [one() for one in there] == [None, None]


async def test_leases_of_one_task_are_those_it_has_acquired() -> None:
    """Not those of its parent, nor of its siblings; without a task it is all of them."""
    seen: list[list[str]] = []
    go = anyio.Event()

    async def child(pool: Pool[FakeConnection], label: str) -> None:
        async with pool.acquire(label=label):
            await go.wait()
            seen.append([info.label for info in pool.leases(task=running_task())])

    async with Pool(FakeDriver(), max_size=3) as pool:
        async with pool.acquire(label="parent"), anyio.create_task_group() as group:
            group.start_soon(child, pool, "one")
            group.start_soon(child, pool, "other")
            await wait_all_tasks_blocked()
            assert [info.label for info in pool.leases(task=running_task())] == ["parent"]
            assert len(pool.leases()) == 3
            go.set()
        assert pool.leases(task=running_task()) == []
    assert sorted(seen) == [["one"], ["other"]]


async def test_release_costs_nothing_while_nobody_is_told_of_it() -> None:
    """A lease is told of only for an observer that has a method for it."""

    class Releases:
        def released(self, pool: Pool[Any], label: str | None, seconds: float) -> None:
            """Be told."""

    async with Pool(FakeDriver()) as pool:
        stop_counting = pool.observe(Counting())
        assert not pool._all_observers.hear("released")
        stop = pool.observe(Releases())
        assert pool._all_observers.hear("released")
        stop()
        assert not pool._all_observers.hear("released")
        stop_counting()
        assert pool._observers is None
