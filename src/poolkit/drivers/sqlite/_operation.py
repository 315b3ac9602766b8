"""An operation on a connection of SQLite's: a function to be run in the connection's thread.

::

    queued ──▶ running ──▶ finished
      │          │ its caller is cancelled: `abandoned`, then interrupted until it ends
      └─▶ never begun: `withdrawn`, or abandoned and pointless
"""

from __future__ import annotations

import functools
import re
import sqlite3
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from poolkit.drivers.sqlite._connection import Raw
    from poolkit.drivers.sqlite._cursor import RawCursor

T = TypeVar("T")

#: The methods that execute a single statement once.
_STATEMENTS: Final = frozenset({"execute", "fetch", "insert"})
_SELECTS: Final = re.compile(r"\s*(?:SELECT|VALUES)\b", re.IGNORECASE)
#: What may come before a statement: comments, and empty statements.
_BEFORE: Final = r"(?>\s+|;|--[^\n]*|/\*(?:[^*]|\*(?!/))*+(?:\*/)?)*+"
_BEGINS: Final = re.compile(_BEFORE + r"(?:BEGIN|SAVEPOINT)\b", re.IGNORECASE)
_ENDS: Final = re.compile(
    _BEFORE + r"(?:COMMIT|END|ROLLBACK)\b(?!.*\bTO\b)", re.IGNORECASE | re.DOTALL
)


class Operation(Generic[T]):
    """A function to be run on a connection, in its thread, for one lease."""

    #: Whether its caller was cancelled, or has got an error from elsewhere.
    abandoned = False
    #: Whether it must not begin any more.
    withdrawn = False
    #: Whether it has to end now.
    must_end = False
    #: Set when it has ended, if a thread interrupts it or is about to.
    ended: threading.Event | None = None
    #: Whether an interrupt was sent while it ran.
    was_interrupted = False
    #: Whether it runs while other cursors are half read.
    beside_open_cursors = False
    #: Whether it has failed and the transaction has ended with it.
    lost_transaction = False
    #: Whether it has left a transaction open.
    began_transaction = False
    #: Whether that transaction has to be rolled back, since the caller does not know of it.
    is_unwanted = False
    finished = False

    def __init__(
        self,
        raw: Raw,
        lease: int,
        function: Callable[[], T],
        *,
        tracked: bool,
        known: bool = True,
        patience: float | None = None,
    ) -> None:
        self.raw = raw
        self.lease = lease
        self.function = function
        #: The method of the connection or of a cursor that it calls, and the arguments.
        self.method: Any = function
        self.args: tuple[Any, ...] = ()
        if isinstance(function, functools.partial):
            self.method, self.args = function.func, function.args
        #: Whether `Raw.is_clean` sees all that it leaves behind, if it succeeds.
        self.tracked = tracked
        #: Whether it calls methods of `Raw` and `RawCursor` only, none of `sqlite3`'s own.
        self.known = known
        #: Seconds that it may wait for a lock; None: as long as ``busy_timeout`` allows.
        self.patience = patience
        #: The cursors it has made.
        self.made: list[RawCursor] = []

    def __call__(self) -> T:
        """Run the operation when no other runs; see `Raw.run`."""
        return self.raw.run(self)

    def is_unawaited(self) -> bool:
        """Tell whether nobody waits for the operation any more."""
        return self.abandoned or self.lease != self.raw.lease

    @property
    def name(self) -> str:
        """The name of the method."""
        return getattr(self.method, "__name__", "")

    @property
    def cursor(self) -> RawCursor | None:
        """The cursor whose method it calls; None if the method is the connection's."""
        owner = getattr(self.method, "__self__", None)
        return cast("RawCursor", owner) if isinstance(owner, sqlite3.Cursor) else None

    @property
    def sql(self) -> str | None:
        """The statement, if the operation executes a single one."""
        if not (self.args and getattr(self.method, "__name__", "") in _STATEMENTS):
            return None
        sql = self.args[0]
        return sql if isinstance(sql, str) else None

    def is_pointless(self) -> bool:
        """Tell whether it need not begin if its caller was cancelled. Writes and settings are done.

        A BEGIN is not: what follows would be undone with a transaction nobody knows of.
        """
        sql = self.sql
        if sql is None:
            return self.tracked
        return (self.tracked and _SELECTS.match(sql) is not None) or _BEGINS.match(sql) is not None

    def ends_transaction(self) -> bool:
        """Tell whether it ends a transaction that was begun by hand."""
        if self.name in ("commit", "rollback"):
            return True
        sql = self.sql
        return sql is not None and _ENDS.match(sql) is not None
