"""aiosqlitepool."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import aiosqlite
import aiosqlitepool

from benchmarks.peers import READ, WRITE, Acquire, Peer, Request, Sqlite, Want
from benchmarks.wire import Wire


class _Connection(Wire):
    """What it asks a connection: ``SELECT 1`` at each acquire, rollback at each release."""

    async def execute(self, _: str) -> None:
        """Answer at once."""
        self.check()

    async def rollback(self) -> None:
        """Roll nothing back."""
        self.check()

    async def close(self) -> None:
        """Close."""


@contextlib.asynccontextmanager
async def _open(want: Want) -> AsyncIterator[Acquire]:
    async def connect() -> _Connection:
        return await want.database.connect(_Connection)

    timeout = max(1, int(want.timeout))
    pool = aiosqlitepool.SQLiteConnectionPool(
        connect, pool_size=want.size, acquisition_timeout=timeout
    )
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(want.least):
            await stack.enter_async_context(pool.connection())
    try:
        yield pool.connection
    finally:
        await pool.close()


PEERS = [
    Peer(
        name="aiosqlitepool",
        settings="the defaults: its ping and its rollback cannot be turned off",
        open=_open,
    ),
]


@contextlib.asynccontextmanager
async def _sqlite(path: str, size: int) -> AsyncIterator[tuple[Request, Request]]:
    async def connect() -> aiosqlite.Connection:
        connection = await aiosqlite.connect(path, isolation_level=None)
        await connection.execute("PRAGMA busy_timeout = 5000")
        await connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    async with aiosqlitepool.SQLiteConnectionPool(connect, pool_size=size) as pool:

        async def read() -> None:
            async with pool.connection() as connection:
                await connection.execute_fetchall(READ, (1,))

        async def write() -> None:
            async with pool.connection() as connection:
                await connection.execute(WRITE, (1,))

        yield read, write


SQLITE = [
    Sqlite(
        name="aiosqlitepool",
        settings="autocommit, busy timeout 5 s, synchronous NORMAL, as poolkit's own",
        open=_sqlite,
    ),
]
