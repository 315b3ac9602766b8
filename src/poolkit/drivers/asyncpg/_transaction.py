"""asyncpg's transaction as the pool runs it: a COMMIT that did not commit is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncpg import exceptions as pg

from poolkit.drivers._postgresql.fold import commit_and_reset
from poolkit.drivers._postgresql.outcome import is_unknown
from poolkit.drivers.helpers import transaction_ended

if TYPE_CHECKING:
    import types

    from poolkit.drivers.asyncpg._driver import AsyncpgDriver


class Transaction:
    """asyncpg's transaction; its end raises if the server has rolled back instead of committing.

    The server does so when a statement in the block has failed and its error was caught. In the
    block the connection calls `check` before each statement, also for statements prepared earlier.
    """

    def __init__(self, c: Any, driver: AsyncpgDriver, **settings: Any) -> None:
        self._connection = c
        self._driver = driver
        self._inner = c.transaction(**settings)
        #: asyncpg's outermost transaction, if this is the one that has begun it.
        self._top: Any = None
        #: Set by the pool: the lease ends with the block. Then it may be undone with the COMMIT.
        self.ends_lease = False
        #: Whether that was done.
        self.has_reset = False

    async def __aenter__(self) -> None:
        """Begin, or set a savepoint inside of another transaction."""
        c = self._connection
        is_first, lease = not c.is_in_transaction(), getattr(c, "_pool_release_ctr", 0)
        await self._inner.__aenter__()
        if is_first and lease == getattr(c, "_pool_release_ctr", 0):
            # Not `self._inner`, around which an agent may have put a wrapper.
            self._top = getattr(c, "_top_xact", self)
            c._block, c._block_was_replaced = self, False

    def _is_outermost(self) -> bool:
        return self._top is not None and getattr(self._connection, "_top_xact", self) is self._top

    def has_ended(self) -> bool:
        """Tell whether the server, or a statement in the block, has ended the transaction."""
        c = self._connection
        return not c.is_closed() and (c._block_was_replaced or not c.is_in_transaction())

    def check(self) -> None:
        """Raise `TransactionEnded` if the transaction has ended."""
        if self.has_ended():
            raise transaction_ended(self._driver.name)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Commit or roll back."""
        c = self._connection
        is_outermost = self._is_outermost()
        has_ended = self.has_ended()
        if is_outermost:
            c._block = None
        if has_ended:
            if is_outermost:
                if c._parts.has_top_transaction:
                    c._top_xact = None
                if c.is_in_transaction():
                    await c.execute("ROLLBACK;")
            return
        if kind is not None or not is_outermost:
            await self._inner.__aexit__(kind, error, traceback)
            return
        await self._commit()

    def may_have_committed(self, error: Exception) -> bool:
        """Tell whether a COMMIT that has raised may have taken effect."""
        closed = self._connection.is_closed()
        return self._top is not None and is_unknown(error, closed=closed, unsent=_is_unsent(error))

    async def _commit(self) -> None:
        c = self._connection
        if c._parts.has_top_transaction:
            c._top_xact = None
            reset = self._driver.reset_with_commit(c) if self.ends_lease else ""
            if reset:
                status, self.has_reset = await commit_and_reset(c, reset, pg.PostgresError)
            else:
                status = await c.execute("COMMIT;")
        else:  # asyncpg sends the COMMIT, or would not know that the transaction has ended
            await self._inner.__aexit__(None, None, None)
            status = c._last_status
        if status == "ROLLBACK":
            raise pg.InFailedSQLTransactionError(
                "rolled back, not committed: a statement in this transaction had failed, and its "
                "error was caught; to go on after an error, use a savepoint (a transaction inside)"
            )


def _is_unsent(error: BaseException | None) -> bool:
    """Tell whether asyncpg has refused to send: to a closed connection, or one that is in use."""
    if type(error) is pg.ConnectionDoesNotExistError:
        error = error.__cause__  # of one that `restated` has made
    if type(error) is pg.InternalClientError:
        return str(error).startswith("cannot switch to state")
    return type(error) is pg.InterfaceError
