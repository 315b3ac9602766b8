"""The file of a SQLite database, replaced, restored or deleted under open connections."""

from __future__ import annotations

import contextlib
import filecmp
import logging
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import poolkit
from poolkit import ConnectFailed, Options, PoolConfigError, Verdict
from poolkit.drivers import aiosqlite as with_aiosqlite
from poolkit.drivers import sqlite as with_threads
from tests.conftest import BACKENDS
from tests.drivers.sqlite_help import PATIENCE, connected, look

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="a file that is open is neither replaced nor deleted there"
)


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


def make(path: Path, *rows: int) -> Path:
    """Make a database with a table of these rows."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE t (x)")
        db.executemany("INSERT INTO t VALUES (?)", [(x,) for x in rows])
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with one row, 1."""
    return make(tmp_path / "app.db", 1)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A database with one row, 2."""
    return make(tmp_path / "backup.db", 2)


async def content(pool: Any) -> list[int]:
    """Return the rows that the pool sees, when it does nothing any more."""
    async with pool.acquire() as conn:
        rows = [x for (x,) in await conn.execute_fetchall("SELECT x FROM t")]
    await quiet(pool)
    return rows


async def quiet(pool: Any) -> None:
    """Wait until the pool does nothing any more.

    On a busy machine it opens a second connection beside a slow one, and a reset looks at the file,
    too: what has looked before a test replaces it would be handed out afterwards.
    """
    with anyio.fail_after(PATIENCE):
        while (stats := pool.stats()).connecting + stats.recycling + stats.closing:
            await anyio.lowlevel.checkpoint()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the driver has logged as a warning, or worse."""
    records: list[Any] = [r for r in caplog.records if r.levelno >= logging.WARNING]
    return [r.getMessage() for r in records if r.poolkit_event != "outage_began"]


async def recovered(pool: Any, seen: Callable[[Any], Any] = content) -> list[int]:
    """Return what the pool sees when it has tried to connect again."""
    with anyio.fail_after(PATIENCE):
        while True:
            with contextlib.suppress(ConnectFailed):
                rows: list[int] = await seen(pool)
                return rows
            await anyio.lowlevel.checkpoint()


def names(folder: Path) -> list[str]:
    """Return what is in a folder."""
    return [path.name for path in folder.iterdir()]


def exists(path: Path) -> bool:
    """Tell whether there is such a file."""
    return path.exists()


def put(source: Path, path: Path) -> None:
    """Put a copy in the place of a file, as a new file."""
    new = path.with_name("new")
    shutil.copy(source, new)
    new.replace(path)


def keep_inodes(path: Path) -> None:
    """Keep those of a log, or another one might get them."""
    for suffix in ("-wal", "-shm"):
        path.with_name(f"kept{suffix}").hardlink_to(f"{path}{suffix}")


def make_folder(path: Path) -> None:
    """Make a folder."""
    path.mkdir()


def write(path: Path, content: bytes) -> None:
    """Write a file."""
    path.write_bytes(content)


def turn(link: Path, path: Path) -> None:
    """Make a symbolic link, or have it show somewhere else."""
    link.unlink(missing_ok=True)
    link.symlink_to(path)


def remove(path: Path, *suffixes: str) -> None:
    """Remove a file, or those beside it."""
    for suffix in suffixes or ("",):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def pool_on(module: Any, database: Any, **options: Any) -> Any:
    """Return a pool without a log beside the file that pings before each lease."""
    backoff = {"backoff_min": 0.001, "backoff_max": 0.001}
    options = {"journal_mode": "DELETE", "ping_after": 0, "max_size": 3, **backoff, **options}
    return module.create_pool(database, **options)


async def test_relative_path_is_of_the_directory_at_creation(
    module: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the working directory is when a connection is opened."""
    elsewhere = tmp_path / "elsewhere"
    make_folder(elsewhere)
    monkeypatch.chdir(tmp_path)
    pools = [
        module.create_pool(name, max_size=1)
        for name in ("app.db", Path("app.db"), "file:app.db", "file:./app.db?mode=rw")
    ]
    for pool in (*pools, poolkit.Pool(module.from_url("sqlite:///app.db?mode=ro"))):
        monkeypatch.chdir(elsewhere)
        async with pool:
            assert await content(pool) == [1]
            pool.renew()
            assert await content(pool) == [1]
    assert not names(elsewhere)


async def test_replaced_file_is_opened_anew_with_one_warning(
    module: Any, path: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By every connection; nothing more goes into the old one."""
    async with pool_on(module, path, min_size=3) as pool:
        put(other, path)
        async with pool.acquire() as a, pool.acquire() as b, pool.acquire() as c:
            for conn in (a, b, c):
                assert [*await conn.execute_fetchall("SELECT x FROM t")] == [(2,)]
            await a.execute("INSERT INTO t VALUES (3)")
    assert look(path) == 2
    (warning,) = warnings(caplog)
    assert "was replaced under open connections" in warning
    assert str(path) in warning


async def test_deleted_file_is_not_made_again(module: Any, path: Path, other: Path) -> None:
    """Acquiring fails at once, until there is a file again."""
    away = path.with_name("away.db")
    for database in (path, f"file:{path}?mode=rwc", f"file:{path}?mode=rw"):
        async with pool_on(module, database) as pool:
            assert await content(pool) == [1]
            put(path, away)
            remove(path)
            for _ in range(2):
                with pytest.raises(
                    ConnectFailed, match=r"app.db['\"] does not exist any more"
                ) as info:
                    await content(pool)
                assert isinstance(info.value.__cause__, sqlite3.OperationalError)
                assert not exists(path)
            put(away, path)
            assert await recovered(pool) == [1]
            remove(path)
            put(other, path)
            assert await recovered(pool) == [2]
            put(away, path)


async def test_file_is_made_by_the_first_connection_of_an_opened_pool(
    module: Any, tmp_path: Path
) -> None:
    """Deleted while the pool was closed it is made again, unless the mode says otherwise."""
    path = tmp_path / "new.db"
    pool = pool_on(module, path)
    for _ in range(2):
        async with pool:
            assert exists(path)
        remove(path)
    for mode in ("ro", "rw"):
        with pytest.raises(ConnectFailed, match="does not exist"):
            async with pool_on(module, f"file:{path}?mode={mode}"):
                pass
        assert not exists(path)
    async with pool_on(module, f"file:{path}?mode=rwc"):
        assert exists(path)


async def test_file_beside_which_the_old_log_lies_is_not_opened(
    module: Any, path: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new connection would read that log into it."""
    async with pool_on(module, path, journal_mode="WAL", min_size=2) as pool:
        async with pool.acquire() as conn:
            await conn.execute("INSERT INTO t VALUES (1)")
        await quiet(pool)
        put(other, path)
        for _ in range(2):
            with pytest.raises(ConnectFailed, match=r"left '.*app.db-wal' .*stop the pool first"):
                await content(pool)
        assert filecmp.cmp(path, other, shallow=False)
        assert not warnings(caplog)
        remove(path, "-wal", "-shm")
        assert await recovered(pool) == [2]
    assert len(warnings(caplog)) == 1
    assert look(path) == 1


async def test_file_beside_which_a_journal_of_the_old_one_lies_is_not_opened(
    module: Any, path: Path, other: Path
) -> None:
    """It would be rolled back into the new one; one that is done with does no harm."""
    journal = Path(f"{path}-journal")
    async with pool_on(module, path) as pool:
        put(other, path)
        write(journal, b"\xd9\xd5\x05\xf9 and so on")
        with pytest.raises(ConnectFailed, match=r"left '.*app.db-journal' beside"):
            await content(pool)
        write(journal, bytes(8))
        assert await recovered(pool) == [2]


async def test_file_that_comes_with_a_log_of_its_own_is_opened(
    module: Any, path: Path, tmp_path: Path
) -> None:
    """A copy of both, as some back-ups are."""
    source = make(tmp_path / "source.db")
    with contextlib.closing(sqlite3.connect(source, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("INSERT INTO t VALUES (7)")
        async with pool_on(module, path, journal_mode="WAL") as pool:
            await content(pool)
            await content(pool)  # its ping has seen the log
            remove(path, "-shm")
            put(Path(f"{source}-wal"), Path(f"{path}-wal"))
            put(source, path)
            assert await content(pool) == [7]


@pytest.mark.parametrize("during", [False, True])
async def test_log_that_was_made_anew_is_known_for_the_old_one(
    module: Any, path: Path, other: Path, during: bool
) -> None:
    """By a lease that has changed the journal mode and back."""
    async with pool_on(module, path, journal_mode="WAL", max_size=1) as pool:
        for _ in range(2):
            await content(pool)
        with contextlib.closing(sqlite3.connect(path)) as keeps:  # or the pool deletes the log
            async with pool.acquire() as conn:
                keep_inodes(path)
                for sql in ("PRAGMA journal_mode=DELETE", "PRAGMA journal_mode=WAL"):
                    await conn.execute_fetchall(sql)
                await conn.execute("INSERT INTO t VALUES (1)")
                keeps.execute("SELECT * FROM t").fetchall()
                if during:
                    put(other, path)
            if not during:
                await quiet(pool)
                put(other, path)
            for _ in range(2):
                with pytest.raises(ConnectFailed, match=r"-wal'.* stop the pool"):
                    await content(pool)
            assert filecmp.cmp(path, other, shallow=False)


async def test_log_that_others_have_made_anew_is_known_for_the_old_one(
    module: Any, path: Path, other: Path
) -> None:
    """While no connection was open."""
    driver = pool_on(module, path, journal_mode="WAL")._driver
    async with connected(driver) as c:
        await c.execute("SELECT * FROM t")
        await driver.ping(c)
        keep_inodes(path)
        await driver.close(c)
    assert not exists(Path(f"{path}-wal"))
    with contextlib.closing(sqlite3.connect(path)) as keeps:
        keeps.execute("SELECT * FROM t").fetchall()
        put(other, path)
        with pytest.raises(sqlite3.OperationalError, match=r"-wal'.* stop the pool"):
            await driver.connect()
    assert filecmp.cmp(path, other, shallow=False)


@pytest.mark.parametrize("of_folder", [False, True])
async def test_symbolic_link_that_is_turned_is_a_replaced_file(
    module: Any, path: Path, tmp_path: Path, of_folder: bool
) -> None:
    """The log of the old file stays beside that one, and harms nobody; the new one has its own."""
    make_folder(tmp_path / "next")
    other = make(tmp_path / "next" / path.name, 2)
    link = tmp_path / "current"
    turn(link, tmp_path if of_folder else path)
    with contextlib.closing(sqlite3.connect(other, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("INSERT INTO t VALUES (3)")
        database = link / path.name if of_folder else link
        async with pool_on(module, database, journal_mode="WAL") as pool:
            assert await content(pool) == [1]
            turn(link, tmp_path / "next" if of_folder else other)
            assert await content(pool) == [2, 3]


async def test_file_that_cannot_be_looked_at_is_not_taken_for_another_one(
    module: Any, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is open goes on; the advice to delete what lies beside it would destroy the log."""
    folder = tmp_path / "current"
    turn(folder, tmp_path)
    async with pool_on(module, folder / path.name, journal_mode="WAL") as pool:
        for _ in range(2):
            assert await content(pool) == [1]
        turn(folder, folder)
        assert await content(pool) == [1]
        assert pool.stats().connected == 1
        pool.renew()
        with pytest.raises(ConnectFailed) as info:
            await content(pool)
        assert "replaced" not in str(info.value)
        turn(folder, tmp_path)
        assert await recovered(pool) == [1]
    assert not warnings(caplog)


async def test_attached_file_is_looked_after_too(
    module: Any, path: Path, other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that ``on_connect`` attaches; what a lease attaches ends with it."""
    attached = make(tmp_path / "second.db", 7)

    async def on_connect(conn: Any) -> None:
        await conn.execute("ATTACH ? AS second", (str(attached),))

    async def seen(pool: Any) -> Any:
        async with pool.acquire() as conn:
            rows = [x for (x,) in await conn.execute_fetchall("SELECT x FROM second.t")]
        await quiet(pool)
        return rows

    async with pool_on(module, path, on_connect=on_connect, max_size=1) as pool:
        put(make(tmp_path / "next.db", 7), attached)
        remove(tmp_path / "next.db")
        for _ in range(2):  # the first lease is reset, for what `on_connect` has done
            assert await seen(pool) == [7]
        caplog.clear()
        put(other, attached)
        for _ in range(2):
            assert await seen(pool) == [2]
        assert len(warnings(caplog)) == 1
        put(path, attached)
        write(Path(f"{attached}-journal"), b"\xd9\xd5\x05\xf9 and so on")
        with pytest.raises(ConnectFailed, match=r"second.db' was replaced .*-journal"):
            await seen(pool)
        remove(attached, "-journal")
        assert await recovered(pool, seen) == [1]
        connected = pool.stats().connected
        async with pool.acquire() as conn:
            await conn.executescript(f"ATTACH '{other}' AS mine")
        remove(other)
        assert await seen(pool) == [1]
        assert pool.stats().connected == connected


async def test_file_that_is_attached_for_a_while_may_be_deleted_then(
    module: Any, path: Path, tmp_path: Path
) -> None:
    """In a lease and in ``on_connect``, by statements and by scripts."""
    scratch = tmp_path / "scratch.db"

    async def export(conn: Any) -> None:
        for script in (True, False):
            for sql in (f"ATTACH '{scratch}' AS s", "CREATE TABLE s.t (x)", "DETACH s"):
                await (conn.executescript if script else conn.execute)(sql)
            remove(scratch)

    async with pool_on(module, path, on_connect=export, max_size=1) as pool:
        pool._driver._file.interval = 0.0
        for _ in range(2):
            async with pool.acquire() as conn:
                await export(conn)
                await conn.execute("ATTACH ? AS s", (str(scratch),))
                await conn.execute("CREATE TABLE s.t (x)")
                remove(scratch)
            assert await content(pool) == [1]
        assert pool.stats().connected == 1


async def test_connection_in_constant_use_is_looked_after_too(
    module: Any, path: Path, other: Path
) -> None:
    """It is never idle for long enough to be pinged: its reset looks, every now and then."""
    pool = module.create_pool(path, max_size=1, journal_mode="DELETE", ping_after=1e-9)
    driver = pool._driver
    assert driver._file.interval == 1.0
    driver._file.interval = 0.0
    async with connected(driver) as c:
        assert not driver.is_clean(c)
        await driver.reset(c)
        put(other, path)
        with pytest.raises(sqlite3.OperationalError, match="was replaced") as info:
            await driver.reset(c)
        assert driver.classify(info.value, c) is Verdict.SERVER_GONE
        driver._file.interval = 60.0
    async with connected(driver) as c:
        await c.execute("INSERT INTO t VALUES (1)")
        assert driver.is_clean(c)
    driver.check_options(Options(ping_after=None))
    assert driver._file.interval == float("inf")


@pytest.mark.parametrize(
    "database", [":memory:", "", "file::memory:", "file:/look?vfs=memdb", "file:x?mode=memory"]
)
async def test_memory_database_has_no_file_to_look_at(
    module: Any, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is spelled."""
    monkeypatch.chdir(tmp_path)
    async with pool_on(module, database, max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TABLE IF NOT EXISTS t (x)")
        assert await content(pool) == []
    assert not names(tmp_path)


def test_uri_that_names_a_host_is_refused(module: Any, path: Path) -> None:
    """SQLite would refuse it when it is opened."""
    for query in ("", "?mode=ro", "?vfs=memdb"):
        with pytest.raises(PoolConfigError, match="names the host 'elsewhere'") as info:
            module.create_pool(f"file://me:secret@elsewhere{path}{query}")
        assert "secret" not in str(info.value)
    for host in ("", "localhost"):
        assert module.create_pool(f"file://{host}{path}")._driver._file.path == str(path)


async def test_name_of_a_file_may_have_anything_in_it(module: Any, tmp_path: Path) -> None:
    """Also when it is opened again, by a URI that does not create it."""
    path = tmp_path / "a b?c#d%41&mode=memory é.db"
    async with pool_on(module, path) as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TABLE t (x)")
        pool.renew()
        assert await content(pool) == []
    assert names(tmp_path) == [path.name]


async def test_name_of_a_file_cannot_forge_a_line_of_the_log(
    module: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is shown as Python would write it."""
    path = make(tmp_path / "a\nERROR b.db", 1)
    async with pool_on(module, path) as pool:
        put(make(tmp_path / "new.db", 2), path)
        assert await content(pool) == [2]
        assert "\n" not in warnings(caplog)[0]
        remove(path)
        with pytest.raises(ConnectFailed) as info:
            await content(pool)
        assert "\n" not in str(info.value.__cause__)
