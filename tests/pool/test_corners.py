"""What hardly ever happens: two tasks in one lease, other threads, ended loops, a failing root."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
from anyio import wait_all_tasks_blocked

import poolkit
import poolkit._shell.life
import poolkit._shell.loop
from poolkit import NotLeased, Pool, PoolClosed, PoolError, WrongLoop
from poolkit._shell.kinds import attached
from poolkit._shell.limits import NOT_GIVEN
from tests.fakes import Boom, CleanDriver, FakeDriver, FullDriver, gone


async def test_lease_entered_by_two_tasks_at_once_is_held_by_one() -> None:
    """Both wait; the second to be served gives back what it got, and is told."""
    lease: Any = None
    outcomes: list[str] = []

    async def enter() -> None:
        try:
            async with lease:
                await wait_all_tasks_blocked()
                outcomes.append("held")
        except PoolError as error:
            outcomes.append(str(error))

    driver = CleanDriver()
    async with Pool(driver, max_size=2) as pool:
        lease = pool.acquire()
        async with anyio.create_task_group() as group:
            async with pool.acquire(), pool.acquire():
                group.start_soon(enter)
                group.start_soon(enter)
                await wait_all_tasks_blocked()
        outcomes.sort()
        assert outcomes[0] == "held"
        assert "used already" in outcomes[1]
        assert (pool.stats().leased, pool.stats().idle) == (0, 2)


async def test_function_kept_from_an_attribute_retires_the_connection() -> None:
    """It may act on the connection, and nothing can revoke it."""
    driver = CleanDriver()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            view: Any = conn
            view.label = print
            assert callable(view.label)
        assert gone(pool.stats()) == {"derived": 1}


def test_classes_without_end_are_not_remembered_without_end() -> None:
    """A library may make one for each query."""
    for number in range(2500):
        assert not attached[type(f"Row{number}", (), {})]
    assert len(attached) <= 1001


def test_signature_of_acquire_says_where_its_default_comes_from() -> None:
    """None would mean: no limit."""
    assert repr(NOT_GIVEN) == "<the pool's acquire_timeout>"


async def test_root_task_that_fails_closes_the_pool_with_its_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiters are told why, connections are ended, and the pool may be opened again."""
    fail = anyio.Event()

    async def upkeep(_: object) -> None:
        await fail.wait()
        raise Boom("upkeep")

    monkeypatch.setattr(poolkit._shell.life, "upkeep", upkeep)
    driver = FakeDriver()
    pool = await Pool(driver, max_size=1).open()
    conn = await pool.acquire()
    causes: list[BaseException | None] = []

    async def wait() -> None:
        with pytest.raises(PoolClosed) as told:
            await pool.acquire()
        causes.append(told.value.__cause__)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await wait_all_tasks_blocked()
        fail.set()
    (cause,) = causes
    assert isinstance(cause, ExceptionGroup)
    assert cause.subgroup(Boom)
    assert "root task failed" in caplog.text
    assert not driver.alive
    with pytest.raises(NotLeased):
        pool.release(conn)
    monkeypatch.undo()
    async with pool, pool.acquire() as conn:
        assert await conn.query() == "row"


async def test_open_while_closing_is_refused() -> None:
    """It would be closed under whoever opened it."""
    async with anyio.create_task_group() as group:
        pool = await Pool(FakeDriver(), max_size=1).open()
        conn = await pool.acquire()
        release = anyio.Event()

        async def close() -> None:
            await pool.aclose()

        group.start_soon(close)
        await wait_all_tasks_blocked()
        with pytest.raises(PoolClosed, match="is being closed"):
            await pool.open()
        pool.release(conn)
        release.set()


async def test_connection_taken_back_before_its_waiter_runs_is_not_handed_out() -> None:
    """The pool was closed between the hand-off and the next turn of the loop."""
    driver = CleanDriver()
    async with anyio.create_task_group() as group:
        pool = await Pool(driver, max_size=1).open()
        conn = await pool.acquire()
        told: list[str] = []

        async def wait() -> None:
            with pytest.raises(PoolClosed) as caught:
                await pool.acquire()
            told.append(str(caught.value))

        group.start_soon(wait)
        await wait_all_tasks_blocked()
        pool.release(conn)
        assert pool._life is not None
        pool._abandon_leases(pool._life)
        await wait_all_tasks_blocked()
        assert told == ["pool 'fake' was closed while handing out a connection"]
        await pool.aclose()
    assert not driver.alive


async def test_block_closed_in_another_thread_gives_back_by_the_inbox(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As the garbage collector may do; nobody knows what was going on, so it is not reused."""
    driver = CleanDriver()
    async with Pool(driver, max_size=1) as pool:
        lease = pool.acquire()
        conn = await lease.__aenter__()
        await conn.query()

        def leave() -> None:
            with pytest.raises(StopIteration):
                lease.__aexit__(None, None, None).send(None)

        await anyio.to_thread.run_sync(leave)
        with anyio.fail_after(5):
            async with pool.acquire() as another:
                assert another.number == 2
    assert "was never released" in caplog.text


async def test_note_about_a_lease_that_has_ended_changes_nothing() -> None:
    """It was given back after the note was left, before anybody read it."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        conn: Any = await pool.acquire()
        slot, turn = conn._poolkit_slot, conn._poolkit_release_count
        pool.release(conn)
        pool._dropped(slot, turn)
        await wait_all_tasks_blocked()
        pool._upkeep()
        assert (pool.stats().idle, gone(pool.stats())) == (1, {})


async def test_closed_pool_may_be_resized_and_has_nothing_to_renew() -> None:
    """The next opening finds the new sizes."""
    pool = Pool(FakeDriver(), max_size=1)
    pool.resize(max_size=2)
    pool.renew()
    async with pool, pool.acquire(), pool.acquire():
        assert pool.stats().leased == 2


def _open_and_keep(driver: FakeDriver, kept: list[Any]) -> Any:
    async def main() -> None:
        pool = await Pool(driver, max_size=1).open()
        kept.append((pool, await pool.acquire()))

    return main


RUNS = {"asyncio": lambda main: asyncio.run(main()), "trio": trio.run}


@pytest.mark.parametrize("backend", RUNS)
def test_lease_that_outlives_its_loop_has_ended_with_it(backend: str) -> None:
    """There is nobody to close it politely."""
    driver, kept = FakeDriver(), []  # type: ignore[var-annotated]
    RUNS[backend](_open_and_keep(driver, kept))
    pool, conn = kept.pop()
    assert not driver.alive
    with pytest.raises(NotLeased):
        pool.release(conn)


@pytest.mark.parametrize("backend", RUNS)
def test_lease_dropped_after_its_loop_has_ended_changes_nothing(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection has ended with the loop; that the pool was never closed is said already."""
    driver, kept = FakeDriver(), []  # type: ignore[var-annotated]
    RUNS[backend](_open_and_keep(driver, kept))
    pool, conn = kept.pop()
    del conn
    gc.collect()
    assert not driver.alive
    assert pool.stats().size == 0
    assert "was never released" not in caplog.text


@pytest.mark.parametrize("backend", RUNS)
def test_lease_dropped_after_a_fork_touches_nothing(backend: str) -> None:
    """The parent's loop is not the child's to wake."""
    driver = FakeDriver()

    async def main() -> None:
        async with Pool(driver, max_size=1) as pool:
            conn = await pool.acquire()
            pool._runtime.forked = True
            del conn
            assert len(driver.alive) == 1
            pool._runtime.forked = False
            pool._upkeep()
            assert not driver.alive

    RUNS[backend](main)


async def test_slot_shows_its_state() -> None:
    """For whoever debugs the pool."""
    async with Pool(FullDriver(), max_size=1) as pool:
        conn: Any = await pool.acquire()
        assert repr(conn._poolkit_slot).startswith("<Slot leased <")
        pool.release(conn)


async def test_transaction_left_with_an_error_after_its_release_keeps_the_error() -> None:
    """It was rolled back with the lease; what the block raised is what counts."""
    async with Pool(FullDriver(), max_size=1) as pool:
        with pytest.raises(Boom, match="of the block"):
            async with pool.transaction() as conn:
                pool.release(conn)
                raise Boom("of the block")


async def test_transaction_spoiled_inside_keeps_the_error_of_the_block() -> None:
    """It is not committed, and nothing is said about that: the block raised something else."""
    driver = FullDriver()
    async with Pool(driver, max_size=1) as pool:
        with pytest.raises(Boom, match="of the block"):
            async with pool.transaction() as conn:
                with anyio.CancelScope() as scope:
                    async with poolkit.transaction(conn):
                        scope.cancel()
                        await conn.query()
                raise Boom("of the block")
        await wait_all_tasks_blocked()
        assert driver.calls["commit"] == 0
        assert driver.calls["reset"] == 1


async def test_release_takes_in_first_what_has_been_noted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A handle was dropped a moment ago: its connection is gone before the other is back."""
    async with Pool(CleanDriver(), max_size=2) as pool:
        dropped, kept = await pool.acquire(), await pool.acquire()
        del dropped
        gc.collect()
        assert pool.stats().leased == 2
        pool.release(kept)
        assert (pool.stats().leased, pool.stats().idle) == (0, 1)
        assert gone(pool.stats()) == {"broken": 1}
    assert "was never released" in caplog.text


async def test_pool_knows_in_a_child_process_that_it_is_the_parents() -> None:
    """What runs after a fork marks every pool that is open; nothing of them is touched."""
    driver = FakeDriver()
    async with Pool(driver, max_size=1) as pool:
        calls = dict(driver.calls)
        before = [(runtime, dict(vars(runtime))) for runtime in poolkit._shell.loop._runtimes]
        poolkit._shell.loop._after_fork()
        try:
            with pytest.raises(WrongLoop, match="before a fork"):
                await pool.acquire()
            assert dict(driver.calls) == calls
        finally:
            for runtime, was in before:
                vars(runtime).update(was)


def test_platform_without_fork_needs_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is imported as it would be there."""
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    place = poolkit._shell.loop.__file__
    spec = importlib.util.spec_from_file_location("poolkit._loop_without_fork", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module._runtimes
