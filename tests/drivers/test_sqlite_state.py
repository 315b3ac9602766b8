"""What a lease of SQLite's sets ends with it, and what ``on_connect`` has set does not.

Which kinds there are, and what becomes of each: ``tests/integrations/test_sqlite_table.py``.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from poolkit import TransactionEnded
from poolkit.drivers import aiosqlite as with_aiosqlite
from poolkit.drivers import sqlite as with_threads
from tests.conftest import BACKENDS
from tests.drivers.sqlite_help import connected, look
from tests.drivers.sqlite_kinds import in_thread, works

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(
    params=[
        pytest.param((module, *backend.values), id=f"{name}-{backend.id}")
        for name, module in (("aiosqlite", with_aiosqlite), ("threads", with_threads))
        for backend in BACKENDS
        if (name, backend.id) in {("aiosqlite", "asyncio"), ("threads", "trio")}
    ]
)
def case(request: pytest.FixtureRequest) -> Any:
    """Each driver on one event loop: what happens here happens in its threads."""
    return request.param


@pytest.fixture
def anyio_backend(case: Any) -> Any:
    """Run on the case's event loop."""
    return case[1]


@pytest.fixture
def create(case: Any, path: Path) -> Callable[..., Any]:
    """Return what creates a pool of one connection."""

    def create(database: Any = path, **options: Any) -> Any:
        return case[0].create_pool(database, **{"max_size": 1, **options})

    return create


async def value(pool: Any, sql: str) -> Any:
    """Return the first value that the next lease sees."""
    async with pool.acquire() as conn:
        return (await conn.execute_fetchall(sql))[0][0]


def deny(*_: object) -> int:
    """Allow nothing, or end whatever runs."""
    return sqlite3.SQLITE_DENY


async def test_nobody_waits_for_a_lock_to_see_what_a_connection_is_like(
    create: Callable[..., Any], path: Path
) -> None:
    """Neither to set it up nor in a lease: the file may be locked for long."""

    async def on_connect(conn: Any) -> None:
        await conn.execute("PRAGMA foreign_keys=OFF")

    locked = {"journal_mode": None, "busy_timeout": 60.0, "connect_timeout": 10.0}
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        async with create(on_connect=on_connect, acquire_timeout=20.0, **locked) as pool:
            async with pool.acquire() as conn:
                await conn.execute("PRAGMA query_only=1")
            for name, expected in (("query_only", 0), ("foreign_keys", 0), ("busy_timeout", 60000)):
                assert await value(pool, f"PRAGMA {name}") == expected
            other.execute("COMMIT")


async def test_rows_that_were_written_before_anybody_could_look_cost_the_connection(
    create: Callable[..., Any], path: Path
) -> None:
    """The file was locked then; a lease that has read only leaves the look to the next one."""

    async def on_connect(conn: Any) -> None:
        await conn.execute("CREATE TEMP TABLE own (x)")

    async with create(on_connect=on_connect, journal_mode="DELETE") as pool:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert await value(pool, "SELECT count(*) FROM own") == 0
            assert pool.stats().connected == 1
            async with pool.acquire() as conn:
                await conn.execute("INSERT INTO own VALUES ('secret')")
                other.execute("COMMIT")
                await conn.execute("INSERT INTO t VALUES (1)")
            assert await value(pool, "SELECT count(*) FROM own") == 0
            assert pool.stats().connected == 2
            other.execute("BEGIN EXCLUSIVE")
            async with pool.acquire() as conn:
                await conn.execute("INSERT INTO own VALUES ('secret')")
            other.execute("COMMIT")
            assert await value(pool, "SELECT count(*) FROM own") == 0
            assert pool.stats().connected == 3


# -- what on_connect has set ---------------------------------------------------------------------


async def test_what_on_connect_sets_stays_whatever_a_lease_sets_instead(
    create: Callable[..., Any],
) -> None:
    """Functions, callbacks, limits and settings alike."""
    traced: list[str] = []

    def set_up(raw: Any) -> None:
        raw.create_function("f", 0, lambda: "base")
        raw.create_collation("c", lambda *_: 0)
        raw.set_trace_callback(traced.append)
        raw.set_authorizer(lambda *_: sqlite3.SQLITE_OK)
        raw.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 3)
        raw.execute("PRAGMA foreign_keys=OFF")
        raw.execute("PRAGMA cache_size=-77")

    def disturb(raw: Any) -> None:
        raw.create_function("f", 0, lambda: "mine")
        raw.create_collation("c", lambda *_: 1)
        raw.set_trace_callback(None)
        raw.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 2)
        raw.execute("PRAGMA foreign_keys=ON")
        raw.execute("PRAGMA cache_size=-78")
        raw.set_authorizer(deny)

    def is_as_set_up(raw: Any) -> tuple[Any, ...]:
        return (
            raw.execute("SELECT f()").fetchone()[0],
            raw.execute("SELECT 'a' = 'b' COLLATE c").fetchone()[0],
            raw.getlimit(sqlite3.SQLITE_LIMIT_ATTACHED),
            raw.execute("PRAGMA foreign_keys").fetchone()[0],
            raw.execute("PRAGMA cache_size").fetchone()[0],
        )

    async def on_connect(conn: Any) -> None:
        await in_thread(conn, set_up)

    async with create(on_connect=on_connect) as pool:
        for _ in range(2):
            traced.clear()
            async with pool.acquire() as conn:
                assert await in_thread(conn, is_as_set_up) == ("base", 1, 3, 0, -77)
                assert "SELECT f()" in traced
                await in_thread(conn, disturb)
        assert pool.stats().connected == 1


async def test_names_of_functions_and_collations_are_those_that_sqlite_knows(
    create: Callable[..., Any],
) -> None:
    """In both cases of the letters of ASCII, and of no others."""

    def register(raw: Any, what: str) -> None:
        for name in ("Ete", "ÉTÉ", "été"):
            raw.create_function(name, 0, lambda name=name: f"{what} {name}")
        for name in ("Francais", "FRANÇAIS", "français"):
            raw.create_collation(name, lambda a, b: (a > b) - (a < b) if what == "base" else 0)

    async def on_connect(conn: Any) -> None:
        await in_thread(conn, lambda raw: register(raw, "base"))

    async with create() as pool:
        async with pool.acquire() as conn:
            await in_thread(conn, lambda raw: register(raw, "mine"))
        async with pool.acquire() as conn:
            for sql in ("ete()", "ÉTÉ()", "été()", "'' COLLATE FRANÇAIS", "'' COLLATE français"):
                with pytest.raises(sqlite3.OperationalError, match="no such"):
                    await conn.execute(f"SELECT '' = {sql}")
        assert pool.stats().connected == 1
    async with create(on_connect=on_connect) as pool:
        async with pool.acquire() as conn:
            await in_thread(conn, lambda raw: register(raw, "mine"))
        async with pool.acquire() as conn:
            sql = "SELECT ETE() || ÉTÉ() || été(), 'a' = 'b' COLLATE FRANÇAIS"
            ((names, equal),) = await conn.execute_fetchall(sql)
            assert names == "base Etebase ÉTÉbase été"
            assert not equal
        assert pool.stats().connected == 1


async def test_function_that_cannot_be_had_back_costs_the_connection_once_it_is_replaced(
    create: Callable[..., Any],
) -> None:
    """One of an extension, FTS5 for example, or one of on_connect that takes any arguments."""

    async def on_connect(conn: Any) -> None:
        await conn.create_function("any", -1, lambda *_: "base")
        await conn.create_function("one", 1, lambda *_: "base")
        await conn.execute("CREATE VIRTUAL TABLE temp.words USING fts5(x)")
        await conn.execute("INSERT INTO words VALUES ('a')")

    sql = """
        SELECT any(1) || any() || one(1) || lower('A') || highlight(words, 0, '<', '>')
        FROM words('a')
    """
    cases = [("any", 1), ("highlight", -1), ("Highlight", 4), ("lower", 1), ("lower", -1)]
    async with create(on_connect=on_connect) as pool:
        for number, (name, arguments) in enumerate(cases, 1):
            async with pool.acquire() as conn:
                await conn.create_function("one", 2, lambda *_: "mine")
                await conn.create_function("any", -1, lambda *_: "mine")
                await conn.create_function("another", -1, lambda *_: "mine")
                await conn.create_function("another", 1, lambda *_: "mine")
            assert await value(pool, sql) == "basebasebasea<a>"
            assert pool.stats().connected == number
            async with pool.acquire() as conn:
                await conn.create_function(name, arguments, lambda *_: "mine")
            assert await value(pool, sql) == "basebasebasea<a>"
            assert pool.stats().connected == number + 1


@pytest.mark.parametrize("setting", [0, 1])
async def test_like_of_on_connect_stays_whatever_a_lease_says_of_case(
    create: Callable[..., Any], setting: int
) -> None:
    """SQLite replaces it with its own."""

    async def on_connect(conn: Any) -> None:
        await conn.create_function("like", 2, lambda pattern, text: pattern == text * 2)

    async with create(on_connect=on_connect) as pool:
        async with pool.acquire() as conn:
            await conn.execute(f"PRAGMA case_sensitive_like={setting}")
        assert await value(pool, "SELECT 'a' LIKE 'aa'") == 1
        assert pool.stats().connected == 1


async def test_callbacks_of_on_connect_are_not_told_of_what_a_reset_does(
    create: Callable[..., Any],
) -> None:
    """Nor do they stop it: an authorizer that allows reading alone leaves the pool working."""
    traced: list[str] = []

    def only_reads(action: int, *_: object) -> int:
        allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
        return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY

    async def on_connect(conn: Any) -> None:
        await in_thread(conn, lambda raw: raw.set_trace_callback(traced.append))
        await in_thread(conn, lambda raw: raw.set_authorizer(only_reads))

    async with create(on_connect=on_connect) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                await conn.create_function("f", 0, lambda: 1)
                with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                    await conn.execute("PRAGMA query_only=1")
                await conn.execute_fetchall("SELECT f()")
        assert pool.stats().connected == 1
    assert {sql for sql in traced if not sql.startswith("--")} <= {
        "SELECT f()",
        "PRAGMA query_only=1",
    }


async def test_reset_is_not_stopped_by_callbacks_of_the_lease(create: Callable[..., Any]) -> None:
    """An authorizer that denies everything, a progress handler that ends everything."""
    async with create() as pool:
        for setting in (
            lambda raw: raw.set_progress_handler(lambda: 1, 1),
            lambda raw: raw.set_authorizer(deny),
        ):
            async with pool.acquire() as conn:
                await conn.execute("BEGIN")
                await conn.execute("CREATE TEMP TABLE t (x)")
                await in_thread(conn, setting)
            assert await value(pool, "SELECT count(*) FROM sqlite_temp_master") == 0
        assert pool.stats().connected == 1


async def test_callbacks_are_taken_away_after_statements_of_all_sorts(
    create: Callable[..., Any],
) -> None:
    """Whatever the connection has done for itself in between."""
    heard: list[Any] = []

    def hear(*what: Any) -> int:
        heard.append(what)
        return 0

    async with create() as pool:
        for setting in (
            lambda raw: raw.set_trace_callback(hear),
            lambda raw: raw.set_progress_handler(hear, 1),
            lambda raw: raw.set_authorizer(hear),
        ):
            async with pool.acquire() as conn:
                await conn.execute_fetchall("SELECT 1")
                await in_thread(conn, setting)
                await conn.execute_fetchall("SELECT 2 UNION SELECT 3")
                assert heard
                assert "busy_timeout" not in repr(heard)
            async with pool.acquire() as conn:
                heard.clear()
                await conn.execute("INSERT INTO t VALUES (1)")
                await conn.execute_fetchall("SELECT 4 UNION SELECT 5")
            assert not heard
        assert pool.stats().connected == 1


# -- ways around the handle ----------------------------------------------------------------------


async def by_its_cursor(conn: Any) -> None:
    """The cursor knows SQLite's own connection."""
    cursor = await conn.execute("SELECT 1")
    raw = cursor._cursor.connection
    await in_thread(conn, lambda _: raw.execute("PRAGMA query_only=1").close())


async def by_another_cursor(conn: Any) -> None:
    """One of a class of the user's own."""

    def change(raw: Any) -> None:
        raw.cursor(sqlite3.Cursor).execute("PRAGMA query_only=1")

    await in_thread(conn, change)


async def by_a_row_factory(conn: Any) -> None:
    """It is given the cursor, in the middle of a SELECT."""

    def change(cursor: Any, row: Any) -> Any:
        cursor.connection.execute("PRAGMA query_only=1").close()
        return row

    conn.row_factory = change
    await conn.execute_fetchall("SELECT 1")
    conn.row_factory = None


async def by_a_comment(conn: Any) -> None:
    """In front of the statement."""
    await conn.execute_fetchall("/* SELECT */ PRAGMA query_only=1")


async def by_a_script(conn: Any) -> None:
    """Behind a statement that does nothing."""
    await conn.executescript("SELECT 1; PRAGMA query_only=1")


async def by_a_cursor_again(conn: Any) -> None:
    """On a cursor that has executed something else before."""
    cursor = await conn.execute("SELECT 1")
    await cursor.fetchall()
    await cursor.execute("PRAGMA query_only=1")


@pytest.mark.parametrize(
    "way",
    [
        by_its_cursor,
        by_another_cursor,
        by_a_row_factory,
        by_a_comment,
        by_a_script,
        by_a_cursor_again,
    ],
)
async def test_no_way_leads_around_the_reset(create: Callable[..., Any], way: Any) -> None:
    """Whichever object of the lease's is used to get at the connection."""
    async with create() as pool:
        async with pool.acquire() as conn:
            await way(conn)
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                await conn.execute("INSERT INTO t VALUES (1)")
        async with pool.acquire() as conn:
            await conn.execute("INSERT INTO t VALUES (1)")
        assert pool.stats().connected == 1


async def test_callbacks_that_are_set_past_our_methods_are_taken_away(
    create: Callable[..., Any], case: Any
) -> None:
    """By those of the class beneath, in a function of the user's own."""
    if case[0] is not with_aiosqlite:
        pytest.skip("its handle runs no functions of the user's")
    heard: list[Any] = []

    def hear(*what: Any) -> int:
        heard.append(what)
        return 0

    def listen(raw: Any) -> None:
        sqlite3.Connection.set_trace_callback(raw, hear)
        sqlite3.Connection.set_progress_handler(raw, hear, 1)
        sqlite3.Connection.set_authorizer(raw, hear)

    async with create() as pool:
        async with pool.acquire() as conn:
            await conn._execute(listen, conn._conn)
        assert await value(pool, "SELECT 1") == 1
        heard.clear()
        async with pool.transaction() as conn:
            await conn.execute_fetchall("SELECT 2 UNION SELECT 3")
            with pytest.raises(TransactionEnded):
                await conn.execute("COMMIT")
        assert not heard
        assert pool.stats().connected == 1


# -- some kinds of state -------------------------------------------------------------------------


async def test_lock_that_a_lease_has_taken_for_good_is_let_go(
    create: Callable[..., Any], path: Path
) -> None:
    """Nobody else could use the file meanwhile."""
    for mode in ("WAL", "DELETE"):
        async with create(journal_mode=mode) as pool:
            async with pool.acquire() as conn:
                await conn.execute_fetchall("PRAGMA locking_mode=EXCLUSIVE")
                await conn.execute("INSERT INTO t VALUES (1)")
            assert await value(pool, "SELECT count(*) FROM t") > 0
            with contextlib.closing(sqlite3.connect(path, timeout=0)) as other:
                other.execute("DELETE FROM t")
                other.commit()


async def test_settings_of_the_temporary_database_are_set_back(
    create: Callable[..., Any],
) -> None:
    """As those of the others, also when SQLite has closed it meanwhile, and opens it anew."""
    pragmas = {"cache_size": 7, "journal_mode": "off", "max_page_count": 3, "user_version": 4242}

    async def settings(conn: Any) -> list[Any]:
        return [await conn.execute_fetchall(f"PRAGMA temp.{name}") for name in pragmas]

    async with create() as pool:
        async with pool.acquire() as conn:
            before = await settings(conn)
        for change in ((), ("PRAGMA temp_store=2",), ("PRAGMA temp_store=1",)):
            for _ in range(2):
                async with pool.acquire() as conn:
                    assert await settings(conn) == before
                    for sql in change:
                        await conn.execute(sql)
                    for name, new in pragmas.items():
                        await conn.execute_fetchall(f"PRAGMA temp.{name}={new}")
                    assert await settings(conn) != before
        async with pool.acquire() as conn:
            assert await settings(conn) == before
            await conn.execute("CREATE TEMP TABLE big AS SELECT zeroblob(4000000)")
        assert await value(pool, "SELECT 1") == 1
        assert pool.stats().connected == 1


async def test_reset_understands_what_it_reads_whatever_rows_are_made_of(
    create: Callable[..., Any],
) -> None:
    """Row and text factories, and converters, are the user's."""

    def fail(*_: object) -> Any:
        raise AssertionError

    sqlite3.register_converter("poolkit_fails", fail)

    async def on_connect(conn: Any) -> None:
        def set_up(raw: Any) -> None:
            raw.row_factory, raw.text_factory = fail, fail
            raw.execute("CREATE TEMP TABLE own (x)")

        await in_thread(conn, set_up)

    async with create(on_connect=on_connect, detect_types=sqlite3.PARSE_DECLTYPES) as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TEMP TABLE mine (x poolkit_fails)")
            await conn.execute("INSERT INTO mine VALUES (1)")
            await conn.execute("PRAGMA query_only=1")
        async with pool.acquire() as conn:
            assert not await in_thread(conn, lambda raw: works(raw, "DELETE FROM mine"))
            assert await in_thread(conn, lambda raw: works(raw, "DELETE FROM own"))
        assert pool.stats().connected == 1


async def test_temporary_tables_of_all_kinds_are_dropped(create: Callable[..., Any]) -> None:
    """With references, rows, names that have to be quoted, and tables beneath."""
    async with create() as pool:
        async with pool.acquire() as conn:
            await conn.executescript(
                """
                CREATE TEMP TABLE parent (id INTEGER PRIMARY KEY AUTOINCREMENT);
                CREATE TEMP TABLE child (x REFERENCES parent (id));
                INSERT INTO parent VALUES (1);
                INSERT INTO child VALUES (1);
                CREATE TEMP TABLE "a""b ]" (x UNIQUE);
                CREATE INDEX temp.i ON "a""b ]" (x);
                CREATE TEMP VIEW v AS SELECT * FROM parent;
                CREATE TEMP TRIGGER tr AFTER INSERT ON t BEGIN DELETE FROM child; END;
                CREATE VIRTUAL TABLE temp.words USING fts4(word);
                PRAGMA query_only=1;
                """
            )
        sql = "SELECT count(*) FROM sqlite_temp_master WHERE name NOT LIKE 'sqlite%'"
        assert await value(pool, sql) == 0
        assert pool.stats().connected == 1


async def test_rows_left_in_a_temporary_table_of_on_connect_cost_the_connection(
    create: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Although an INSERT needs no reset otherwise; one into another table costs nothing."""

    async def on_connect(conn: Any) -> None:
        await conn.execute("CREATE TEMP TABLE own (x)")
        await conn.execute("INSERT INTO own VALUES ('base')")

    async with create(on_connect=on_connect) as pool:
        for table, connected in (("t", 1), ("own", 2)):
            async with pool.acquire() as conn:
                await conn.execute(f"INSERT INTO {table} VALUES ('secret')")
            assert await value(pool, "SELECT group_concat(x) FROM own") == "base"
            assert pool.stats().connected == connected
    assert "rows of temporary tables" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "attach",
    [
        ("execute", "ATTACH ? AS base", (":memory:",)),
        ("execute", 'ATTACH ":memory:" AS base'),
        ("execute", "ATTACH ':memory:' AS [base]"),
        ("execute", "ATTACH ':memory:' AS BASE"),
        ("execute", "/* scratch */ ATTACH DATABASE '' AS base"),
        ("execute_fetchall", "ATTACH 'file::memory:' AS base"),
        ("execute", "ATTACH 'file:base?vfs=memdb' AS base"),
        ("executescript", "SELECT 1; ATTACH ':memory:' AS base"),
    ],
    ids=repr,
)
async def test_rows_left_in_a_memory_database_of_on_connect_are_not_seen(
    create: Callable[..., Any], attach: tuple[Any, ...]
) -> None:
    """However it was attached."""
    method, *args = attach

    async def on_connect(conn: Any) -> None:
        await getattr(conn, method)(*args)
        await conn.execute("CREATE TABLE base.cache (x)")

    async with create(on_connect=on_connect) as pool:
        async with pool.acquire() as conn:
            await conn.execute("INSERT INTO base.cache VALUES ('secret')")
        assert await value(pool, "SELECT count(*) FROM base.cache") == 0


async def test_what_is_made_in_a_memory_database_of_on_connect_is_dropped(
    create: Callable[..., Any],
) -> None:
    """Tables with their rows, views and triggers; ``user_version`` is set back."""

    async def on_connect(conn: Any) -> None:
        await conn.execute("ATTACH ':memory:' AS base")
        await conn.execute("CREATE TABLE base.cache (x)")
        await conn.execute("PRAGMA base.user_version = 3")

    async with create(on_connect=on_connect) as pool:
        async with pool.acquire() as conn:
            await conn.executescript(
                """
                CREATE TABLE base.mine (id INTEGER PRIMARY KEY AUTOINCREMENT, x UNIQUE);
                INSERT INTO base.mine (x) VALUES ('secret');
                CREATE INDEX base.i ON cache (x);
                CREATE VIEW base.v AS SELECT * FROM mine;
                CREATE TRIGGER base.tr AFTER INSERT ON cache BEGIN DELETE FROM cache; END;
                CREATE VIRTUAL TABLE base.words USING fts4(word);
                ANALYZE base;
                PRAGMA base.user_version = 4242;
                PRAGMA base.application_id = 4242;
                """
            )
        names = "SELECT group_concat(name) FROM base.sqlite_master WHERE name <> 'sqlite_sequence'"
        assert await value(pool, names) == "cache"
        assert await value(pool, "SELECT count(*) FROM base.sqlite_sequence") == 0
        assert await value(pool, "PRAGMA base.user_version") == 3
        assert await value(pool, "PRAGMA base.application_id") == 0
        assert pool.stats().connected == 1


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO own (id) VALUES (4242)",
        "INSERT INTO own (id) VALUES (4242); DELETE FROM own",
        "UPDATE own SET id = 4242",
        "UPDATE plain SET rowid = 4242",
        "DROP TABLE own",
        "ALTER TABLE own ADD COLUMN y DEFAULT 4242",
        "DROP VIEW seen; CREATE VIEW seen AS SELECT 4242",
        "UPDATE plain SET x = x'ff'",
    ],
)
@pytest.mark.parametrize("schema", ["temp", "base"])
async def test_what_a_lease_changes_where_nobody_else_sees_it_costs_the_connection(
    create: Callable[..., Any], schema: str, statement: str
) -> None:
    """Rows, their ids, the next id, what tables and views are made of."""

    async def on_connect(conn: Any) -> None:
        await conn.execute("ATTACH ':memory:' AS base")
        await conn.executescript(
            f"""
            CREATE TABLE {schema}.own (id INTEGER PRIMARY KEY AUTOINCREMENT);
            INSERT INTO own VALUES (1);
            CREATE TABLE {schema}.plain (x);
            INSERT INTO plain VALUES (CAST(x'ff' AS TEXT));
            CREATE TABLE {schema}.keyed (x PRIMARY KEY) WITHOUT ROWID;
            CREATE VIEW {schema}.seen AS SELECT 1;
            """
        )

    async with create(on_connect=on_connect) as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TABLE base.another (x)")
        assert await value(pool, "SELECT 1") == 1
        assert pool.stats().connected == 1
        async with pool.acquire() as conn:
            for sql in statement.split("; "):
                await conn.execute(sql)
        assert await value(pool, "SELECT 1") == 1
        assert pool.stats().connected == 2


async def test_rows_left_in_what_is_attached_to_a_shared_memory_database_are_not_seen(
    create: Callable[..., Any],
) -> None:
    """SQLite keeps that in memory, too, for this connection alone unless it has a slash."""

    async def on_connect(conn: Any) -> None:
        await conn.execute("ATTACH 'cache' AS base")
        await conn.execute("CREATE TABLE base.cache (x)")

    async with create("file:/state?vfs=memdb", on_connect=on_connect) as pool:
        async with pool.acquire() as conn:
            await conn.execute("INSERT INTO base.cache VALUES ('secret')")
        assert await value(pool, "SELECT count(*) FROM base.cache") == 0


@pytest.mark.parametrize(
    "attach",
    [
        ("execute", "ATTACH 'file:poolkit-one?mode=memory&cache=shared' AS base"),
        ("execute", "ATTACH ? AS base", ("file:poolkit-two?mode=memory&cache=shared",)),
        ("executescript", "ATTACH 'file:poolkit-three?cache=shared&mode=memory' AS base;"),
        ("execute", "ATTACH 'file:/poolkit-four?vfs=memdb' AS base"),
    ],
    ids=repr,
)
async def test_rows_in_a_memory_database_that_connections_share_cost_none(
    create: Callable[..., Any], attach: tuple[Any, ...]
) -> None:
    """They are like those in a file."""
    method, *args = attach

    async def on_connect(conn: Any) -> None:
        await getattr(conn, method)(*args)
        await conn.execute("CREATE TABLE IF NOT EXISTS base.cache (x)")

    async with create(on_connect=on_connect) as pool:
        async with pool.acquire() as conn:
            await conn.execute("INSERT INTO base.cache VALUES (1)")
        assert await value(pool, "SELECT count(*) FROM base.cache") == 1
        assert pool.stats().connected == 1


async def test_lease_that_only_reads_and_writes_rows_has_nobody_look(
    create: Callable[..., Any],
) -> None:
    """Neither before it nor after it; nor has one in a transaction."""
    async with create() as pool:
        for begin in (pool.acquire, pool.transaction):
            async with begin() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
                await conn.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
                await conn.execute("SAVEPOINT s")
                await conn.execute("RELEASE s")
                await conn.execute_fetchall("SELECT * FROM t")
        async with pool.acquire() as conn:
            assert conn._raw._baseline is None


async def test_what_cannot_be_undone_is_refused_on_a_private_memory_database(
    create: Callable[..., Any],
) -> None:
    """It would be lost with its connection; the lease goes on."""
    async with create(":memory:") as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TABLE t (x)")
            with pytest.raises(sqlite3.NotSupportedError, match=r"lower\(\).*private memory"):
                await conn.create_function("lower", 1, str)
            with pytest.raises(sqlite3.NotSupportedError, match=r"deserialize\(\).*on_connect"):
                await in_thread(conn, lambda raw: raw.deserialize(b""))
            await conn.execute("INSERT INTO t VALUES (lower('A'))")
        assert await value(pool, "SELECT x FROM t") == "a"
        assert pool.stats().connected == 1


async def test_what_cannot_be_undone_is_done_in_on_connect(create: Callable[..., Any]) -> None:
    """For all leases, also on a private memory database."""

    async def on_connect(conn: Any) -> None:
        await conn.create_function("lower", 1, lambda _: "mine")

    for database in ((), (":memory:",)):
        async with create(*database, on_connect=on_connect) as pool:
            for _ in range(2):
                assert await value(pool, "SELECT lower('A')") == "mine"
                async with pool.acquire() as conn:
                    await conn.create_function("lower", 1, lambda _: "another")
            assert pool.stats().connected == 1


async def test_extension_that_a_lease_has_loaded_costs_the_connection(
    create: Callable[..., Any], case: Any, path: Path
) -> None:
    """And the leave to load one ends with the lease."""
    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        pytest.skip("this Python cannot load extensions")
    sql = "SELECT load_extension('poolkit-has-none')"
    async with create() as pool:
        for number, method in enumerate(("execute", "execute_fetchall", "executescript"), 2):
            async with pool.acquire() as conn:
                await in_thread(conn, lambda raw: raw.enable_load_extension(True))
                with pytest.raises(sqlite3.OperationalError):
                    await getattr(conn, method)(sql)
            assert await value(pool, "SELECT 1") == 1
            assert pool.stats().connected == number
            async with pool.acquire() as conn:
                with pytest.raises(sqlite3.OperationalError, match="not authorized"):
                    await getattr(conn, method)(sql)


# -- the id of the row inserted last -------------------------------------------------------------


async def test_id_of_an_earlier_lease_is_not_seen(create: Callable[..., Any]) -> None:
    """Neither by a statement that asks nor on a cursor, nor when an INSERT inserts nothing."""
    async with create() as pool:

        async def insert() -> None:
            async with pool.acquire() as conn:
                for _ in range(2):
                    cursor = await conn.execute("INSERT INTO t VALUES (1)")
                assert cursor.lastrowid > 1
                assert (await conn.execute_insert("INSERT INTO t VALUES (1)"))[0] > 2

        await insert()
        assert await value(pool, "SELECT last_insert_rowid()") == 0
        await insert()
        assert await value(pool, "SELECT Last_Insert_RowID() + 0") == 0
        await insert()
        async with pool.acquire() as conn:
            for sql in ("SELECT 1", "UPDATE t SET x = 2", "INSERT INTO t SELECT 1 WHERE 0"):
                async with conn.execute(sql) as cursor:
                    assert cursor.lastrowid == 0
        await insert()
        async with pool.acquire() as conn:
            assert await conn.execute_insert("INSERT INTO t SELECT 1 WHERE 0") == (0,)
        await insert()
        async with pool.transaction() as conn:
            ((none,),) = await conn.execute_fetchall("SELECT last_insert_rowid()")
            assert none == 0
        assert pool.stats().connected == 1


@pytest.mark.parametrize(
    "insert",
    [
        "INSERT INTO t VALUES (1)",
        "REPLACE INTO t VALUES (1)",
        "INSERT INTO t VALUES (1) RETURNING x",
        "WITH a(x) AS (SELECT 1) INSERT INTO t SELECT x FROM a",
        "-- a comment\nINSERT INTO t VALUES (1)",
    ],
)
async def test_id_of_the_lease_itself_is_seen(create: Callable[..., Any], insert: str) -> None:
    """Whichever way it is inserted, and whichever way it is asked for."""
    ways: list[Callable[[Any], Any]] = [
        lambda conn: conn.execute(insert),
        lambda conn: conn.execute_fetchall(insert),
        lambda conn: conn.execute_insert(insert),
        lambda conn: conn.executescript(insert),
    ]
    async with create() as pool:
        for number, way in enumerate(ways, 1):
            async with pool.acquire() as conn:
                made = await way(conn)
                if hasattr(made, "fetchall"):
                    await made.fetchall()
                    if number == 1:
                        assert made.lastrowid == number
                ((found,),) = await conn.execute_fetchall("SELECT last_insert_rowid()")
                assert found == number
        async with pool.acquire() as conn:
            await conn.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
            ((found,),) = await conn.execute_fetchall("SELECT last_insert_rowid()")
            assert found == number + 2


# -- past the pool -------------------------------------------------------------------------------


async def test_reset_logs_nothing_for_what_it_has_undone(
    create: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """To set something is no mistake."""
    async with create() as pool:
        async with pool.acquire() as conn:
            await conn.execute("PRAGMA query_only=1")
            await conn.execute("ATTACH ':memory:' AS a")
        assert await value(pool, "SELECT 1") == 1
    assert not [r for r in caplog.records if r.levelno > logging.DEBUG]


async def test_connection_without_a_pool_is_reset_to_what_it_was_opened_as(
    case: Any, path: Path
) -> None:
    """A driver may be used by itself."""
    driver = case[0].create_pool(path)._driver
    async with connected(driver) as c:
        await c.execute("PRAGMA query_only=1")
        await driver.reset(c)
        await c.execute("INSERT INTO t VALUES (1)")
    assert look(path) == 1
