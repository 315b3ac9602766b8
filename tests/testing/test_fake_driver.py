"""`FakeDriver`: what a script says is what happens, on every event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

import poolkit
from poolkit import Pool, PoolTimeout, Verdict
from poolkit.testing import NEVER, FakeDriver, Fault, VirtualTimeLoop


async def test_script_says_what_the_next_calls_do() -> None:
    """In turn; afterwards they succeed."""
    driver = FakeDriver(ping=[None, Fault("slow down")])
    c = await driver.connect()
    await driver.ping(c)
    with pytest.raises(Fault, match="slow down"):
        await driver.ping(c)
    await driver.ping(c)
    assert driver.calls == {"connect": 1, "ping": 3}
    assert driver.log == ["connect", "ping", "ping", "ping"]


async def test_script_without_a_list_says_what_every_call_does() -> None:
    """Until it is changed: an outage, and its end."""
    driver = FakeDriver(connect=Fault("no route", verdict=Verdict.TRANSIENT))
    async with Pool(driver, min_size=0, backoff_min=0.01, backoff_max=0.01) as pool:
        while driver.calls.get("connect", 0) < 2:
            with pytest.raises(PoolTimeout) as caught:
                await pool.acquire(timeout=0.05)
        assert "no route" in str(caught.value)
        del driver.script["connect"]
        async with pool.acquire(timeout=30.0) as conn:
            assert await conn.query() == "row"


async def test_event_is_waited_for_and_what_follows_it_is_done() -> None:
    """A tuple does its parts one after the other."""
    gate = anyio.Event()
    driver = FakeDriver(ping=[(gate, Fault("after all"))])
    c = await driver.connect()
    async with anyio.create_task_group() as group:

        async def ping() -> None:
            with pytest.raises(Fault, match="after all"):
                await driver.ping(c)

        group.start_soon(ping)
        await wait_all_tasks_blocked()
        assert c.active
        gate.set()
    assert not c.active


@pytest.mark.parametrize("never", [NEVER, ...])
async def test_never_hangs_until_the_connection_ends(never: object) -> None:
    """Terminated, here; the pending call raises."""
    driver = FakeDriver(query=[never])
    c = await driver.connect()
    async with anyio.create_task_group() as group:

        async def query() -> None:
            with pytest.raises(Fault, match="was ended"):
                await c.query()

        group.start_soon(query)
        await wait_all_tasks_blocked()
        driver.terminate(c)


def test_seconds_are_of_the_loops_clock() -> None:
    """An hour passes at once on a virtual one, for a pool too."""

    async def main() -> None:
        driver = FakeDriver(connect=[None, 3600.0])
        options = {"connect_timeout": None, "acquire_timeout": None}
        loop = asyncio.get_running_loop()
        async with Pool(driver, max_size=2, **options) as pool, pool.acquire():  # type: ignore[arg-type]
            async with pool.acquire():
                assert loop.time() >= 3600.0

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


def test_call_that_does_not_exist_is_refused() -> None:
    """A script with a slip of the pen would do nothing."""
    with pytest.raises(TypeError, match="no such call: conect"):
        FakeDriver(conect=[None])


async def test_rows_are_those_committed() -> None:
    """Written at once, or with the transaction, or not at all."""
    driver = FakeDriver()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.write("plain")
            with pytest.raises(KeyError):
                async with poolkit.transaction(conn):
                    await conn.write("undone")
                    raise KeyError
        async with pool.transaction() as conn:
            await conn.write("committed")
            assert driver.rows == ["plain"]
    assert driver.rows == ["plain", "committed"]
    assert driver.calls["commit"] == driver.calls["rollback"] == 1


async def test_crash_ends_all_connections_and_says_so() -> None:
    """The pool opens others, without anybody noticing."""
    driver = FakeDriver()
    async with Pool(driver, min_size=2) as pool:
        before = set(driver.alive)
        driver.crash()
        assert all(driver.is_dead(c) for c in before)
        await wait_all_tasks_blocked()
        async with pool.acquire(timeout=30.0) as conn:
            assert await conn.query() == "row"
        assert not before & driver.alive
        assert driver.most_alive == 2


async def test_silent_crash_is_found_out_by_the_next_operation() -> None:
    """Which the error says."""
    driver = FakeDriver()
    async with Pool(driver) as pool:
        driver.crash(silently=True)
        assert not driver.alive
        with pytest.raises(Fault, match="has ended") as caught:
            async with pool.acquire() as conn:
                await conn.query()
        assert caught.value.verdict is Verdict.DEAD
        assert pool.stats().retired["broken"] == 1


async def test_two_operations_at_once_are_refused() -> None:
    """As real connections do."""
    driver = FakeDriver(query=[NEVER])
    c = await driver.connect()
    async with anyio.create_task_group() as group:
        group.start_soon(c.query)
        await wait_all_tasks_blocked()
        with pytest.raises(Fault, match="another operation is under way"):
            await c.query()
        group.cancel_scope.cancel()


async def test_cursor_dies_with_its_lease() -> None:
    """And the next user has nothing to fear of it."""
    async with Pool(FakeDriver(), max_size=1) as pool:
        async with pool.acquire() as conn:
            cursor = conn.cursor()
            assert await cursor.fetch() == "row"
        with pytest.raises(Fault, match="revoked"):
            await cursor.fetch()


async def test_cursor_that_fails_tells_the_pool() -> None:
    """Its error counts at release, as one of the connection's own does, though it was caught."""
    driver = FakeDriver(query=[None, Fault("out of step", verdict=Verdict.SUSPECT)])
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            cursor = conn.cursor()
            await cursor.fetch()
            with pytest.raises(Fault, match="out of step"):
                await cursor.fetch()
        async with pool.acquire() as conn:
            assert conn.number == 2


async def test_pool_times_out_while_connecting_hangs() -> None:
    """What a program sees of a database that does not answer."""
    async with Pool(FakeDriver(connect=NEVER), min_size=0, acquire_timeout=0.01) as pool:
        with pytest.raises(PoolTimeout):
            await pool.acquire()


async def test_reset_tells_of_an_open_transaction() -> None:
    """For the pool to log."""
    driver = FakeDriver()
    c = await driver.connect()
    await c.begin()
    with pytest.raises(Fault, match="open already"):
        await c.begin()
    assert await driver.reset(c) == "an open transaction"
    assert await driver.reset(c) is None
    with pytest.raises(Fault, match="without a transaction"):
        await c.commit()


@pytest.mark.parametrize("wrong", [Fault, "slow", {"connect": None}])
async def test_script_that_means_nothing_is_refused(wrong: Any) -> None:
    """And not taken for a database that fails."""
    with pytest.raises(TypeError, match="in a script: give None, an exception"):
        await FakeDriver(connect=wrong).connect()
