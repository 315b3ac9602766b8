"""Has an engine over a pool of five: no threads, and the sixth request waits in line."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

import poolkit

pool = poolkit.create_pool(os.environ["DATABASE_URL"], max_size=5, max_overflow=0)
engine = poolkit.sqlalchemy.create_async_engine(pool)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Open the pool, and see to the table."""
    async with poolkit.fastapi.lifespan(pool)(app) as state:
        async with engine.begin() as conn:
            table = "CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, name TEXT)"
            await conn.execute(text(table))
        yield state


async def get_connection() -> AsyncIterator[AsyncConnection]:
    """Commit, or roll back, before the response: the scope below says so."""
    async with engine.begin() as conn:
        yield conn


app = FastAPI(lifespan=lifespan)
Db = Annotated[AsyncConnection, Depends(get_connection, scope="function")]


@app.get("/items")
async def list_items(conn: Db) -> list[dict[str, Any]]:
    """Return all items."""
    rows = await conn.execute(text("SELECT * FROM items ORDER BY id"))
    return [dict(row) for row in rows.mappings()]


@app.post("/items")
async def add_item(name: str, conn: Db) -> dict[str, Any]:
    """Add an item."""
    statement = text("INSERT INTO items (name) VALUES (:name) RETURNING id, name")
    return dict((await conn.execute(statement, {"name": name})).mappings().one())
