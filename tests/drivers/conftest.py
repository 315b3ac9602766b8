"""A database for the tests of PostgreSQL in one file, and somebody who looks at it; a file of SQLite."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.drivers.sqlite_help import SQLITE_CASES, join_threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.postgres import Postgres


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> Iterator[str]:
    """Return the DSN of a database with a table ``t`` and a sequence ``s``."""
    name = postgres.create_database()
    postgres.query("CREATE TABLE t (x int)", database=name)
    postgres.query("CREATE SEQUENCE s", database=name)
    yield postgres.dsn(name)
    postgres.drop_database(name)


OTHERS = """
    SELECT pid, state, query FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND backend_type = 'client backend'
"""


@pytest.fixture
async def outside(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Return a connection of nobody's pool; it finds the table empty and nobody else there."""
    conn = await asyncpg.connect(dsn, timeout=10, command_timeout=10)
    try:
        deadline = time.monotonic() + 5
        while others := await conn.fetch(OTHERS):
            if time.monotonic() > deadline:
                await conn.execute(f"SELECT pg_terminate_backend(pid) FROM ({OTHERS}) others")
                pytest.fail(f"left behind by another test: {others}")
            await asyncio.sleep(0.002)
        await conn.execute("TRUNCATE t")
        yield conn
    finally:
        conn.terminate()


# -- SQLite --------------------------------------------------------------------------------------


@pytest.fixture(params=SQLITE_CASES)
def case(request: pytest.FixtureRequest) -> Any:
    """One of the drivers, on an event loop it runs on."""
    return request.param


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    """Whatever a test has done."""
    yield
    join_threads()


@pytest.fixture
def module(case: Any) -> Any:
    """The driver's module."""
    return case[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with an empty table ``t``."""
    path = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")
    return path
