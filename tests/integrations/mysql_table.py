"""What a lease of MySQL's leaves behind, for the table in docs/reference/mysql-state.md.

To write the table anew: ``python -m tests.integrations.mysql_table``
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

import asyncmy

from poolkit import ConnectFailed, NotLeased, PoolConfigError, TransactionEnded
from poolkit.drivers.asyncmy import create_pool
from tests.drivers.asyncmy_help import value
from tests.drivers.mysql_kinds import KINDS, is_seen, leave
from tests.integrations.postgresql_table import PAGE as _PAGE
from tests.integrations.postgresql_table import table_of

if TYPE_CHECKING:
    from tests.drivers.postgresql_kinds import Kind
    from tests.mariadb import MariaDB

PAGE = _PAGE.with_name("mysql-state.md")
HOW = "to write it anew: python -m tests.integrations.mysql_table"
#: By the heads of their columns.
WAYS = {"`pool.acquire()`": "acquire", "`pool.transaction()`": "transaction"}
#: What becomes of it if `on_connect` has left it.
SET_UP = "by `on_connect`"
COLUMNS = (*WAYS, SET_UP)


def _one(url: str, **options: Any) -> Any:
    return create_pool(url, max_size=1, reset_timeout=20, **options)


async def column(head: str, url: str) -> dict[str, str]:
    """Return what becomes of each kind, by its name."""
    if head == SET_UP:
        return {kind.name: await _if_set_up(url, kind) for kind in KINDS}
    return {kind.name: await _fate(url, WAYS[head], kind) for kind in KINDS}


async def _fate(url: str, way: str, kind: Kind) -> str:
    async with _one(url) as pool:
        was_seen = refused = False
        try:
            async with getattr(pool, way)() as conn:
                await leave(conn, kind)
                was_seen = not kind.at_once or await is_seen(conn, kind)
        except (asyncmy.Error, TransactionEnded, NotLeased):
            refused = True
        assert was_seen or refused, f"{kind.name}: it was never there"
        async with pool.acquire() as conn:
            stays = await is_seen(conn, kind)
        async with pool.acquire() as conn:
            assert await value(conn, "SELECT COUNT(*) FROM t") == 1
        if stays:
            return "stays"
        if pool.stats().connected > 1:
            return "replaced"
        return "refused" if refused else "undone"


async def _if_set_up(url: str, kind: Kind) -> str:
    if not kind.to_set_up:
        return "-"
    pool = _one(url, on_connect=lambda conn: leave(conn, kind))
    try:
        await pool.open()
    except ConnectFailed as failed:
        if not isinstance(failed.__cause__, PoolConfigError):
            raise
        return "refused"
    seen = []
    for _ in range(3):
        async with pool.acquire() as conn:
            seen.append(await is_seen(conn, kind))
    await pool.aclose()
    assert len({*seen}) == 1, f"{kind.name}: of its leases only the first ones have it"
    return "restored" if seen[0] else "-"


def prepare(server: MariaDB, database: str) -> None:
    """Create what the kinds need."""
    server.query("CREATE TABLE t AS SELECT 1 AS x", database=database)
    server.query("CREATE TABLE other AS SELECT 1 AS x", database=database)
    server.query("CREATE ROLE IF NOT EXISTS poolkit_reader")
    server.query("GRANT poolkit_reader TO app@'%'")


async def _write(url: str) -> None:
    columns = {head: await column(head, url) for head in COLUMNS}
    text = PAGE.read_text()
    before = text[: text.index("| kind of state")]
    after = text[text.rindex("|\n") + 2 :]
    PAGE.write_text(f"{before}{table_of(KINDS, columns)}{after}")


def main() -> None:
    """Write the table anew, by a server of its own."""
    from tests.mariadb import MariaDB, find_programs

    logging.disable()
    warnings.simplefilter("ignore")
    with contextlib.closing(MariaDB(*find_programs())) as server:
        server.start()
        name = server.create_database()
        prepare(server, name)
        asyncio.run(_write(server.url(name)))


if __name__ == "__main__":
    main()
