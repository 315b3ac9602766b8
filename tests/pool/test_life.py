"""Open and close: from any task, cancelled at any step, with the loop ending under it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from poolkit import (
    ConnectFailed,
    NotLeased,
    Pool,
    PoolClosed,
    PoolConfigError,
    PoolTimeout,
    Verdict,
    WrongLoop,
)
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeDriver, FullDriver, gone


async def test_open_waits_for_min_size() -> None:
    """When it returns they are there."""
    driver = FakeDriver()
    pool = await Pool(driver, min_size=3, max_size=5).open()
    assert pool.stats().idle == 3
    await pool.aclose()
    assert not driver.alive


async def test_open_with_min_size_zero_needs_no_database() -> None:
    """Connecting is left to the first acquire."""
    driver = FakeDriver()
    async with Pool(driver, min_size=0) as pool:
        assert driver.calls["connect"] == 0
        async with pool.acquire():
            assert driver.calls["connect"] == 1


async def test_open_twice_does_nothing() -> None:
    """An open pool stays as it is."""
    driver = FakeDriver()
    async with Pool(driver) as pool:
        assert await pool.open() is pool
        assert driver.calls["connect"] == 1


async def test_open_from_two_tasks_opens_once() -> None:
    """Both return when it is open."""
    gate = anyio.Event()
    driver = FakeDriver(connect=[gate])
    pool = Pool(driver)
    async with anyio.create_task_group() as group:
        group.start_soon(pool.open)
        group.start_soon(pool.open)
        await wait_all_tasks_blocked()
        gate.set()
    assert driver.calls["connect"] == 1
    await pool.aclose()


async def test_open_that_fails_raises_the_error_and_leaves_a_closed_pool() -> None:
    """And the pool may be opened again."""
    driver = FakeDriver(connect=[Boom("no such file")])
    pool = Pool(driver)
    with pytest.raises(ConnectFailed, match="no such file"):
        await pool.open()
    with pytest.raises(PoolClosed):
        await pool.acquire()
    assert "closed" in repr(pool)
    async with pool:
        assert pool.stats().idle == 1
    assert not driver.alive


async def test_open_that_is_cancelled_leaves_a_closed_pool() -> None:
    """Whatever was being opened is not leaked."""
    driver = FakeDriver(connect=[None, anyio.Event()])
    pool = Pool(driver, min_size=2)
    with anyio.move_on_after(0.01) as scope:
        await pool.open()
    assert scope.cancelled_caught
    with pytest.raises(PoolClosed):
        await pool.acquire()
    await wait_all_tasks_blocked()
    assert not driver.alive
    assert pool.stats().size == 0


async def test_open_waits_out_a_transient_error_until_the_acquire_timeout() -> None:
    """As an acquire would."""
    driver = FullDriver(connect=[Boom("starting up")] * 99)
    driver.verdicts[Boom] = Verdict.TRANSIENT
    pool = Pool(driver, acquire_timeout=0.5, backoff_min=0.002, backoff_max=0.002)
    with pytest.raises(PoolTimeout, match="starting up"):
        await pool.open()
    assert driver.calls["connect"] > 1
    assert not driver.alive


async def test_close_closes_everything_and_counts_nothing_left() -> None:
    """After it the size is 0, and every connection was closed politely."""
    driver = FakeDriver()
    async with Pool(driver, min_size=3) as pool:
        async with pool.acquire() as conn:
            await conn.query()
    assert pool.stats().size == 0
    assert driver.calls["close"] == 3
    assert driver.calls["terminate"] == 0
    assert gone(pool.stats()) == {"pool_closed": 3}


async def test_close_from_another_task_is_right() -> None:
    """Open and close need not be in one task."""
    driver = FakeDriver()
    pool = Pool(driver)
    async with anyio.create_task_group() as group:
        group.start_soon(pool.open)
    async with anyio.create_task_group() as group:
        group.start_soon(pool.aclose)
    assert not driver.alive


async def test_close_twice_is_harmless() -> None:
    """The second has nothing to do."""
    pool = await Pool(FakeDriver()).open()
    assert await pool.aclose() == []
    assert await pool.aclose() == []
    assert await Pool(FakeDriver()).aclose() == []


async def test_close_fails_waiters_at_once() -> None:
    """They get PoolClosed and not a connection that is closed under them."""
    async with Pool(FakeDriver(), max_size=1) as pool:
        conn = await pool.acquire()
        async with anyio.create_task_group() as group:

            async def waiter() -> None:
                with pytest.raises(PoolClosed):
                    await pool.acquire()
                pool.release(conn)

            group.start_soon(waiter)
            await wait_all_tasks_blocked()
            group.start_soon(pool.aclose)


async def test_close_waits_for_leases_within_the_grace() -> None:
    """A holder may finish what it is doing."""
    driver = FakeDriver()
    pool = await Pool(driver, max_size=1).open()
    closing = anyio.Event()
    answers: list[str] = []

    async def holder() -> None:
        async with pool.acquire() as conn:
            await closing.wait()
            answers.append(await conn.query())

    async with anyio.create_task_group() as group:
        group.start_soon(holder)
        await wait_all_tasks_blocked()

        async def close() -> None:
            closing.set()
            assert await pool.aclose() == []

        group.start_soon(close)
    assert answers == ["row"]
    assert driver.calls["terminate"] == 0


async def test_close_terminates_what_is_held_beyond_the_grace() -> None:
    """It returns who had not given back, and the holder's handle is dead."""
    driver = FakeDriver()
    pool = await Pool(driver, max_size=1).open()
    done = anyio.Event()

    async def holder() -> None:
        async with pool.acquire() as conn:
            await done.wait()
            with pytest.raises(NotLeased, match="closed"):
                await conn.query()

    async with anyio.create_task_group() as group:
        group.start_soon(holder)
        await wait_all_tasks_blocked()
        held = await pool.aclose(grace=0.01)
        assert [info.place for info in held if "holder" in info.place]
        assert not driver.alive
        done.set()
    assert pool.stats().size == 0


async def test_close_does_not_wait_for_the_callers_own_leases() -> None:
    """That would be waiting for itself."""
    driver = FakeDriver()
    pool = await Pool(driver).open()
    conn = await pool.acquire()
    with anyio.fail_after(5):
        held = await pool.aclose(grace=None)
    assert len(held) == 1
    assert not driver.alive
    with pytest.raises(NotLeased):
        await conn.query()


async def test_cancelled_close_means_no_grace() -> None:
    """Leases are terminated at once and nothing is left."""
    driver = FakeDriver()
    pool = await Pool(driver, max_size=1).open()
    async with anyio.create_task_group() as group:

        async def holder() -> None:
            async with pool.acquire():
                await anyio.sleep_forever()

        group.start_soon(holder)
        await wait_all_tasks_blocked()
        with anyio.move_on_after(0.01) as scope:
            await pool.aclose(grace=None)
        assert scope.cancelled_caught
        assert not driver.alive
        assert pool.stats().size == 0
        group.cancel_scope.cancel()


async def test_close_does_not_wait_for_a_hung_connect() -> None:
    """Connects under way are cancelled: nobody wants them any more."""
    driver = FakeDriver(connect=[None, anyio.Event()])
    pool = await Pool(driver, min_size=1, connect_timeout=None).open()
    async with pool.acquire():
        with anyio.move_on_after(0.01):
            await pool.acquire()
    assert pool.stats().connecting == 1
    with anyio.fail_after(2):
        await pool.aclose()
    assert pool.stats().size == 0
    assert not driver.alive


async def test_close_limits_a_hung_close() -> None:
    """What does not close in `close_timeout` is terminated."""
    driver = FakeDriver(close=[anyio.Event()])
    pool = await Pool(driver, close_timeout=0.01).open()
    with anyio.fail_after(2):
        await pool.aclose()
    assert driver.calls["terminate"] == 1
    assert not driver.alive


async def test_closed_pool_can_be_opened_again() -> None:
    """With nothing left over from its first life."""
    driver = FakeDriver()
    pool = Pool(driver, max_size=1)
    for _ in range(3):
        async with pool, pool.acquire() as conn:
            assert await conn.query() == "row"
    assert driver.calls["connect"] == 3
    assert not driver.alive


async def test_lease_of_an_earlier_life_is_not_reused() -> None:
    """Its connection is closed when it comes back."""
    driver = CleanDriver()
    pool = await Pool(driver).open()
    gate = anyio.Event()
    async with anyio.create_task_group() as group:

        async def holder() -> None:
            conn = await pool.acquire()
            await gate.wait()
            with pytest.raises(NotLeased):
                pool.release(conn)

        group.start_soon(holder)
        await wait_all_tasks_blocked()
        await pool.aclose(grace=0)
        async with pool:
            gate.set()
            await wait_all_tasks_blocked()
            assert pool.stats().idle == 1
            assert next(iter(driver.alive)).number == 2


@pytest.mark.parametrize("grace", [-1, float("nan"), "x"])
async def test_impossible_grace_is_refused(grace: float) -> None:
    """Before anything is closed."""
    async with Pool(FakeDriver()) as pool:
        with pytest.raises(PoolConfigError, match="grace"):
            await pool.aclose(grace=grace)
        async with pool.acquire():
            pass


async def test_min_size_is_kept_after_a_death() -> None:
    """The dead are replaced though nobody asks."""
    driver = FullDriver()
    async with Pool(driver, min_size=2) as pool:
        victim = next(iter(driver.alive))
        driver.end(victim)
        driver.watched[victim]()
        await wait_all_tasks_blocked()
        assert pool.stats().idle == 2
        assert driver.calls["connect"] == 3


async def test_upkeep_finds_the_dead_without_a_caller() -> None:
    """Once a second, without I/O."""
    driver = FakeDriver()
    async with Pool(driver, min_size=1) as pool:
        driver.end(next(iter(driver.alive)))
        pool._upkeep()
        await wait_all_tasks_blocked()
        assert pool.stats().idle == 1
        assert gone(pool.stats()) == {"broken": 1}


def test_loop_that_ends_under_an_open_pool_terminates_its_connections() -> None:
    """asyncio.run() returns; the pool is closed and can be opened elsewhere."""
    driver = FakeDriver()
    pool = Pool(driver, min_size=2)

    async def main() -> None:
        await pool.open()

    asyncio.run(main())
    assert not driver.alive
    assert pool.stats().size == 0

    async def again() -> None:
        async with pool, pool.acquire() as conn:
            assert await conn.query() == "row"

    asyncio.run(again())
    anyio.run(again, backend="trio")
    assert not driver.alive


def test_trio_run_that_ends_under_an_open_pool_terminates_its_connections() -> None:
    """The same on trio."""
    driver = FakeDriver()
    pool = Pool(driver, min_size=2)
    anyio.run(pool.open, backend="trio")
    assert not driver.alive
    assert pool.stats().size == 0


def test_waiters_and_holders_survive_the_end_of_the_loop() -> None:
    """Holders may use their connection while they clean up, then it is terminated."""
    driver = FakeDriver()
    pool = Pool(driver, max_size=1)
    seen: list[str] = []

    async def holder() -> None:
        async with pool.acquire() as conn:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append(await conn.query())

    async def waiter() -> None:
        try:
            await pool.acquire()
        finally:
            seen.append("waiter ended")

    async def main() -> None:
        await pool.open()
        tasks = [asyncio.create_task(holder()), asyncio.create_task(waiter())]
        await wait_all_tasks_blocked()
        assert len(tasks) == 2

    asyncio.run(main())
    assert sorted(seen) == ["row", "waiter ended"]
    assert not driver.alive
    assert pool.stats().size == 0


def test_pool_used_from_another_loop_says_so() -> None:
    """Opened in one loop and used from another, while the first still lives."""
    pool = Pool(FakeDriver())
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(pool.open())

        async def elsewhere() -> None:
            with pytest.raises(WrongLoop, match="another event loop"):
                await pool.acquire()
            with pytest.raises(WrongLoop):
                await pool.open()
            with pytest.raises(WrongLoop):
                await pool.aclose()

        asyncio.run(elsewhere())
        anyio.run(elsewhere, backend="trio")
        loop.run_until_complete(pool.aclose())
    finally:
        loop.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:.*was never awaited")
def test_pool_whose_loop_was_closed_without_a_word_can_be_opened_again() -> None:
    """Its tasks were never cancelled; its connections are terminated when that is noticed."""
    driver = FakeDriver()
    pool = Pool(driver, min_size=2)
    for leave in (pool.open, pool.aclose):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(pool.open())
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # as meant here
        loop.close()
        anyio.run(leave)
        assert not driver.alive
        assert pool.stats().size == 0


async def test_runtime_knows_its_own_loop() -> None:
    """From a thread it is elsewhere."""
    async with Pool(FakeDriver()) as pool:
        assert pool._runtime.is_here()
        assert not await anyio.to_thread.run_sync(pool._runtime.is_here)


async def test_pool_used_from_another_thread_says_so() -> None:
    """A thread without a loop, too."""
    async with Pool(FakeDriver()) as pool, pool.acquire() as conn:

        def use() -> None:
            with pytest.raises(WrongLoop):
                pool.release(conn)

        await anyio.to_thread.run_sync(use)
        assert pool.stats().leased == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pool_used_after_a_fork_says_so() -> None:
    """The child gets WrongLoop, the parent goes on undisturbed."""
    program = """
        import asyncio, os, sys
        sys.path.insert(0, {root!r})
        from poolkit import Pool, WrongLoop
        from tests.fakes import FakeDriver

        async def main():
            async with Pool(FakeDriver()) as pool:
                child = os.fork()
                if child == 0:
                    try:
                        await pool.acquire()
                    except WrongLoop as error:
                        os._exit(7 if "fork" in str(error) else 1)
                    os._exit(2)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
                async with pool.acquire() as conn:
                    print(await conn.query())

        asyncio.run(main())
    """
    assert _python(program).strip() == "row"


def test_pool_never_closed_does_not_hold_the_interpreter() -> None:
    """The process ends by itself."""
    program = """
        import asyncio, sys
        sys.path.insert(0, {root!r})
        from poolkit import Pool
        from tests.fakes import FakeDriver

        async def main():
            global pool, conn
            pool = await Pool(FakeDriver(), min_size=2).open()
            conn = await pool.acquire()
            print("leaving")

        asyncio.run(main())
    """
    assert _python(program).strip() == "leaving"


def _python(program: str) -> str:
    root = str(Path(__file__).resolve().parents[2])
    code = textwrap.dedent(program).replace("{root!r}", repr(root))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


async def test_jobs_run_in_the_context_of_open_and_not_of_a_caller() -> None:
    """What a request has set in its context never reaches another one's connection."""
    import contextvars

    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
    seen: list[str] = []

    async def on_connect(_: object) -> None:
        seen.append(who.get())

    async with Pool(FakeDriver(), min_size=0, on_connect=on_connect) as pool:
        who.set("a request")
        async with pool.acquire():
            pass
    assert seen == ["nobody"]


async def test_hung_job_delays_no_other() -> None:
    """A reset that hangs holds its own slot only."""
    gate = anyio.Event()
    driver = FakeDriver(reset=[gate])
    async with Pool(driver, min_size=2, max_size=2) as pool:
        async with pool.acquire() as conn:
            await conn.query()
        for _ in range(3):
            async with pool.acquire(timeout=1) as conn:
                await conn.query()
        gate.set()
        await checkpoint()


async def test_second_opener_that_is_cancelled_does_not_close_the_pool() -> None:
    """It was not its own."""
    gate = anyio.Event()
    pool = Pool(FakeDriver(connect=[gate]))
    async with anyio.create_task_group() as group:
        group.start_soon(pool.open)
        await wait_all_tasks_blocked()
        with anyio.move_on_after(0.01) as scope:
            await pool.open()
        assert scope.cancelled_caught
        gate.set()
    assert pool.stats().idle == 1
    await pool.aclose()


async def test_opening_right_after_a_cancelled_opening_works() -> None:
    """The first root task, which starts late, leaves the second one's jobs alone."""
    for _ in range(10):
        pool = Pool(FakeDriver())
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.open()
        with anyio.fail_after(5):
            await pool.open()
            await pool.aclose()


async def test_close_while_opening_waits_for_the_leases_given_out_already() -> None:
    """The opener that fails by it does not end its patience."""
    driver = FakeDriver(connect=[None, anyio.Event()])
    pool = Pool(driver, min_size=2, max_size=2)
    closing = anyio.Event()

    async def opener() -> None:
        with pytest.raises(PoolClosed):
            await pool.open()

    async def holder() -> None:
        async with pool.acquire() as conn:
            await closing.wait()
            await wait_all_tasks_blocked()
            assert await conn.query() == "row"

    async with anyio.create_task_group() as group:
        group.start_soon(opener)
        await wait_all_tasks_blocked()
        group.start_soon(holder)
        await wait_all_tasks_blocked()
        closing.set()
        with anyio.fail_after(5):
            assert await pool.aclose(grace=None) == []
    assert not driver.alive


async def test_close_ends_when_the_root_task_ends_under_it() -> None:
    """Nobody is left to tell it of releases."""
    driver = FakeDriver()
    pool = await Pool(driver).open()
    async with anyio.create_task_group() as group:
        gate = anyio.Event()

        async def holder() -> None:
            async with pool.acquire():
                await gate.wait()

        group.start_soon(holder)
        await wait_all_tasks_blocked()
        group.start_soon(lambda: pool.aclose(grace=None))
        await wait_all_tasks_blocked()
        assert pool._life is not None
        pool._life.cancel()
        await wait_all_tasks_blocked()
        gate.set()
    assert not driver.alive


async def test_watch_that_raises_is_a_failed_connect() -> None:
    """And not the end of the pool."""

    class Rude(FullDriver):
        def watch(self, c: object, dead: object) -> None:
            raise Boom("no")

    driver = Rude()
    async with Pool(driver, min_size=0) as pool:
        for _ in range(2):
            with pytest.raises(ConnectFailed, match="no"):
                await pool.acquire()
    assert not driver.alive


async def test_inbox_is_not_emptied_in_another_thread() -> None:
    """What is noted there is for the pool's own."""
    async with Pool(FakeDriver()) as pool:

        def elsewhere() -> None:
            async def use() -> None:
                with pytest.raises(WrongLoop):
                    await pool.acquire()

            asyncio.run(use())

        noted: list[int] = []
        pool._inbox.append(lambda: noted.append(threading.get_ident()))
        await anyio.to_thread.run_sync(elsewhere)
        assert noted == []
        async with pool.acquire():
            assert noted == [threading.get_ident()]


async def test_first_opener_that_is_cancelled_leaves_the_pool_to_the_second() -> None:
    """Who still waits for it gets it."""
    gate = anyio.Event()
    pool = Pool(FakeDriver(connect=[gate]))
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as first:
                first.start_soon(pool.open)
                await wait_all_tasks_blocked()
                group.start_soon(pool.open)
                await wait_all_tasks_blocked()
                scope.cancel()
        gate.set()
    assert pool.stats().idle == 1
    await pool.aclose()


async def test_failing_connects_that_never_yield_do_not_stop_the_loop() -> None:
    """However short the pauses are."""

    class Instant(FakeDriver):
        async def connect(self) -> FakeConnection:
            raise Boom("at once")

    pool = Pool(Instant(), backoff_min=0.0, backoff_max=0.0, acquire_timeout=0.1)
    with anyio.fail_after(5), pytest.raises(ConnectFailed):
        await pool.open()


async def test_classify_that_raises_about_a_job_does_not_close_the_pool() -> None:
    """It is reported, and the failure is one that nobody can classify."""

    class Rude(FullDriver):
        def classify(self, exc: BaseException, c: FakeConnection | None) -> Verdict | None:
            raise ValueError("never seen")

    driver = Rude(reset=[Boom("no")])
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            conn.cursor()
        async with pool.acquire(timeout=5) as conn:
            assert conn.number == 2


async def test_connection_that_dies_while_it_is_reset_is_not_handed_on() -> None:
    """Though the reset succeeds."""

    class Dying(FakeDriver):
        async def reset(self, c: FakeConnection) -> None:
            await super().reset(c)
            c.dead = c.number == 1

    driver = Dying()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.query()
        async with pool.acquire(timeout=5) as conn:
            assert conn.number == 2


async def test_workers_are_reused() -> None:
    """Many jobs do not mean many tasks."""
    driver = FakeDriver()
    async with Pool(driver, max_size=1) as pool:
        for _ in range(20):
            async with pool.acquire() as conn:
                await conn.query()
        await wait_all_tasks_blocked()
        assert pool._life is not None
        assert len(pool._life.workers._parked) == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
def test_pool_under_plain_asyncio_starts_workers_out_of_callbacks(anyio_backend: str) -> None:
    """Where anyio does not know its event loop: an alarm, a finalizer, a listener of the driver."""
    driver = FakeDriver(connect=[None, Boom("refused")])
    driver.classify = lambda exc, c: Verdict.TRANSIENT  # type: ignore[attr-defined]

    async def main() -> None:
        async with Pool(driver, max_size=2, min_size=1, backoff_min=0.01) as pool:
            async with pool.acquire(), pool.acquire(timeout=60):
                # The second attempt is begun by the alarm, and finds no worker parked.
                assert driver.calls["connect"] == 3

    asyncio.run(main())
    assert not driver.alive


# -- a life that ends without aclose -------------------------------------------------------------


class Ended:
    """What is left of a pool whose loop has ended while somebody held a connection."""

    def __init__(self, run: str, **options: Any) -> None:
        self.driver = FullDriver()
        self.pool = Pool(self.driver, min_size=1, max_size=2, acquire_timeout=0.5, **options)
        self.lease = self.pool.acquire()
        self.conn: Any = None
        with pytest.warns(ResourceWarning, match="never closed"):
            {"asyncio": asyncio.run, "trio": lambda main: trio.run(lambda: main)}[run](self.hold())

    async def hold(self) -> None:
        """Acquire, and come to the end of the run."""
        await self.pool.open()
        self.conn = await self.lease.__aenter__()


@pytest.fixture(params=["asyncio", "trio"])
def ended(request: pytest.FixtureRequest) -> Ended:
    """Return a pool whose run has ended under it."""
    return Ended(request.param)


def test_lease_dies_with_the_life_of_its_pool(ended: Ended) -> None:
    """Nothing is leased any more, and the handle is dead; the connection is terminated."""
    assert (ended.pool.stats().leased, ended.pool.stats().size) == (0, 0)
    assert not ended.driver.alive
    with pytest.raises(NotLeased, match="taken back when the pool was closed"):
        ended.conn.peek()
    with pytest.raises(NotLeased):
        ended.pool.release(ended.conn)
    assert "closed" in repr(ended.pool)


def test_close_of_a_pool_whose_run_has_ended_says_who_had_not_given_back(ended: Ended) -> None:
    """Once; and whoever holds a dead handle may leave its block."""

    async def main() -> None:
        (held,) = await ended.pool.aclose()
        assert "Ended.__init__" in held.place
        assert await ended.pool.aclose() == []
        await ended.lease.__aexit__(None, None, None)
        assert ended.pool.stats().size == 0

    asyncio.run(main())


def test_next_life_counts_no_connection_of_the_one_before(ended: Ended) -> None:
    """Opening needs the database, all of the capacity can be had, and old handles stay dead."""

    async def main() -> None:
        ended.driver.script["connect"] = [Boom("down")]
        with pytest.raises(ConnectFailed, match="down"):
            await ended.pool.open()
        async with ended.pool as pool, pool.acquire() as one, pool.acquire() as two:
            assert {await one.query(), await two.query()} == {"row"}
            with pytest.raises(NotLeased):
                await ended.conn.query()
            with pytest.raises(NotLeased):
                pool.release(ended.conn)
            await ended.lease.__aexit__(None, None, None)
            assert pool.stats().leased == 2

    asyncio.run(main())


class Slow(FullDriver):
    """A driver whose connects take their time to end when they are cancelled."""

    def __init__(self, takes: float) -> None:
        super().__init__()
        self.takes = takes
        self.under_way = self.most = 0
        self.begun = anyio.Event()

    async def connect(self) -> FakeConnection:
        """Hang; clean up after being cancelled."""
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.takes)
            self.under_way -= 1
        raise AssertionError


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_open_that_ends_badly_returns_when_its_connects_have_ended(how: str) -> None:
    """Or opening again would make more of them than there may be."""
    driver = Slow(0.05)
    pool = Pool(driver, min_size=2, max_size=2, acquire_timeout=0.02 if how == "fails" else 10)
    for _ in range(3):
        driver.begun = anyio.Event()
        if how == "fails":
            with pytest.raises(PoolTimeout):
                await pool.open()
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.open)
                await driver.begun.wait()
                group.cancel_scope.cancel()
        assert driver.under_way == 0
        assert pool.stats().size == 0
    assert driver.most == 2


async def test_close_that_is_cancelled_returns_when_its_tasks_have_ended() -> None:
    """Its clean-up is shielded, inside a limit."""
    driver = Slow(0.05)
    pool = await Pool(driver, min_size=0, max_size=1).open()
    async with anyio.create_task_group() as group:
        group.start_soon(_acquire, pool)
        await driver.begun.wait()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.aclose()
        assert driver.under_way == 0
        group.cancel_scope.cancel()


async def _acquire(pool: Pool[FakeConnection]) -> None:
    with contextlib.suppress(PoolClosed):
        await pool.acquire()


async def test_what_ignores_its_end_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Open returns nevertheless, after a second."""
    driver = Slow(1.5)
    pool = Pool(driver, acquire_timeout=0.02)
    with pytest.raises(PoolTimeout):
        await pool.open()
    assert driver.under_way == 1
    (said,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert "abandoned what ignores its cancellation: connect (1)" in said
    while driver.under_way:  # noqa: ASYNC110  # no event tells
        await anyio.sleep(0.01)
