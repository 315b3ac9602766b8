"""Never run, only checked: the aliases give endpoints their driver's type."""

from __future__ import annotations

from typing import Annotated, Any, assert_type

import aiosqlite
from fastapi import Depends, FastAPI

import poolkit
from poolkit.drivers import sqlite
from poolkit.fastapi import Connection, Transaction

app = FastAPI(lifespan=poolkit.fastapi.lifespan(poolkit.create_pool("sqlite:///app.db")))


@app.get("/")
async def endpoint(
    conn: Connection[aiosqlite.Connection],
    tx: Transaction[sqlite.Connection],
    plain: Annotated[aiosqlite.Connection, Depends(poolkit.fastapi.connection)],
    pool: Annotated[poolkit.Pool[aiosqlite.Connection], Depends(poolkit.fastapi.pool)],
) -> None:
    """Take one of each."""
    assert_type(conn, aiosqlite.Connection)
    assert_type(tx, sqlite.Connection)
    assert_type(plain, aiosqlite.Connection)
    async with pool.acquire() as mine:
        assert_type(mine, aiosqlite.Connection)


def make() -> poolkit.Pool[Any]:
    """Return a pool when the application starts."""
    return poolkit.create_pool("sqlite:///app.db")


FastAPI(lifespan=poolkit.fastapi.lifespan(make, replica=make))
