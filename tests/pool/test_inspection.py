"""All that is to be seen of a pool at one moment, as the live page asks for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from poolkit import Pool, PoolUnavailable
from poolkit._shell.inspection import inspection_of, is_open_here
from poolkit.testing import FakeDriver
from tests.fakes import CleanDriver


class TellingDriver(CleanDriver):
    """Knows of each connection what the server calls it, and what it was last asked."""

    statement: Any = "\n select 1\n"

    def server_pid(self, c: Any, /) -> int | None:
        """Return a number."""
        return 7

    def last_statement(self, c: Any, /) -> str | None:
        """Return a text."""
        if isinstance(self.statement, BaseException):
            raise self.statement
        return self.statement  # type: ignore[no-any-return]


async def test_inspection_has_slots_and_callers_in_order() -> None:
    """The longest held first, then the idle, to the number that is asked for; and who waits."""
    async with Pool(CleanDriver(), min_size=3, max_size=3) as pool:
        seen = inspection_of(pool, 10)
        assert (seen.is_open, seen.is_here, seen.outage, seen.queue) == (True, True, None, [])
        assert [slot.state for slot in seen.slots] == ["idle"] * 3
        async with pool.acquire(label="one"), pool.acquire(label="two"):
            seen = inspection_of(pool, 10)
            labels = [slot.lease.label for slot in seen.slots if slot.lease is not None]
            assert labels == ["one", "two"]
            assert [slot.state for slot in seen.slots] == ["leased", "leased", "idle"]
            assert len({slot.key for slot in seen.slots}) == 3
            assert seen.held == {"one": 1, "two": 1}
            stats = pool.stats()
            assert dataclasses.replace(seen.stats, open_for=stats.open_for) == stats
            assert [slot.state for slot in inspection_of(pool, 1).slots] == ["leased"]

            async def wait(label: str) -> None:
                async with pool.acquire(label=label):
                    pass

            async with anyio.create_task_group() as group, pool.acquire():
                for label in ("three", "four"):
                    group.start_soon(wait, label)
                    await wait_all_tasks_blocked()
                seen = inspection_of(pool, 1)
                assert [label for label, _ in seen.queue] == ["three"]
                assert len(seen.waits) == 2
                assert seen.waits == sorted(seen.waits, reverse=True)


async def test_pool_can_be_inspected_whatever_it_is() -> None:
    """Not open yet, on another loop than the caller's, closed."""
    pool = Pool(CleanDriver(), min_size=1, max_size=1)
    assert not inspection_of(pool, 5).is_open
    assert not is_open_here(pool)
    async with pool:
        assert is_open_here(pool)
        assert not await anyio.to_thread.run_sync(is_open_here, pool)
        seen = await anyio.to_thread.run_sync(inspection_of, pool, 5)
        assert (seen.is_open, seen.is_here, len(seen.slots)) == (True, False, 1)
    assert not inspection_of(pool, 5).is_open


async def test_outage_is_told_by_the_class_of_its_error() -> None:
    """What it says may have more in it than anybody is to see."""
    driver = FakeDriver(connect=ConnectionRefusedError("secret"))
    async with Pool(driver, min_size=0, max_size=1, acquire_timeout=0.1) as pool:
        with pytest.raises(PoolUnavailable):
            await pool.acquire()
        assert inspection_of(pool, 5).outage is not None
        assert inspection_of(pool, 5).outage[0] == "ConnectionRefusedError"  # type: ignore[index]


async def test_closing_connection_tells_no_time() -> None:
    """Since when, nobody has noted."""
    closing = anyio.Event()
    async with Pool(FakeDriver(close=closing), min_size=1, max_size=1) as pool:
        async with pool.acquire():
            pool.renew()
        (slot,) = inspection_of(pool, 5).slots
        assert (slot.state, slot.since, slot.lease) == ("closing", None, None)
        closing.set()


async def test_lease_tells_what_the_driver_knows_of_its_connection() -> None:
    """The process, and the first line of the text; and nothing if the driver has no say."""
    driver = TellingDriver()
    async with Pool(driver, max_size=1) as pool, pool.acquire():
        (info,) = pool.leases()
        assert (info.server_pid, info.statement) == (7, "select 1")
        for nothing in (None, " \n "):
            driver.statement = nothing
            assert pool.leases()[0].statement == ""
    async with Pool(CleanDriver(), max_size=1) as plain, plain.acquire():
        (info,) = plain.leases()
        assert (info.server_pid, info.statement) == (None, "")


async def test_driver_that_cannot_tell_costs_nobody_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it raises is logged, and the rest is told."""
    driver = TellingDriver()
    driver.statement = OSError("odd")
    driver.server_pid = lambda c: 1 // 0  # type: ignore[method-assign]
    async with Pool(driver, max_size=1) as pool, pool.acquire():
        (info,) = pool.leases()
        assert (info.server_pid, info.statement) == (None, "")
    assert "last_statement" in caplog.text and "server_pid" in caplog.text
