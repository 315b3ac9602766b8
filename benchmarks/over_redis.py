"""K: redis-py, ``GET`` per acquire: poolkit, redis-py's own pools and a bare semaphore."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import redis.asyncio

import poolkit
from benchmarks.drivers import SEMAPHORE, pooled, semaphore, tables
from benchmarks.peers import Postgresql, Request
from benchmarks.table import Table
from tests.faults.servers import RedisServer
from tests.proxy import HOST

PAIRS = [("poolkit", SEMAPHORE, 0.95), ("poolkit", "BlockingConnectionPool", 1.0)]


async def _ask(client: Any) -> None:
    await client.get("key")


@contextlib.asynccontextmanager
async def _semaphore(url: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
    async with contextlib.AsyncExitStack() as stack:

        async def connect() -> Any:
            made = redis.asyncio.Redis.from_url(url, single_connection_client=True)
            return await stack.enter_async_context(made)

        yield await stack.enter_async_context(semaphore(connect, _ask, size))


def _ours(url: str, size: int, tasks: int) -> AbstractAsyncContextManager[Request]:  # noqa: ARG001
    create = poolkit.drivers.redis.create_pool
    return pooled(create(url, min_size=size, max_size=size), _ask)


@contextlib.asynccontextmanager
async def _own_pool(pool: redis.asyncio.ConnectionPool) -> AsyncIterator[Request]:
    async with redis.asyncio.Redis.from_pool(pool) as client:

        async def request() -> None:
            await _ask(client)

        yield request


def _blocking(url: str, size: int, tasks: int) -> AbstractAsyncContextManager[Request]:  # noqa: ARG001
    kind = redis.asyncio.BlockingConnectionPool
    return _own_pool(kind.from_url(url, max_connections=size, timeout=30))


def _unbounded(url: str, size: int, tasks: int) -> AbstractAsyncContextManager[Request]:  # noqa: ARG001
    return _own_pool(redis.asyncio.ConnectionPool.from_url(url))


WAYS = [
    Postgresql(
        name=SEMAPHORE,
        settings="clients with a connection each, asyncio.Semaphore and a deque",
        reset="nothing",
        open=_semaphore,
    ),
    Postgresql(
        name="poolkit",
        settings="the defaults: after a plain command there is nothing to undo, which is checked",
        reset="the session",
        open=_ours,
    ),
    Postgresql(
        name="BlockingConnectionPool",
        settings="redis-py's pool with a queue, and one client: a connection for each command",
        reset="nothing",
        open=_blocking,
    ),
    Postgresql(
        name="ConnectionPool",
        settings="redis-py's default, without a limit: as many connections as tasks",
        reset="nothing",
        open=_unbounded,
    ),
]


def run(*, quick: bool) -> Iterator[Table]:
    """Return a table for each number of tasks."""
    try:
        server = RedisServer()
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:
        print(f"K is left out: {missing}\n")
        return
    try:
        server.start()
        url = f"redis://{HOST}:{server.port}/0"
        server.client.set("key", "value")
        yield from tables("redis", "K: redis-py, GET", WAYS, url, PAIRS, quick=quick)
    finally:
        server.close()
