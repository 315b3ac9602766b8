"""What a lease of psycopg's leaves behind, for the second table in docs/reference/postgresql-state.md.

To write the table anew: ``python -m tests.integrations.psycopg_table``
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from typing import Any

import psycopg

from poolkit import ConnectFailed, PoolConfigError, TransactionEnded
from poolkit.drivers.psycopg import create_pool
from tests.drivers.postgresql_kinds import Kind
from tests.drivers.psycopg_kinds import KINDS, Own, is_seen, leave, value
from tests.integrations.postgresql_table import PAGE, prepare, table_of

HOW = "to write it anew: python -m tests.integrations.psycopg_table"
#: By the heads of their columns.
WAYS = {"`pool.acquire()`": "acquire", "`pool.transaction()`": "transaction"}
#: What becomes of it if `on_connect` has left it.
SET_UP = "by `on_connect`"
COLUMNS = (*WAYS, SET_UP)


def _one(dsn: str, **options: Any) -> Any:
    return create_pool(dsn, max_size=1, connection_class=Own, **options)


async def column(head: str, dsn: str) -> dict[str, str]:
    """Return what becomes of each kind, by its name."""
    if head == SET_UP:
        return {kind.name: await _if_set_up(dsn, kind) for kind in KINDS}
    async with _one(dsn) as pool:
        return {kind.name: await _fate(pool, WAYS[head], kind) for kind in KINDS}


async def _fate(pool: Any, way: str, kind: Kind) -> str:
    before = pool.stats().connected
    was_seen = refused = False
    try:
        async with getattr(pool, way)() as conn:
            await leave(conn, kind)
            was_seen = not kind.at_once or await is_seen(conn, kind)
    except (psycopg.Error, TransactionEnded):
        refused = True
    assert was_seen or refused, f"{kind.name}: it was never there"
    async with pool.acquire() as conn:
        stays = await is_seen(conn, kind)
        assert await value(conn, "SELECT count(*) FROM public.t") == 1
    if stays:
        return "stays"
    if pool.stats().connected > before:
        return "replaced"
    return "refused" if refused else "undone"


async def _if_set_up(dsn: str, kind: Kind) -> str:
    if not kind.to_set_up:
        return "-"
    pool = _one(dsn, on_connect=lambda conn: leave(conn, kind))
    try:
        await pool.open()
    except ConnectFailed as failed:
        if not isinstance(failed.__cause__, PoolConfigError):
            raise
        return "refused"
    async with pool:
        seen = []
        for _ in range(3):
            async with pool.acquire() as conn:
                seen.append(await is_seen(conn, kind))
    assert len({*seen}) == 1, f"{kind.name}: of its leases only the first ones have it"
    return "restored" if seen[0] else "-"


async def _write(dsn: str) -> None:
    columns = {head: await column(head, dsn) for head in COLUMNS}
    text = PAGE.read_text()
    first, _, rest = text.partition("\n## psycopg\n")
    before = rest[: rest.index("| kind of state")]
    after = rest[rest.rindex("|\n") + 2 :]
    PAGE.write_text(f"{first}\n## psycopg\n{before}{table_of(KINDS, columns)}{after}")


def main() -> None:
    """Write the table anew, by a server of its own."""
    from tests.postgres import Server, usable_binaries

    logging.disable()
    warnings.simplefilter("ignore")
    with usable_binaries() as binaries, contextlib.closing(Server(binaries)) as server:
        server.start()
        name = server.create_database()
        prepare(server, name)
        asyncio.run(_write(server.dsn(name)))


if __name__ == "__main__":
    main()
