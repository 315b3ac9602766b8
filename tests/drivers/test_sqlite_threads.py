"""What is particular to the driver over worker threads: its connection, and who waits for whom."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poolkit.drivers.sqlite import Connection, Cursor, ThreadsDriver, create_pool, from_url
from tests.drivers.sqlite_help import (
    ENDLESS_INSERT,
    PATIENCE,
    Gate,
    abandon,
    connected,
    look,
)

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def driver(path: Path) -> ThreadsDriver:
    """A driver for the database with the empty table."""
    return ThreadsDriver(path)


def test_url_makes_the_driver() -> None:
    """A scheme of its own."""
    driver = from_url("sqlite+threads:////srv/app.db?busy_timeout=1")
    assert repr(driver) == "<ThreadsDriver '/srv/app.db'>"
    assert driver.settings.busy_timeout == 1.0


# -- the connection ------------------------------------------------------------------------------


async def test_statement_is_awaited_or_entered(driver: ThreadsDriver) -> None:
    """Entered, the cursor is closed at the end of the block."""
    async with connected(driver) as c:
        cursor = await c.execute("SELECT ?", (1,))
        assert isinstance(cursor, Cursor)
        assert await cursor.fetchone() == (1,)
        assert await cursor.fetchone() is None
        async with c.execute("SELECT :x", {"x": 2}) as cursor:
            assert await cursor.fetchall() == [(2,)]
        with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
            await cursor.fetchone()


async def test_many_statements_at_once(driver: ThreadsDriver) -> None:
    """One for many sets of parameters, or a script."""
    async with connected(driver) as c:
        cursor = await c.executemany("INSERT INTO t VALUES (?)", [(x,) for x in range(5)])
        assert cursor.rowcount == 5
        assert c.total_changes == 5
        await c.executescript("DELETE FROM t; INSERT INTO t VALUES (7);")
        assert await c.execute_fetchall("SELECT x FROM t") == [(7,)]


async def test_insert_returns_the_id(driver: ThreadsDriver) -> None:
    """In a row, as aiosqlite does."""
    async with connected(driver) as c:
        assert await c.execute_insert("INSERT INTO t VALUES (?)", ("a",)) == (1,)
        assert await c.execute_insert("INSERT INTO t VALUES (?)", ("b",)) == (2,)


async def test_cursor_fetches_in_every_way(driver: ThreadsDriver) -> None:
    """One row, some, all, or each in turn."""
    async with connected(driver) as c:
        await c.executemany("INSERT INTO t VALUES (?)", [(x,) for x in range(200)])
        async with c.execute("SELECT x FROM t ORDER BY x") as cursor:
            assert await cursor.fetchmany() == [(0,)]
            cursor.arraysize = 2
            assert cursor.arraysize == 2
            assert await cursor.fetchmany() == [(1,), (2,)]
            assert await cursor.fetchmany(3) == [(3,), (4,), (5,)]
            assert [x async for (x,) in cursor] == list(range(6, 200))


async def test_cursor_executes_again(driver: ThreadsDriver) -> None:
    """It is made empty, and used more than once."""
    async with connected(driver) as c, c.cursor() as cursor:
        assert await cursor.execute("INSERT INTO t VALUES (1)") is cursor
        assert cursor.lastrowid == 1
        assert await cursor.executemany("INSERT INTO t VALUES (?)", [(2,), (3,)]) is cursor
        assert cursor.rowcount == 2
        assert await cursor.executescript("INSERT INTO t VALUES (4)") is cursor
        async with cursor.execute("SELECT count(*) AS n FROM t") as same:
            assert same.description[0][0] == "n"
            same.row_factory = sqlite3.Row
            assert same.row_factory is sqlite3.Row
            assert (await same.fetchone())["n"] == 4
        async with await c.execute("SELECT 1") as another:
            assert another.rowcount == -1


async def test_transaction_by_hand(driver: ThreadsDriver, path: Path) -> None:
    """Autocommit ends with a BEGIN."""
    async with connected(driver) as c:
        for end, expected in ((c.rollback, 0), (c.commit, 1)):
            await c.execute("BEGIN")
            await c.execute("INSERT INTO t VALUES (1)")
            assert c.in_transaction
            await end()
            assert not c.in_transaction
            assert look(path) == expected


async def test_factories(driver: ThreadsDriver) -> None:
    """Of rows and of strings."""
    async with connected(driver) as c:
        c.row_factory = sqlite3.Row
        c.text_factory = bytes
        ((one,),) = await c.execute_fetchall("SELECT 'one'")
        assert one == b"one"
        assert c.row_factory is sqlite3.Row
        assert c.text_factory is bytes


async def test_functions_in_python(driver: ThreadsDriver) -> None:
    """Can be called from SQL."""
    async with connected(driver) as c:
        await c.create_function("twice", 1, lambda x: 2 * x, deterministic=True)
        assert await c.execute_fetchall("SELECT twice(21)") == [(42,)]


async def test_calls_may_be_tasks(driver: ThreadsDriver, path: Path) -> None:
    """They may be awaited anywhere, and closed if they are not wanted."""
    async with connected(driver) as c, anyio.create_task_group() as group:

        async def run(call: Any) -> None:
            await call  # older versions of anyio start nothing but native coroutines

        group.start_soon(run, c.execute("INSERT INTO t VALUES (1)"))
        group.start_soon(run, c.execute_insert("INSERT INTO t VALUES (2)"))
    assert look(path) == 2
    unused = c.execute("SELECT 1")
    unused.close()


async def test_pool_lends_them(path: Path) -> None:
    """On each event loop."""
    async with create_pool(path, max_size=2) as pool, pool.acquire() as c:
        assert isinstance(c, Connection)
        assert await c.execute_fetchall("SELECT 1") == [(1,)]


# -- cancellation --------------------------------------------------------------------------------


async def test_cancelled_caller_does_not_wait_for_the_thread(driver: ThreadsDriver) -> None:
    """And the next operation is not begun before that one has ended."""
    gate = Gate()
    ended: list[str] = []

    async def next_one(c: Connection) -> None:
        await c.execute("SELECT 1")
        ended.append("next")

    async with connected(driver) as c:
        await gate.install(c)
        await abandon(c, gate, "SELECT hold()")
        async with anyio.create_task_group() as group:
            group.start_soon(next_one, c)
            for _ in range(20):
                await anyio.wait_all_tasks_blocked()
            assert not ended
            gate.let_go()
        assert ended


async def test_cancelled_operation_that_has_not_begun_is_not_begun(
    driver: ThreadsDriver, path: Path
) -> None:
    """Not even while the lease goes on."""
    gate = Gate()
    async with connected(driver) as c:
        await gate.install(c)
        await abandon(c, gate, "SELECT hold()", "INSERT INTO t VALUES (1)")
        gate.let_go()
        await c.execute_fetchall("SELECT 1")
    assert look(path) == 0


async def test_cancelled_operation_waiting_for_the_thread_before_it_is_not_begun(
    driver: ThreadsDriver, path: Path
) -> None:
    """On asyncio it has a thread already, which waits for the one that was abandoned."""
    gate = Gate()
    async with connected(driver) as c:
        await gate.install(c)
        await abandon(c, gate, "SELECT hold()")
        await abandon(c, gate, "INSERT INTO t VALUES (1)")
        gate.let_go()
        await c.execute_fetchall("SELECT 1")
    assert look(path) == 0


async def test_cancelled_statement_is_interrupted(driver: ThreadsDriver, path: Path) -> None:
    """It would never end; the lease goes on."""
    gate = Gate()
    async with connected(driver) as c:
        await gate.install(c)
        await abandon(c, gate, ENDLESS_INSERT)
        with anyio.fail_after(PATIENCE):
            await c.execute("INSERT INTO t VALUES (1)")
    assert look(path) == 1


# -- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["SELECT 1", "endless"])
def test_interpreter_ends_with_a_connection_still_open(
    path: Path, statement: str, anyio_backend: Any
) -> None:
    """Even one on which a statement runs that never ends by itself."""
    script = """
        import sys
        import anyio
        from poolkit.drivers.sqlite import ThreadsDriver
        from tests.drivers.sqlite_help import ENDLESS, Gate, abandon

        async def main():
            global c
            c = await ThreadsDriver(sys.argv[1]).connect()
            if sys.argv[2] == "endless":
                gate = Gate()
                await gate.install(c)
                await abandon(c, gate, ENDLESS)

        anyio.run(main, backend=sys.argv[3])
        print("done")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path), statement, anyio_backend[0]],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.stdout == "done\n"
