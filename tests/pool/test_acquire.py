"""Acquire and release: the queue, deadlines, and what the errors say."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from poolkit import (
    ConnectFailed,
    NotLeased,
    Pool,
    PoolBusy,
    PoolClosed,
    PoolConfigError,
    PoolOptions,
    PoolTimeout,
    PoolUnavailable,
    Verdict,
    WrongLoop,
)
from poolkit.testing import VirtualTimeLoop
from tests.conftest import BACKENDS
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeDriver, FullDriver
from tests.pool.virtual import on_asyncio, on_trio


async def test_acquire_in_a_block_gives_a_connection_and_takes_it_back() -> None:
    """The connection is leased inside the block and idle after it."""
    async with Pool(FakeDriver()) as pool:
        async with pool.acquire() as conn:
            assert isinstance(conn, FakeConnection)
            assert pool.stats().leased == 1
        assert pool.stats().leased == 0
        assert pool.stats().idle == 1


async def test_acquire_without_a_name_keeps_the_connection_for_the_block() -> None:
    """A block without `as` is not taken for a dropped handle."""
    async with Pool(FakeDriver()) as pool, pool.acquire():
        gc.collect()
        await checkpoint()
        assert pool.stats().leased == 1


async def test_awaited_acquire_is_released_with_and_without_await() -> None:
    """Both spellings of release are right."""
    async with Pool(CleanDriver()) as pool:
        for _ in range(2):
            conn = await pool.acquire()
            assert await conn.query() == "row"
            await pool.release(conn)
            conn = await pool.acquire()
            pool.release(conn)
        assert pool.stats().idle == 1


async def test_acquire_never_awaited_owns_nothing() -> None:
    """Only awaiting or entering takes a connection."""
    async with Pool(FakeDriver(), max_size=1) as pool:
        pool.acquire()
        assert pool.stats().leased == 0


async def test_trivially_clean_release_starts_no_task_and_no_job() -> None:
    """Neither an untouched nor a provably clean connection costs a task, a call or a turn."""
    driver = CleanDriver()
    async with Pool(driver) as pool:
        await wait_all_tasks_blocked()
        tasks, calls = anyio.get_current_task(), dict(driver.calls)
        count = _count_tasks()
        async with pool.acquire() as conn:
            pass
        async with pool.acquire() as conn:
            assert conn.peek() == 1
        assert pool.stats().idle == 1, "back before anything else could run"
        assert _count_tasks() == count
        assert dict(driver.calls) == calls
        assert tasks == anyio.get_current_task()


def _count_tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        import trio

        return int(trio.lowlevel.current_statistics().tasks_living)


async def test_used_connection_is_reset_before_its_next_user() -> None:
    """A driver that cannot tell clean from dirty is asked to reset, in a task of the pool."""
    driver = FakeDriver()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.query()
        assert pool.stats().recycling == 1
        async with pool.acquire() as conn:
            assert not conn.dirty
            assert driver.calls["reset"] == 1


async def test_waiters_are_served_in_the_order_they_came() -> None:
    """First come, first served, by direct hand-off."""
    order: list[int] = []

    async def user(number: int) -> None:
        async with pool.acquire():
            order.append(number)
            await checkpoint()

    async with Pool(CleanDriver(), max_size=1) as pool:
        conn = await pool.acquire()
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(user, number)
                await wait_all_tasks_blocked()
            assert pool.stats().waiting == 10
            pool.release(conn)
    assert order == list(range(10))


async def test_releaser_cannot_overtake_the_queue() -> None:
    """Who releases and acquires again goes to the end of the queue."""
    order: list[str] = []
    async with Pool(CleanDriver(), max_size=1) as pool:
        conn = await pool.acquire()

        async def waiter() -> None:
            async with pool.acquire():
                order.append("waiter")

        async with anyio.create_task_group() as group:
            group.start_soon(waiter)
            await wait_all_tasks_blocked()
            pool.release(conn)
            async with pool.acquire():
                order.append("releaser")
    assert order == ["waiter", "releaser"]


async def test_timeout_says_what_the_pool_was_doing() -> None:
    """The message has the numbers, who holds what, where it was acquired, and the remedy."""
    driver = FakeDriver()
    async with Pool(driver, max_size=1, name="shop", deadlock="off") as pool, pool.acquire():
        with pytest.raises(PoolTimeout) as caught:
            await pool.acquire(timeout=0.01)
        text = str(caught.value)
        for part in ("'shop'", "0.01 s", "1 leased", "capacity 1", "test_acquire.py:", "max_size"):
            assert part in text
        assert isinstance(caught.value, PoolUnavailable)
        assert isinstance(caught.value, TimeoutError)
        assert pool.stats().timed_out == 1
        assert pool.stats().waiting == 0


#: A deadline that has passed, by much or by little.
PASSED = [0, -0.0, -1, -0.001, float("-inf")]


@pytest.mark.parametrize("timeout", PASSED)
async def test_timeout_of_zero_or_less_waits_for_no_other_user(timeout: float) -> None:
    """It takes what is idle or fails at once."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        async with pool.acquire(timeout=timeout):
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=timeout)
            assert pool.stats().timed_out == 1


#: Two ways to wait for no other user, and what refuses then.
HASTY: dict[str, tuple[PoolOptions, type[PoolUnavailable]]] = {
    "timeout": ({"acquire_timeout": 0}, PoolTimeout),
    "max_waiting": ({"max_waiting": 0}, PoolBusy),
}


@pytest.mark.parametrize("how", HASTY)
async def test_who_waits_for_no_other_user_gets_what_is_only_to_be_pinged(how: str) -> None:
    """An idle connection that was quiet for long is good, and pinged for whoever comes."""
    options: PoolOptions = {**HASTY[how][0], "ping_after": 0.0}
    driver = CleanDriver()
    async with Pool(driver, **options) as pool:
        for times in range(1, 4):
            async with pool.acquire() as conn:
                assert await conn.query() == "row"
            assert driver.calls["ping"] == times
        assert pool.stats().waited == 3


@pytest.mark.parametrize("how", HASTY)
async def test_who_waits_for_no_other_user_gets_what_is_only_being_reset(how: str) -> None:
    """Nobody holds it, and nobody is ahead."""
    options: PoolOptions = {**HASTY[how][0], "max_size": 1}
    driver = FakeDriver()
    async with Pool(driver, **options) as pool:
        for _ in range(3):
            async with pool.acquire() as conn:
                await conn.query()
    assert driver.calls["reset"] == 3


@pytest.mark.parametrize("how", HASTY)
async def test_who_waits_for_no_other_user_waits_behind_nobody(how: str) -> None:
    """The connection that is being reset is for the one ahead."""
    refusal = HASTY[how][1]
    options: PoolOptions = {**HASTY[how][0], "max_size": 1}
    gate = anyio.Event()
    async with Pool(FakeDriver(reset=[gate]), **options) as pool:
        async with pool.acquire() as conn:
            await conn.query()
        async with anyio.create_task_group() as group:
            group.start_soon(_acquire_and_release, pool)
            await wait_all_tasks_blocked()
            with pytest.raises(refusal):
                await pool.acquire()
            gate.set()
        assert pool.stats().waited == 1


@pytest.mark.parametrize("how", HASTY)
async def test_who_waits_for_no_other_user_makes_the_pool_grow(how: str) -> None:
    """It is refused at once, and what it lacks is opened for the next one: up to `max_size`."""
    refusal = HASTY[how][1]
    options: PoolOptions = {**HASTY[how][0], "max_size": 3, "max_overflow": 2}
    driver = CleanDriver()
    async with Pool(driver, **options) as pool:
        held = [await pool.acquire()]
        for _ in range(2):
            with pytest.raises(refusal):
                await pool.acquire()
            await wait_all_tasks_blocked()
            held.append(await pool.acquire())
        for _ in range(3):
            with pytest.raises(refusal):
                await pool.acquire()
            await wait_all_tasks_blocked()
        assert driver.calls["connect"] == 3, "a surplus one would be closed when it comes"
        for conn in held:
            pool.release(conn)


async def test_timeout_of_zero_opens_the_first_connection_for_the_next_one() -> None:
    """A pool that was empty is not empty for ever."""
    async with Pool(CleanDriver(), min_size=0) as pool:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0)
        await wait_all_tasks_blocked()
        async with pool.acquire(timeout=0) as conn:
            assert await conn.query() == "row"


async def test_timeout_of_zero_gets_another_connection_in_place_of_a_dead_one() -> None:
    """Its ping fails, and a new one is there in a moment."""
    driver = CleanDriver(ping=[Boom("dead")])
    async with Pool(driver, max_size=1, ping_after=0.0) as pool:
        async with pool.acquire(timeout=0) as conn:
            assert conn.number == 2


@pytest.mark.parametrize("timeout", PASSED)
def test_timeout_of_zero_waits_for_half_a_second_at_most(timeout: float) -> None:
    """For a ping that hangs, whatever limit pings have."""

    async def main() -> float:
        driver = CleanDriver(ping=[anyio.Event()])
        async with Pool(driver, ping_after=0.0, ping_timeout=30.0) as pool:
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=timeout)
            return anyio.current_time()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(main()) == pytest.approx(0.5, abs=0.01)


def test_pool_whose_acquires_do_not_wait_waits_for_its_connections_to_open() -> None:
    """As long as one may take: there is no other user."""

    async def main() -> float:
        async with Pool(CleanDriver(connect=[3.0]), acquire_timeout=0, max_size=1) as pool:
            async with pool.acquire():
                return anyio.current_time()

    async def hang() -> float:
        with pytest.raises(PoolTimeout):
            await Pool(CleanDriver(connect=[60.0]), acquire_timeout=0, max_size=1).open()
        return anyio.current_time()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(main()) == pytest.approx(3.0, abs=0.01)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(hang()) == pytest.approx(5.0, abs=0.01)


async def test_acquire_timeout_option_is_the_default_deadline() -> None:
    """Without a timeout of its own an acquire waits as long as the pool says."""
    options: PoolOptions = {"max_size": 1, "acquire_timeout": 0.02, "deadlock": "off"}
    async with Pool(FakeDriver(), **options) as pool, pool.acquire():
        with pytest.raises(PoolTimeout, match=r"0\.02 s"):
            await pool.acquire()


async def test_no_timeout_waits_without_limit() -> None:
    """None means no limit, whatever the pool's default."""
    async with Pool(CleanDriver(), max_size=1, acquire_timeout=0.5) as pool:
        conn = await pool.acquire()
        got = anyio.Event()

        async def waiter() -> None:
            async with pool.acquire(timeout=None):
                got.set()

        async with anyio.create_task_group() as group:
            group.start_soon(waiter)
            with pytest.raises(PoolTimeout):
                await pool.acquire()
            assert not got.is_set()
            pool.release(conn)
    assert got.is_set()


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), "1", True])
async def test_impossible_timeout_is_refused_at_once(timeout: float) -> None:
    """Bad input fails where it is given, with the value."""
    async with Pool(FakeDriver()) as pool:
        with pytest.raises(PoolConfigError, match="timeout="):
            pool.acquire(timeout=timeout)


async def test_full_queue_refuses_at_once() -> None:
    """`max_waiting` bounds the queue."""
    async with Pool(CleanDriver(), max_size=1, max_waiting=1) as pool, pool.acquire():
        async with anyio.create_task_group() as group:
            group.start_soon(_acquire_and_release, pool)
            await wait_all_tasks_blocked()
            with pytest.raises(PoolBusy, match="max_waiting"):
                await pool.acquire()
            assert pool.stats().busy == 1
            group.cancel_scope.cancel()
        assert pool.stats().cancelled == 1


async def _acquire_and_release(pool: Pool) -> None:
    async with pool.acquire():
        pass


async def test_cancelled_waiter_leaves_the_queue() -> None:
    """The next in line is served as if the cancelled one had never been there."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        conn = await pool.acquire()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(_acquire_and_release, pool)
                await wait_all_tasks_blocked()
                scope.cancel()
        assert pool.stats().waiting == 0
        pool.release(conn)
        assert pool.stats().idle == 1


async def test_cancel_right_after_hand_off_passes_the_connection_on() -> None:
    """A waiter that was served and cancelled in the same turn loses nothing."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        conn = await pool.acquire()
        served: list[str] = []

        async def waiter(name: str) -> None:
            async with pool.acquire():
                served.append(name)

        async with anyio.create_task_group() as outer:
            async with anyio.create_task_group() as inner:
                inner.start_soon(waiter, "first")
                await wait_all_tasks_blocked()
                outer.start_soon(waiter, "second")
                await wait_all_tasks_blocked()
                pool.release(conn)
                inner.cancel_scope.cancel()
        assert "second" in served
        assert pool.stats().leased == 0
        assert pool.stats().idle == 1
        assert pool.stats().connected == 1, "the same connection was passed on"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_task_cancel_right_after_hand_off_passes_the_connection_on() -> None:
    """The same with asyncio's own cancellation, which may hit a waiter already served."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        conn = await pool.acquire()
        first = asyncio.create_task(_acquire_and_release(pool))
        second = asyncio.create_task(_acquire_and_release(pool))
        await wait_all_tasks_blocked()
        pool.release(conn)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second
        stats = pool.stats()
        assert (stats.cancelled, stats.waited, stats.idle, stats.leased) == (1, 1, 1, 0)
        assert stats.connected == 1, "the same connection was passed on"


async def test_cancelled_caller_does_not_abort_a_connect() -> None:
    """The connection goes idle, for the next."""
    gate = anyio.Event()
    driver = FakeDriver(connect=[gate])
    async with Pool(driver, min_size=0, max_size=1) as pool:
        with anyio.move_on_after(0.01):
            await pool.acquire()
        assert pool.stats().connecting == 1
        gate.set()
        await wait_all_tasks_blocked()
        assert pool.stats().idle == 1
        assert driver.calls["connect"] == 1


async def test_returned_connection_beats_the_connect_under_way() -> None:
    """Whichever comes first goes to the head of the queue."""
    gate = anyio.Event()
    driver = CleanDriver(connect=[None, gate])
    async with Pool(driver, max_size=2) as pool:
        conn = await pool.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(_acquire_and_release, pool)
            await wait_all_tasks_blocked()
            assert pool.stats().connecting == 1
            pool.release(conn)
        assert pool.stats().connecting == 1
        gate.set()


async def test_dead_idle_connection_is_replaced_without_the_caller_noticing() -> None:
    """Proof of death is enough; nobody is handed a dead connection."""
    driver = CleanDriver()
    async with Pool(driver, max_size=2, min_size=2) as pool:
        async with pool.acquire(), pool.acquire():
            pass
        for conn in list(driver.alive):
            conn.dead = True
        async with pool.acquire() as conn:
            assert await conn.query() == "row"
            assert conn.number == 3
        assert pool.stats().retired["broken"] == 2


async def test_release_twice_is_an_error_and_changes_nothing() -> None:
    """The message names where it was released first."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        conn = await pool.acquire()
        pool.release(conn)
        with pytest.raises(NotLeased, match=r"released at .*test_acquire.py:\d+"):
            pool.release(conn)
        assert pool.stats().idle == 1


async def test_stale_release_leaves_the_new_holder_alone() -> None:
    """A second release by a former holder does not hand on the present holder's connection."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        stale = await pool.acquire()
        pool.release(stale)
        async with pool.acquire() as conn:
            assert conn.number == 1
            with pytest.raises(NotLeased):
                pool.release(stale)
            assert pool.stats().leased == 1
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
            assert await conn.query() == "row"


async def test_release_to_another_pool_names_the_right_one() -> None:
    """Nothing changes in either pool."""
    async with (
        Pool(CleanDriver(), name="one") as one,
        Pool(CleanDriver(), name="two") as two,
        one.acquire() as conn,
    ):
        with pytest.raises(NotLeased, match="'one'"):
            two.release(conn)
        assert one.stats().leased == 1
        assert two.stats().leased == 0


async def test_release_of_something_else_is_refused() -> None:
    """Only what acquire gave can be released."""
    driver = FakeDriver()
    async with Pool(driver) as pool:
        with pytest.raises(NotLeased, match="FakeConnection"):
            pool.release(next(iter(driver.alive)))


async def test_release_inside_the_block_is_respected_at_its_end() -> None:
    """Releasing early is a right way to hold a connection for a shorter time."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        async with pool.acquire() as conn:
            pool.release(conn)
            async with pool.acquire() as other:
                assert await other.query() == "row"
        assert pool.stats().idle == 1


async def test_error_in_the_block_propagates_and_the_connection_comes_back() -> None:
    """The block's error is not touched."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        with pytest.raises(Boom):
            async with pool.acquire() as conn:
                await conn.query()
                raise Boom
        assert pool.stats().idle == 1


async def test_cancelled_block_has_its_connection_reset() -> None:
    """A clean-looking connection is not trusted after a cancellation."""
    driver = CleanDriver()
    async with Pool(driver, max_size=1) as pool:
        with anyio.CancelScope() as scope:
            async with pool.acquire() as conn:
                await conn.query()
                scope.cancel()
                await checkpoint()
        await wait_all_tasks_blocked()
        assert driver.calls["reset"] == 1
        assert pool.stats().idle == 1


@pytest.mark.parametrize(
    ("verdict", "dead", "pinged"),
    [
        (Verdict.OK, 0, 0),
        (Verdict.SUSPECT, 1, 0),
        (Verdict.DEAD, 1, 0),
        (Verdict.SERVER_GONE, 1, 1),
        (Verdict.STALE, 0, 0),
    ],
)
async def test_error_is_classified_by_the_driver(verdict: Verdict, dead: int, pinged: int) -> None:
    """What an error says about this connection and the others is acted upon."""
    driver = FullDriver()
    driver.verdicts[Boom] = verdict
    async with Pool(driver, min_size=2, max_size=2) as pool:
        with pytest.raises(Boom):
            async with pool.acquire() as conn:
                await conn.query()
                raise Boom
        await wait_all_tasks_blocked()
        retired = pool.stats().retired
        assert retired.get("broken", 0) == dead
        assert retired.get("stale", 0) == (2 if verdict is Verdict.STALE else 0)
        assert driver.calls["ping"] == pinged


async def test_failed_connect_tells_the_waiter_why() -> None:
    """The driver's error is the cause."""
    async with Pool(FakeDriver(connect=[Boom("no route")]), min_size=0) as pool:
        with pytest.raises(ConnectFailed, match="no route") as caught:
            await pool.acquire()
        assert isinstance(caught.value.__cause__, Boom)
        async with pool.acquire() as conn:
            assert await conn.query() == "row"


async def test_fatal_connect_error_fails_every_waiter_at_once() -> None:
    """A wrong password will not become right by waiting."""
    gate = anyio.Event()
    driver = FullDriver(connect=[(gate, Boom("wrong password"))])
    driver.verdicts[Boom] = Verdict.FATAL
    failures: list[ConnectFailed] = []

    async def user() -> None:
        with pytest.raises(ConnectFailed) as caught:
            await pool.acquire()
        failures.append(caught.value)

    async with Pool(driver, min_size=0, max_size=1) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(user)
            await wait_all_tasks_blocked()
            gate.set()
        assert len(failures) == 5


@pytest.mark.parametrize("run", [on_asyncio, on_trio])
def test_transient_connect_error_becomes_the_cause_of_the_timeout(run: Any) -> None:
    """Waiters wait until their own deadline; then they learn what kept them."""
    driver = FullDriver(connect=[Boom("starting up")] * 50)
    driver.verdicts[Boom] = Verdict.TRANSIENT

    async def main() -> None:
        async with Pool(driver, min_size=0, backoff_min=0.5, backoff_max=0.5) as pool:
            with pytest.raises(PoolTimeout, match="starting up") as caught:
                await pool.acquire(timeout=5.0)
            assert isinstance(caught.value.__cause__, Boom)
            assert 10 <= driver.calls["connect"] <= 20  # half of each pause is jitter

    run(main)


async def test_acquire_on_a_pool_that_is_not_open_says_what_to_do() -> None:
    """Before opening and after closing alike."""
    pool = Pool(FakeDriver())
    with pytest.raises(PoolClosed, match="async with pool"):
        await pool.acquire()
    async with pool:
        pass
    with pytest.raises(PoolClosed, match="async with pool"):
        await pool.acquire()
    assert pool.stats().closed == 2


async def test_lease_cannot_be_entered_twice_at_once() -> None:
    """One acquire() is one lease."""
    async with Pool(FakeDriver()) as pool:
        lease = pool.acquire()
        async with lease:
            with pytest.raises(Exception, match="call acquire"):
                await lease.__aenter__()


async def test_leases_tells_who_holds_what() -> None:
    """By task, age and place; the longest first."""
    async with Pool(FakeDriver(), max_size=2) as pool, pool.acquire(), pool.acquire():
        first, second = pool.leases()
        assert first.seconds >= second.seconds >= 0
        assert "test_leases_tells_who_holds_what" in first.place
        assert "test_acquire.py" in first.place


async def test_dropped_handle_is_reclaimed_by_terminating_its_connection() -> None:
    """Never reused, and reported with the place that acquired it."""
    driver = FakeDriver()
    async with Pool(driver, max_size=1) as pool:
        with pytest.warns(ResourceWarning, match=r"never released; acquired at .*test_acquire"):
            await _drop(pool)
        assert driver.calls["terminate"] == 1
        async with pool.acquire(timeout=1) as conn:
            assert conn.number == 2


async def _drop(pool: Pool) -> None:
    await pool.acquire()
    gc.collect()
    await wait_all_tasks_blocked()


async def test_storm_of_cancellations_loses_nothing() -> None:
    """After things go quiet the counts are what they should be."""
    driver = FakeDriver()

    async def user(number: int) -> None:
        for step in range(6):
            with anyio.move_on_after(0.0005 * ((number * 7 + step) % 5)):
                async with pool.acquire() as conn:
                    await conn.query()
                    await checkpoint()

    async with Pool(driver, max_size=3, max_overflow=1) as pool:
        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(user, number)
        await wait_all_tasks_blocked()
        stats = pool.stats()
        assert (stats.leased, stats.waiting, stats.connecting) == (0, 0, 0)
        assert stats.size == stats.idle
        assert driver.most_alive <= 4
        assert len(driver.alive) == stats.size
    assert not driver.alive


async def test_dead_connection_is_not_handed_on_though_nothing_was_done_on_it() -> None:
    """Not even straight from one holder to the next."""
    driver = CleanDriver()
    async with Pool(driver, max_size=1) as pool, anyio.create_task_group() as group:
        conn = await pool.acquire()
        answers: list[str] = []

        async def waiter() -> None:
            async with pool.acquire() as other:
                answers.append(await other.query())

        group.start_soon(waiter)
        await wait_all_tasks_blocked()
        next(iter(driver.alive)).dead = True
        pool.release(conn)
        await wait_all_tasks_blocked()
        assert answers == ["row"]


async def test_stale_reports_of_old_connections_renew_once() -> None:
    """What was connected since is not old."""
    driver = FullDriver()
    driver.verdicts[Boom] = Verdict.STALE
    async with Pool(driver, min_size=3, max_size=3) as pool:
        leases = [pool.acquire() for _ in range(3)]
        for lease in leases:
            (await lease.__aenter__()).peek()
        for lease in leases:
            await lease.__aexit__(Boom, Boom(), None)
            await wait_all_tasks_blocked()
        assert driver.calls["connect"] == 6


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("call", ["connect", "ping", "reset", "close"])
async def test_cancellation_that_a_library_makes_by_itself_is_an_outcome(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a failure of that call, and not the end of the pool."""

    async def stray(*_: object) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    driver = FakeDriver()
    async with Pool(driver, max_size=2, ping_after=0.0, backoff_min=0.0, backoff_max=0.0) as pool:
        monkeypatch.setattr(driver, call, stray)
        async with pool.acquire() as conn:
            await conn.query()
        pool.renew()
        await wait_all_tasks_blocked()
        monkeypatch.undo()
        while pool.stats().idle == 0:
            await checkpoint()  # the next attempt is some milliseconds away
        async with pool.acquire(timeout=5) as conn:
            assert await conn.query() == "row"
        assert pool.stats().leased == 0


async def test_timeout_says_who_holds_how_many() -> None:
    """Of several leases from one place the sum comes first: it is what to look at."""
    async with Pool(FakeDriver(), max_size=3) as pool:

        async def take() -> FakeConnection:
            return await pool.acquire()

        kept = [await take(), await take(), await pool.acquire()]
        with pytest.raises(PoolTimeout, match=r"\.take holds 2 of 3\. Held longest: ") as caught:
            await pool.acquire(timeout=0)
        assert "holds 1 of" not in str(caught.value)
        labels = [info.label.rpartition(".")[2] for info in pool.leases()]
        assert labels == ["take", "take", "test_timeout_says_who_holds_how_many"]
        for conn in kept:
            pool.release(conn)


@pytest.mark.parametrize("anyio_backend", [b for b in BACKENDS if b.id != "trio"], indirect=True)
async def test_acquire_outside_of_a_task_says_so() -> None:
    """There would be nobody to hold it, and nothing is lost."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        errors: list[BaseException] = []

        def drive() -> None:
            coroutine = pool.acquire()._acquire()
            try:
                coroutine.send(None)
            except BaseException as error:
                errors.append(error)
            finally:
                coroutine.close()

        loop = asyncio.get_running_loop()
        loop.call_soon(drive)
        await checkpoint()
        async with pool.acquire():
            loop.call_soon(drive)
            await checkpoint()
        assert [type(error) for error in errors] == [WrongLoop] * 2
        assert "in a task" in str(errors[0])
        assert pool.stats().leased == 0


async def test_new_connections_that_are_stale_as_well_make_no_storm() -> None:
    """A name that still leads to the old server: one renewal for each longest pause."""
    driver = CleanDriver()

    def classify(*_: object) -> Verdict:
        return Verdict.STALE

    driver.classify = classify  # type: ignore[attr-defined]
    async with Pool(driver, max_size=1, backoff_max=60.0) as pool:
        for _ in range(5):
            with pytest.raises(Boom):
                async with pool.acquire() as conn:
                    await conn.query()
                    raise Boom("read-only")
        assert driver.calls["connect"] == 2
        assert pool.stats().retired["stale"] == 1


@pytest.mark.parametrize("why", ["closed", "timed_out"])
async def test_refusal_that_is_cancelled_counts_as_cancelled(why: str) -> None:
    """What the caller sees is what is counted."""
    async with contextlib.AsyncExitStack() as stack:
        pool = Pool(FakeDriver(), max_size=1)
        if why == "timed_out":
            await stack.enter_async_context(pool)
            await stack.enter_async_context(pool.acquire())
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.acquire(timeout=0)
        assert scope.cancelled_caught
        assert (getattr(pool.stats(), why), pool.stats().cancelled) == (0, 1)


async def test_caller_with_a_hook_that_is_refused_at_once_lets_others_run() -> None:
    """As one without a hook does: whoever tries again and again stops nobody."""

    async def greet(_: object) -> None: ...

    async with Pool(FakeDriver(), max_size=1, max_waiting=0, on_acquire=greet) as pool:
        async with pool.acquire(), anyio.create_task_group() as group:
            others = 0

            async def run() -> None:
                nonlocal others
                while True:
                    await checkpoint()
                    others += 1

            group.start_soon(run)
            for _ in range(3):
                with pytest.raises(PoolBusy):
                    await pool.acquire()
            assert others > 0
            group.cancel_scope.cancel()
