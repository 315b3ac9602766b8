"""connpool."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import connpool

from benchmarks.peers import Acquire, Peer, Want
from benchmarks.wire import Wire


@contextlib.asynccontextmanager
async def _open(want: Want) -> AsyncIterator[Acquire]:
    async def connect() -> Wire:
        return await want.database.connect(Wire)

    def is_alive(wire: Wire) -> bool:
        return not wire.dead

    config = connpool.PoolConfig(
        min_size=want.least, max_size=want.size, acquire_timeout=want.timeout
    )
    pool = connpool.AsyncConnectionPool.from_callables(connect, validate=is_alive, config=config)
    async with pool:
        yield pool.connection


PEERS = [
    Peer(
        name="connpool",
        settings="the defaults: validates what was idle for 30 s, breaker on, statistics on",
        open=_open,
    ),
]
