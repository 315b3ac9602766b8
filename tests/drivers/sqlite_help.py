"""What the tests of the SQLite drivers share: gates inside SQL, and a second pair of eyes."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from poolkit.drivers import aiosqlite, sqlite
from tests.conftest import BACKENDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: Longer than anything takes, shorter than anybody's patience.
PATIENCE = 20.0

#: Never ends by itself; says when it has begun.
ENDLESS = (
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
    "SELECT x FROM n WHERE CASE x WHEN 1 THEN began() END"
)
ENDLESS_INSERT = f"INSERT INTO t {ENDLESS.replace('WHERE', 'WHERE x > 1 OR')}"


#: Both drivers, on an event loop each, and on trio.
SQLITE_CASES = [
    pytest.param((module, *backend.values), id=f"{name}-{backend.id}")
    for name, module, loops in (
        ("aiosqlite", aiosqlite, ("asyncio",)),
        ("threads", sqlite, ("asyncio", "trio")),
    )
    for backend in BACKENDS
    if backend.id in loops
]


class Gate:
    """Two SQL functions: ``began()`` tells the test, ``hold()`` waits for it as well."""

    def __init__(self) -> None:
        self._began = threading.Event()
        self._proceed = threading.Event()

    async def install(self, c: Any) -> None:
        """Register the functions on a connection, for all leases."""
        await c.create_function("began", 0, self._began.set)
        await c.create_function("hold", 0, self.hold)
        c._raw.remember()

    def hold(self) -> None:
        """Tell the test, and wait for `let_go`."""
        self._began.set()
        assert self._proceed.wait(PATIENCE)

    async def reached(self) -> None:
        """Wait until a statement has come to the gate."""
        assert await anyio.to_thread.run_sync(self._began.wait, PATIENCE, abandon_on_cancel=True)

    def let_go(self) -> None:
        """Open the gate."""
        self._proceed.set()


@contextlib.asynccontextmanager
async def connected(driver: Any) -> AsyncIterator[Any]:
    """Connect, and terminate at the end."""
    c = await driver.connect()
    try:
        yield c
    finally:
        driver.terminate(c)


async def ended() -> None:
    """Wait until the threads of all connections, terminated ones, have ended."""
    await anyio.to_thread.run_sync(join_threads)


def join_threads() -> None:
    """Wait for every thread of the drivers to end."""
    for thread in threading.enumerate():
        if thread.name.startswith("poolkit"):
            thread.join(PATIENCE)
            assert not thread.is_alive(), thread.name


async def run(c: Any, sql: str) -> None:
    """Execute a statement, for a task group."""
    await c.execute(sql)


async def abandon(c: Any, gate: Gate, *statements: str) -> None:
    """Execute statements in tasks of their own; cancel them when the first is at the gate."""
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for sql in statements:
                group.start_soon(run, c, sql)
                await anyio.wait_all_tasks_blocked()
            await gate.reached()
            group.cancel_scope.cancel()


def look(path: Path, sql: str = "SELECT count(*) FROM t") -> Any:
    """Return the first value that another connection sees."""
    with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE)) as other:
        return other.execute(sql).fetchone()[0]


def write_and_checkpoint(path: Path) -> bool:
    """Write something to the WAL, and return whether it could be truncated then."""
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        other.execute("INSERT INTO t VALUES (0)")
        busy, *_ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy
