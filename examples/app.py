"""A small shop on a SQLite file: items to list and add, accounts to move money between.

Start it with ``make demo``, or ``uvicorn app:app --app-dir examples``. Then try::

    curl localhost:8000/items
    curl localhost:8000/items    -H 'content-type: application/json' -d '{"name": "spade"}'
    curl localhost:8000/accounts
    curl localhost:8000/transfer -H 'content-type: application/json' \
         -d '{"source": 1, "target": 2, "amount": 10}'     # and then 10000, or target 9
    curl localhost:8000/pool

    python examples/hammer.py       # 50 clients at once: five connections are enough

The file is ``var/example.db``, or what ``POOLKIT_EXAMPLE_DB`` names.
"""

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import aiosqlite
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, Field

import poolkit
from poolkit.fastapi import Connection, Transaction

DATABASE = Path(os.environ.get("POOLKIT_EXAMPLE_DB", "var/example.db"))
SCHEMA = """
    CREATE TABLE IF NOT EXISTS item (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, owner TEXT, balance INTEGER);
    INSERT OR IGNORE INTO account VALUES (1, 'Ada', 1000), (2, 'Grace', 1000), (3, 'Edsger', 1000);
"""

pool = poolkit.create_pool(f"sqlite:///{DATABASE}", max_size=5)

# What an endpoint asks for: a connection, or one in a transaction that commits when it returns.
Db = Connection[aiosqlite.Connection]
DbTransaction = Transaction[aiosqlite.Connection]


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Open the pool and see to the tables; close the pool at the end."""
    DATABASE.parent.mkdir(parents=True, exist_ok=True)
    async with poolkit.fastapi.lifespan(pool)(app) as state:
        async with pool.acquire() as db:
            await db.executescript(SCHEMA)
        yield state


app = FastAPI(title="poolkit's example", lifespan=lifespan)


class NewItem(BaseModel):
    """An item to be added."""

    name: str


class Transfer(BaseModel):
    """An order to move money."""

    source: int
    target: int
    amount: int = Field(gt=0)


@app.get("/items")
async def list_items(db: Db) -> list[dict[str, Any]]:
    """Return the latest items."""
    rows = await db.execute_fetchall("SELECT id, name FROM item ORDER BY id DESC LIMIT 20")
    return [{"id": number, "name": name} for number, name in rows]


@app.get("/unpooled/items")
async def list_items_unpooled() -> list[dict[str, Any]]:
    """Return the same by a connection for this request only: cheap with SQLite, not elsewhere."""
    async with aiosqlite.connect(DATABASE) as db:
        return await list_items(db)


@app.post("/items", status_code=201)
async def add_item(item: NewItem, db: Db) -> dict[str, Any]:
    """Add an item: a single statement needs no transaction."""
    row = await db.execute_insert("INSERT INTO item (name) VALUES (?)", (item.name,))
    return {"id": row and row[0], "name": item.name}


@app.get("/accounts")
async def list_accounts(db: Db) -> list[dict[str, Any]]:
    """Return all accounts."""
    rows = await db.execute_fetchall("SELECT id, owner, balance FROM account")
    return [{"id": number, "owner": owner, "balance": balance} for number, owner, balance in rows]


@app.post("/transfer")
async def transfer(order: Transfer, db: DbTransaction) -> list[dict[str, Any]]:
    """Move money: all of it or nothing, for an exception undoes what was done before it."""
    for account, change in ((order.source, -order.amount), (order.target, order.amount)):
        update = "UPDATE account SET balance = balance + ? WHERE id = ?"
        if (await db.execute(update, (change, account))).rowcount == 0:
            raise HTTPException(404, f"there is no account {account}")
    if await db.execute_fetchall("SELECT 1 FROM account WHERE balance < 0"):
        raise HTTPException(409, "insufficient funds")
    return await list_accounts(db)


@app.get("/pool")
async def show_pool(
    pool: Annotated[poolkit.Pool[Any], Depends(poolkit.fastapi.pool)],
) -> dict[str, Any]:
    """Return what the pool tells of itself; this takes no connection."""
    stats = pool.stats()
    return {"size": stats.size, **dataclasses.asdict(stats)}
