"""Whose clock counts, and how often the alarm rings."""

from __future__ import annotations

import asyncio
import time
import types
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest
import trio
import trio.testing

from poolkit import Pool, PoolTimeout
from poolkit.testing import OneStepLoop, VirtualTimeLoop
from tests.fakes import CleanDriver, FakeConnection, own

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

#: Virtual seconds after which a nanosecond is lost in the rounding: half a year and more.
LONG = 2.0**25


def uvloops() -> asyncio.AbstractEventLoop:
    """Return one of uvloop's, which is not there for Windows."""
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


class CoarseLoop(VirtualTimeLoop):
    """One whose timers ring early, by as much as a millisecond: at the last full one before."""

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        """Round down, as uvloop may."""
        when = max(self.time(), when * 1000.0 // 1.0 / 1000.0)
        return super().call_at(when, callback, *args, context=context)


class HairEarlyLoop(asyncio.SelectorEventLoop):
    """One that is moved by its timers and never quite there: its clock counts microseconds."""

    _now = 0.0

    def __init__(self) -> None:
        super().__init__()
        self._clock_resolution = 2e-6

    def time(self) -> float:
        """Round down, as virtual clocks in whole numbers do."""
        return self._now * 1e6 // 1.0 / 1e6

    def _run_once(self) -> None:
        loop: Any = self
        if not loop._ready and loop._scheduled:
            self._now = max(self._now, loop._scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


async def count_rings(timeout: float) -> int:
    """Return how often the alarm rings for one acquire that times out."""
    rings = 0
    async with Pool(CleanDriver(), max_size=1) as pool, pool.acquire():
        runtime = pool._runtime
        ring = runtime._ring

        def counted() -> None:
            nonlocal rings
            rings += 1
            ring()

        runtime._ring = counted
        loop = asyncio.get_running_loop()
        called_at = loop.time()
        waiter = asyncio.create_task(pool.acquire(timeout=timeout).__aenter__())
        with pytest.raises(PoolTimeout):
            await waiter
        assert loop.time() >= called_at + timeout
        return rings


@pytest.mark.parametrize(
    "make_loop", [uvloops, asyncio.SelectorEventLoop, CoarseLoop, HairEarlyLoop]
)
def test_alarm_rings_twice_at_most_for_an_acquire_that_times_out(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """However early the loop's timers are, and whatever fraction of a millisecond is asked for."""

    async def main() -> None:
        for timeout in (0.0103, 0.0105, 0.0207, 0.0309, 0.00012345):
            assert await count_rings(timeout) <= 2

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("make_loop", [CoarseLoop, HairEarlyLoop])
def test_timer_is_set_twice_at_most_for_an_acquire_that_times_out(
    make_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer that is set again for the same time would ring at once, and again."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Pool(CleanDriver(), max_size=1) as pool, pool.acquire():
            alarms = 0
            call_at = loop.call_at

            def counted(when: float, callback: Any, *args: Any, **kwargs: Any) -> Any:
                nonlocal alarms
                alarms += callback == pool._runtime._alarmed  # type: ignore[union-attr]
                return call_at(when, callback, *args, **kwargs)

            monkeypatch.setattr(loop, "call_at", counted)
            waiter = asyncio.create_task(pool.acquire(timeout=0.0103456789).__aenter__())
            with pytest.raises(PoolTimeout):
                await waiter
            assert alarms <= 2

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize(
    "make_loop", [VirtualTimeLoop, lambda: OneStepLoop(lambda _: 0)], ids=["virtual", "one step"]
)
def test_virtual_time_goes_on_after_half_a_year(
    make_loop: Callable[[], VirtualTimeLoop],
) -> None:
    """A timer that is due is due, also where a nanosecond more is no later time."""

    async def main() -> None:
        await asyncio.sleep(LONG)
        await asyncio.sleep(0.1)
        await asyncio.sleep(1e-9)
        assert asyncio.get_running_loop().time() >= LONG + 0.1

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


def test_virtual_time_rings_no_timer_early() -> None:
    """Not by a hair: whoever looks at the clock would have to wait once more."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        early = []

        def look(when: float) -> None:
            early.append(loop.time() < when)

        for number in range(100):
            when = 1.0 + number * 0.3e-9
            loop.call_at(when, look, when)
        await asyncio.sleep(2.0)
        assert early == [False] * 100

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


# -- a clock put in place of the loop's ----------------------------------------------------------


class Clock:
    """A clock that a test moves by hand; 0 is now."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self, *_: object) -> float:
        """Return the time."""
        return self.now


def on_the_instance(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Replace the method of one loop."""
    patch.setattr(asyncio.get_running_loop(), "time", clock)


def on_the_class(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Replace the method of all loops of its class."""
    patch.setattr(type(asyncio.get_running_loop()), "time", lambda _: clock())


def of_the_class(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Make the loop one of another class."""
    loop = asyncio.get_running_loop()
    kind = type("Patched", (type(loop),), {"time": lambda _: clock()})
    patch.setattr(loop, "__class__", kind)


def of_the_process(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Replace what asyncio asks."""
    patch.setattr(time, "monotonic", clock)


def run_on(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run on a loop of asyncio's own class."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


WAYS = pytest.mark.parametrize(
    "replace", [on_the_instance, on_the_class, of_the_class, of_the_process]
)


@WAYS
@pytest.mark.parametrize("before", [True, False], ids=["before open", "after open"])
def test_clock_put_in_place_of_the_loops_is_used_from_then_on(
    replace: Callable[[pytest.MonkeyPatch, Clock], None],
    before: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deadlines are times on it, and so is the age of a lease."""

    async def main() -> None:
        clock = Clock(time.monotonic())
        with monkeypatch.context() as patch:
            if before:
                replace(patch, clock)
            pool: Pool[FakeConnection] = Pool(CleanDriver(), max_size=1)
            await pool.open()
            if not before:
                replace(patch, clock)
            pool.stats()
            connection = await pool.acquire()
            waiter = asyncio.create_task(pool.acquire(timeout=100.0).__aenter__())
            await asyncio.sleep(0)
            clock.now += 99.0
            for _ in range(5):
                await asyncio.sleep(0)
            assert not waiter.done()
            assert pool.leases()[0].seconds == pytest.approx(99.0)
            assert pool.stats().oldest_wait == pytest.approx(99.0)
            clock.now += 1.5
            for _ in range(5):
                await asyncio.sleep(0)
            assert waiter.done()
            with pytest.raises(PoolTimeout, match=r"for 100\.50 s"):
                await waiter
            pool.release(connection)
            await pool.aclose()

    run_on(main)


@WAYS
def test_limits_of_jobs_are_times_on_the_clock_put_in_place(
    replace: Callable[[pytest.MonkeyPatch, Clock], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one that is begun before anybody has looked at the clock."""

    async def main() -> None:
        driver = CleanDriver(reset=[...])
        async with Pool(driver, max_size=1, reset_timeout=2.0) as pool:
            with monkeypatch.context() as patch:
                connection = await pool.acquire()
                await connection.query()
                own(connection).in_transaction = True
                clock = Clock(5.0)
                replace(patch, clock)
                pool.release(connection)
                for _ in range(5):
                    await asyncio.sleep(0)
                assert driver.calls["reset"] == 1
                clock.now += 1.9
                for _ in range(5):
                    await asyncio.sleep(0)
                assert pool.stats().recycling == 1
                clock.now += 0.2
                for _ in range(5):
                    await asyncio.sleep(0)
                assert pool.stats().retired["broken"] == 1

    run_on(main)


@pytest.mark.parametrize("queued", [True, False])
def test_first_to_wait_goes_by_a_clock_on_the_loop(
    *, queued: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if nobody has asked the pool for anything since it was put there, or taken away."""

    async def main() -> None:
        async with Pool(CleanDriver(), max_size=1, deadlock="off") as pool, pool.acquire():
            waiters = [asyncio.create_task(pool.acquire(timeout=None).__aenter__())] * queued
            await asyncio.sleep(0)
            with monkeypatch.context() as patch:
                clock = Clock(5.0)
                on_the_instance(patch, clock)
                waiter = asyncio.create_task(pool.acquire(timeout=100.0).__aenter__())
                await asyncio.sleep(0)
                clock.now += 100.5
                for _ in range(5):
                    await asyncio.sleep(0)
                assert waiter.done()
                with pytest.raises(PoolTimeout):
                    await waiter
            with pytest.raises(PoolTimeout):
                await asyncio.create_task(pool.acquire(timeout=0.01).__aenter__())
            for one in waiters:
                one.cancel()

    run_on(main)


def test_clock_that_is_taken_away_again_is_used_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test has ended, and the loop goes on."""

    async def main() -> None:
        async with Pool(CleanDriver(), max_size=1) as pool, pool.acquire():
            with monkeypatch.context() as patch:
                on_the_instance(patch, Clock(1e9))
                assert pool.leases()[0].seconds > 1e8
            assert pool.leases()[0].seconds < 1e4
            waiter = asyncio.create_task(pool.acquire(timeout=0.01).__aenter__())
            with pytest.raises(PoolTimeout):
                await waiter

    run_on(main)


def test_clock_of_trios_run_is_used() -> None:
    """A run has one clock, from its beginning."""

    async def main() -> None:
        async with Pool(CleanDriver(), max_size=1, deadlock="off") as pool, pool.acquire():
            with pytest.raises(PoolTimeout, match=r"for 5\.00 s"):
                await pool.acquire(timeout=5.0)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_loop_is_known_by_its_thread_where_asking_for_it_is_dear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Python 3.11: elsewhere another loop runs, or none."""

    async def main() -> None:
        async with Pool(CleanDriver()) as pool:
            runtime: Any = pool._runtime
            with monkeypatch.context() as patch:
                old = types.SimpleNamespace(version_info=(3, 11))
                patch.setattr("poolkit._shell.on_asyncio.sys", old)
                where = runtime._find_where()
            assert where is not asyncio._get_running_loop
            assert where() is asyncio.get_running_loop()
            assert await anyio.to_thread.run_sync(where) is None

    asyncio.run(main())
