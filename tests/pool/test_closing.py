"""A connection that its holder closes: the lease ends with it, and the slot is free after the close."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import functools
import gc
import threading
from typing import TYPE_CHECKING, Any, Self

import anyio
import greenlet  # type: ignore[import-untyped, unused-ignore]
import pytest
from anyio import to_thread, wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

import poolkit
from poolkit import NotLeased, Pool, PoolTimeout
from tests.conftest import BACKENDS
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeDriver, FullDriver, gone, own

if TYPE_CHECKING:
    from collections.abc import Callable

ASYNCIO = [backend for backend in BACKENDS if backend.id != "trio"]


class Future:
    """What can be awaited, and nothing else."""

    def __init__(self, coroutine: Any) -> None:
        self.coroutine = coroutine

    def __await__(self) -> Any:
        return self.coroutine.__await__()


class Closing(FakeConnection):
    """Can be closed by its holder, in all the ways that libraries have."""

    hold: anyio.Event | None = None
    at_last = False

    def ended(self) -> None:
        """Have ended, as the library itself does it."""
        self.driver.end(self)

    def terminate(self) -> None:
        """End at once."""
        self.ended()

    async def close(self, *, fails: bool = False) -> None:
        """Be dead at once, and closed after a while."""
        self.dead = not self.at_last
        await (self.hold.wait() if self.hold else checkpoint())
        if fails:
            raise Boom("hung up")
        self.ended()

    async def aclose(self) -> None:
        """Close."""
        await self.close()

    async def force_close(self) -> None:
        """Close."""
        await self.close()

    def close_later(self, **how: bool) -> Any:
        """Return a coroutine."""
        return self.close(**how)

    def close_future(self, **how: bool) -> Any:
        """Return what can be awaited."""
        return Future(self.close(**how))

    async def disconnect(self) -> None:
        """Close."""
        await self.close()

    async def quit(self) -> None:
        """Close, by a request to the server."""
        await self.close()

    async def __aenter__(self) -> Self:  # type: ignore[override]
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.terminate()

    def is_closed(self) -> bool:
        """Tell."""
        return self.dead

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self.dead


async def leave(conn: Any) -> None:
    """Use it as an asynchronous context manager that closes at its end."""
    async with conn:
        await conn.query()


async def leave_plain(conn: Any) -> None:
    """Use it as a context manager that closes at its end."""
    with conn:
        await conn.query()


async def close_in_a_child(conn: Any) -> None:
    """Have another task close it."""
    async with anyio.create_task_group() as group:
        group.start_soon(conn.close)


async def close_by_library(conn: Any) -> None:
    """Have `contextlib` call it."""
    async with contextlib.aclosing(conn):
        await conn.query()


def awaiting(name: str) -> Callable[[Any], Any]:
    """Return what calls a method and awaits the result."""

    async def close(conn: Any) -> None:
        await getattr(conn, name)()

    close.__name__ = name
    return close


async def terminate(conn: Any) -> None:
    """Call a plain method."""
    conn.terminate()


def close_in_a_function(conn: Any) -> None:
    """Call a plain method out of a plain function."""
    conn.terminate()


async def terminate_in_a_thread(conn: Any) -> None:
    """Call a plain method elsewhere."""
    await to_thread.run_sync(conn.terminate)


WAYS = [
    *map(awaiting, ["close", "aclose", "force_close", "close_later", "close_future"]),
    *map(awaiting, ["disconnect", "quit"]),
    *(terminate, terminate_in_a_thread, leave, leave_plain, close_in_a_child, close_by_library),
]

#: What has to be the same with and without optional methods.
KINDS = [FakeDriver, CleanDriver, FullDriver]


def driver_of(kind: type[FakeDriver], connection: type[FakeConnection] = Closing) -> Any:
    """Return a driver whose connections can be closed."""
    driver: Any = kind()
    driver.kind = connection
    return driver


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("close", WAYS, ids=lambda close: close.__name__)
async def test_closed_connection_is_given_back(close: Any, kind: Any) -> None:
    """Whatever closes it, without a release; a pool of one goes on for ever."""
    driver = driver_of(kind)
    async with Pool(driver, max_size=1, on_close=never) as pool:
        views = []
        for number in range(1, 4):
            conn: Any = await pool.acquire(timeout=5)
            views.append(conn)
            assert conn.number == number
            await close(conn)
            await wait_all_tasks_blocked()
            assert pool.stats().leased == 0
            assert not pool.leases()
        assert gone(pool.stats()) == {"broken": 3}
        assert driver.most_alive == 1
        for conn in views:
            pool.release(conn)
            await pool.release(conn)
            with pytest.raises(NotLeased, match=r"\.query: .* it was closed .*by its holder"):
                await conn.query()


async def never(_: Any) -> None:
    """Be called for healthy connections only."""
    raise AssertionError


async def test_place_of_the_close_is_told() -> None:
    """The line of the program, whatever of the event loop's or of `contextlib` is in between."""
    async with Pool(driver_of(CleanDriver), max_size=1) as pool:
        here = r"test_closing\.py:\d+ in test_place_of_the_close_is_told by its holder"
        for close in (awaiting("close"), close_by_library):
            conn: Any = await pool.acquire()
            await close(conn)
            with pytest.raises(
                NotLeased, match=rf"closed at .*test_closing\.py:\d+ in .*{close.__name__}"
            ):
                conn.number  # noqa: B018
        conn = await pool.acquire()
        conn.terminate()
        with pytest.raises(NotLeased, match=here):
            len(conn)
        conn = await pool.acquire()
        close_in_a_function(conn)
        with pytest.raises(NotLeased, match=r"test_closing\.py:\d+ in close_in_a_function by its"):
            len(conn)
        conn = await pool.acquire()
        await close_in_a_child(conn)
        with pytest.raises(NotLeased, match="it was closed by its holder"):
            dir(conn)
        thread = await pool.acquire()
        await terminate_in_a_thread(thread)
        with pytest.raises(NotLeased, match="it was closed by its holder"):
            dir(thread)
        assert repr(conn) == "<closed connection of pool 'fake'>"


def test_close_in_a_task_of_its_own_is_not_at_the_line_that_runs_the_loop() -> None:
    """Which is right below it where the loop is written in C."""
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with Pool(driver_of(CleanDriver), max_size=1) as pool:
            conn: Any = await pool.acquire()
            await asyncio.create_task(conn.close())
            with pytest.raises(NotLeased, match="it was closed by its holder"):
                dir(conn)

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def in_greenlet(call: Any) -> None:
    """Call it as SQLAlchemy's `greenlet_spawn` does: below it there is no frame."""
    greenlet.greenlet(call).switch()


def in_nested_greenlet(call: Any) -> None:
    """Call it in a greenlet whose parent has no frame either, as where hubs are written in C."""
    child = greenlet.greenlet(call)
    child.parent = greenlet.greenlet(child.switch)
    child.parent.switch()


def in_bare_thread(call: Any) -> None:
    """Call it as a library in C does from a thread of its own."""
    _thread.start_new_thread(call, ())


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (in_greenlet, r"at .*test_closing\.py:\d+ in in_greenlet by"),
        (in_nested_greenlet, "by"),
        (in_bare_thread, "by"),
    ],
)
async def test_close_that_no_line_of_a_program_calls_is_a_close(call: Any, where: str) -> None:
    """Of a greenlet the place is its parent's, if that has one; of a library's thread there is none."""
    async with Pool(driver_of(CleanDriver), max_size=1) as pool:
        conn: Any = await pool.acquire()
        call(conn.terminate)
        with anyio.fail_after(5):
            while pool.stats().leased:
                await checkpoint()
        with pytest.raises(NotLeased, match=rf"it was closed {where} its holder"):
            await conn.query()


async def test_release_that_no_line_of_a_program_calls_is_a_release() -> None:
    """As by SQLAlchemy's `greenlet_spawn`."""
    async with Pool(FakeDriver(), max_size=1) as pool:
        conn = await pool.acquire()
        in_greenlet(functools.partial(pool.release, conn))
        assert pool.stats().leased == 0
        with pytest.raises(NotLeased, match=r"released at .* in Pool\.release"):
            await conn.query()


async def test_closed_connection_may_be_closed_again_and_asked() -> None:
    """As libraries do at their end; everything else says that it was closed."""
    async with Pool(driver_of(CleanDriver), max_size=1) as pool:
        async with pool.acquire() as held:
            conn: Any = held
            assert (conn.is_closed(), conn.closed) == (False, False)
            await conn.close()
            assert (conn.is_closed(), conn.closed) == (True, True)
            await conn.close()
            conn.terminate()
            async with pool.acquire(timeout=5) as other:
                assert other.number == 2
                await conn.close()
                assert await other.query() == "row"
            with pytest.raises(NotLeased):
                await conn.query()
            with pytest.raises(NotLeased):
                async with conn:
                    pass
        assert pool.stats().idle == 1
        with pytest.raises(NotLeased, match="released at the end of the block"):
            async with pool.acquire() as held:
                pass
            held.is_closed()


async def test_asking_a_lost_connection_does_not_end_its_lease() -> None:
    """Its holder has not closed it, and is about to find out."""
    async with Pool(driver_of(CleanDriver), max_size=1) as pool:
        async with pool.acquire() as held:
            conn: Any = held
            own(conn).dead = True
            assert conn.is_closed()
            assert conn.closed
            assert pool.stats().leased == 1
            await conn.close()
            assert pool.stats().leased == 0
        assert pool.stats().leased == 0


@pytest.mark.parametrize("how", ["cancelled", "failed"])
@pytest.mark.parametrize("way", ["close", "close_later", "close_future"])
async def test_close_that_is_broken_off_is_finished_by_the_pool(how: str, way: str) -> None:
    """The slot is free only after another close, with the end of the connection."""
    driver = driver_of(FullDriver, Closing)
    async with Pool(driver, max_size=1, close_timeout=None) as pool:
        conn: Any = await pool.acquire()
        own(conn).hold = hold = anyio.Event()
        driver.script["close"] = go_on = anyio.Event()
        if how == "cancelled":
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(awaiting(way), conn)
                    await wait_all_tasks_blocked()
                    assert pool.stats().leased == 1
                    scope.cancel()
        else:
            hold.set()
            with pytest.raises(Boom, match="hung up"):
                await getattr(conn, way)(fails=True)
        if way == "close_future":  # what it is, the view cannot see
            await wait_all_tasks_blocked()
            assert pool.stats().leased == 0
            go_on.set()
            return
        await wait_all_tasks_blocked()
        assert (pool.stats().leased, pool.stats().closing) == (0, 1)
        async with anyio.create_task_group() as group:
            group.start_soon(acquire_once, pool)
            await wait_all_tasks_blocked()
            assert driver.calls["connect"] == 1
            go_on.set()
        assert driver.most_alive == 1
        assert gone(pool.stats()) == {"broken": 1}
        assert driver.log.count("terminate") == 1


async def acquire_once(pool: Pool[Any]) -> None:
    """Acquire and release."""
    async with pool.acquire(timeout=5):
        pass


async def test_release_while_a_close_is_under_way_waits_for_its_end() -> None:
    """The block has ended before the child task that closes."""
    driver = driver_of(FullDriver)
    async with Pool(driver, max_size=1, close_timeout=None) as pool:
        driver.script["close"] = go_on = anyio.Event()
        async with anyio.create_task_group() as group:
            async with pool.acquire() as conn:
                own(conn).hold = hold = anyio.Event()
                group.start_soon(conn.close)
                await wait_all_tasks_blocked()
            assert pool.stats().closing == 1
            hold.set()
            await wait_all_tasks_blocked()
            assert pool.stats().closing == 1
            go_on.set()
        await acquire_once(pool)
        assert driver.most_alive == 1


async def test_close_that_fails_and_closes_nothing_leaves_the_lease() -> None:
    """The next lease may have the connection, and a healthy end of it is a healthy end."""
    driver = driver_of(FullDriver)
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as held:
            conn: Any = held
            own(conn).at_last = True
            with pytest.raises(Boom):
                await conn.close(fails=True)
            assert await conn.query() == "row"
            assert conn._poolkit_slot.closing == 0
        async with pool.acquire() as conn:
            assert conn.number == 1
    assert driver.calls["close"] == 1


async def test_waiter_gets_a_connection_when_the_holder_closes_its_own() -> None:
    """A new one, at once."""
    driver = driver_of(CleanDriver)
    async with Pool(driver, max_size=1) as pool, anyio.create_task_group() as group:
        conn: Any = await pool.acquire()
        group.start_soon(acquire_once, pool)
        await wait_all_tasks_blocked()
        assert pool.stats().waiting == 1
        conn.terminate()
        await wait_all_tasks_blocked()
        assert pool.stats().waiting == 0
        assert driver.calls["connect"] == 2


async def test_transaction_whose_connection_is_closed_is_no_success() -> None:
    """Its end says where it was closed; the exception that leaves the block is its own."""
    driver = driver_of(FullDriver)
    async with Pool(driver, max_size=1) as pool:
        for begin in (pool.transaction, functools.partial(begin_on_held, pool)):
            with pytest.raises(NotLeased, match=r"closed at .*test_transaction_whose_connection"):
                async with begin() as conn:
                    await conn.close()
            with pytest.raises(Boom, match="mine"):
                async with begin() as conn:
                    await conn.close()
                    raise Boom("mine")
        assert pool.stats().leased == 0
        assert "commit" not in driver.log


@contextlib.asynccontextmanager
async def begin_on_held(pool: Pool[Any]) -> Any:
    """Begin a transaction on a connection that is held."""
    async with pool.acquire() as conn, poolkit.transaction(conn):
        yield conn


async def test_connection_of_a_cancelled_transaction_may_be_closed() -> None:
    """That ends what is left of it; nothing else could be done there."""
    async with Pool(driver_of(FullDriver), max_size=1) as pool:
        conn: Any = await pool.acquire()
        with anyio.CancelScope() as scope:
            async with poolkit.transaction(conn):
                scope.cancel()
                await checkpoint()
        with pytest.raises(NotLeased, match="was cancelled"):
            await conn.query()
        await conn.close()
        assert pool.stats().leased == 0


async def test_on_acquire_that_closes_its_connection_is_an_error_of_the_acquire() -> None:
    """Nobody gets a closed one."""

    async def close(conn: Any) -> None:
        if conn.number == 1:
            await conn.close()

    async with Pool(driver_of(CleanDriver), max_size=1, on_acquire=close) as pool:
        with pytest.raises(NotLeased, match=r"closed at .*in .*close by its holder"):
            await pool.acquire(timeout=5)
        async with pool.acquire(timeout=5) as conn:
            assert conn.number == 2
        assert pool.stats().failed == 1


async def test_close_that_a_connection_has_of_its_own_counts() -> None:
    """Not of its type: from `__getattr__`, or set on it."""

    class Proxy(Closing):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.hang_up = self.terminate
            self.shutdown = lambda: self.terminate()

        def __getattr__(self, name: str) -> Any:
            if name == "aclose_now":
                return self.close
            raise AttributeError(name)

    async with Pool(driver_of(CleanDriver, Proxy), max_size=1) as pool:
        for name in ("hang_up", "shutdown"):
            getattr(await pool.acquire(timeout=5), name)()
            assert pool.stats().leased == 0
        conn: Any = await pool.acquire(timeout=5)
        await conn.aclose_now()
        assert pool.stats().leased == 0


async def test_close_that_can_do_more_than_be_awaited_is_noticed_at_the_release() -> None:
    """What it can do, the view leaves to it; the release finds the connection closed, and waits for nothing."""

    class Steps(Future):
        def __len__(self) -> int:
            return 2

    class Stepping(Closing):
        def close_by_steps(self) -> Any:
            """Close, and tell in how many steps."""
            return Steps(self.close())

    driver = driver_of(FullDriver, Stepping)
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as held:
            conn: Any = held
            steps = conn.close_by_steps()
            assert type(steps) is Steps
            assert len(steps) == 2
            assert pool.stats().leased == 1
            await steps
            assert pool.stats().leased == 1
        assert gone(pool.stats()) == {"broken": 1}
        await acquire_once(pool)
        assert driver.calls["close"] == 0  # it was over
        assert driver.most_alive == 1


@pytest.mark.parametrize("anyio_backend", ASYNCIO)
@pytest.mark.parametrize("cancelled", [False, True])
async def test_close_whose_future_is_done_ends_the_lease(cancelled: bool) -> None:
    """Not before."""

    class Modern(Closing):
        def close_soon(self) -> Any:
            """Close in the background."""
            return asyncio.ensure_future(self.close())

    driver = driver_of(FullDriver, Modern)
    async with Pool(driver, max_size=1) as pool:
        conn: Any = await pool.acquire()
        own(conn).hold = hold = anyio.Event()
        future = conn.close_soon()
        await wait_all_tasks_blocked()
        assert pool.stats().leased == 1
        if cancelled:
            future.cancel()
        hold.set()
        await asyncio.wait([future])
        await wait_all_tasks_blocked()
        assert pool.stats().size == 0 or pool.stats().idle == 1
        await acquire_once(pool)
        assert driver.most_alive == 1


async def test_close_in_a_thread_is_noted_by_the_loop() -> None:
    """Also if the loop is told only after the release."""

    class Slow(Closing):
        began, go = threading.Event(), threading.Event()

        def terminate(self) -> None:
            """Take a while."""
            self.began.set()
            self.go.wait(10)
            super().terminate()

    driver = driver_of(CleanDriver, Slow)
    async with Pool(driver, max_size=1) as pool, anyio.create_task_group() as group:
        conn: Any = await pool.acquire()
        group.start_soon(to_thread.run_sync, conn.terminate)
        await to_thread.run_sync(Slow.began.wait, 10)
        Slow.go.set()
        pool.release(conn)
        await acquire_once(pool)
        assert driver.most_alive == 1


async def test_closed_connection_is_no_leak(caplog: pytest.LogCaptureFixture) -> None:
    """Neither when the handle is collected, nor at the end of the pool."""
    async with Pool(driver_of(CleanDriver), max_size=1) as pool:
        conn: Any = await pool.acquire()
        await conn.close()
        del conn
        gc.collect()
        await checkpoint()
    assert not caplog.records


async def test_timeout_says_that_leases_hold_dead_connections() -> None:
    """Lost, or closed where the pool does not see it."""
    async with Pool(driver_of(CleanDriver), max_size=2) as pool:
        async with pool.acquire() as one, pool.acquire():
            own(one).dead = True
            with pytest.raises(
                PoolTimeout, match=r"\. 1 of the 2 leases holds a connection that is dead"
            ):
                await pool.acquire(timeout=0)
        async with pool.acquire() as one, pool.acquire() as two:
            with pytest.raises(PoolTimeout) as caught:
                await pool.acquire(timeout=0)
            own(one).dead = own(two).dead = True
            assert "that is dead" not in str(caught.value)
            with pytest.raises(
                PoolTimeout, match=r"\. 2 of the 2 leases hold a connection that is"
            ):
                await pool.acquire(timeout=0)


async def test_pool_that_closes_takes_back_what_is_being_closed() -> None:
    """A close that never ends keeps nobody."""
    driver = driver_of(FullDriver)
    async with anyio.create_task_group() as group:
        async with Pool(driver, max_size=1, close_timeout=0.01) as pool:
            conn: Any = await pool.acquire()
            own(conn).hold = anyio.Event()
            group.start_soon(conn.close)
            await wait_all_tasks_blocked()
            assert len(await pool.aclose(grace=0)) == 1
        assert not driver.alive
        group.cancel_scope.cancel()


def test_names_of_what_may_end_a_connection() -> None:
    """And of what only tells; the others are asked nothing."""
    from poolkit._shell.closing import is_harmless, may_end

    ends = "close aclose terminate disconnect shutdown stop quit abort kill force_close hard_close "
    ends += (
        "close_connection wait_closed ensure_closed _close aclose_now __exit__ __aexit__ dispose"
    )
    tells = "is_closed closed is_connected is_closing alive is_alive broken open"
    others = (
        "execute fetch cursor on_close add_close_listener commit is_in_transaction prepare begin"
    )
    assert [name for name in ends.split() if not (may_end(name) and is_harmless(name))] == []
    assert [name for name in tells.split() if may_end(name) or not is_harmless(name)] == []
    assert [name for name in others.split() if may_end(name) or is_harmless(name)] == []
