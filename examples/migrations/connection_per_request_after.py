"""Lends each request one of five connections."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import aiosqlite
from fastapi import Depends, FastAPI

import poolkit

pool = poolkit.create_pool(os.environ["DATABASE_URL"], max_size=5)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Open the pool, and see to the table."""
    async with poolkit.fastapi.lifespan(pool)(app) as state:
        async with pool.acquire() as db:
            await db.execute("CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, name TEXT)")
        yield state


app = FastAPI(lifespan=lifespan)
Db = Annotated[aiosqlite.Connection, Depends(poolkit.fastapi.connection)]


@app.get("/items")
async def list_items(db: Db) -> list[dict[str, Any]]:
    """Return all items."""
    rows = await db.execute_fetchall("SELECT id, name FROM items ORDER BY id")
    return [{"id": number, "name": name} for number, name in rows]


@app.post("/items")
async def add_item(name: str, db: Db) -> dict[str, Any]:
    """Add an item; each statement is committed by itself."""
    cursor = await db.execute("INSERT INTO items (name) VALUES (?)", [name])
    return {"id": cursor.lastrowid, "name": name}
