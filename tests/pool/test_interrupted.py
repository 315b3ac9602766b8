"""What breaks into the pool's own lines, or breaks them off, and is no call of a driver.

Threads that read, a stack that is used up, handlers of the log, values that cannot be compared,
finalizers that cancel.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import gc
import logging
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from anyio import wait_all_tasks_blocked

import poolkit
import poolkit.testing
from poolkit import Pool, PoolBusy, PoolError, Verdict
from poolkit._core.state import PoolState
from poolkit._shell.view import held_slot
from poolkit.testing._invariants import check_state
from tests.fakes import Boom, FakeDriver, FullDriver, gone
from tests.pool.storm import until_quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNTERS = (
    *("direct", "waited", "timed_out", "cancelled", "busy", "shed", "deadlocked", "failed"),
    "closed",
)


def counted(pool: Pool[Any]) -> dict[str, int]:
    """Return how acquires have ended."""
    stats = pool.stats()
    return {name: n for name in COUNTERS if (n := getattr(stats, name))}


# -- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", ["stats", "leases", "__repr__"])
async def test_thread_that_reads_keeps_nobody_from_acquiring(
    monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    """Wherever it is interrupted itself, and whatever the loop is amid."""
    reading, go_on = threading.Event(), threading.Event()
    async with Pool(FakeDriver(), min_size=1, max_size=1) as pool:
        stats_of_state, is_dead = pool._state.stats, pool._driver_is_dead

        def slow(now: float) -> Any:
            reading.set()
            go_on.wait()
            return stats_of_state(now)

        def amid(connection: Any) -> bool:
            pool._driver_is_dead = is_dead
            reader.start()
            if read != "leases":
                reading.wait()
            return is_dead(connection)

        monkeypatch.setattr(PoolState, "stats", lambda _, now: slow(now))
        pool._driver_is_dead = amid
        reader = threading.Thread(target=getattr(pool, read))
        async with pool.acquire():
            go_on.set()
            reader.join()
        assert not pool._amid
        async with pool.acquire():
            pass


async def test_thread_reads_again_what_has_changed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As long as it takes; the loop does not wait for it."""
    async with Pool(FakeDriver(), max_size=3) as pool:
        stats_of_state, tries = pool._state.stats, iter(range(3))

        def changing(now: float) -> Any:
            if next(tries, None) is not None:
                raise RuntimeError("OrderedDict mutated during iteration")
            return stats_of_state(now)

        monkeypatch.setattr(PoolState, "stats", lambda _, now: changing(now))
        assert (await anyio.to_thread.run_sync(pool.stats)).max_size == 3


# -- a stack that is used up ---------------------------------------------------------------------


def without_stack(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Have a call fail once, as one does that finds no stack left; servers live on after that."""
    call = getattr(owner, name)

    def fail(*_: object, **__: object) -> None:
        monkeypatch.setattr(owner, name, call)
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.parametrize("call", ["_take_back", "unpark"])
async def test_release_without_stack_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Nobody else could give back that lease."""
    async with Pool(FakeDriver(), min_size=1, max_size=1) as pool:

        async def wait() -> None:
            async with pool.acquire():
                pass

        async with anyio.create_task_group() as group:
            with pytest.raises(RecursionError):
                async with pool.acquire() as conn:
                    if call == "_take_back":
                        await conn.query()
                    else:
                        group.start_soon(wait)
                        await wait_all_tasks_blocked()
                    without_stack(monkeypatch, pool._runtime if call == "unpark" else pool, call)
            async with pool.acquire():
                check_state(pool._state, pool._now())


@pytest.mark.parametrize("call", ["_carry_out", "enqueue"])
async def test_waiter_without_stack_is_not_left_in_line(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It would be given what nobody takes."""
    async with Pool(FakeDriver(), min_size=0, max_size=1) as pool:
        without_stack(monkeypatch, PoolState if call == "enqueue" else pool, call)
        with pytest.raises(RecursionError):
            await pool.acquire()
        assert not pool._state.queue
        async with pool.acquire():
            check_state(pool._state, pool._now())


async def test_job_that_could_not_begin_is_owed_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """For want of stack, or by a task factory that raises."""
    async with Pool(FakeDriver(), min_size=0, max_size=1) as pool:
        await wait_all_tasks_blocked()
        without_stack(monkeypatch, pool._runtime, "spawn")
        with pytest.raises(RecursionError):
            await pool.acquire()
        async with pool.acquire():
            check_state(pool._state, pool._now())


# -- handlers of the log -------------------------------------------------------------------------


class Failed(BaseException):
    """What a test framework's handler raises to fail the test, and no `except Exception` catches."""


class Strict(logging.Handler):
    """Fails for each error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Fail."""
        raise Failed(record.getMessage())


@pytest.fixture
def _strict() -> Iterator[None]:
    logging.getLogger("poolkit").addHandler(handler := Strict(logging.ERROR))
    yield
    logging.getLogger("poolkit").removeHandler(handler)


@pytest.mark.usefixtures("_strict")
async def test_handler_of_the_log_that_raises_costs_no_slot() -> None:
    """In the middle of an acquire; whoever closes the pool sees what it has raised."""
    driver = FullDriver()
    with pytest.raises(Failed, match="is_dead raised"):
        async with Pool(driver, min_size=1, max_size=1) as pool:
            driver_is_dead = pool._driver_is_dead

            def rude(_: Any) -> bool:
                pool._driver_is_dead = driver_is_dead
                raise Boom("no answer")

            pool._driver_is_dead = rude
            for _ in range(2):
                async with pool.acquire():
                    check_state(pool._state, pool._now())
            assert counted(pool) == {"waited": 1, "direct": 1}


async def test_is_dead_whose_answer_is_none_costs_its_connection() -> None:
    """Such as an array, which is neither true nor false."""

    class Neither:
        def __bool__(self) -> bool:
            raise ValueError("ambiguous")

    async with Pool(FakeDriver(), min_size=1, max_size=1) as pool:
        driver_is_dead = pool._driver_is_dead

        def ask(_: Any) -> Any:
            pool._driver_is_dead = driver_is_dead
            return Neither()

        pool._driver_is_dead = ask
        async with pool.acquire() as conn:
            assert conn.number == 2
        assert pool.stats().retired["broken"] == 1


def _no_stderr(*_: object, **__: object) -> None:
    raise RuntimeError("what shows warnings is closed already")


async def test_warning_that_cannot_be_shown_costs_no_slot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A handle is collected while somebody else gives back: that one is not disturbed."""
    async with Pool(FakeDriver(), min_size=2, max_size=2) as pool:
        conn = await pool.acquire()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            monkeypatch.setattr(warnings, "showwarning", _no_stderr)
            async with pool.acquire():
                del conn
                gc.collect()
            monkeypatch.undo()
        await until_quiet(pool)
        assert not pool.leases()
    assert "was never released" in caplog.text


def test_warning_that_cannot_be_shown_does_not_end_trio(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the end of a run under an open pool."""

    async def main() -> None:
        await Pool(FakeDriver(), min_size=1).open()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", _no_stderr)
        trio.run(main)
        monkeypatch.undo()
    assert "was never closed" in caplog.text


# -- values of a user's --------------------------------------------------------------------------


async def test_context_variable_that_cannot_be_compared_ends_no_pool() -> None:
    """A clause of SQLAlchemy's, an array: what `==` gives is neither true nor false."""

    class Clause:
        def __eq__(self, other: object) -> Any:
            return self

        __hash__ = object.__hash__

        def __bool__(self) -> bool:
            raise TypeError("the truth of a clause is not known")

    variable = contextvars.ContextVar[Any]("variable")
    variable.set(Clause())

    async def on_connect(_: object) -> None:
        variable.set(Clause())

    async with Pool(FakeDriver(), min_size=2, on_connect=on_connect) as pool:
        async with pool.acquire():
            assert pool.stats().connected == 2


async def test_policy_that_cannot_be_shown_is_named() -> None:
    """Its own text may raise."""

    class Policy(poolkit.CoDel):
        def __repr__(self) -> str:
            raise Boom("no repr")

    async with Pool(FakeDriver(), max_size=1, shedding=Policy(target=0.01, interval=0.01)) as pool:
        async with pool.acquire():
            with pytest.raises(PoolBusy, match=r"shedding=<.*whose repr"):
                await pool.acquire()


# -- finalizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], indirect=True)
async def test_waiter_that_is_cancelled_while_it_is_woken_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a finalizer, just before the word that its wait is over."""
    async with Pool(FakeDriver(), min_size=1, max_size=1) as pool:

        async def wait() -> None:
            async with pool.acquire():
                pass

        async with pool.acquire():
            waiting = asyncio.create_task(wait())
            await wait_all_tasks_blocked()
            (waiter,) = pool._state.queue.values()

            class Struck:
                """Is cancelled when it is about to be woken."""

                def set_result(self, _: None) -> None:
                    waiting.cancel()
                    raise asyncio.InvalidStateError

            waiter.parking = Struck()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        check_state(pool._state, pool._now())
        async with pool.acquire():
            assert counted(pool) == {"direct": 2, "cancelled": 1}


async def test_acquire_in_the_middle_of_an_event_is_counted() -> None:
    """A finalizer's, which cannot be served."""
    async with Pool(FakeDriver(), max_size=1) as pool:

        def strike() -> None:
            lease: Any = pool.acquire()
            with pytest.raises(PoolBusy, match="a finalizer interrupted the pool"):
                lease.__aenter__().send(None)

        pool._look(strike)
        async with pool.acquire():
            assert counted(pool)["busy"] == 1


async def test_connection_that_comes_back_while_its_waiter_joins_the_line_is_there_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A finalizer gives it back in the middle of that; nobody is parked for it."""
    driver = FakeDriver(connect=[None, poolkit.testing.NEVER])
    async with Pool(driver, min_size=1, max_size=2) as pool:
        held = await pool.acquire()
        enqueue = PoolState.enqueue

        def interrupted(*args: Any) -> bool:
            has_decided = enqueue(*args)
            pool.release(held)
            return has_decided

        monkeypatch.setattr(PoolState, "enqueue", interrupted)
        lease = pool.acquire()
        assert lease.take_nowait() is None
        waiting = lease.wait()
        with pytest.raises(StopIteration) as done:
            waiting.send(None)
        conn = done.value.value
        assert conn.number == 1
        monkeypatch.undo()
        pool.release(conn)


async def test_note_that_a_finalizer_takes_just_before_the_pool_is_taken_once() -> None:
    """And what it has decided is carried out."""

    class Inbox(collections.deque[Any]):
        def popleft(self) -> Any:
            if len(self) == 1:
                pool._look(super().popleft())  # as a finalizer does that strikes here
            return super().popleft()

    driver = FakeDriver()
    async with Pool(driver, min_size=1, max_size=1) as pool:
        pool._inbox = Inbox()
        (slot,) = pool._state.idle
        slot.connection.dead = True
        pool._found_dead(slot)
        with anyio.fail_after(5):
            async with pool.acquire() as conn:
                assert conn.number == 2
        assert gone(pool.stats()) == {"broken": 1}
        assert driver.log.count("terminate") == 1


async def test_lease_used_twice_while_it_waits_counts_what_its_caller_saw() -> None:
    """An error, and not a lease."""
    async with Pool(FakeDriver(), max_size=1) as pool:
        ended: list[str] = []

        async def enter(lease: Any) -> None:
            try:
                async with lease:
                    ended.append("held")
            except PoolError:
                ended.append("refused")

        async with anyio.create_task_group() as group:
            async with pool.acquire():
                lease = pool.acquire()
                group.start_soon(enter, lease)
                group.start_soon(enter, lease)
                await wait_all_tasks_blocked()
        assert sorted(ended) == ["held", "refused"]
        assert counted(pool) == {"direct": 1, "waited": 1, "failed": 1}


async def test_error_of_an_object_made_before_the_lease_is_heeded() -> None:
    """Though its user has not touched the handle."""
    driver = FullDriver()
    async with Pool(driver, min_size=1, max_size=1) as pool:
        async with pool.acquire() as conn:
            slot = held_slot(conn)
            driver.verdicts[Boom] = Verdict.SUSPECT
            pool._found_dead(slot, Boom("out of step"))
        await until_quiet(pool)
        assert pool.stats().retired["broken"] == 1


# -- openings and closings -----------------------------------------------------------------------


async def test_opener_that_is_cancelled_when_it_was_served_leaves_the_pool_to_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are served in one turn of the loop, and the first is cancelled before it runs."""
    gate = anyio.Event()

    class Gated(FakeDriver):
        async def connect(self) -> Any:
            await gate.wait()
            return await super().connect()

    pool = Pool(Gated(), min_size=1)
    scope = anyio.CancelScope()

    async def first() -> None:
        with scope:
            await pool.open()

    async def second() -> None:
        await pool.open()
        async with pool.acquire():
            pass

    dismiss = pool._state.line.end

    def dismiss_and_cancel(waiter: Any, outcome: Any, *cause: Any) -> None:
        dismiss(waiter, outcome, *cause)
        if not pool._state.openers:
            scope.cancel()

    monkeypatch.setattr(pool._state.line, "end", dismiss_and_cancel)
    async with anyio.create_task_group() as group:
        group.start_soon(first)
        await wait_all_tasks_blocked()
        group.start_soon(second)
        await wait_all_tasks_blocked()
        gate.set()
    await pool.aclose()


@pytest.mark.parametrize("waits_for", ["leases", "closes"])
async def test_close_that_was_cancelled_does_not_forget_who_had_not_given_back(
    waits_for: str,
) -> None:
    """The next one says so, whatever it was waiting for."""
    driver = FakeDriver(close=[anyio.Event()])
    pool = await Pool(driver, min_size=2, close_timeout=None).open()

    async def hold() -> None:
        async with pool.acquire():
            await anyio.sleep_forever()

    async def close() -> None:
        with scope:
            await pool.aclose(grace=None if waits_for == "leases" else 0)

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        await wait_all_tasks_blocked()
        group.start_soon(close)
        await wait_all_tasks_blocked()
        assert bool(pool.leases()) is (waits_for == "leases")
        scope.cancel()
        await wait_all_tasks_blocked()
        (held,) = await pool.aclose()
        assert "hold" in held.place
        group.cancel_scope.cancel()


def test_end_of_a_run_is_no_fault_of_the_drivers(caplog: pytest.LogCaptureFixture) -> None:
    """Under an open pool, with resets under way: trio cancels them, in whatever order."""

    async def main() -> None:
        pool = await Pool(FakeDriver(), min_size=2).open()
        for _ in range(2):
            conn = await pool.acquire()
            await conn.query()
            pool.release(conn)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(8):
            trio.run(main)
    assert "raised" not in caplog.text


# -- what keeps a caller's frame -----------------------------------------------------------------


class Kept:
    """What a caller holds."""


@pytest.mark.parametrize("ends", ["commit", "deadlock"])
async def test_error_is_no_part_of_a_circle(ends: str) -> None:
    """Else all that its frames hold would stay until the collector comes."""
    fails = False

    class Failing(poolkit.testing.FakeDriver):
        async def step(self, call: str) -> None:
            if fails and call == "commit":
                raise Boom(call)

    async with Pool(Failing(), min_size=1, max_size=1) as pool:

        async def commit() -> None:
            nonlocal fails
            async with pool.transaction():
                fails = True

        async def deadlock() -> None:
            async with pool.acquire(), pool.acquire():
                pass

        async def caller() -> weakref.ref[Kept]:
            kept = Kept()
            reference = weakref.ref(kept)
            with contextlib.suppress(Boom, PoolError):
                await {"commit": commit, "deadlock": deadlock}[ends]()
            return reference

        gc.collect()
        gc.disable()
        try:
            reference = await caller()
            assert reference() is None
        finally:
            gc.enable()


def test_other_trio_than_is_known_ends_no_run() -> None:
    """What ends a process is then for whoever closes the pool."""

    async def main() -> None:
        async with Pool(FakeDriver(), min_size=1) as pool:
            runtime: Any = pool._runtime
            main_task, runtime._main = runtime._main, weakref.ref(kept := Kept())
            assert not runtime.end_run(KeyboardInterrupt())
            runtime._main = main_task
            del kept

    trio.run(main)
