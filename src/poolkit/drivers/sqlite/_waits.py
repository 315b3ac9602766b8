"""How SQLite's connection waits for another connection's lock: in short waits that can be ended.

SQLite's own wait knows no deadline and cannot be interrupted; it may last all of ``busy_timeout``.
So SQLite is given a short timeout, and a statement that has failed because of the lock alone is
retried until the user's timeout is over.

- Only under a write-ahead log, or for a BEGIN. In the other journal modes a writer keeps new
  readers out while it waits; a writer that retries would let them pass.
- In a transaction, a statement that has failed at once is not retried: the transaction has read
  what another connection has changed since, and would fail again.
- The user's timeout is set again before a statement that may depend on it. Setting it costs as much
  as a small statement, so the short one stays until then.
"""

from __future__ import annotations

import re
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit.drivers.sqlite._operation import Operation

T = TypeVar("T")

#: Seconds of a short wait, after which it is checked whether anybody still waits.
SLICE: Final = 0.05
_MILLISECONDS: Final = int(SLICE * 1000)
#: In SQLite's errors for a statement that does not fit the tables and columns that it knows.
_OUTDATED: Final = re.compile(r"no such|already|\bcolumns?\b")


class Waits(sqlite3.Connection):
    """A connection of SQLite's whose waits for a lock can be ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The user's ``busy_timeout`` in milliseconds, while the short one may be set.
        self._busy_timeout: int | None = None
        #: Whether SQLite has the short timeout, or may have it.
        self._has_short_wait = False
        #: Whether setting the user's timeout was interrupted: either may be set.
        self._wait_is_unsure = False
        self._interruptions = 0  # how often setting a timeout was interrupted

    def command(self, sql: str) -> list[Any]:
        """Execute a statement on a cursor that nobody else sees; return its rows, as tuples."""
        cursor = super().cursor()
        cursor.row_factory = None
        try:
            return cursor.execute(sql).fetchall()
        finally:
            cursor.close()

    def execute_own(self, sql: str) -> list[Any]:
        """Execute a statement of the driver's."""
        return self.command(sql)

    def use_short_wait(self) -> None:
        """Set the short timeout, unless the user's is as short."""
        if self._busy_timeout is None:
            ((given,),) = self.execute_own("PRAGMA busy_timeout")
            self._busy_timeout = given
            if given > _MILLISECONDS:
                self._has_short_wait = True  # also if this is interrupted: it may be set by then
                self._set_wait(_MILLISECONDS)
        elif self._wait_is_unsure:
            self._set_wait(_MILLISECONDS)
            self._wait_is_unsure = False

    def use_users_wait(self) -> None:
        """Set the user's timeout again, which the user may change from then on."""
        given, self._busy_timeout = self._busy_timeout, None
        if self._has_short_wait:
            try:
                self._set_wait(given)
                self._has_short_wait = self._wait_is_unsure = False
            except sqlite3.Error:  # interrupted: an interrupt lasts while a cursor is open
                self._busy_timeout = given
                self._wait_is_unsure = True

    def _set_wait(self, milliseconds: int | None) -> None:
        """Set ``busy_timeout``. SQLite does so when it prepares the statement.

        A statement that was interrupted stays prepared, and sets nothing when it runs again. So the
        text of the next one is different, by spaces.
        """
        try:
            self.execute_own(
                f"PRAGMA busy_timeout={milliseconds}{' ' * (self._interruptions % 1000)}"
            )
        except sqlite3.Error:
            self._interruptions += 1
            raise

    def retry(
        self,
        function: Callable[[], T],
        error: sqlite3.OperationalError,
        began: float,
        operation: Operation[Any],
        limit: float | None = None,
    ) -> T:
        """Retry a function that has failed because another connection has the lock.

        The last error is raised after the user's ``busy_timeout``, or ``limit`` seconds, or when
        nobody waits for the operation any more. `TimeoutError` is raised after the operation's
        patience, if that is shorter.
        """
        if limit is None:
            limit = (self._busy_timeout or 0) / 1000
        patience = operation.patience
        tried = began
        while not operation.is_unawaited():
            # Some builds of SQLite wait whole seconds only: they do not wait at all for less.
            time.sleep(max(0.0, min(limit, tried + SLICE - time.monotonic())))
            tried = time.monotonic()
            if patience is not None and tried - began >= patience <= limit:
                raise TimeoutError(
                    f"the database file is locked by another connection ({error})"
                ) from error
            if tried - began >= limit:
                break
            try:
                return function()
            except sqlite3.OperationalError as another:
                if not is_for_lock(another, tried):
                    raise
                error = another
        raise error

    def has_waited(self, began: float) -> bool:
        """Tell whether a statement in a transaction may have failed because its wait was short.

        ``began``: when it began. If it has failed at once, waiting longer would not help.
        """
        return self._has_short_wait and time.monotonic() >= began + SLICE


def is_busy(error: sqlite3.Error) -> bool:
    """Tell whether another connection has the lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def is_for_lock(error: sqlite3.Error, began: float) -> bool:
    """Tell whether an error may mean that another connection has the lock.

    ``began``: when the statement began. SQLite also needs the lock to read changed tables and
    columns; if it does not get it, it reports an error by those that it knew before.
    """
    return is_busy(error) or (
        time.monotonic() >= began + SLICE and _OUTDATED.search(str(error)) is not None
    )


def may_be_repeated(sql: str, /) -> bool:
    """Tell whether a single statement may be executed with short waits, and retried.

    Not one that reads or sets ``busy_timeout``, nor a checkpoint: that reports no error when its
    wait is over.
    """
    lower = sql.lower()
    return "busy_timeout" not in lower and "wal_checkpoint" not in lower
