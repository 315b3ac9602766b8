"""Something to be done on a connection of SQLite's, in its thread, and how that goes.

::

    queued ──▶ running ──▶ finished
      │          │ its caller goes: `abandoned`, then `chased`, `hit` by interrupts, until it ends
      └─▶ never begun: `withdrawn`, or abandoned and in vain
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

#: What executes a single statement once.
_STATEMENTS: Final = frozenset({"execute", "fetch", "insert"})
_SELECTS: Final = re.compile(r"\s*(?:SELECT|VALUES)\b", re.IGNORECASE)
#: What may stand before a statement: comments, and empty statements.
_BEFORE: Final = r"(?>\s+|;|--[^\n]*|/\*(?:[^*]|\*(?!/))*+(?:\*/)?)*+"
_BEGINS: Final = re.compile(_BEFORE + r"(?:BEGIN|SAVEPOINT)\b", re.IGNORECASE)
_ENDS: Final = re.compile(
    _BEFORE + r"(?:COMMIT|END|ROLLBACK)\b(?!.*\bTO\b)", re.IGNORECASE | re.DOTALL
)


class Operation(Generic[T]):
    """A function to be run on a connection, in its thread, for the sake of one lease."""

    #: Whether its caller has gone.
    abandoned = False
    #: Whether it must not be begun any more.
    withdrawn = False
    #: Whether it is to end now.
    chased = False
    #: Set when it has ended, if somebody is interrupting it or about to.
    ended: threading.Event | None = None
    #: Whether an interrupt was sent while it ran.
    hit = False
    #: Whether it runs while other cursors are half read.
    beside = False
    #: Whether it has failed, and the transaction that it was in with it.
    broke = False
    #: Whether a transaction is open since, which is to be undone if nobody knows of it.
    began = unwanted = False
    finished = False

    def __init__(
        self,
        raw: Raw,
        lease: int,
        function: Callable[[], T],
        *,
        tame: bool,
        known: bool = True,
        patience: float | None = None,
    ) -> None:
        self.raw = raw
        self.lease = lease
        self.function = function
        #: The method of the connection, or of a cursor, that it is about, and what is given to it.
        self.method: Any = function
        self.args: tuple[Any, ...] = ()
        if isinstance(function, functools.partial):
            self.method, self.args = function.func, function.args
        #: Whether nothing is left by it, if it ends well, that `Raw.is_clean` does not see.
        self.tame = tame
        #: Whether it does nothing past the methods of `Raw` and `RawCursor`.
        self.known = known
        #: Seconds that it may wait for a lock; None: as long as the connection does.
        self.patience = patience
        #: The cursors it has made.
        self.made: list[RawCursor] = []

    def __call__(self) -> T:
        """Run it when no other runs, if it is still wanted."""
        return self.raw.run(self)

    def is_over(self) -> bool:
        """Tell whether nobody waits for it any more."""
        return self.abandoned or self.lease != self.raw.lease

    @property
    def name(self) -> str:
        """What the method is called."""
        return getattr(self.method, "__name__", "")

    @property
    def cursor(self) -> RawCursor | None:
        """The cursor that it fetches from, or executes again."""
        owner = getattr(self.method, "__self__", None)
        return cast("RawCursor", owner) if isinstance(owner, sqlite3.Cursor) else None

    @property
    def sql(self) -> str | None:
        """The statement, if it is a single one."""
        if not (self.args and getattr(self.method, "__name__", "") in _STATEMENTS):
            return None
        sql = self.args[0]
        return sql if isinstance(sql, str) else None

    def is_vain(self) -> bool:
        """Tell whether there is no point in it without a caller; writes and settings are made.

        What follows a BEGIN that its caller knows nothing of would be undone with it.
        """
        sql = self.sql
        if sql is None:
            return self.tame
        return (self.tame and _SELECTS.match(sql) is not None) or _BEGINS.match(sql) is not None

    def ends(self) -> bool:
        """Tell whether it is to end a transaction that was begun by hand."""
        if self.name in ("commit", "rollback"):
            return True
        sql = self.sql
        return sql is not None and _ENDS.match(sql) is not None
