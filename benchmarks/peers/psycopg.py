"""psycopg_pool."""

from __future__ import annotations

import contextlib
import types
from collections.abc import AsyncIterator
from typing import Any, Self

import psycopg_pool
from psycopg.pq import TransactionStatus

from benchmarks.peers import Acquire, Peer, Postgresql, Request, Reset, Want
from benchmarks.wire import Wire


class _Connection(Wire):
    """What psycopg_pool asks a connection, answered without a server."""

    _pool: Any = None
    _expire_at = 0.0
    _created_at = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.pgconn = types.SimpleNamespace(transaction_status=TransactionStatus.IDLE)

    def check(self) -> None:
        """Be closed once the database has gone, as psycopg is after an error."""
        if self.dead:
            self.pgconn.transaction_status = TransactionStatus.UNKNOWN
        super().check()

    @property
    def closed(self) -> bool:
        """Tell."""
        return bool(self.pgconn.transaction_status == TransactionStatus.UNKNOWN)

    async def __aenter__(self) -> Self:
        """Begin nothing, as psycopg does."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Commit nothing: no statement has begun a transaction."""

    async def close(self) -> None:
        """Close."""
        self.pgconn.transaction_status = TransactionStatus.UNKNOWN


def _peer(name: str, settings: str, **options: Any) -> Peer:
    @contextlib.asynccontextmanager
    async def open_pool(want: Want) -> AsyncIterator[Acquire]:
        class Connection(_Connection):
            @classmethod
            async def connect(cls, *_: object, **__: object) -> Self:
                return await want.database.connect(cls)

        pool = psycopg_pool.AsyncConnectionPool(
            connection_class=Connection,
            min_size=want.least,
            max_size=want.size,
            timeout=want.timeout,
            open=False,
            **options,
        )
        await pool.open(wait=True)
        try:
            yield pool.connection
        finally:
            await pool.close()

    return Peer(name=name, settings=settings, open=open_pool)


PEERS = [_peer("psycopg_pool", "connection(); no check=, no reset=, as by default")]
OVERLOAD = [
    _peer("psycopg_pool, max_waiting=100", "refuses what comes when 100 wait", max_waiting=100),
]


# -- PostgreSQL ----------------------------------------------------------------------------------


def _pooled(name: str, settings: str, undone: Reset, **arguments: Any) -> Postgresql:
    @contextlib.asynccontextmanager
    async def open_pool(dsn: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
        pool = psycopg_pool.AsyncConnectionPool(
            dsn,
            min_size=size,
            max_size=size,
            open=False,
            kwargs={"prepare_threshold": 1, **arguments},
        )
        await pool.open(wait=True)

        async def request() -> None:
            async with pool.connection() as connection:
                await (await connection.execute("SELECT 1")).fetchone()

        try:
            yield request
        finally:
            await pool.close()

    return Postgresql(name=name, settings=settings, reset=undone, open=open_pool)


POSTGRESQL = [
    _pooled(
        "psycopg_pool, autocommit",
        "prepared from the second use on, autocommit: one round trip",
        "the transaction",
        autocommit=True,
    ),
    _pooled(
        "psycopg_pool",
        "prepared from the second use on; a transaction per lease, as by default",
        "the transaction",
    ),
]
