"""One connection of SQLite, between the threads that use it and the leases that end.

- One operation at a time: `Raw.run` is the only way in, whichever thread it is called in.
- An operation, like a cursor, belongs to a lease. When the lease ends (`Raw.revoke`), whatever is
  still queued is refused, and what runs is interrupted: SQLite itself carries on with a statement
  whose caller was cancelled, and would commit it.
- A reset closes the lease's cursors first. One that is half read keeps its snapshot of the database
  although no transaction is open, and no WAL file is ever truncated behind it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from poolkit._errors import NotLeased

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class RawCursor(sqlite3.Cursor):
    """A cursor that knows which lease it was made in."""

    lease: int


class Operation(Generic[T]):
    """A function to be run on a connection, in its thread, for the sake of one lease."""

    __slots__ = ("abandoned", "chased", "finished", "function", "lease", "made", "raw", "withdrawn")

    def __init__(self, raw: Raw, lease: int, function: Callable[[], T]) -> None:
        self.raw = raw
        self.lease = lease
        self.function = function
        #: The cursors it has made.
        self.made: list[sqlite3.Cursor] = []
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
        #: Whether anything was done since the last reset.
        self.touched = False
        #: Whether it was closed, or will be as soon as its thread comes to it.
        self.over = False
        self.pragmas: list[str] = []
        self._cursors: dict[sqlite3.Cursor, weakref.ref[Any] | None] = {}
        self._dropped: deque[sqlite3.Cursor] = deque()
        self._turn = threading.Lock()  # held while an operation runs
        self._gate = threading.Lock()  # held for a moment, around what two threads decide by
        self._running: Operation[Any] | None = None
        self._settled = self._state()

    # sqlite3's own shortcuts make cursors of which nobody would know.

    def cursor(self, factory: Any = RawCursor) -> Any:
        """Return a cursor that the next reset will close."""
        made = super().cursor(factory)
        running = self._running
        if isinstance(made, RawCursor):
            made.lease = self.lease if running is None else running.lease
        if running is not None:
            running.made.append(made)
        self._cursors[made] = None
        return made

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Execute a statement on a new cursor."""
        return cast("sqlite3.Cursor", self.cursor().execute(sql, parameters))

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        """Execute a statement on a new cursor, once for each set of parameters."""
        return cast("sqlite3.Cursor", self.cursor().executemany(sql, parameters))

    def executescript(self, sql_script: str, /) -> sqlite3.Cursor:
        """Execute statements on a new cursor."""
        return cast("sqlite3.Cursor", self.cursor().executescript(sql_script))

    def adopt(self, cursor: sqlite3.Cursor, owner: object) -> None:
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

    def command(self, sql: str) -> None:
        """Execute a statement, and be done with it."""
        super().execute(sql).close()

    def set_journal(self, mode: str) -> str:
        """Set the journal mode; return the mode that the file has now."""
        with contextlib.closing(super().execute(f"PRAGMA journal_mode={mode}")) as cursor:
            row: tuple[str] = cursor.fetchone()
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
            try:
                self._sweep()
                return operation.function()
            finally:
                with self._gate:
                    self._running = None
                    operation.finished = True
                    if operation.abandoned:
                        self._dropped.extend(operation.made)

    def _sweep(self) -> None:
        while self._dropped:
            cursor = self._dropped.popleft()
            sqlite3.Cursor.close(cursor)
            self._cursors.pop(cursor, None)

    def claim(self, operation: Operation[Any], kept: sqlite3.Cursor | None) -> None:
        """Note that the caller has its result; of the cursors that were made it has this one."""
        self._dropped.extend(cursor for cursor in operation.made if cursor is not kept)

    def abandon(self, operation: Operation[Any]) -> None:
        """Note that the caller has gone without its result."""
        with self._gate:
            operation.abandoned = True
            if operation.finished:
                self._dropped.extend(operation.made)

    def withdraw(self, operation: Operation[Any]) -> None:
        """Abandon an operation that must not be begun any more; one that runs ends soon.

        Inside a transaction it goes on until the lease ends: to interrupt a write there is to roll
        back all of the transaction, and what the lease does next would be committed without it. It
        goes on as well while there are other cursors, which the interrupt would hit too.
        """
        self.abandon(operation)
        operation.withdrawn = True
        with self._gate:
            runs = self._running is operation
        if runs and not self.in_transaction and self._cursors.keys() <= set(operation.made):
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
        """Tell whether nothing was done since the last reset."""
        return not self.touched and self._state() == self._settled

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
        self.touched = False
        return note

    def _is_busy(self) -> bool:
        """Tell whether a transaction or a statement is open; sqlite3 has no function for that.

        VACUUM makes sure of it before it looks at where to write to. Registering a function would
        tell as well, but spoils every prepared statement.
        """
        try:
            super().execute("VACUUM INTO NULL")
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
