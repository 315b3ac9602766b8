"""What is particular to the aiosqlite driver: the library's own objects, and the thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import aiosqlite
import anyio
import anyio.lowlevel
import pytest

from poolkit import NotLeased, PoolConfigError
from poolkit.drivers.aiosqlite import AiosqliteDriver, create_pool, from_url
from tests.conftest import BACKENDS
from tests.drivers.sqlite_help import PATIENCE, Gate, abandon, connected, ended, join_threads, look

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=[backend for backend in BACKENDS if backend.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: aiosqlite knows no others."""
    return request.param


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Whatever a test has done."""
    yield
    join_threads()


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    monkeypatch.delitem(sys.modules, "poolkit.drivers.aiosqlite")
    with pytest.raises(PoolConfigError, match=r"pip install 'poolkit\[aiosqlite\]'"):
        importlib.import_module("poolkit.drivers.aiosqlite")


def test_url_makes_the_driver() -> None:
    """Of either scheme."""
    for scheme in ("sqlite", "sqlite+aiosqlite"):
        driver = from_url(f"{scheme}:////srv/app.db?foreign_keys=off")
        assert repr(driver) == "<AiosqliteDriver '/srv/app.db'>"
        assert driver.settings.foreign_keys is False


def test_trio_is_told_to_use_the_other_driver(path: Path) -> None:
    """It would fail in some depth of asyncio otherwise."""
    with pytest.raises(PoolConfigError, match=r"sqlite\+threads"):
        anyio.run(AiosqliteDriver(path).connect, backend="trio")


async def test_connections_are_those_of_the_library(path: Path) -> None:
    """And so are their cursors and results: with all that the library can do."""
    async with connected(AiosqliteDriver(path)) as c:
        assert isinstance(c, aiosqlite.Connection)
        cursor = await c.execute("INSERT INTO t VALUES (?)", (1,))
        assert isinstance(cursor, aiosqlite.Cursor)
        assert cursor.rowcount == 1
        assert "INSERT INTO" in "".join([line async for line in c.iterdump()])
        traced: list[str] = []
        await c.set_trace_callback(traced.append)
        assert await c.execute_insert("INSERT INTO t VALUES (2)") == (2,)
        assert traced
        with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as copy:
            await c.backup(copy)
            assert copy.execute("SELECT count(*) FROM t").fetchone() == (2,)


async def test_connection_in_a_pool_passes_for_one_of_the_library(path: Path) -> None:
    """Also to the library itself, as the target of a backup."""
    async with create_pool(path, max_size=2) as pool:
        async with pool.acquire() as c, pool.acquire() as d:
            assert isinstance(c, aiosqlite.Connection)
            await c.execute("CREATE TEMP TABLE only_here (x)")
            await c.backup(d, name="temp")
            assert [*await d.execute_fetchall("SELECT count(*) FROM only_here")] == [(0,)]


async def test_connection_is_not_opened_again(path: Path) -> None:
    """The library would start another thread, and close the pool's connection at the end."""
    async with connected(AiosqliteDriver(path)) as c:
        with pytest.raises(RuntimeError, match="open already"):
            await c
        with pytest.raises(RuntimeError, match="open already"):
            async with c:
                pass
        assert [*await c.execute_fetchall("SELECT 1")] == [(1,)]


async def test_connection_is_alive_as_a_plain_one_is(path: Path) -> None:
    """Libraries ask before they open it, or do not: a saver of LangGraph's does, for example."""
    async with aiosqlite.connect(path) as plain, create_pool(path, max_size=1) as pool:
        async with pool.acquire() as c:
            connection: Any = c
            assert connection.is_alive() is plain._thread.is_alive() is True
            assert connection._thread.is_alive()
            assert isinstance(connection._thread, threading.Thread)
            assert connection._running is plain._running is True
            assert connection._connection is not None
            connection.daemon = True  # as SQLAlchemy does
            if not connection.is_alive():
                await connection
        async with pool.acquire() as c:
            assert pool.stats().connected == 1
            inner: Any = c
            thread = inner._thread
            await c.close()
            assert not inner._running
            assert inner._connection is None
            thread.join(PATIENCE)
            assert inner.is_alive() is thread.is_alive() is False
    with pytest.raises(NotLeased):
        connection.is_alive()


async def test_attributes_set_through_the_handle_end_with_the_lease(path: Path) -> None:
    """The library's, those of SQLite's connection behind it, and any others."""
    async with create_pool(path, max_size=1) as pool:
        async with pool.acquire() as c:
            connection: Any = c
            c.isolation_level = "IMMEDIATE"
            c.row_factory = sqlite3.Row
            c.text_factory = bytes
            connection.tenant = 7
            await c.execute("INSERT INTO t VALUES (1)")
        async with pool.acquire() as c:
            assert (c.isolation_level, c.row_factory, c.text_factory) == (None, None, str)
            assert not hasattr(c, "tenant")
            assert not c.in_transaction
        assert pool.stats().connected == 1
    assert look(path) == 0


async def test_call_that_is_put_into_the_queue_is_carried_out(path: Path) -> None:
    """SQLAlchemy sets the isolation level like this, and would wait for ever."""
    async with create_pool(path, max_size=1) as pool, pool.acquire() as c:
        connection: Any = c
        with anyio.fail_after(PATIENCE):
            future = asyncio.get_running_loop().create_future()
            connection._tx.put_nowait((future, lambda: connection._conn.in_transaction))
            assert await future is False
            connection._tx.put_nowait((None, lambda: connection._conn.execute("BEGIN")))
            await c.execute("INSERT INTO t VALUES (1)")
            assert c.in_transaction
    assert look(path) == 0


async def test_dump_ends_with_the_lease(path: Path) -> None:
    """Before it has begun, and in the middle."""
    driver = AiosqliteDriver(path)
    async with connected(driver) as c:
        lines, unbegun = c.iterdump(), c.iterdump()
        await anext(lines)
        driver.revoke(c)
        for dump in (lines, unbegun):
            with pytest.raises(NotLeased):
                await anext(dump)


async def test_cleanup_in_a_cancelled_scope_is_done_nevertheless(path: Path) -> None:
    """Within a lease everything is as with plain aiosqlite: what is queued is carried out."""
    async with connected(AiosqliteDriver(path)) as c:
        with anyio.CancelScope() as scope:
            try:
                await c.execute("BEGIN")
                await c.execute("INSERT INTO t VALUES (1)")
                scope.cancel()
                await anyio.sleep_forever()
            finally:
                await c.rollback()
        await c.execute("INSERT INTO t VALUES (2)")
    await ended()
    assert look(path) == 1


async def test_user_may_close_a_connection_after_what_is_queued(path: Path) -> None:
    """As the library does; its other operations then say that it is closed."""
    async with connected(AiosqliteDriver(path)) as c:
        async with anyio.create_task_group() as group:

            async def insert() -> None:
                await c.execute("INSERT INTO t VALUES (1)")

            group.start_soon(insert)
            await anyio.lowlevel.checkpoint()
            await c.close()
        await c.close()
        with pytest.raises(ValueError, match="no active connection"):
            await c.execute("SELECT 1")
    assert look(path) == 1


async def test_stop_iteration_in_the_thread_is_an_error(path: Path) -> None:
    """No future takes it as its exception: the caller would wait for ever."""

    def make_row(*_: object) -> object:
        raise StopIteration("no such column")

    async with connected(AiosqliteDriver(path, row_factory=make_row)) as c:
        with anyio.fail_after(PATIENCE), pytest.raises(RuntimeError, match="no such column"):
            await c.execute_fetchall("SELECT 1")


async def test_failed_connect_ends_its_thread(path: Path) -> None:
    """At once."""
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError):
            await AiosqliteDriver(path / "missing").connect()
    await ended()


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
async def test_forgotten_connection_is_closed_by_its_thread(path: Path) -> None:
    """With a warning, which is the library's."""
    c = await AiosqliteDriver(path).connect()
    raw = c._raw  # type: ignore[attr-defined]
    del c
    gc.collect()
    await ended()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        raw.interrupt()


async def test_threads_do_not_hold_the_interpreter(path: Path) -> None:
    """They are daemons."""
    async with connected(AiosqliteDriver(path)):
        (thread,) = [t for t in threading.enumerate() if t.name.startswith("poolkit")]
        assert thread.daemon


@pytest.mark.parametrize("statement", ["SELECT 1", "endless"])
def test_interpreter_ends_with_a_connection_still_open(path: Path, statement: str) -> None:
    """Even one with a statement that never ends."""
    script = """
        import asyncio, sys
        from poolkit.drivers.aiosqlite import AiosqliteDriver
        from tests.drivers.sqlite_help import ENDLESS, Gate, run

        async def main():
            global c, task
            c = await AiosqliteDriver(sys.argv[1]).connect()
            if sys.argv[2] == "endless":
                gate = Gate()
                await gate.install(c)
                task = asyncio.create_task(run(c, ENDLESS))
                await gate.reached()

        asyncio.run(main())
        print("done")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path), statement],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.stdout == "done\n"


def test_operation_that_outlives_its_loop_reports_to_nobody(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No 'Event loop is closed' is printed, and the connection serves the next loop."""
    driver = AiosqliteDriver(path)
    gate = Gate()

    async def leave() -> Any:
        c: Any = await driver.connect()
        await gate.install(c)
        await abandon(c, gate, "SELECT hold()")
        c._worker.submit(lambda: None)
        return c

    async def use(c: Any) -> None:
        assert [*await c.execute_fetchall("SELECT 1")] == [(1,)]
        await driver.close(c)

    c = asyncio.run(leave())
    gate.let_go()
    asyncio.run(use(c))
    assert capfd.readouterr().err == ""
