"""SQLite's cursor, which belongs to a lease, and what its statements may leave behind."""

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


def is_tracked(method: str, args: tuple[Any, ...]) -> bool:
    """Tell whether `Raw.is_clean` sees all that a method of ours may leave on its connection.

    For a statement the first word decides. sqlite3 refuses a second statement behind it. Settings
    of a connection are changed by statements of their own (PRAGMA, ATTACH, ...), never by a part of
    these: WITH only comes before the others, and a trigger contains no others. EXPLAIN is missing,
    because EXPLAIN PRAGMA changes the setting. Tables like ``pragma_foreign_keys`` take no value.
    Of SQL's functions only load_extension() runs other code.
    """
    if method in _EXECUTE:
        sql: str = args[0]
        return _TAME.match(sql) is not None and "load_extension" not in sql.lower()
    return method in _READ


class RawCursor(sqlite3.Cursor):
    """A cursor that knows the lease it was made in, and whether it was read to its end."""

    lease: int
    #: Whether a fetch was cancelled, so that its rows are lost.
    is_torn: bool = False
    _is_read = False
    #: Whether its lease has inserted a row.
    _has_own_id = False

    @property
    def is_open(self) -> bool:
        """Whether rows may be left. A statement without columns ends when it is executed."""
        return not self._is_read and self.description is not None

    def execute(self, sql: str, parameters: Any = (), /) -> RawCursor:
        """Execute a statement."""
        self._is_read = self.is_torn = False
        raw = cast("Raw", self.connection)
        changes = raw.about_to_execute(sql, parameters)
        super().execute(sql, parameters)
        if changes:
            raw.executed(self, sql)
        self._has_own_id = raw.inserting_lease == self.lease
        return self

    def executemany(self, sql: str, parameters: Any, /) -> RawCursor:
        """Execute a statement for each set of parameters."""
        raw = cast("Raw", self.connection)
        changes = raw.about_to_execute(sql)
        super().executemany(sql, parameters)
        if changes:
            raw.executed(self, sql)
        return self

    def executescript(self, sql_script: str, /) -> RawCursor:
        """Execute statements."""
        raw = cast("Raw", self.connection)
        raw.about_to_execute_script(sql_script)
        super().executescript(sql_script)
        raw.inserting_lease = raw.lease
        raw.watch_attached()
        return self

    @property
    def lastrowid(self) -> int | None:
        """The id of the row that the lease has inserted last; 0 if it has inserted none."""
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
        self._is_read = True
        return rows

    def _check(self) -> None:
        if self.is_torn:
            raise sqlite3.OperationalError(
                "rows of this cursor are lost: the caller who was fetching them was cancelled; "
                "execute the statement again"
            )

    def end(self) -> None:
        """End the statement. The cursor may execute another one."""
        with contextlib.suppress(sqlite3.Error):  # closed
            sqlite3.Cursor.execute(self, "")

    def close(self) -> None:
        """Close."""
        super().close()
        self._is_read = True
