"""Never run, only checked: the aliases give endpoints their driver's type."""

from __future__ import annotations

from typing import Annotated, Any, assert_type

import aiosqlite
import asyncpg
from fastapi import APIRouter, Depends, FastAPI

import poolkit
from poolkit.drivers import sqlite
from poolkit.fastapi import (
    Connection,
    Dependencies,
    Lazy,
    LazyConnection,
    Transaction,
    for_pool,
    transaction_with,
)

app = FastAPI(lifespan=poolkit.fastapi.lifespan(poolkit.create_pool("sqlite:///app.db")))
replica = for_pool("replica")
assert_type(replica, Dependencies)
assert_type(poolkit.fastapi.router(health=True, unready_after=10.0), APIRouter)
assert_type(poolkit.fastapi.router(metrics=True, workers_folder="/run/shop"), APIRouter)
assert_type(poolkit.fastapi.router(dashboard=True, public=True), APIRouter)


class Mine:
    """The connection of a driver of somebody's own."""

    async def ask(self, question: str) -> int:
        """Answer."""
        raise NotImplementedError


@app.get("/")
async def endpoint(
    conn: Connection[aiosqlite.Connection],
    tx: Transaction[sqlite.Connection],
    pg: Connection[asyncpg.Connection],
    mine: Connection[Mine],
    plain: Annotated[aiosqlite.Connection, Depends(poolkit.fastapi.connection)],
    pool: Annotated[poolkit.Pool[aiosqlite.Connection], Depends(poolkit.fastapi.pool)],
    report: Annotated[
        asyncpg.Connection, Depends(transaction_with(isolation="serializable", readonly=True))
    ],
    tenant: Annotated[
        asyncpg.Connection,
        Depends(transaction_with(settings=lambda request: request.headers, role="web")),
    ],
    stream: Annotated[aiosqlite.Connection, Depends(poolkit.fastapi.streaming_connection)],
    snapshot: Annotated[asyncpg.Connection, Depends(poolkit.fastapi.streaming_transaction)],
    other_snapshot: Annotated[
        asyncpg.Connection,
        Depends(replica.streaming_transaction_with(isolation="repeatable_read")),
    ],
    other: Annotated[aiosqlite.Connection, Depends(replica.connection)],
    other_tx: Annotated[aiosqlite.Connection, Depends(replica.transaction_with(mode="DEFERRED"))],
) -> None:
    """Take one of each."""
    assert_type(conn, aiosqlite.Connection)
    assert_type(tx, sqlite.Connection)
    assert_type(pg, asyncpg.Connection)
    assert_type(mine, Mine)
    assert_type(await mine.ask("?"), int)
    assert_type(plain, aiosqlite.Connection)
    assert_type(report, asyncpg.Connection)
    assert_type(stream, aiosqlite.Connection)
    assert_type(other, aiosqlite.Connection)
    assert_type(other_tx, aiosqlite.Connection)
    async with pool.acquire() as own:
        assert_type(own, aiosqlite.Connection)


@app.get("/lazy")
async def lazily(
    db: Lazy[aiosqlite.Connection],
    pg: Lazy[asyncpg.Connection],
    mine: Lazy[Mine],
    other: Annotated[LazyConnection[sqlite.Connection], Depends(replica.lazy)],
) -> None:
    """Use one in every way."""
    assert_type(db, LazyConnection[aiosqlite.Connection])
    async with db as conn, pg as pg_conn:
        assert_type(conn, aiosqlite.Connection)
        assert_type(pg_conn, asyncpg.Connection)
        async with poolkit.transaction(conn) as same:
            assert_type(same, aiosqlite.Connection)
    assert_type(await mine, Mine)
    assert_type(await other, sqlite.Connection)
    mine.release()
    await other.release()


def make() -> poolkit.Pool[Any]:
    """Return a pool when the application starts."""
    return poolkit.create_pool("sqlite:///app.db")


FastAPI(lifespan=poolkit.fastapi.lifespan(make, replica=make))
