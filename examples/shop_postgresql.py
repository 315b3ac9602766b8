"""The shop's queries on PostgreSQL, through asyncpg. For SQLite see shop_sqlite.py."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

Connection = asyncpg.Connection

# One transaction, as the statements are sent together; processes that start at the same time take
# turns, because IF NOT EXISTS sees only what is committed.
TABLES = """
    SELECT pg_advisory_xact_lock(20);
    CREATE TABLE IF NOT EXISTS item (
        id INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, owner TEXT, balance BIGINT);
    INSERT INTO account VALUES (1, 'Ada', 1000), (2, 'Grace', 1000), (3, 'Edsger', 1000)
        ON CONFLICT DO NOTHING;
"""


@contextlib.asynccontextmanager
async def connect(url: str) -> AsyncIterator[Connection]:
    """Return a connection that no pool knows of, for ``async with``."""
    db = await asyncpg.connect(url)
    try:
        yield db
    finally:
        await db.close()


async def create_tables(db: Connection) -> None:
    """See to the tables and the three accounts."""
    await db.execute(TABLES)


async def list_items(db: Connection) -> list[dict[str, Any]]:
    """Return the latest items."""
    rows = await db.fetch("SELECT id, name FROM item ORDER BY id DESC LIMIT 20")
    return [dict(row) for row in rows]


async def add_item(db: Connection, name: str) -> dict[str, Any]:
    """Add an item, and return it."""
    number = await db.fetchval("INSERT INTO item (name) VALUES ($1) RETURNING id", name)
    return {"id": number, "name": name}


async def list_accounts(db: Connection) -> list[dict[str, Any]]:
    """Return all accounts."""
    rows = await db.fetch("SELECT id, owner, balance FROM account ORDER BY id")
    return [dict(row) for row in rows]


async def change_balance(db: Connection, account: int, change: int) -> int | None:
    """Put money into an account, or take it out; return the new balance, None if there is none."""
    update = "UPDATE account SET balance = balance + $1 WHERE id = $2 RETURNING balance"
    balance: int | None = await db.fetchval(update, change, account)
    return balance
