"""`async with pool`, entered by several: the last one out closes it, `aclose` always does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import anyio
import pytest
import sniffio
import trio
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from poolkit import ConnectFailed, Pool, PoolClosed, WrongLoop
from tests.fakes import Boom, FakeConnection, FakeDriver, FullDriver


class User:
    """A task that is inside of `async with pool` until it is told to leave."""

    def __init__(self, pool: Pool[FakeConnection]) -> None:
        self.pool = pool
        self.inside = False
        self.error: BaseException | None = None
        self._leave = anyio.Event()
        self._left = anyio.Event()

    async def run(self) -> None:
        """Enter, wait, leave."""
        try:
            async with self.pool as same:
                assert same is self.pool
                self.inside = True
                await self._leave.wait()
        except Exception as error:
            self.error = error
        finally:
            self.inside = False
            self._left.set()

    async def leave(self) -> None:
        """Have it leave, and wait until it has."""
        self._leave.set()
        with anyio.fail_after(5):
            await self._left.wait()


async def query(pool: Pool[FakeConnection]) -> str:
    """Use the pool, which has to be open."""
    async with pool.acquire() as conn:
        return await conn.query()


def is_open(pool: Pool[Any]) -> bool:
    """Tell whether connections are to be had."""
    return "closed" not in repr(pool)


# -- counting ------------------------------------------------------------------------------------


async def test_inner_block_on_an_open_pool_leaves_it_open() -> None:
    """The outer one closes it."""
    driver = FakeDriver()
    pool = Pool(driver)
    async with pool:
        async with pool:
            assert await query(pool) == "row"
        assert await query(pool) == "row"
    assert not is_open(pool)
    assert driver.calls["connect"] == 1
    assert not driver.alive


async def test_last_task_to_leave_closes_the_pool() -> None:
    """Whoever has come first."""
    driver = FakeDriver()
    pool = Pool(driver)
    users = [User(pool) for _ in range(3)]
    async with anyio.create_task_group() as group:
        for user in users:
            group.start_soon(user.run)
            await wait_all_tasks_blocked()
        for user in (users[0], users[2]):
            await user.leave()
            assert await query(pool) == "row"
        await users[1].leave()
        assert not is_open(pool)
    assert driver.calls["connect"] == 1
    assert not driver.alive


async def test_block_that_fails_or_is_cancelled_counts_as_left() -> None:
    """Once, and the others go on."""
    pool = Pool(FakeDriver())
    async with pool:
        with pytest.raises(Boom):
            async with pool:
                raise Boom
        with anyio.CancelScope() as scope:
            async with pool:
                scope.cancel()
                await anyio.sleep_forever()
        assert await query(pool) == "row"
    assert not is_open(pool)


async def test_last_block_that_is_cancelled_closes_at_once() -> None:
    """A cancelled close means no grace."""
    driver = FakeDriver()
    pool = Pool(driver)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:

            async def hold() -> None:
                await pool.acquire()
                await anyio.sleep_forever()

            with anyio.CancelScope() as scope:
                async with pool:
                    group.start_soon(hold)
                    await wait_all_tasks_blocked()
                    scope.cancel()
                    await anyio.sleep_forever()
            assert not is_open(pool)
            assert not driver.alive
            group.cancel_scope.cancel()


async def test_entering_that_fails_counts_nothing() -> None:
    """The next one is the only one inside."""
    driver = FakeDriver(connect=[Boom("down")])
    pool = Pool(driver)
    with pytest.raises(ConnectFailed, match="down"):
        async with pool:
            raise AssertionError("entered")
    async with pool:
        assert await query(pool) == "row"
    assert not is_open(pool)


async def test_entering_that_is_cancelled_counts_nothing() -> None:
    """Neither while it opens the pool, nor beside one who does."""
    gate = anyio.Event()
    pool = Pool(FakeDriver(connect=[anyio.Event(), gate]))

    async def enter() -> None:
        async with pool:
            raise AssertionError("entered")

    async def be_cancelled() -> None:
        async with anyio.create_task_group() as entering:
            entering.start_soon(enter)
            await wait_all_tasks_blocked()
            entering.cancel_scope.cancel()

    await be_cancelled()
    assert not is_open(pool)
    user = User(pool)
    async with anyio.create_task_group() as group:
        group.start_soon(user.run)
        await wait_all_tasks_blocked()
        await be_cancelled()
        gate.set()
        await wait_all_tasks_blocked()
        assert user.inside
        await user.leave()
    assert not is_open(pool)


async def test_first_who_leaves_at_once_leaves_the_pool_to_those_who_are_entering() -> None:
    """All wait for the same connect, and the first one's block is over before the others' begin."""
    gate = anyio.Event()
    pool = Pool(FakeDriver(connect=[gate]))
    users = [User(pool) for _ in range(2)]

    async def hasty() -> None:
        async with pool:
            pass

    async with anyio.create_task_group() as group:
        group.start_soon(hasty)
        for user in users:
            group.start_soon(user.run)
        await wait_all_tasks_blocked()
        gate.set()
        await wait_all_tasks_blocked()
        assert [user.inside for user in users] == [True, True]
        await users[0].leave()
        assert await query(pool) == "row"
        await users[1].leave()
    assert not is_open(pool)


async def test_last_of_those_entering_closes_the_pool_if_it_is_cancelled() -> None:
    """When the others have left meanwhile: nobody else would."""
    driver = FakeDriver(connect=[gate := anyio.Event()])
    pool = Pool(driver)
    scope = anyio.CancelScope()

    async def hasty() -> None:
        async with pool:
            scope.cancel()

    async def late() -> None:
        with scope:
            async with pool:
                await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(hasty)
        group.start_soon(late)
        await wait_all_tasks_blocked()
        gate.set()
    assert not is_open(pool)
    assert not driver.alive
    async with pool:
        assert await query(pool) == "row"


async def test_the_same_pool_twice_in_one_stack_is_closed_once() -> None:
    """The stack, and not the block's own frame, enters and leaves."""
    driver = FakeDriver()
    pool = Pool(driver)
    async with contextlib.AsyncExitStack() as outer:
        await outer.enter_async_context(pool)
        async with contextlib.AsyncExitStack() as inner:
            await inner.enter_async_context(pool)
        assert await query(pool) == "row"
    assert not is_open(pool)


async def test_block_may_be_left_by_another_task_than_has_entered_it() -> None:
    """As the two halves of a fixture do; it is counted all the same."""
    pool = Pool(FakeDriver())
    stack = contextlib.AsyncExitStack()
    user = User(pool)
    async with anyio.create_task_group() as group:
        async with anyio.create_task_group() as first:
            first.start_soon(stack.enter_async_context, pool)
        group.start_soon(user.run)
        await wait_all_tasks_blocked()
        async with anyio.create_task_group() as second:
            second.start_soon(stack.aclose)
        assert await query(pool) == "row"
        await user.leave()
        assert not is_open(pool)


async def test_block_may_be_left_by_another_task_while_the_first_goes_on() -> None:
    """As by a supervisor that enters for a service, and is the last to end."""
    pool = Pool(FakeDriver())
    stack = contextlib.AsyncExitStack()
    done = anyio.Event()

    async def enter() -> None:
        await stack.enter_async_context(pool)
        await done.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(enter)
        await wait_all_tasks_blocked()
        assert await query(pool) == "row"
        await stack.aclose()
        assert not is_open(pool)
        done.set()


async def test_end_of_a_block_that_never_began_leaves_an_open_pool_open() -> None:
    """A handler of shutdown that runs although nobody has entered."""
    pool = await Pool(FakeDriver()).open()
    await pool.__aexit__(None, None, None)
    assert await query(pool) == "row"
    async with pool:
        pass
    assert await query(pool) == "row"
    await pool.aclose()


async def test_block_that_no_task_enters_counts_like_any_other() -> None:
    """A callback of the event loop may step a coroutine that has nothing to wait for."""
    pool = Pool(FakeDriver())
    first = User(pool)
    entered: list[bool] = []

    def call_back() -> None:
        with contextlib.suppress(StopIteration):
            pool.__aenter__().send(None)
        entered.append(True)

    async with anyio.create_task_group() as group:
        group.start_soon(first.run)
        await wait_all_tasks_blocked()
        call_soon(call_back)
        await wait_all_tasks_blocked()
        assert entered
        await first.leave()
        assert await query(pool) == "row"
        await pool.__aexit__(None, None, None)
        assert not is_open(pool)


def call_soon(function: Any) -> None:
    """Have the event loop call it, outside of any task."""
    if sniffio.current_async_library() == "trio":
        trio.lowlevel.current_trio_token().run_sync_soon(function)
    else:
        asyncio.get_running_loop().call_soon(function)


# -- aclose and open -----------------------------------------------------------------------------


async def test_aclose_closes_whoever_is_inside() -> None:
    """And the ends of their blocks, which come later, are silent."""
    driver = FakeDriver()
    pool = Pool(driver)
    user = User(pool)
    async with anyio.create_task_group() as group:
        group.start_soon(user.run)
        await wait_all_tasks_blocked()
        async with pool:
            await pool.aclose()
            assert not driver.alive
            with pytest.raises(PoolClosed):
                await pool.acquire()
        await user.leave()
    assert user.error is None
    assert not is_open(pool)


async def test_block_that_ends_while_aclose_is_under_way_shortens_no_grace() -> None:
    """Nor does it wait for the leases, one of which may be its own task's."""
    pool = Pool(FakeDriver(), max_size=2)
    released = anyio.Event()
    answers: list[str] = []

    async def hold() -> None:
        async with pool.acquire() as conn:
            await released.wait()
            answers.append(await conn.query())

    async with anyio.create_task_group() as group:
        async with pool:
            group.start_soon(hold)
            await wait_all_tasks_blocked()
            group.start_soon(lambda: pool.aclose(grace=None))
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        released.set()
    assert answers == ["row"]
    assert not is_open(pool)


async def test_pool_opened_by_open_is_closed_by_aclose_alone() -> None:
    """It belongs to whoever has opened it; the ends of blocks leave it open."""
    driver = FakeDriver()
    pool = await Pool(driver).open()
    for _ in range(2):
        async with pool:
            assert await query(pool) == "row"
        assert await query(pool) == "row"
    assert driver.calls["connect"] == 1
    await pool.aclose()
    assert not driver.alive


async def test_open_inside_of_a_block_keeps_the_pool_open() -> None:
    """Somebody else counts on it, and will close it."""
    pool = Pool(FakeDriver())
    async with pool:
        await pool.open()
    assert await query(pool) == "row"
    await pool.aclose()
    async with pool:  # in the next life nobody has
        pass
    assert not is_open(pool)


async def test_result_of_open_as_a_block_leaves_the_pool_open() -> None:
    """`async with await pool.open()` cannot be told from somebody else's `async with pool`."""
    async with await Pool(FakeDriver()).open() as pool:
        assert await query(pool) == "row"
    assert await query(pool) == "row"
    await pool.aclose()


async def test_open_under_way_keeps_the_pool_from_those_who_leave() -> None:
    """It was waiting for the same connect as who has left already."""
    gate = anyio.Event()
    pool = Pool(FakeDriver(connect=[gate]))

    async def hasty() -> None:
        async with pool:
            pass

    async with anyio.create_task_group() as group:
        group.start_soon(hasty)
        group.start_soon(pool.open)
        await wait_all_tasks_blocked()
        gate.set()
        await wait_all_tasks_blocked()
        assert await query(pool) == "row"
    await pool.aclose()


# -- one life after the other --------------------------------------------------------------------


async def test_block_of_an_earlier_life_leaves_the_next_one_open() -> None:
    """In which somebody else is inside; whose end closes it, whoever ends first."""
    for first_out in ("old", "new"):
        pool = Pool(FakeDriver())
        old, new = User(pool), User(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(old.run)
            await wait_all_tasks_blocked()
            await pool.aclose()
            group.start_soon(new.run)
            await wait_all_tasks_blocked()
            if first_out == "old":
                await old.leave()
                assert await query(pool) == "row"
            await new.leave()
            assert not is_open(pool)
            await old.leave()
        assert old.error is None
        assert not is_open(pool)


async def test_block_that_closes_and_reopens_its_pool_leaves_it_open() -> None:
    """What is open at its end was opened by `open`, or belongs to another block."""
    pool = Pool(FakeDriver())
    async with pool:
        await pool.aclose()
        await pool.open()
    assert await query(pool) == "row"
    await pool.aclose()
    async with pool:
        await pool.aclose()
        async with pool:
            assert await query(pool) == "row"
        assert not is_open(pool)
    assert not is_open(pool)


async def test_fixture_of_an_earlier_life_leaves_the_next_one_open() -> None:
    """The task that has entered for it has ended, and another one leaves."""
    pool = Pool(FakeDriver())
    stack = contextlib.AsyncExitStack()
    user = User(pool)
    async with anyio.create_task_group() as group:
        async with anyio.create_task_group() as first:
            first.start_soon(stack.enter_async_context, pool)
        gc.collect()
        await pool.aclose()
        group.start_soon(user.run)
        await wait_all_tasks_blocked()
        async with anyio.create_task_group() as second:
            second.start_soon(stack.aclose)
        assert await query(pool) == "row"
        await user.leave()
    assert not is_open(pool)


async def test_entering_while_the_last_one_out_closes_waits_and_opens_again() -> None:
    """As if it had come a moment later."""
    driver = FakeDriver(close=[gate := anyio.Event()])
    pool = Pool(driver, close_timeout=None)
    first, second, third = User(pool), User(pool), User(pool)
    async with anyio.create_task_group() as group:
        group.start_soon(first.run)
        await wait_all_tasks_blocked()
        group.start_soon(first.leave)
        await wait_all_tasks_blocked()
        group.start_soon(second.run)
        group.start_soon(third.run)
        await wait_all_tasks_blocked()
        assert not (second.inside or third.inside)
        gate.set()
        await wait_all_tasks_blocked()
        assert second.inside
        assert third.inside
        assert await query(pool) == "row"
        await second.leave()
        assert await query(pool) == "row"
        await third.leave()
    assert driver.calls["connect"] == 2
    assert not driver.alive


async def test_entering_while_closing_is_an_error_after_the_acquire_timeout() -> None:
    """And at once if the closing waits for the caller's own lease; nobody is inside then."""
    driver = FakeDriver()
    pool = await Pool(driver, max_size=2, acquire_timeout=0.4).open()
    done = anyio.Event()

    async def hold() -> None:
        async with pool.acquire():
            await wait_all_tasks_blocked()
            with anyio.fail_after(0.3), pytest.raises(PoolClosed, match="is being closed"):
                await pool.__aenter__()
            await done.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        await checkpoint()
        group.start_soon(lambda: pool.aclose(grace=None))
        await wait_all_tasks_blocked()
        with anyio.fail_after(5), pytest.raises(PoolClosed, match="is being closed"):
            async with pool:
                raise AssertionError("entered")
        done.set()
    async with pool:
        pass
    assert not is_open(pool)


async def test_entering_that_is_cancelled_while_the_pool_is_closed_counts_nothing() -> None:
    """And closing goes on."""
    pool = Pool(FakeDriver(close=[gate := anyio.Event()]), close_timeout=None)
    first = User(pool)
    async with anyio.create_task_group() as group:
        group.start_soon(first.run)
        await wait_all_tasks_blocked()
        group.start_soon(first.leave)
        await wait_all_tasks_blocked()
        with anyio.move_on_after(0.01) as scope:
            async with pool:
                raise AssertionError("entered")
        assert scope.cancelled_caught
        gate.set()
    assert not is_open(pool)
    async with pool:
        pass
    assert not is_open(pool)


# -- event loops ---------------------------------------------------------------------------------


def test_entering_on_another_loop_is_refused_and_counts_nothing() -> None:
    """While the pool is open, and while it is being closed."""
    driver = FakeDriver(close=[None, None])
    pool = Pool(driver)
    loop = asyncio.new_event_loop()

    async def elsewhere() -> None:
        with pytest.raises(WrongLoop):
            async with pool:
                raise AssertionError("entered")

    try:
        loop.run_until_complete(pool.__aenter__())
        asyncio.run(elsewhere())
        anyio.run(elsewhere, backend="trio")
        loop.run_until_complete(pool.__aexit__(None, None, None))
        assert not is_open(pool)
    finally:
        loop.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:.*was never awaited")
def test_blocks_of_a_loop_that_has_ended_do_not_count() -> None:
    """Whether it was closed without a word or has cancelled its tasks; the next block closes."""
    driver = FakeDriver()
    pool = Pool(driver)
    stack = contextlib.AsyncExitStack()

    async def enter() -> None:
        await stack.enter_async_context(pool)

    async def once() -> None:
        async with pool:
            assert await query(pool) == "row"
        assert not is_open(pool)
        assert not driver.alive

    for _ in range(2):
        asyncio.run(enter())
        anyio.run(once, backend="trio")
        loop = asyncio.new_event_loop()
        loop.run_until_complete(enter())
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # as meant here
        loop.close()
        asyncio.run(once())
    asyncio.run(stack.aclose())
    assert not is_open(pool)


def test_block_that_is_collected_after_its_loop_was_closed_closes_the_pool() -> None:
    """Where no loop is running, hence no task: the connections are terminated, without a word."""
    driver = FakeDriver()
    pool = Pool(driver)

    used = asyncio.Event()

    async def stay() -> None:
        async with pool:
            assert await query(pool) == "row"
            used.set()
            await asyncio.get_running_loop().create_future()

    loop = asyncio.new_event_loop()
    coroutine = stay()
    task = loop.create_task(coroutine)
    loop.run_until_complete(used.wait())
    assert driver.alive
    for one in asyncio.all_tasks(loop):
        one._log_destroy_pending = False  # type: ignore[attr-defined]  # as meant here
    loop.close()
    coroutine.close()
    assert not task.done()
    assert not is_open(pool)
    assert not driver.alive


async def test_driver_that_raises_at_the_end_is_seen_by_the_last_one_out() -> None:
    """What is neither an error nor a cancellation, and nobody has seen."""

    class RudeError(BaseException):
        pass

    class Rude(FullDriver):
        async def close(self, c: FakeConnection, /) -> None:
            raise RudeError

    pool = Pool(Rude())
    with pytest.raises(RudeError):
        async with pool:
            async with pool:
                pass
            assert await query(pool) == "row"
