"""Endings that hardly ever happen: of jobs, of loops, of runs, of what is kept to be raised again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
import trio
from anyio import wait_all_tasks_blocked

import poolkit._shell.life
import poolkit._shell.runtime
from poolkit import Pool, PoolClosed, WrongLoop
from poolkit._core.state import PoolState
from poolkit._shell.loop import BETWEEN
from poolkit._shell.view import held_slot
from tests.fakes import Boom, FakeConnection, FakeDriver, FullDriver, gone
from tests.pool.test_gates import RudeError

if TYPE_CHECKING:
    from collections.abc import Iterator

ON_ASYNCIO = pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")], indirect=True
)


class Deaf(FullDriver):
    """A driver of which one call goes on when it is cancelled, as if it had been done."""

    deaf_to = ""

    async def step(self, call: str) -> None:
        """Wait to be cancelled, and pay no heed."""
        if call != self.deaf_to:
            await super().step(call)
            return
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.deaf_to = ""


# -- what is kept to be raised again -------------------------------------------------------------


async def test_rude_errors_are_raised_together_and_not_without_end() -> None:
    """Ten are kept, of a driver that does nothing else."""
    driver = FullDriver(close=[RudeError(str(n)) for n in range(12)])
    with pytest.raises(BaseExceptionGroup, match="calls of FullDriver raised") as raised:
        async with Pool(driver, min_size=12, max_size=12):
            pass
    assert len(raised.value.exceptions) == 10


# -- jobs ----------------------------------------------------------------------------------------


async def test_connect_that_is_deaf_to_its_limit_is_late_all_the_same() -> None:
    """The hook is not begun: there is no time for it."""
    driver = Deaf()
    driver.deaf_to = "connect"
    seen: list[FakeConnection] = []

    async def on_connect(conn: FakeConnection) -> None:
        seen.append(conn)

    async with Pool(driver, min_size=1, connect_timeout=0.01, on_connect=on_connect) as pool:
        async with pool.acquire():
            pass
        assert pool.stats().connect_failures == 1
    assert [conn.number for conn in seen] == [2]


def old_news(pool: Pool[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every answer be read late, as after a stall of the loop."""
    assert pool._life is not None
    monkeypatch.setattr(pool._life.workers, "_is_old_news", lambda _: True)


async def test_ping_that_is_deaf_to_its_limit_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its answer was read late, and the time is over."""
    driver = Deaf()
    async with Pool(driver, min_size=1, max_size=1, ping_timeout=0.01) as pool:
        old_news(pool, monkeypatch)
        driver.deaf_to = "ping"
        pool._tell(pool._state.suspect, pool._now())
        pool._carry_out()
        async with pool.acquire():
            assert gone(pool.stats()) == {"broken": 1}


async def test_reset_whose_answer_is_old_is_followed_by_a_ping_that_may_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The session may have ended after the server had answered."""
    driver = FakeDriver(ping=[Boom("gone")])
    async with Pool(driver, min_size=1, max_size=1) as pool:
        old_news(pool, monkeypatch)
        async with pool.acquire() as conn:
            await conn.query()
        async with pool.acquire():
            assert driver.calls["ping"] >= 1
            assert gone(pool.stats()) == {"broken": 1}


class Telling(FullDriver):
    """One that tells when a reset is over."""

    has_reset = False

    async def reset(self, c: FakeConnection, /) -> str | None:
        """Reset, and tell."""
        note = await super().reset(c)
        self.has_reset = True
        return note


async def test_pool_that_ends_while_a_reset_waits_for_an_operation_ends_the_job() -> None:
    """It was about to look whether the operation of the ended lease has noticed."""
    driver = Telling()
    async with Pool(driver, min_size=1, max_size=1) as pool:
        conn = await pool.acquire()
        slot = held_slot(conn)
        await conn.query()
        slot.busy += 1  # it never notices
        pool.release(conn)
        while not driver.has_reset:
            await anyio.lowlevel.checkpoint()
        life = pool._life
        assert life is not None
        assert slot.state == "recycling"
        pool._collapse(life, None)
        await pool._wait_ended(life)
        assert life.ended
    assert driver.calls["reset"] == 1  # and no second one
    assert not driver.alive


async def test_reset_that_is_deaf_to_its_limit_is_the_last_beside_an_operation() -> None:
    """What would look whether that has ended would be cancelled instead."""
    driver = Deaf()
    async with Pool(driver, min_size=1, max_size=1, reset_timeout=0.01) as pool:
        conn = await pool.acquire()
        slot = held_slot(conn)
        await conn.query()
        slot.busy += 1
        driver.deaf_to = "reset"
        slot.cancelled = True
        pool.release(conn)
        async with pool.acquire():
            assert gone(pool.stats()) == {"broken": 1}


async def test_group_that_somebody_cancels_ends_the_pool_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A driver that leaves a cancel scope entered could."""
    async with Pool(FakeDriver(), min_size=1) as pool:
        await wait_all_tasks_blocked()
        life = pool._life
        assert life is not None
        assert life.workers._group is not None
        life.workers._group.cancel_scope.cancel()
        await life.wait_until(lambda: life.ended)
        with pytest.raises(PoolClosed):
            await pool.acquire()
    assert "cancelled, by nobody who may" in caplog.text


# -- leases --------------------------------------------------------------------------------------


@ON_ASYNCIO
async def test_acquire_in_a_callback_is_refused_with_a_hook_too() -> None:
    """There is no task that could hold the connection."""

    async def greet(_: object) -> None:
        pass

    raised: list[BaseException] = []

    def call_back() -> None:
        try:
            pool.acquire().__aenter__().send(None)
        except WrongLoop as error:
            raised.append(error)

    async with Pool(FakeDriver(), min_size=1, on_acquire=greet) as pool:
        asyncio.get_running_loop().call_soon(call_back)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(raised) == 1


@pytest.mark.parametrize("is_used", [False, True])
async def test_release_in_the_middle_of_an_event_is_done_after_it(*, is_used: bool) -> None:
    """And so is the settling."""
    async with Pool(FakeDriver(), min_size=1, max_size=1) as pool:
        conn = await pool.acquire()
        slot = held_slot(conn)
        if is_used:
            await conn.query()

        def strike() -> None:
            pool.release(conn)
            pool._carry_out()
            assert pool.stats().leased == 1

        pool._look(strike)
        pool._drain()
        assert pool.stats().leased == 0
        turn = slot.release_count
        pool._take_back(slot, turn - 1, None)  # as if it came too late
        assert slot.release_count == turn
        async with pool.acquire():
            pass


async def test_transaction_whose_manager_raises_the_blocks_own_error_is_rolled_back() -> None:
    """Some raise what others let through."""

    class Through:
        """Raises again what it is told of."""

        async def __aenter__(self) -> None:
            pass

        async def __aexit__(self, kind: object, error: BaseException | None, *_: object) -> None:
            assert error is not None
            raise error

    class Driver(FullDriver):
        def transaction(self, c: FakeConnection, **settings: Any) -> Any:
            return Through()

    async with Pool(Driver(), min_size=1, max_size=1) as pool:
        with pytest.raises(Boom, match="of the block"):
            async with pool.transaction() as conn:
                slot = held_slot(conn)
                raise Boom("of the block")
        assert not slot.cancelled


# -- readers -------------------------------------------------------------------------------------


async def test_thread_that_never_sees_the_same_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not look for ever."""
    async with Pool(FakeDriver(), min_size=1) as pool:

        def changing(_: float) -> Any:
            raise RuntimeError("OrderedDict mutated during iteration")

        monkeypatch.setattr(PoolState, "stats", lambda _, now: changing(now))
        with pytest.raises(RuntimeError, match="mutated"):
            await anyio.to_thread.run_sync(pool.stats)
        monkeypatch.undo()


async def test_loop_that_was_away_is_nothing_to_who_never_pings() -> None:
    """With `ping_after=None` what was heard is trusted for ever."""
    async with Pool(FakeDriver(), min_size=1, ping_after=None) as pool:
        pool._tell(pool._state.was_away, pool._now())
        async with pool.acquire():
            assert pool.stats().direct == 1


# -- loops ---------------------------------------------------------------------------------------


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Return a loop that is closed without a word to its tasks."""
    loop = asyncio.new_event_loop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield loop
        loop.close()
        gc.collect()


def close_without_a_word(loop: asyncio.AbstractEventLoop) -> None:
    """Close it under its tasks."""
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # as meant here
    loop.close()


def test_handle_dropped_after_its_loop_was_closed_ends_that_life(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Nobody had noticed before."""
    driver = FullDriver()
    pool = Pool(driver, min_size=2)
    loop.run_until_complete(pool.open())

    async def acquire() -> Any:
        return await pool.acquire()

    first, second = (loop.run_until_complete(acquire()) for _ in range(2))
    close_without_a_word(loop)
    del first
    gc.collect()
    assert pool._life is None
    for dead in driver.watched.values():  # as a socket does that is closed now
        dead()
    del second
    gc.collect()
    assert not driver.alive


@ON_ASYNCIO
async def test_cancellation_at_a_deadline_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same turn: before 4.15 anyio's scope takes both for its own."""

    class Greedy:
        """A scope that takes every cancellation for its own."""

        cancelled_caught = False

        def __init__(self, **_: object) -> None:
            pass

        def __enter__(self) -> Any:
            return self

        def __exit__(self, kind: object, *_: object) -> bool:
            self.cancelled_caught = kind is asyncio.CancelledError
            return self.cancelled_caught

    async def wait() -> None:
        with pool._runtime.limited(0.0):
            await asyncio.sleep(60)

    async with Pool(FakeDriver(), min_size=1) as pool:
        monkeypatch.setattr(anyio, "CancelScope", Greedy)
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        monkeypatch.undo()


@ON_ASYNCIO
async def test_task_factory_may_return_what_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some factories wrap their tasks."""
    async with Pool(FakeDriver(), min_size=1) as pool:
        runtime: Any = pool._runtime
        root, made = runtime._root, object()
        monkeypatch.setattr(runtime, "_create_task", lambda _: made)
        runtime.start_root(None)
        assert runtime._root is made
        runtime._root = root


# -- trio's run ----------------------------------------------------------------------------------


def test_finalizer_between_two_tasks_of_trio_is_seen() -> None:
    """The run loop calls instruments where a finalizer may strike."""
    seen: list[Any] = []

    class Between(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            runtime: Any = pool._runtime
            seen.append((runtime.where(), runtime._running(), runtime.is_interrupted()))

    async def main() -> None:
        async with pool:
            trio.lowlevel.add_instrument(between := Between())
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(between)

    pool = Pool(FakeDriver(), min_size=1)
    trio.run(main)
    assert (BETWEEN, None, True) in seen


def test_waiter_that_is_woken_by_itself_goes_on() -> None:
    """A finalizer does, when its task was about to wait."""

    async def main() -> None:
        async with Pool(FakeDriver(), min_size=1) as pool:
            runtime: Any = pool._runtime
            parking = runtime.create_parking()
            parking.task = trio.lowlevel.current_task()
            runtime.unpark(parking)
            await parking
            assert parking.unparked

    trio.run(main)


@pytest.mark.parametrize("waits", [True, False])
def test_what_ends_a_process_comes_out_of_trios_run(*, waits: bool) -> None:
    """Into the main task when that waits; not at all when it has ended first."""

    async def main() -> None:
        pool = await Pool(FakeDriver(), min_size=1).open()
        assert pool._runtime.end_run(SystemExit(3))
        if waits:
            for _ in range(3):
                await trio.lowlevel.cancel_shielded_checkpoint()
            await trio.sleep_forever()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(SystemExit) if waits else contextlib.nullcontext():
            trio.run(main)


def test_nothing_can_be_called_in_a_run_that_has_ended() -> None:
    """Who asks is told."""
    pools: list[Pool[Any]] = []

    async def main() -> None:
        async with Pool(FakeDriver(), min_size=1) as pool:
            pools.append(pool)

    trio.run(main)
    assert not pools[0]._runtime.call_soon(main)  # type: ignore[arg-type]


# -- the end of the process ----------------------------------------------------------------------


def test_exit_warns_of_the_pools_of_this_process_only(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened before a fork is the parent's, and what is closed nobody's."""
    pool = Pool(FakeDriver(), min_size=1, name="parents")
    loop.run_until_complete(pool.open())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        monkeypatch.setattr(pool._runtime, "forked", True)
        poolkit._shell.life._at_exit()
        monkeypatch.setattr(pool._runtime, "forked", False)
        assert not warned
        poolkit._shell.life._at_exit()
        poolkit._shell.life._warn_of_the_open(pool)
    assert [str(warning.message)[:13] for warning in warned] == ["pool 'parents"]
    loop.run_until_complete(pool.aclose())
