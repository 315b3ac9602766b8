"""What SQLite tells of a connection: its settings, its databases, its temporary objects."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

#: Executes a statement, with parameters perhaps, and returns its rows, as tuples.
Rows = Callable[..., list[Any]]

#: Settings of the connection that can be read.
_PRAGMAS: Final = (
    *("analysis_limit", "automatic_index", "cell_size_check", "checkpoint_fullfsync"),
    *("count_changes", "defer_foreign_keys", "empty_result_callbacks", "foreign_keys"),
    *("full_column_names", "fullfsync", "ignore_check_constraints"),
    *("legacy_alter_table", "locking_mode", "query_only", "read_uncommitted"),
    *("recursive_triggers", "reverse_unordered_selects", "short_column_names", "temp_store"),
    *("threads", "trusted_schema", "wal_autocheckpoint", "writable_schema"),
)
#: Settings of each database of a connection.
_SCHEMA_PRAGMAS: Final = (
    *("cache_size", "cache_spill", "journal_mode", "journal_size_limit", "locking_mode"),
    *("max_page_count", "mmap_size", "secure_delete", "synchronous"),
)
#: Settings of the temporary database that change by themselves when it is first written to.
_CHANGING_PRAGMAS: Final = ("cache_spill", "mmap_size")
#: Settings that are kept in the database itself: data, unless no other connection sees them.
_DATA_PRAGMAS: Final = ("application_id", "user_version")
#: Milliseconds to wait for a lock of a connection that writes or checkpoints. Not more, because
#: SQLite's wait cannot be interrupted.
WAIT: Final = 50
#: What `PRAGMA secure_delete` returns for FAST.
_FAST: Final = 2


class Object(NamedTuple):
    """A table, view, index or trigger."""

    schema: str
    kind: str
    name: str
    #: The statement; "" for an index that belongs to its table.
    sql: str


class Facts(NamedTuple):
    """What SQLite tells of a connection."""

    #: By the name of the database, or "" for the connection, and the name of the setting.
    settings: dict[tuple[str, str], Any]
    #: The files of the databases by their names; "" for a memory database.
    databases: dict[str, str]
    #: Tables, views, indices and triggers that no other connection sees.
    objects: frozenset[Object]
    #: Digests of the rows of these tables, by database and table.
    private: dict[tuple[str, str], bytes]


def read_facts(rows: Rows, shared: Collection[str], then: Facts | None) -> Facts:
    """Ask SQLite what a connection is like.

    ``shared``: the names of memory databases that other connections see. In databases that no other
    connection sees the rows of all tables are read, or of those that are in ``then``. Raises
    `sqlite3.OperationalError` rather than wait long for a lock.
    """
    patience = _ask(rows, "busy_timeout")
    rows(f"PRAGMA busy_timeout={WAIT}")
    try:
        facts = _read_facts(rows, shared, then)
    finally:
        rows(f"PRAGMA busy_timeout={patience}")
    facts.settings["", "busy_timeout"] = patience
    return facts


def _read_facts(rows: Rows, shared: Collection[str], then: Facts | None) -> Facts:
    databases = {name: file or "" for _, name, file in rows("PRAGMA database_list")}
    databases.pop("temp", None)
    settings: dict[tuple[str, str], Any] = {("", name): _ask(rows, name) for name in _PRAGMAS}
    for schema in ("temp", *databases):
        for name in _SCHEMA_PRAGMAS:
            if schema == "temp" and name in _CHANGING_PRAGMAS:
                continue
            settings[schema, name] = _ask(rows, f"{_quoted(schema)}.{name}")
    # case_sensitive_like cannot be read in another way.
    settings["", "like"] = rows("SELECT 'a' LIKE 'A'")[0][0]
    private = ["temp", *_private(databases, shared)]
    # (The statements above have opened the temporary database. If that was closed after the
    # following were prepared, SQLite would crash.)
    for schema in private:
        for name in _DATA_PRAGMAS:
            settings[schema, name] = _ask(rows, f"{_quoted(schema)}.{name}")
    objects = [entry for schema in private for entry in _objects(rows, schema)]
    digests = {
        (schema, name): _digest(rows, f"{_quoted(schema)}.{_quoted(name)}")
        for schema, kind, name, _ in objects
        if kind == "table" and (then is None or (schema, name) in then.private)
    }
    return Facts(settings, databases, frozenset(filter(_can_be_dropped, objects)), digests)


def _private(databases: dict[str, str], shared: Collection[str]) -> list[str]:
    """Return the attached databases that no other connection sees.

    They are in memory, or in a file without a name. (SQLite names a file by its absolute path, and
    a memory database of `vfs=memdb` by its name, which begins with a slash if it is shared.)
    """
    return [
        name
        for name, file in databases.items()
        if name != "main" and name not in shared and not Path(file).is_absolute()
    ]


def _objects(rows: Rows, schema: str) -> list[Object]:
    schema_table = "sqlite_temp_master" if schema == "temp" else f"{_quoted(schema)}.sqlite_master"
    # (sqlite3 applies no converters to expressions.)
    sql = f"SELECT type||'', name||'', coalesce(sql,'')||'' FROM {schema_table}"  # noqa: S608
    return [Object(schema, *entry) for entry in rows(sql)]


def _can_be_dropped(entry: Object) -> bool:
    """Tell whether an object can be dropped by a statement.

    An index that belongs to its table cannot, nor ``sqlite_sequence``, which stays, empty.
    """
    return entry.sql != "" and entry.name != "sqlite_sequence"


def _digest(rows: Rows, table: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    try:
        found = rows(f"SELECT rowid, * FROM {table}")  # noqa: S608
    except sqlite3.OperationalError:  # a table WITHOUT ROWID
        found = rows(f"SELECT * FROM {table}")  # noqa: S608
    for row in found:
        digest.update(repr(row).encode())
    return digest.digest()


def _ask(rows: Rows, pragma: str) -> Any:
    found = rows(f"PRAGMA {pragma}")
    return found[0][0] if found else None


def restore(rows: Rows, now: Facts, then: Facts) -> None:
    """Undo the differences that can be undone."""
    if not now.databases.items() >= then.databases.items():
        return  # a database was detached or replaced: what was in it may be gone
    rows(f"PRAGMA busy_timeout={WAIT}")  # restored below, as the last of the settings
    if now.objects != then.objects or now.databases != then.databases:
        for pragma in ("query_only", "writable_schema", "foreign_keys"):
            rows(f"PRAGMA {pragma}=0")
        for schema, kind, name, _ in sorted(now.objects - then.objects, key=_order):
            if schema in then.databases or schema == "temp":
                rows(f"DROP {kind} IF EXISTS {_quoted(schema)}.{_quoted(name)}")
        for name in now.databases.keys() - then.databases.keys():
            rows(f"DETACH {_quoted(name)}")
    settings = read_facts(rows, now.databases, None).settings
    for (schema, name), value in then.settings.items():
        if value is not None and settings.get((schema, name)) != value:
            if name == "like":
                rows(f"PRAGMA case_sensitive_like={int(not value)}")
            else:
                prefix = f"{_quoted(schema)}." if schema else ""
                if schema == "temp":
                    _ask(rows, "temp.cache_size")  # opens the temporary database; see above
                fast = name == "secure_delete" and value == _FAST
                rows(f"PRAGMA {prefix}{name}={'fast' if fast else value}")
    for schema in then.databases:
        # The next read of a database releases an exclusive lock.
        rows(f"SELECT 1 FROM {_quoted(schema)}.sqlite_master LIMIT 1")  # noqa: S608


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _order(entry: Object) -> tuple[int, bool]:
    """Return a key for the order of dropping: a virtual table before the tables that it uses."""
    kinds = ("trigger", "view", "index", "table")
    return kinds.index(entry.kind), not entry.sql.startswith("CREATE VIRTUAL")


def differences(now: Facts, then: Facts) -> str:
    """Name what differs, without its content."""
    names = [
        " ".join(filter(None, key))
        for key in now.settings.keys() & then.settings.keys()
        if now.settings[key] != then.settings[key]
    ]
    if now.databases != then.databases:
        names.append("attached databases")
    if now.objects != then.objects:
        names.append("tables, views or triggers, temporary or of attached memory databases")
    if now.private != then.private:
        names.append("rows of temporary tables, or of attached memory databases")
    return ", ".join(sorted(names))
