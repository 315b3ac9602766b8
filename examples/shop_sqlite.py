"""The shop's queries on SQLite, through aiosqlite. For PostgreSQL see shop_postgresql.py."""

from typing import Any
from urllib.parse import unquote, urlsplit

import aiosqlite

Connection = aiosqlite.Connection

TABLES = """
    CREATE TABLE IF NOT EXISTS item (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, owner TEXT, balance INTEGER);
    INSERT OR IGNORE INTO account VALUES (1, 'Ada', 1000), (2, 'Grace', 1000), (3, 'Edsger', 1000);
"""


def connect(url: str) -> Connection:
    """Return a connection that no pool knows of, for ``async with``."""
    return aiosqlite.connect(unquote(urlsplit(url).path)[1:])


async def create_tables(db: Connection) -> None:
    """See to the tables and the three accounts."""
    await db.executescript(TABLES)


async def list_items(db: Connection) -> list[dict[str, Any]]:
    """Return the latest items."""
    rows = await db.execute_fetchall("SELECT id, name FROM item ORDER BY id DESC LIMIT 20")
    return [{"id": number, "name": name} for number, name in rows]


async def add_item(db: Connection, name: str) -> dict[str, Any]:
    """Add an item, and return it."""
    row = await db.execute_insert("INSERT INTO item (name) VALUES (?)", (name,))
    return {"id": row and row[0], "name": name}


async def list_accounts(db: Connection) -> list[dict[str, Any]]:
    """Return all accounts."""
    rows = await db.execute_fetchall("SELECT id, owner, balance FROM account ORDER BY id")
    return [{"id": number, "owner": owner, "balance": balance} for number, owner, balance in rows]


async def change_balance(db: Connection, account: int, change: int) -> int | None:
    """Put money into an account, or take it out; return the new balance, None if there is none."""
    await db.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (change, account))
    rows = await db.execute_fetchall("SELECT balance FROM account WHERE id = ?", (account,))
    return next((balance for (balance,) in rows), None)
