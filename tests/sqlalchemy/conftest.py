"""An engine over a pool of each driver, a look from outside, and the loops SQLAlchemy runs on."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest

import poolkit
from tests.drivers.asyncpg_help import LOOPS, until, until_true

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.postgres import Postgres


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on the loops that SQLAlchemy runs on."""
    return request.param


class Database(NamedTuple):
    """A database with a table ``t``, seen from outside of the pool."""

    url: str
    query: Callable[[str], list[Any]]

    @property
    def is_sqlite(self) -> bool:
        """Tell which of the two it is."""
        return self.url.startswith("sqlite")

    @property
    def module(self) -> Any:
        """Return poolkit's driver for it, as a module."""
        scheme = self.url.partition(":")[0]
        return getattr(
            poolkit.drivers, {"sqlite": "aiosqlite", "postgresql": "asyncpg"}.get(scheme, "psycopg")
        )

    def rows(self) -> list[int]:
        """Return what has been committed to the table."""
        return [x for (x,) in self.query("SELECT x FROM t ORDER BY x")]


@pytest.fixture(scope="session")
def of_postgresql(postgres: Postgres) -> Iterator[Database]:
    """Return a database on the shared server."""
    name = postgres.create_database()
    postgres.query("CREATE TABLE t (x int)", database=name)
    yield Database(postgres.dsn(name), lambda sql: postgres.query(sql, database=name))
    postgres.drop_database(name)


@pytest.fixture
def on_postgresql(of_postgresql: Database) -> Database:
    """Return a database on the shared server, its table empty."""
    of_postgresql.query("TRUNCATE t")
    return of_postgresql


@pytest.fixture
def on_psycopg(on_postgresql: Database) -> Database:
    """Return the same database, for psycopg."""
    url = on_postgresql.url.replace("postgresql://", "postgresql+psycopg://")
    return on_postgresql._replace(url=url)


@pytest.fixture(params=["on_postgresql", "on_psycopg"])
def on_server(request: pytest.FixtureRequest) -> Database:
    """Return a database on the shared server, for each of its drivers in turn."""
    found: Database = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Database:
    """Return a database in a file of its own."""
    path = tmp_path / "test.db"

    def query(sql: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as conn:
            return conn.execute(sql).fetchall()

    query("CREATE TABLE t (x int)")
    return Database(f"sqlite:///{path}", query)


@pytest.fixture(params=["on_postgresql", "on_psycopg", "on_sqlite"])
def database(request: pytest.FixtureRequest) -> Database:
    """Return a database of each kind in turn."""
    found: Database = request.getfixturevalue(request.param)
    return found


async def value(own: Any, sql: str) -> Any:
    """Return what a question shows on a connection of a driver of PostgreSQL."""
    if not isinstance(own, psycopg.AsyncConnection):
        return await own.fetchval(sql)
    row = await (await own.execute(sql)).fetchone()
    return row and row[0]


@contextlib.asynccontextmanager
async def opened(database: Database, **options: Any) -> AsyncIterator[poolkit.Pool[Any]]:
    """Open a pool, and see at the end that everything was given back."""
    url = database.url
    if not database.is_sqlite:
        # A connect that is cancelled while it asks for TLS has asyncpg leave an exception to nobody.
        url += "&sslmode=disable" if "?" in url else "?sslmode=disable"
    async with poolkit.create_pool(url, **{"max_size": 5, **options}) as pool:
        yield pool
        await at_rest(pool)
        assert pool.stats().leased == 0, pool.leases()


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[poolkit.Pool[Any]]:
    """Return an open pool of up to five."""
    async with opened(database) as pool:
        yield pool


@pytest.fixture
def engine(pool: poolkit.Pool[Any]) -> AsyncEngine:
    """Return an engine over that pool."""
    return poolkit.sqlalchemy.create_async_engine(pool)


def noted_resets(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list of the connections that will be reset, in pools that are yet to be made."""
    resets: list[Any] = []
    driver: Any = type(database.module.from_url(database.url))
    reset = driver.reset

    async def noted(self: Any, c: Any) -> Any:
        resets.append(c)
        return await reset(self, c)

    monkeypatch.setattr(driver, "reset", noted)
    return resets


async def terminate(database: Database, pid: int) -> None:
    """Have the server end a session, and wait until it has."""
    await asyncio.to_thread(database.query, f"SELECT pg_terminate_backend({pid})")
    count = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"

    async def is_gone() -> bool:
        return await asyncio.to_thread(database.query, count) == [(0,)]

    await until_true(is_gone)


async def at_rest(pool: poolkit.Pool[Any]) -> None:
    """Wait until the tasks by which sessions are closed have ended, and all is clean."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        closing = [task for task in others if ".close" in repr(task.get_coro())]
        if not closing:
            break
        await asyncio.wait(closing)
    await until(lambda: not (s := pool.stats()).recycling + s.closing + s.connecting)
