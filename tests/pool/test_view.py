"""The view: everything a connection is, until it is given back; then nothing at all."""

from __future__ import annotations

import copy
import pickle

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from poolkit import NotLeased, Pool
from tests.fakes import CleanDriver, FakeConnection, FakeDriver, FullDriver


async def test_view_forwards_both_ways() -> None:
    """Methods, attributes, assignments, deletions, special methods, dir, isinstance."""
    driver = CleanDriver()
    async with Pool(driver) as pool, pool.acquire() as conn:
        real = next(iter(driver.alive))
        assert isinstance(conn, FakeConnection)
        assert conn.__class__ is FakeConnection
        assert await conn.query("x") == "x"
        assert await conn.query_later() == "later"
        assert conn.shared == "class attribute"
        conn.label = "mine"
        assert real.label == "mine"
        del conn.label
        assert not hasattr(real, "label")
        assert len(conn) == 7
        async with conn as entered:
            assert entered == "entered"
        assert "query" in dir(conn)
        assert "leased from pool 'fake'" in repr(conn)
        with pytest.raises(AttributeError):
            getattr(conn, "nonsense")  # noqa: B009  # a type checker knows that it is nonsense


async def test_released_view_raises_for_every_attribute() -> None:
    """And says where it was released; the connection is not touched."""
    async with Pool(CleanDriver()) as pool:
        async with pool.acquire() as conn:
            pass
        for name in ("query", "label", "cursor", "number", "nonsense"):
            with pytest.raises(NotLeased, match=r"end of the block entered at .*test_view.py:\d+"):
                getattr(conn, name)
        with pytest.raises(NotLeased):
            conn.label = "other's"
        with pytest.raises(NotLeased):
            del conn.label
        with pytest.raises(NotLeased):
            len(conn)
        with pytest.raises(NotLeased):
            dir(conn)
        with pytest.raises(NotLeased):
            async with conn:
                pass
        assert repr(conn) == "<released connection of pool 'fake'>"
        assert isinstance(conn, FakeConnection)


async def test_method_kept_past_release_is_dead() -> None:
    """A bound method, and a coroutine made earlier and awaited later."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        async with pool.acquire() as conn:
            method, plain, coroutine = conn.query, conn.peek, conn.query()
        async with pool.acquire() as other:
            with pytest.raises(NotLeased):
                await method()
            with pytest.raises(NotLeased):
                plain()
            with pytest.raises(NotLeased):
                await coroutine
            assert await other.query() == "row"


async def test_view_cannot_be_copied_or_pickled() -> None:
    """A second handle on one lease would outlive the first."""
    async with Pool(FakeDriver()) as pool, pool.acquire() as conn:
        for copier in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be copied"):
                copier(conn)


async def test_busy_connection_is_never_handed_on_as_it_is() -> None:
    """A child task's query outlives the block: the connection is reset before its next use."""
    driver = CleanDriver()
    async with Pool(driver, max_size=1) as pool, anyio.create_task_group() as group:
        async with pool.acquire() as conn:
            real = next(iter(driver.alive))
            real.gate = anyio.Event()
            group.start_soon(conn.query)
            await wait_all_tasks_blocked()
        assert pool.stats().recycling == 1
        real.gate.set()
        await wait_all_tasks_blocked()
        assert driver.calls["reset"] == 1
        assert pool.stats().idle == 1


async def test_late_end_of_an_operation_does_not_disturb_the_next_lease() -> None:
    """What was under way when a lease ended is not counted against the next one."""
    driver = CleanDriver()
    async with Pool(driver, max_size=1) as pool, anyio.create_task_group() as group:
        async with pool.acquire() as conn:
            real = next(iter(driver.alive))
            real.gate = anyio.Event()
            group.start_soon(conn.query)
            await wait_all_tasks_blocked()
        async with pool.acquire() as conn:
            slot = next(iter(pool._book.leased))
            assert slot.busy == 0
            real.gate.set()
            await wait_all_tasks_blocked()
            assert slot.busy == 0
        assert driver.calls["reset"] == 1


async def test_object_made_from_a_connection_is_revoked_at_release() -> None:
    """A cursor kept past release is dead, and the connection is reset."""
    driver = FullDriver()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            cursor = conn.cursor()
            assert await cursor.fetch() == "row"
        assert "revoke" in driver.log
        async with pool.acquire():
            with pytest.raises(Exception, match="revoked"):
                await cursor.fetch()
        assert driver.calls["reset"] == 1


async def test_object_made_without_a_way_to_revoke_it_retires_the_connection() -> None:
    """Or its holder would read the next user's session."""
    driver = CleanDriver()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            conn.cursor()
        assert pool.stats().retired == {"broken": 1}
        async with pool.acquire() as conn:
            assert conn.number == 2


async def test_cancelled_operation_has_the_connection_reset() -> None:
    """Also when the block itself goes on and ends well."""
    driver = CleanDriver()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await conn.query()
            assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert driver.calls["reset"] == 1


async def test_untouched_lease_needs_neither_reset_nor_question() -> None:
    """Nothing was done: nothing has to be undone."""
    driver = FakeDriver()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire():
            await checkpoint()
        assert pool.stats().idle == 1
        assert driver.calls["reset"] == 0
