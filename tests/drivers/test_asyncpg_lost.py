"""A server that ends a connection which the pool hands out before the end has been read."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from asyncpg import exceptions as pg

import poolkit
from poolkit import Verdict
from poolkit.drivers.asyncpg import _errors as errors
from poolkit.drivers.asyncpg import create_pool
from tests.conftest import BACKENDS
from tests.drivers.asyncpg_help import until
from tests.fakes import gone
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from poolkit import Pool
    from tests.postgres import Postgres, Server


@pytest.fixture(params=[backend for backend in BACKENDS if backend.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    """Stand in front of the server."""
    with Proxy(postgres.host, postgres.port) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def opened(proxy: Proxy, database: str, **options: Any) -> AsyncIterator[Pool[Any]]:
    """Return a pool with one connection."""
    dsn = f"{proxy.through(database)}?sslmode=disable"
    async with create_pool(dsn, **{"max_size": 2, "ping_after": None, **options}) as pool:
        yield pool
        proxy.pass_through()  # or the pool would wait for the ends of those it closes


class Tap(asyncio.Protocol):
    """Stands before asyncpg's protocol, and notes when something has come."""

    def __init__(self, conn: Any) -> None:
        self.inner = conn._protocol
        self.heard = asyncio.Event()
        conn._transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        self.inner.data_received(data)
        self.heard.set()

    def connection_lost(self, error: Exception | None) -> None:
        """Pass it on."""
        self.inner.connection_lost(error)


async def say_the_last_word(proxy: Proxy, database: str, pool: Pool[Any]) -> None:
    """Have the server end all connections of the pool; its word has been read, the end not."""
    proxy.withhold_ends()
    taps = [Tap(slot.connection) for slot in (*pool._state.idle, *pool._state.leased)]
    outside = await asyncpg.connect(database)
    await outside.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await outside.close()
    for tap in taps:
        await tap.heard.wait()
    assert gone(pool.stats()) == {}


OPERATIONS: dict[str, Callable[[Any], Awaitable[object]]] = {
    "execute": lambda conn: conn.execute("SELECT 1"),
    "execute with arguments": lambda conn: conn.execute("SELECT $1::int", 1),
    "executemany": lambda conn: conn.executemany("SELECT $1::int", [(1,)]),
    "fetch": lambda conn: conn.fetch("SELECT 1"),
    "fetchval": lambda conn: conn.fetchval("SELECT $1::int", 1),
    "fetchrow": lambda conn: conn.fetchrow("SELECT 1", timeout=60),
    "prepare": lambda conn: conn.prepare("SELECT 1"),
    "transaction": lambda conn: conn.transaction().start(),
    "poolkit.transaction": lambda conn: poolkit.transaction(conn).__aenter__(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_operation_after_the_servers_last_word_says_that_the_connection_was_lost(
    postgres: Postgres, database: str, proxy: Proxy, operation: str
) -> None:
    """By asyncpg's error for that, and not by one about the state it is in itself."""
    async with opened(proxy, database) as pool:
        await say_the_last_word(proxy, database, pool)
        async with pool.acquire() as conn:
            with pytest.raises(
                pg.ConnectionDoesNotExistError, match=r"closed in the middle.*Acquire another"
            ) as caught:
                await OPERATIONS[operation](conn)
            assert isinstance(caught.value, pg.PostgresConnectionError)
            assert type(caught.value.__cause__) is pg.InternalClientError
            assert str(caught.value.__cause__) in str(caught.value)
        assert gone(pool.stats()) == {"broken": 1}
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("made", ["statement", "cursor", "iteration"])
async def test_what_was_made_from_the_connection_says_that_it_was_lost(
    postgres: Postgres, database: str, proxy: Proxy, made: str
) -> None:
    """Statements and cursors, whose errors pass no handle."""
    async with opened(proxy, database) as pool:
        async with pool.acquire() as conn:
            statement = await conn.prepare("SELECT generate_series(1, 1000)")
            await conn.transaction().start()
            cursor = await statement.cursor()
            steps = aiter(statement.cursor(prefetch=2))
            await anext(steps)
            await anext(steps)
            await say_the_last_word(proxy, database, pool)
            with pytest.raises(pg.ConnectionDoesNotExistError, match="Acquire another") as caught:
                if made == "statement":
                    await statement.fetch()
                elif made == "cursor":
                    await cursor.fetch(10)
                else:
                    await anext(steps)
            assert type(caught.value.__cause__) is pg.InternalClientError
        assert gone(pool.stats()) == {"broken": 1}


async def test_transaction_after_the_servers_last_word_begins_on_another_connection(
    postgres: Postgres, database: str, proxy: Proxy
) -> None:
    """The caller does not notice; what it does is done once."""
    async with opened(proxy, database) as pool:
        await say_the_last_word(proxy, database, pool)
        async with pool.transaction(isolation="serializable") as conn:
            assert await conn.fetchval("SHOW transaction_isolation") == "serializable"
            await conn.execute("CREATE TABLE done (x int)")
        assert await _count(database) == 1
        stats = pool.stats()
        assert stats.direct + stats.waited == 1
        assert gone(stats) == {"broken": 1}


async def _count(database: str) -> Any:
    outside = await asyncpg.connect(database)
    try:
        return await outside.fetchval("SELECT count(*) FROM pg_tables WHERE tablename = 'done'")
    finally:
        await outside.close()


async def test_all_idle_connections_that_got_the_last_word_cost_one_begin(
    postgres: Postgres, database: str, proxy: Proxy
) -> None:
    """The others are pinged before the transaction is given one of them."""
    async with opened(proxy, database, min_size=3, max_size=3) as pool:
        await say_the_last_word(proxy, database, pool)
        async with pool.transaction() as conn:
            assert await conn.fetchval("SELECT 1") == 1
        assert pool.stats().retired["broken"] == 3


async def test_server_that_restarts_unseen_costs_a_transaction_nothing(
    own_postgres: Server, own_database: str
) -> None:
    """Within ``ping_after``, and nothing of it has been read: nor the last word, nor the end."""
    async with create_pool(own_database, max_size=2, ping_after=None) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await conn.fetchval("SELECT 1") == 1
            await until(lambda: pool.stats().idle == 1)
            own_postgres.stop()  # in this thread: the loop reads nothing meanwhile
            own_postgres.start()
            async with pool.transaction() as conn:
                assert await conn.fetchval("SELECT 1") == 1


async def test_statement_after_an_unseen_restart_says_that_the_connection_was_lost(
    own_postgres: Server, own_database: str
) -> None:
    """It is not sent again: nobody knows whether it had an effect."""
    async with create_pool(own_database, max_size=2, ping_after=None) as pool:
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT 1") == 1
        await until(lambda: pool.stats().idle == 1)
        own_postgres.stop()
        own_postgres.start()
        with pytest.raises(pg.PostgresConnectionError, match="middle of operation"):
            async with pool.acquire() as conn:
                await conn.fetchval("SELECT 1")
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT 1") == 1


async def test_cut_connection_costs_a_transaction_nothing(
    postgres: Postgres, database: str, proxy: Proxy
) -> None:
    """By a reset that is read after the BEGIN was sent."""
    async with opened(proxy, database) as pool:
        proxy.reset_all()
        async with pool.transaction() as conn:
            assert await conn.fetchval("SELECT 1") == 1
        assert gone(pool.stats()) == {"broken": 1}


@pytest.mark.parametrize(
    "error",
    [pg.OutdatedSchemaCacheError("x"), pg.TargetServerAttributeNotMatched("x"), ValueError("x")],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_what_they_are(error: Exception) -> None:
    """Also on a closed connection; and what else asyncpg says of itself, on an open one."""
    assert errors.restated(error, closed=True) is None
    assert errors.restated(pg.InternalClientError("x"), closed=False) is None


def test_copy_that_begins_after_the_last_word_says_that_the_connection_was_lost() -> None:
    """The connection is open still, for asyncpg; the pool ends it at its release."""
    error = pg.InternalClientError(
        "cannot switch to state 21; another operation (2) is in progress"
    )
    assert isinstance(errors.restated(error, closed=False), pg.ConnectionDoesNotExistError)
    assert errors.of_lease(error, closed=False) is Verdict.SUSPECT


def test_lost_connection_has_the_others_pinged() -> None:
    """The server may be gone for them, too."""
    for error in (pg.InternalClientError("x"), pg.ProtocolError("x")):
        assert errors.of_lease(error, closed=True) is Verdict.SERVER_GONE
        better = errors.restated(error, closed=True)
        assert better is not None
        assert errors.of_lease(better, closed=True) is Verdict.SERVER_GONE
