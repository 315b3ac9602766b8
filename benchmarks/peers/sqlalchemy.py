"""SQLAlchemy: the pool under its engine, and the engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util import await_only, greenlet_spawn

from benchmarks.peers import READ, WRITE, Acquire, Peer, Postgresql, Request, Sqlite, Want
from benchmarks.wire import Wire

# -- over nothing --------------------------------------------------------------------------------


class _Connection(Wire):
    """What SQLAlchemy asks a connection, answered without a server."""

    def rollback(self) -> None:
        """Roll nothing back."""

    def close(self) -> None:
        """Close."""


class _UnderEngine(Wire):
    """What its engine asks a connection of asyncpg, answered without a server."""

    async def close(self, **_: object) -> None:
        """Close."""

    async def set_type_codec(self, *_: object, **__: object) -> None:
        """Be asked to decode JSON."""


class _Checkout:
    """Acquire and release as the engine does: in a greenlet; what is broken is invalidated."""

    __slots__ = ("_fairy", "_pool")

    def __init__(self, pool: AsyncAdaptedQueuePool) -> None:
        self._pool = pool

    async def __aenter__(self) -> Any:
        """Acquire."""
        self._fairy = await greenlet_spawn(self._pool.connect)
        return self._fairy.dbapi_connection

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Release."""
        if isinstance(error, ConnectionError):
            await greenlet_spawn(self._fairy.invalidate, error)
        await greenlet_spawn(self._fairy.close)


async def _warm(acquire: Acquire, number: int) -> None:
    """Open that many: its pools begin empty."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(number):
            await stack.enter_async_context(acquire())


@contextlib.asynccontextmanager
async def _queue_pool(want: Want) -> AsyncIterator[Acquire]:
    def creator() -> Any:
        return await_only(want.database.connect(_Connection))

    pool = AsyncAdaptedQueuePool(
        creator,
        pool_size=want.size,
        max_overflow=0,
        timeout=want.timeout,
    )

    def acquire() -> _Checkout:
        return _Checkout(pool)

    await _warm(acquire, want.least)
    try:
        yield acquire
    finally:
        await greenlet_spawn(pool.dispose)


@contextlib.asynccontextmanager
async def _engine(want: Want) -> AsyncIterator[Acquire]:
    async def connect() -> _UnderEngine:
        return await want.database.connect(_UnderEngine)

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=want.size,
        max_overflow=0,
        pool_timeout=want.timeout,
        _initialize=False,
    )
    await _warm(engine.connect, want.least)
    try:
        yield engine.connect
    finally:
        await engine.dispose()


PEERS = [
    Peer(
        name="SQLAlchemy QueuePool",
        settings="AsyncAdaptedQueuePool; all connections kept, no overflow, no pre_ping",
        open=_queue_pool,
    ),
    Peer(
        name="SQLAlchemy engine",
        settings="AsyncEngine.connect() over the same pool; it sends nothing",
        open=_engine,
        has_query=False,
    ),
]


# -- PostgreSQL and SQLite -----------------------------------------------------------------------


def _postgresql(name: str, settings: str, **options: Any) -> Postgresql:
    @contextlib.asynccontextmanager
    async def open_pool(dsn: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
        url = dsn.replace("postgresql://", "postgresql+asyncpg://", 1)
        engine = create_async_engine(url, pool_size=size, max_overflow=0, **options)
        statement = text("SELECT 1")

        async def request() -> None:
            async with engine.connect() as connection:
                (await connection.execute(statement)).scalar()

        try:
            yield request
        finally:
            await engine.dispose()

    return Postgresql(name=name, settings=settings, reset="the transaction", open=open_pool)


POSTGRESQL = [
    _postgresql(
        "SQLAlchemy engine, AUTOCOMMIT",
        "on asyncpg, no transaction: one round trip",
        isolation_level="AUTOCOMMIT",
    ),
    _postgresql("SQLAlchemy engine", "on asyncpg, the defaults: BEGIN and ROLLBACK are sent"),
]


@contextlib.asynccontextmanager
async def _sqlite(path: str, size: int) -> AsyncIterator[tuple[Request, Request]]:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        poolclass=AsyncAdaptedQueuePool,
        pool_size=size,
        max_overflow=0,
        isolation_level="AUTOCOMMIT",
        connect_args={"timeout": 5.0},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous = NORMAL")

    reading, writing = (text(sql.replace("?", ":id")) for sql in (READ, WRITE))

    async def read() -> None:
        async with engine.connect() as connection:
            (await connection.execute(reading, {"id": 1})).all()

    async def write() -> None:
        async with engine.connect() as connection:
            await connection.execute(writing, {"id": 1})

    try:
        yield read, write
    finally:
        await engine.dispose()


SQLITE = [
    Sqlite(
        name="SQLAlchemy engine",
        settings="on aiosqlite, AUTOCOMMIT, busy timeout 5 s, synchronous NORMAL, as poolkit's own",
        open=_sqlite,
    ),
]
