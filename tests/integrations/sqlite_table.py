"""What a lease of SQLite's leaves behind, for the table in docs/reference/sqlite-state.md.

To write the table anew: ``python -m tests.integrations.sqlite_table``
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import sqlalchemy as sa
from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

import poolkit.fastapi
from poolkit import TransactionEnded
from poolkit.drivers import aiosqlite, sqlite
from tests.drivers.sqlite_kinds import KINDS, Kind, in_thread, is_set_up, leave, set_up

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sqlite-state.md"
DRIVERS: dict[str, Any] = {"aiosqlite": aiosqlite, "sqlite": sqlite}

Use = Callable[[Any], Awaitable[None]]
#: Takes a connection, uses it, and gives it back.
Take = Callable[[Use], Awaitable[None]]
#: Opens a pool, and says how to take its connections.
Way = Callable[[Any], contextlib.AbstractAsyncContextManager[Take]]


# -- the ways to take a connection ---------------------------------------------------------------


@contextlib.asynccontextmanager
async def acquire(pool: Any) -> AsyncIterator[Take]:
    """Lease it."""

    async def take(use: Use) -> None:
        async with pool.acquire() as conn:
            await use(conn)

    async with pool:
        yield take


@contextlib.asynccontextmanager
async def transaction(pool: Any) -> AsyncIterator[Take]:
    """Lease it for a transaction."""

    async def take(use: Use) -> None:
        async with pool.transaction() as conn:
            await use(conn)

    async with pool:
        yield take


class OfSession:
    """The connection of a session, which executes itself what is executed for a block."""

    def __init__(self, session: AsyncSession, own: Any) -> None:
        self._session = session
        self._own = own

    def execute(self, sql: str) -> Any:
        """Execute a statement, when it is entered or awaited."""
        return _Execution(self._session, self._own, sql)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


class _Execution(NamedTuple):
    session: AsyncSession
    own: Any
    sql: str

    def __await__(self) -> Any:
        return self.own.execute(self.sql).__await__()

    async def __aenter__(self) -> object:
        return await self.session.execute(sa.text(self.sql.replace(":", "\\:")))

    async def __aexit__(self, *_: object) -> None:
        pass


async def of_session(session: poolkit.fastapi.Session) -> OfSession:
    """Depend on the connection of the request's session."""
    fairy: Any = await (await session.connection()).get_raw_connection()
    return OfSession(session, fairy.driver_connection)


def through(dependency: Any) -> Way:
    """Return the way through a dependency of FastAPI's."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(conn: Any = Depends(dependency)) -> None:  # noqa: B008, FAST002
        if isinstance(conn, poolkit.fastapi.LazyConnection):
            conn = await conn
        await app.state.use(conn)

    @contextlib.asynccontextmanager
    async def serve(pool: Any) -> AsyncIterator[Take]:
        transport = httpx.ASGITransport(app)
        async with (
            poolkit.fastapi.lifespan(pool)(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):

            async def take(use: Use) -> None:
                app.state.use = use
                (await client.get("/")).raise_for_status()

            yield take

    return serve


#: The way through SQLAlchemy, which works on aiosqlite alone.
SESSION = "`Session`"
#: By the heads of their columns.
WAYS: dict[str, Way] = {
    "`pool.acquire()`": acquire,
    "`pool.transaction()`": transaction,
    "`connection`": through(poolkit.fastapi.connection),
    "`transaction`": through(poolkit.fastapi.transaction),
    "`lazy`": through(poolkit.fastapi.lazy),
    "`streaming_connection`": through(poolkit.fastapi.streaming_connection),
    SESSION: through(of_session),
}
#: The same as acquire, but of a pool whose database would be lost with its connection.
PRIVATE = "memory, `acquire()`"
COLUMNS = (*WAYS, PRIVATE)


# -- what becomes of each kind -------------------------------------------------------------------


async def column(driver: str, head: str, path: Path) -> dict[str, str]:
    """Return what becomes of each kind, by its name."""
    database = ":memory:" if head == PRIVATE else path
    pool = DRIVERS[driver].create_pool(database, max_size=1, on_connect=set_up)
    async with WAYS.get(head, acquire)(pool) as take:
        async with pool.acquire() as conn:
            await conn.executescript(
                "CREATE TABLE t (x); CREATE TABLE many (x); CREATE TABLE blobs (x);"
                "INSERT INTO many VALUES (1), (2), (3); INSERT INTO blobs VALUES (zeroblob(9))"
            )
        return {kind.name: await _fate(pool, take, kind) for kind in KINDS if kind.possible}


async def _fate(pool: Any, take: Take, kind: Kind) -> str:
    done = ""

    async def use(conn: Any) -> None:
        nonlocal done
        try:
            await leave(conn, kind)
        except (sqlite3.Error, sa.exc.SQLAlchemyError, TransactionEnded):
            done = "refused"
        else:
            done = "" if await in_thread(conn, kind.seen) else "no effect"

    await take(use)
    before = pool.stats().connected
    async with pool.acquire() as conn:
        assert await in_thread(conn, is_set_up), f"{kind.name}: what on_connect has set is gone"
        stays = await in_thread(conn, kind.seen)
        await conn.execute_fetchall("SELECT x FROM main.many")  # the database is still there
    replaced = pool.stats().connected > before
    return "stays" if stays else done or ("replaced" if replaced else "undone")


# -- the page ------------------------------------------------------------------------------------

#: What is shown for kinds that this version of Python does not know.
UNKNOWN = "undone"


def table(columns: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the lines of the table, given what becomes of each kind by the heads of columns."""
    lines = [
        f"| kind of state | how it is undone | {' | '.join(columns)} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for kind in KINDS:
        cells = (fates.get(kind.name, UNKNOWN) for fates in columns.values())
        lines.append(f"| {kind.name} | {kind.how} | {' | '.join(cells)} |")
    return lines


def cells(head: str) -> dict[str, str]:
    """Return what the page says, in one column, becomes of each kind."""
    lines = [line.strip("| ").split(" | ") for line in _lines(PAGE.read_text())]
    place = lines[0].index(head)
    return {line[0]: line[place] for line in lines[2:]}


def _lines(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("|")]


async def measure() -> dict[str, dict[str, str]]:
    """Return all columns, as the driver for aiosqlite has them."""
    columns = {}
    for head in COLUMNS:
        with tempfile.TemporaryDirectory() as folder:
            columns[head] = await column("aiosqlite", head, Path(folder, "app.db"))
    return columns


def main() -> None:
    """Write the table into the page."""
    page = PAGE.read_text()
    old, new = _lines(page), table(asyncio.run(measure()))
    PAGE.write_text(page.replace("\n".join(old), "\n".join(new)))


if __name__ == "__main__":
    main()
