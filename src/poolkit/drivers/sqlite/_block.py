"""Transaction blocks on SQLite's own connection: how one begins, what must not end it, what has.

- SQLite's authorizer is asked when a statement is prepared, and knows a COMMIT, END or ROLLBACK
  from whatever looks like one; savepoints are another matter to it. It is set at a connection's
  first block, and stays: to set one has every statement prepared anew, at twice the price of a
  block's statements, while a prepared statement asks nobody. So a COMMIT that was prepared between
  two blocks would pass in the second: then, and only then, it is set again.
- SQLite ends a transaction by itself after some errors: `INSERT OR ROLLBACK`, a full disk, a write
  that is interrupted. What comes next would be in autocommit, and stay whatever becomes of the
  block. So whether there is still a transaction is looked at after every operation.
"""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from poolkit._errors import TransactionEnded
from poolkit._shell import messages
from poolkit._text import shown
from poolkit.drivers.sqlite._state import Session
from poolkit.drivers.sqlite._waits import Waits

if TYPE_CHECKING:
    from collections.abc import Callable

#: What is done whatever has become of the transaction, by the names of its functions.
_ALWAYS: Final = frozenset(
    {"_close", "begin", "clean", "close", "commit_block", "ping", "roll_back_block"}
)
#: What takes note of the end of a transaction that was begun by hand.
_ANEW: Final = re.compile(r"\s*(?:BEGIN|ROLLBACK)\b(?!.*\bTO\b)", re.IGNORECASE | re.DOTALL)
_LEGACY: Final = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL, of Python 3.12


class Guard:
    """The authorizer of one connection: refuses the end of a block, then asks the user's own."""

    __slots__ = ("closed", "loose", "refused", "theirs")

    def __init__(self) -> None:
        #: The authorizer that the user has set.
        self.theirs: Callable[..., int] | None = None
        #: Whether no statement may end the transaction.
        self.closed = False
        #: Whether statements may have been prepared that would end one.
        self.loose = True
        #: The statement that was refused last.
        self.refused = ""

    def __call__(self, action: int, *what: str | None) -> int:
        """Answer SQLite."""
        if action == sqlite3.SQLITE_TRANSACTION and what[0] != "BEGIN":
            if self.closed:
                self.refused = what[0] or ""
                return sqlite3.SQLITE_DENY
            self.loose = True
        return sqlite3.SQLITE_OK if self.theirs is None else self.theirs(action, *what)


class Blocks(Waits, Session):
    """A connection of SQLite's that knows whether it is in a transaction block."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard: Final = Guard()
        self._in_block = False
        #: How the transaction was ended that its user still believes to be in.
        self._ended: str | None = None
        #: Whether who was to end a transaction by hand was cancelled.
        self._unsettled = False

    def put_authorizer(self, callback: Callable[..., int] | None) -> None:
        """Have SQLite ask the user's own authorizer, after ours; None: no more."""
        self.guard.theirs = callback
        self._install()

    def _install(self) -> None:
        # Has all statements prepared anew: they are shown to whoever is asked from now on.
        super().put_authorizer(self.guard)
        self.guard.loose = False

    def own(self, sql: str) -> list[Any]:
        """Execute a statement that the user's authorizer and trace callback do not hear of."""
        theirs, self.guard.theirs = self.guard.theirs, None
        self.trace(on=False)
        try:
            return super().own(sql)
        finally:
            self.guard.theirs = theirs
            self.trace(on=True)

    # -- a block, in the connection's thread -----------------------------------------------------

    def begin(self, mode: str) -> None:
        """Begin the transaction of a block."""
        if self._in_block and self._ended is not None:
            raise messages.has_ended(self._ended)
        if self.guard.loose:
            self._install()
        self.command(f"BEGIN {mode}")
        self._in_block = self.guard.closed = True
        self._ended = None

    def commit_block(self) -> None:
        """End a block well, or raise; then it is to be rolled back."""
        if not self.in_transaction:
            raise messages.has_ended(self._ended or _SOMEHOW)
        self._pass(sqlite3.Connection.commit)
        self._in_block = False

    def roll_back_block(self) -> None:
        """End a block; its transaction may have ended before."""
        self._in_block = self._unsettled = False
        self._ended = None
        self._pass(sqlite3.Connection.rollback)

    def _pass(self, end: Callable[[sqlite3.Connection], None]) -> None:
        """Commit or roll back, which nothing else may inside of a block.

        By a method, not by a statement: that would be kept, prepared, for whoever executes it.
        """
        if getattr(self, "autocommit", _LEGACY) != _LEGACY:
            self.autocommit = _LEGACY  # with another one commit() does more than that, or nothing
        loose = self.guard.loose
        self.guard.closed = False
        try:
            end(self)
        finally:
            self.guard.closed = self._in_block and self.in_transaction
            self.guard.loose = loose

    # -- an operation, before and after ----------------------------------------------------------

    def is_lost(self, in_transaction: bool, /) -> bool:  # noqa: FBT001  # at every operation
        """Tell whether a transaction has ended that its user still believes to be in."""
        if self._in_block and not in_transaction and self._ended is None:
            self._ended = _SOMEHOW
        return self._ended is not None

    def refuse(self, name: str, sql: str | None) -> None:
        """Raise, since a transaction was ended, unless the function is one that may be called."""
        if name in _ALWAYS:
            return
        if self._in_block:
            raise messages.has_ended(self._ended or _SOMEHOW)
        if name == "rollback" or (sql is not None and _ANEW.match(sql)):
            self._ended = None
            return
        raise TransactionEnded(
            f"the transaction that was begun here by hand has ended: {self._ended}. Call "
            "rollback() to go on with this connection, and begin again"
        )

    def settle(self, name: str, in_transaction: bool, *, ends: bool) -> None:  # noqa: FBT001
        """Raise if a transaction is open whose end was cancelled, unless this is to end it."""
        self._unsettled = in_transaction and not self._in_block and not ends
        if self._unsettled and name not in _ALWAYS:
            raise sqlite3.OperationalError(
                "the COMMIT or ROLLBACK of the transaction that was begun here by hand was "
                "cancelled before it was done: call commit() or rollback() again"
            )

    def explained(self, error: Exception, name: str) -> Exception:
        """Return the error to be raised in place of one of SQLite's: mostly that one."""
        refused, self.guard.refused = self.guard.refused, ""
        if not refused or getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_AUTH:
            return error
        if name != "executescript" or getattr(self, "autocommit", _LEGACY) != _LEGACY:
            return messages.would_end(refused)
        return messages.would_end(
            "executescript(), which begins with a COMMIT,",
            "; execute the statements of the script one by one",
        )

    def has_lost(self, error: BaseException | None) -> bool:
        """Note, after an operation inside of a transaction, if that has ended; tell whether."""
        try:
            lost = not self.in_transaction
        except sqlite3.ProgrammingError:  # closed
            return False
        if lost and self._in_block and self._ended is None:
            self._ended = (
                _SOMEHOW if error is None else f"SQLite has rolled it back: {shown(error)}"
            )
        return lost and error is not None

    def has_begun(self) -> bool:
        """Tell, after an operation outside of a transaction, whether one is open now."""
        try:
            return self.in_transaction
        except sqlite3.ProgrammingError:  # closed
            return False

    def lose(self, *, left: bool = False) -> None:
        """Note that a statement nobody waited for has ended the transaction, or begun it."""
        self._ended = _LEFT if left else _ABANDONED


_SOMEHOW: Final = "something in it has ended it"
_ABANDONED: Final = (
    "SQLite has rolled it back, as a write in it was interrupted whose caller was cancelled"
)
_LEFT: Final = "the caller of its BEGIN was cancelled"
