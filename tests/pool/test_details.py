"""The shell, line by line: what it does once a second, what it says, and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

import poolkit
from poolkit import (
    CoDel,
    NotLeased,
    Pool,
    PoolBusy,
    PoolClosed,
    PoolConfigError,
    PoolTimeout,
    WrongLoop,
)
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeDriver, FullDriver, gone
from tests.pool.virtual import on_asyncio, on_trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Run = Callable[[Callable[[], Awaitable[None]]], None]

in_virtual_time = pytest.mark.parametrize("run", [on_asyncio, on_trio])


@in_virtual_time
def test_upkeep_replaces_the_dead_within_a_second(run: Run) -> None:
    """Nobody has to come and find out."""

    async def main() -> None:
        driver = CleanDriver()
        async with Pool(driver, min_size=2, max_size=2) as pool:
            next(iter(driver.alive)).dead = True
            await anyio.sleep(1.1)
            stats = pool.stats()
            assert gone(stats) == {"broken": 1}
            assert (stats.idle, stats.connected) == (2, 3)

    run(main)


@in_virtual_time
def test_upkeep_closes_what_is_cold(run: Run) -> None:
    """What is due by age alone."""

    async def main() -> None:
        driver = CleanDriver()
        async with Pool(driver, min_size=0, max_size=1, max_idle_time=10.0) as pool:
            async with pool.acquire():
                pass
            await anyio.sleep(9.5)
            assert pool.stats().idle == 1
            await anyio.sleep(2.0)
            assert gone(pool.stats()) == {"unused": 1}
            assert not driver.alive

    run(main)


@in_virtual_time
def test_timeout_beside_a_hanging_connect_says_that_nothing_is_leased(run: Run) -> None:
    """There is no holder to name."""

    async def main() -> None:
        driver = FakeDriver(connect=[...])
        async with Pool(driver, min_size=0, max_size=1) as pool:
            with pytest.raises(PoolTimeout, match="nothing is leased: opening"):
                await pool.acquire(timeout=0.1)

    run(main)


@in_virtual_time
def test_close_ends_with_its_grace(run: Run) -> None:
    """What is held is ended then and there, also if an operation is under way, by a reset."""

    async def main() -> None:
        driver = CleanDriver()
        pool = await Pool(driver, max_size=2).open()
        quiet, busy = await pool.acquire(), await pool.acquire()
        real = next(conn for conn in driver.alive if conn.number == busy.number)
        real.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(busy.query)
            await wait_all_tasks_blocked()
            began = anyio.current_time()

            async def close() -> None:
                held = await pool.aclose(grace=2.5)
                assert len(held) == 2
                assert anyio.current_time() - began == pytest.approx(2.5)
                group.cancel_scope.cancel()

            group.start_soon(close)
        assert driver.calls["reset"] >= 1
        assert not driver.alive
        with pytest.raises(NotLeased, match="taken back when the pool was closed"):
            await quiet.query()

    run(main)


@in_virtual_time
def test_close_without_a_limit_waits_for_the_closes(run: Run) -> None:
    """However long they take."""

    async def main() -> None:
        driver = FakeDriver(close=[60.0])
        pool = await Pool(driver, min_size=1, close_timeout=None).open()
        began = anyio.current_time()
        await pool.aclose()
        assert anyio.current_time() - began == pytest.approx(60.0)
        assert not driver.alive

    run(main)


@in_virtual_time
def test_close_leaves_behind_what_ignores_its_cancellation(run: Run) -> None:
    """After the limits of reset, close and ping, half a second, and a second more."""

    class Deaf(FakeDriver):
        async def connect(self) -> FakeConnection:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(100.0)
            return await super().connect()

    async def main() -> None:
        driver = Deaf()
        pool = await Pool(driver, min_size=0, max_size=1).open()
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.1)
        began = anyio.current_time()
        await pool.aclose()
        assert anyio.current_time() - began == pytest.approx(2.0 + 1.0 + 1.0 + 0.5 + 1.0)
        await anyio.sleep(200.0)
        assert not driver.alive

    run(main)


async def test_end_of_one_life_leaves_the_leases_of_the_next_alone() -> None:
    """Somebody may be waiting still for the end of the life before."""
    pool = await Pool(CleanDriver(), max_size=1).open()
    before = pool._life
    assert before is not None
    await pool.aclose()
    async with pool, pool.acquire() as conn:
        pool._abandon_leases(before)
        pool._collapse(before, None)
        assert await conn.query() == "row"
        assert pool.stats().leased == 1


@in_virtual_time
def test_refusal_by_an_overload_policy_says_so(run: Run) -> None:
    """After how long, by which policy, and who holds the connections."""

    async def main() -> None:
        shedding = CoDel(0.05, 0.5)
        async with Pool(CleanDriver(), max_size=1, shedding=shedding, deadlock="off") as pool:
            async with pool.acquire():
                words = r"refused after \d.\d\d s in line by shedding=CoDel\(.* Held longest: "
                with pytest.raises(PoolBusy, match=words):
                    await pool.acquire(timeout=5.0)
            assert pool.stats().shed == 1

    run(main)


@in_virtual_time
def test_connect_that_hangs_costs_half_a_second(run: Run) -> None:
    """The alarm rings, and another is begun in a task of its own, though none is running."""

    async def main() -> None:
        driver = FakeDriver(connect=[..., None])
        async with Pool(driver, min_size=0, max_size=2) as pool:
            begin = anyio.current_time()
            async with pool.acquire(timeout=5.0):
                assert anyio.current_time() - begin == pytest.approx(0.5)
            assert pool.stats().connecting == 1

    run(main)


async def test_resize_of_an_open_pool_serves_those_who_wait() -> None:
    """At once; sizes that are not named stay."""
    async with Pool(CleanDriver(), min_size=1, max_size=1) as pool:
        async with anyio.create_task_group() as group, pool.acquire():
            served = anyio.Event()

            async def wait() -> None:
                async with pool.acquire():
                    served.set()

            group.start_soon(wait)
            await wait_all_tasks_blocked()
            assert pool.stats().waiting == 1
            pool.resize(max_overflow=1)
            with anyio.fail_after(5):
                await served.wait()
            assert (pool.stats().max_size, pool.stats().capacity) == (1, 2)


async def test_open_pool_is_reshaped_in_its_own_thread_only() -> None:
    """Another would do it in the middle of something."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        with pytest.raises(WrongLoop):
            await anyio.to_thread.run_sync(lambda: pool.resize(max_size=2))
        with pytest.raises(WrongLoop):
            await anyio.to_thread.run_sync(pool.renew)
        assert (pool.stats().max_size, pool.stats().idle) == (1, 1)


async def test_lease_kept_by_nobody_who_lives_says_so() -> None:
    """The task that acquired it has ended; whoever it gave it to holds it."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        kept: list[Any] = []

        async def acquire() -> None:
            kept.append(await pool.acquire())

        async with anyio.create_task_group() as group:
            group.start_soon(acquire)
        await wait_all_tasks_blocked()
        gc.collect()
        (lease,) = pool.leases()
        assert lease.task == "a task that has ended"
        with pytest.raises(PoolTimeout, match="may be a leak: acquire with `async with`"):
            await pool.acquire(timeout=0)
        pool.release(kept.pop())
        async with pool.acquire():
            with pytest.raises(PoolTimeout) as timed_out:
                await pool.acquire(timeout=0)
        assert "leak" not in str(timed_out.value)


async def test_transaction_that_fails_to_begin_leaves_the_lease_as_it_was() -> None:
    """The connection is its holder's still, and not spoiled."""

    class Refusing(FullDriver):
        def transaction(self, c: Any, **settings: Any) -> Any:
            """Return a context manager that does not open."""
            return Closed()

    class Closed:
        async def __aenter__(self) -> None:
            raise Boom("BEGIN")

        async def __aexit__(self, *_: object) -> None:
            """Never come here."""

    async with Pool(Refusing(), max_size=1) as pool, pool.acquire() as conn:
        with pytest.raises(Boom, match="BEGIN"):
            async with poolkit.transaction(conn):
                pass
        assert await conn.query() == "row"


async def test_commit_cancelled_after_the_release_does_not_disturb_the_next_lease() -> None:
    """What is noted then is about a lease that has ended."""
    driver = FullDriver(commit=[...])
    async with Pool(driver, max_size=1) as pool:
        conn = await pool.acquire()

        async def commit() -> None:
            async with poolkit.transaction(conn):
                pass

        async with anyio.create_task_group() as group:
            group.start_soon(commit)
            await wait_all_tasks_blocked()
            slot = conn._poolkit_slot  # type: ignore[attr-defined]
            pool.release(conn)
            group.cancel_scope.cancel()
        assert not slot.cancelled
        async with pool.acquire(timeout=5) as another:
            assert await another.query() == "row"


async def test_open_that_was_served_and_closed_before_it_noticed_is_an_error() -> None:
    """The pool it was told of is no more."""
    driver = FakeDriver(connect=[...])
    pool = Pool(driver, min_size=1, max_size=1)
    told: list[str] = []

    async def open_it() -> None:
        with pytest.raises(PoolClosed) as caught:
            await pool.open()
        told.append(str(caught.value))

    async with anyio.create_task_group() as group:
        group.start_soon(open_it)
        await wait_all_tasks_blocked()
        (slot,) = pool._state.connecting
        pool._state.connect_succeeded(slot, FakeConnection(driver, 7), pool._now())
        pool._carry_out()
        assert pool._life is not None
        pool._collapse(pool._life, None)
    assert told == ["pool 'fake' was closed while waiting for a connection"]


@in_virtual_time
def test_overaged_connection_that_was_passed_over_is_closed_at_once(run: Run) -> None:
    """The acquire that passed it over was served without waiting; nothing else need happen."""

    async def main() -> None:
        driver = CleanDriver()
        options: dict[str, Any] = {"max_lifetime": None, "ping_after": None}
        async with Pool(driver, min_size=0, max_size=2, **options) as pool:
            old, young = await pool.acquire(), await pool.acquire()
            pool.release(young)
            pool.release(old)
            (slot,) = (slot for slot in pool._state.idle if slot.connection.number == 1)
            slot.retire_at = slot.expires_at = slot.good_until = anyio.current_time()
            async with pool.acquire() as conn:
                assert conn.number == 2
                await wait_all_tasks_blocked()
                assert [c.number for c in driver.alive] == [2]

    run(main)


async def test_lease_with_a_hook_has_its_holder_and_its_time() -> None:
    """Also when a connection is idle and nothing is waited for."""
    greeted: list[str] = []

    async def greet(_: object) -> None:
        greeted.append("hello")

    async with Pool(CleanDriver(), min_size=1, max_size=1, on_acquire=greet) as pool:
        async with pool.acquire():
            (lease,) = pool.leases()
            assert "in test_lease_with_a_hook_has_its_holder_and_its_time" in lease.place
            assert 0.0 <= lease.seconds < 60.0
    assert greeted == ["hello"]


async def test_renewal_is_at_once_unless_it_is_told_how_long() -> None:
    """And not for ever."""
    async with Pool(CleanDriver(), min_size=2, max_size=2) as pool:
        with pytest.raises(PoolConfigError, match="over"):
            pool.renew(over=None)  # type: ignore[arg-type]
        pool.renew()
        assert (pool.stats().idle, gone(pool.stats())) == (0, {"stale": 2})


async def test_pool_shows_whether_it_is_open() -> None:
    """Beside its name and its sizes."""
    pool = Pool(CleanDriver(), max_size=1, name="shop")
    assert repr(pool).startswith("<Pool 'shop' closed: 0 leased")
    async with pool:
        assert repr(pool).startswith("<Pool 'shop': 0 leased")


async def test_block_left_in_another_thread_leaves_the_inbox_alone() -> None:
    """What is in it belongs to the thread of the loop."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        lease = pool.acquire()
        await lease.__aenter__()
        read_in: list[int] = []

        def leave() -> None:
            with pytest.raises(StopIteration):
                lease.__aexit__(None, None, None).send(None)

        pool._inbox.append(lambda: read_in.append(threading.get_ident()))
        await anyio.to_thread.run_sync(leave)
        await wait_all_tasks_blocked()
        assert read_in == [threading.get_ident()]


def test_block_left_after_the_end_of_its_loop_was_released(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There is nothing to complain of: its connection is ended."""
    driver = CleanDriver()
    kept: list[Any] = []

    async def main() -> None:
        pool = await Pool(driver, max_size=1).open()
        lease = pool.acquire()
        kept.append((lease, await lease.__aenter__()))

    asyncio.run(main())
    lease, _ = kept[0]
    caplog.clear()
    with pytest.raises(StopIteration):
        lease.__aexit__(None, None, None).send(None)
    assert not driver.alive
    assert "never released" not in caplog.text


async def test_note_about_an_ended_lease_leaves_the_next_one_alone() -> None:
    """The connection has another holder by now."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        conn: Any = await pool.acquire()
        slot, turn = conn._poolkit_slot, conn._poolkit_release_count
        pool.release(conn)
        async with pool.acquire() as another:
            pool._reclaim(slot, turn)
            assert await another.query() == "row"
            assert pool.stats().leased == 1


async def test_driver_that_raises_when_it_is_asked_at_an_acquire_loses_a_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who cannot say that it is alive is not relied on; the caller has another."""

    class Rude(CleanDriver):
        def is_dead(self, c: FakeConnection, /) -> bool:
            """Raise about the first, once the pool is open."""
            if c.number == 1 and is_open:
                raise Boom("is_dead")
            return super().is_dead(c)

    is_open = False
    async with Pool(Rude(), min_size=1, max_size=1) as pool:
        is_open = True
        async with pool.acquire(timeout=5) as conn:
            assert conn.number == 2
            assert gone(pool.stats()) == {"broken": 1}
    assert "Rude.is_dead raised" in caplog.text


def test_waiter_of_a_closed_loop_is_left_where_it_is() -> None:
    """Nobody can wake it, and whoever opens the pool anew need not know."""
    driver = CleanDriver()
    pool = Pool(driver, max_size=1)
    kept: list[Any] = []

    async def hold_and_wait() -> None:
        await pool.open()
        kept.append(await pool.acquire())
        kept.append(asyncio.ensure_future(pool.acquire()._acquire()))
        for _ in range(3):
            await asyncio.sleep(0)
        assert pool.stats().waiting == 1

    loop = asyncio.new_event_loop()
    loop.run_until_complete(hold_and_wait())
    kept[1]._log_destroy_pending = False
    loop.close()

    async def open_again() -> None:
        async with pool:
            with pytest.raises(NotLeased):
                pool.release(kept[0])
            async with pool.acquire() as conn:
                assert await conn.query() == "row"

    asyncio.run(open_again())
    assert pool.stats().closed == 1


async def test_dead_connection_that_was_passed_over_is_ended_at_once() -> None:
    """Nothing else need happen."""
    driver = CleanDriver()
    async with Pool(driver, min_size=0, max_size=2) as pool:
        first, second = await pool.acquire(), await pool.acquire()
        pool.release(first)
        pool.release(second)
        (real,) = (conn for conn in driver.alive if conn.number == 2)
        real.dead = True
        async with pool.acquire() as conn:
            assert conn.number == 1
            assert real not in driver.alive
