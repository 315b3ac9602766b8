"""An `on_acquire` that asks for another connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

import poolkit
from poolkit import (
    AnotherConnection,
    ConnectFailed,
    NotLeased,
    Observer,
    Pool,
    PoolClosed,
    PoolError,
    PoolTimeout,
    PoolUnavailable,
    Verdict,
)
from tests.fakes import Boom, CleanDriver, FakeConnection, FullDriver, gone, own
from tests.pool.virtual import RUNNERS

if TYPE_CHECKING:
    from collections.abc import Callable


def refusing(*numbers: int, touch: bool = False) -> Callable[[FakeConnection], Any]:
    """Return a hook that rejects the connections with these numbers."""

    async def on_acquire(conn: FakeConnection) -> None:
        number = own(conn).number
        if touch:
            await conn.query()
        if number in numbers:
            raise AnotherConnection(f"{number} is old")

    return on_acquire


@pytest.mark.parametrize("touch", [False, True])
async def test_rejected_connection_retires_and_the_acquire_gets_another_one(touch: bool) -> None:
    """It is closed politely, with no reset before; the caller sees nothing of it."""
    driver = CleanDriver()
    options: Any = {"min_size": 2, "max_size": 3, "ping_after": None, "backoff_min": 0.0}
    async with Pool(driver, on_acquire=refusing(2, touch=touch), **options) as pool:
        async with pool.acquire() as conn:
            assert own(conn).number == 1
            assert await conn.query() == "row"
        await wait_all_tasks_blocked()
        stats = pool.stats()
        assert gone(stats) == {"rejected": 1}
        assert (stats.direct + stats.waited, stats.failed, stats.leased) == (1, 0, 0)
        assert stats.wait_times.count == stats.use_times.count == 2
        assert (driver.calls["reset"], driver.calls["close"]) == (0, 1)


async def test_every_old_connection_may_be_rejected_and_then_a_new_one_is_taken() -> None:
    """Without a pause: another one may be of now."""
    old = range(1, 6)
    hook = refusing(*old)
    driver = CleanDriver()
    is_old = True

    async def on_acquire(conn: FakeConnection) -> None:
        if not is_old:
            await hook(conn)

    options: Any = {"min_size": 5, "max_size": 5, "ping_after": None, "backoff_min": 1.0}
    async with Pool(driver, on_acquire=on_acquire, **options) as pool:
        conns = [await pool.acquire() for _ in old]
        for conn in conns:
            pool.release(conn)
        is_old = False
        began = anyio.current_time()
        async with pool.acquire() as conn:
            assert own(conn).number > 5
        assert anyio.current_time() < began + 0.9
        assert pool.stats().retired["rejected"] == 5


@RUNNERS
def test_new_connections_are_rejected_three_times_with_pauses(run: Any) -> None:
    """Then the acquire has failed, and says why; a database that is not fit is not stormed."""

    async def main() -> None:
        driver = CleanDriver()
        options: Any = {"min_size": 0, "max_size": 9, "backoff_min": 2.0, "backoff_max": 3.0}
        async with Pool(driver, on_acquire=refusing(*range(99)), name="shop", **options) as pool:
            began = anyio.current_time()
            with pytest.raises(PoolUnavailable) as caught:
                await pool.acquire()
            assert type(caught.value) is PoolUnavailable
            assert str(caught.value).startswith(
                "pool 'shop': on_acquire has rejected 3 connections in a row, the last one with "
                "AnotherConnection: 3 is old ("
            )
            assert isinstance(caught.value.__cause__, AnotherConnection)
            assert 1.0 + 1.5 <= anyio.current_time() - began <= 2.0 + 3.0 + 0.01
            stats = pool.stats()
            assert (stats.failed, stats.direct, stats.waited, stats.leased) == (1, 0, 0, 0)
            assert gone(stats) == {"rejected": 3}

    run(main)


@pytest.mark.parametrize("capacity", [1, 2])
async def test_tries_are_no_more_than_there_may_be_connections_and_one(capacity: int) -> None:
    """However old each of them is."""
    seen = []

    async def on_acquire(conn: FakeConnection) -> None:
        seen.append(own(conn).number)
        raise AnotherConnection

    options: Any = {"max_size": capacity, "backoff_min": 0.0}
    async with Pool(CleanDriver(), on_acquire=on_acquire, **options) as pool:
        with pytest.raises(PoolUnavailable, match=f"rejected {capacity + 1} conn.*Another"):
            await pool.acquire()
        assert len(seen) == capacity + 1


@RUNNERS
@pytest.mark.parametrize("hangs", ["pause", "connect", "hook"])
def test_all_tries_are_within_one_deadline(run: Any, hangs: str) -> None:
    """Whatever takes long; the error has what was said."""

    async def on_acquire(conn: FakeConnection) -> None:
        if hangs == "hook" and own(conn).number == 2:
            await anyio.sleep_forever()
        raise AnotherConnection("not this one")

    async def main() -> None:
        pause = 20.0 if hangs == "pause" else 0.0
        connects = [None, *[60.0] * 9] if hangs == "connect" else []
        options: Any = {"backoff_min": pause, "backoff_max": pause, "connect_timeout": 60.0}
        driver = CleanDriver(connect=connects)
        async with Pool(driver, max_size=2, on_acquire=on_acquire, **options) as pool:
            began = anyio.current_time()
            with pytest.raises(PoolTimeout) as caught:
                await pool.acquire(timeout=2.0)
            assert anyio.current_time() - began == pytest.approx(2.0, abs=0.01)
            assert "not this one" in str(caught.value) + str(caught.value.__cause__)
            stats = pool.stats()
            assert (stats.timed_out, stats.failed, stats.leased, stats.waiting) == (1, 0, 0, 0)

    run(main)


@RUNNERS
def test_who_does_not_wait_has_half_a_second_for_all_tries(run: Any) -> None:
    """And gets what is idle, not what would have to be opened."""

    async def slow(_: FakeConnection) -> None:
        await anyio.sleep(0.2)
        raise AnotherConnection

    async def main() -> None:
        options: Any = {"min_size": 3, "max_size": 5, "ping_after": None, "backoff_min": 0.0}
        async with Pool(CleanDriver(), on_acquire=slow, **options) as pool:
            began = anyio.current_time()
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
            assert anyio.current_time() - began <= 0.51
        async with Pool(CleanDriver(), on_acquire=refusing(3), **options) as pool:
            async with pool.acquire(timeout=0) as conn:
                assert own(conn).number == 2

    run(main)


async def test_acquire_that_is_cancelled_in_the_pause_counts_as_cancelled() -> None:
    """It holds nothing then."""
    options: Any = {"min_size": 0, "max_size": 2, "backoff_min": 60.0, "backoff_max": 60.0}
    async with Pool(CleanDriver(), on_acquire=refusing(1), **options) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.acquire().__aenter__)
            while not pool.stats().retired["rejected"]:
                await checkpoint()
            await wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        stats = pool.stats()
        assert (stats.cancelled, stats.failed, stats.leased, stats.waiting) == (1, 0, 0, 0)


async def test_connection_that_died_in_the_hook_is_lost_and_not_rejected() -> None:
    """Once."""
    driver = FullDriver()

    async def on_acquire(conn: FakeConnection) -> None:
        if own(conn).number == 1:
            await conn.query()
            driver.end(own(conn))
            driver.watched[own(conn)]()
            await checkpoint()
            raise AnotherConnection("it is gone")

    losses: list[str] = []

    class Losses(Observer):
        def lost(self, pool: Any) -> None:
            losses.append("lost")

    options: Any = {"max_size": 1, "backoff_min": 0.0, "observers": [Losses()]}
    async with Pool(driver, on_acquire=on_acquire, **options) as pool:
        async with pool.acquire() as conn:
            assert own(conn).number == 2
        assert gone(pool.stats()) == {"broken": 1}
        assert losses == ["lost"]


async def test_view_of_a_rejected_connection_is_dead_for_good() -> None:
    """Also if the lease goes on with another connection."""
    kept: list[FakeConnection] = []

    async def on_acquire(conn: FakeConnection) -> None:
        kept.append(conn)
        if len(kept) == 1:
            raise AnotherConnection

    async with Pool(CleanDriver(), min_size=2, max_size=2, on_acquire=on_acquire) as pool:
        async with pool.acquire() as conn:
            assert conn is kept[1]
            with pytest.raises(NotLeased, match=r"released at .*test_another\.py"):
                await kept[0].query()
            with pytest.raises(NotLeased):
                pool.release(kept[0])
            assert "released connection" in repr(kept[0])
            assert await conn.query() == "row"
            del kept[0]  # collected, it ends nothing
            await checkpoint()
            assert pool.stats().leased == 1
        assert pool.stats().leased == 0


async def test_hook_that_gave_the_connection_back_may_ask_for_another_one() -> None:
    """Then that one does not retire."""
    pool: Pool[FakeConnection]
    first = True

    async def on_acquire(conn: FakeConnection) -> None:
        nonlocal first
        if first:
            first = False
            pool.release(conn)
            raise AnotherConnection

    async with Pool(CleanDriver(), max_size=1, on_acquire=on_acquire) as pool:
        async with pool.acquire() as conn:
            assert own(conn).number == 1
        assert gone(pool.stats()) == {}


async def test_rejection_from_a_lost_connection_tells_the_pool_of_it() -> None:
    """Its cause is heeded as the error of a lease is."""
    driver = FullDriver()
    driver.verdicts = {Boom: Verdict.SERVER_GONE}
    seen = 0

    async def on_acquire(conn: FakeConnection) -> None:
        nonlocal seen
        seen += 1
        await conn.query()
        if seen == 1:
            raise AnotherConnection from Boom("gone")

    async with Pool(driver, min_size=2, max_size=2, on_acquire=on_acquire) as pool:
        async with pool.acquire():
            pass
        assert gone(pool.stats()) == {"broken": 1}
        assert driver.calls["ping"] >= 1


async def test_pool_that_closes_meanwhile_ends_the_tries() -> None:
    """The acquire ends with `PoolClosed`."""

    async def on_acquire(_: FakeConnection) -> None:
        pool._state.close(pool._now())
        raise AnotherConnection

    pool = Pool(CleanDriver(), max_size=1, on_acquire=on_acquire, backoff_min=0.0)
    async with pool:
        with pytest.raises(PoolClosed):
            await pool.acquire()
        stats = pool.stats()
        assert (stats.closed, stats.failed, stats.leased) == (1, 0, 0)


async def test_connecting_that_fails_after_a_rejection_is_the_error() -> None:
    """With its own cause."""
    driver = FullDriver(connect=[None, Boom("refused"), Boom("refused")])
    driver.verdicts = {Boom: Verdict.FATAL}
    options: Any = {"backoff_min": 0.0, "backoff_max": 0.0}
    async with Pool(driver, max_size=1, on_acquire=refusing(1), **options) as pool:
        with pytest.raises(ConnectFailed) as caught:
            await pool.acquire()
        assert isinstance(caught.value.__cause__, Boom)


async def test_transaction_begins_on_a_connection_that_was_not_rejected() -> None:
    """The same acquire is inside of it."""
    driver = FullDriver()
    options: Any = {"min_size": 2, "max_size": 2, "ping_after": None, "backoff_min": 0.0}
    async with Pool(driver, on_acquire=refusing(2), **options) as pool:
        async with pool.transaction() as conn:
            assert own(conn).number == 1
        assert driver.log.count("begin") == 1
        assert pool.stats().retired["rejected"] == 1


async def test_rejection_outside_of_on_acquire_is_an_error_like_others() -> None:
    """It ends the block, and the connection stays."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        with pytest.raises(AnotherConnection):
            async with pool.acquire():
                raise AnotherConnection("too late")
        assert pool.stats().idle == 1
    assert issubclass(AnotherConnection, poolkit.PoolError)
    assert not issubclass(AnotherConnection, PoolUnavailable)


async def test_observers_are_told_of_each_try() -> None:
    """As of acquires of their own, of which the first ones are given back."""
    notes: list[str] = []

    class Notes(Observer):
        def acquire_began(self, pool: Any, label: Any) -> None:
            notes.append("began")

        def leased(self, pool: Any, label: Any, seconds: float) -> None:
            notes.append("leased")

        def released(self, pool: Any, label: Any, seconds: float) -> None:
            notes.append("released")

        def retired(self, pool: Any, reason: str) -> None:
            notes.append(reason)

    options: Any = {"min_size": 2, "max_size": 2, "ping_after": None, "backoff_min": 0.0}
    options["observers"] = [Notes()]
    async with Pool(CleanDriver(), on_acquire=refusing(2), **options) as pool:
        async with pool.acquire():
            notes.append("block")
        assert notes == [
            *("began", "leased", "released", "rejected"),
            *("began", "leased", "block", "released"),
        ]


@RUNNERS
def test_deadline_that_passes_after_a_rejection_is_told_as_it_was_given(run: Any) -> None:
    """Not as what was left of it."""

    async def slow(_: FakeConnection) -> None:
        await anyio.sleep(0.7)
        raise AnotherConnection

    async def main() -> None:
        driver = CleanDriver(connect=[None, 60.0])
        options: Any = {"max_size": 1, "backoff_min": 0.0, "backoff_max": 0.0}
        async with Pool(driver, on_acquire=slow, connect_timeout=60.0, **options) as pool:
            with pytest.raises(PoolTimeout, match=r"no connection within 2\.0 s"):
                await pool.acquire(timeout=2.0)

    run(main)


@RUNNERS
def test_who_does_not_wait_has_half_a_second_for_all_pings(run: Any) -> None:
    """Of however many connections."""

    async def main() -> None:
        driver = CleanDriver(connect=[None, None, None, *[60.0] * 9], ping=0.3)
        options: Any = {"min_size": 3, "max_size": 3, "ping_after": 0.0, "backoff_min": 0.0}
        async with Pool(driver, on_acquire=refusing(1, 2, 3), **options) as pool:
            began = anyio.current_time()
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
            assert anyio.current_time() - began == pytest.approx(0.5, abs=0.01)

    run(main)


async def test_who_was_in_line_comes_before_the_next_try() -> None:
    """Each try is an acquire of its own."""
    order: list[str] = []
    go = anyio.Event()

    async def on_acquire(conn: FakeConnection) -> None:
        if own(conn).number == 1:
            await go.wait()
            raise AnotherConnection

    async def use(who: str) -> None:
        async with pool.acquire():
            order.append(who)

    options: Any = {"max_size": 1, "backoff_min": 0.0, "backoff_max": 0.0}
    async with Pool(CleanDriver(), on_acquire=on_acquire, **options) as pool:
        async with anyio.create_task_group() as group:
            for who in ("first", "second", "third"):
                group.start_soon(use, who)
                await wait_all_tasks_blocked()
            go.set()
    assert order == ["second", "third", "first"]


async def test_second_use_of_a_lease_that_finds_a_connection_gives_it_back() -> None:
    """As an integration may, which awaits the steps of an acquire by itself."""

    async def on_acquire(_: FakeConnection) -> None:
        """Be content."""

    async with Pool(CleanDriver(), min_size=2, on_acquire=on_acquire) as pool:
        lease = pool.acquire()
        assert lease.take_nowait() is None
        view = await lease.wait()
        with pytest.raises(PoolError, match="used already"):
            await lease.wait()
        stats = pool.stats()
        assert (stats.leased, stats.idle, stats.failed) == (1, 1, 1)
        assert await view.query() == "row"
        lease.end("block")
