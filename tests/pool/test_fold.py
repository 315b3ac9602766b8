"""A driver that undoes a lease with its COMMIT: what it is told, and what is believed of it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import poolkit
from poolkit import Pool
from poolkit.testing import check_pool
from tests.fakes import Boom, FakeConnection, FakeTransaction, FullDriver, own


class Folding(FakeTransaction):
    """Undoes the lease with the COMMIT, if it may."""

    ends_lease = False
    has_reset = False

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        """Note what the pool has said."""
        driver: Any = self.connection.driver
        driver.told.append(self.ends_lease)
        await super().__aexit__(kind, error, traceback)
        self.has_reset = self.ends_lease and driver.folds
        if self.has_reset:
            self.connection.dirty = False


class Connection(FakeConnection):
    """One whose statements may fail."""

    async def fail(self, error: Exception) -> None:
        """Fail."""
        raise error


class Driver(FullDriver):
    """Every lease needs a reset, which may go with the COMMIT."""

    kind = Connection

    def __init__(self, **script: Any) -> None:
        super().__init__(**script)
        self.folds = True
        self.told: list[bool] = []

    def is_clean(self, c: FakeConnection) -> bool:
        """Say no."""
        return False

    def transaction(self, c: FakeConnection, **settings: Any) -> Folding:
        """Return one that can."""
        return Folding(c, settings)


async def test_lease_that_was_undone_with_its_commit_needs_no_reset() -> None:
    """The connection is idle at once; what was made from it is dead all the same."""
    driver = Driver()
    async with Pool(driver) as pool:
        async with pool.transaction() as conn:
            await conn.query()
        assert (pool.stats().idle, pool.stats().recycling) == (1, 0)
        assert driver.log[-1] == "revoke"
        await check_pool(pool)
    assert (driver.told, driver.calls["reset"]) == ([True], 0)


async def test_lease_that_was_not_undone_is_reset() -> None:
    """The driver has decided so, and says it."""
    driver = Driver()
    driver.folds = False
    async with Pool(driver) as pool:
        async with pool.transaction() as conn:
            await conn.query()
        await check_pool(pool)
    assert (driver.told, driver.calls["reset"]) == ([True], 1)


async def test_commit_that_fails_is_followed_by_a_reset() -> None:
    """Its error is the caller's."""
    driver = Driver(commit=[Boom("commit")])
    async with Pool(driver) as pool:
        with pytest.raises(Boom):
            async with pool.transaction() as conn:
                await conn.query()
        await check_pool(pool)
    assert driver.calls["reset"] == 1


async def test_block_on_a_held_connection_does_not_end_its_lease() -> None:
    """More may be done in it, in the session as it is."""
    driver = Driver()
    async with Pool(driver) as pool:
        async with pool.acquire() as conn, poolkit.transaction(conn):
            await conn.query()
        await check_pool(pool)
    assert (driver.told, driver.calls["reset"]) == ([False], 1)


async def test_lease_with_objects_made_from_it_is_reset() -> None:
    """They may act on the connection until the release has ended them."""
    driver = Driver()
    async with Pool(driver) as pool:
        async with pool.transaction() as conn:
            conn.cursor()
        await check_pool(pool)
    assert (driver.told, driver.calls["reset"]) == ([False], 1)


async def test_lease_in_which_an_operation_is_under_way_is_reset() -> None:
    """It may do anything after the COMMIT."""
    driver = Driver()
    async with Pool(driver) as pool, anyio.create_task_group() as group:
        async with pool.transaction() as conn:
            own(conn).gate = ends = anyio.Event()
            group.start_soon(conn.query)
            await anyio.wait_all_tasks_blocked()
        ends.set()
        await check_pool(pool)
    assert driver.told == [False]
    assert driver.calls["reset"]


async def test_operation_begun_during_the_commit_is_reset() -> None:
    """The COMMIT has not undone it."""
    ends = anyio.Event()
    driver = Driver(commit=[ends])
    async with Pool(driver) as pool, anyio.create_task_group() as group:

        async def commit() -> None:
            async with pool.transaction() as conn:
                held.append(conn)
                await conn.query()

        held: list[Any] = []
        group.start_soon(commit)
        await anyio.wait_all_tasks_blocked()
        held[0].peek()
        ends.set()
        await anyio.wait_all_tasks_blocked()
        await check_pool(pool)
    assert (driver.told, driver.calls["reset"]) == ([True], 1)


async def test_commit_that_is_cancelled_is_followed_by_a_reset() -> None:
    """Nobody knows how far it has come."""
    driver = Driver(commit=[anyio.Event()])
    async with Pool(driver) as pool:
        with anyio.CancelScope() as scope:
            async with pool.transaction() as conn:
                await conn.query()
                scope.deadline = anyio.current_time()
        await check_pool(pool)
    assert driver.calls["reset"] == 1


async def test_attribute_of_a_lease_that_was_undone_is_restored() -> None:
    """What the pool undoes itself is undone at the release, as ever."""
    driver = Driver()
    async with Pool(driver) as pool:
        async with pool.transaction() as conn:
            conn.color = "red"  # type: ignore[attr-defined]
            connection = own(conn)
        assert not hasattr(connection, "color")
        assert driver.calls["reset"] == 0


async def test_error_of_a_statement_keeps_the_commit_alone() -> None:
    """One that says that the connection is to go: it goes."""
    driver = Driver()
    driver.verdicts = {Boom: poolkit.Verdict.SUSPECT}
    async with Pool(driver, max_size=1) as pool:
        async with pool.transaction() as conn:
            with pytest.raises(Boom):
                await conn.fail(Boom("broken"))  # type: ignore[attr-defined]
        assert pool.stats().retired["broken"] == 1
        await check_pool(pool)
    assert driver.told == [False]


async def test_block_that_is_told_so_ends_the_lease_of_a_held_connection() -> None:
    """Nothing more is done in it: the integration that has acquired it knows."""
    driver = Driver()
    async with Pool(driver) as pool:
        async with pool.acquire() as conn, poolkit.transaction(conn).ending_lease():
            await conn.query()
        await check_pool(pool)
    assert (driver.told, driver.calls["reset"]) == ([True], 0)
