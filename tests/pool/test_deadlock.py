"""Deadlock: who closes the circle is told at once, and nobody is told who has not."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from hypothesis import given, settings
from hypothesis import strategies as st

from poolkit import (
    CoDel,
    Pool,
    PoolBusy,
    PoolConfigError,
    PoolDeadlock,
    PoolOptions,
    PoolTimeout,
    PoolUnavailable,
)
from poolkit._core.deadlock import CERTAIN_FOR
from poolkit._core.slot import NEVER
from poolkit.testing import VirtualTimeLoop
from tests.effort import SHARE
from tests.fakes import CleanDriver, FakeConnection, own

if TYPE_CHECKING:
    from poolkit._options import Deadlock


class Couple:
    """Tasks that each hold a connection, and acquire another one when they are told to."""

    def __init__(self, pool: Pool[FakeConnection]) -> None:
        self.pool = pool
        self.go = [anyio.Event(), anyio.Event()]
        self.ended: dict[int, Any] = {}

    async def hold_and_want(self, number: int, timeout: float | None = 5.0) -> None:
        """Hold one in a block, want another one."""
        async with self.pool.acquire():
            await self.go[number].wait()
            await self.want(number, timeout)

    async def hold_by_hand_and_want(self, number: int, timeout: float | None = 5.0) -> None:
        """The same, without a block."""
        conn = await self.pool.acquire()
        try:
            await self.go[number].wait()
            await self.want(number, timeout)
        finally:
            self.pool.release(conn)

    async def want(self, number: int, timeout: float | None = 5.0) -> None:
        """Acquire, and note how that ended."""
        try:
            async with self.pool.acquire(timeout=timeout):
                self.ended[number] = "served"
        except (PoolDeadlock, PoolUnavailable) as error:
            self.ended[number] = error


async def test_last_one_to_close_the_circle_is_told_at_once() -> None:
    """It unwinds, and the other one is served."""
    async with Pool(CleanDriver(), max_size=2, acquire_timeout=None) as pool:
        couple = Couple(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(couple.hold_and_want, 0)
            group.start_soon(couple.hold_and_want, 1)
            await wait_all_tasks_blocked()
            couple.go[0].set()
            await wait_all_tasks_blocked()
            assert not couple.ended
            couple.go[1].set()
            await wait_all_tasks_blocked()
        assert isinstance(couple.ended[1], PoolDeadlock)
        assert couple.ended[0] == "served"
        stats = pool.stats()
        assert (stats.deadlocked, stats.leased, stats.waiting) == (1, 0, 0)


async def test_deadlock_is_no_shortage() -> None:
    """Trying again would not help: it is none of the errors that mean so."""
    assert not issubclass(PoolDeadlock, PoolUnavailable)


async def test_message_says_who_holds_and_waits_and_what_would_do() -> None:
    """With the places, and the size that the formula gives."""
    async with Pool(CleanDriver(), max_size=2, name="shop") as pool:
        async with pool.acquire(), pool.acquire():
            with pytest.raises(PoolDeadlock) as caught:
                await pool.acquire()
        text = str(caught.value)
        for part in ("'shop'", "2 leased", "capacity 2", "1 x (3 - 1) + 1 = 3"):
            assert part in text
        assert text.count("test_deadlock.py:") == 3
        assert text.count("waits at") == 1


async def test_task_that_waits_for_itself_is_told_at_once() -> None:
    """A circle of one."""
    async with Pool(CleanDriver(), max_size=1) as pool, pool.acquire():
        with pytest.raises(PoolDeadlock):
            async with pool.acquire():
                pass


@pytest.mark.parametrize("other", ["acquire", "transaction"])
async def test_every_kind_of_block_counts(other: str) -> None:
    """A transaction is a block like any other."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        block: Any = getattr(pool, other)()
        if other == "transaction":
            from tests.fakes import FullDriver

            async with Pool(FullDriver(), max_size=1) as full, full.transaction():
                with pytest.raises(PoolDeadlock):
                    await full.acquire()
            return
        async with block:
            with pytest.raises(PoolDeadlock):
                await pool.acquire()


# -- no verdict ----------------------------------------------------------------------------------


async def test_newcomer_that_holds_nothing_only_waits() -> None:
    """All others wait for each other already; but they were warned, not refused."""
    async with Pool(CleanDriver(), max_size=1, deadlock="warn") as pool:
        couple = Couple(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(couple.hold_and_want, 0, 0.2)
            await wait_all_tasks_blocked()
            couple.go[0].set()
            await wait_all_tasks_blocked()
            group.start_soon(couple.want, 1)
        assert isinstance(couple.ended[0], PoolTimeout)
        assert couple.ended[1] == "served"


async def test_lease_without_a_block_is_no_proof() -> None:
    """Anybody may release it: another task, a callback."""
    async with Pool(CleanDriver(), max_size=2) as pool:
        couple = Couple(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(couple.hold_by_hand_and_want, 0, 0.05)
            group.start_soon(couple.hold_and_want, 1)
            await wait_all_tasks_blocked()
            couple.go[0].set()
            await wait_all_tasks_blocked()
            couple.go[1].set()
        assert isinstance(couple.ended[0], PoolTimeout)
        assert couple.ended[1] == "served"


async def test_connection_that_was_held_by_hand_counts_again_in_a_block() -> None:
    """What was said of one lease is not said of the next one on the same connection."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        pool.release(await pool.acquire())
        async with pool.acquire():
            with pytest.raises(PoolDeadlock):
                await pool.acquire()


async def test_holder_that_works_may_release() -> None:
    """One of the two waits for something else."""
    async with Pool(CleanDriver(), max_size=2) as pool:
        couple = Couple(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(couple.hold_and_want, 0)
            group.start_soon(couple.hold_and_want, 1)
            await wait_all_tasks_blocked()
            couple.go[0].set()
            await wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert not couple.ended


async def test_holder_that_gives_up_soon_ends_the_circle() -> None:
    """Within a second: then it would have been a false alarm."""
    async with Pool(CleanDriver(), max_size=2) as pool:
        couple = Couple(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(couple.hold_and_want, 0, 0.1)
            group.start_soon(couple.hold_and_want, 1, 5.0)
            await wait_all_tasks_blocked()
            couple.go[0].set()
            await wait_all_tasks_blocked()
            couple.go[1].set()
        assert isinstance(couple.ended[0], PoolTimeout)
        assert couple.ended[1] == "served"


async def test_holder_that_gives_up_later_does_not() -> None:
    """Until then nobody would get anything."""
    async with Pool(CleanDriver(), max_size=2) as pool:
        couple = Couple(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(couple.hold_and_want, 0, 4.5)
            group.start_soon(couple.hold_and_want, 1, 5.0)
            await wait_all_tasks_blocked()
            couple.go[0].set()
            await wait_all_tasks_blocked()
            couple.go[1].set()
        assert isinstance(couple.ended[1], PoolDeadlock)


async def test_holder_that_is_being_cancelled_ends_the_circle() -> None:
    """It has not noticed yet, and will release."""
    async with Pool(CleanDriver(), max_size=2) as pool:
        couple = Couple(pool)
        async with anyio.create_task_group() as group, anyio.create_task_group() as doomed:
            doomed.start_soon(couple.hold_and_want, 0)
            await wait_all_tasks_blocked()
            couple.go[0].set()
            async with pool.acquire():
                await wait_all_tasks_blocked()
                doomed.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await couple.want(1)
            del group
        assert couple.ended == {1: "served"}


async def test_free_capacity_is_hope() -> None:
    """Another connection is on its way, or could be."""
    driver = CleanDriver()
    async with Pool(driver, max_size=1, max_overflow=1) as pool:
        async with pool.acquire(), pool.acquire() as second:
            assert second.number == 2
            with pytest.raises(PoolDeadlock):
                await pool.acquire()
        gate = anyio.Event()
        driver.script["connect"] = [gate]
        couple = Couple(pool)
        async with anyio.create_task_group() as group, pool.acquire():
            group.start_soon(couple.want, 0)
            async with anyio.create_task_group() as inner:
                inner.start_soon(couple.want, 1)
                await wait_all_tasks_blocked()
                gate.set()
        assert couple.ended == {0: "served", 1: "served"}


async def test_connection_in_its_reset_is_hope() -> None:
    """It will be free."""
    gate = anyio.Event()
    driver = CleanDriver(reset=[gate])
    async with Pool(driver, max_size=2) as pool, pool.acquire():
        async with pool.acquire() as conn:
            await conn.query()
            own(conn).dirty = True
            await conn.query()
        couple = Couple(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(couple.want, 0)
            await wait_all_tasks_blocked()
            gate.set()
        assert couple.ended == {0: "served"}


async def test_parent_that_holds_for_its_children_is_named_in_the_timeout() -> None:
    """That it waits for them cannot be known."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        couple = Couple(pool)
        async with pool.acquire(), anyio.create_task_group() as group:
            group.start_soon(couple.want, 0, 0.05)
        assert isinstance(couple.ended[0], PoolTimeout)
        assert "waits for tasks that acquire here may be waiting for itself" in str(couple.ended[0])


async def test_full_queue_comes_first() -> None:
    """Nobody is in a circle who is not in line."""
    async with Pool(CleanDriver(), max_size=1, max_waiting=0) as pool, pool.acquire():
        with pytest.raises(PoolBusy):
            await pool.acquire()


# -- for certain ---------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What one task does: come, hold, wait for more, and work on with all it has got."""

    comes: float
    works: float
    timeout: float | None
    works_on: float


async def play(
    plans: list[Plan], capacity: int, shedding: CoDel | None, deadlock: Deadlock
) -> list[tuple[float, type[BaseException] | None, float]]:
    """Return how each wait for a second connection ended: when it began, with what, and when."""
    ends: list[tuple[float, type[BaseException] | None, float]] = []
    options: PoolOptions = {
        "min_size": capacity,
        "max_size": capacity,
        "ping_after": None,
        "shedding": shedding,
        "deadlock": deadlock,
    }

    async def task(plan: Plan) -> None:
        await anyio.sleep(plan.comes)
        try:
            async with pool.acquire(timeout=None):
                await anyio.sleep(plan.works)
                began, error = anyio.current_time(), None
                try:
                    async with pool.acquire(timeout=plan.timeout):
                        ends.append((began, None, anyio.current_time()))
                        await anyio.sleep(plan.works_on)
                except (PoolDeadlock, PoolUnavailable) as caught:
                    error = type(caught)
                if error is not None:
                    ends.append((began, error, anyio.current_time()))
                    await anyio.sleep(plan.works_on)
        except (PoolDeadlock, PoolUnavailable):
            pass  # the first one was refused

    async with Pool(CleanDriver(), **options) as pool:
        with anyio.move_on_after(60.0):
            async with anyio.create_task_group() as group:
                for plan in plans:
                    group.start_soon(task, plan)
    return ends


def first_verdict(
    plans: list[Plan], capacity: int, shedding: CoDel | None
) -> tuple[float, float] | None:
    """Return when somebody was told first, and until when the same wait lasts with no verdicts."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        ends = runner.run(play(plans, capacity, shedding, "raise"))
    told = [began for began, error, _ in ends if error is PoolDeadlock]
    if not told:
        return None
    # Up to the first verdict both lives are the same.
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        others = runner.run(play(plans, capacity, shedding, "off"))
    return told[0], min((end for began, _, end in others if began == told[0]), default=NEVER)


TENTHS = st.integers(0, 15).map(lambda n: n / 10)
PLANS = st.builds(
    Plan,
    comes=TENTHS,
    works=TENTHS,
    timeout=st.none() | st.integers(1, 30).map(lambda n: n / 10),
    works_on=TENTHS,
)


@settings(max_examples=round(600 * SHARE), deadline=None)
@given(
    plans=st.lists(PLANS, min_size=1, max_size=5),
    capacity=st.integers(1, 3),
    shedding=st.none() | st.sampled_from([CoDel(), CoDel(target=0.5, interval=1.5)]),
)
def test_who_is_told_would_have_waited_for_a_second_at_least(
    plans: list[Plan], capacity: int, shedding: CoDel | None
) -> None:
    """And nobody is told who would have been served, or refused, within it."""
    if (found := first_verdict(plans, capacity, shedding)) is not None:
        began, end = found
        assert end - began >= CERTAIN_FOR - 1e-9


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (0.5, 1.4, False),  # the first one's own wait ends after half a second
        (0.5, None, False),
        (None, 0.5, False),  # so does the newcomer's
        (1.0, 30.0, False),
        (1.2, 30.0, True),
        (None, None, True),
        (30.0, 1.0, True),  # just long enough
    ],
)
def test_verdict_depends_on_the_earliest_deadline_in_the_circle(
    first: float | None, second: float | None, told: bool
) -> None:
    """Whoever it is, and whatever the newcomer's own."""
    plans = [Plan(0.0, 0.0, first, 0.0), Plan(0.0, 0.1, second, 0.0)]
    assert (first_verdict(plans, 2, None) is not None) == told


def test_overload_policy_that_refuses_somebody_soon_ends_the_circle() -> None:
    """Then it is no deadlock; one that takes its time is."""
    plans = [Plan(0.0, 0.0, 30.0, 0.0), Plan(0.0, 0.1, 30.0, 0.0)]
    assert first_verdict(plans, 2, CoDel(target=0.05, interval=0.5)) is None
    assert first_verdict(plans, 2, CoDel(target=0.5, interval=5.0)) is not None


def test_circle_that_gets_no_verdict_ends_with_its_first_deadline() -> None:
    """The one who gives up is told of the timeout, and the other is served."""
    plans = [Plan(0.0, 0.0, 0.5, 0.0), Plan(0.0, 0.25, 1.5, 0.0)]
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        ends = runner.run(play(plans, 2, None, "raise"))
    assert [(error, round(end, 3)) for _, error, end in ends] == [(PoolTimeout, 0.5), (None, 0.5)]


# -- the option ----------------------------------------------------------------------------------


async def wait_for_oneself(reaction: Deadlock) -> None:
    """Hold the only connection and wait for another one, until that is cancelled."""
    couple = Couple(pool := Pool(CleanDriver(), max_size=1, deadlock=reaction))
    couple.go[0].set()
    async with pool, anyio.create_task_group() as group:
        group.start_soon(couple.hold_and_want, 0)
        await wait_all_tasks_blocked()
        assert pool.stats().waiting == 1
        group.cancel_scope.cancel()
    assert not couple.ended
    stats = pool.stats()
    assert (stats.waiting, stats.leased, stats.cancelled) == (0, 0, 1)


async def test_warn_logs_it_and_waits(caplog: pytest.LogCaptureFixture) -> None:
    """As long as any other."""
    await wait_for_oneself("warn")
    assert "deadlock: every task that holds a connection is waiting" in caplog.text


async def test_off_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It waits to its deadline."""
    await wait_for_oneself("off")
    assert "deadlock" not in caplog.text


async def test_unknown_reaction_is_refused() -> None:
    """With those there are."""
    with pytest.raises(PoolConfigError, match="'raise', 'warn' or 'off'"):
        Pool(CleanDriver(), deadlock="ignore")  # type: ignore[arg-type]


async def test_holder_that_has_ended_is_no_proof() -> None:
    """A task that has left its block behind is not waiting; its lease is reclaimed."""
    async with Pool(CleanDriver(), max_size=2) as pool:
        left: list[Any] = []

        async def leave_it() -> None:
            lease = pool.acquire()
            left.append((lease, await lease.__aenter__()))

        async with anyio.create_task_group() as group:
            group.start_soon(leave_it)
        async with pool.acquire():
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.05)
            lease, _ = left.pop()
            await lease.__aexit__(None, None, None)
    gc.collect()


async def test_log_handler_that_raises_costs_no_place_in_line() -> None:
    """Whoever is warned of waits, or leaves the queue."""
    logger = logging.getLogger("poolkit")
    handler = logging.Handler()
    told: list[object] = []

    def emit(record: object) -> None:
        told.append(record)
        raise RuntimeError("of the handler")

    handler.emit = emit  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        await wait_for_oneself("warn")
    finally:
        logger.removeHandler(handler)
    assert told
