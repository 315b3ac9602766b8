"""What programs are used to from asyncpg's pool: habits, words after a release, names inside."""

from __future__ import annotations

import asyncio
import functools
import importlib
from typing import TYPE_CHECKING, Any

import asyncpg as original
import pytest

import poolkit
from poolkit.compat import asyncpg
from tests.compat.test_hooks import has_broken
from tests.conftest import BACKENDS
from tests.drivers.asyncpg_help import until

if TYPE_CHECKING:
    from tests.postgres import Postgres

create_pool: Any = asyncpg.create_pool
#: Both pools, so that each habit is asyncpg's as well.
BOTH = [pytest.param(original.create_pool, id="asyncpg"), pytest.param(create_pool, id="poolkit")]


@pytest.fixture(params=[backend for backend in BACKENDS if backend.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


# -- making, opening, closing --------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
async def test_pool_that_was_awaited_is_closed_by_the_end_of_a_block(
    database: str, make: Any
) -> None:
    """`pool = await create_pool()`, and later `async with pool`: once or twice, it is closed."""
    pool = await make(database, min_size=1, max_size=1)
    assert await pool is pool
    async with pool as same:
        assert same is pool
        assert await pool.fetchval("SELECT 1") == 1
    with pytest.raises(original.InterfaceError, match="pool is closed"):
        await pool.acquire()


@pytest.mark.parametrize("make", BOTH)
async def test_pool_is_made_and_then_awaited_or_entered(database: str, make: Any) -> None:
    """`async with await create_pool()` and `pool = create_pool()`, then either of the two."""
    async with await make(database, min_size=1, max_size=1) as pool:
        assert await pool.fetchval("SELECT 1") == 1
    assert pool.is_closing()
    pool = make(database, min_size=1, max_size=1)
    await pool
    assert await pool.fetchval("SELECT 1") == 1
    await pool.close()
    assert pool.is_closing()
    pool = make(database, min_size=1, max_size=1)
    async with pool:
        assert await pool.fetchval("SELECT 1") == 1
    assert pool.is_closing()


@pytest.mark.parametrize("make", BOTH)
async def test_end_of_any_block_closes_the_pool_for_all(database: str, make: Any) -> None:
    """Nobody is counted, as in asyncpg; poolkit's own pools count."""
    pool = make(database, min_size=1, max_size=1)
    async with pool:
        async with pool:
            assert await pool.fetchval("SELECT 1") == 1
        with pytest.raises(original.InterfaceError, match="pool is closed"):
            await pool.fetchval("SELECT 1")


# -- the context that acquires -------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
async def test_acquire_context_is_good_for_one_block(database: str, make: Any) -> None:
    """A second use is asyncpg's error."""
    module = importlib.import_module(make.__module__)
    async with make(database, min_size=1, max_size=1) as pool:
        context = pool.acquire(timeout=5)
        assert isinstance(context, module.PoolAcquireContext)
        assert (context.pool, context.timeout, context.done) == (pool, 5, False)
        async with context as conn:
            assert await conn.fetchval("SELECT 1") == 1
        assert context.done
        with pytest.raises(original.InterfaceError, match="a connection is already acquired"):
            async with context:
                raise AssertionError
    assert not isinstance(pool, poolkit.Pool) or issubclass(module.AcquiredError, poolkit.PoolError)


# -- words after the end of a lease --------------------------------------------------------------


async def refused(conn: Any) -> str:
    """Return what is said of a handle whose lease is over, the same for each use."""
    said = set()
    uses: dict[str, Any] = {
        "fetchval": lambda: conn.fetchval("SELECT 1"),
        "is_closed": lambda: conn.is_closed(),
        "transaction": lambda: conn.transaction(),
        "close": lambda: conn.close(),
        "terminate": lambda: conn.terminate(),
        "anything": lambda: conn.anything,
    }
    for name, use in uses.items():
        with pytest.raises(original.InterfaceError, match=rf"Connection\.{name}\(\)") as caught:
            result = use()
            if asyncio.iscoroutine(result):
                await result
        assert isinstance(caught.value, poolkit.NotLeased)
        assert "released back to the pool" in str(caught.value)
        said.add(str(caught.value).replace(f".{name}", "..."))
    assert len(said) == 1
    assert conn._con is None
    return said.pop()


async def test_each_end_of_a_lease_is_told_by_its_cause(database: str) -> None:
    """Released, at the end of a block, closed: with the place; and not as lost."""
    async with create_pool(database, min_size=1, max_size=1) as pool:
        for used in (True, False):
            conn = await pool.acquire()
            assert conn._con is conn
            if used:
                await conn.execute("SELECT 1")
            await pool.release(conn)
            said = await refused(conn)
            assert "it was released at" in said
            assert "test_habits.py" in said
            assert "it was lost" not in said
            async with pool.acquire() as conn:
                if used:
                    await conn.execute("SELECT 1")
            assert "at the end of the block" in await refused(conn)
            conn = await pool.acquire()
            await conn.close()
            said = await refused(conn)
            assert "test_habits.py" in said
            assert "it was lost" not in said
            conn = await pool.acquire()
            conn.terminate()
            assert "it was lost" not in await refused(conn)


async def test_connection_that_is_lost_after_its_release_was_released(
    database: str, postgres: Postgres
) -> None:
    """While nobody has it, or while the next one has."""
    async with create_pool(database, min_size=1, max_size=1) as pool:
        for number, is_held in enumerate((False, True), 1):
            conn = await pool.acquire()
            pid = conn.get_server_pid()
            await pool.release(conn)
            if is_held:
                second = await pool.acquire()
                await second.execute("SELECT 1")
            postgres.query("SELECT pg_terminate_backend($1)", pid)
            await until(functools.partial(has_broken, pool, number))
            said = await refused(conn)
            assert "released at" in said
            assert "it was lost" not in said
            if is_held:
                assert (await refused(second)).endswith("it was lost")
                await pool.release(second)
                assert (await refused(second)).endswith("it was lost")
            await until(lambda: pool.stats().idle == 1)


async def test_connection_of_a_closed_pool_is_told_so_after_reopening(
    database: str, postgres: Postgres
) -> None:
    """It was not lost; one that was is told so, also after the pool was closed."""
    pool = await create_pool(database, min_size=2, max_size=2)
    conn, lost = await pool.acquire(), await pool.acquire()
    await lost.execute("SELECT 1")
    postgres.query("SELECT pg_terminate_backend($1)", lost.get_server_pid())
    await until(lambda: (pool.stats().leased, pool.stats().idle) == (1, 1))
    pool.terminate()
    assert "when the pool was closed" in await refused(conn)
    async with pool:
        assert "when the pool was closed" in await refused(conn)
        assert (await refused(lost)).endswith("it was lost")


# -- names inside --------------------------------------------------------------------------------


def test_each_name_of_asyncpgs_module_is_there() -> None:
    """The logger by its name; what is no part of a pool is asyncpg's own."""
    module: Any = importlib.import_module("poolkit.compat.asyncpg.pool")
    theirs: Any = importlib.import_module("asyncpg.pool")
    for name in dir(theirs):
        assert hasattr(module, name), name
    assert module.logger is theirs.logger
    assert module.PoolConnectionHolder is theirs.PoolConnectionHolder
    with pytest.raises(AttributeError):
        module.nonsense  # noqa: B018


@pytest.mark.parametrize("make", BOTH)
async def test_what_watches_the_pool_sees_what_asyncpgs_has(database: str, make: Any) -> None:
    """Names that programs read although they are asyncpg's own."""
    pool = make(database, min_size=1, max_size=3)
    assert (pool._initialized, pool._closed, pool._closing) == (False, False, False)
    async with pool:
        assert (pool._minsize, pool._maxsize, pool._queue.qsize()) == (1, 3, 3)
        assert pool._loop is asyncio.get_running_loop()
        async with pool.acquire() as conn:
            holders = pool._holders
            assert len(holders) == 3
            assert [bool(each._in_use) for each in holders].count(True) == 1
            assert sum(each.is_connected() for each in holders) == 1
            assert sum(each.is_idle() for each in holders) == 2
            assert [each._con.is_closed() for each in holders if each._con] == [False]
            assert (pool._queue.qsize(), pool._queue.empty()) == (2, False)
            assert await conn.fetchval("SELECT 1") == 1
        assert (pool._initialized, pool._closed, pool._closing) == (True, False, False)
    assert (pool._initialized, pool._closed) == (True, True)
