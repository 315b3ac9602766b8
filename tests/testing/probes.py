"""What our own drivers' connections are tried with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from psycopg.pq import TransactionStatus

from poolkit.testing import Probe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg
    import psycopg

    from poolkit.testing import FakeConnection, FakeDriver

#: The files that this process has open, where the system says.
_OPEN = Path("/proc/self/fd")
_ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


def of_fake(driver: FakeDriver) -> Probe[FakeConnection]:
    """Return the probe for a driver without a database."""

    async def count() -> int:
        return len(driver.alive)

    async def operate(c: FakeConnection) -> None:
        with c.operation():
            await anyio.sleep_forever()

    async def spoil(c: FakeConnection) -> None:
        await c.begin()
        c.session["role"] = "admin"

    async def is_spoiled(c: FakeConnection) -> bool:
        return c.in_transaction or bool(c.session)

    async def derive(c: FakeConnection) -> Callable[[], Awaitable[object]]:
        return c.cursor().fetch

    async def kill(_: FakeConnection) -> None:
        driver.crash()

    async def write(c: FakeConnection) -> None:
        await c.write("row")

    async def count_rows() -> int:
        return len(driver.rows)

    return Probe(
        count=count,
        operate=operate,
        spoil=spoil,
        is_spoiled=is_spoiled,
        derive=derive,
        kill=kill,
        write=write,
        count_rows=count_rows,
        secrets=("hunter2",),
    )


def of_asyncpg(outside: asyncpg.Connection, *, light: bool) -> Probe[asyncpg.Connection]:
    """Return the probe for PostgreSQL, with a connection that looks on, and a table ``t``.

    ``light``: the reset has to undo transactions only.
    """

    async def count() -> int:
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend'"
        )
        return int(await outside.fetchval(sql))

    async def operate(c: asyncpg.Connection) -> None:
        await c.execute("SELECT pg_sleep(60)")

    async def spoil(c: asyncpg.Connection) -> None:
        if not light:
            await c.execute("SET application_name = 'spoiled'")
            await c.execute("CREATE TEMP TABLE left_behind ()")
        await c.execute("BEGIN")

    async def is_spoiled(c: asyncpg.Connection) -> bool:
        set_up = await c.fetchval("SHOW application_name") == "spoiled"
        table = await c.fetchval("SELECT to_regclass('left_behind')") is not None
        return c.is_in_transaction() or set_up or table

    async def derive(c: asyncpg.Connection) -> Callable[[], Awaitable[object]]:
        return (await c.prepare("SELECT 1")).fetch

    async def kill(c: asyncpg.Connection) -> None:
        await outside.execute("SELECT pg_terminate_backend($1)", c.get_server_pid())

    async def write(c: asyncpg.Connection) -> None:
        await c.execute("INSERT INTO t VALUES (1)")

    async def count_rows() -> int:
        return int(await outside.fetchval("SELECT count(*) FROM t"))

    return Probe(
        count=count,
        operate=operate,
        spoil=spoil,
        is_spoiled=is_spoiled,
        derive=derive,
        kill=kill,
        write=write,
        count_rows=count_rows,
    )


def of_psycopg(outside: asyncpg.Connection, *, light: bool) -> Probe[psycopg.AsyncConnection[Any]]:
    """Return the probe for PostgreSQL through psycopg, as `of_asyncpg`."""
    base = of_asyncpg(outside, light=light)

    async def spoil(c: psycopg.AsyncConnection[Any]) -> None:
        if not light:
            await c.execute("SET application_name = 'spoiled'; CREATE TEMP TABLE left_behind ()")
        await c.execute("BEGIN")

    async def is_spoiled(c: psycopg.AsyncConnection[Any]) -> bool:
        sql = "SELECT current_setting('application_name'), to_regclass('left_behind')::text"
        row = await (await c.execute(sql)).fetchone()
        return c.info.transaction_status != TransactionStatus.IDLE or row != ("", None)

    async def derive(c: psycopg.AsyncConnection[Any]) -> Callable[[], Awaitable[object]]:
        cursor = c.cursor()
        return lambda: cursor.execute("SELECT 1")

    async def kill(c: psycopg.AsyncConnection[Any]) -> None:
        await outside.execute("SELECT pg_terminate_backend($1)", c.info.backend_pid)

    return Probe(
        count=base.count,
        operate=lambda c: c.execute("SELECT pg_sleep(60)"),
        spoil=spoil,
        is_spoiled=is_spoiled,
        derive=derive,
        kill=kill,
        write=lambda c: c.execute("INSERT INTO t VALUES (1)"),
        count_rows=base.count_rows,
    )


def of_sqlite(path: Path, rows: Callable[[], int]) -> Probe[Any]:
    """Return the probe for both drivers of SQLite; the file has a table ``t``."""

    async def count() -> int:
        return sum(_is_of(link, path) for link in _OPEN.iterdir())  # noqa: ASYNC240  # no disk

    async def operate(c: Any) -> None:
        await c.execute(_ENDLESS)

    async def spoil(c: Any) -> None:
        await c.execute("PRAGMA foreign_keys = OFF")
        await c.execute("BEGIN IMMEDIATE")
        await c.execute("INSERT INTO t VALUES (0)")

    async def is_spoiled(c: Any) -> bool:
        (row,) = await c.execute_fetchall("PRAGMA foreign_keys")
        return bool(c.in_transaction or row[0] == 0)

    async def derive(c: Any) -> Callable[[], Awaitable[object]]:
        cursor = await c.execute("SELECT 1 UNION SELECT 2")
        return lambda: cursor.fetchone()

    async def write(c: Any) -> None:
        await c.execute("INSERT INTO t VALUES (1)")

    async def count_rows() -> int:
        return rows()

    return Probe(
        count=count if _OPEN.is_dir() else None,
        operate=operate,
        spoil=spoil,
        is_spoiled=is_spoiled,
        derive=derive,
        write=write,
        count_rows=count_rows,
    )


def _is_of(link: Path, path: Path) -> bool:
    try:
        return link.readlink() == path
    except OSError:
        return False
