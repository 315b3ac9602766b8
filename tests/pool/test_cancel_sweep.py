"""Cancelled at any step: whatever was going on, afterwards everything is where it should be.

Each scenario is begun again and again, and cancelled after one turn of the event loop, after two,
and so on, until it has ended by itself before its cancellation came.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

import poolkit
import poolkit._shell.lease
import poolkit._shell.pool
import poolkit._shell.transaction
from poolkit import AnotherConnection, Pool, PoolClosed
from poolkit.testing._invariants import check_state
from tests.effort import CASE, each, told
from tests.fakes import Boom, FakeConnection, FullDriver
from tests.pool.planting import plant
from tests.pool.virtual import only_workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Scenario = Callable[[Pool[FakeConnection]], Awaitable[None]]

MOST_STEPS = 200


async def open_close(pool: Pool[FakeConnection]) -> None:
    """Open and close."""
    await pool.aclose()
    try:
        async with pool:
            pass
    finally:
        assert not pool._state.is_open


async def wait_in_line(pool: Pool[FakeConnection]) -> None:
    """Hold a connection while others wait for it."""

    async def user() -> None:
        async with pool.acquire() as conn:
            await conn.query()

    async with anyio.create_task_group() as group:
        async with pool.acquire() as conn:
            for _ in range(3):
                group.start_soon(user)
            await conn.query()
            await checkpoint()


async def transactions(pool: Pool[FakeConnection]) -> None:
    """Commit one, roll one back, and one inside a lease."""
    async with pool.transaction() as conn:
        await conn.query()
    with pytest.raises(ValueError, match="roll back"):
        async with pool.transaction():
            raise ValueError("roll back")
    async with pool.acquire() as conn, poolkit.transaction(conn):
        await conn.query()


async def tried_again(pool: Pool[FakeConnection]) -> None:
    """Have one undone in its block, and one by its COMMIT, and do both again."""
    driver: Any = pool._driver
    driver.conflicts = {Boom}
    left = [Boom("conflict")]

    async def work(conn: FakeConnection) -> None:
        await conn.query()
        if left:
            raise left.pop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "random", lambda: 0.0)  # of the pauses nothing but a turn of the loop
        await pool.run(work)
        driver.script["commit"] = [Boom("conflict")]
        async for attempt in pool.attempts():
            async with attempt as conn:
                await conn.query()


async def close_while_held(pool: Pool[FakeConnection]) -> None:
    """Close with a holder that takes its time, and open again."""

    async def holder() -> None:
        with contextlib.suppress(PoolClosed):  # it may still have been in line
            async with pool.acquire() as conn:
                await conn.query()
                await checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(holder)
        await checkpoint()
        group.start_soon(pool.aclose)
    await pool.open()
    await pool.aclose()


async def leave_objects(pool: Pool[FakeConnection]) -> None:
    """Have each lease followed by a reset, while others wait."""

    async def user() -> None:
        async with pool.acquire() as conn:
            conn.cursor()
            await checkpoint()

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(user)


async def ask_for_another(pool: Pool[FakeConnection]) -> None:
    """Have `on_acquire` reject a connection, pause, and acquire another one."""
    greeted = 0

    async def on_acquire(conn: FakeConnection) -> None:
        nonlocal greeted
        greeted += 1
        await conn.query()
        if greeted == 1:
            raise AnotherConnection

    options = pool._state.options
    hook: Any = {"on_acquire": on_acquire, "backoff_min": 1e-9}
    pool._state.options, pool._has_hook = dataclasses.replace(options, **hook), True
    try:
        async with pool.acquire() as conn:
            await conn.query()
    finally:
        pool._state.options, pool._has_hook = options, False


SCENARIOS = [
    open_close,
    wait_in_line,
    transactions,
    tried_again,
    close_while_held,
    leave_objects,
    ask_for_another,
]


async def come_to_rest(pool: Pool[FakeConnection], driver: FullDriver) -> None:
    """Nothing may be held or waited for; after closing nothing is left; and the pool works."""
    await wait_all_tasks_blocked()
    stats = pool.stats()
    assert (stats.leased, stats.waiting, stats.size) == (0, 0, stats.idle), stats
    assert not any(conn.in_transaction for conn in driver.alive), "an open transaction"
    assert len(driver.alive) == stats.idle
    with anyio.fail_after(10):
        await pool.aclose()
    stats = pool.stats()
    assert (stats.size, stats.waiting) == (0, 0), stats
    assert not driver.alive
    assert stats.use_times.count == stats.wait_times.count, "I15: a lease ended twice, or never"
    check_state(pool._state, pool._now())
    with anyio.fail_after(10):
        async with pool, pool.acquire() as conn:
            assert await conn.query() == "row"
    assert not driver.alive


async def make() -> tuple[Pool[FakeConnection], FullDriver]:
    """Return an open pool of one, so that everything is contended."""
    driver = FullDriver()
    pool = Pool(driver, max_size=1, ping_after=0.0)
    # No finalizer shall make good what nobody has released.
    pool._reclaim = lambda slot, turn: None  # type: ignore[method-assign]
    return await pool.open(), driver


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_scope_cancelled_at_any_step_loses_nothing(scenario: Scenario) -> None:
    """By a cancel scope, which cancels again at every await."""
    for steps in each(range(MOST_STEPS)):
        with told(steps):
            pool, driver = await make()
            ended = False

            async def run(pool: Pool[FakeConnection] = pool) -> None:
                nonlocal ended
                await scenario(pool)
                ended = True

            async with anyio.create_task_group() as group:
                group.start_soon(run)
                for _ in range(steps):
                    await checkpoint()
                group.cancel_scope.cancel()
            await come_to_rest(pool, driver)
        if ended:
            print(f"{scenario.__name__}: {steps} steps")
            return
    assert CASE is not None, "the scenario never ended"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("resets", [contextlib.nullcontext, only_workers])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_task_cancelled_at_any_step_loses_nothing(
    scenario: Scenario,
    resets: Callable[[], contextlib.AbstractContextManager[None]],
    anyio_backend: Any,
) -> None:
    """By asyncio's own cancellation, which comes once and may hit a caller already served."""
    for steps in each(range(MOST_STEPS)):
        with told(steps):
            with resets():
                pool, driver = await make()
            task = asyncio.ensure_future(scenario(pool))
            for _ in range(steps):
                await checkpoint()
            ended = task.done()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None, task
            await come_to_rest(pool, driver)
        if ended:
            print(f"{scenario.__name__}: {steps} steps")
            return
    assert CASE is not None, "the scenario never ended"


# -- planted bugs --------------------------------------------------------------------------------


async def check_found(scenario: Scenario) -> None:
    """Check that the sweep of a scenario brings the planted bug to light."""
    with pytest.raises(BaseException) as caught:  # a lost slot shows in many ways
        await test_scope_cancelled_at_any_step_loses_nothing(scenario)
    assert "never ended" not in str(caught.value)


async def test_planted_waiter_that_does_not_give_up_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled in line."""
    pool = poolkit._shell.pool.Pool
    plant(
        monkeypatch,
        pool,
        "_leave_line",
        "self._tell(self._state.give_up, waiter, self._runtime.now())",
        "pass",
    )
    await check_found(wait_in_line)


async def test_planted_transaction_that_keeps_its_lease_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled while it begins."""
    kept = "await self._lease.__aexit__(type(error), error, None)"
    plant(monkeypatch, poolkit._shell.transaction.Transaction, "_end_lease", kept, "pass")
    await check_found(transactions)


async def test_planted_reset_left_out_after_a_cancellation_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cancelled transaction whose connection is handed on as it is."""
    asked = "slot.busy or slot.cancelled or slot.has_derived"
    plant(monkeypatch, poolkit._shell.pool.Pool, "_take_back", asked, "False")
    monkeypatch.setattr(FullDriver, "is_clean", lambda *_: True)
    await check_found(transactions)


async def test_planted_close_that_forgets_who_waits_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An open that is cancelled leaves the pool open for nobody."""
    given_up = "self._collapse(life, None)  # nobody else has opened it, or is about to"
    plant(monkeypatch, poolkit._shell.pool.Pool, "_open", given_up, "pass")
    await check_found(open_close)
