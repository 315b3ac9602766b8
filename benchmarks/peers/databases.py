"""databases: a wrapper of asyncpg's pool, so it has no row of its own over nothing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import databases

from benchmarks.peers import Postgresql, Request


@contextlib.asynccontextmanager
async def _open(dsn: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
    async with databases.Database(dsn, min_size=size, max_size=size) as database:

        async def request() -> None:
            async with database.connection() as connection:
                await connection.fetch_val("SELECT 1")

        yield request


POSTGRESQL = [
    Postgresql(
        name="databases",
        settings="connection(), the defaults: asyncpg.Pool underneath",
        reset="the session",
        open=_open,
    ),
]
