"""asyncio-connection-pool."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import asyncio_connection_pool as library

from benchmarks.peers import Acquire, Peer, Want
from benchmarks.wire import Database, Wire


class _Strategy:
    """What it calls its strategy; it asks no more of one than these methods."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def make_connection(self) -> Wire:
        return await self._database.connect(Wire)

    def connection_is_closed(self, conn: Wire) -> bool:
        return conn.dead

    async def close_connection(self, conn: Wire) -> None:
        conn.dead = True


@contextlib.asynccontextmanager
async def _open(want: Want) -> AsyncIterator[Acquire]:
    pool = library.ConnectionPool(strategy=_Strategy(want.database), max_size=want.size)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(want.least):
            await stack.enter_async_context(pool.get_connection())
    yield pool.get_connection


PEERS = [
    Peer(
        name="asyncio-connection-pool",
        settings="no burst limit; it has no timeout, no ping and no statistics to turn on",
        open=_open,
    ),
]
