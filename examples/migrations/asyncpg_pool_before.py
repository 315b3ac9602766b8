"""Has asyncpg's own pool in the application's state."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from fastapi import FastAPI, Request

TABLE = "CREATE TABLE IF NOT EXISTS items (id serial PRIMARY KEY, name text NOT NULL)"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool, and see to the table."""
    pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=5)
    try:
        await pool.execute(TABLE)
        app.state.pool = pool
        yield
    finally:
        await pool.close()


app = FastAPI(lifespan=lifespan)


@app.get("/items")
async def list_items(request: Request) -> list[dict[str, Any]]:
    """Return all items."""
    async with request.app.state.pool.acquire() as conn:
        return [dict(row) for row in await conn.fetch("SELECT id, name FROM items ORDER BY id")]


@app.post("/items")
async def add_item(name: str, request: Request) -> dict[str, Any]:
    """Add an item."""
    async with request.app.state.pool.acquire() as conn, conn.transaction():
        row = await conn.fetchrow("INSERT INTO items (name) VALUES ($1) RETURNING id, name", name)
        return dict(row)
