"""Transactions: commit, roll back, and what cancellation leaves to the reset."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

import poolkit
from poolkit import NotLeased, Pool, PoolConfigError, PoolTimeout, TransactionEnded
from poolkit._shell import view as _view
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeTransaction, FullDriver, own
from tests.pool.virtual import RUNNERS


async def test_transaction_commits_at_the_end_of_the_block() -> None:
    """And gives the connection back."""
    driver = FullDriver()
    async with Pool(driver) as pool:
        async with pool.transaction() as conn:
            await conn.query()
        assert pool.stats().leased == 0
    assert driver.calls["commit"] == 1
    assert driver.calls["rollback"] == 0


async def test_transaction_settings_reach_the_driver() -> None:
    """Isolation and the like are the driver's business."""
    driver = FullDriver()
    async with Pool(driver) as pool, pool.transaction(isolation="serializable"):
        pass
    assert "begin {'isolation': 'serializable'}" in driver.log


async def test_transaction_rolls_back_after_an_error_before_giving_back() -> None:
    """In the caller's task, so that a retry elsewhere does not meet its locks."""
    driver = FullDriver()
    async with Pool(driver) as pool:
        with pytest.raises(Boom):
            async with pool.transaction() as conn:
                await conn.query()
                raise Boom
        assert driver.calls["rollback"] == 1
        assert driver.calls["commit"] == 0
        assert pool.stats().idle == 1


async def test_transaction_on_a_held_connection() -> None:
    """One lease, several transactions."""
    driver = FullDriver()
    async with Pool(driver) as pool, pool.acquire() as conn:
        for _ in range(2):
            async with poolkit.transaction(conn) as same:
                assert same is conn
                await conn.query()
        assert pool.stats().leased == 1
    assert driver.calls["commit"] == 2


async def test_transaction_after_cancellation_awaits_nothing_and_is_reset() -> None:
    """The reset job rolls back; the caller leaves at once."""
    driver = FullDriver(rollback=[anyio.Event()])
    async with Pool(driver, max_size=1) as pool:
        with anyio.CancelScope() as scope:
            async with pool.transaction() as conn:
                await conn.query()
                scope.cancel()
                await anyio.sleep_forever()
        assert driver.calls["rollback"] == 0
        await wait_all_tasks_blocked()
        assert driver.calls["reset"] == 1
        assert pool.stats().idle == 1


async def test_connection_of_a_cancelled_transaction_can_only_be_released() -> None:
    """A statement after it would join the open transaction, and be undone without a word."""
    driver = FullDriver()
    async with Pool(driver, max_size=1) as pool:
        conn = await pool.acquire()
        with anyio.CancelScope() as scope:
            async with poolkit.transaction(conn):
                scope.cancel()
                await conn.query()
        for name in ("peek", "query", "label"):
            with pytest.raises(NotLeased, match=r"was cancelled.*acquire another"):
                getattr(conn, name)
        with pytest.raises(NotLeased, match="was cancelled"):
            async with poolkit.transaction(conn):
                raise AssertionError("entered")
        await pool.release(conn)
        async with pool.acquire() as conn:
            assert await conn.query() == "row"
        assert driver.calls["reset"] == 1


async def test_cancelled_begin_and_commit_leave_the_connection_unusable_too() -> None:
    """Whether the transaction is open nobody knows."""
    driver = FullDriver(commit=[anyio.Event()])
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            with anyio.move_on_after(0.01):
                async with poolkit.transaction(conn):
                    pass
            with pytest.raises(NotLeased, match="was cancelled"):
                _ = conn.label
        async with pool.acquire() as conn:
            with anyio.CancelScope() as scope:
                scope.cancel()
                async with poolkit.transaction(conn):
                    raise AssertionError("entered")
            with pytest.raises(NotLeased, match="was cancelled"):
                conn.label = "mine"


async def test_transaction_whose_rollback_hangs_is_left_to_the_reset() -> None:
    """`reset_timeout` bounds it, and the caller sees its own error."""
    driver = FullDriver(rollback=[anyio.Event()])
    async with Pool(driver, max_size=1, reset_timeout=0.01) as pool:
        with pytest.raises(Boom):
            async with pool.transaction():
                raise Boom
        await wait_all_tasks_blocked()
        assert driver.calls["reset"] == 1


async def test_transaction_whose_rollback_fails_shows_the_callers_error() -> None:
    """The connection is reset before its next use."""
    driver = FullDriver(rollback=[ValueError("connection lost")])
    async with Pool(driver, max_size=1) as pool:
        with pytest.raises(Boom):
            async with pool.transaction():
                raise Boom
        await wait_all_tasks_blocked()
        assert driver.calls["reset"] == 1


async def test_failed_commit_is_the_callers_error() -> None:
    """And the connection is not handed on as it is."""
    driver = FullDriver(commit=[Boom("constraint")])
    async with Pool(driver, max_size=1) as pool:
        with pytest.raises(Boom, match="constraint"):
            async with pool.transaction() as conn:
                await conn.query()
        await wait_all_tasks_blocked()
        assert driver.calls["reset"] == 1
        assert pool.stats().idle == 1


async def test_failed_begin_gives_the_connection_back() -> None:
    """The block is not entered."""
    driver = FullDriver()
    async with Pool(driver, max_size=1) as pool:
        real = next(iter(driver.alive))
        real.gate = anyio.Event()
        with anyio.move_on_after(0.01) as scope:
            async with pool.transaction():
                raise AssertionError("entered")
        assert scope.cancelled_caught
        real.gate = None
        async with pool.acquire(timeout=1) as conn:
            assert await conn.query() == "row"


async def test_release_inside_a_transaction_is_an_error_at_its_end() -> None:
    """A commit that cannot happen must not look like one."""
    driver = FullDriver()
    async with Pool(driver, max_size=1) as pool:
        with pytest.raises(NotLeased):
            async with pool.transaction() as conn:
                await conn.query()
                pool.release(conn)
        await wait_all_tasks_blocked()
        assert driver.calls["commit"] == 0
        assert driver.calls["reset"] == 1


async def test_transaction_left_open_is_rolled_back_and_logged_once_per_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the place that left it; not at all when a cancellation explains it."""
    driver = FullDriver()
    async with Pool(driver, max_size=1) as pool:
        with caplog.at_level(logging.WARNING, "poolkit"):
            for _ in range(3):
                async with pool.acquire() as conn:
                    await conn.query()
                    own(conn).in_transaction = True
                await wait_all_tasks_blocked()
            with anyio.CancelScope() as scope:
                async with pool.acquire() as conn:
                    own(conn).in_transaction = True
                    scope.cancel()
                    await conn.query()
            await wait_all_tasks_blocked()
    assert driver.calls["reset"] == 4
    (record,) = caplog.records
    assert "an open transaction was left behind" in record.getMessage()
    assert "test_transaction.py:" in record.getMessage()


async def test_transaction_without_support_by_the_driver_says_so() -> None:
    """And gives the connection back."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        with pytest.raises(PoolConfigError, match="CleanDriver has no transactions"):
            async with pool.transaction():
                raise AssertionError("entered")
        assert pool.stats().leased == 0


async def test_transaction_on_something_else_is_refused() -> None:
    """Only a connection that is leased has transactions of ours."""
    with pytest.raises(NotLeased):
        poolkit.transaction(object())
    async with Pool(FullDriver()) as pool:
        async with pool.acquire() as conn:
            pass
        with pytest.raises(NotLeased, match="released"):
            poolkit.transaction(conn)


async def test_outer_transaction_does_not_commit_what_a_cancelled_inner_one_left() -> None:
    """Half of the inner work is there: the whole is rolled back."""
    driver = FullDriver()
    async with Pool(driver, max_size=1) as pool:
        with pytest.raises(NotLeased, match="was cancelled"):
            async with pool.transaction() as conn:
                with anyio.CancelScope() as scope:
                    async with poolkit.transaction(conn):
                        scope.cancel()
                        await conn.query()
        await wait_all_tasks_blocked()
        assert driver.calls["commit"] == 0
        assert driver.calls["reset"] == 1


# -- transactions that end before their block ----------------------------------------------------


class EndingDriver(FullDriver):
    """One that can tell whether a transaction is over."""

    def transaction(self, c: FakeConnection, **settings: Any) -> EndingTransaction:
        """Return a context manager."""
        return EndingTransaction(c, settings)


class EndingTransaction(FakeTransaction):
    """Over when its connection is in no transaction."""

    def has_ended(self) -> bool:
        """Look at the connection."""
        return not self.connection.in_transaction


@pytest.mark.parametrize("how", ["pool.transaction", "poolkit.transaction"])
async def test_operations_after_the_end_of_a_transaction_are_errors(how: str) -> None:
    """They would stand by themselves; the end of the block says so once more."""
    driver = EndingDriver()
    async with Pool(driver, max_size=1) as pool, contextlib.AsyncExitStack() as stack:
        with pytest.raises(TransactionEnded, match=r"is over.*raise an exception"):
            if how == "pool.transaction":
                block: Any = pool.transaction()
            else:
                block = poolkit.transaction(await stack.enter_async_context(pool.acquire()))
            async with block as conn:
                await conn.query()
                own(conn).in_transaction = False
                for operation in (conn_query(conn), nested(conn), conn_label(conn)):
                    with pytest.raises(TransactionEnded, match=re.escape(repr(pool.name))):
                        await operation
        assert driver.calls["commit"] == 0
        if how == "poolkit.transaction":
            assert await conn.query() == "row"  # in no block, it is a connection as any other
    assert driver.calls["connect"] == 1


async def conn_query(conn: Any) -> None:
    """Call a method."""
    await conn.query()


async def conn_label(conn: Any) -> None:
    """Set an attribute."""
    conn.label = "mine"


async def nested(conn: Any) -> None:
    """Begin another one inside."""
    async with poolkit.transaction(conn):
        raise AssertionError("entered")


async def test_error_of_the_block_is_what_is_seen_after_the_end_of_its_transaction() -> None:
    """It is the reason why nothing was committed."""
    async with Pool(EndingDriver(), max_size=1) as pool:
        with pytest.raises(Boom):
            async with pool.transaction() as conn:
                own(conn).in_transaction = False
                raise Boom
        async with pool.acquire() as conn:
            assert await conn.query() == "row"


async def test_end_of_a_transaction_inside_is_seen_in_the_blocks_around_it() -> None:
    """A ROLLBACK ends them all."""
    async with Pool(EndingDriver(), max_size=1) as pool:
        with pytest.raises(TransactionEnded):
            async with pool.transaction() as conn:
                with pytest.raises(TransactionEnded):
                    async with poolkit.transaction(conn):
                        own(conn).in_transaction = False
                with pytest.raises(TransactionEnded):
                    await conn.query()


async def test_block_that_outlives_the_one_around_it_leaves_the_lease_usable() -> None:
    """As those of two tasks on one connection may; what ended is not asked any more."""
    async with Pool(EndingDriver(), max_size=1) as pool, pool.acquire() as conn:
        around, inside = poolkit.transaction(conn), poolkit.transaction(conn)
        await around.__aenter__()
        await inside.__aenter__()
        await around.__aexit__(None, None, None)
        with pytest.raises(TransactionEnded):
            await inside.__aexit__(None, None, None)
        assert await conn.query() == "row"


async def test_release_inside_of_a_block_leaves_the_next_lease_alone() -> None:
    """Whether the transaction was over by then or not."""
    async with Pool(EndingDriver(), max_size=1) as pool:
        for ends_before in (True, False):
            with pytest.raises(NotLeased):
                async with pool.transaction() as conn:
                    if ends_before:
                        own(conn).in_transaction = False
                    pool.release(conn)
            async with pool.acquire() as conn:
                assert await conn.query() == "row"


async def test_release_while_a_transaction_begins_leaves_the_next_lease_alone() -> None:
    """Its block is of the lease that is over."""
    async with Pool(EndingDriver(), max_size=1) as pool:
        conn: Any = await pool.acquire()
        own(conn).gate = gate = anyio.Event()

        async def begin() -> None:
            with pytest.raises(NotLeased):
                async with poolkit.transaction(conn):
                    pass

        async with anyio.create_task_group() as group:
            group.start_soon(begin)
            await wait_all_tasks_blocked()
            pool.release(conn)
            gate.set()
        async with pool.acquire() as another:
            own(another).in_transaction = False
            assert another.number in (1, 2)


async def test_block_that_a_finalizer_ends_at_the_wrong_moment_is_asked_nothing() -> None:
    """Between the look whether there is one and the question."""
    async with Pool(EndingDriver(), max_size=1) as pool, pool.acquire() as conn:
        _view.check(conn, "query")


# -- the deadline of the acquire -----------------------------------------------------------------


class LockedTransaction(FakeTransaction):
    """Waits for a lock, for as long as it is told to."""

    patience = math.inf

    async def __aenter__(self) -> None:
        """Find out at the end of its patience that it was in vain, unless there is no end to it."""
        self.connection.driver.log.append(f"patience {self.patience:.1f}")
        if self.patience < math.inf:
            await anyio.sleep(self.patience)
            raise TimeoutError("somebody has the lock") from Boom("locked")


class LockedDriver(FullDriver):
    """A database that is locked."""

    def transaction(self, c: FakeConnection, **settings: Any) -> LockedTransaction:
        """Return a transaction that waits."""
        return LockedTransaction(c, settings)


@RUNNERS
def test_beginning_ends_at_the_deadline_of_the_acquire(run: Any) -> None:
    """What was waited for a connection is not waited for the lock once more."""
    driver = LockedDriver()

    async def hold(pool: Pool[Any]) -> None:
        async with pool.acquire():
            await anyio.sleep(3)

    async def main() -> None:
        async with Pool(driver, max_size=1, name="shop") as pool:
            async with anyio.create_task_group() as group:
                group.start_soon(hold, pool)
                await wait_all_tasks_blocked()
                began = anyio.current_time()
                with pytest.raises(PoolTimeout) as caught:
                    async with pool.transaction(timeout=5):
                        raise AssertionError("entered")
                assert anyio.current_time() - began == pytest.approx(5)
            assert "'shop': no transaction within 5 s: somebody has the lock" in str(caught.value)
            assert isinstance(caught.value.__cause__, Boom)
            assert pool.stats().leased == 0

    run(main)
    assert "patience 2.0" in driver.log


async def test_beginning_without_a_deadline_takes_its_time() -> None:
    """None was given, or the connection was held already."""
    driver = LockedDriver()
    async with Pool(driver, max_size=1) as pool:
        async with pool.transaction(timeout=None):
            pass
        async with pool.acquire() as conn, poolkit.transaction(conn):
            pass
    assert driver.log.count("patience inf") == 2
