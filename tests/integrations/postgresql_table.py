"""What a lease of PostgreSQL's leaves behind, for the table in docs/reference/postgresql-state.md.

To write the table anew: ``python -m tests.integrations.postgresql_table``
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx
import psycopg
import sqlalchemy as sa
from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

import poolkit.fastapi
from poolkit import ConnectFailed, PoolConfigError, TransactionEnded
from poolkit.compat import asyncpg as compat
from poolkit.drivers.asyncpg import create_pool
from tests.drivers import postgresql_kinds
from tests.drivers.postgresql_kinds import KINDS, Kind, Own

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "postgresql-state.md"
HOW = "to write it anew: python -m tests.integrations.postgresql_table"

#: What whoever may not leave it is told.
REFUSALS = (
    *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, psycopg.Error),
    TransactionEnded,
    sa.exc.SQLAlchemyError,
)

Use = Callable[[Any], Awaitable[None]]
#: Takes a connection, uses it, and gives it back.
Take = Callable[[Use], Awaitable[None]]
#: Makes a pool of one connection, opens it, and says how to take its connection.
Way = Callable[[str], contextlib.AbstractAsyncContextManager[tuple[Any, Take]]]


# -- the ways to take a connection ---------------------------------------------------------------


def one(dsn: str, **options: Any) -> Any:
    """Return a pool of one connection."""
    given = {"connection_class": Own}
    return create_pool(dsn, max_size=1, connect_kwargs=given, **options)


def by(enter: Callable[[Any], Any], make: Callable[[str], Any] = one) -> Way:
    """Return the way by a block: what it is entered with is the connection."""

    @contextlib.asynccontextmanager
    async def way(dsn: str) -> AsyncIterator[tuple[Any, Take]]:
        async with make(dsn) as pool:

            async def take(use: Use) -> None:
                async with enter(pool) as conn:
                    await use(conn)

            yield pool, take

    return way


class OfSession:
    """The connection of a session, which executes each statement itself."""

    def __init__(self, session: AsyncSession, own: Any) -> None:
        vars(self).update(_session=session, _own=own)

    async def execute(self, sql: str) -> object:
        """Execute a statement in the session's transaction; several where that has none."""
        if ";" in sql:
            return await self._own.execute(sql)
        return await self._session.execute(sa.text(sql.replace(":", "\\:")))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._own, name, value)


async def of_session(session: poolkit.fastapi.Session) -> OfSession:
    """Depend on the connection of the request's session."""
    return OfSession(session, await inside_session(session))


async def inside_session(session: poolkit.fastapi.Session) -> Any:
    """Depend on the library's connection inside of the request's session."""
    fairy: Any = await (await session.connection()).get_raw_connection()
    return fairy.driver_connection


def through(dependency: Any, make: Callable[[str], Any] = one) -> Way:
    """Return the way through a dependency of FastAPI's."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(conn: Any = Depends(dependency)) -> None:  # noqa: B008, FAST002
        if isinstance(conn, poolkit.fastapi.LazyConnection):
            conn = await conn
        await app.state.use(conn)

    @contextlib.asynccontextmanager
    async def way(dsn: str) -> AsyncIterator[tuple[Any, Take]]:
        pool = make(dsn)
        transport = httpx.ASGITransport(app)
        async with (
            poolkit.fastapi.lifespan(pool)(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):

            async def take(use: Use) -> None:
                app.state.use = use
                (await client.get("/")).raise_for_status()

            yield pool, take

    return way


def of_asyncpg(dsn: str) -> Any:
    """Return a pool in asyncpg's words."""
    return compat.create_pool(dsn, min_size=1, max_size=1, connection_class=Own)


#: By the heads of their columns.
WAYS: dict[str, Way] = {
    "`pool.acquire()`": by(lambda pool: pool.acquire()),
    "`pool.transaction()`": by(lambda pool: pool.transaction()),
    "`connection`": through(poolkit.fastapi.connection),
    "`transaction`": through(poolkit.fastapi.transaction),
    "`lazy`": through(poolkit.fastapi.lazy),
    "`streaming_connection`": through(poolkit.fastapi.streaming_connection),
    "`Session`": through(of_session),
    "compat": by(lambda pool: pool.acquire(), of_asyncpg),
}
#: What becomes of it if `on_connect` has left it.
SET_UP = "by `on_connect`"


# -- what becomes of each kind -------------------------------------------------------------------


class Table(NamedTuple):
    """The table of one driver."""

    #: What can be left, how that is done and seen: a module like `tests.drivers.postgresql_kinds`.
    kinds: Any
    #: Makes a pool of one connection.
    make: Callable[..., Any]
    #: By the heads of their columns.
    ways: Mapping[str, Way]

    @property
    def heads(self) -> tuple[str, ...]:
        """Return the heads of all columns."""
        return (*self.ways, SET_UP)

    async def column(self, head: str, dsn: str) -> dict[str, str]:
        """Return what becomes of each kind, by its name."""
        kinds = self.kinds.KINDS
        if head == SET_UP:
            return {kind.name: await self._if_set_up(dsn, kind) for kind in kinds}
        async with self.ways[head](dsn) as (pool, take):
            return {kind.name: await self._fate(pool, take, kind) for kind in kinds}

    async def _fate(self, pool: Any, take: Take, kind: Kind) -> str:
        was_seen = False

        async def use(conn: Any) -> None:
            nonlocal was_seen
            await self.kinds.leave(conn, kind)
            was_seen = not kind.at_once or await self.kinds.is_seen(conn, kind)

        before = pool.stats().connected
        refused = False
        try:
            await take(use)
        except REFUSALS:
            refused = True
        assert was_seen or refused, f"{kind.name}: it was never there"
        async with pool.acquire() as conn:
            stays = await self.kinds.is_seen(conn, kind)
            assert await self.kinds.is_seen(conn, THERE)
        if stays:
            return "stays"
        if pool.stats().connected > before:
            return "replaced"
        return "refused" if refused else "undone"

    async def _if_set_up(self, dsn: str, kind: Kind) -> str:
        if not kind.to_set_up:
            return "-"
        pool = self.make(dsn, on_connect=lambda conn: self.kinds.leave(conn, kind))
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
                    seen.append(await self.kinds.is_seen(conn, kind))
        assert len({*seen}) == 1, f"{kind.name}: of its leases only the first ones have it"
        return "restored" if seen[0] else "-"


#: The table that was there before.
THERE = Kind("", "", "SELECT count(*) = 1 FROM public.t")
TABLE = Table(postgresql_kinds, one, WAYS)


# -- the page ------------------------------------------------------------------------------------


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Return the table, given what becomes of each kind by the heads of columns."""
    return table_of(KINDS, columns)


def table_of(kinds: Iterable[Kind], columns: Mapping[str, Mapping[str, str]]) -> str:
    """Return the table of some kinds."""
    lines = [f"| kind of state | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for kind in kinds:
        fates = [column[kind.name] for column in columns.values()]
        why = f" ({kind.note})" if "stays" in fates else ""
        lines.append(f"| {kind.name}{why} | {' | '.join(fates)} |")
    return "".join(f"{line}\n" for line in lines)


_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


def read(page: str) -> dict[str, dict[str, str]]:
    """Return the columns of a page."""
    found = _TABLE.search(page)
    assert found is not None
    head, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in found[0].splitlines()
    )
    names = [cells[0].partition(" (")[0] if " (" in cells[0] else cells[0] for cells in rows]
    return {
        column: dict(zip(names, (cells[n] for cells in rows), strict=True))
        for n, column in enumerate(head)
        if n
    }


async def _write(dsn: str) -> None:
    columns = {head: await TABLE.column(head, dsn) for head in TABLE.heads}
    PAGE.write_text(_TABLE.sub(lambda _: table(columns), PAGE.read_text(), count=1))


def main() -> None:
    """Write the table anew, by a server of its own."""
    from tests.postgres import Server, usable_binaries

    logging.disable()
    with usable_binaries() as binaries, contextlib.closing(Server(binaries)) as server:
        server.start()
        name = server.create_database()
        prepare(server, name)
        asyncio.run(_write(server.dsn(name)))


def prepare(server: Any, database: str) -> None:
    """Create what the kinds need."""
    server.query("CREATE TABLE t AS SELECT 1 AS x", database=database)
    server.query("CREATE SEQUENCE s", database=database)


if __name__ == "__main__":
    main()
