"""Transaction blocks on SQLite's connection: nothing but the block's end may end the transaction.

- An authorizer refuses a COMMIT, END or ROLLBACK by hand. SQLite asks it when a statement is
  prepared, and tells those statements from what only looks like them, and from savepoints. It is
  set at a connection's first block, and stays: when it is set, SQLite prepares every statement
  anew, which costs twice as much as a block's statements. SQLite does not ask it about a statement
  that is prepared already. So if a COMMIT was prepared between two blocks, and only then, it is set
  again.
- SQLite ends a transaction by itself after some errors: `INSERT OR ROLLBACK`, a full disk, a write
  that is interrupted. Later statements would be in autocommit, and stay whatever becomes of the
  block. So it is checked after every operation whether there is still a transaction.
"""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from poolkit import TransactionEnded
from poolkit.drivers.helpers import shown
from poolkit.drivers.sqlite._state import Session
from poolkit.drivers.sqlite._waits import Waits

if TYPE_CHECKING:
    from collections.abc import Callable

#: The functions that run even if the transaction has ended.
_ALWAYS: Final = frozenset(
    {"_close", "begin", "clean", "close", "commit_block", "ping", "roll_back_block"}
)
#: Statements by which a user shows that he knows that a transaction begun by hand has ended.
_STARTS_ANEW: Final = re.compile(r"\s*(?:BEGIN|ROLLBACK)\b(?!.*\bTO\b)", re.IGNORECASE | re.DOTALL)
_LEGACY: Final = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL, of Python 3.12


class Guard:
    """The authorizer of one connection: protects a block's transaction, then asks the user's."""

    __slots__ = ("may_be_bypassed", "protects", "refused", "users")

    def __init__(self) -> None:
        #: The authorizer that the user has set.
        self.users: Callable[..., int] | None = None
        #: Whether no statement may end the transaction.
        self.protects: bool = False
        #: Whether a statement that ends a transaction may have been prepared since it was set.
        self.may_be_bypassed: bool = True
        #: The statement that was refused last: COMMIT or ROLLBACK.
        self.refused: str = ""

    def __call__(self, action: int, *what: str | None) -> int:
        """Tell SQLite whether it may prepare a statement."""
        if action == sqlite3.SQLITE_TRANSACTION and what[0] != "BEGIN":
            if self.protects:
                self.refused = what[0] or ""
                return sqlite3.SQLITE_DENY
            self.may_be_bypassed = True
        return sqlite3.SQLITE_OK if self.users is None else self.users(action, *what)


class Blocks(Waits, Session):
    """A connection of SQLite's that knows whether it is in a transaction block."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard: Final = Guard()
        self._in_block = False
        #: How a transaction has ended whose user may not know that; None: none has.
        self._ended: str | None = None
        #: Whether a COMMIT or ROLLBACK by hand was cancelled before it was done.
        self._end_was_cancelled = False

    def put_authorizer(self, callback: Callable[..., int] | None) -> None:
        """Have SQLite ask the user's authorizer after ours; None: only ours."""
        self.guard.users = callback
        self._install()

    def _install(self) -> None:
        # SQLite prepares all statements anew, and asks for each.
        super().put_authorizer(self.guard)
        self.guard.may_be_bypassed = False

    def execute_own(self, sql: str) -> list[Any]:
        """Execute a statement unseen by the user's authorizer and trace callback."""
        users, self.guard.users = self.guard.users, None
        self.trace(on=False)
        try:
            return super().execute_own(sql)
        finally:
            self.guard.users = users
            self.trace(on=True)

    # -- a block, in the connection's thread -----------------------------------------------------

    def begin(self, mode: str) -> None:
        """Begin the transaction of a block."""
        if self._in_block and self._ended is not None:
            raise _has_ended(self._ended)
        if self.guard.may_be_bypassed:
            self._install()
        self.command(f"BEGIN {mode}")
        self._in_block = self.guard.protects = True
        self._ended = None

    def commit_block(self) -> None:
        """Commit the transaction of a block. If this raises, the block has to be rolled back."""
        if not self.in_transaction:
            raise _has_ended(self._ended or _SOMEHOW)
        self._end_with(sqlite3.Connection.commit)
        self._in_block = False

    def roll_back_block(self) -> None:
        """Roll back the transaction of a block, if it has not ended already."""
        self._in_block = self._end_was_cancelled = False
        self._ended = None
        self._end_with(sqlite3.Connection.rollback)

    def _end_with(self, end: Callable[[sqlite3.Connection], None]) -> None:
        """Commit or roll back, without being refused by the guard.

        By a method, not by a statement: SQLite would keep that prepared, and a user who executes it
        would not be refused.
        """
        if getattr(self, "autocommit", _LEGACY) != _LEGACY:
            self.autocommit = _LEGACY  # else commit() begins another transaction, or does nothing
        may_be_bypassed = self.guard.may_be_bypassed
        self.guard.protects = False
        try:
            end(self)
        finally:
            self.guard.protects = self._in_block and self.in_transaction
            self.guard.may_be_bypassed = may_be_bypassed

    # -- an operation, before and after ----------------------------------------------------------

    def note_end(self, in_transaction: bool, /) -> bool:  # noqa: FBT001  # at every operation
        """Note whether the block's transaction has ended; return True if its user may not know."""
        if self._in_block and not in_transaction and self._ended is None:
            self._ended = _SOMEHOW
        return self._ended is not None

    def refuse_after_end(self, name: str, sql: str | None) -> None:
        """Raise `TransactionEnded`, since a transaction has ended, unless the function may run."""
        if name in _ALWAYS:
            return
        if self._in_block:
            raise _has_ended(self._ended or _SOMEHOW)
        if name == "rollback" or (sql is not None and _STARTS_ANEW.match(sql)):
            self._ended = None
            return
        raise TransactionEnded(
            f"the transaction that was begun here by hand has ended: {self._ended}. Call "
            "rollback() to go on with this connection, and begin again"
        )

    def refuse_until_ended(self, name: str, in_transaction: bool, *, ends: bool) -> None:  # noqa: FBT001
        """Raise if a transaction is open whose end was cancelled, unless this function ends it."""
        self._end_was_cancelled = in_transaction and not self._in_block and not ends
        if self._end_was_cancelled and name not in _ALWAYS:
            raise sqlite3.OperationalError(
                "the COMMIT or ROLLBACK of the transaction that was begun here by hand was "
                "cancelled before it was done: call commit() or rollback() again"
            )

    def explained(self, error: Exception, name: str) -> Exception:
        """Return a `TransactionEnded` for an error that the guard has caused; else that error."""
        refused, self.guard.refused = self.guard.refused, ""
        if not refused or getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_AUTH:
            return error
        if name != "executescript" or getattr(self, "autocommit", _LEGACY) != _LEGACY:
            return _would_end(refused)
        return _would_end(
            "executescript(), which begins with a COMMIT,",
            "; execute the statements of the script one by one",
        )

    def note_end_after(self, error: BaseException | None) -> bool:
        """Note it if a transaction has ended in an operation; return True if by an error."""
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

    def transaction_lost(self, *, left: bool = False) -> None:
        """Note that a statement whose caller was cancelled has ended a transaction.

        ``left``: it has begun the transaction, which has to be rolled back.
        """
        self._ended = _LEFT if left else _ABANDONED


_SOMEHOW: Final = "something in it has ended it"
_ABANDONED: Final = (
    "SQLite has rolled it back, as a write in it was interrupted whose caller was cancelled"
)
_LEFT: Final = "the caller of its BEGIN was cancelled"


def _would_end(statement: str, remedy: str = "") -> TransactionEnded:
    """Return the error for a statement that was refused, since it would end its transaction."""
    return TransactionEnded(
        f"{statement} was refused inside of a transaction block, which commits at its end, and "
        "rolls back if an exception leaves it: leave the block, or raise, to end it; a part of it "
        f"can be undone with SAVEPOINT and ROLLBACK TO{remedy}"
    )


def _has_ended(how: str) -> TransactionEnded:
    """Return the error for whatever is done in a block after its transaction.

    ``how`` is a sentence's end: "SQLite has rolled it back, after: disk I/O error".
    """
    return TransactionEnded(
        f"the transaction of this block has ended before the block: {how}. Leave the block, and "
        "do all of it again in another one"
    )
