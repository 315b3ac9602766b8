"""One connection of SQLite, between the threads that use it and the leases that end.

- One operation at a time: `Raw.run` is the only way in, whichever thread it is called in.
- An operation, like a cursor, belongs to a lease. When the lease ends (`Raw.revoke`), whatever is
  still queued is refused, and what runs is interrupted: SQLite itself carries on with a statement
  whose caller was cancelled, and would commit it.
- A reset closes the lease's cursors first. One that is half read keeps its snapshot of the database
  although no transaction is open, and no WAL file is ever truncated behind it.
- So is an operation whose caller has gone; see `poolkit.drivers.sqlite._interrupts`.
- A lease that provably left nothing behind needs no reset (see `is_tame`, `Raw.is_clean`): with the
  job and the hop that it is, one costs several times as much as the statement before it.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar, cast

from poolkit._errors import NotLeased
from poolkit.drivers.sqlite._cursor import RawCursor
from poolkit.drivers.sqlite._file import WatchesFiles
from poolkit.drivers.sqlite._interrupts import GRACE, Interrupts
from poolkit.drivers.sqlite._waits import is_busy, is_for_lock, may_be_repeated

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit.drivers.sqlite._facts import Facts
    from poolkit.drivers.sqlite._operation import Operation

T = TypeVar("T")


class Raw(Interrupts, WatchesFiles):
    """SQLite's connection; it knows its cursors, what runs on it, and for which lease.

    Cursors are held here, and closed in the connection's thread, when their owner (the library's
    cursor, that the user has) is gone. To collect one that is not read to its end is to wait for
    the statement that runs, and perhaps to spoil its error code, in whatever thread that is: often
    the event loop's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Operations since the last reset that were not tame, failed, were left, or are under way.
        self._doubts = 0
        #: Whether it was closed, or will be as soon as its thread comes to it.
        self.over = False
        #: The pool's ear for errors, since cursors raise them too, which it does not see.
        self.tell: Callable[[Exception], object] | None = None
        self._dropped: deque[RawCursor] = deque()
        #: What was done last, if a transaction is open since.
        self._begun: Operation[Any] | None = None
        self._turn = threading.Lock()  # held while an operation runs
        #: Whether a statement that has failed for another's lock may be tried again.
        self.tries_again = False
        #: Whether what runs is let finish when its caller has gone.
        self.is_patient = False

    # sqlite3's own shortcuts make cursors of which nobody would know.

    def cursor(self, factory: Any = RawCursor) -> Any:
        """Return a cursor that the next reset will close."""
        made: Any = super().cursor(factory)
        running = self._running
        if isinstance(made, RawCursor):
            made.lease = self.lease if running is None else running.lease
        else:
            self.look()  # nobody sees what is executed on it
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

    def fetch(self, sql: str, parameters: Any = ()) -> list[Any]:
        """Execute a statement; return its rows."""
        is_of_note = self.see(sql, parameters)
        cursor = super().cursor()
        try:
            cursor.execute(sql, parameters)
            if is_of_note:
                self.take_note(cursor, sql)
            return cursor.fetchall()
        finally:
            cursor.close()

    def insert(self, sql: str, parameters: Any = ()) -> Any:
        """Execute an INSERT; return a row with the id of the new one."""
        is_of_note = self.see(sql, parameters)
        cursor = super().cursor()
        try:
            cursor.execute(sql, parameters)
            if is_of_note:
                self.take_note(cursor, sql)
            if self.inserted_in != self.lease:
                self.forget_id()
            return cursor.execute("SELECT last_insert_rowid()").fetchone()
        finally:
            cursor.close()

    def set_journal(self, mode: str) -> str:
        """Set the journal mode; return the mode that the file has now."""
        mode_now: str = self.command(f"PRAGMA journal_mode={mode}")[0][0]
        return mode_now.upper()

    def ping(self) -> None:
        """Ask for an answer, from the file that there is now."""
        self.check_files()
        self.command("SELECT 1")

    def is_reading(self) -> bool:
        """Tell whether cursors may have rows left."""
        return any(getattr(cursor, "is_open", True) for cursor in list(self._cursors))

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
            if self._dropped:
                self._sweep()
            if self._begun is not None:
                self._undo_unwanted()
            if self._cursors:
                operation.beside = self._has_others(operation)
            with self._gate:
                if operation.withdrawn or (operation.abandoned and operation.is_vain()):
                    return cast("T", None)  # nobody is there to see it
                self.check(operation.lease)
                self._running = operation
                self._doubts += 1
            tame = was_in_transaction = False
            error: Exception | None = None
            try:
                was_in_transaction = not self.over and self.in_transaction
                self._prepare(operation, was_in_transaction)
                result = self._call(operation, in_transaction=was_in_transaction)
                # Not if a callback has got hold of the connection, to do nobody knows what.
                tame = operation.tame and operation.made in ([], [result])
            except Exception as raised:
                error = self.explained(raised, operation.name)
                if error is raised:
                    raise
                raise error from raised
            else:
                return result
            finally:
                if was_in_transaction:
                    operation.broke = self.has_lost(error)
                elif not operation.tame and self.has_begun():
                    operation.began, self._begun = True, operation
                error = None  # which has a traceback, which has this frame
                self._conclude(operation, tame=tame)

    def _prepare(self, operation: Operation[Any], in_transaction: bool, /) -> None:  # noqa: FBT001
        if (self._in_block or self._ended) and self.is_lost(in_transaction):
            self.refuse(operation.name, operation.sql)
        if self._unsettled and not operation.abandoned:
            self.settle(operation.name, in_transaction, ends=operation.ends())
        if operation.beside:
            self._watch(operation)
        if operation.abandoned and not self.is_patient:
            self._chase(operation, GRACE)
        if self._facts_due:
            self.find_facts()
        if not operation.known:
            self.distrust()

    def _call(self, operation: Operation[T], *, in_transaction: bool) -> T:
        """Call the function of an operation, which may have to wait for another's lock."""
        function, sql = operation.function, operation.sql
        if sql is None:
            # What is tame has its lock already, or is the beginning or the end of a block.
            repeats = operation.tame
            slices = operation.patience is not None
        else:
            repeats = may_be_repeated(sql)
            slices = repeats and self.tries_again
        if not repeats or (sql is not None and not (slices or in_transaction)):
            self.wait_at_once()
            return function()
        if slices and not in_transaction:
            self.wait_in_slices()
        began = time.monotonic()
        try:
            return function()
        except sqlite3.OperationalError as error:
            if not is_for_lock(error, began):
                raise
            if in_transaction:
                if not self.has_waited(began):
                    raise
                if not self.tries_again:
                    self.wait_at_once()
                    return function()
            return self.again(function, error, began, operation)

    def _conclude(self, operation: Operation[Any], *, tame: bool) -> None:
        if operation.beside:
            super().put_progress_handler(*self._progress)
        with self._gate:
            self._running = None
            operation.finished = True
            if operation.abandoned:
                self._leave(operation)
            elif tame:
                self._doubts -= 1
            if operation.ended is not None:
                operation.ended.set()
        if operation.hit and (cursor := operation.cursor) is not None:
            cursor.end()  # or the interrupt would hit whatever is executed next

    def _sweep(self) -> None:
        while self._dropped:
            cursor = self._dropped.popleft()
            if cursor in self._cursors:  # else it is closed, and so may be the connection
                sqlite3.Cursor.close(cursor)
                del self._cursors[cursor]

    def is_in_transaction(self) -> bool:
        """Tell whether a transaction is open, and will be for the next operation; in any thread."""
        begun = self._begun
        return self.in_transaction and (begun is None or not begun.unwanted)

    def _undo_unwanted(self) -> None:
        """Roll back what the last operation has begun, if its caller has gone without knowing."""
        with self._gate:
            begun, self._begun = self._begun, None
        if begun is not None and begun.unwanted:
            self.roll_back_block()

    def claim(self, operation: Operation[Any], kept: sqlite3.Cursor | None) -> None:
        """Note that the caller has its result; of the cursors that were made it has this one."""
        for cursor in operation.made:
            if cursor is not kept:
                self._dropped.append(cursor)

    def abandon(
        self, operation: Operation[Any], error: BaseException, *, grace: float = 0.0
    ) -> None:
        """Note that the caller has gone without its result, but with an error.

        If it was cancelled, what runs is interrupted, ``grace`` seconds later.
        """
        if isinstance(error, Exception) and self.tell and operation.lease == self.lease:
            self.tell(error)
        with self._gate:
            operation.abandoned = True
            if not isinstance(error, Exception) and operation.ends():
                self._unsettled = operation.lease == self.lease
            if operation.finished:
                if isinstance(error, Exception):
                    self._dropped.extend(operation.made)
                else:
                    self._leave(operation)
                if operation.lease == self.lease:
                    self._doubts += 1
        if not self.is_patient:
            self._chase(operation, grace)

    def withdraw(self, operation: Operation[Any], error: BaseException) -> None:
        """Abandon an operation that must not be begun any more."""
        operation.withdrawn = True
        self.abandon(operation, error)

    def _leave(self, operation: Operation[Any]) -> None:
        """Take back what an operation has made, fetched or ended while nobody was there to see."""
        self._dropped.extend(operation.made)
        if operation.lease == self.lease:
            if operation.broke:
                self.lose()
            if operation.began:
                operation.unwanted = True
                if self._begun is not operation:  # others have gone on in it
                    self.lose(left=True)
            if (cursor := operation.cursor) is not None:
                cursor.is_torn = True

    # -- between two leases ----------------------------------------------------------------------

    def _facts(self) -> Facts:
        waits_in_slices = self._busy_timeout is not None
        self.wait_at_once()  # or the short wait would be taken for the user's
        facts = super()._facts()
        if waits_in_slices:
            self.wait_in_slices()
        return facts

    def is_clean(self) -> bool:
        """Tell whether a reset would find nothing to undo; in any thread.

        What is still queued for the lease does not count: it will be refused (`run`).
        """
        return (
            not self._doubts
            and not self._in_block
            and self._ended is None
            and not self.in_transaction
            and self.is_as_remembered()
            and not self.is_file_due()
            and not (self._cursors and any(cursor.is_open for cursor in list(self._cursors)))
        )

    def clean(self) -> str | None:
        """Undo what a lease has left behind, verify it, and return what that was."""
        note = None
        self.silence()
        self.switch_autocommit(off=True)
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
        self.close_blobs()
        self.is_patient = False
        self.wait_at_once()
        self.roll_back_block()
        if self._is_busy():
            raise sqlite3.OperationalError("the connection is not idle after its reset")
        if self.is_file_due():
            self.check_files()
        self._undo_in_time()
        self.switch_autocommit(off=False)
        self.listen()
        self._doubts = 0
        return note

    def _undo_in_time(self) -> None:
        """Undo, for as long as the reset is waited for if another connection has the lock."""
        began = time.monotonic()
        try:
            self.undo()
        except sqlite3.OperationalError as error:
            running = self._running
            if running is None or not is_busy(error):
                raise
            self.again(self.undo, error, began, running, math.inf)

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
