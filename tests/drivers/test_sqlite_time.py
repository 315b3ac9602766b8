"""How long SQLite's drivers take: cancelled statements end at once, and waits for locks in time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import sqlite3
import threading
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import fastapi
import httpx
import pytest
from fastapi import Depends

import poolkit
from poolkit import PoolTimeout, TransactionEnded
from poolkit.drivers.sqlite._connection import Raw
from poolkit.drivers.sqlite._operation import Operation
from poolkit.drivers.sqlite._waits import Waits
from tests.drivers.sqlite_help import (
    ENDLESS,
    ENDLESS_INSERT,
    PATIENCE,
    Gate,
    abandon,
    look,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def anyio_backend(case: Any) -> Any:
    """Run on the case's event loop."""
    return case[1]


@pytest.fixture
def other(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody else's connection, without patience."""
    with contextlib.closing(
        sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    ) as other:
        yield other


def interrupt_when_setting(c: Waits, milliseconds: int) -> None:
    """Have a connection interrupted when SQLite has set how long it waits, and is to say so."""

    def interrupt(_: int, name: str | None, given: str | None, *__: object) -> int:
        if (name, given) == ("busy_timeout", str(milliseconds)):
            c.interrupt()
        return sqlite3.SQLITE_OK

    c.set_authorizer(interrupt)


def test_interrupt_of_what_shortens_the_wait_does_not_leave_it_short(path: Path) -> None:
    """SQLite sets it when the statement is prepared, and is interrupted when that runs."""
    with contextlib.closing(Waits(path, timeout=600, isolation_level=None)) as c:
        cursor = c.execute("VALUES (1), (2)")  # while one is open an interrupt goes on
        cursor.fetchone()
        interrupt_when_setting(c, 50)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            c.use_short_wait()
        c.set_authorizer(None)
        cursor.close()
        c.use_users_wait()
        assert c.command("PRAGMA busy_timeout") == [(600_000,)]


def test_interrupt_of_what_lengthens_the_wait_does_not_leave_it_long(path: Path) -> None:
    """Or nobody could leave the next wait for a lock."""
    with contextlib.closing(Waits(path, timeout=600, isolation_level=None)) as c:
        c.use_short_wait()
        cursor = c.execute("VALUES (1), (2)")
        cursor.fetchone()
        interrupt_when_setting(c, 600_000)
        c.use_users_wait()
        c.set_authorizer(None)
        cursor.close()
        assert c.command("PRAGMA busy_timeout") == [(600_000,)]
        c.use_short_wait()
        assert c.command("PRAGMA busy_timeout") == [(50,)]
        c.use_users_wait()
        assert c.command("PRAGMA busy_timeout") == [(600_000,)]


async def value(conn: Any, sql: str) -> Any:
    """Return the first value of the first row."""
    return (await conn.execute_fetchall(sql))[0][0]


# -- cancelled statements ------------------------------------------------------------------------


@pytest.mark.parametrize("sql", [ENDLESS, f"SELECT count(*) FROM ({ENDLESS})", ENDLESS_INSERT])
async def test_next_statement_does_not_wait_for_a_cancelled_one(
    module: Any, path: Path, sql: str
) -> None:
    """Which would never end by itself; the lease goes on."""
    gate = Gate()
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        await gate.install(conn)
        await abandon(conn, gate, sql)
        with anyio.fail_after(PATIENCE):
            await conn.execute("INSERT INTO t VALUES (1)")
    assert look(path) == 1


@pytest.mark.parametrize("by_hand", [False, True])
async def test_transaction_goes_on_after_a_cancelled_read(
    module: Any, path: Path, *, by_hand: bool
) -> None:
    """Nothing of it is lost."""
    gate = Gate()
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        await gate.install(conn)
        block = contextlib.AsyncExitStack()
        if by_hand:
            await conn.execute("BEGIN")
        else:
            await block.enter_async_context(poolkit.transaction(conn))
        await conn.execute("INSERT INTO t VALUES (1)")
        with anyio.fail_after(PATIENCE):
            await abandon(conn, gate, ENDLESS)
            await conn.execute("INSERT INTO t VALUES (2)")
            await block.aclose()
            if by_hand:
                await conn.commit()
    assert look(path) == 2


async def test_block_does_not_go_on_after_a_cancelled_write(module: Any, path: Path) -> None:
    """SQLite undoes all of the transaction."""
    gate = Gate()
    async with module.create_pool(path, max_size=1) as pool:
        with anyio.fail_after(PATIENCE):
            with pytest.raises(TransactionEnded, match="whose caller was cancelled"):
                async with pool.transaction() as conn:
                    await gate.install(conn)
                    await conn.execute("INSERT INTO t VALUES (1)")
                    await abandon(conn, gate, ENDLESS_INSERT)
                    with pytest.raises(TransactionEnded, match="rolled it back"):
                        await conn.execute("INSERT INTO t VALUES (2)")
            assert look(path) == 0
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (3)")
    assert look(path) == 1


@pytest.mark.parametrize("way_on", ["rollback()", "ROLLBACK", "BEGIN", "block", "release"])
async def test_transaction_by_hand_does_not_go_on_after_a_cancelled_write(
    module: Any, path: Path, way_on: str
) -> None:
    """What came next would be in autocommit, although nobody was told of an error."""
    gate = Gate()
    async with module.create_pool(path, max_size=1) as pool:
        with anyio.fail_after(PATIENCE):
            async with pool.acquire() as conn:
                await gate.install(conn)
                await conn.execute("BEGIN")
                await conn.execute("INSERT INTO t VALUES (1)")
                await abandon(conn, gate, ENDLESS_INSERT)
                for sql in ("INSERT INTO t VALUES (2)", "SELECT 1", "COMMIT", "SAVEPOINT s"):
                    with pytest.raises(TransactionEnded, match=r"begun here by hand.*rollback\(\)"):
                        await conn.execute(sql)
                with pytest.raises(TransactionEnded):
                    await conn.commit()
                if way_on == "rollback()":
                    await conn.rollback()
                elif way_on == "block":
                    async with poolkit.transaction(conn):
                        pass
                elif way_on != "release":
                    with contextlib.suppress(
                        sqlite3.OperationalError
                    ):  # "no transaction is active"
                        await conn.execute(way_on)
                    await conn.rollback()
                if way_on != "release":
                    await conn.execute("INSERT INTO t VALUES (3)")
            async with pool.acquire() as conn:
                await conn.execute("INSERT INTO t VALUES (3)")
    assert look(path) == (1 if way_on == "release" else 2)


async def test_error_that_ends_a_transaction_by_hand_is_its_users_affair(
    module: Any, path: Path
) -> None:
    """He was told, and may go on as with any other library."""
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        await conn.execute("CREATE UNIQUE INDEX only ON t (x)")
        await conn.execute("BEGIN")
        await conn.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(sqlite3.IntegrityError):
            await conn.execute("INSERT OR ROLLBACK INTO t VALUES (1)")
        await conn.execute("INSERT INTO t VALUES (2)")
    assert look(path) == 1


@pytest.mark.parametrize("method", ["fetchone", "fetchmany", "fetchall"])
async def test_cancelled_fetch_ends_and_its_cursor_says_so(
    module: Any, path: Path, method: str
) -> None:
    """Rows are lost: the next ones would seem to be all there are. It may execute again."""
    gate = Gate()
    rows = f"SELECT 0 UNION ALL {ENDLESS.replace('WITH', 'SELECT * FROM (WITH', 1)})"
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        await gate.install(conn)
        with anyio.fail_after(PATIENCE):
            cursor = await conn.execute(rows)
            async with anyio.create_task_group() as group:
                group.start_soon(getattr(cursor, method))
                await gate.reached()
                group.cancel_scope.cancel()
            assert await value(conn, "SELECT 1") == 1
            for again in ("fetchone", "fetchmany", "fetchall"):
                with pytest.raises(sqlite3.OperationalError, match="rows of this cursor are lost"):
                    await getattr(cursor, again)()
            assert await value(conn, "SELECT 1") == 1
            await cursor.execute("SELECT 2")
            assert await cursor.fetchone() == (2,)


@pytest.mark.parametrize("transaction", [False, True])
async def test_cursor_beside_a_cancelled_statement_goes_on(
    module: Any, path: Path, *, transaction: bool
) -> None:
    """An interrupt would hit it too, and everything else until it had ended."""
    gate = Gate()
    async with module.create_pool(path, max_size=1) as pool:
        async with pool.transaction() if transaction else pool.acquire() as conn:
            await gate.install(conn)
            async with conn.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3") as cursor:
                assert await cursor.fetchone() == (1,)
                with anyio.fail_after(PATIENCE):
                    await abandon(conn, gate, ENDLESS)
                    assert await value(conn, "SELECT 1") == 1
                await conn.execute("INSERT INTO t VALUES (1)")
                assert [*await cursor.fetchall()] == [(2,), (3,)]
    assert look(path) == 1


async def test_own_progress_handler_goes_on_working(module: Any, path: Path) -> None:
    """Beside a half-read cursor ours is called as well."""
    gate, calls = Gate(), []
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        await gate.install(conn)
        raw = conn._raw

        async def handle(handler: Any) -> None:
            await conn._within(
                raw.lease, functools.partial(raw.set_progress_handler, handler, 1000)
            )

        count = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 9999) SELECT count(*) FROM n"
        await handle(lambda: calls.append(1))
        async with conn.execute("SELECT 1 UNION SELECT 2") as cursor:
            assert await cursor.fetchone() == (1,)
            assert await value(conn, count) == 9999
            assert calls
            with anyio.fail_after(PATIENCE):
                await abandon(conn, gate, ENDLESS)
                assert await value(conn, "SELECT 1") == 1
            await handle(lambda: 1)
            with pytest.raises(sqlite3.OperationalError, match="interrupted"):
                await value(conn, count)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            await value(conn, count)
        await handle(None)
        assert await value(conn, count) == 9999


async def test_interrupt_cannot_reach_a_later_statement(module: Any, path: Path) -> None:
    """Whenever it comes: before the statement, in it, after it, and with a cursor left open by it."""
    chance = random.Random(7)
    many = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT {}) SELECT x FROM n"
    )
    async with module.create_pool(path, max_size=1) as pool:
        for turn in range(100):
            async with pool.acquire() as conn:
                cursor = await conn.execute(many.format(500)) if turn % 3 == 0 else None
                with anyio.move_on_after(chance.random() * 0.003):
                    if turn % 2:
                        await conn.execute_fetchall(many.format(chance.randrange(1, 5000)))
                    elif cursor is not None:
                        await cursor.fetchmany(chance.randrange(1, 400))
                    else:
                        await conn.execute(many.format(chance.randrange(1, 5000)))
                await conn.execute("INSERT INTO t VALUES (1)")
                assert await value(conn, many.format(3)) == 1
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (2)")
    assert look(path) == 200


async def test_interrupt_after_the_statement_is_forgotten(module: Any, path: Path) -> None:
    """Also if it is sent while nothing but the cursor of the operation itself is active."""
    gate = Gate()
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        raw = conn._raw
        sent = threading.Event()
        really_interrupt = raw.interrupt

        def interrupt() -> None:
            really_interrupt()
            sent.set()

        def execute() -> Any:
            made = raw.execute("SELECT 1 UNION SELECT 2")
            gate.hold()
            return made

        raw.interrupt = interrupt
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(functools.partial(conn._within, raw.lease, execute))
                await gate.reached()
                group.cancel_scope.cancel()
            await anyio.to_thread.run_sync(sent.wait, PATIENCE)
            gate.let_go()
            assert await value(conn, "SELECT 1") == 1
            cursor = await conn.execute("SELECT 1 UNION SELECT 2")
            assert await value(conn, "SELECT 1") == 1
            assert [*await cursor.fetchall()] == [(1,), (2,)]
        del raw.interrupt


async def test_interrupt_after_a_fetch_is_forgotten(module: Any, path: Path) -> None:
    """Although its cursor is active still, and stays the user's."""
    gate = Gate()
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        raw = conn._raw
        sent = threading.Event()
        really_interrupt = raw.interrupt

        def interrupt() -> None:
            really_interrupt()
            sent.set()

        def make_row(_: object, row: Any) -> Any:
            gate.hold()  # the next row has been found already
            return row

        raw.interrupt = interrupt
        with anyio.fail_after(PATIENCE):
            cursor = await conn.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
            cursor.row_factory = make_row
            async with anyio.create_task_group() as group:
                group.start_soon(cursor.fetchone)
                await gate.reached()
                group.cancel_scope.cancel()
            await anyio.to_thread.run_sync(sent.wait, PATIENCE)
            gate.let_go()
            assert await value(conn, "SELECT 1") == 1
            await cursor.execute("SELECT 4 UNION SELECT 5")
            assert await value(conn, "SELECT 1") == 1
            assert [*await cursor.fetchall()] == [(4,), (5,)]
        del raw.interrupt


async def test_cancelled_read_that_has_not_begun_is_not_begun(module: Any, path: Path) -> None:
    """Many of them would keep the next one waiting."""
    gate = Gate()
    begun: list[int] = []
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        await gate.install(conn)
        await conn.create_function("note", 0, lambda: begun.append(1))
        await abandon(conn, gate, "SELECT hold()", "SELECT note()", "VALUES (note())")
        gate.let_go()
        assert await value(conn, "SELECT 1") == 1
        assert not begun


BEGINS = ["BEGIN", "-- a comment\n; /* b */ begin immediate", "SAVEPOINT s"]


@pytest.mark.parametrize("sql", BEGINS)
async def test_cancelled_begin_that_has_not_begun_is_not_begun(
    module: Any, path: Path, sql: str
) -> None:
    """What follows would be undone at release, although nobody was told of an error."""
    gate = Gate()
    async with module.create_pool(path, max_size=1) as pool:
        async with pool.acquire() as conn:
            await gate.install(conn)
            await abandon(conn, gate, "SELECT hold()", sql)
            gate.let_go()
            await conn.execute("INSERT INTO t VALUES (1)")
            assert not conn.in_transaction
    assert look(path) == 1


@pytest.mark.parametrize("sql", [*BEGINS, "script"])
@pytest.mark.parametrize("late", [False, True])
async def test_transaction_that_a_cancelled_caller_has_begun_is_undone(
    module: Any, path: Path, sql: str, *, late: bool
) -> None:
    """As if it had not been; whether he leaves before it is begun or after."""
    gate = Gate()
    async with module.create_pool(path, max_size=1) as pool:
        async with pool.acquire() as conn:
            raw = conn._raw
            raw.lets_cancelled_finish = True  # or it might be interrupted instead

            def begin() -> None:
                if not late:
                    gate.hold()
                if sql == "script":
                    raw.executescript("BEGIN; INSERT INTO t VALUES (0)")
                else:
                    raw.execute(sql)
                if late:
                    gate.hold()

            async with anyio.create_task_group() as group:
                group.start_soon(functools.partial(conn._within, raw.lease, begin))
                await gate.reached()
                group.cancel_scope.cancel()
                if late:
                    assert conn.in_transaction
            gate.let_go()
            if late:
                while raw._running is not None:  # noqa: ASYNC110  # no event tells
                    await anyio.sleep(0.001)
                assert not conn.in_transaction
            await conn.execute("INSERT INTO t VALUES (1)")
            assert not conn.in_transaction
    assert look(path, "SELECT group_concat(x) FROM t") in (1, "1")


async def test_transaction_whose_beginner_is_cancelled_later_does_not_go_on(
    module: Any, path: Path
) -> None:
    """What others have done in it meanwhile is not undone without a word."""
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        raw = conn._raw
        really = raw.claim
        begun: list[Any] = []

        def claim(operation: Any, kept: Any) -> None:
            begun.append(operation)
            really(operation, kept)

        raw.claim = claim
        await conn.execute("BEGIN")
        del raw.claim
        await conn.execute("INSERT INTO t VALUES (1)")
        raw.abandon(begun[0], asyncio.CancelledError())
        with pytest.raises(TransactionEnded, match="its BEGIN was cancelled"):
            await conn.execute("INSERT INTO t VALUES (2)")
        await conn.rollback()
        await conn.execute("INSERT INTO t VALUES (3)")
    assert look(path) == 1


@pytest.mark.parametrize("way_on", ["commit", "rollback", "release", "block"])
@pytest.mark.parametrize("sql", ["COMMIT", "/* b */ end transaction", "ROLLBACK", ""])
async def test_nothing_goes_on_in_a_transaction_whose_end_was_cancelled(
    module: Any, path: Path, sql: str, way_on: str
) -> None:
    """It would be undone at release without a word; it may be ended again."""
    async with module.create_pool(path, max_size=1) as pool:
        async with pool.acquire() as conn:
            raw = conn._raw
            if way_on == "block":
                with contextlib.suppress(TransactionEnded):
                    async with poolkit.transaction(conn):
                        end = Operation(
                            raw, raw.lease, functools.partial(raw.execute, sql), tracked=False
                        )
                        raw.withdraw(end, asyncio.CancelledError())
                        await conn.execute("INSERT INTO t VALUES (1)")
            else:
                await conn.execute("BEGIN")
                await conn.execute("INSERT INTO t VALUES (1)")
                function = functools.partial(raw.execute, sql) if sql else raw.commit
                end = Operation(raw, raw.lease, function, tracked=False)
                raw.withdraw(end, asyncio.CancelledError())
                for statement in ("INSERT INTO t VALUES (2)", "SELECT 1", "SAVEPOINT s"):
                    with pytest.raises(sqlite3.OperationalError, match="was cancelled before"):
                        await conn.execute(statement)
                if way_on != "release":
                    await getattr(conn, way_on)()
                    await conn.execute("INSERT INTO t VALUES (3)")
        async with pool.acquire() as conn:
            await conn.execute("INSERT INTO t VALUES (4)")
    assert look(path) == {"commit": 3, "rollback": 2, "release": 1, "block": 2}[way_on]


async def test_cancelled_end_of_a_transaction_that_was_done_is_nobodys_affair(
    module: Any, path: Path
) -> None:
    """What follows is in autocommit, and stays."""
    async with module.create_pool(path, max_size=1) as pool:
        async with pool.acquire() as conn:
            raw = conn._raw
            await conn.execute("BEGIN")
            await conn.execute("INSERT INTO t VALUES (1)")
            really = raw.claim

            def claim(operation: Any, kept: Any) -> None:
                really(operation, kept)
                raw.abandon(operation, asyncio.CancelledError())

            raw.claim = claim
            await conn.commit()
            del raw.claim
            await conn.execute("INSERT INTO t VALUES (2)")
    assert look(path) == 2


async def test_script_that_fails_in_its_transaction_is_its_users_affair(
    module: Any, path: Path
) -> None:
    """He was told, and may go on in it."""
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        with pytest.raises(sqlite3.OperationalError):
            await conn.executescript("BEGIN; INSERT INTO t VALUES (1); nonsense")
        await conn.commit()
    assert look(path) == 1


# -- locks ---------------------------------------------------------------------------------------


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Return what waits until a statement has found the database locked twice."""
    twice = threading.Event()
    really = Raw.retry

    def retry(self: Raw, function: Callable[[], Any], *args: Any) -> Any:
        def attempt() -> Any:
            try:
                return function()
            except sqlite3.OperationalError:
                twice.set()
                raise

        return really(self, attempt, *args)

    monkeypatch.setattr(Raw, "retry", retry)

    async def wait() -> None:
        assert await anyio.to_thread.run_sync(twice.wait, PATIENCE, abandon_on_cancel=True)

    return wait


@pytest.mark.parametrize("mode", ["IMMEDIATE", "EXCLUSIVE"])
@pytest.mark.parametrize("timeout", [0.1, 0])
async def test_transaction_on_a_locked_file_times_out(
    module: Any, path: Path, other: sqlite3.Connection, mode: str, timeout: float
) -> None:
    """Like any acquire, and says what it has waited for; the connection is none the worse."""
    async with module.create_pool(path, max_size=1, busy_timeout=600, name="shop") as pool:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with anyio.fail_after(PATIENCE):
                with pytest.raises(PoolTimeout) as caught:
                    async with pool.transaction(timeout=timeout, mode=mode):
                        raise AssertionError("entered")
            assert f"'shop': no transaction within {timeout} s" in str(caught.value)
            assert "file is locked by another connection" in str(caught.value)
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
            async with pool.acquire() as conn:
                assert await value(conn, "PRAGMA busy_timeout") == 600_000
                assert await value(conn, "SELECT count(*) FROM t") == 0
        other.execute("COMMIT")
        async with pool.transaction(timeout=PATIENCE) as conn:
            assert await value(conn, "SELECT busy.timeout FROM pragma_busy_timeout busy") == 600_000
            assert await value(conn, "PRAGMA busy_timeout") == 600_000
            await conn.execute("INSERT INTO t VALUES (1)")
        assert pool.stats().connected == 1
    assert look(path) == 1


async def test_transaction_begins_as_soon_as_the_lock_is_free(
    module: Any, path: Path, other: sqlite3.Connection, refused: Any
) -> None:
    """Having waited in slices."""
    begun: list[int] = []

    async def write() -> None:
        async with pool.transaction(timeout=PATIENCE) as conn:
            await conn.execute("INSERT INTO t VALUES (1)")
        begun.append(1)

    async with module.create_pool(path, max_size=1) as pool:
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as group:
            group.start_soon(write)
            await refused()
            assert not begun
            other.execute("COMMIT")
    assert look(path) == 1


@pytest.mark.parametrize("held", [False, True])
async def test_without_a_deadline_the_busy_timeout_counts(
    module: Any, path: Path, other: sqlite3.Connection, *, held: bool
) -> None:
    """As for every statement; the error is SQLite's."""
    async with module.create_pool(path, max_size=1, busy_timeout=0.12) as pool:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            if held:
                async with pool.acquire() as conn, poolkit.transaction(conn):
                    raise AssertionError("entered")
            else:
                async with pool.transaction(timeout=None):
                    raise AssertionError("entered")
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            async with pool.acquire() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")


@pytest.mark.parametrize("busy_timeout", [0, 0.03, 0.2])
async def test_statements_wait_for_the_busy_timeout_that_was_set(
    module: Any, path: Path, other: sqlite3.Connection, busy_timeout: float
) -> None:
    """And for no less, in a lease that has changed it; afterwards it is what it was."""
    async with module.create_pool(path, max_size=1, busy_timeout=600) as pool:
        other.execute("BEGIN IMMEDIATE")
        async with pool.acquire() as conn:
            await conn.execute("SELECT 1")
            await conn.execute(f"PRAGMA busy_timeout={int(busy_timeout * 1000)}")
            before = anyio.current_time()
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await conn.execute("INSERT INTO t VALUES (1)")
            assert anyio.current_time() >= before + busy_timeout
            assert await value(conn, "PRAGMA busy_timeout") == int(busy_timeout * 1000)
        async with pool.acquire() as conn:
            assert await value(conn, "PRAGMA busy_timeout") == 600_000


async def test_caller_that_leaves_a_wait_for_the_lock_frees_the_connection(
    module: Any, path: Path, other: sqlite3.Connection, refused: Any
) -> None:
    """SQLite's own wait cannot be interrupted, and would last for ten minutes."""
    async with module.create_pool(path, max_size=1, busy_timeout=600, reset_timeout=5) as pool:
        other.execute("BEGIN IMMEDIATE")
        with anyio.fail_after(PATIENCE):

            async def write() -> None:
                async with pool.transaction():
                    raise AssertionError("entered")

            async with anyio.create_task_group() as group:
                group.start_soon(write)
                await refused()
                group.cancel_scope.cancel()
            async with pool.acquire() as conn:
                assert await value(conn, "SELECT count(*) FROM t") == 0
                with anyio.move_on_after(0.01):
                    await conn.execute("INSERT INTO t VALUES (1)")
                assert await value(conn, "SELECT count(*) FROM t") == 0
                assert await value(conn, "PRAGMA busy_timeout") == 600_000
        assert pool.stats().connected == 1
        other.execute("COMMIT")
    assert look(path) == 0


async def execute(conn: Any, sql: str) -> None:
    """Be what any anyio can start."""
    await conn.execute(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "/* by: me */ INSERT INTO t VALUES (1)",
        "-- name: add\nINSERT INTO t VALUES (1)",
        "PRAGMA user_version=3",
        "VACUUM",
    ],
)
async def test_whatever_waits_for_the_lock_frees_the_connection_when_its_caller_leaves(
    module: Any, path: Path, other: sqlite3.Connection, refused: Any, sql: str
) -> None:
    """Every single statement, in the first lease of a connection and in later ones."""
    async with module.create_pool(path, max_size=1, busy_timeout=600, reset_timeout=5) as pool:
        other.execute("BEGIN IMMEDIATE")
        with anyio.fail_after(PATIENCE):
            for _ in range(2):
                async with pool.acquire() as conn, anyio.create_task_group() as group:
                    group.start_soon(execute, conn, sql)
                    await refused()
                    group.cancel_scope.cancel()
                async with pool.acquire() as conn:
                    assert await value(conn, "SELECT count(*) FROM t") == 0
                    assert await value(conn, "PRAGMA busy_timeout") == 600_000
        assert pool.stats().connected == 1


async def test_checkpoint_waits_for_the_busy_timeout_that_was_set(
    module: Any, path: Path, other: sqlite3.Connection
) -> None:
    """It reports no error, so that it could not be tried again."""
    other.execute("PRAGMA journal_mode=WAL")
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        await conn.execute("INSERT INTO t VALUES (1)")
        other.execute("BEGIN")
        other.execute("SELECT * FROM t").fetchall()
        await conn.execute("INSERT INTO t VALUES (2)")
        timer = threading.Timer(0.15, other.execute, ["COMMIT"])
        timer.start()
        assert await value(conn, "PRAGMA wal_checkpoint(TRUNCATE)") == 0
        timer.join()


async def test_statement_outside_of_a_transaction_is_done_once_when_the_lock_is_free(
    module: Any, path: Path, other: sqlite3.Connection, refused: Any
) -> None:
    """However often it has been tried."""
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as group:

            async def write() -> None:
                cursor = await conn.execute("INSERT INTO t VALUES (?)", (1,))
                assert cursor.rowcount == 1

            group.start_soon(write)
            await refused()
            other.execute("COMMIT")
        assert conn.total_changes == 1
    assert look(path) == 1


@pytest.mark.parametrize(("journal", "sliced"), [("WAL", True), ("DELETE", False)])
async def test_statement_waits_in_slices_where_it_keeps_nobody_out_meanwhile(
    module: Any, path: Path, journal: str, *, sliced: bool
) -> None:
    """Without a log, a writer that waits for readers has barred new ones, and must not let go."""
    async with module.create_pool(path, max_size=1, journal_mode=journal) as pool:
        async with pool.acquire() as conn:
            await conn.execute("INSERT INTO t VALUES (1)")
            assert conn._raw._has_short_wait is sliced
        async with pool.transaction() as conn:
            assert conn._raw._has_short_wait


async def test_deferred_block_that_cannot_write_fails_at_once(
    module: Any, path: Path, other: sqlite3.Connection
) -> None:
    """Waiting would not help: it has read what another has changed since."""
    async with module.create_pool(path, max_size=1, busy_timeout=600) as pool:
        with anyio.fail_after(PATIENCE), pytest.raises(sqlite3.OperationalError, match="locked"):
            async with pool.transaction(mode="DEFERRED") as conn:
                assert await value(conn, "SELECT count(*) FROM t") == 0
                other.execute("INSERT INTO t VALUES (1)")
                await conn.execute("INSERT INTO t VALUES (2)")
    assert look(path) == 1


async def test_deferred_block_waits_at_its_first_write(
    module: Any, path: Path, other: sqlite3.Connection
) -> None:
    """For as long as it is told to, in a statement that is tried again with all of that."""
    async with module.create_pool(path, max_size=1, busy_timeout=0.2) as pool:
        other.execute("BEGIN IMMEDIATE")
        async with pool.acquire() as conn:
            before = anyio.current_time()
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                async with poolkit.transaction(conn, mode="DEFERRED"):
                    await conn.execute("INSERT INTO t VALUES (2)")
            assert anyio.current_time() >= before + 0.2


async def test_caller_that_leaves_a_first_write_in_a_deferred_block_frees_the_connection(
    module: Any, path: Path, other: sqlite3.Connection, refused: Any
) -> None:
    """Under a write-ahead log the wait for the lock is in slices there, too."""
    async with module.create_pool(path, max_size=1, busy_timeout=600, reset_timeout=5) as pool:
        other.execute("BEGIN IMMEDIATE")
        with anyio.fail_after(PATIENCE):

            async def write() -> None:
                async with pool.transaction(mode="DEFERRED") as conn:
                    await conn.execute("INSERT INTO t VALUES (1)")

            async with anyio.create_task_group() as group:
                group.start_soon(write)
                await refused()
                group.cancel_scope.cancel()
            async with pool.acquire() as conn:
                assert await value(conn, "SELECT count(*) FROM t") == 0
                assert await value(conn, "PRAGMA busy_timeout") == 600_000
        assert pool.stats().connected == 1


@pytest.mark.parametrize("ahead", [False, True])
async def test_deferred_block_waits_to_see_a_new_table(
    module: Any, path: Path, other: sqlite3.Connection, *, ahead: bool
) -> None:
    """Where there is no log; SQLite reports the tables that it knew if it may not wait for long."""
    async with module.create_pool(path, max_size=1, journal_mode="DELETE") as pool:
        async with pool.transaction() if ahead else pool.acquire() as conn:
            await conn.execute_fetchall("SELECT x FROM t")
        other.execute("CREATE TABLE new (x)")
        other.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(0.15, other.execute, ["COMMIT"])
        async with pool.transaction(mode="DEFERRED") as conn:
            timer.start()
            await conn.execute("INSERT INTO new VALUES (1)")
        timer.join()
    assert look(path, "SELECT count(*) FROM new") == 1


@pytest.mark.parametrize("by_hand", [False, True])
async def test_statement_waits_to_see_a_new_table_of_an_attached_file(
    module: Any, path: Path, *, by_hand: bool
) -> None:
    """Which has no log, other than the database itself."""

    async def set_up(conn: Any) -> None:
        await conn.execute("ATTACH ? AS more", (f"{path}-2",))
        await conn.execute("CREATE TABLE IF NOT EXISTS more.u (x)")

    async with (
        module.create_pool(path, max_size=1, on_connect=set_up) as pool,
        pool.acquire() as conn,
    ):
        with contextlib.closing(
            sqlite3.connect(f"{path}-2", isolation_level=None, check_same_thread=False)
        ) as other:
            other.execute("CREATE TABLE new (x)")
            other.execute("BEGIN EXCLUSIVE")
            timer = threading.Timer(0.15, other.execute, ["COMMIT"])
            if by_hand:
                await conn.execute("BEGIN")
            timer.start()
            await conn.execute("INSERT INTO more.new VALUES (1)")
            if by_hand:
                await conn.commit()
            timer.join()
            assert other.execute("SELECT count(*) FROM new").fetchone() == (1,)


async def test_missing_table_is_reported_at_once(module: Any, path: Path) -> None:
    """Whether it is there has been looked at."""
    async with module.create_pool(path, max_size=1, busy_timeout=600) as pool:
        async with pool.transaction() as conn:
            with (
                anyio.fail_after(PATIENCE),
                pytest.raises(sqlite3.OperationalError, match="no such"),
            ):
                await conn.execute("INSERT INTO missing VALUES (1)")


async def test_commit_waits_for_readers_where_there_is_no_log(
    module: Any, path: Path, other: sqlite3.Connection
) -> None:
    """It keeps new ones out meanwhile, as SQLite means it to."""
    async with module.create_pool(path, max_size=1, journal_mode="DELETE") as pool:
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO t VALUES (1)")
            other.execute("BEGIN")
            assert other.execute("SELECT count(*) FROM t").fetchone() == (0,)
            timer = threading.Timer(0.1, other.execute, ["COMMIT"])
            timer.start()
        timer.join()
    assert look(path) == 1


async def test_reset_waits_for_who_is_writing(module: Any, path: Path, refused: Any) -> None:
    """Where there is no log a writer keeps readers out, and so what asks for the settings."""
    async with module.create_pool(path, max_size=1, journal_mode="DELETE") as pool:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
            async with pool.acquire() as conn:
                await conn.execute("PRAGMA cache_size=-500")
                writer.execute("BEGIN EXCLUSIVE")
            await refused()
            writer.execute("COMMIT")
        async with pool.acquire() as conn:
            assert await value(conn, "PRAGMA cache_size") == -2000
            assert await value(conn, "PRAGMA busy_timeout") == 5000
        assert pool.stats().connected == 1


async def test_reset_waits_for_who_is_writing_to_an_attached_file(
    module: Any, path: Path, refused: Any
) -> None:
    """Which has its own journal."""

    async def set_up(conn: Any) -> None:
        await conn.execute("ATTACH ? AS more", (f"{path}-2",))
        await conn.execute("CREATE TABLE IF NOT EXISTS more.u (x)")

    async with module.create_pool(path, max_size=1, on_connect=set_up) as pool:
        with contextlib.closing(sqlite3.connect(f"{path}-2", isolation_level=None)) as writer:
            async with pool.acquire() as conn:
                await conn.execute("PRAGMA cache_size=-500")
                writer.execute("BEGIN EXCLUSIVE")
            await refused()
            writer.execute("COMMIT")
        async with pool.acquire() as conn:
            assert await value(conn, "PRAGMA cache_size") == -2000
        assert pool.stats().connected == 1


async def test_look_inside_of_a_lease_waits_for_a_commit(module: Any, path: Path) -> None:
    """Without it nothing could be undone, at the cost of the connection."""
    async with module.create_pool(path, max_size=1, journal_mode="DELETE") as pool:
        with contextlib.closing(
            sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        ) as writer:
            async with pool.acquire() as conn:
                raw = conn._raw
                really = raw.read_baseline

                def read_baseline() -> None:
                    writer.execute("BEGIN EXCLUSIVE")
                    timer = threading.Timer(0.01, writer.execute, ["COMMIT"])
                    timer.start()
                    really()
                    timer.join()

                raw.read_baseline = read_baseline
                await conn.execute("PRAGMA cache_size=-500")
                del raw.read_baseline
        async with pool.acquire() as conn:
            assert await value(conn, "PRAGMA cache_size") == -2000
        assert pool.stats().connected == 1


async def test_reset_that_waits_for_a_lock_ends_with_its_time(
    module: Any, path: Path, other: sqlite3.Connection
) -> None:
    """Whatever the lease has made of the connection's patience."""
    async with module.create_pool(
        path, max_size=1, journal_mode="DELETE", reset_timeout=0.2
    ) as pool:
        async with pool.acquire() as conn:
            await conn.execute("PRAGMA busy_timeout=600000")
            await conn.execute("PRAGMA cache_size=-500")
            other.execute("BEGIN EXCLUSIVE")
            raw = conn._raw
        with anyio.fail_after(PATIENCE):
            # No event tells.
            while raw._running or not pool.stats().retired["broken"]:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        other.execute("COMMIT")


async def test_request_on_a_locked_file_is_answered_503(
    module: Any, path: Path, other: sqlite3.Connection
) -> None:
    """In time, and to be tried again."""
    pool = module.create_pool(path, max_size=1, acquire_timeout=0.1, busy_timeout=600)
    app = fastapi.FastAPI()

    @app.post("/")
    async def create(conn: Annotated[Any, Depends(poolkit.fastapi.transaction)]) -> None:
        await conn.execute("INSERT INTO t VALUES (1)")

    async with (
        poolkit.fastapi.lifespan(pool)(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        other.execute("BEGIN IMMEDIATE")
        with anyio.fail_after(PATIENCE):
            response = await client.post("/")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        other.execute("COMMIT")
        assert (await client.post("/")).status_code == 200
    assert look(path) == 1
