"""SQLite's libraries as agents leave them: wrapped, or without what nobody has documented."""

from __future__ import annotations

import functools
import importlib
import sqlite3
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiosqlite
import anyio
import pytest
import typing_extensions
import wrapt

import poolkit
from poolkit.drivers.aiosqlite._internals import class_of, sqlite_of
from poolkit.drivers.sqlite import _wrapped as _sqlite_wrapped
from tests.forked import Forking, forking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

SCHEMES = ["sqlite+aiosqlite", "sqlite+threads"]

#: Members of aiosqlite's classes; all that its version has is taken away in the test after.
UNDOCUMENTED = [
    *((aiosqlite.Connection, name) for name in ("_conn", "_connect", "_execute", "__init__")),
    *((aiosqlite.Connection, f"_execute_{name}") for name in ("insert", "fetchall")),
    *((aiosqlite.Cursor, name) for name in ("_execute", "_fetch_chunked", "__init__")),
]


@pytest.fixture
def anyio_backend() -> Any:
    """Run on asyncio: the loop makes no difference."""
    return ("asyncio", {"use_uvloop": False})


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everything said once more."""
    monkeypatch.setattr(_sqlite_wrapped, "_told", type(_sqlite_wrapped._told)())


async def use(url: str) -> None:
    """Use a pool of one connection; a lease leaves all it can, and the next one finds nothing."""
    async with poolkit.create_pool(url, max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TABLE IF NOT EXISTS t (x)")
            await conn.execute("DELETE FROM t")
            assert await conn.execute_insert("INSERT INTO t VALUES (1)") == (1,)
            async with await conn.executemany("INSERT INTO t VALUES (?)", [(2,), (3,)]) as cursor:
                assert cursor.rowcount == 2
            await conn.execute("CREATE TEMP TABLE secret (x)")
            await conn.create_function("secret", 0, lambda: 1)
            kept = await conn.execute("SELECT x FROM t ORDER BY x")
            assert await kept.fetchone() == (1,)
            rows = aiter(kept)
            assert await anext(rows) == (2,)
            begun = conn.cursor()
            await conn.execute("BEGIN")
            await conn.execute("DELETE FROM t")
        async with pool.acquire() as conn:
            assert [*await conn.execute_fetchall("SELECT x FROM t ORDER BY x")] == [
                (1,),
                (2,),
                (3,),
            ]
            assert not conn.in_transaction
            for of_before in (begun, anext(rows), kept.fetchone()):
                with pytest.raises(poolkit.NotLeased):
                    await of_before
            for secret in ("SELECT secret()", "SELECT * FROM secret"):
                with pytest.raises(sqlite3.OperationalError, match="no such"):
                    await conn.execute(secret)
        with pytest.raises(RuntimeError, match="undone"):
            async with pool.transaction() as conn:
                await conn.execute("DELETE FROM t")
                raise RuntimeError("undone")
        async with pool.acquire() as conn:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await conn.execute_fetchall("SELECT 1")
        async with pool.acquire() as conn:
            assert [*await conn.execute_fetchall("SELECT count(*) FROM t")] == [(3,)]
        assert pool.stats().connected == 1


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said of wrapped functions."""
    return [r.getMessage() for r in caplog.records if "has replaced" in r.getMessage()]


# -- what is undocumented ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), UNDOCUMENTED, ids=lambda it: getattr(it, "__name__", it))
async def test_connection_works_without_what_is_undocumented(
    kind: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The library may rename any of it: poolkit's own connections do without."""
    monkeypatch.delattr(kind, name, raising=False)
    await use(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    assert said(caplog) == []


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Forking]:
    """Return an interpreter that has imported the libraries, and not poolkit."""
    modules = ("aiosqlite", "pytest", "wrapt", "opentelemetry.instrumentation.sqlite3")
    with forking(*modules, options=["-W", "error::ResourceWarning"]) as interpreter:
        yield interpreter


@pytest.fixture
def run(interpreter: Forking, tmp_path: Path) -> Callable[..., str]:
    """Return what runs a script in a process of its own, which it may spoil; what it prints."""

    def run(script: str, *args: str) -> str:
        text = textwrap.dedent(script)
        done = interpreter.run_text(tmp_path, text, *args, paths=[ROOT / "src", ROOT])
        assert done.returncode == 0, done.err
        return done.out

    return run


def test_driver_is_imported_without_what_is_undocumented(
    run: Callable[..., str], tmp_path: Path
) -> None:
    """Nothing is asked for when the modules are loaded, either."""
    script = """
        import asyncio, sys, types
        import aiosqlite, aiosqlite.context, aiosqlite.core, aiosqlite.cursor
        for kind in (aiosqlite.Connection, aiosqlite.Cursor):
            for name in [*vars(kind)]:
                if name not in ("__module__", "__doc__", "__dict__", "__weakref__"):
                    delattr(kind, name)
        for module in ("context", "core", "cursor"):
            sys.modules[f"aiosqlite.{module}"] = None
        from tests.drivers.test_sqlite_wrapped import use
        asyncio.run(use(f"sqlite+aiosqlite:///{sys.argv[1]}"))
    """
    run(script, str(tmp_path / "app.db"))


# -- wrapped by agents ---------------------------------------------------------------------------


class Proxy(wrapt.ObjectProxy):  # type: ignore[misc,type-arg, unused-ignore]
    """What agents put around connections: cursors come out of it wrapped, too."""

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor in a proxy."""
        return wrapt.ObjectProxy(self.__wrapped__.cursor(*args, **kwargs))

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute on such a cursor."""
        return self.cursor().execute(*args, **kwargs)


def returning_proxies(connect: Callable[..., Any]) -> Callable[..., Any]:
    """Return a connect function that returns proxies."""

    @functools.wraps(connect)
    def connect_with_proxy(*args: Any, **kwargs: Any) -> Any:
        return Proxy(connect(*args, **kwargs))

    return connect_with_proxy


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_connection_works_where_connect_returns_proxies(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """One warning says who does not see it, however many pools there are."""
    for module in (sqlite3, sqlite3.dbapi2):
        monkeypatch.setattr(module, "connect", returning_proxies(module.connect))
    await use(f"{scheme}:///{tmp_path}/app.db")
    await use(f"{scheme}:///{tmp_path}/other.db")
    (warning,) = said(caplog)
    assert "'tests.drivers.test_sqlite_wrapped' has replaced sqlite3.connect()" in warning


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_memory_database_is_kept_where_connect_returns_proxies(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a connection of the driver's own, which it opens past the proxies, too."""
    monkeypatch.setattr(sqlite3, "connect", returning_proxies(sqlite3.connect))
    async with poolkit.create_pool(f"{scheme}://", max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TABLE t (x)")
        pool.renew()
        async with pool.acquire() as conn:
            assert [*await conn.execute_fetchall("SELECT * FROM t")] == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_connection_works_with_opentelemetry(
    run: Callable[..., str], scheme: str, tmp_path: Path
) -> None:
    """Its instrumentation of sqlite3; it is named in the one warning."""
    script = """
        import asyncio, logging, sys
        from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor

        SQLite3Instrumentor().instrument()
        logging.basicConfig(stream=sys.stdout, level=logging.WARNING)
        from tests.drivers.test_sqlite_wrapped import use
        asyncio.run(use(f"{sys.argv[1]}:///{sys.argv[2]}"))
        asyncio.run(use(f"{sys.argv[1]}:///{sys.argv[2]}"))
    """
    output = run(script, scheme, str(tmp_path / "app.db"))
    (warning,) = [line for line in output.splitlines() if "has replaced" in line]
    assert "opentelemetry" in warning
    assert "sqlite3.connect()" in warning


async def test_methods_of_the_library_that_were_replaced_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """All that one agent has wrapped in one warning; it goes on seeing other connections."""
    seen: list[str] = []

    def trace(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        seen.append(args[0])
        return wrapped(*args, **kwargs)

    for kind in (aiosqlite.Connection, aiosqlite.Cursor):
        monkeypatch.setattr(kind, "execute", wrapt.FunctionWrapper(kind.execute, trace))
    await use(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    (warning,) = said(caplog)
    assert "aiosqlite.Connection.execute(), aiosqlite.Cursor.execute()" in warning
    assert seen == []
    async with aiosqlite.connect(tmp_path / "app.db") as plain:
        await plain.execute("SELECT 1")
    assert seen == ["SELECT 1"]


async def test_nothing_is_said_of_libraries_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Nor of a method that the library itself has declared deprecated."""
    deprecated = typing_extensions.deprecated("use another one")(aiosqlite.Connection.iterdump)
    monkeypatch.setattr(aiosqlite.Connection, "iterdump", deprecated)
    for scheme in SCHEMES:
        await use(f"{scheme}:///{tmp_path}/app.db")
    assert said(caplog) == []


# -- the classes ---------------------------------------------------------------------------------


def test_class_is_found_inside_of_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever agents put around it; connections are of the class."""
    monkeypatch.setattr(aiosqlite, "Connection", wrapt.ObjectProxy(aiosqlite.Connection))
    assert class_of(aiosqlite, "Connection") is aiosqlite.Connection.__wrapped__  # type: ignore[attr-defined]


@pytest.mark.parametrize("stand_in", [None, lambda: None, 7])
def test_class_that_is_missing_is_named(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version of the library; without it there is no connection to be made."""
    monkeypatch.setattr(aiosqlite, "Cursor", stand_in)
    for module in ("aiosqlite", "aiosqlite._connection"):
        monkeypatch.delitem(sys.modules, f"poolkit.drivers.{module}")
    with pytest.raises(
        poolkit.PoolConfigError, match=rf"aiosqlite {aiosqlite.__version__}.*Cursor"
    ):
        importlib.import_module("poolkit.drivers.aiosqlite")


async def test_backup_finds_the_connection_inside_of_its_target(tmp_path: Path) -> None:
    """Of the library's own, of sqlite3's, and of proxies around those."""
    async with poolkit.create_pool(f"sqlite:///{tmp_path}/app.db", max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TABLE t (x)")
            ways: list[Any] = [sqlite3.connect, returning_proxies(sqlite3.connect)]
            for number, connect in enumerate(ways):
                target = connect(tmp_path / f"{number}.db", check_same_thread=False)
                await conn.backup(target)
                assert [*sqlite_of(target).execute("SELECT * FROM t")] == []
                target.close()
            async with aiosqlite.connect(tmp_path / "2.db", check_same_thread=False) as plain:
                await conn.backup(plain)
                assert [*await plain.execute_fetchall("SELECT * FROM t")] == []
            with pytest.raises(TypeError, match="'int' object is neither"):
                await conn.backup(7)
