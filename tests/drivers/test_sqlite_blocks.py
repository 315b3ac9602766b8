"""Transaction blocks on SQLite: nothing in them ends the transaction unnoticed, on both drivers."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import sys
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import fastapi
import httpx
import pytest
from fastapi import Depends

import poolkit
from poolkit import TransactionEnded
from tests.drivers.sqlite_help import look

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def anyio_backend(case: Any) -> Any:
    """Run on the case's event loop."""
    return case[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with an empty table ``t``."""
    path = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x UNIQUE)")
    return path


async def on_a_cursor(conn: Any, sql: str) -> None:
    """Execute a statement on a cursor that has executed another."""
    async with conn.execute("SELECT 1") as cursor:
        await cursor.execute(sql)


async def in_autocommit_off(conn: Any, sql: str) -> None:
    """Run a script in the mode in which it does not begin with a COMMIT."""
    raw = conn._raw

    def run() -> None:
        raw.autocommit = False
        raw.executescript(sql)

    await conn._within(raw.lease, run)


def call(method: str, *args: Any) -> Callable[[Any], Any]:
    """Return a call of a method of a connection."""
    return lambda conn: getattr(conn, method)(*args)


ENDS = {
    **{
        sql: call("execute", sql)
        for sql in (
            "COMMIT",
            "commit transaction",
            "END",
            "ROLLBACK",
            "ROLLBACK TRANSACTION",
            "-- a comment\n;; /* another */ end",
        )
    },
    "fetched": call("execute_fetchall", "COMMIT"),
    "inserted": call("execute_insert", "COMMIT"),
    "cursor": lambda conn: on_a_cursor(conn, "COMMIT"),
    "commit()": call("commit"),
    "rollback()": call("rollback"),
    "script": call("executescript", "INSERT INTO t VALUES (7)"),
    "script that commits": call("executescript", "COMMIT"),
    "level": lambda conn: conn._within(
        conn._raw.lease, lambda: setattr(conn._raw, "isolation_level", None)
    ),
}
of_python_3_12 = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="an attribute of Python 3.12"
)
every_end = pytest.mark.parametrize(
    "end",
    [
        *(pytest.param(end, id=name) for name, end in ENDS.items()),
        pytest.param(
            lambda conn: conn._within(
                conn._raw.lease, lambda: setattr(conn._raw, "autocommit", True)
            ),
            id="autocommit",
            marks=of_python_3_12,
        ),
        pytest.param(
            lambda conn: in_autocommit_off(conn, "COMMIT"),
            id="script without a COMMIT before it",
            marks=of_python_3_12,
        ),
    ],
)


@every_end
async def test_end_of_the_transaction_is_refused(
    module: Any, path: Path, end: Callable[[Any], Any]
) -> None:
    """The block goes on as if nothing had been tried, and commits all, or nothing."""
    async with module.create_pool(path, max_size=1) as pool:
        with pytest.raises(ZeroDivisionError):
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
                with pytest.raises(TransactionEnded, match=r"was refused .*leave the block"):
                    await end(conn)
                assert conn.in_transaction
                await conn.execute("INSERT INTO t VALUES (2)")
                raise ZeroDivisionError
        assert look(path) == 0
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(TransactionEnded):
                await end(conn)
        assert look(path) == 1


async def test_refusal_of_a_script_says_what_to_do(module: Any, path: Path) -> None:
    """Its COMMIT is nothing that its author has written."""
    async with module.create_pool(path, max_size=1) as pool, pool.transaction() as conn:
        with pytest.raises(TransactionEnded, match=r"executescript.*statements.*one by one"):
            await conn.executescript("SELECT 1; SELECT 2")


async def test_end_that_was_prepared_before_the_block_is_refused(module: Any, path: Path) -> None:
    """SQLite's authorizer is not asked about statements that sqlite3 has kept."""
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        for x in range(3):
            for end in ("COMMIT", "END"):
                await conn.execute("BEGIN")
                await conn.execute(f"INSERT INTO t VALUES ('{x} {end}')")
                await conn.execute(end)
            with pytest.raises(KeyError):
                async with poolkit.transaction(conn):
                    await conn.execute(f"INSERT INTO t VALUES ({x})")
                    for end in ("COMMIT", "END"):
                        with pytest.raises(TransactionEnded):
                            await conn.execute(end)
                    raise KeyError
        assert look(path) == 6


async def test_prepared_statements_are_kept_from_block_to_block(module: Any, path: Path) -> None:
    """To set an authorizer spoils all of them, so it is set once."""
    asked: list[str | None] = []

    def authorize(_: int, what: str | None, *__: object) -> int:
        asked.append(what)
        return sqlite3.SQLITE_OK

    async with module.create_pool(path, max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn._within(conn._raw.lease, lambda: conn._raw.set_authorizer(authorize))
            for x in range(3):
                asked.clear()
                async with poolkit.transaction(conn):
                    await conn.execute("INSERT INTO t VALUES (?)", (x,))
            assert asked == ["COMMIT"]


async def test_savepoints_are_left_alone(module: Any, path: Path) -> None:
    """A part of a block may be undone."""
    async with module.create_pool(path, max_size=1) as pool:
        async with pool.transaction() as conn:
            await conn.execute("SAVEPOINT a")
            await conn.execute("INSERT INTO t VALUES (1)")
            await conn.execute("SAVEPOINT b")
            await conn.execute("INSERT INTO t VALUES (2)")
            await conn.execute("ROLLBACK TRANSACTION TO SAVEPOINT b")
            await conn.execute("RELEASE a")
            assert conn.in_transaction
        assert look(path, "SELECT group_concat(x) FROM t") == "1"


async def test_block_inside_of_a_block_is_refused_and_does_not_end_it(
    module: Any, path: Path
) -> None:
    """Also one that comes after the end of the transaction."""
    async with module.create_pool(path, max_size=1) as pool:
        with pytest.raises(TransactionEnded):
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
                with pytest.raises(sqlite3.OperationalError, match="within a transaction"):
                    async with poolkit.transaction(conn):
                        raise AssertionError("entered")
                with pytest.raises(TransactionEnded):
                    await conn.execute("COMMIT")
                with contextlib.suppress(sqlite3.IntegrityError):
                    await conn.execute("INSERT OR ROLLBACK INTO t VALUES (1)")
                with pytest.raises(TransactionEnded, match="has rolled it back"):
                    async with poolkit.transaction(conn):
                        raise AssertionError("entered")
        assert look(path) == 0


async def test_transactions_by_hand_are_left_alone(module: Any, path: Path) -> None:
    """Before and after a block, on the same connection."""
    async with module.create_pool(path, max_size=1) as pool:
        for x in range(2):
            async with pool.acquire() as conn:
                await conn.execute("BEGIN")
                await conn.execute(f"INSERT INTO t VALUES ({x})")
                await conn.commit()
                await conn.execute("BEGIN")
                await conn.execute("DELETE FROM t")
                await conn.execute("ROLLBACK")
                await conn.executescript("BEGIN; DELETE FROM t WHERE x > 9; COMMIT")
            async with pool.transaction():
                pass
        assert look(path) == 2


# -- the user's own authorizer -------------------------------------------------------------------


def no_deletes(action: int, *_: object) -> int:
    """Deny it."""
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_DELETE else sqlite3.SQLITE_OK


async def authorize(conn: Any, callback: Any) -> None:
    """Set an authorizer through the handle; one of the drivers has no method for it."""
    if hasattr(conn, "set_authorizer"):
        await conn.set_authorizer(callback)
    else:
        raw = conn._raw
        await conn._within(raw.lease, functools.partial(raw.set_authorizer, callback))


async def test_own_authorizer_goes_on_working(module: Any, path: Path) -> None:
    """Before a block, inside of it and after it, whenever it was set; and it opens no way out."""
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:

        async def check() -> None:
            with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                await conn.execute("DELETE FROM t")

        await conn.execute("DELETE FROM t")  # prepared
        await authorize(conn, no_deletes)
        await check()
        async with poolkit.transaction(conn):
            await check()
            with pytest.raises(TransactionEnded):
                await conn.execute("COMMIT")
        await check()
        await authorize(conn, None)
        async with poolkit.transaction(conn):
            await conn.execute("DELETE FROM t")
            await authorize(conn, no_deletes)
            await check()
            with pytest.raises(TransactionEnded):
                await conn.execute("COMMIT")
            await authorize(conn, None)
            await conn.execute("DELETE FROM t")
            with pytest.raises(TransactionEnded):
                await conn.execute("COMMIT")
        await conn.execute("DELETE FROM t")


async def test_own_authorizer_that_denies_the_commit_is_heard(module: Any, path: Path) -> None:
    """It is no refusal of ours, and the block is rolled back."""

    def no_commit(action: int, what: str | None, *_: object) -> int:
        return sqlite3.SQLITE_DENY if (action, what) == (22, "COMMIT") else sqlite3.SQLITE_OK

    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        await authorize(conn, no_commit)
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            async with poolkit.transaction(conn):
                await conn.execute("INSERT INTO t VALUES (1)")
        assert not conn.in_transaction
        assert look(path) == 0


# -- transactions that SQLite ends ---------------------------------------------------------------


async def by_conflict(conn: Any) -> None:
    """Have a conflict end it."""
    await conn.execute("INSERT OR ROLLBACK INTO t VALUES (1)")


async def by_update(conn: Any) -> None:
    """Have an UPDATE end it."""
    await conn.execute("INSERT INTO t VALUES (2)")
    await conn.execute("UPDATE OR ROLLBACK t SET x = 1")


async def by_trigger(conn: Any) -> None:
    """Have a trigger end it."""
    await conn.execute(
        "CREATE TEMP TRIGGER no BEFORE INSERT ON t BEGIN SELECT RAISE(ROLLBACK, 'no\nway'); END"
    )
    await conn.execute("INSERT INTO t VALUES (3)")


async def by_many(conn: Any) -> None:
    """Have one of many rows end it."""
    await conn.executemany("INSERT OR ROLLBACK INTO t VALUES (?)", [(5,), (1,), (6,)])


async def by_rows(conn: Any) -> None:
    """Have a statement end it that gives rows."""
    await conn.execute_fetchall("INSERT OR ROLLBACK INTO t VALUES (5), (1) RETURNING x")


async def by_interrupt(conn: Any) -> None:
    """Interrupt a write by hand."""
    raw = conn._raw
    await conn.create_function("interrupt", 0, raw.interrupt)
    await conn.execute(
        "INSERT INTO t WITH RECURSIVE n(x) AS (SELECT 10 UNION ALL SELECT x + 1 FROM n) "
        "SELECT x FROM n WHERE x < 1000 OR interrupt()"
    )


WAYS = [by_conflict, by_update, by_trigger, by_many, by_rows, by_interrupt]


@pytest.mark.parametrize("level", [None, "DEFERRED"])
@pytest.mark.parametrize("way", WAYS)
async def test_block_whose_transaction_has_ended_does_nothing_more(
    module: Any, path: Path, way: Callable[[Any], Any], level: str | None
) -> None:
    """What came next would stay, in autocommit or in a transaction that sqlite3 has begun."""
    async with module.create_pool(path, max_size=1) as pool:
        with pytest.raises(TransactionEnded, match="SQLite has rolled it back") as caught:
            async with pool.transaction() as conn:
                await conn._within(
                    conn._raw.lease, lambda: setattr(conn._raw, "isolation_level", level)
                ) if level else None
                await conn.execute("INSERT INTO t VALUES (1)")
                cursor = await conn.execute("SELECT 1 UNION SELECT 2")
                with pytest.raises((sqlite3.IntegrityError, sqlite3.OperationalError)):
                    await way(conn)
                assert not conn.in_transaction
                for method, *args in (
                    ("execute", "INSERT INTO t VALUES (8)"),
                    ("execute", "SELECT 1"),
                    ("execute_fetchall", "SELECT 1"),
                    ("execute_insert", "INSERT INTO t VALUES (8)"),
                    ("executemany", "INSERT INTO t VALUES (?)", [(8,)]),
                    ("executescript", "INSERT INTO t VALUES (8)"),
                    ("commit",),
                    ("rollback",),
                ):
                    with pytest.raises(TransactionEnded, match="has ended before the block"):
                        await getattr(conn, method)(*args)
                with pytest.raises(TransactionEnded):
                    await cursor.execute("INSERT INTO t VALUES (8)")
                with pytest.raises(TransactionEnded):
                    await cursor.fetchall()
                await cursor.close()
        assert "\n" not in str(caught.value)
        assert look(path) == 0
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO t VALUES (9)")
        assert look(path) == 1


@pytest.mark.parametrize("noticed", [False, True])
async def test_transaction_that_ended_past_the_authorizer_is_missed(
    module: Any, path: Path, *, noticed: bool
) -> None:
    """By whatever means: then it is not SQLite that has ended it, and rows may have stayed."""

    def end(raw: Any) -> None:
        sqlite3.Connection.set_authorizer(raw, None)
        sqlite3.Connection.rollback(raw)

    async with module.create_pool(path, max_size=1) as pool:
        with pytest.raises(TransactionEnded, match="something in it has ended it"):
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
                raw = conn._raw
                if noticed:
                    await conn._within(raw.lease, functools.partial(end, raw))
                else:
                    raw._in_block = False  # so that it goes unnoticed when it happens
                    await conn._within(raw.lease, functools.partial(end, raw))
                    raw._in_block = True
                with pytest.raises(TransactionEnded):
                    await conn.execute("INSERT INTO t VALUES (2)")
        assert look(path) == 0


@of_python_3_12
async def test_block_ends_whatever_the_autocommit_attribute_is(module: Any, path: Path) -> None:
    """With it set to False a commit() would begin another transaction."""
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        async with poolkit.transaction(conn):
            await conn.execute("INSERT INTO t VALUES (1)")
            await in_autocommit_off(conn, "INSERT INTO t VALUES (2)")
        assert not conn.in_transaction
        assert look(path) == 2
        with pytest.raises(KeyError):
            async with poolkit.transaction(conn):
                await in_autocommit_off(conn, "INSERT INTO t VALUES (3)")
                raise KeyError
        assert not conn.in_transaction
        assert look(path) == 2


async def test_error_of_the_block_itself_is_the_one_to_see(module: Any, path: Path) -> None:
    """As after any other rollback; and the connection can be used on in the lease."""
    async with module.create_pool(path, max_size=1) as pool, pool.acquire() as conn:
        with pytest.raises(sqlite3.IntegrityError):
            async with poolkit.transaction(conn):
                await conn.execute("INSERT INTO t VALUES (1)")
                await by_conflict(conn)
        await conn.execute("INSERT INTO t VALUES (2)")
        async with poolkit.transaction(conn):
            await conn.execute("INSERT INTO t VALUES (3)")
        assert look(path) == 2


async def test_failed_statement_that_ends_nothing_leaves_the_block(module: Any, path: Path) -> None:
    """Most errors undo their statement only."""
    async with module.create_pool(path, max_size=1) as pool:
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(sqlite3.IntegrityError):
                await conn.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(sqlite3.OperationalError):
                await conn.execute("SELECT nonsense")
            await conn.execute("INSERT INTO t VALUES (2)")
        assert look(path) == 2


async def test_disk_that_is_full_ends_the_block(module: Any, path: Path) -> None:
    """If the statement cannot be undone by itself, all of the transaction is."""
    async with module.create_pool(path, max_size=1) as pool:
        async with pool.acquire() as conn:
            ((pages,),) = await conn.execute_fetchall("PRAGMA page_count")
            await conn.execute(f"PRAGMA max_page_count={pages}")
            failed = False
            try:
                async with poolkit.transaction(conn):
                    await conn.execute("INSERT INTO t VALUES (1)")
                    with contextlib.suppress(sqlite3.OperationalError):
                        await conn.execute("INSERT INTO t VALUES (zeroblob(100000))")
                        raise AssertionError("not full")
                    ended = not conn.in_transaction
                    await conn.execute("INSERT INTO t VALUES (2)")
            except TransactionEnded:
                failed = True
        assert failed is ended
        assert look(path) == (0 if ended else 2)


async def test_cancelled_block_does_not_guard_the_next_lease(module: Any, path: Path) -> None:
    """The reset ends what it has left; a COMMIT by hand is the next user's own affair."""
    async with module.create_pool(path, max_size=1) as pool:
        with anyio.CancelScope() as scope:
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
                with contextlib.suppress(sqlite3.IntegrityError):
                    await by_conflict(conn)
                scope.cancel()
                await anyio.sleep_forever()
        async with pool.acquire() as conn:
            await conn.execute("BEGIN")
            await conn.execute("INSERT INTO t VALUES (2)")
            await conn.execute("COMMIT")
        assert look(path) == 1


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "INSERT OR ROLLBACK INTO t VALUES (1)"])
async def test_request_whose_transaction_was_ended_is_no_success(
    module: Any, path: Path, end: str
) -> None:
    """Neither is anything of it in the database."""
    pool = module.create_pool(path, max_size=1)
    app = fastapi.FastAPI()

    @app.post("/")
    async def create(conn: Annotated[Any, Depends(poolkit.fastapi.transaction)]) -> None:
        await conn.execute("INSERT INTO t VALUES (1)")
        with contextlib.suppress(sqlite3.IntegrityError):
            await conn.execute(end)
        await conn.execute("INSERT INTO t VALUES (2)")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        poolkit.fastapi.lifespan(pool)(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        assert (await client.post("/")).status_code == 500
    assert look(path) == 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has no autocommit")
@pytest.mark.parametrize("value", [False, True, -1])
async def test_on_connect_must_not_turn_autocommit_off(
    module: Any, path: Path, *, value: int
) -> None:
    """A transaction would be open already wherever a block begins one."""

    async def set_up(conn: Any) -> None:
        raw = conn._raw
        await conn._within(raw.lease, lambda: setattr(raw, "autocommit", value))

    pool = module.create_pool(path, max_size=1, on_connect=set_up)
    if value is False:
        with pytest.raises(poolkit.ConnectFailed, match=r"autocommit=False.*pool\.transaction"):
            await pool.open()
        await pool.aclose()
    else:
        async with pool, pool.transaction() as conn:
            await conn.execute("INSERT INTO t VALUES (1)")
        assert look(path) == 1
