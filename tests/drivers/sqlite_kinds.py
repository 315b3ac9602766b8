"""The kinds of state that a lease can leave on a connection of SQLite's, and how to see each.

Each is left and seen by functions that are called with SQLite's own connection, in its thread.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sqlite3
from collections.abc import Callable
from typing import Any, NamedTuple

#: What was told to somebody who should not hear it.
HEARD: list[Any] = []


class Kind(NamedTuple):
    """One kind of state."""

    name: str
    #: A statement, or a function; one that is to be awaited is given the handle.
    leave: str | Callable[[Any], object]
    #: Whether it is there: a statement whose first value is true, or a function.
    seen: str | Callable[[Any], object]
    #: How it is undone.
    how: str = "set back"
    #: Whether this version of Python, or its SQLite, can do it.
    possible: bool = True


async def leave(c: Any, kind: Kind) -> None:
    """Leave a kind of state, by a handle."""
    if isinstance(kind.leave, str):
        async with c.execute(kind.leave):
            pass
    elif inspect.iscoroutinefunction(kind.leave):
        await kind.leave(c)
    else:
        await in_thread(c, kind.leave)


async def in_thread(c: Any, function: str | Callable[[Any], Any]) -> Any:
    """Do something on SQLite's own connection: the handle lets whoever wants to get at it."""
    raw = c._raw
    if isinstance(function, str):
        sql = function
        return await c._within(raw.lease, lambda: _first(raw, sql))
    return await c._within(raw.lease, functools.partial(function, raw))


def _first(raw: Any, sql: str) -> Any:
    cursor = raw.cursor()
    cursor.row_factory = None
    row = cursor.execute(sql).fetchone()
    cursor.close()
    return row and row[0]


def works(raw: Any, sql: str) -> bool:
    """Tell whether a statement is possible."""
    try:
        _first(raw, sql)
    except sqlite3.Error:
        return False
    return True


def fails(sql: str) -> Callable[[Any], bool]:
    """Return a function that tells whether a statement is not possible."""
    return lambda raw: not works(raw, sql)


def succeeds(sql: str) -> Callable[[Any], bool]:
    """Return a function that tells whether a statement is possible."""
    return lambda raw: works(raw, sql)


def _heard(raw: Any) -> bool:
    HEARD.clear()
    _first(raw, "SELECT 1 UNION SELECT 2")
    return bool(HEARD)


class _Sum:
    """Any aggregate."""

    def step(self, *_: object) -> None:
        """Ignore a row."""

    inverse = step

    def finalize(self) -> int:
        """Return the result."""
        return 1

    value = finalize


def _hear(*what: Any) -> int:
    HEARD.append(what)
    return 0


async def _read_half(c: Any) -> None:
    cursor = await c.execute("SELECT x FROM many")
    await cursor.fetchone()
    HEARD.append(cursor)


def _deserialize(raw: Any) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as other:
        other.execute("CREATE TABLE secret (x)")
        raw.deserialize(other.serialize())


def _pragma(name: str, value: object) -> Kind:
    return Kind(f"`PRAGMA {name}`", f"PRAGMA {name}={value}", _reads(name, value))


def _reads(name: str, value: object) -> Callable[[Any], bool]:
    return lambda raw: _first(raw, f"PRAGMA {name}") == value


_REPLACED = "not at all: the connection is replaced"
_NUMBER = "not at all: a number is left"

KINDS: list[Kind] = [
    Kind("trace callback", lambda raw: raw.set_trace_callback(_hear), _heard, "taken away"),
    Kind("authorizer", lambda raw: raw.set_authorizer(_hear), _heard, "taken away"),
    Kind("progress handler", lambda raw: raw.set_progress_handler(_hear, 1), _heard, "taken away"),
    Kind(
        "function",
        lambda raw: raw.create_function("f", 1, str),
        succeeds("SELECT f(1)"),
        "taken away",
    ),
    Kind(
        "function in place of one of SQLite's own",
        lambda raw: raw.create_function("upper", 1, lambda _: "mine"),
        "SELECT upper('x') = 'mine'",
        _REPLACED,
    ),
    Kind(
        "aggregate",
        lambda raw: raw.create_aggregate("mysum", 1, _Sum),
        succeeds("SELECT mysum(1)"),
        "taken away",
    ),
    Kind(
        "window function",
        lambda raw: raw.create_window_function("mywindow", 1, _Sum),
        succeeds("SELECT mywindow(1) OVER ()"),
        "taken away",
    ),
    Kind(
        "collation",
        lambda raw: raw.create_collation("mine", lambda *_: 0),
        succeeds("SELECT 'a' = 'b' COLLATE mine"),
        "taken away",
    ),
    Kind(
        "collation in place of one of SQLite's own",
        lambda raw: raw.create_collation("NOCASE", lambda *_: 0),
        "SELECT 'a' = 'b' COLLATE NOCASE",
        _REPLACED,
    ),
    Kind(
        "`row_factory`",
        lambda raw: setattr(raw, "row_factory", sqlite3.Row),
        lambda raw: raw.row_factory is sqlite3.Row,
    ),
    Kind(
        "`text_factory`",
        lambda raw: setattr(raw, "text_factory", bytes),
        lambda raw: raw.text_factory is bytes,
    ),
    Kind(
        "`isolation_level`",
        lambda raw: setattr(raw, "isolation_level", "IMMEDIATE"),
        lambda raw: raw.isolation_level is not None,
    ),
    Kind(
        "`autocommit`",
        lambda raw: setattr(raw, "autocommit", True),
        lambda raw: raw.autocommit is True,
        possible=hasattr(sqlite3.Connection, "autocommit"),
    ),
    Kind(
        "`setlimit()`",
        lambda raw: raw.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 500),
        lambda raw: raw.getlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH) == 500,
    ),
    Kind(
        "`setconfig()`",
        lambda raw: raw.setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DML, False),  # type: ignore[attr-defined,unused-ignore]
        lambda raw: not raw.getconfig(sqlite3.SQLITE_DBCONFIG_DQS_DML),  # type: ignore[attr-defined,unused-ignore]
        possible=hasattr(sqlite3.Connection, "setconfig"),
    ),
    Kind(
        "leave to load extensions",
        lambda raw: raw.enable_load_extension(True),
        lambda raw: not _is_not_authorized(raw),
        possible=hasattr(sqlite3.Connection, "enable_load_extension"),
    ),
    Kind(
        "`deserialize()`",
        _deserialize,
        "SELECT count(*) FROM main.sqlite_master WHERE name = 'secret'",
        _REPLACED,
    ),
    Kind(
        "attached database",
        "ATTACH ':memory:' AS mine",
        "SELECT count(*) FROM pragma_database_list WHERE name = 'mine'",
        "detached",
    ),
    Kind(
        "database of `on_connect` detached",
        "DETACH base",
        "SELECT count(*) = 0 FROM pragma_database_list WHERE name = 'base'",
        _REPLACED,
    ),
    Kind(
        "temporary table in front of a real one",
        "CREATE TEMP TABLE t (x)",
        "SELECT count(*) FROM temp.sqlite_master WHERE name = 't'",
        "dropped",
    ),
    Kind(
        "temporary view in front of a table",
        "CREATE TEMP VIEW t AS SELECT 1 AS x",
        "SELECT count(*) FROM temp.sqlite_master WHERE name = 't'",
        "dropped",
    ),
    Kind(
        "temporary trigger on a table",
        "CREATE TEMP TRIGGER tr AFTER INSERT ON t BEGIN DELETE FROM t; END",
        "SELECT count(*) FROM temp.sqlite_master WHERE name = 'tr'",
        "dropped",
    ),
    Kind(
        "rows in a temporary table of `on_connect`",
        "INSERT INTO temp.own VALUES ('secret')",
        "SELECT count(*) FROM temp.own",
        _REPLACED,
    ),
    Kind(
        "rows in a `:memory:` database that `on_connect` has attached",
        "INSERT INTO base.cache VALUES ('secret')",
        "SELECT count(*) FROM base.cache",
        _REPLACED,
    ),
    Kind(
        "table in a `:memory:` database that `on_connect` has attached",
        "CREATE TABLE base.mine AS SELECT 'secret' AS x",
        "SELECT count(*) FROM base.sqlite_master WHERE name = 'mine'",
        "dropped",
    ),
    Kind(
        "`PRAGMA user_version` of a `:memory:` database that `on_connect` has attached",
        "PRAGMA base.user_version=4242",
        "PRAGMA base.user_version",
    ),
    _pragma("query_only", 1),
    _pragma("foreign_keys", 0),
    _pragma("ignore_check_constraints", 1),
    _pragma("defer_foreign_keys", 1),
    _pragma("recursive_triggers", 1),
    _pragma("writable_schema", 1),
    _pragma("trusted_schema", 0),
    _pragma("read_uncommitted", 1),
    _pragma("reverse_unordered_selects", 1),
    Kind(
        "`PRAGMA case_sensitive_like`",
        "PRAGMA case_sensitive_like=1",
        "SELECT NOT 'a' LIKE 'A'",
    ),
    _pragma("busy_timeout", 7),
    _pragma("synchronous", 0),
    _pragma("cache_size", 77),
    _pragma("temp_store", 2)._replace(
        how="set back; if SQLite has dropped tables of `on_connect`, the connection is replaced"
    ),
    Kind(
        "`PRAGMA temp.journal_mode`",
        "PRAGMA temp.journal_mode=off",
        lambda raw: _first(raw, "PRAGMA temp.journal_mode") == "off",
    ),
    Kind(
        "`PRAGMA temp.max_page_count`",
        "PRAGMA temp.max_page_count=3",
        lambda raw: _first(raw, "PRAGMA temp.max_page_count") == 3,
    ),
    _pragma("wal_autocheckpoint", 77),
    _pragma("locking_mode", "exclusive"),
    _pragma("journal_mode", "persist"),
    Kind(
        "open transaction",
        "BEGIN IMMEDIATE",
        lambda raw: raw.in_transaction,
        "rolled back, and logged",
    ),
    Kind("savepoint", "SAVEPOINT mine", lambda raw: raw.in_transaction, "rolled back, and logged"),
    Kind(
        "open blob",
        lambda raw: HEARD.append(_blob(raw)),
        lambda _: _is_readable(HEARD[-1]),
        "closed",
    ),
    Kind(
        "half-read cursor",
        _read_half,
        lambda _: _is_half_read(HEARD[-1]._cursor),
        "closed, and logged",
    ),
    Kind(
        "`total_changes`, `changes()`",
        "INSERT INTO t VALUES (1)",
        "SELECT total_changes() > 0",
        _NUMBER,
    ),
    Kind(
        "`last_insert_rowid()`",
        "INSERT INTO t VALUES (1)",
        "SELECT last_insert_rowid() > 0",
        "set back to 0, when a statement asks",
    ),
]


def _blob(raw: Any) -> Any:
    rowid = raw.execute("SELECT rowid FROM blobs").fetchone()[0]
    return raw.blobopen("blobs", "x", rowid, readonly=True)


def _is_readable(blob: Any) -> bool:
    try:
        blob.read()
    except sqlite3.Error:
        return False
    return True


def _is_half_read(cursor: Any) -> bool:
    try:
        return cursor.fetchone() is not None
    except sqlite3.Error:
        return False


def _is_not_authorized(raw: Any) -> bool:
    try:
        _first(raw, "SELECT load_extension('nothing')")
    except sqlite3.OperationalError as error:
        return "not authorized" in str(error)
    return False


async def set_up(c: Any) -> None:
    """Do what ``on_connect`` might: what it has set has to stay."""

    def make(raw: Any) -> None:
        for sql in (
            "CREATE TEMP TABLE own (x)",
            "ATTACH ':memory:' AS base",
            "CREATE TABLE base.cache (x)",
            "PRAGMA cell_size_check=1",
        ):
            raw.execute(sql)
        raw.create_function("base", 0, lambda: 7)

    await in_thread(c, make)


def is_set_up(raw: Any) -> bool:
    """Tell whether what ``on_connect`` has set is there."""
    return bool(
        _first(raw, "SELECT count(*) FROM temp.own") is not None
        and works(raw, "SELECT count(*) FROM base.sqlite_master")
        and _first(raw, "PRAGMA cell_size_check") == 1
        and _first(raw, "SELECT base()") == 7
    )
