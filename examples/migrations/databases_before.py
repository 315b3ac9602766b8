"""Has a ``Database``, connected on start-up and disconnected on shut-down."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from databases import Database
from fastapi import FastAPI

database = Database(os.environ["DATABASE_URL"])


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Connect, see to the table, disconnect."""
    await database.connect()
    await database.execute("CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, name TEXT)")
    yield
    await database.disconnect()


app = FastAPI(lifespan=lifespan)


@app.get("/items")
async def list_items() -> list[dict[str, Any]]:
    """Return all items."""
    rows = await database.fetch_all("SELECT id, name FROM items ORDER BY id")
    return [dict(row._mapping) for row in rows]


@app.post("/items")
async def add_item(name: str) -> dict[str, Any]:
    """Add an item."""
    async with database.transaction():
        number = await database.execute("INSERT INTO items (name) VALUES (:name)", {"name": name})
    return {"id": number, "name": name}
