"""asyncpg.Pool, and asyncpg without a pool."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
from asyncpg.connect_utils import _ClientConfiguration

from benchmarks.peers import Acquire, Peer, Postgresql, Request, Reset, Want
from benchmarks.wire import Wire


class _Protocol:
    """What a connection of asyncpg asks its protocol, answered without a server."""

    queries_count = 0

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def get_settings(self) -> Any:
        return types.SimpleNamespace(server_version="17.0")

    def is_connected(self) -> bool:
        return not self._wire.dead

    def is_in_transaction(self) -> bool:
        return False

    def _is_cancelling(self) -> bool:
        return False

    def abort(self) -> None:
        self._wire.dead = True


_CONFIG = _ClientConfiguration(
    command_timeout=None,
    statement_cache_size=100,
    max_cached_statement_lifetime=300,
    max_cacheable_statement_size=15360,
)


class _Connection(asyncpg.Connection):
    """A connection of asyncpg over nothing; its reset has nothing to send."""

    _transport: Wire

    def get_reset_query(self) -> str:
        return ""

    async def query(self, seconds: float = 0.0) -> None:
        await self._transport.query(seconds)

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ARG002  # asyncpg's
        self.terminate()


def _peer(name: str, settings: str, *, has_timeout: bool) -> Peer:
    @contextlib.asynccontextmanager
    async def open_pool(want: Want) -> AsyncIterator[Acquire]:
        loop = asyncio.get_running_loop()

        async def connect(*_: object, **__: object) -> _Connection:
            wire = await want.database.connect(Wire)
            make: Any = _Connection
            made: _Connection = make(_Protocol(wire), wire, loop, None, _CONFIG, None)
            return made

        pool = await asyncpg.create_pool(
            min_size=want.least,
            max_size=want.size,
            connect=connect,
            connection_class=_Connection,
        )
        timeout = want.timeout if has_timeout else None

        def acquire() -> Any:
            return pool.acquire(timeout=timeout)

        try:
            yield acquire
        finally:
            pool.terminate()

    return Peer(name=name, settings=settings, open=open_pool)


PEERS = [
    _peer("asyncpg.Pool", "acquire(timeout=); its reset sends nothing here", has_timeout=True),
    _peer("asyncpg.Pool, no timeout", "as it comes: it waits for ever", has_timeout=False),
]


# -- PostgreSQL ----------------------------------------------------------------------------------


def _pooled(name: str, settings: str, undone: Reset, **options: Any) -> Postgresql:
    @contextlib.asynccontextmanager
    async def open_pool(dsn: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
        async with asyncpg.create_pool(dsn, min_size=size, max_size=size, **options) as pool:

            async def request() -> None:
                async with pool.acquire() as connection:
                    await connection.fetchval("SELECT 1")

            yield request

    return Postgresql(name=name, settings=settings, reset=undone, open=open_pool)


async def _nothing(_: object) -> None:
    """Reset nothing."""


@contextlib.asynccontextmanager
async def _one_each(dsn: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
    async with contextlib.AsyncExitStack() as stack:
        own = [await asyncpg.connect(dsn) for _ in range(tasks)]
        for connection in own:
            stack.push_async_callback(connection.close)
        of_task: dict[Any, asyncpg.Connection] = {}

        async def request() -> None:
            task = asyncio.current_task()
            connection = of_task.get(task)
            if connection is None:
                connection = of_task[task] = own[len(of_task) % tasks]
            await connection.fetchval("SELECT 1")

        yield request


@contextlib.asynccontextmanager
async def _no_pool(dsn: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
    async def request() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.fetchval("SELECT 1")
        finally:
            await connection.close()

    yield request


POSTGRESQL = [
    Postgresql(
        name="limit: a connection per task",
        settings="asyncpg; a connection for each task, however many",
        reset="nothing",
        open=_one_each,
    ),
    _pooled("asyncpg.Pool, reset off", "reset= does nothing", "nothing", reset=_nothing),
    _pooled("asyncpg.Pool", "the defaults", "the session"),
    Postgresql(
        name="no pool: connect per request",
        settings="asyncpg.connect and close",
        reset="no pool",
        open=_no_pool,
    ),
]
