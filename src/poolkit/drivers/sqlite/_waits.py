"""How SQLite's own connection waits for another one's lock: in slices, and looks up in between.

SQLite's wait hears of no deadline and of no interrupt, and may last for all of ``busy_timeout``. So
SQLite is given a short one, and what has failed for the lock alone is tried again until the user's
is over. Only under a write-ahead log, or for a BEGIN: in the other journal modes a writer that
tries again would let pass the readers that it is keeping out while it waits. What has failed at
once in a transaction is not tried again: it has read what another one has changed since.

The user's value is put back before anything that might look at it. To set it costs as much as a
small statement, so the short one stays for as long as nothing else is done.
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

#: Seconds that SQLite waits before it is looked whether anybody is still waiting.
SLICE: Final = 0.05
_MILLISECONDS: Final = int(SLICE * 1000)
#: What SQLite says of a statement that does not fit the tables and columns that it knows.
_OUTDATED: Final = re.compile(r"no such|already|\bcolumns?\b")


class Waits(sqlite3.Connection):
    """A connection of SQLite's whose waits for a lock can be ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The user's ``busy_timeout`` in milliseconds, if it is known.
        self._busy_timeout: int | None = None
        #: Whether SQLite has the short one instead, or may have it.
        self._is_short = False
        #: Whether putting the user's back was interrupted: either may be set.
        self._is_unsure = False
        self._interruptions = 0  # of what sets it

    def command(self, sql: str) -> list[Any]:
        """Execute a statement on a cursor that nobody else sees; return its rows, as tuples."""
        cursor = super().cursor()
        cursor.row_factory = None
        try:
            return cursor.execute(sql).fetchall()
        finally:
            cursor.close()

    def own(self, sql: str) -> list[Any]:
        """Execute a statement that is no user's affair."""
        return self.command(sql)

    def wait_in_slices(self) -> None:
        """Give SQLite a short ``busy_timeout``, unless the user's is short itself."""
        if self._busy_timeout is None:
            ((given,),) = self.own("PRAGMA busy_timeout")
            self._busy_timeout = given
            if given > _MILLISECONDS:
                self._is_short = True  # also if this is interrupted: it is set by then
                self._set_wait(_MILLISECONDS)
        elif self._is_unsure:
            self._set_wait(_MILLISECONDS)
            self._is_unsure = False

    def wait_at_once(self) -> None:
        """Give SQLite the user's ``busy_timeout`` again, which may be changed then."""
        given, self._busy_timeout = self._busy_timeout, None
        if self._is_short:
            try:
                self._set_wait(given)
                self._is_short = self._is_unsure = False
            except sqlite3.Error:  # interrupted, as long as a cursor is open
                self._busy_timeout = given
                self._is_unsure = True

    def _set_wait(self, milliseconds: int | None) -> None:
        """Set ``busy_timeout``, which SQLite does when it prepares the statement.

        A statement that was interrupted stays prepared, and does nothing when it runs again: so the
        next one is another text.
        """
        try:
            self.own(f"PRAGMA busy_timeout={milliseconds}{' ' * (self._interruptions % 1000)}")
        except sqlite3.Error:
            self._interruptions += 1
            raise

    def again(
        self,
        function: Callable[[], T],
        error: sqlite3.OperationalError,
        began: float,
        operation: Operation[Any],
        limit: float | None = None,
    ) -> T:
        """Call a function again and again that has failed because another connection has the lock.

        For as long as the user's ``busy_timeout``, or ``limit`` seconds, but for no more than the
        operation's patience, after which this raises `TimeoutError`, and no longer than anybody
        waits for it.
        """
        if limit is None:
            limit = (self._busy_timeout or 0) / 1000
        patience = operation.patience
        tried = began
        while not operation.is_over():
            # Some builds of SQLite wait for whole seconds only, hence not at all.
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
        """Tell whether what began then, in a transaction, may have failed for the short wait.

        There a wait is rare, and most failures are at once: then waiting would not help.
        """
        return self._is_short and time.monotonic() >= began + SLICE


def is_busy(error: sqlite3.Error) -> bool:
    """Tell whether another connection has the lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def is_for_lock(error: sqlite3.Error, began: float) -> bool:
    """Tell whether what began then has failed because another connection has the lock.

    It is also needed to read the tables and columns anew if they were changed; without it SQLite
    reports what it knew before.
    """
    return is_busy(error) or (
        time.monotonic() >= began + SLICE and _OUTDATED.search(str(error)) is not None
    )


def may_be_repeated(sql: str, /) -> bool:
    """Tell whether a single statement may be executed again, as far as waiting for locks goes.

    Not one that tells how long SQLite waits, or sets it; nor a checkpoint, which waits in vain
    without an error.
    """
    lower = sql.lower()
    return "busy_timeout" not in lower and "wal_checkpoint" not in lower
