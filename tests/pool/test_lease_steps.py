"""A lease taken step by step, as integrations do; and what a driver may say of connections."""

from __future__ import annotations

import gc
import logging
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from poolkit import NotLeased, Pool, PoolError, PoolTimeout
from poolkit._core.state import PoolState
from poolkit._shell.callsite import caller
from poolkit._shell.lease import Returned
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeDriver, FullDriver, gone, own


async def test_idle_connection_is_taken_without_waiting() -> None:
    """And the lease ends when it is told to, once."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        here = caller(1)
        lease = pool.acquire().at(here)
        conn: Any = lease.take_nowait()
        assert pool.leases()[0].place.endswith("test_idle_connection_is_taken_without_waiting")
        with pytest.raises(PoolError, match="used already"):
            lease.take_nowait()
        lease.end(Returned(here, ", by its library"))
        lease.end(Returned(here, ", once more"))
        assert pool.stats().idle == 1
        with pytest.raises(NotLeased, match=r"released at .* in test_idle.*, by its library"):
            await conn.query()


async def test_connection_is_waited_for_where_none_is_idle() -> None:
    """The hook is left to whoever takes it; it runs in the lease."""
    greeted: list[FakeConnection] = []

    async def hook(conn: FakeConnection) -> None:
        greeted.append(own(conn))

    async with Pool(CleanDriver(), max_size=1, on_acquire=hook) as pool:
        lease = pool.acquire()
        assert lease.take_nowait() is None
        conn = await lease.wait()
        assert not greeted
        await lease.run_on_acquire(conn)
        assert greeted == [own(conn)]
        lease.end(caller(1))
        assert pool.stats().idle == 1


async def test_connection_that_came_back_before_the_wait_is_handed_out() -> None:
    """Also to a lease that has no time to wait: it is only to be pinged."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        held = await pool.acquire()
        lease = pool.acquire(timeout=0)
        assert lease.take_nowait() is None
        pool.release(held)
        conn = await lease.wait()
        assert await conn.query() == "row"
        assert (pool.stats().leased, pool.stats().timed_out) == (1, 0)
        lease.end(caller(1))


async def test_without_a_hook_there_is_none_to_run() -> None:
    """It may be asked for all the same."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        lease = pool.acquire()
        conn = lease.take_nowait()
        assert conn is not None
        await lease.run_on_acquire(conn)
        lease.end(caller(1))


async def test_hook_that_fails_ends_the_lease() -> None:
    """Which is counted as failed."""

    async def hook(_: FakeConnection) -> None:
        raise Boom

    async with Pool(CleanDriver(), max_size=1, on_acquire=hook) as pool:
        lease = pool.acquire()
        assert lease.take_nowait() is None
        conn = await lease.wait()
        with pytest.raises(Boom):
            await lease.run_on_acquire(conn)
        assert (pool.stats().leased, pool.stats().failed) == (0, 1)


async def test_error_that_ends_a_lease_is_learned_from() -> None:
    """As if it had left the block."""
    driver = FullDriver()
    async with Pool(driver, max_size=1) as pool:
        lease = pool.acquire()
        conn: Any = lease.take_nowait()
        await conn.query()
        lease.end(caller(1), KeyboardInterrupt())
        await wait_all_tasks_blocked()
        assert driver.log.count("reset") == 1


# -- what a driver may say -----------------------------------------------------------------------


class Counting(CleanDriver):
    """Has a connection replaced after so many leases in which something was done."""

    def __init__(self, most: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.left = most
        self.error = error

    def is_used_up(self, _: FakeConnection) -> bool:
        """Count."""
        self.left -= 1
        if self.error is not None:
            raise self.error
        return self.left <= 0


async def test_connection_that_has_done_enough_is_replaced() -> None:
    """When it comes back; leases that did nothing do not count."""
    async with Pool(Counting(2), max_size=1) as pool:
        for done in (False, True, False, True):
            async with pool.acquire() as conn:
                if done:
                    await conn.query()
        await wait_all_tasks_blocked()
        assert gone(pool.stats()) == {"used_up": 1}


async def test_driver_that_cannot_say_whether_it_has_done_enough_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And the connection stays."""
    async with Pool(Counting(1, Boom("unsure")), max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.query()
        assert pool.stats().idle == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "Counting.is_used_up raised" in caplog.text


class Freeing(FullDriver):
    """Has lost connections free their slots at once."""

    ends_lost_leases = True


@pytest.mark.parametrize("kind", [Freeing, FullDriver])
async def test_lost_connection_frees_its_slot_at_once_if_the_driver_says_so(
    kind: type[FullDriver],
) -> None:
    """Else when its holder gives it back."""
    driver = kind()
    async with Pool(driver, max_size=1, deadlock="off") as pool:
        conn = await pool.acquire()
        await conn.query()
        driver.watched[own(conn)]()
        await wait_all_tasks_blocked()
        if kind is Freeing:
            async with pool.acquire(timeout=5.0) as other:
                await other.query()
            with pytest.raises(NotLeased):
                await conn.query()
        else:
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
            pool.release(conn)
        with anyio.fail_after(5):
            async with pool.acquire():
                pass


async def test_lost_connection_with_which_nothing_was_done_waits_for_its_holder() -> None:
    """It may be on its way to the holder, who is to find out."""
    driver = Freeing()
    async with Pool(driver, max_size=1) as pool:
        conn = await pool.acquire()
        driver.watched[own(conn)]()
        await wait_all_tasks_blocked()
        assert pool.stats().leased == 1
        pool.release(conn)
        assert gone(pool.stats()) == {"broken": 1}


async def test_close_of_a_pool_leaves_the_reason_of_a_lost_connection() -> None:
    """It was lost before."""
    driver = FullDriver()
    pool = await Pool(driver, max_size=1).open()
    conn = await pool.acquire()
    await conn.query()
    slot = conn._poolkit_slot  # type: ignore[attr-defined]
    driver.watched[slot.connection]()
    await wait_all_tasks_blocked()
    await pool.aclose(grace=0)
    assert slot.reason == "broken"


async def test_note_that_finds_no_stack_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is handled when there is some."""
    driver = FakeDriver()
    async with Pool(driver, max_size=1) as pool:
        seen: list[str] = []
        tell = pool._tell

        def fail(*_: Any) -> None:
            monkeypatch.setattr(pool, "_tell", tell)
            raise RecursionError("maximum recursion depth exceeded")

        pool._inbox.append(lambda: seen.append("noted"))
        monkeypatch.setattr(pool, "_tell", fail)
        with pytest.raises(RecursionError):
            pool._drain()
        pool._drain()
        assert seen == ["noted"]


@pytest.mark.parametrize("how", ["dropped", "lost"])
@pytest.mark.filterwarnings("ignore:.*was never released:ResourceWarning")
async def test_end_of_a_lease_that_finds_no_stack_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whoever would give it back is gone, or its connection is."""
    driver = Freeing()
    async with Pool(driver, max_size=1) as pool:
        conn = await pool.acquire()
        await conn.query()
        real, release_broken = own(conn), PoolState.release_broken

        def fail(*_: Any) -> None:
            monkeypatch.setattr(PoolState, "release_broken", release_broken)
            raise RecursionError("maximum recursion depth exceeded")

        monkeypatch.setattr(pool._runtime, "call_soon", lambda _: True)
        monkeypatch.setattr(PoolState, "release_broken", fail)
        if how == "dropped":
            del conn
            gc.collect()
        else:
            driver.watched[real]()
        with pytest.raises(RecursionError):
            pool._drain()
        assert pool.stats().leased == 1
        pool._drain()
        assert pool.stats().leased == 0
        assert gone(pool.stats())["broken"] == 1
