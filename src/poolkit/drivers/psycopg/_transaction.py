"""A transaction as the pool runs it: a COMMIT that did not commit is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg

from poolkit.drivers._postgresql.begin import begin, refuse_inside
from poolkit.drivers._postgresql.fold import commit_and_reset
from poolkit.drivers._postgresql.outcome import is_unknown
from poolkit.drivers.helpers import transaction_ended

if TYPE_CHECKING:
    import types

    from poolkit.drivers.psycopg._driver import PsycopgDriver


class Transaction:
    """BEGIN, and COMMIT or ROLLBACK; inside of another transaction, psycopg's own savepoint.

    Its end raises if the server has rolled back instead of committing. The server does so when a
    statement in the block has failed and its error was caught.
    """

    def __init__(self, c: Any, driver: PsycopgDriver, local: str, **settings: Any) -> None:
        self._connection = c
        self._session = c._poolkit_session
        self._driver = driver
        self._settings = settings
        #: Sets what holds until the transaction ends.
        self._local = local
        #: psycopg's, if this one is inside of another.
        self._inner: Any = None
        #: Set by the pool: the lease ends with the block. Then it may be undone with the COMMIT.
        self.ends_lease = False
        #: Whether that was done.
        self.has_reset: bool = False
        #: Whether a COMMIT was sent.
        self._has_sent = False

    async def __aenter__(self) -> None:
        """Begin, or set a savepoint inside of another transaction."""
        c, session = self._connection, self._session
        if session.settling is not None:
            await session.settled()
        if c._pipeline is not None:
            raise psycopg.ProgrammingError(
                "a pipeline is open: begin the transaction before it, or by the connection's own "
                "transaction()"
            )
        if not session.is_in_transaction():
            await self._begin()
            return
        refuse_inside(self._local)
        if any(self._settings.values()):
            raise psycopg.ProgrammingError(
                "isolation, readonly and deferrable are of a whole transaction, and this one is "
                "inside of another: give them where that one begins"
            )
        self._inner = psycopg.AsyncTransaction(c._poolkit_front())
        await self._inner.__aenter__()

    async def _begin(self) -> None:
        """Begin, and set what is the transaction's; if that fails, roll back."""
        c, session = self._connection, self._session
        lease, texts = session.lease, [_begin(c, **self._settings)]
        if self._local and session._undo_sql.takes_several:
            texts[0] += f";{self._local}"
        elif self._local:
            texts.append(self._local)
        try:
            for text in texts:
                await c._poolkit_execute(text)
        except Exception:
            is_held = session.lease == lease and not session.is_closed()
            if is_held and session.is_in_transaction():
                await c._poolkit_execute("ROLLBACK")
            raise
        if session.lease == lease:
            session.block, session.block_was_replaced = self, False
            c._num_transactions += 1  # psycopg refuses commit() and rollback() then

    def has_ended(self) -> bool:
        """Tell whether the server, or a statement in the block, has ended the transaction."""
        session = self._session
        return not session.is_closed() and (
            session.block_was_replaced or not session.is_in_transaction()
        )

    def check(self) -> None:
        """Raise `TransactionEnded` if the transaction has ended."""
        if self.has_ended():
            raise transaction_ended(self._driver.name)

    def may_have_committed(self, error: Exception) -> bool:
        """Tell whether a COMMIT that has raised may have taken effect."""
        return self._has_sent and is_unknown(error, closed=self._session.is_closed())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Commit or roll back."""
        c, session = self._connection, self._session
        if self._inner is not None:
            if not self.has_ended():
                await self._inner.__aexit__(kind, error, traceback)
            return
        has_ended = self.has_ended()
        if session.block is self:
            session.block = None
            c._num_transactions -= 1
        if has_ended or kind is not None:
            if session.is_in_transaction():
                await c._poolkit_execute(f"ROLLBACK;{c._poolkit_drop_statements()}")
            return
        async with await c._poolkit_turn():
            if session.settling is not None:
                await session.settled()
            reset = self._driver.reset_with_commit(c) if self.ends_lease else ""
            # libpq sends nothing while a pipeline or a copy is open.
            self._has_sent = not session.has_ended() and session.is_at_rest()
            if reset:
                status, has_reset = await commit_and_reset(session, reset, psycopg.Error)
                self.has_reset = has_reset and session.is_at_rest()
            else:
                (result,) = await session.execute_own("COMMIT")
                status = (result.command_status or b"").decode()
        if status == "ROLLBACK":
            raise psycopg.errors.InFailedSqlTransaction(
                "rolled back, not committed: a statement in this transaction had failed, and its "
                "error was caught; to go on after an error, use a savepoint (a transaction inside)"
            )


ISOLATIONS: Final = ("read_uncommitted", "read_committed", "repeatable_read", "serializable")


def _begin(c: Any, *, isolation: str | None, readonly: bool, deferrable: bool) -> str:
    """Return the statement that begins; what is not given is as the connection says."""
    if isolation is None and c.isolation_level is not None:
        isolation = c.isolation_level.name
    return begin(
        isolation=isolation,
        readonly=readonly or c.read_only,
        deferrable=deferrable or c.deferrable,
    )
