"""What SQLite tells of a connection, read before a lease changes it and compared at the reset.

Each reading costs as much as some statements. So both are done only if the lease has executed other
statements than those that read and write rows (`Comparison.about_to_execute`).
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from poolkit.drivers.sqlite._callbacks import CALLBACKS, OFF, Callbacks
from poolkit.drivers.sqlite._facts import Facts, read_facts

if TYPE_CHECKING:
    from collections.abc import Hashable

    from poolkit.drivers.sqlite._callbacks import MethodCall

#: Statements that change nothing but rows and transactions: SQLite has statements of their own for
#: settings, and sqlite3 refuses a second statement in the same text. Those in the group may insert
#: rows.
_PLAIN: Final = re.compile(
    r"\s*(?:SELECT|(INSERT|REPLACE|WITH)|UPDATE|DELETE|VALUES"
    r"|BEGIN|COMMIT|END|ROLLBACK|SAVEPOINT|RELEASE)\b",
    re.IGNORECASE,
)
_INSERTS: Final = re.compile(r"\s*(?:INSERT|REPLACE|WITH|--|/\*|;)", re.IGNORECASE)
#: Attaches a memory database that other connections see.
_SHARES: Final = re.compile(r"[?&]cache=shared\b", re.IGNORECASE)


class Comparison(Callbacks):
    """SQLite's connection; it notes what a reset has to compare, and what no reset can undo."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Counts the leases: what belongs to an earlier one is dead.
        self.lease = 0
        #: The lease that has inserted a row last, if SQLite still knows the row's id.
        self.inserting_lease: int | None = None
        #: Whether the database ends with the connection: what no reset can undo is refused then.
        self.irreplaceable = False
        #: As `_calls`, when the connection had been set up: what a reset returns to.
        self._base_calls: dict[Hashable, MethodCall] = {}
        #: What SQLite said of the connection before a lease could change it.
        self._baseline: Facts | None = None
        #: Whether the baseline has to be read before the next operation.
        self._baseline_due = False
        #: Whether the next reset has to compare the connection with the baseline.
        self._must_compare = False
        #: What the lease has done that no reset can undo.
        self._not_undoable: str | None = None
        #: Whether the statement that was executed last may have attached a database.
        self._has_attached = False
        #: Whether other connections see that database.
        self._shares = False
        #: The names of memory databases that other connections see.
        self._shared: set[str] = set()
        #: `total_changes` at the baseline, if there are private tables that a lease may write to.
        self._base_changes: int | None = None

    def remember_settings(self) -> None:
        """Have resets return to what the connection is like now, but for its attributes.

        Those are ``row_factory``, ``text_factory`` and ``isolation_level``.
        """
        self._base_calls = dict(self._calls)
        self._baseline, self._baseline_due = None, self._must_compare
        self._must_compare, self._not_undoable, self._base_changes = False, None, None

    def compare_at_reset(self) -> None:
        """Have the next reset compare everything; called before anything is changed."""
        if not self._must_compare:
            if self._baseline is None:
                self.read_baseline()
            self._must_compare = True

    def distrust(self) -> None:
        """Have the next reset undo what a function may set by `sqlite3.Connection`'s own methods.

        Called before such a function, whose calls are not noted.
        """
        self.compare_at_reset()
        for method in CALLBACKS:
            self._calls.setdefault((method,), (method, OFF[method], {}))

    def read_baseline(self) -> None:
        """Ask SQLite what the connection is like, for a reset to return to.

        If that fails, because the database is locked, for example, a reset that has to compare
        fails later.
        """
        changes = self.total_changes
        if self._must_compare or self._base_changes not in (None, changes):
            return  # the connection has changed since an earlier try
        self._base_changes = changes
        with contextlib.suppress(Exception):
            self._baseline = facts = self._facts()
            self._baseline_due = False
            if not facts.private:
                self._base_changes = None

    def _facts(self) -> Facts:
        with self._asking_sqlite() as rows:
            return read_facts(rows, self._shared, self._baseline)

    # -- statements ------------------------------------------------------------------------------

    def about_to_execute(self, sql: str, parameters: Any = ()) -> bool:
        """Note what a statement may change; return True if `executed` has to be called after it."""
        plain = _PLAIN.match(sql)
        if plain is None:
            self.compare_at_reset()
            if "tach" in sql.lower():  # attach, or detach
                self._has_attached = True
                self._shares = _SHARES.search(f"{sql} {parameters}") is not None
        if self._calls and ("enable_load_extension",) in self._calls:
            self._note_extension(sql)
        if self.inserting_lease is not None and self.inserting_lease != self.lease:
            self._hide_row_id(sql)
        return plain is None or plain.lastindex is not None

    def about_to_execute_script(self, sql: str) -> None:
        """Note what the statements of a script may change."""
        self.compare_at_reset()
        self._shares = _SHARES.search(sql) is not None
        if ("enable_load_extension",) in self._calls:
            self._note_extension(sql)

    def executed(self, cursor: sqlite3.Cursor, sql: str) -> None:
        """Note whether a statement has inserted rows or attached a database."""
        if (cursor.rowcount or cursor.description) and _INSERTS.match(sql):
            self.inserting_lease = self.lease
        if self._has_attached:
            self._has_attached = False
            self.watch_attached()

    def _note_extension(self, sql: str) -> None:
        if "load_extension" in sql.lower():
            self.cannot_undo("an extension was loaded")

    def _hide_row_id(self, sql: str) -> None:
        """Hide the id of an earlier lease's row from a statement that asks for it."""
        if "last_insert_rowid" in sql.lower():
            self.forget_id()

    def watch_attached(self) -> None:
        """Note the name of the database that was attached last, if other connections see it."""
        if self._shares:
            self._shares = False
            with self._asking_sqlite() as rows:
                self._shared.add(rows("PRAGMA database_list")[-1][1])

    def cannot_undo(self, what: str) -> None:
        """Have the next reset fail, because it cannot undo what a lease is about to do.

        Raises `sqlite3.NotSupportedError` instead if the database would end with the connection.
        """
        self.compare_at_reset()
        if self.irreplaceable:
            raise sqlite3.NotSupportedError(
                f"{what}: no reset can undo that, and this private memory database would be lost "
                "if its connection were replaced. Do it in on_connect, for all leases"
            )
        self._not_undoable = what

    # -- the id of the last row ------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Tell whether cursors may have rows left."""
        raise NotImplementedError

    def forget_id(self) -> None:
        """Have last_insert_rowid() return 0, as on a new connection; does nothing while reading.

        A row with the id 0 is inserted into a temporary table, and rolled back. The rollback would
        end what other cursors read.
        """
        if self.inserting_lease is None or self.is_reading():
            return
        self.inserting_lease = None
        with self._asking_sqlite() as rows, contextlib.suppress(sqlite3.Error):
            rows("SAVEPOINT poolkit")
            try:
                rows("CREATE TEMP TABLE poolkit (x)")
                rows("INSERT INTO temp.poolkit (rowid) VALUES (0)")
            finally:
                rows("ROLLBACK TO poolkit")
                rows("RELEASE poolkit")
