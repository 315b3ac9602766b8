"""The contract of a driver, line by line, for both SQLite drivers on every event loop."""

from __future__ import annotations

import contextlib
import gc
import sqlite3
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poolkit import NotLeased, Options, PoolConfigError, TransactionEnded, Verdict
from poolkit.drivers import aiosqlite as with_aiosqlite
from poolkit.drivers import sqlite as with_threads
from poolkit.drivers.sqlite._url import parse_url
from tests.conftest import BACKENDS
from tests.drivers.sqlite_help import (
    ENDLESS,
    ENDLESS_INSERT,
    PATIENCE,
    Gate,
    abandon,
    connected,
    ended,
    look,
    run,
    write_and_checkpoint,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture(
    params=[
        pytest.param((module, *backend.values), id=f"{name}-{backend.id}")
        for name, module in (("aiosqlite", with_aiosqlite), ("threads", with_threads))
        for backend in BACKENDS
        if (name, backend.id) != ("aiosqlite", "trio")
    ]
)
def case(request: pytest.FixtureRequest) -> Any:
    """One of the drivers, on an event loop it runs on."""
    return request.param


@pytest.fixture
def anyio_backend(case: Any) -> Any:
    """Run on the case's event loop."""
    return case[1]


def make(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Return a driver."""
    kind = module.AiosqliteDriver if hasattr(module, "AiosqliteDriver") else module.ThreadsDriver
    return kind(*args, **kwargs)


@pytest.fixture
def driver(module: Any, path: Path) -> Any:
    """A driver of the case's library, for the database with the empty table."""
    return make(module, path)


async def value(c: Any, sql: str) -> Any:
    """Return the first value of the first row."""
    return (await c.execute_fetchall(sql))[0][0]


# -- naming the database -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "database", "settings"),
    [
        ("sqlite:///app.db", "app.db", {}),
        ("sqlite:///data/app.db", "data/app.db", {}),
        ("sqlite:////srv/app.db", "/srv/app.db", {}),
        ("sqlite+aiosqlite:////srv/app.db", "/srv/app.db", {}),
        ("sqlite+threads:///C:/data/app.db", "C:/data/app.db", {}),
        ("sqlite:////srv/a%20b%23c%3Fd.db", "/srv/a b#c?d.db", {}),
        ("sqlite://", ":memory:", {}),
        ("sqlite:///", ":memory:", {}),
        ("sqlite:///:memory:", ":memory:", {}),
        ("sqlite:///app.db?mode=ro", "file:app.db?mode=ro", {}),
        ("sqlite:////a%20b?mode=ro&immutable=1", "file:/a%20b?mode=ro&immutable=1", {}),
        ("sqlite:///name?vfs=memdb", "file:/name?vfs=memdb", {}),
        ("sqlite:////name?vfs=memdb", "file:/name?vfs=memdb", {}),
        ("sqlite:///file:/name?vfs=memdb&uri=true", "file:/name?vfs=memdb", {"uri": True}),
        ("sqlite:///:memory:?cache=shared", "file::memory:?cache=shared", {}),
        ("sqlite:///a.db?foreign_keys=off", "a.db", {"foreign_keys": False}),
        ("sqlite:///a.db?foreign_keys=1", "a.db", {"foreign_keys": True}),
        ("sqlite:///a.db?busy_timeout=0.5", "a.db", {"busy_timeout": 0.5}),
        ("sqlite:///a.db?busy_timeout=none", "a.db", {"busy_timeout": None}),
        ("sqlite:///a.db?journal_mode=delete", "a.db", {"journal_mode": "delete"}),
        ("sqlite:///a.db?journal_mode=None", "a.db", {"journal_mode": None}),
        ("sqlite:///a.db?iter_chunk_size=7", "a.db", {"iter_chunk_size": 7}),
        ("sqlite:///a.db?max_size=5&name=x", "a.db", {}),
    ],
)
def test_url_names_the_database(url: str, database: str, settings: dict[str, Any]) -> None:
    """As SQLAlchemy reads them, with SQLite's own URI parameters and the driver's settings."""
    assert parse_url(url) == (database, settings)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://app.db", "three slashes"),
        ("sqlite:app.db", "too few slashes.*sqlite:///app.db"),
        ("sqlite:///app.db#1", "%23"),
        ("sqlite:///app.db?jornal_mode=wal", "'jornal_mode'; did you mean journal_mode"),
        ("sqlite:///app.db?jornal_mode=wal", "Known: .*busy_timeout.*max_size.*vfs"),
        ("sqlite:///app.db?foreign_keys=perhaps", "foreign_keys='perhaps'"),
        ("sqlite:///app.db?busy_timeout=soon", "busy_timeout='soon'"),
        ("sqlite:///app.db?row_factory=Row", "keyword"),
        ("sqlite:///app.db?journal_mode=fast", "journal_mode='fast'.*WAL"),
        ("sqlite:///app.db?synchronous=OFF;DROP TABLE t", "synchronous='OFF;DROP TABLE t'"),
        ("sqlite:///app.db?busy_timeout=-1", "busy_timeout=-1.0"),
    ],
)
def test_url_that_cannot_work_is_refused(module: Any, url: str, message: str) -> None:
    """Before anything is opened, naming what was meant."""
    with pytest.raises(PoolConfigError, match=message):
        module.from_url(url)


def test_unknown_options_are_refused(module: Any, path: Path) -> None:
    """By the driver, which knows its own, and by create_pool, which knows the pool's as well."""
    with pytest.raises(PoolConfigError, match="'jornal_mode'; did you mean journal_mode"):
        make(module, path, jornal_mode="WAL")
    with pytest.raises(PoolConfigError, match="'max_sise'; did you mean max_size"):
        module.create_pool(path, max_sise=3)
    with pytest.raises(PoolConfigError, match=r"poolkit\.create_pool"):
        module.create_pool("postgresql://host/app")


@pytest.mark.parametrize(
    ("database", "refused"),
    [
        (":memory:", True),
        ("", True),
        ("file::memory:", True),
        ("file:name?mode=memory", True),
        ("file:name?vfs=memdb", True),
        ("file:name?mode=memory&cache=shared", True),
        ("file::memory:?cache=shared", True),
        ("file:/name?vfs=memdb", False),
        ("app.db", False),
        ("file:app.db?mode=ro", False),
    ],
)
def test_memory_database_that_cannot_be_shared_is_refused(
    module: Any, database: str, *, refused: bool
) -> None:
    """Unless the capacity is 1; the message has the spelling that works."""
    driver = make(module, database)
    driver.check_options(Options(max_size=1))
    for options in (Options(max_size=2), Options(max_size=1, max_overflow=1)):
        if refused:
            with pytest.raises(PoolConfigError, match=r"capacity|2 .*sqlite:///name\?vfs=memdb"):
                driver.check_options(options)
        else:
            driver.check_options(options)


def test_pool_of_private_memory_databases_is_refused_when_made(module: Any) -> None:
    """And when it grows to be one."""
    with pytest.raises(PoolConfigError, match="vfs=memdb"):
        module.create_pool(":memory:")
    pool = module.create_pool(":memory:", max_size=1)
    with pytest.raises(PoolConfigError, match="vfs=memdb"):
        pool.resize(max_size=2)


@pytest.mark.parametrize("database", [":memory:", "file:/kept?vfs=memdb"])
async def test_memory_database_outlives_its_connections(module: Any, database: str) -> None:
    """A pool replaces connections as a matter of course: the driver holds the database."""
    driver = make(module, database)
    async with connected(driver) as c:
        await c.execute("CREATE TABLE t (x)")
    async with connected(driver) as c:
        assert await value(c, "SELECT count(*) FROM t") == 0


async def test_memory_databases_without_a_name_are_apart(module: Any) -> None:
    """Each driver has its own."""
    async with connected(make(module, ":memory:")) as c, connected(make(module, ":memory:")) as d:
        await c.execute("CREATE TABLE t (x)")
        assert await value(d, "SELECT count(*) FROM sqlite_master") == 0


async def test_named_memory_database_is_shared_and_ends_with_its_drivers(module: Any) -> None:
    """By all connections of all drivers that name it; nothing is left after the last one."""
    first, second = (make(module, "file:/shared?vfs=memdb") for _ in range(2))
    async with connected(first) as c, connected(second) as d:
        await c.execute("CREATE TABLE t (x)")
        assert await value(d, "SELECT count(*) FROM t") == 0
    await ended()
    del first, second, c, d
    gc.collect()
    async with connected(make(module, "file:/shared?vfs=memdb")) as c:
        assert await value(c, "SELECT count(*) FROM sqlite_master") == 0


# -- connect -------------------------------------------------------------------------------------


async def test_connection_is_set_up(driver: Any) -> None:
    """Foreign keys, waiting for locks, and a WAL are what one wants of an application's database."""
    async with connected(driver) as c:
        assert await value(c, "PRAGMA foreign_keys") == 1
        assert await value(c, "PRAGMA busy_timeout") == 5000
        assert await value(c, "PRAGMA journal_mode") == "wal"
        assert await value(c, "PRAGMA synchronous") == 1


@pytest.mark.parametrize(
    ("settings", "pragma", "expected"),
    [
        ({"foreign_keys": False}, "foreign_keys", 0),
        ({"foreign_keys": None}, "foreign_keys", 0),
        ({"busy_timeout": 0.25}, "busy_timeout", 250),
        ({"busy_timeout": None}, "busy_timeout", 5000),
        ({"journal_mode": None}, "journal_mode", "delete"),
        ({"journal_mode": "truncate"}, "journal_mode", "truncate"),
        ({"journal_mode": None}, "synchronous", 2),
        ({"journal_mode": None, "synchronous": "EXTRA"}, "synchronous", 3),
        ({"synchronous": None}, "synchronous", 2),
        ({"synchronous": "off"}, "synchronous", 0),
    ],
)
async def test_settings_are_set(
    module: Any, path: Path, settings: Any, pragma: str, expected: object
) -> None:
    """Each of them, and each can be left alone; NORMAL is not set where it is not safe."""
    async with connected(make(module, path, **settings)) as c:
        assert await value(c, f"PRAGMA {pragma}") == expected


async def test_connections_are_in_autocommit(driver: Any, path: Path) -> None:
    """So that a plain INSERT is there for everybody, and not undone at the end of the lease."""
    async with connected(driver) as c:
        await c.execute("INSERT INTO t VALUES (1)")
        assert look(path) == 1


async def test_library_keywords_are_passed_on(module: Any, path: Path) -> None:
    """Converters, row factories, sizes of chunks."""
    driver = make(
        module,
        path,
        detect_types=sqlite3.PARSE_COLNAMES,
        row_factory=sqlite3.Row,
        iter_chunk_size=1,
        cached_statements=0,
    )
    async with connected(driver) as c:
        (row,) = await c.execute_fetchall("SELECT '2001-02-03' AS day")
        assert row["day"] == "2001-02-03"
        async with c.execute("SELECT 1 UNION SELECT 2") as cursor:
            assert [row[0] async for row in cursor] == [1, 2]


async def test_database_that_is_only_read_is_not_written_to(module: Any, path: Path) -> None:
    """The journal of a file opened with mode=ro is left as it is."""
    async with connected(make(module, f"file:{path}?mode=ro")) as c:
        assert await value(c, "SELECT count(*) FROM t") == 0
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await c.execute("INSERT INTO t VALUES (1)")


async def test_new_file_may_be_opened_by_many_at_once(module: Any, tmp_path: Path) -> None:
    """All but one of those that switch a file to WAL at once are refused, without any waiting."""
    for attempt in range(10):
        driver = make(module, tmp_path / f"{attempt}.db")
        made: list[Any] = []

        async def connect(driver: Any = driver, made: list[Any] = made) -> None:
            made.append(await driver.connect())

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(connect)
        assert len(made) == 6
        for c in made:
            driver.terminate(c)
    await ended()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/app.db", "the directory .*missing does not exist"),
        ("", "is a directory"),
        ("file:{}/none.db?mode=rw", "none.db does not exist"),
        ("file:{}/app.db?vfs=nonsense", "no such vfs: nonsense"),
        ("junk.db", "file is not a database"),
    ],
)
async def test_connect_that_will_never_succeed_is_fatal(
    module: Any, tmp_path: Path, name: str, reason: str
) -> None:
    """And says why, which SQLite does not."""
    (tmp_path / "junk.db").write_bytes(b"no database" * 100)
    database = name.format(tmp_path.as_posix()) if name.startswith("file:") else tmp_path / name
    driver = make(module, database)
    with pytest.raises(sqlite3.DatabaseError, match=reason) as info:
        await driver.connect()
    assert driver.classify(info.value) is Verdict.FATAL
    await ended()


async def test_connect_to_a_locked_database_is_transient(module: Any, path: Path) -> None:
    """Somebody holds the lock that switching to a WAL needs."""
    driver = make(module, path, busy_timeout=0)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked") as info:
            await driver.connect()
        assert driver.classify(info.value) is Verdict.TRANSIENT
    async with connected(driver):
        pass


async def test_cancelled_connect_leaves_nothing(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread closes what it has opened when nobody is there any more to take it."""
    gate, opened, really_open = Gate(), [], driver._open

    def slowly(**given: Any) -> Any:
        gate.hold()
        opened.append(really_open(**given))
        return opened[0]

    monkeypatch.setattr(driver, "_open", slowly)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(driver.connect)
            await gate.reached()
            group.cancel_scope.cancel()
    gate.let_go()
    await closed_by_its_thread(opened)


async def test_connect_cancelled_when_it_is_done_leaves_nothing(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancellation and the connection may arrive in the same turn of the loop."""
    gate, is_open = Gate(), threading.Event()
    opened, really_open = [], driver._open

    def open_and_tell(**given: Any) -> Any:
        gate.hold()
        opened.append(really_open(**given))
        is_open.set()
        return opened[0]

    monkeypatch.setattr(driver, "_open", open_and_tell)
    async with anyio.create_task_group() as group:
        group.start_soon(driver.connect)
        await gate.reached()
        gate.let_go()
        assert is_open.wait(PATIENCE)  # the loop stands still meanwhile
        group.cancel_scope.cancel()
    await closed_by_its_thread(opened)


async def closed_by_its_thread(opened: list[Any]) -> None:
    """Wait for a connection that nobody has received to be closed."""
    with anyio.fail_after(PATIENCE):
        while not opened or not is_closed(opened[0]):
            await anyio.lowlevel.checkpoint()
    await ended()


def is_closed(raw: Any) -> bool:
    """Tell whether SQLite's own connection is closed."""
    try:
        raw.in_transaction  # noqa: B018
    except sqlite3.ProgrammingError:
        return True
    return False


# -- reset ---------------------------------------------------------------------------------------


async def test_reset_of_what_was_left_tidy_has_nothing_to_say(driver: Any) -> None:
    """Neither of cursors that are read to the end, which everybody leaves."""
    async with connected(driver) as c:
        assert await driver.reset(c) is None
        cursor = await c.execute("SELECT 1")
        await cursor.fetchall()
        assert await driver.reset(c) is None


async def test_reset_rolls_back_an_open_transaction(driver: Any, path: Path) -> None:
    """And says so."""
    async with connected(driver) as c:
        await c.execute("BEGIN")
        await c.execute("INSERT INTO t VALUES (1)")
        assert await driver.reset(c) == "an open transaction"
        assert not c.in_transaction
        assert look(path) == 0
        await c.execute("BEGIN IMMEDIATE")


async def test_reset_closes_a_half_read_cursor(driver: Any, path: Path) -> None:
    """Which holds its snapshot without a transaction: nobody could truncate the WAL."""
    async with connected(driver) as c:
        await c.executemany("INSERT INTO t VALUES (?)", [(x,) for x in range(9)])
        cursor = await c.execute("SELECT x FROM t")
        await cursor.fetchone()
        assert not write_and_checkpoint(path), "the cursor is in the way"
        assert not c.in_transaction
        assert await driver.reset(c) == "a half-read cursor"
        assert write_and_checkpoint(path)


async def test_reset_closes_the_cursor_of_a_cancelled_statement(driver: Any, path: Path) -> None:
    """It was made for a caller who had gone, so nobody can close it."""
    gate = Gate()
    async with connected(driver) as c:
        await gate.install(c)
        await c.executemany("INSERT INTO t VALUES (?)", [(x,) for x in range(9)])
        await abandon_held(c, gate, "SELECT x, hold() FROM t")
        await driver.reset(c)
        assert write_and_checkpoint(path)


async def abandon_held(c: Any, gate: Gate, *statements: str) -> None:
    """Abandon statements of which the first one is held at the gate, then open it."""
    await abandon(c, gate, *statements)
    gate.let_go()


async def test_cursor_of_a_cancelled_statement_is_closed_by_the_next_one(
    driver: Any, path: Path
) -> None:
    """Also while the lease goes on; in the thread, because collecting it elsewhere would disturb."""
    gate = Gate()
    async with connected(driver) as c:
        await gate.install(c)
        await c.executemany("INSERT INTO t VALUES (?)", [(x,) for x in range(9)])
        await abandon_held(c, gate, "SELECT x, hold() FROM t")
        assert await value(c, "SELECT 1") == 1
        assert write_and_checkpoint(path)


async def test_reset_ends_the_lease_by_itself(driver: Any) -> None:
    """Whoever resets without a release before, as after a failed ping, is safe as well."""
    gate = Gate()
    async with connected(driver) as c:
        await gate.install(c)
        cursor = await c.execute("SELECT 1")
        await cursor.fetchall()
        await abandon(c, gate, ENDLESS)
        with anyio.fail_after(PATIENCE):
            assert await driver.reset(c) is None
            assert await value(c, "SELECT 1") == 1
        with pytest.raises(NotLeased):
            await cursor.fetchone()


async def test_cursor_that_came_too_late_is_closed_by_the_next_statement(
    driver: Any, path: Path
) -> None:
    """Its caller is cancelled when the thread is done, but before the loop has heard of it."""
    gate = Gate()
    async with connected(driver) as c:
        await gate.install(c)
        await c.executemany("INSERT INTO t VALUES (?)", [(x,) for x in range(9)])
        async with anyio.create_task_group() as group:
            group.start_soon(run, c, "SELECT x, hold() FROM t")
            await gate.reached()
            gate.let_go()
            while c._raw._running is not None:  # the loop stands still meanwhile
                pass
            group.cancel_scope.cancel()
        assert await value(c, "SELECT 1") == 1
        assert write_and_checkpoint(path)


@pytest.mark.parametrize("begin", ["SELECT 1", "BEGIN"])
async def test_reset_ends_a_statement_whose_caller_was_cancelled(
    driver: Any, path: Path, begin: str
) -> None:
    """It would never end by itself; and nothing of it is ever committed."""
    gate = Gate()
    async with connected(driver) as c:
        await gate.install(c)
        await c.execute(begin)
        await abandon(c, gate, ENDLESS_INSERT)
        driver.revoke(c)
        with anyio.fail_after(PATIENCE):
            await driver.reset(c)
            assert await value(c, "SELECT count(*) FROM t") == 0
    assert look(path) == 0


async def test_reset_ends_statements_that_were_still_queued(driver: Any, path: Path) -> None:
    """A second endless one is not even begun, and an INSERT does not land in the next lease."""
    gate = Gate()
    async with connected(driver) as c:
        await gate.install(c)
        await abandon(c, gate, "SELECT hold()", "INSERT INTO t VALUES (1)", ENDLESS_INSERT)
        driver.revoke(c)
        gate.let_go()
        with anyio.fail_after(PATIENCE):
            await driver.reset(c)
    assert look(path) == 0


async def test_operation_of_a_task_that_stays_is_refused_after_release(
    driver: Any, path: Path
) -> None:
    """A child task that nobody has cancelled gets the error, not the next lease's connection."""
    gate = Gate()
    refused: list[Exception] = []

    async def insert(c: Any) -> None:
        try:
            await c.execute("INSERT INTO t VALUES (1)")
        except NotLeased as error:
            refused.append(error)

    async def hold(c: Any) -> None:
        with contextlib.suppress(sqlite3.OperationalError):  # interrupted
            await c.execute_fetchall("SELECT hold()")

    async with connected(driver) as c:
        await gate.install(c)
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(hold, c)
                await gate.reached()
                group.start_soon(insert, c)
                await anyio.wait_all_tasks_blocked()
                driver.revoke(c)
                gate.let_go()
            await driver.reset(c)
        assert len(refused) == 1
    assert look(path) == 0


async def test_reset_restores_what_was_set_on_the_connection(module: Any, path: Path) -> None:
    """To what ``on_connect`` had made of it, which the pool tells with ``watch``."""
    driver = make(module, path)
    async with connected(driver) as c:
        c.row_factory = sqlite3.Row
        driver.watch(c, lambda: None)
        c.row_factory = None
        c.text_factory = bytes
        assert not driver.is_clean(c)
        await driver.reset(c)
        assert c.row_factory is sqlite3.Row
        assert c.text_factory is str
        assert driver.is_clean(c)


async def test_reset_restores_autocommit(driver: Any, path: Path) -> None:
    """After rolling back: to set the isolation level to None is to commit."""
    async with connected(driver) as c:
        c._raw.isolation_level = "DEFERRED"
        await c.execute("INSERT INTO t VALUES (1)")
        assert await driver.reset(c) == "an open transaction"
        assert look(path) == 0
        await c.execute("INSERT INTO t VALUES (1)")
        assert look(path) == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="an attribute of Python 3.12")
@pytest.mark.parametrize("autocommit", [True, False])
async def test_reset_restores_the_autocommit_attribute(
    driver: Any, path: Path, *, autocommit: bool
) -> None:
    """With it set to True rollback() does nothing at all, without a word."""

    def switch(raw: Any) -> None:
        raw.autocommit = autocommit
        if autocommit:
            raw.execute("BEGIN")
        raw.execute("INSERT INTO t VALUES (1)")

    async with connected(driver) as c:
        await c._within(c._raw.lease, lambda: switch(c._raw))
        assert await driver.reset(c) == "an open transaction"
        assert look(path) == 0
        await c.execute("INSERT INTO t VALUES (1)")
        assert look(path) == 1


async def test_reset_sets_the_settings_again(driver: Any) -> None:
    """A lease that switches foreign keys off, as for a migration, does so for itself only."""
    async with connected(driver) as c:
        await c.execute("PRAGMA foreign_keys=OFF")
        await c.execute("PRAGMA busy_timeout=0")
        await c.execute("PRAGMA synchronous=OFF")
        await driver.reset(c)
        assert await value(c, "PRAGMA foreign_keys") == 1
        assert await value(c, "PRAGMA busy_timeout") == 5000
        assert await value(c, "PRAGMA synchronous") == 1


async def test_reset_that_cannot_make_sure_raises(driver: Any) -> None:
    """Something nobody knows of is still open: the pool terminates the connection."""
    async with connected(driver) as c:
        raw = c._raw
        hidden = await c._within(
            raw.lease,
            lambda: sqlite3.Connection.execute(raw, "SELECT 1 UNION ALL SELECT 2"),
        )
        with pytest.raises(sqlite3.OperationalError, match="not idle"):
            await driver.reset(c)
        await c._within(raw.lease, hidden.close)


# -- is_clean ------------------------------------------------------------------------------------


async def test_unused_connection_is_clean(driver: Any) -> None:
    """A ping is nothing."""
    async with connected(driver) as c:
        assert driver.is_clean(c)
        await driver.ping(c)
        assert driver.is_clean(c)


TAME = [
    "SELECT 1",
    "\n\t select x from t",
    "INSERT INTO t VALUES (1)",
    "INSERT INTO t VALUES (1) RETURNING x",
    "REPLACE INTO t VALUES (1)",
    "UPDATE t SET x = 2",
    "DELETE FROM t",
    "VALUES (1), (2)",
    "WITH a(x) AS (SELECT 1) INSERT INTO t SELECT x FROM a",
    "SELECT * FROM pragma_foreign_keys, pragma_busy_timeout, pragma_synchronous",
    "SELECT * FROM pragma_table_info('t')",
]


@pytest.mark.parametrize("sql", TAME)
async def test_connection_is_clean_after_a_tame_statement(driver: Any, sql: str) -> None:
    """Whichever way it is executed, as long as no row is left to come."""
    async with connected(driver) as c:
        await c.execute_fetchall(sql)
        assert driver.is_clean(c)
        async with c.execute(sql):
            pass
        assert driver.is_clean(c)
        cursor = await c.execute(sql)
        await cursor.fetchall()
        assert driver.is_clean(c)
        await cursor.execute(sql)
        await cursor.fetchall()
        await cursor.close()
        await c.execute_insert("INSERT INTO t VALUES (1)")
        assert driver.is_clean(c)


@pytest.mark.parametrize(
    "sql",
    [
        "PRAGMA foreign_keys=OFF",
        "PRAGMA user_version",
        "EXPLAIN PRAGMA foreign_keys=OFF",
        "; PRAGMA foreign_keys=OFF",
        "/* a comment */ PRAGMA foreign_keys=OFF",
        "ATTACH ':memory:' AS other",
        "CREATE TEMP TABLE only_here (x)",
        "CREATE TABLE u (x)",
        "DROP TABLE t",
        "BEGIN",
        "SAVEPOINT s",
        "ANALYZE",
        "SELECT 'LOAD_EXTENSION'",
        "selection",
        "",
    ],
)
async def test_connection_is_not_clean_after_any_other_statement(driver: Any, sql: str) -> None:
    """They may change what the next user finds, or nobody has looked whether they do."""
    for way in ("execute_fetchall", "execute", "executescript", "cursor"):
        async with connected(driver) as c:
            with contextlib.suppress(sqlite3.OperationalError):
                if way == "cursor":
                    async with c.execute("SELECT 1") as cursor:
                        await cursor.execute(sql)
                else:
                    await getattr(c, way)(sql)
            assert not driver.is_clean(c)
            await driver.reset(c)
            assert driver.is_clean(c)


@pytest.mark.parametrize("name", ["foreign_keys", "busy_timeout", "synchronous"])
async def test_settings_cannot_be_changed_by_a_select(driver: Any, name: str) -> None:
    """The tables of the pragmas that a reset restores have no parameter for the value."""
    async with connected(driver) as c:
        before = await value(c, f"PRAGMA {name}")
        for sql in (f"SELECT * FROM pragma_{name}(0)", f"SELECT * FROM pragma_{name} WHERE arg=0"):
            with contextlib.suppress(sqlite3.OperationalError):
                await c.execute_fetchall(sql)
        with pytest.raises(sqlite3.OperationalError):
            await c.execute(f"UPDATE pragma_{name} SET {name} = 0")
        assert await value(c, f"PRAGMA {name}") == before


async def test_second_statement_is_refused_by_sqlite3(driver: Any) -> None:
    """So that the first word speaks for all of it."""
    async with connected(driver) as c:
        with pytest.raises((sqlite3.Warning, sqlite3.ProgrammingError)):
            await c.execute_fetchall("SELECT 1; PRAGMA foreign_keys=OFF")
        assert not driver.is_clean(c)
        assert await value(c, "PRAGMA foreign_keys") == 1


async def test_connection_with_an_open_cursor_is_not_clean(driver: Any) -> None:
    """Whether somebody still has it or not; read to its end it may as well be executed again."""
    many = "SELECT 1 UNION SELECT 2"
    async with connected(driver) as c:
        cursor = await c.execute(many)
        assert not driver.is_clean(c)
        await cursor.fetchone()
        assert not driver.is_clean(c)
        await cursor.fetchall()
        assert driver.is_clean(c)
        await cursor.execute(many)
        assert not driver.is_clean(c)
        del cursor
        gc.collect()
        assert not driver.is_clean(c)


async def test_connection_in_a_transaction_is_not_clean(driver: Any, path: Path) -> None:
    """But it is after one that has ended, either way."""
    async with connected(driver) as c:
        async with driver.transaction(c):
            await c.execute("INSERT INTO t VALUES (1)")
            assert not driver.is_clean(c)
        assert driver.is_clean(c)
        with pytest.raises(KeyError):
            async with driver.transaction(c):
                raise KeyError
        assert driver.is_clean(c)
        await driver.transaction(c).__aenter__()
        assert not driver.is_clean(c)
    assert look(path) == 1


@pytest.mark.parametrize("attribute", ["row_factory", "text_factory", "isolation_level"])
async def test_connection_with_an_attribute_set_is_not_clean(driver: Any, attribute: str) -> None:
    """A reset puts it back."""
    async with connected(driver) as c:
        setattr(c._raw, attribute, {"isolation_level": "DEFERRED"}.get(attribute, lambda *_: None))
        assert not driver.is_clean(c)
        await driver.reset(c)
        assert driver.is_clean(c)


async def test_connection_is_not_clean_after_anything_but_statements(driver: Any) -> None:
    """A function that was registered in a lease is not there in the next one."""
    async with connected(driver) as c:
        await c.create_function("f", 0, lambda: 1)
        assert await value(c, "SELECT f()") == 1
        assert not driver.is_clean(c)
        await driver.reset(c)
        assert driver.is_clean(c)
        with pytest.raises(sqlite3.OperationalError, match="no such function"):
            await c.execute_fetchall("SELECT f()")


async def test_connection_is_not_clean_after_a_failed_statement(driver: Any) -> None:
    """Nobody has thought of everything that may have failed."""
    async with connected(driver) as c:
        with pytest.raises(sqlite3.OperationalError):
            await c.execute_fetchall("SELECT * FROM missing")
        assert not driver.is_clean(c)


async def test_connection_is_not_clean_while_a_statement_runs(driver: Any) -> None:
    """Nor when its caller has been cancelled."""
    gate = Gate()
    async with connected(driver) as c:
        await gate.install(c)
        await driver.reset(c)
        await abandon(c, gate, "SELECT hold()")
        assert not driver.is_clean(c)
        gate.let_go()
        await c.execute_fetchall("SELECT 1")
        assert not driver.is_clean(c)


async def test_connection_is_not_clean_after_a_callback_that_used_it(driver: Any) -> None:
    """A row factory is given a cursor, and that has the connection."""

    def make_row(cursor: Any, row: Any) -> Any:
        cursor.connection.execute("PRAGMA foreign_keys=OFF")
        return row

    async with connected(driver) as c:
        c.row_factory = make_row
        await c.execute_fetchall("SELECT 1")
        c.row_factory = None
        assert not driver.is_clean(c)
        await driver.reset(c)
        assert await value(c, "PRAGMA foreign_keys") == 1


# -- revoke --------------------------------------------------------------------------------------


async def test_revoked_cursor_is_dead(driver: Any) -> None:
    """Its methods, those kept from before, and its iteration in the middle of a chunk."""
    async with connected(driver) as c:
        cursor = await c.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
        fetchone, pending = cursor.fetchone, cursor.fetchone()
        rows = aiter(cursor)
        await anext(rows)
        driver.revoke(c)
        await driver.reset(c)
        for use in (
            fetchone,
            lambda: pending,
            cursor.fetchall,
            cursor.fetchmany,
            lambda: anext(rows),
            lambda: cursor.execute("SELECT 1"),
            lambda: cursor.executemany("INSERT INTO t VALUES (?)", [(1,)]),
            lambda: cursor.executescript("SELECT 1"),
        ):
            with pytest.raises(NotLeased, match="given back"):
                await use()


async def test_revoked_calls_are_dead(driver: Any, path: Path) -> None:
    """An operation that was called for in one lease is not carried out in the next one."""
    async with connected(driver) as c:
        kept = [
            c.execute("INSERT INTO t VALUES (1)"),
            c.execute_insert("INSERT INTO t VALUES (1)"),
            c.executemany("INSERT INTO t VALUES (?)", [(1,)]),
            c.commit(),
            c.rollback(),
            c.close(),
        ]
        entered = c.execute("INSERT INTO t VALUES (1)")
        driver.revoke(c)
        for call in kept:
            with pytest.raises(NotLeased):
                await call
        with pytest.raises(NotLeased):
            async with entered:
                pass
        assert look(path) == 0
        assert not driver.is_dead(c)


async def test_revoked_cursor_may_be_closed(driver: Any) -> None:
    """It is closed already: the end of an ``async with`` around it is no misuse."""
    async with connected(driver) as c:
        async with c.execute("SELECT 1") as cursor:
            driver.revoke(c)
        await cursor.close()


async def test_revoke_leaves_the_next_lease_alone(driver: Any) -> None:
    """What is made afterwards lives."""
    async with connected(driver) as c:
        driver.revoke(c)
        await driver.reset(c)
        async with c.execute("SELECT 1") as cursor:
            assert await cursor.fetchone() == (1,)


# -- ping, close, terminate ----------------------------------------------------------------------


async def test_ping_asks_the_connection(driver: Any) -> None:
    """Whatever its rows are made by; a closed one does not answer."""

    def refuse(*_: object) -> None:
        raise AssertionError

    async with connected(driver) as c:
        c.row_factory = refuse
        await driver.ping(c)
        await driver.close(c)
        with pytest.raises((sqlite3.ProgrammingError, ValueError)):
            await driver.ping(c)


async def test_connection_is_dead_once_it_is_closed(driver: Any) -> None:
    """By the pool, by its user, or under everybody's feet."""
    ways: list[Callable[[Any], Any]] = [
        driver.close,
        lambda c: c.close(),
        lambda c: c._within(c._raw.lease, c._raw.close),
    ]
    for close in ways:
        async with connected(driver) as c:
            assert driver.is_dead(c) is False
            await close(c)
            assert driver.is_dead(c) is True
    async with connected(driver) as c:
        driver.terminate(c)
        assert driver.is_dead(c) is True


async def test_close_closes_and_may_be_repeated(driver: Any) -> None:
    """When it returns, SQLite has closed the files."""
    async with connected(driver) as c:
        await driver.close(c)
        assert is_closed(c._raw)
        await driver.close(c)


async def test_close_does_not_wait_for_abandoned_statements(driver: Any, path: Path) -> None:
    """Nor does it let them land."""
    gate = Gate()
    async with connected(driver) as c:
        await gate.install(c)
        await abandon(c, gate, ENDLESS_INSERT, "INSERT INTO t VALUES (1)")
        with anyio.fail_after(PATIENCE):
            await driver.close(c)
    assert look(path) == 0


async def test_terminate_ends_a_running_statement(driver: Any, path: Path) -> None:
    """At once, whoever waits for it, and however often."""
    gate = Gate()
    failed: list[Exception] = []

    async def insert(c: Any) -> None:
        try:
            await c.execute(ENDLESS_INSERT)
        except sqlite3.OperationalError as error:
            failed.append(error)

    async with connected(driver) as c:
        await gate.install(c)
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(insert, c)
                await gate.reached()
                driver.terminate(c)
                driver.terminate(c)
        assert "interrupted" in str(failed[0])
        await ended()
        assert is_closed(c._raw)
        driver.terminate(c)
    assert look(path) == 0


async def test_terminated_connection_leaves_no_file_open(driver: Any, path: Path) -> None:
    """Though somebody still has a cursor that is not read to its end."""
    async with connected(driver) as c:
        await c.executemany("INSERT INTO t VALUES (?)", [(x,) for x in range(9)])
        cursor = await c.execute("SELECT x FROM t")
        await cursor.fetchone()
        driver.terminate(c)
        await ended()
        assert write_and_checkpoint(path)


async def test_cursor_is_collected_without_waiting(driver: Any) -> None:
    """Not even while another statement runs, to which SQLite belongs as long as it does."""
    gate = Gate()

    async def hold(c: Any) -> None:
        await c.execute_fetchall("SELECT hold()")

    async with connected(driver) as c:
        await gate.install(c)
        cursor = await c.execute("SELECT 1 UNION SELECT 2")
        async with anyio.create_task_group() as group:
            group.start_soon(hold, c)
            await gate.reached()
            del cursor
            gc.collect()
            gate.let_go()
        assert await driver.reset(c) is None


async def test_terminate_does_not_wait(driver: Any) -> None:
    """Not even for an operation that cannot be interrupted, and which closes the connection."""
    gate = Gate()
    async with connected(driver) as c:
        await gate.install(c)
        await abandon(c, gate, "SELECT hold()")
        driver.terminate(c)
        assert driver.is_dead(c)
        assert not is_closed(c._raw)
        gate.let_go()
        await ended()
        assert is_closed(c._raw)


def test_terminate_works_when_the_loop_is_gone(
    module: Any, path: Path, anyio_backend: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is printed by a thread that finds nobody to report to."""
    driver = make(module, path)
    kept: list[Any] = []

    async def connect() -> None:
        kept.append(await driver.connect())

    async def join() -> None:
        await ended()

    backend, options = anyio_backend
    anyio.run(connect, backend=backend, backend_options=options)
    driver.terminate(kept[0])
    anyio.run(join, backend=backend, backend_options=options)
    assert is_closed(kept[0]._raw)
    assert capfd.readouterr().err == ""


# -- classify ------------------------------------------------------------------------------------


def sqlite_error(kind: type[Exception], text: str, code: int | None = None) -> Exception:
    """Return an error as the sqlite3 module raises it."""
    error = kind(text)
    if code is not None:
        error.sqlite_errorcode = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (sqlite_error(sqlite3.OperationalError, "database is locked", 5), Verdict.OK),
        (sqlite_error(sqlite3.OperationalError, "database table is locked", 6), Verdict.OK),
        (sqlite_error(sqlite3.OperationalError, "database is locked", 517), Verdict.OK),
        (sqlite_error(sqlite3.IntegrityError, "UNIQUE constraint failed", 2067), Verdict.OK),
        (sqlite_error(sqlite3.OperationalError, "near x: syntax error", 1), Verdict.OK),
        (sqlite_error(sqlite3.OperationalError, "interrupted", 9), Verdict.OK),
        (sqlite_error(sqlite3.OperationalError, "readonly database", 8), Verdict.OK),
        (sqlite_error(sqlite3.OperationalError, "database or disk is full", 13), Verdict.OK),
        (sqlite_error(sqlite3.ProgrammingError, "Cannot operate on a closed cursor."), Verdict.OK),
        (sqlite_error(sqlite3.ProgrammingError, "Incorrect number of bindings"), Verdict.OK),
        (KeyError("anything"), Verdict.OK),
        (ValueError("anything"), Verdict.OK),
        (sqlite_error(sqlite3.OperationalError, "readonly (moved)", 1032), Verdict.SUSPECT),
        (sqlite_error(sqlite3.DatabaseError, "file is not a database", 26), Verdict.SUSPECT),
        (sqlite_error(sqlite3.DatabaseError, "malformed", 11), Verdict.SUSPECT),
        (sqlite_error(sqlite3.OperationalError, "disk I/O error", 778), Verdict.SUSPECT),
        (sqlite_error(sqlite3.OperationalError, "unable to open", 14), Verdict.SUSPECT),
        (sqlite_error(sqlite3.InterfaceError, "bad parameter or misuse", 21), Verdict.SUSPECT),
        (
            sqlite_error(sqlite3.ProgrammingError, "Cannot operate on a closed database."),
            Verdict.SUSPECT,
        ),
        (ValueError("no active connection"), Verdict.SUSPECT),
        (PoolConfigError("aiosqlite runs on asyncio only"), Verdict.FATAL),
    ],
)
def test_errors_are_classified(driver: Any, error: Exception, verdict: Verdict) -> None:
    """Most concern their statement only."""
    assert driver.classify(error) is verdict


async def by_cursor(conn: Any) -> None:
    """Fail on a cursor."""
    cursor = await conn.cursor()
    await cursor.execute("SELECT * FROM nowhere")


async def by_rows(conn: Any) -> None:
    """Fail in the middle of the rows."""
    async with conn.execute("SELECT abs(x) FROM (VALUES (1), (-9223372036854775808)) t(x)") as rows:
        async for _ in rows:
            pass


async def by_execute(conn: Any) -> None:
    """Fail at once."""
    await conn.execute("SELECT * FROM nowhere")


async def by_fetchall(conn: Any) -> None:
    """Fail in one go."""
    await conn.execute_fetchall("SELECT * FROM nowhere")


@pytest.mark.parametrize("fail", [by_cursor, by_rows, by_execute, by_fetchall])
async def test_error_that_was_caught_costs_a_suspect_connection(
    module: Any, path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[Any], Any]
) -> None:
    """Whatever has raised it; one that outlives its lease says nothing of the next."""
    kind = type(module.create_pool(path)._driver)
    classify = kind.classify

    def suspicious(self: Any, exc: BaseException, c: Any = None) -> Verdict:
        is_ours = isinstance(exc, sqlite3.Error)
        return Verdict.SUSPECT if is_ours else classify(self, exc, c)

    monkeypatch.setattr(kind, "classify", suspicious)
    async with module.create_pool(path, max_size=1) as pool:
        async with pool.acquire() as conn:
            real = conn._poolkit_slot.connection
            await conn.execute_fetchall("SELECT 1")
            with pytest.raises(sqlite3.Error):
                await fail(conn)
        async with pool.acquire() as conn:
            assert conn._poolkit_slot.connection is not real
        assert pool.stats().retired["broken"] == 1


# -- transactions --------------------------------------------------------------------------------


async def test_transaction_commits(driver: Any, path: Path) -> None:
    """At the end of the block, and not before."""
    async with connected(driver) as c:
        async with driver.transaction(c):
            await c.execute("INSERT INTO t VALUES (1)")
            assert look(path) == 0
        assert look(path) == 1
        assert not c.in_transaction


async def test_transaction_rolls_back_after_an_error(driver: Any, path: Path) -> None:
    """Which is the caller's own."""
    async with connected(driver) as c:
        with pytest.raises(KeyError):
            async with driver.transaction(c):
                await c.execute("INSERT INTO t VALUES (1)")
                raise KeyError
        assert look(path) == 0
        assert not c.in_transaction


@pytest.mark.parametrize(("mode", "locked"), [("IMMEDIATE", True), ("deferred", False)])
async def test_transaction_takes_the_write_lock_at_its_beginning(
    driver: Any, path: Path, mode: str, *, locked: bool
) -> None:
    """A deferred one would fail at once, later, if another had written meanwhile."""
    async with connected(driver) as c:
        assert driver.transaction(c)._mode == "IMMEDIATE"
        with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            async with driver.transaction(c, mode=mode):
                refused = pytest.raises(sqlite3.OperationalError, match="locked")
                with refused if locked else contextlib.nullcontext():
                    other.execute("INSERT INTO t VALUES (1)")


async def test_transaction_that_cannot_begin_leaves_the_one_around_it(
    driver: Any, path: Path
) -> None:
    """It was begun by hand, and is not this one's to end."""
    async with connected(driver) as c:
        await c.execute("BEGIN")
        await c.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(sqlite3.OperationalError, match="within a transaction"):
            async with driver.transaction(c):
                pass
        await c.commit()
        assert look(path) == 1


async def test_failed_commit_rolls_back_and_raises(driver: Any, path: Path) -> None:
    """A deferred foreign key is checked by the COMMIT, which then leaves the transaction open."""
    async with connected(driver) as c:
        await c.executescript(
            "CREATE TABLE p (id INTEGER PRIMARY KEY);"
            "CREATE TABLE r (p REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
        )
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            async with driver.transaction(c):
                await c.execute("INSERT INTO r VALUES (7)")
        assert not c.in_transaction
        assert look(path, "SELECT count(*) FROM r") == 0


async def test_transaction_that_sqlite_has_rolled_back_does_not_commit_quietly(
    driver: Any, path: Path
) -> None:
    """The block has overlooked the error that ended it: what came before is lost, so it fails."""
    async with connected(driver) as c:
        await c.execute("CREATE UNIQUE INDEX only ON t (x)")
        with pytest.raises(TransactionEnded, match="SQLite has rolled it back: IntegrityError"):
            async with driver.transaction(c):
                await c.execute("INSERT INTO t VALUES (1)")
                with contextlib.suppress(sqlite3.IntegrityError):
                    await c.execute("INSERT OR ROLLBACK INTO t VALUES (1)")
        assert look(path) == 0


async def test_cancelled_transaction_is_rolled_back_by_the_reset(driver: Any, path: Path) -> None:
    """After a cancellation nothing is awaited."""
    async with connected(driver) as c:
        with anyio.CancelScope() as scope:
            async with driver.transaction(c):
                await c.execute("INSERT INTO t VALUES (1)")
                scope.cancel()
                await anyio.sleep_forever()
        assert c.in_transaction
        await driver.reset(c)
        assert not c.in_transaction
        assert look(path) == 0


async def test_transaction_cannot_reach_the_next_lease(driver: Any, path: Path) -> None:
    """A block that ends late neither commits nor rolls back what is somebody else's."""
    async with connected(driver) as c:
        late = driver.transaction(c)
        await late.__aenter__()
        driver.revoke(c)
        await driver.reset(c)
        await c.execute("BEGIN")
        await c.execute("INSERT INTO t VALUES (1)")
        for error in (None, KeyError()):
            with pytest.raises(NotLeased):
                await late.__aexit__(error and KeyError, error, None)
        assert c.in_transaction
        await c.commit()
        assert look(path) == 1


def test_transaction_of_no_known_mode_is_refused(driver: Any) -> None:
    """It would be put into a statement."""
    with pytest.raises(PoolConfigError, match="DEFERRED, IMMEDIATE or EXCLUSIVE"):
        driver.transaction(None, mode="; DROP TABLE t")


# -- under a pool --------------------------------------------------------------------------------


async def test_pool_lends_connections_of_the_library(module: Any, path: Path) -> None:
    """They are clean at every acquire, whatever became of the lease before."""
    gate = Gate()
    async with module.create_pool(path, max_size=1, busy_timeout=1) as pool:
        assert str(path) in repr(pool)
        async with pool.acquire() as c:
            assert isinstance(
                c, module.aiosqlite.Connection if "aio" in module.__name__ else c.__class__
            )
            await gate.install(c)
            cursor = await c.execute("SELECT 1 UNION SELECT 2")
        with pytest.raises(NotLeased):
            await cursor.fetchone()
        async with anyio.create_task_group() as group:

            async def lease() -> None:
                async with pool.transaction() as c:
                    await c.execute(ENDLESS_INSERT)

            group.start_soon(lease)
            await gate.reached()
            group.cancel_scope.cancel()
        with anyio.fail_after(PATIENCE):
            async with pool.transaction() as c:
                await c.execute("INSERT INTO t VALUES (1)")
        assert pool.stats().idle + pool.stats().recycling == 1
    await ended()
    assert look(path) == 1


async def test_pool_keeps_what_on_connect_has_set(module: Any, path: Path) -> None:
    """A row factory set there is there in every lease, not in the first one only."""

    async def on_connect(c: Any) -> None:
        c.row_factory = sqlite3.Row

    async with module.create_pool(path, max_size=1, on_connect=on_connect) as pool:
        for _ in range(3):
            async with pool.acquire() as c:
                (row,) = await c.execute_fetchall("SELECT 1 AS one")
                assert row["one"] == 1
                c.row_factory = None
    await ended()


async def test_pool_resets_only_what_is_not_clean(module: Any, path: Path) -> None:
    """A connection of which a cursor was made is idle at once, unless there is something to undo."""
    async with module.create_pool(path, max_size=1) as pool:
        kept = []
        async with pool.acquire() as c:
            kept += [await c.execute("INSERT INTO t VALUES (1)"), c.execute("SELECT 1")]
            async with c.execute("SELECT x FROM t") as cursor:
                kept.append(cursor)
                assert [row async for row in cursor] == [(1,)]
        assert pool.stats().idle == 1
        async with pool.transaction() as c:
            await c.execute_insert("INSERT INTO t VALUES (2)")
        assert pool.stats().idle == 1
        with pytest.raises(NotLeased):
            await kept[0].execute("SELECT 1")
        with pytest.raises(NotLeased):
            await kept[1]
        async with pool.acquire() as c:
            await c.execute("PRAGMA foreign_keys=OFF")
        assert pool.stats().recycling == 1
        async with pool.acquire() as c:
            assert await value(c, "PRAGMA foreign_keys") == 1
    await ended()


async def test_operation_of_a_clean_lease_that_has_not_begun_is_refused(
    module: Any, path: Path
) -> None:
    """Its connection is somebody else's by the time its turn comes."""

    async def insert(c: Any) -> None:
        with pytest.raises(NotLeased):
            await c.execute("INSERT INTO t VALUES (1)")

    async with module.create_pool(path, max_size=1) as pool:
        async with anyio.create_task_group() as group:
            async with pool.acquire() as c:
                turn = c._raw._run_lock
                await c.execute_fetchall("SELECT 1")
            async with pool.acquire() as c:
                with turn:
                    group.start_soon(insert, c)
                    await anyio.wait_all_tasks_blocked()
                    pool.release(c)
                    assert pool.stats().idle == 1
        async with pool.acquire() as c:
            assert await value(c, "SELECT count(*) FROM t") == 0
    await ended()
