"""Never run, only checked: asyncpg's names have their types with poolkit's pool."""

from __future__ import annotations

from typing import assert_type

import asyncpg as original

import poolkit
import poolkit.compat.asyncpg as whole
from poolkit.compat import asyncpg

pool = asyncpg.create_pool("postgresql://", min_size=1, command_timeout=5)
assert_type(pool, asyncpg.Pool)
assert_type(poolkit.compat.asyncpg.Pool("postgresql://"), whole.Pool)
asyncpg.create_pool(min_size="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def keep(conn: asyncpg.pool.PoolConnectionProxy) -> None:
    """Take a view by the name of asyncpg's class."""
    assert_type(await conn.execute("SELECT 1"), str)


async def use() -> None:
    """Use it, by asyncpg's names and by poolkit's."""
    async with asyncpg.create_pool() as opened:
        assert_type(opened, asyncpg.Pool)
        assert_type(await opened.execute("SELECT 1", timeout=1.0), str)
        await opened.execute(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        async with opened.acquire(timeout=1.0) as conn:
            assert_type(conn, original.Connection)
            await conn.fetchval("SELECT 1")
        assert_type(opened.stats(), poolkit.PoolStats)
        assert_type(opened.get_size(), int)
    assert_type(await pool, asyncpg.Pool)
    try:
        await pool.release(conn, timeout=1.0)
    except asyncpg.InterfaceError as error:
        same: original.InterfaceError = error
        raise same from None
