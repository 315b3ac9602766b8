"""poolkit."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import poolkit
from benchmarks.peers import READ, WRITE, Acquire, Peer, Postgresql, Request, Reset, Sqlite, Want
from benchmarks.wire import Database, Wire


class Driver:
    """A driver for connections to nothing."""

    name = "nothing"

    def __init__(self, database: Database) -> None:
        self._database = database

    async def connect(self) -> Wire:
        """Connect."""
        return await self._database.connect(Wire)

    def is_dead(self, c: Wire) -> bool:
        """Tell."""
        return c.dead

    def is_clean(self, c: Wire) -> bool:  # noqa: ARG002  # the protocol's
        """Tell that nothing is to be undone."""
        return True

    async def reset(self, c: Wire) -> None:
        """Undo nothing."""
        c.check()

    async def ping(self, c: Wire) -> None:
        """Ask whether it is alive."""
        c.check()

    async def close(self, c: Wire) -> None:
        """Close."""

    def terminate(self, c: Wire) -> None:
        """Close at once."""

    def classify(self, exc: BaseException, c: Wire | None = None) -> poolkit.Verdict | None:  # noqa: ARG002
        """Say what an error means."""
        if isinstance(exc, ConnectionRefusedError):
            return poolkit.Verdict.TRANSIENT
        return poolkit.Verdict.SERVER_GONE if isinstance(exc, ConnectionError) else None


async def check_safety(acquire: Acquire) -> None:
    """Fail unless all that costs something is on: measured is what a user gets."""
    pool: poolkit.Pool[Any] = acquire.__self__  # type: ignore[attr-defined]  # a bound method
    before = pool.stats()
    kept = await pool.acquire()
    (lease,) = pool.leases()
    assert "check_safety" in lease.place, "the bookkeeping of holders is on"
    assert pool.stats().direct == before.direct + 1, "the statistics are on"
    others = [await pool.acquire() for _ in range(pool.stats().max_size - 1)]
    try:
        await pool.acquire(timeout=0.001)
    except poolkit.PoolTimeout:
        pass
    else:
        raise AssertionError("the deadline is on")
    for connection in (kept, *others):
        pool.release(connection)
    try:
        kept.query  # noqa: B018  # a released one is dead
    except poolkit.NotLeased:
        pass
    else:
        raise AssertionError("the view is on")


def peer(name: str, settings: str, **options: Any) -> Peer:
    """Return poolkit with these options."""

    @contextlib.asynccontextmanager
    async def open_pool(want: Want) -> AsyncIterator[Acquire]:
        given = {"acquire_timeout": want.timeout, **options}
        driver = Driver(want.database)
        async with poolkit.Pool(driver, min_size=want.least, max_size=want.size, **given) as pool:
            yield pool.acquire

    return Peer(name=name, settings=settings, open=open_pool, loops=("asyncio", "uvloop", "trio"))


@contextlib.asynccontextmanager
async def over_asyncpg(dsn: str, size: int, reset: Any) -> AsyncIterator[Request]:
    """Open it over PostgreSQL."""
    create = poolkit.drivers.asyncpg.create_pool
    async with create(dsn, min_size=size, max_size=size, reset=reset) as pool:

        async def request() -> None:
            async with pool.acquire() as connection:
                await connection.fetchval("SELECT 1")

        yield request


@contextlib.asynccontextmanager
async def over_aiosqlite(path: str, size: int) -> AsyncIterator[tuple[Request, Request]]:
    """Open it over SQLite."""
    create = poolkit.drivers.aiosqlite.create_pool
    async with create(path, min_size=size, max_size=size) as pool:

        async def read() -> None:
            async with pool.acquire() as connection:
                await connection.execute_fetchall(READ, (1,))

        async def write() -> None:
            async with pool.acquire() as connection:
                await connection.execute(WRITE, (1,))

        yield read, write


PEERS = [peer("poolkit", "the defaults: view, holders, deadline, deadness, statistics all on")]


def _level(level: str, undone: Reset, settings: str) -> Postgresql:
    def open_pool(dsn: str, size: int, tasks: int) -> AbstractAsyncContextManager[Request]:  # noqa: ARG001
        return over_asyncpg(dsn, size, level)

    name = f"poolkit, reset={level!r}"
    return Postgresql(name=name, settings=settings, reset=undone, open=open_pool)


POSTGRESQL = [
    _level("transaction", "the transaction", "an open transaction is rolled back"),
    _level(
        "auto", "the session", "as full, but put off while somebody waits, after plain statements"
    ),
    _level("full", "the session", "as DISCARD ALL, but for statements and plans: the default"),
]

SQLITE = [Sqlite(name="poolkit", settings="the defaults", open=over_aiosqlite)]
