"""The code of docs/howto/typing.md, for type checkers; a test compares them."""

import aiosqlite
from typing_extensions import Unpack

import poolkit
from poolkit import Pool, PoolOptions
from poolkit.fastapi import Connection

by_driver = poolkit.drivers.aiosqlite.create_pool("shop.db")
by_url: Pool[aiosqlite.Connection] = poolkit.create_pool("sqlite:///shop.db")


async def count(pool: Pool[aiosqlite.Connection]) -> int:
    async with pool.acquire() as conn:
        cursor = await conn.execute("SELECT count(*) FROM item")
        row = await cursor.fetchone()
        return int(row[0]) if row else 0


async def endpoint(db: Connection[aiosqlite.Connection]) -> None:
    await db.execute("DELETE FROM item")


def make_pool(database: str, **options: Unpack[PoolOptions]) -> Pool[aiosqlite.Connection]:
    return poolkit.drivers.aiosqlite.create_pool(database, **options)


small = make_pool("shop.db", max_size=2)
