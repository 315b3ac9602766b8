"""What the tests of the driver for asyncmy share."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from typing import TYPE_CHECKING, Any

from poolkit.drivers.asyncmy import create_pool
from tests.drivers.asyncpg_help import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poolkit import Pool
    from tests.mariadb import MariaDB

#: Never ends by itself.
ENDLESS = "SELECT SLEEP(600)"
TABLE = "CREATE TABLE t (x INT PRIMARY KEY) ENGINE=InnoDB"


def of_one(url: str, **options: Any) -> Pool[Any]:
    """Return a pool of one connection, which every user gets in turn."""
    return create_pool(url, **{"max_size": 1, **options})


async def execute(conn: Any, sql: str, args: Any = None) -> list[tuple[Any, ...]]:
    """Execute a statement; return its rows."""
    async with conn.cursor() as cursor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            await cursor.execute(sql, args)
        return list(await cursor.fetchall()) if cursor.description else []


async def value(conn: Any, sql: str) -> Any:
    """Return the first value of the first row."""
    return (await execute(conn, sql))[0][0]


async def rows(pool: Pool[Any]) -> list[int]:
    """Return what stands in the table: what has been committed."""
    async with pool.acquire() as conn:
        return [x for (x,) in await execute(conn, "SELECT x FROM t ORDER BY x")]


def database_of(url: str) -> str:
    """Return the database that a URL names."""
    return url.rpartition("/")[2].partition("?")[0]


async def ask(server: MariaDB, sql: str, *args: object) -> list[tuple[Any, ...]]:
    """Ask the server, as root, while this event loop goes on."""
    return await asyncio.to_thread(server.query, sql, *args)


async def until_asked(server: MariaDB, sql: str, expected: list[tuple[Any, ...]]) -> None:
    """Wait for an answer: InnoDB looks anew if it was not asked for its transactions for 0.1 s."""
    end = asyncio.get_running_loop().time() + 20
    while (found := await ask(server, sql)) != expected:
        assert asyncio.get_running_loop().time() < end, found
        await asyncio.sleep(0.15)


async def sessions(server: MariaDB, url: str) -> dict[int, str]:
    """Return what the sessions are at that have chosen a database."""
    return await asyncio.to_thread(server.sessions, database_of(url))


async def until_sessions(server: MariaDB, url: str, is_so: Any) -> dict[int, str]:
    """Wait for what the server says of the sessions of a database."""
    end = asyncio.get_running_loop().time() + 20
    while not is_so(found := await sessions(server, url)):
        assert asyncio.get_running_loop().time() < end, found
        await asyncio.sleep(0.005)
    return found


async def running(server: MariaDB, url: str, text: str = ENDLESS) -> int:
    """Wait until some session is in the middle of a statement; return its number."""
    found = await until_sessions(server, url, lambda seen: text in seen.values())
    (number,) = [number for number, at in found.items() if at == text]
    return number


async def quiet(pool: Pool[Any]) -> None:
    """Wait until nothing is being cleaned, opened or closed."""
    await until(lambda: not (s := pool.stats()).recycling + s.closing + s.connecting)


@contextlib.asynccontextmanager
async def with_table(url: str, **options: Any) -> AsyncIterator[Pool[Any]]:
    """Open a pool of one connection, and create the table."""
    async with of_one(url, **options) as pool:
        async with pool.acquire() as conn:
            await execute(conn, TABLE)
        yield pool
