"""Opens a connection for each request."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import aiosqlite
from fastapi import Depends, FastAPI

PATH = os.environ["DATABASE_URL"].removeprefix("sqlite:///")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """See to the table."""
    async with aiosqlite.connect(PATH) as db:
        await db.execute("CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, name TEXT)")
    yield


async def get_db() -> AsyncIterator[aiosqlite.Connection]:
    """Open, and close after the response."""
    async with aiosqlite.connect(PATH) as db:
        yield db


app = FastAPI(lifespan=lifespan)
Db = Annotated[aiosqlite.Connection, Depends(get_db)]


@app.get("/items")
async def list_items(db: Db) -> list[dict[str, Any]]:
    """Return all items."""
    rows = await db.execute_fetchall("SELECT id, name FROM items ORDER BY id")
    return [{"id": number, "name": name} for number, name in rows]


@app.post("/items")
async def add_item(name: str, db: Db) -> dict[str, Any]:
    """Add an item."""
    cursor = await db.execute("INSERT INTO items (name) VALUES (?)", [name])
    await db.commit()
    return {"id": cursor.lastrowid, "name": name}
