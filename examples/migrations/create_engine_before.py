"""Has a synchronous engine, and a thread for each request: five connections, no overflow."""

import os
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from sqlalchemy import Connection, create_engine, text

engine = create_engine(os.environ["DATABASE_URL"], pool_size=5, max_overflow=0)


@asynccontextmanager
async def lifespan(_: FastAPI) -> Any:
    """See to the table."""
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, name TEXT)"))
    yield
    engine.dispose()


def get_connection() -> Iterator[Connection]:
    """Commit, or roll back, after the response."""
    with engine.begin() as conn:
        yield conn


app = FastAPI(lifespan=lifespan)
Db = Annotated[Connection, Depends(get_connection)]


@app.get("/items")
def list_items(conn: Db) -> list[dict[str, Any]]:
    """Return all items."""
    return [dict(row) for row in conn.execute(text("SELECT * FROM items ORDER BY id")).mappings()]


@app.post("/items")
def add_item(name: str, conn: Db) -> dict[str, Any]:
    """Add an item."""
    statement = text("INSERT INTO items (name) VALUES (:name) RETURNING id, name")
    return dict(conn.execute(statement, {"name": name}).mappings().one())
