"""A database file with two tables, a pool on it, and the event loops that FastAPI runs on."""

import contextlib
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

import poolkit.fastapi
from tests.integrations.live import N, SQLitePool, create_pool


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(
            ("asyncio", {"use_uvloop": True}),
            id="uvloop",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="no uvloop on Windows"),
        ),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on the loops that uvicorn runs on; it knows no trio."""
    return request.param


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Return a database file with two tables, the second of which refers to the first."""
    path = tmp_path / "test.db"
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.executescript(
            """
            CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
            CREATE TABLE parts (
                item INTEGER NOT NULL REFERENCES items (id) DEFERRABLE INITIALLY DEFERRED
            );
            """
        )
    return path


@pytest.fixture
def pool(database: Path) -> SQLitePool:
    """Return a pool of N connections, to be opened by the application."""
    return create_pool(database, min_size=N, max_size=N, acquire_timeout=10.0, name="test")


@pytest.fixture
def app(pool: SQLitePool) -> FastAPI:
    """Return an application that opens the pool."""
    return FastAPI(lifespan=poolkit.fastapi.lifespan(pool))


@pytest.fixture
def outside(database: Path) -> Iterator[Callable[[str], list[Any]]]:
    """Run a statement on a connection that is not the pool's: it sees what is committed.

    It does not wait for locks, so a write fails if anybody has left a transaction open.
    """
    with contextlib.closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as conn:
        yield lambda sql: conn.execute(sql).fetchall()
