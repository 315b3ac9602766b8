"""One connection of SQLite: which thread may use it, and for which lease.

- Every operation goes through `Raw.run`, whichever thread calls it, and no two run at once.
- An operation belongs to a lease, and so does a cursor. When the lease ends (`Raw.revoke`), queued
  operations are refused and the one that runs is interrupted: SQLite itself would carry on with a
  statement whose caller was cancelled, and would commit it.
- An operation is also interrupted when its caller is cancelled; see
  `poolkit.drivers.sqlite._interrupts`.
- A reset closes the lease's cursors first. A half-read cursor keeps its snapshot of the database
  although no transaction is open, and SQLite cannot truncate the WAL file behind it.
- A lease that provably left nothing behind needs no reset (see `is_tracked`, `Raw.is_clean`). A
  reset costs several times as much as a small statement: it is a job, and a hop to the thread.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar, cast

from poolkit import NotLeased
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
    """SQLite's connection; it knows its cursors, the operation that runs, and for which lease.

    It holds its cursors, and closes one in its own thread when the owner (the library's cursor,
    which the user has) is gone. If the garbage collector freed a half-read cursor, often in the
    event loop's thread, it would wait for the statement that runs, and might spoil the error code
    of that.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: How many operations since the last reset `is_clean` cannot account for: those that were
        #: not tracked, have failed, were abandoned, or still run.
        self._untracked = 0
        #: Whether it was closed, or will be as soon as its thread comes to it.
        self.closing = False
        #: Tells the pool of errors; it does not see those that cursors raise.
        self.report_error: Callable[[Exception], object] | None = None
        #: Cursors without an owner, to be closed in the connection's thread.
        self._unowned: deque[RawCursor] = deque()
        #: The last operation, if it has left a transaction open.
        self._beginner: Operation[Any] | None = None
        self._run_lock = threading.Lock()  # held while an operation runs
        #: Whether a statement that has failed because of another connection's lock may be retried.
        self.retries_locked = False
        #: Whether an operation may finish when its caller was cancelled.
        self.lets_cancelled_finish: bool = False

    # The methods of `sqlite3.Connection` make cursors that would not be known here.

    def cursor(self, factory: Any = RawCursor) -> Any:
        """Return a cursor that the next reset will close."""
        made: Any = super().cursor(factory)
        running = self._running
        if isinstance(made, RawCursor):
            made.lease = self.lease if running is None else running.lease
        else:
            self.compare_at_reset()  # what is executed on it is not seen here
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
        unowned = self._unowned
        if cursor in self._cursors:
            self._cursors[cursor] = weakref.ref(owner, lambda _: unowned.append(cursor))

    def close(self) -> None:
        """Close the connection and its cursors: else SQLite would keep its files open."""
        for cursor in list(self._cursors):
            sqlite3.Cursor.close(cursor)
        self._cursors.clear()
        super().close()

    def finish(self) -> None:
        """Close, once no operation runs."""
        with self._run_lock:
            self.close()

    # These use cursors that nobody else sees, which need not be known here.

    def fetch(self, sql: str, parameters: Any = ()) -> list[Any]:
        """Execute a statement; return its rows."""
        return self._execute_unseen(sql, parameters, sqlite3.Cursor.fetchall)

    def insert(self, sql: str, parameters: Any = ()) -> Any:
        """Execute an INSERT; return a row with the id of the new one."""
        return self._execute_unseen(sql, parameters, self._inserted_id)

    def _inserted_id(self, cursor: sqlite3.Cursor) -> Any:
        if self.inserting_lease != self.lease:
            self.forget_id()
        return cursor.execute("SELECT last_insert_rowid()").fetchone()

    def _execute_unseen(
        self, sql: str, parameters: Any, result: Callable[[sqlite3.Cursor], T]
    ) -> T:
        """Execute a statement on a cursor that nobody else sees; return a result of the cursor."""
        changes = self.about_to_execute(sql, parameters)
        cursor = super().cursor()
        try:
            cursor.execute(sql, parameters)
            if changes:
                self.executed(cursor, sql)
            return result(cursor)
        finally:
            cursor.close()

    def set_journal(self, mode: str) -> str:
        """Set the journal mode; return the mode that the file has now."""
        mode_now: str = self.command(f"PRAGMA journal_mode={mode}")[0][0]
        return mode_now.upper()

    def ping(self) -> None:
        """Execute a statement; raise if the database's file was replaced or deleted."""
        self.check_files()
        self.command("SELECT 1")

    def is_reading(self) -> bool:
        """Tell whether cursors may have rows left."""
        return any(getattr(cursor, "is_open", True) for cursor in list(self._cursors))

    # -- running an operation --------------------------------------------------------------------

    def check(self, lease: int) -> None:
        """Raise `NotLeased` unless this lease is the present one."""
        if lease != self.lease:
            raise NotLeased(
                "this was made from a connection that has been given back since: a cursor or an "
                "operation cannot be used after the lease it belongs to"
            )

    def run(self, operation: Operation[T]) -> T:
        """Run an operation when no other runs; refuse it if its lease has ended meanwhile."""
        with self._run_lock:
            if self._unowned:
                self._close_unowned()
            if self._beginner is not None:
                self._roll_back_unwanted()
            if self._cursors:
                operation.beside_open_cursors = self._is_beside_open_cursors(operation)
            with self._lock:
                if operation.withdrawn or (operation.abandoned and operation.is_pointless()):
                    return cast("T", None)  # which nobody waits for
                self.check(operation.lease)
                self._running = operation
                self._untracked += 1
            tracked = was_in_transaction = False
            error: Exception | None = None
            try:
                was_in_transaction = not self.closing and self.in_transaction
                self._prepare(operation, was_in_transaction)
                result = self._call(operation, in_transaction=was_in_transaction)
                # A callback of the user's may have made other cursors, and used them.
                tracked = operation.tracked and operation.made in ([], [result])
            except Exception as raised:
                error = self.explained(raised, operation.name)
                if error is raised:
                    raise
                raise error from raised
            else:
                return result
            finally:
                if was_in_transaction:
                    operation.lost_transaction = self.note_end_after(error)
                elif not operation.tracked and self.has_begun():
                    operation.began_transaction, self._beginner = True, operation
                error = None  # its traceback refers to this frame
                self._conclude(operation, tracked=tracked)

    def _prepare(self, operation: Operation[Any], in_transaction: bool, /) -> None:  # noqa: FBT001
        if (self._in_block or self._ended) and self.note_end(in_transaction):
            self.refuse_after_end(operation.name, operation.sql)
        if self._end_was_cancelled and not operation.abandoned:
            self.refuse_until_ended(
                operation.name, in_transaction, ends=operation.ends_transaction()
            )
        if operation.beside_open_cursors:
            self._end_when_told(operation)
        if operation.abandoned and not self.lets_cancelled_finish:
            self._interrupt_until_ended(operation, GRACE)
        if self._baseline_due:
            self.read_baseline()
        if not operation.known:
            self.distrust()

    def _call(self, operation: Operation[T], *, in_transaction: bool) -> T:
        """Call the function of an operation; wait if another connection has the lock."""
        function, sql = operation.function, operation.sql
        if sql is None:
            # What is tracked has its lock already, or begins or ends a block.
            repeats = operation.tracked
            slices = operation.patience is not None
        else:
            repeats = may_be_repeated(sql)
            slices = repeats and self.retries_locked
        if not repeats or (sql is not None and not (slices or in_transaction)):
            self.use_users_wait()
            return function()
        if slices and not in_transaction:
            self.use_short_wait()
        began = time.monotonic()
        try:
            return function()
        except sqlite3.OperationalError as error:
            if not is_for_lock(error, began):
                raise
            if in_transaction:
                if not self.has_waited(began):
                    raise
                if not self.retries_locked:
                    self.use_users_wait()
                    return function()
            return self.retry(function, error, began, operation)

    def _conclude(self, operation: Operation[Any], *, tracked: bool) -> None:
        if operation.beside_open_cursors:
            super().put_progress_handler(*self._progress)
        with self._lock:
            self._running = None
            operation.finished = True
            if operation.abandoned:
                self._undo_unseen(operation)
            elif tracked:
                self._untracked -= 1
            if operation.ended is not None:
                operation.ended.set()
        if operation.was_interrupted and (cursor := operation.cursor) is not None:
            cursor.end()  # or the interrupt would end the next statement of the cursor

    def _close_unowned(self) -> None:
        while self._unowned:
            cursor = self._unowned.popleft()
            if cursor in self._cursors:  # else it is closed, and so may be the connection
                sqlite3.Cursor.close(cursor)
                del self._cursors[cursor]

    def is_in_transaction(self) -> bool:
        """Tell if the next operation will find a transaction open; callable from any thread."""
        beginner = self._beginner
        return self.in_transaction and (beginner is None or not beginner.is_unwanted)

    def _roll_back_unwanted(self) -> None:
        """Roll back a transaction whose beginner's caller was cancelled and does not know of it."""
        with self._lock:
            beginner, self._beginner = self._beginner, None
        if beginner is not None and beginner.is_unwanted:
            self.roll_back_block()

    def claim(self, operation: Operation[Any], kept: sqlite3.Cursor | None) -> None:
        """Note that the caller has its result, with the cursor ``kept`` if that is not None.

        Other cursors that the operation has made are closed.
        """
        for cursor in operation.made:
            if cursor is not kept:
                self._unowned.append(cursor)

    def abandon(
        self, operation: Operation[Any], error: BaseException, *, grace: float = 0.0
    ) -> None:
        """Note that the caller has no result: it was cancelled, or has got an error.

        An operation that still runs is interrupted, ``grace`` seconds later.
        """
        if isinstance(error, Exception) and self.report_error and operation.lease == self.lease:
            self.report_error(error)
        with self._lock:
            operation.abandoned = True
            if not isinstance(error, Exception) and operation.ends_transaction():
                self._end_was_cancelled = operation.lease == self.lease
            if operation.finished:
                if isinstance(error, Exception):
                    self._unowned.extend(operation.made)
                else:
                    self._undo_unseen(operation)
                if operation.lease == self.lease:
                    self._untracked += 1
        if not self.lets_cancelled_finish:
            self._interrupt_until_ended(operation, grace)

    def withdraw(self, operation: Operation[Any], error: BaseException) -> None:
        """Abandon an operation; if it has not begun, it never does."""
        operation.withdrawn = True
        self.abandon(operation, error)

    def _undo_unseen(self, operation: Operation[Any]) -> None:
        """Undo what an operation has made, begun, ended or fetched whose caller was cancelled."""
        self._unowned.extend(operation.made)
        if operation.lease == self.lease:
            if operation.lost_transaction:
                self.transaction_lost()
            if operation.began_transaction:
                operation.is_unwanted = True
                if self._beginner is not operation:  # other operations have run in the transaction
                    self.transaction_lost(left=True)
            if (cursor := operation.cursor) is not None:
                cursor.is_torn = True

    # -- between two leases ----------------------------------------------------------------------

    def _facts(self) -> Facts:
        waits_in_slices = self._busy_timeout is not None
        self.use_users_wait()  # or the short wait would be taken for the user's
        facts = super()._facts()
        if waits_in_slices:
            self.use_short_wait()
        return facts

    def is_clean(self) -> bool:
        """Tell whether a reset would find nothing to undo; callable from any thread.

        Operations that are still queued for the lease do not count: `run` will refuse them.
        """
        return (
            not self._untracked
            and not self._in_block
            and self._ended is None
            and not self.in_transaction
            and self.is_as_remembered()
            and not self.is_file_due()
            and not (self._cursors and any(cursor.is_open for cursor in list(self._cursors)))
        )

    def clean(self) -> str | None:
        """Undo what a lease has left behind, verify that, and name what is worth a warning."""
        note = None
        self.mute_callbacks()
        self.switch_autocommit(off=True)
        self._close_unowned()
        cursors = list(self._cursors)
        if self.in_transaction:
            note = "an open transaction"
        elif cursors and self._is_busy():
            note = "a half-read cursor"
        for cursor in cursors:
            # Before the rollback: an interrupt stays in force as long as a cursor is open.
            sqlite3.Cursor.close(cursor)
        self._cursors.clear()
        self.close_blobs()
        self.lets_cancelled_finish = False
        self.use_users_wait()
        self.roll_back_block()
        if self._is_busy():
            raise sqlite3.OperationalError("the connection is not idle after its reset")
        if self.is_file_due():
            self.check_files()
        self._undo_in_time()
        self.switch_autocommit(off=False)
        self.unmute_callbacks()
        self._untracked = 0
        return note

    def _undo_in_time(self) -> None:
        """Undo; if another connection has the lock, retry for as long as the pool waits."""
        began = time.monotonic()
        try:
            self.undo()
        except sqlite3.OperationalError as error:
            running = self._running
            if running is None or not is_busy(error):
                raise
            self.retry(self.undo, error, began, running, math.inf)

    def _is_busy(self) -> bool:
        """Tell whether a transaction or a statement is open; sqlite3 has no function for that.

        VACUUM fails if one is, before it looks where to write to. Registering a function would tell
        as well, but all prepared statements would have to be prepared again.
        """
        try:
            self.command("VACUUM INTO NULL")
        except sqlite3.Error as error:
            interrupted = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT
            return interrupted or str(error).startswith("cannot VACUUM")
        return False
