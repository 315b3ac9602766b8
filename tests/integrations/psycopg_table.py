"""What a lease of psycopg's leaves behind, for the second table in docs/reference/postgresql-state.md.

To write the table anew: ``python -m tests.integrations.psycopg_table``
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from typing import Any

from poolkit.drivers.psycopg import create_pool
from tests.drivers import psycopg_kinds
from tests.integrations.postgresql_table import (
    PAGE,
    Table,
    by,
    inside_session,
    prepare,
    table_of,
    through,
)

HOW = "to write it anew: python -m tests.integrations.psycopg_table"


def _one(dsn: str, **options: Any) -> Any:
    # A busy machine may take longer than 2 s to end an unfinished stream.
    options["reset_timeout"] = 30.0
    return create_pool(dsn, max_size=1, connection_class=psycopg_kinds.Own, **options)


TABLE = Table(
    psycopg_kinds,
    _one,
    {
        "`pool.acquire()`": by(lambda pool: pool.acquire(), _one),
        "`pool.transaction()`": by(lambda pool: pool.transaction(), _one),
        "`Session`": through(inside_session, _one),
    },
)


async def _write(dsn: str) -> None:
    columns = {head: await TABLE.column(head, dsn) for head in TABLE.heads}
    text = PAGE.read_text()
    first, _, rest = text.partition("\n## psycopg\n")
    before = rest[: rest.index("| kind of state")]
    after = rest[rest.rindex("|\n") + 2 :]
    PAGE.write_text(f"{first}\n## psycopg\n{before}{table_of(psycopg_kinds.KINDS, columns)}{after}")


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
