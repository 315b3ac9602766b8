"""One connection of SQLite, between the threads that use it and the leases that end.

- One operation at a time: `Raw.run` is the only way in, whichever thread it is called in.
- An operation, like a cursor, belongs to a lease. When the lease ends (`Raw.revoke`), whatever is
  still queued is refused, and what runs is interrupted: SQLite itself carries on with a statement
  whose caller was cancelled, and would commit it.
- A reset closes the lease's cursors first. One that is half read keeps its snapshot of the database
  although no transaction is open, and no WAL file is ever truncated behind it.
- A lease that provably left nothing behind needs no reset (see `is_tame`, `Raw.is_clean`): with the
  job and the hop that it is, one costs several times as much as the statement before it.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import sys
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from poolkit._errors import NotLeased

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


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
    _spent = False

    @property
    def is_open(self) -> bool:
        """Whether rows may be left. A statement without columns ends where it is executed."""
        return not self._spent and self.description is not None

    def execute(self, sql: str, parameters: Any = (), /) -> RawCursor:
        """Execute a statement."""
        self._spent = False
        return super().execute(sql, parameters)

    def fetchall(self) -> list[Any]:
        """Fetch the rows that are left."""
        rows = super().fetchall()
        self._spent = True
        return rows

    def close(self) -> None:
        """Close."""
        super().close()
        self._spent = True


class Operation(Generic[T]):
    """A function to be run on a connection, in its thread, for the sake of one lease."""

    __slots__ = (
        "abandoned",
        "chased",
        "finished",
        "function",
        "lease",
        "made",
        "raw",
        "tame",
        "withdrawn",
    )

    def __init__(self, raw: Raw, lease: int, function: Callable[[], T], *, tame: bool) -> None:
        self.raw = raw
        self.lease = lease
        self.function = function
        #: Whether nothing is left by it, if it ends well, that `Raw.is_clean` does not see.
        self.tame = tame
        #: The cursors it has made.
        self.made: list[RawCursor] = []
        self.finished = False
        #: Whether its caller has gone.
        self.abandoned = False
        #: Whether it must not be begun any more.
        self.withdrawn = False
        #: Whether somebody is interrupting it.
        self.chased = False

    def __call__(self) -> T:
        """Run it when no other runs, if it is still wanted."""
        return self.raw.run(self)


class Raw(sqlite3.Connection):
    """SQLite's connection; it knows its cursors, what runs on it, and for which lease.

    Cursors are held here, and closed in the connection's thread, when their owner (the library's
    cursor, that the user has) is gone. To collect one that is not read to its end is to wait for
    the statement that runs, and perhaps to spoil its error code, in whatever thread that is: often
    the event loop's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Counts the leases: what belongs to an earlier one is dead.
        self.lease = 0
        #: Operations since the last reset that were not tame, failed, were left, or are under way.
        self._doubts = 0
        #: Whether it was closed, or will be as soon as its thread comes to it.
        self.over = False
        self.pragmas: list[str] = []
        #: The pool's ear for errors, since cursors raise them too, which it does not see.
        self.tell: Callable[[Exception], object] | None = None
        self._cursors: dict[RawCursor, weakref.ref[Any] | None] = {}
        self._dropped: deque[RawCursor] = deque()
        self._turn = threading.Lock()  # held while an operation runs
        self._gate = threading.Lock()  # held for a moment, around what two threads decide by
        self._running: Operation[Any] | None = None
        self._settled = self._state()

    # sqlite3's own shortcuts make cursors of which nobody would know.

    def cursor(self, factory: Any = RawCursor) -> Any:
        """Return a cursor that the next reset will close."""
        made: Any = super().cursor(factory)
        running = self._running
        if isinstance(made, RawCursor):
            made.lease = self.lease if running is None else running.lease
        if running is not None:
            running.made.append(made)
        self._cursors[made] = None
        return made

    def execute(self, sql: str, parameters: Any = (), /) -> RawCursor:
        """Execute a statement on a new cursor."""
        return cast("RawCursor", self.cursor().execute(sql, parameters))

    def executemany(self, sql: str, parameters: Any, /) -> RawCursor:
        """Execute a statement on a new cursor, once for each set of parameters."""
        return cast("RawCursor", self.cursor().executemany(sql, parameters))

    def executescript(self, sql_script: str, /) -> RawCursor:
        """Execute statements on a new cursor."""
        return cast("RawCursor", self.cursor().executescript(sql_script))

    def adopt(self, cursor: RawCursor, owner: object) -> None:
        """Close a cursor once its owner is gone."""
        dropped = self._dropped
        if cursor in self._cursors:
            self._cursors[cursor] = weakref.ref(owner, lambda _: dropped.append(cursor))

    def close(self) -> None:
        """Close the cursors too, without which SQLite would keep its files open."""
        for cursor in list(self._cursors):
            sqlite3.Cursor.close(cursor)
        self._cursors.clear()
        super().close()

    def finish(self) -> None:
        """Close, when no operation runs."""
        with self._turn:
            self.close()

    # On cursors that nobody else sees, and which need not be known therefore.

    def command(self, sql: str) -> None:
        """Execute a statement, and be done with it."""
        cursor = super().cursor()
        try:
            cursor.execute(sql)
        finally:
            cursor.close()

    def fetch(self, sql: str, parameters: Any = ()) -> list[Any]:
        """Execute a statement; return its rows."""
        cursor = super().cursor()
        try:
            return cursor.execute(sql, parameters).fetchall()
        finally:
            cursor.close()

    def insert(self, sql: str, parameters: Any = ()) -> Any:
        """Execute an INSERT; return a row with the id of the new one."""
        cursor = super().cursor()
        try:
            cursor.execute(sql, parameters)
            return cursor.execute("SELECT last_insert_rowid()").fetchone()
        finally:
            cursor.close()

    def set_journal(self, mode: str) -> str:
        """Set the journal mode; return the mode that the file has now."""
        row: tuple[str]
        (row,) = self.fetch(f"PRAGMA journal_mode={mode}")
        return row[0].upper()

    def ping(self) -> None:
        """Ask for an answer."""
        self.command("SELECT 1")

    # -- who may do what -------------------------------------------------------------------------

    def check(self, lease: int) -> None:
        """Raise `NotLeased` unless this lease is the present one."""
        if lease != self.lease:
            raise NotLeased(
                "this was made from a connection that has been given back since: a cursor or an "
                "operation cannot be used after the lease it belongs to"
            )

    def run(self, operation: Operation[T]) -> T:
        """Run an operation; refuse it if its lease has ended while it was waiting."""
        with self._turn:
            with self._gate:
                if operation.withdrawn:
                    return cast("T", None)  # nobody is there to see it
                self.check(operation.lease)
                self._running = operation
                self._doubts += 1
            tame = False
            try:
                if self._dropped:
                    self._sweep()
                result = operation.function()
                # Not if a callback has got hold of the connection, to do nobody knows what.
                tame = operation.tame and operation.made in ([], [result])
                return result
            finally:
                with self._gate:
                    self._running = None
                    operation.finished = True
                    if operation.abandoned:
                        self._dropped.extend(operation.made)
                    elif tame:
                        self._doubts -= 1

    def _sweep(self) -> None:
        while self._dropped:
            cursor = self._dropped.popleft()
            sqlite3.Cursor.close(cursor)
            self._cursors.pop(cursor, None)

    def claim(self, operation: Operation[Any], kept: sqlite3.Cursor | None) -> None:
        """Note that the caller has its result; of the cursors that were made it has this one."""
        for cursor in operation.made:
            if cursor is not kept:
                self._dropped.append(cursor)

    def abandon(self, operation: Operation[Any], error: BaseException) -> None:
        """Note that the caller has gone without its result, but with an error."""
        if self.tell and operation.lease == self.lease and isinstance(error, Exception):
            self.tell(error)
        with self._gate:
            operation.abandoned = True
            if operation.finished:
                self._dropped.extend(operation.made)
                if operation.lease == self.lease:
                    self._doubts += 1

    def withdraw(self, operation: Operation[Any], error: BaseException) -> None:
        """Abandon an operation that must not be begun any more; one that runs ends soon.

        Inside a transaction it goes on until the lease ends: to interrupt a write there is to roll
        back all of the transaction, and what the lease does next would be committed without it. It
        goes on as well while other cursors are open, which the interrupt would hit too.
        """
        self.abandon(operation, error)
        operation.withdrawn = True
        with self._gate:
            runs = self._running is operation
        others = self._cursors.keys() - operation.made
        if runs and not self.in_transaction and not any(cursor.is_open for cursor in others):
            self._chase(operation)

    def revoke(self) -> None:
        """End the lease. Callable from any thread at any time; does not wait."""
        with self._gate:
            self.lease += 1
            running = self._running
        if running is not None:
            self._chase(running)

    def _chase(self, operation: Operation[Any]) -> None:
        """Interrupt an operation until it has ended."""
        if operation.chased or not self._interrupt(operation):
            return
        operation.chased = True
        # SQLite forgets an interrupt that comes before a statement's first step, or between two.
        start_thread(self._keep_interrupting, operation)

    def _keep_interrupting(self, operation: Operation[Any]) -> None:
        pause = 0.001
        while self._interrupt(operation):
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def _interrupt(self, operation: Operation[Any]) -> bool:
        with self._gate:
            if self._running is not operation:
                return False
            with contextlib.suppress(sqlite3.ProgrammingError):  # closed by its user
                self.interrupt()
            return True

    # -- between two leases ----------------------------------------------------------------------

    def _state(self) -> tuple[object, ...]:
        return self.row_factory, self.text_factory, self.isolation_level

    def remember(self) -> None:
        """Take what the connection is like now for what a reset returns to."""
        self._settled = self._state()

    def is_clean(self) -> bool:
        """Tell whether a reset would find nothing to undo; in any thread.

        What is still queued for the lease does not count: it will be refused (`run`).
        """
        return (
            not self._doubts
            and not self.in_transaction
            and self._state() == self._settled
            and not (self._cursors and any(cursor.is_open for cursor in list(self._cursors)))
        )

    def clean(self) -> str | None:
        """Undo what a lease has left behind, verify it, and return what that was."""
        note = None
        if getattr(self, "autocommit", -1) != -1:  # Python 3.12: sqlite3.LEGACY_TRANSACTION_CONTROL
            self.autocommit = -1
        self._sweep()
        cursors = list(self._cursors)
        if self.in_transaction:
            note = "an open transaction"
        elif cursors and self._is_busy():
            note = "a half-read cursor"
        for cursor in cursors:
            # Before the rollback: an interrupt stays in force as long as one of them is open.
            sqlite3.Cursor.close(cursor)
        self._cursors.clear()
        self.rollback()
        if self._is_busy():
            raise sqlite3.OperationalError("the connection is not idle after its reset")
        # After the rollback: to assign an isolation level of None is to commit.
        self.row_factory, self.text_factory, self.isolation_level = cast("Any", self._settled)
        self.set_up()
        self._doubts = 0
        return note

    def _is_busy(self) -> bool:
        """Tell whether a transaction or a statement is open; sqlite3 has no function for that.

        VACUUM makes sure of it before it looks at where to write to. Registering a function would
        tell as well, but spoils every prepared statement.
        """
        try:
            self.command("VACUUM INTO NULL")
        except sqlite3.Error as error:
            interrupted = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT
            return interrupted or str(error).startswith("cannot VACUUM")
        return False

    def set_up(self) -> None:
        """Set what the driver's settings ask for."""
        for pragma in self.pragmas:
            self.command(pragma)


def start_thread(function: Callable[..., object], *args: object) -> None:
    """Start a thread that nothing waits for; none when the interpreter is about to end."""
    if not sys.is_finalizing():  # starting one would wait for ever, or raise
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=function, args=args, name="poolkit", daemon=True).start()
