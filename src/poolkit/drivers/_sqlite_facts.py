"""What SQLite tells of a connection: its settings, its databases, its temporary objects."""

from __future__ import annotations

import hashlib
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
#: How `PRAGMA secure_delete` shows what it calls FAST.
_FAST: Final = 2


class Facts(NamedTuple):
    """What SQLite tells of a connection."""

    #: By the name of the database, or "" for the connection, and the name of the setting.
    settings: dict[tuple[str, str], Any]
    #: The files of the databases by their names; "" for a memory database.
    databases: dict[str, str]
    #: Types, names and statements of the temporary tables, views, indices and triggers.
    temporary: frozenset[tuple[str, str, str]]
    #: Digests of the rows that no other connection sees, by database and table.
    private: dict[tuple[str, str], bytes]


def read_facts(rows: Rows, shared: Collection[str], then: Facts | None) -> Facts:
    """Ask SQLite what a connection is like.

    ``shared``: databases in memory that other connections see. Of those that no other one sees
    only tables that there were ``then`` are looked into. Raises `sqlite3.OperationalError` rather
    than wait for a lock.
    """
    patience = _ask(rows, "busy_timeout")
    rows("PRAGMA busy_timeout=0")
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
    for schema in databases:
        for name in _SCHEMA_PRAGMAS:
            settings[schema, name] = _ask(rows, f"{_quoted(schema)}.{name}")
    # There is no other way to read case_sensitive_like.
    settings["", "like"] = rows("SELECT 'a' LIKE 'A'")[0][0]
    # (Expressions, for which no converter is looked up.)
    sql = "SELECT type||'', name||'', coalesce(sql,'')||'' FROM sqlite_temp_master"
    temporary = frozenset(entry for entry in rows(sql) if not entry[1].startswith("sqlite_"))
    digests = {
        (schema, table): _digest(rows, f"{_quoted(schema)}.{_quoted(table)}")
        for schema in ("temp", *_private(databases, shared))
        for table in _tables(rows, schema)
        if then is None or (schema, table) in then.private
    }
    return Facts(settings, databases, temporary, digests)


def _private(databases: dict[str, str], shared: Collection[str]) -> list[str]:
    """Return the databases that no other connection sees, but for the one that was opened.

    In memory, or in a file without a name. (SQLite shows a file by its absolute path, and a memory
    database of `vfs=memdb` by its name, which begins with a slash if it is shared.)
    """
    return [
        name
        for name, file in databases.items()
        if name != "main" and name not in shared and not Path(file).is_absolute()
    ]


def _tables(rows: Rows, schema: str) -> list[str]:
    schema_table = "sqlite_temp_master" if schema == "temp" else f"{_quoted(schema)}.sqlite_master"
    found = rows(f"SELECT name||'' FROM {schema_table} WHERE type='table'")  # noqa: S608
    return [name for (name,) in found if not name.startswith("sqlite_")]


def _digest(rows: Rows, table: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for row in rows(f"SELECT * FROM {table}"):  # noqa: S608
        digest.update(repr(row).encode())
    return digest.digest()


def _ask(rows: Rows, pragma: str) -> Any:
    found = rows(f"PRAGMA {pragma}")
    return found[0][0] if found else None


def restore(rows: Rows, now: Facts, then: Facts) -> None:
    """Undo what can be undone of the differences."""
    if not now.databases.items() >= then.databases.items():
        return  # detached, or replaced: what was in it may be gone
    if now.temporary != then.temporary or now.databases != then.databases:
        for pragma in ("query_only", "writable_schema", "foreign_keys"):
            rows(f"PRAGMA {pragma}=0")
        # (Indices without a statement belong to their tables.)
        made = [entry for entry in now.temporary - then.temporary if entry[2]]
        for kind, name, _ in sorted(made, key=_order):
            rows(f"DROP {kind} IF EXISTS temp.{_quoted(name)}")
        for name in now.databases.keys() - then.databases.keys():
            rows(f"DETACH {_quoted(name)}")
    settings = read_facts(rows, now.databases, None).settings
    for (schema, name), value in then.settings.items():
        if value is not None and settings.get((schema, name)) != value:
            if name == "like":
                rows(f"PRAGMA case_sensitive_like={int(not value)}")
            else:
                prefix = f"{_quoted(schema)}." if schema else ""
                fast = name == "secure_delete" and value == _FAST
                rows(f"PRAGMA {prefix}{name}={'fast' if fast else value}")
    for schema in then.databases:
        # What was locked exclusively is let go of by the next reader.
        rows(f"SELECT 1 FROM {_quoted(schema)}.sqlite_master LIMIT 1")  # noqa: S608


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _order(entry: tuple[str, str, str]) -> tuple[int, bool]:
    """Sort what is to be dropped: virtual tables before the tables that they keep their rows in."""
    kind, _, sql = entry
    return ("trigger", "view", "index", "table").index(kind), not sql.startswith("CREATE VIRTUAL")


def differences(now: Facts, then: Facts) -> str:
    """Name what differs, without its content."""
    names = [
        " ".join(filter(None, key))
        for key in now.settings.keys() & then.settings.keys()
        if now.settings[key] != then.settings[key]
    ]
    if now.databases != then.databases:
        names.append("attached databases")
    if now.temporary != then.temporary:
        names.append("temporary tables, views or triggers")
    if now.private != then.private:
        names.append("rows of temporary tables, or of attached memory databases")
    return ", ".join(sorted(names))
