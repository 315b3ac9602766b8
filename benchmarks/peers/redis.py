"""redis-py's BlockingConnectionPool."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import BlockingConnectionPool

from benchmarks.peers import Acquire, Peer, Want
from benchmarks.wire import Database, Wire


class _Connection(Wire):
    """What it asks a connection, answered without a server."""

    def __init__(self, database: Database, **_: object) -> None:
        super().__init__()
        self._database = database
        self._is_connected = False

    async def connect(self) -> None:
        """Connect, unless connected."""
        if self.dead or not self._is_connected:
            await self._database.reach(self)
            self._is_connected = True

    async def can_read(self) -> bool:
        """Tell that nothing is left over from the last user."""
        return False

    def should_reconnect(self) -> bool:
        """Tell that it may be used again."""
        return False

    async def re_auth(self) -> None:
        """Have no new password."""

    async def disconnect(self, *_: object, **__: object) -> None:
        """Close."""
        self._is_connected = False


class _Lease:
    """Get and release, as its client does around each command."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: BlockingConnectionPool) -> None:
        self._pool = pool

    async def __aenter__(self) -> Any:
        """Get."""
        self._connection = await self._pool.get_connection()
        return self._connection

    async def __aexit__(self, *error: object) -> None:
        """Release."""
        await self._pool.release(self._connection)


@contextlib.asynccontextmanager
async def _open(want: Want) -> AsyncIterator[Acquire]:
    pool = BlockingConnectionPool(
        max_connections=want.size,
        timeout=want.timeout,
        connection_class=_Connection,
        database=want.database,
    )

    def acquire() -> _Lease:
        return _Lease(pool)

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(want.least):
            await stack.enter_async_context(acquire())
    try:
        yield acquire
    finally:
        await pool.disconnect()


PEERS = [
    Peer(
        name="redis BlockingConnectionPool",
        settings="get_connection and release, as its client calls them; no metrics exported",
        open=_open,
    ),
]
