"""SQLite's own cursor, which belongs to a lease, and what its statements may leave behind."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from poolkit.drivers.sqlite._connection import Raw

_TAME: Final = re.compile(
    r"\s*(?:SELECT|INSERT|UPDATE|DELETE|REPLACE|VALUES|WITH)\b", re.IGNORECASE
)
_READ: Final = frozenset({"cursor", "fetchone", "fetchmany", "fetchall", "close"})
_EXECUTE: Final = frozenset({"execute", "fetch", "insert"})


def is_tame(method: str, args: tuple[Any, ...]) -> bool:
    """Tell whether what a method of ours does to its connection is seen by `Raw.is_clean`.

    Of a statement its first word says so, for sqlite3 refuses a second one behind it. What changes
    a connection's settings (PRAGMA, ATTACH, ...) is a statement of its own and never part of these:
    WITH goes before the others only, and a trigger has no others. EXPLAIN is missing because
    EXPLAIN PRAGMA does set. ``pragma_foreign_keys`` and the like are tables that take no value. Of
    SQL's functions load_extension() alone lets in strange code.
    """
    if method in _EXECUTE:
        sql: str = args[0]
        return _TAME.match(sql) is not None and "load_extension" not in sql.lower()
    return method in _READ


class RawCursor(sqlite3.Cursor):
    """A cursor that knows which lease it was made in, and whether it was read to its end."""

    lease: int
    #: Whether a fetch was cancelled, and its rows are lost.
    is_torn = False
    _spent = False
    #: Whether its lease has inserted a row.
    _has_own_id = False

    @property
    def is_open(self) -> bool:
        """Whether rows may be left. A statement without columns ends where it is executed."""
        return not self._spent and self.description is not None

    def execute(self, sql: str, parameters: Any = (), /) -> RawCursor:
        """Execute a statement."""
        self._spent = self.is_torn = False
        raw = cast("Raw", self.connection)
        is_of_note = raw.see(sql, parameters)
        super().execute(sql, parameters)
        if is_of_note:
            raw.take_note(self, sql)
        self._has_own_id = raw.inserted_in == self.lease
        return self

    def executemany(self, sql: str, parameters: Any, /) -> RawCursor:
        """Execute a statement for each set of parameters."""
        raw = cast("Raw", self.connection)
        is_of_note = raw.see(sql)
        super().executemany(sql, parameters)
        if is_of_note:
            raw.take_note(self, sql)
        return self

    def executescript(self, sql_script: str, /) -> RawCursor:
        """Execute statements."""
        raw = cast("Raw", self.connection)
        raw.see_script(sql_script)
        super().executescript(sql_script)
        raw.inserted_in = raw.lease
        raw.watch_attached()
        return self

    @property
    def lastrowid(self) -> int | None:
        """The id of the row that the lease has inserted last; not of an earlier lease's."""
        last = super().lastrowid
        return last if last is None or self._has_own_id else 0

    def fetchone(self) -> Any:
        """Fetch the next row."""
        self._check()
        return super().fetchone()

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """Fetch the next rows."""
        self._check()
        return super().fetchmany(self.arraysize if size is None else size)

    def fetchall(self) -> list[Any]:
        """Fetch the rows that are left."""
        self._check()
        rows = super().fetchall()
        self._spent = True
        return rows

    def _check(self) -> None:
        if self.is_torn:
            raise sqlite3.OperationalError(
                "rows of this cursor are lost: the caller who was fetching them was cancelled; "
                "execute the statement again"
            )

    def end(self) -> None:
        """End the statement; the cursor may execute another one."""
        with contextlib.suppress(sqlite3.Error):  # closed
            sqlite3.Cursor.execute(self, "")

    def close(self) -> None:
        """Close."""
        super().close()
        self._spent = True
