"""Depends on a connection: the endpoints know no pool, and no request."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
from fastapi import Depends, FastAPI

import poolkit

TABLE = "CREATE TABLE IF NOT EXISTS items (id serial PRIMARY KEY, name text NOT NULL)"
pool = poolkit.create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=5)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Open the pool, and see to the table."""
    async with poolkit.fastapi.lifespan(pool)(app) as state:
        async with pool.acquire() as conn:
            await conn.execute(TABLE)
        yield state


app = FastAPI(lifespan=lifespan)
Db = Annotated[asyncpg.Connection, Depends(poolkit.fastapi.connection)]
DbTransaction = Annotated[asyncpg.Connection, Depends(poolkit.fastapi.transaction)]


@app.get("/items")
async def list_items(conn: Db) -> list[dict[str, Any]]:
    """Return all items."""
    return [dict(row) for row in await conn.fetch("SELECT id, name FROM items ORDER BY id")]


@app.post("/items")
async def add_item(name: str, conn: DbTransaction) -> dict[str, Any]:
    """Add an item; it is committed before the client is told."""
    row = await conn.fetchrow("INSERT INTO items (name) VALUES ($1) RETURNING id, name", name)
    return dict(row or {})
