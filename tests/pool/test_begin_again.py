"""A BEGIN that meets a dead connection is sent once more, on another one."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

import poolkit
from poolkit import (
    ConnectFailed,
    Pool,
    PoolTimeout,
    Verdict,
)
from poolkit.testing import NEVER
from tests.fakes import Boom, FakeConnection, FakeTransaction, FullDriver, gone, own
from tests.pool.virtual import RUNNERS


class Lost(Exception):
    """What an operation raises whose connection is gone."""


class LosingDriver(FullDriver):
    """One whose BEGINs find their connection gone, as often as it is told."""

    def __init__(self, losses: int, verdict: Verdict | None = None, **script: list[Any]) -> None:
        super().__init__(**script)
        self.losses = losses
        self.verdict = verdict
        self.begun: list[int] = []
        self.gates: dict[int, anyio.Event] = {}
        if verdict is not None:
            self.verdicts[Lost] = verdict

    def transaction(self, c: FakeConnection, **settings: Any) -> LosingTransaction:
        """Return a transaction that may find its connection gone."""
        return LosingTransaction(c, settings)


class LosingTransaction(FakeTransaction):
    """Begins, unless the connection is gone."""

    async def __aenter__(self) -> None:
        """Send the BEGIN, and find out."""
        driver: Any = self.connection.driver
        driver.begun.append(self.connection.number)
        if gate := driver.gates.get(len(driver.begun)):
            await gate.wait()
        if driver.losses:
            driver.losses -= 1
            if driver.verdict is None:
                driver.end(self.connection)
            raise Lost
        await super().__aenter__()


PROOFS = [None, Verdict.DEAD, Verdict.SERVER_GONE]


@pytest.mark.parametrize("proof", PROOFS)
async def test_begin_on_a_dead_connection_is_sent_again_on_another(proof: Verdict | None) -> None:
    """The block gets that one, and the dead one is gone."""
    driver = LosingDriver(1, proof)
    async with Pool(driver, max_size=2) as pool:
        block = pool.transaction(isolation="serializable")
        async with block as conn:
            assert conn.number == 2
            assert await conn.query() == "row"
            (lease,) = pool.leases()
            assert "test_begin_again.py" in lease.place
        assert driver.begun == [1, 2]
        assert driver.log.count("begin {'isolation': 'serializable'}") == 1
        assert driver.calls["commit"] == 1
        stats = pool.stats()
        assert (stats.leased, stats.idle) == (0, 1)
        assert gone(stats) == {"broken": 1}


async def test_transaction_that_begins_again_is_counted_once() -> None:
    """In whatever way each of its two connections was acquired."""
    for min_size, counted in ((2, (1, 0)), (1, (0, 1)), (0, (0, 1))):
        driver = LosingDriver(1)
        async with Pool(driver, min_size=min_size, max_size=2) as pool:
            async with pool.transaction():
                pass
            stats = pool.stats()
            assert (stats.direct, stats.waited) == counted
            assert (stats.failed, stats.cancelled, stats.timed_out) == (0, 0, 0)


async def test_begin_is_sent_again_once_only() -> None:
    """Then the error is the caller's, with the first one in its context."""
    driver = LosingDriver(9)
    async with Pool(driver, min_size=3, max_size=3) as pool:
        with pytest.raises(Lost) as caught:
            async with pool.transaction():
                raise AssertionError("entered")
        assert isinstance(caught.value.__context__, Lost)
        assert len(driver.begun) == 2
        stats = pool.stats()
        assert stats.leased == 0
        assert stats.direct + stats.waited == 1


async def test_begin_that_fails_otherwise_is_not_sent_again() -> None:
    """The connection lives: it was the statement."""
    driver = LosingDriver(1, Verdict.OK)
    async with Pool(driver) as pool:
        with pytest.raises(Lost):
            async with pool.transaction():
                raise AssertionError("entered")
        assert driver.begun == [1]
    driver = LosingDriver(1, Verdict.SUSPECT)
    async with Pool(driver) as pool:
        with pytest.raises(Lost):
            async with pool.transaction():
                raise AssertionError("entered")
        assert driver.begun == [1]


async def test_begin_on_a_connection_that_is_held_is_not_sent_again() -> None:
    """The handle is of that connection."""
    driver = LosingDriver(1)
    async with Pool(driver, max_size=2) as pool, pool.acquire() as conn:
        with pytest.raises(Lost):
            async with poolkit.transaction(conn):
                raise AssertionError("entered")
        assert driver.begun == [1]


async def test_begin_after_something_else_was_sent_is_not_sent_again() -> None:
    """What ``on_acquire`` has sent may have had an effect."""
    driver = LosingDriver(1)

    async def on_acquire(conn: Any) -> None:
        await conn.query()

    async with Pool(driver, max_size=2, on_acquire=on_acquire) as pool:
        with pytest.raises(Lost):
            async with pool.transaction():
                raise AssertionError("entered")
        assert driver.begun == [1]
        assert pool.stats().leased == 0


async def test_second_connection_is_greeted_like_the_first() -> None:
    """By an ``on_acquire`` that sends nothing."""
    driver = LosingDriver(1)
    greeted: list[int] = []

    async def on_acquire(conn: Any) -> None:
        greeted.append(own(conn).number)

    async with Pool(driver, max_size=2, on_acquire=on_acquire) as pool:
        async with pool.transaction() as conn:
            assert conn.number == 2
        stats = pool.stats()
        assert stats.direct + stats.waited == 1
    assert greeted == [1, 2]


async def test_begin_on_a_lease_of_an_integration_is_sent_again_on_what_it_exchanges() -> None:
    """It holds the lease for somebody else: so it is the one that acquires another."""
    driver = LosingDriver(1)
    causes: list[BaseException] = []
    async with Pool(driver, max_size=1) as pool:
        lease = pool.acquire()
        view = await lease

        async def exchange(error: BaseException) -> FakeConnection:
            causes.append(error)
            lease.end("block", error)
            return await pool.acquire()

        async with poolkit.transaction(view).exchanging(exchange) as conn:
            assert conn.number == 2
            assert await conn.query() == "row"
        assert [type(error) for error in causes] == [Lost]
        assert pool.stats().leased == 1  # it is the integration's to give back
        pool.release(conn)
    assert driver.log.count("commit") == 1


async def test_begin_that_meets_the_end_of_the_pool_is_not_sent_again() -> None:
    """The pool has cut it."""
    driver = LosingDriver(1)
    driver.gates[1] = gate = anyio.Event()
    pool = await Pool(driver).open()

    async def use() -> None:
        with pytest.raises(Lost):
            async with pool.transaction():
                raise AssertionError("entered")

    async with anyio.create_task_group() as group:
        group.start_soon(use)
        await wait_all_tasks_blocked()
        group.start_soon(lambda: pool.aclose(grace=None))
        await wait_all_tasks_blocked()
        gate.set()
    assert driver.begun == [1]
    assert not driver.alive


async def test_error_of_the_second_acquire_says_why_there_is_no_other() -> None:
    """The database is down; the lost connection is in its context."""
    driver = LosingDriver(1, connect=[None, Boom("refused"), Boom("refused")])
    async with Pool(driver, min_size=0, max_size=1) as pool:
        with pytest.raises(ConnectFailed, match="refused") as caught:
            async with pool.transaction():
                raise AssertionError("entered")
        assert isinstance(caught.value.__context__, Lost)
        stats = pool.stats()
        assert (stats.leased, stats.direct, stats.waited, stats.failed) == (0, 0, 0, 1)


@RUNNERS
def test_beginning_again_ends_at_the_deadline_of_the_first_acquire(run: Any) -> None:
    """What the first connection has taken, the second one has not."""
    driver = LosingDriver(1, connect=[None, NEVER])

    async def slow(_: Any) -> None:
        await anyio.sleep(3)

    async def main() -> None:
        async with Pool(driver, max_size=1, connect_timeout=60, on_acquire=slow) as pool:
            began = anyio.current_time()
            with pytest.raises(PoolTimeout):
                async with pool.transaction(timeout=5):
                    raise AssertionError("entered")
            assert anyio.current_time() - began == pytest.approx(5)
            stats = pool.stats()
            assert (stats.leased, stats.direct, stats.waited, stats.timed_out) == (0, 0, 0, 1)

    run(main)
    assert driver.begun == [1]


@pytest.mark.parametrize("timeout", [None, 0])
async def test_beginning_again_without_time_takes_an_idle_connection(timeout: float | None) -> None:
    """Or waits, if there is no limit."""
    driver = LosingDriver(1)
    async with Pool(driver, min_size=2, max_size=2) as pool:
        async with pool.transaction(timeout=timeout) as conn:
            assert await conn.query() == "row"
        assert len(driver.begun) == 2


# -- cancelled at each await ---------------------------------------------------------------------


@pytest.mark.parametrize("where", ["first begin", "second acquire", "on_acquire", "second begin"])
async def test_beginning_again_that_is_cancelled_loses_nothing(where: str) -> None:
    """The connection that is held then goes back; nothing is held twice."""
    connecting, greeting = anyio.Event(), anyio.Event()
    driver = LosingDriver(1, connect=[None, connecting])
    stops = {"first begin": 1, "second begin": 2}
    if where in stops:
        driver.gates[stops[where]] = anyio.Event()
    if where != "second acquire":
        connecting.set()
    greetings = 0

    async def on_acquire(_: Any) -> None:
        nonlocal greetings
        greetings += 1
        if where == "on_acquire" and greetings == 2:
            await greeting.wait()

    async with Pool(driver, max_size=1, on_acquire=on_acquire) as pool:
        entered = False

        async def use() -> None:
            nonlocal entered
            async with pool.transaction():
                entered = True

        async with anyio.create_task_group() as group:
            group.start_soon(use)
            await wait_all_tasks_blocked()
            assert not entered
            assert len(driver.begun) == (2 if where == "second begin" else 1)
            group.cancel_scope.cancel()
        driver.gates.clear()
        connecting.set()
        await wait_all_tasks_blocked()
        stats = pool.stats()
        assert (stats.leased, stats.waiting, stats.idle) == (0, 0, 1)
        assert stats.direct + stats.waited + stats.cancelled == 1
        driver.losses = 0
        async with pool.transaction() as conn:
            assert await conn.query() == "row"
    assert not driver.alive


async def test_beginning_leaves_no_cycle_for_the_collector() -> None:
    """Whether it began at once or again."""
    for losses in (0, 1):
        driver = LosingDriver(losses)
        async with Pool(driver, max_size=2) as pool:
            gc.collect()
            gc.disable()
            try:
                for _ in range(5):
                    with contextlib.suppress(Boom):
                        async with pool.transaction():
                            raise Boom
                blocks = [
                    each for each in gc.get_objects() if isinstance(each, poolkit.Transaction)
                ]
                assert blocks == []
            finally:
                gc.enable()
