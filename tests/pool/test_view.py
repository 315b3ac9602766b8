"""The view: everything a connection is, until it is given back; then nothing at all."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import pickle
import threading
from typing import TYPE_CHECKING, Any, NoReturn, Self

import anyio
import pytest
from anyio import to_thread, wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from poolkit import ConnectFailed, NotLeased, Pool
from tests.conftest import BACKENDS
from tests.fakes import (
    Boom,
    CleanDriver,
    FakeConnection,
    FakeCursor,
    FakeDriver,
    FullDriver,
    gone,
    own,
)
from tests.pool.virtual import RUNNERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


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


class Furnished(FakeConnection):
    """Has attributes of all kinds."""

    __slots__ = ("slot",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.plain = ["as it was"]
        self._behind = 1
        self.closed = False

    @property
    def behind(self) -> int:
        """Return what stands behind a property."""
        return self._behind

    @behind.setter
    def behind(self, value: int) -> None:
        if self.closed:
            raise Boom("closed")
        self._behind = value

    @property
    def secret(self) -> NoReturn:
        """Be written only."""
        raise Boom("unreadable")

    @secret.setter
    def secret(self, value: int) -> None:
        """Keep it."""


async def test_attributes_set_through_a_handle_die_with_the_lease() -> None:
    """New ones, changed ones, and those that shadow what the class has."""
    driver: Any = FullDriver()
    driver.kind = Furnished
    async with Pool(driver, max_size=1) as pool:
        real: Any = next(iter(driver.alive))
        before = dict(vars(real))
        async with pool.acquire() as held:
            conn: Any = held
            plain = conn.plain
            for value in (1, 2):
                conn.tenant = conn.behind = conn.slot = conn.shared = conn.query = value
            conn.plain = "changed"
            assert (real.tenant, real.behind, real.slot, real.shared) == (2, 2, 2, 2)
            conn.taken_back = 1
            del conn.taken_back
            del conn.number
        assert vars(real) == {**before, "turn": 1}
        assert real.plain is plain
        assert not hasattr(real, "slot")
        assert "query" not in vars(real)
        async with pool.acquire() as conn:
            assert await conn.query() == "row"
        assert pool.stats().connected == 1


async def test_dictionary_of_attributes_is_there_to_be_read() -> None:
    """What is written there would go by the handle, and outlive the lease."""
    driver: Any = FullDriver()
    driver.kind = Furnished
    async with Pool(driver, max_size=1) as pool, pool.acquire() as held:
        conn: Any = held
        conn.tenant = 1
        assert (vars(conn)["tenant"], conn.__dict__["plain"]) == (1, ["as it was"])
        with pytest.raises(TypeError):
            conn.__dict__["tenant"] = 2
        with pytest.raises(AttributeError):
            vars(conn).update(tenant=2)


@pytest.mark.parametrize("attribute", ["secret", "behind"])
async def test_connection_whose_attribute_cannot_be_restored_is_replaced(attribute: str) -> None:
    """One that nobody can read, one that fails: its next user would find it set."""
    driver: Any = CleanDriver()
    driver.kind = Furnished
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as held:
            conn: Any = held
            setattr(conn, attribute, 2)
            own(conn).closed = True
        async with pool.acquire() as held:
            assert held.number == 2


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
    """A child task's query outlives the block: the connection is reset before its next use.

    Once more, if the query was still under way when the first reset began.
    """
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
        assert driver.calls["reset"] in (1, 2)
        assert pool.stats().idle == 1


@pytest.mark.parametrize("anyio_backend", [b for b in BACKENDS if b.id != "trio"])
async def test_future_of_a_connection_is_an_operation_until_it_is_done() -> None:
    """It is asyncio's own; and an error that nobody asks for is still reported by asyncio."""
    driver = FullDriver()

    class Modern(FakeConnection):
        def query_soon(self) -> asyncio.Future[str]:
            """Query in the background."""
            return asyncio.ensure_future(self.query())

        def fail_soon(self) -> asyncio.Future[None]:
            """Have failed already."""
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_exception(Boom("unseen"))
            return future

    driver.kind = Modern
    unseen = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as held:
            conn: Any = held
            assert await conn.query_soon() == "row"
        assert driver.calls["reset"] == 0
        async with pool.acquire() as held:
            conn = held
            next(iter(driver.alive)).gate = anyio.Event()
            future = conn.query_soon()
            await wait_all_tasks_blocked()
        async with pool.acquire() as held:
            conn = held
            assert conn.number == 2  # the reset has not ended it
            future.cancel()
            await asyncio.wait([future])
            assert future.cancelled()
            del future
            conn.fail_soon()
            await wait_all_tasks_blocked()
            gc.collect()
    assert [context["exception"].args for context in unseen] == [("unseen",)]


async def test_plain_method_that_a_thread_is_in_is_an_operation_under_way() -> None:
    """The next user does not meet it."""

    class Slow(FakeConnection):
        began, go = threading.Event(), threading.Event()

        def work(self) -> None:
            """Take a while."""
            self.began.set()
            self.go.wait(10)

    driver = FullDriver()
    driver.kind = Slow
    async with Pool(driver, max_size=1) as pool, anyio.create_task_group() as group:
        async with pool.acquire() as held:
            conn: Any = held
            group.start_soon(to_thread.run_sync, conn.work)
            await to_thread.run_sync(Slow.began.wait, 10)
        async with pool.acquire() as conn:
            assert conn.number == 2
        Slow.go.set()


async def test_late_end_of_an_operation_does_not_disturb_the_next_lease() -> None:
    """What outlives even the reset costs its connection; the next lease has another."""
    driver = CleanDriver()
    async with Pool(driver, max_size=1) as pool, anyio.create_task_group() as group:
        async with pool.acquire() as conn:
            real = next(iter(driver.alive))
            real.gate = anyio.Event()
            group.start_soon(conn.query)
            await wait_all_tasks_blocked()
        async with pool.acquire() as conn:
            assert conn.number == 2
            slot = next(iter(pool._state.leased))
            real.gate.set()
            await wait_all_tasks_blocked()
            assert (slot.busy, slot.cancelled) == (0, False)


async def test_what_an_operation_does_after_the_reset_is_undone_too() -> None:
    """It may take another step before its task learns that the lease has ended."""
    driver = CleanDriver()

    class Stepping(FakeConnection):
        async def steps(self) -> None:
            await self.query()
            await gate.wait()
            await self.query()

    async def connect() -> FakeConnection:
        return Stepping(driver, 1)

    async def reset(c: FakeConnection) -> None:
        driver.calls["reset"] += 1
        c.dirty = False
        gate.set()

    gate = anyio.Event()
    driver.connect = connect  # type: ignore[method-assign]
    driver.reset = reset  # type: ignore[method-assign]
    async with Pool(driver, max_size=1) as pool, anyio.create_task_group() as group:
        async with pool.acquire() as conn:
            group.start_soon(conn.steps)  # type: ignore[attr-defined]
            await wait_all_tasks_blocked()
        async with pool.acquire(timeout=5) as conn:
            assert not conn.dirty
        assert driver.calls["reset"] == 2


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
        assert gone(pool.stats()) == {"derived": 1}
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


async def test_coroutine_of_a_plain_method_is_dead_after_release() -> None:
    """It must not run on the next user's connection."""
    driver = CleanDriver()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            late = conn.query_later()
        await wait_all_tasks_blocked()
        async with pool.acquire():
            with pytest.raises(NotLeased):
                await late


async def test_operation_that_outlives_the_reset_costs_the_connection() -> None:
    """It would go on under the next user."""
    driver = CleanDriver()

    class Copying(FakeConnection):
        async def copy(self, rows: anyio.Event) -> None:
            await self.query()
            await rows.wait()
            if not self.dead:
                await self.query()

    async def connect() -> FakeConnection:
        conn = Copying(driver, next(driver.numbers))
        driver.alive.add(conn)
        return conn

    driver.connect = connect  # type: ignore[method-assign]
    rows = anyio.Event()
    async with Pool(driver, max_size=1) as pool, anyio.create_task_group() as group:
        async with pool.acquire() as conn:
            group.start_soon(conn.copy, rows)  # type: ignore[attr-defined]
            await wait_all_tasks_blocked()
        async with pool.acquire(timeout=5) as conn:
            assert conn.number == 2
        assert gone(pool.stats()) == {"broken": 1}
        rows.set()


@RUNNERS
def test_reset_that_succeeds_after_its_limit_loses_no_slot(run: Any) -> None:
    """Its driver did not notice that it was cancelled, and an operation of the lease goes on."""

    class Stubborn(CleanDriver):
        async def reset(self, c: FakeConnection) -> None:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2.0)

    async def main() -> None:
        driver = Stubborn()
        async with Pool(driver, max_size=1, reset_timeout=1.0) as pool:
            async with anyio.create_task_group() as group:
                async with pool.acquire() as conn:
                    real = next(iter(driver.alive))
                    real.gate = anyio.Event()
                    group.start_soon(conn.query)
                    await wait_all_tasks_blocked()
                async with pool.acquire(timeout=10.0) as conn:
                    assert conn.number == 2
                real.gate.set()
            assert gone(pool.stats()) == {"broken": 1}

    run(main)


async def test_connection_that_returns_itself_stays_behind_the_view() -> None:
    """From a method, an asynchronous one, an attribute, and `async with`."""
    driver = FullDriver()

    class Fluent(FakeConnection):
        def __init__(self, driver: FakeDriver, number: int) -> None:
            super().__init__(driver, number)
            self.me = self
            self.bound = self.peek

        def fluent(self) -> Fluent:
            return self

        async def begin(self) -> Fluent:
            return self

        async def __aenter__(self) -> Self:  # type: ignore[override]
            return self

    async def connect() -> FakeConnection:
        return Fluent(driver, 1)

    driver.connect = connect  # type: ignore[method-assign]
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            assert isinstance(conn, Fluent)
            assert conn.fluent() is conn
            assert await conn.begin() is conn
            assert conn.me is conn
            bound = conn.bound
            assert bound() == 1
            async with conn as entered:
                assert entered is conn
            assert await type(conn).query(conn, "x") == "x"
        with pytest.raises(NotLeased):
            bound()


async def test_computed_attribute_is_an_attribute() -> None:
    """A cached property is no method."""
    driver = CleanDriver()

    class Computed(FakeConnection):
        @functools.cached_property
        def info(self) -> str:
            return "info"

    async def connect() -> FakeConnection:
        return Computed(driver, 1)

    driver.connect = connect  # type: ignore[method-assign]
    async with Pool(driver) as pool, pool.acquire() as conn:
        assert conn.info == "info"  # type: ignore[attr-defined]


async def test_view_hint_that_cannot_be_is_a_failed_connect() -> None:
    """It says which class; no slot is lost."""

    class Hint:
        """Without empty slots."""

    driver = CleanDriver()
    driver.view_bases = (Hint,)  # type: ignore[attr-defined]
    async with Pool(driver, min_size=0, max_size=1) as pool:
        with pytest.raises(ConnectFailed, match=r"empty __slots__.*Hint"):
            await pool.acquire()
        assert pool.stats().size == 0
    assert not driver.alive


async def test_objects_in_a_list_count_as_made_from_the_connection() -> None:
    """Without a way to revoke them the connection is retired."""
    driver = CleanDriver()

    class Listing(FakeConnection):
        async def cursors(self) -> list[FakeCursor]:
            return [self.cursor()]

    async def connect() -> FakeConnection:
        return Listing(driver, 1)

    driver.connect = connect  # type: ignore[method-assign]
    async with Pool(driver, min_size=0, max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.cursors()  # type: ignore[attr-defined]
        assert gone(pool.stats()) == {"derived": 1}


async def test_generator_of_a_connection_ends_with_the_lease() -> None:
    """It asks the view for each step, and not the connection; what it leaves is not handed on."""
    driver = CleanDriver()

    class Reading(FakeConnection):
        async def rows(self, many: int) -> AsyncIterator[int]:
            """Yield one for each round trip."""
            for number in range(many):
                await self.query()
                yield number

        def numbers(self) -> Iterator[int]:
            """Yield without I/O."""
            yield self.peek()

    async def connect() -> FakeConnection:
        return Reading(driver, next(driver.numbers))

    driver.connect = connect  # type: ignore[method-assign]
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            assert isinstance(conn, Reading)
            assert [number async for number in conn.rows(2)] == [0, 1]
            assert list(conn.numbers()) == [1]
            late, later = conn.rows(1), conn.numbers()
        assert gone(pool.stats()) == {"derived": 1}
        with pytest.raises(NotLeased):
            await anext(late)
        with pytest.raises(NotLeased):
            next(later)
