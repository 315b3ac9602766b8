"""asyncpg's transaction as the pool runs it: a COMMIT that did not commit is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncpg import exceptions as pg

from poolkit.drivers._postgresql.begin import (
    begin,
    reading,
    refuse_inside,
    set_locally,
    setting_back,
)
from poolkit.drivers._postgresql.fold import commit_and_reset
from poolkit.drivers._postgresql.outcome import is_unknown
from poolkit.drivers.asyncpg import _unwrapped as unwrapped
from poolkit.drivers.helpers import transaction_ended

if TYPE_CHECKING:
    import types

    import asyncpg

    from poolkit.drivers._postgresql.begin import LocalSettings
    from poolkit.drivers.asyncpg._driver import AsyncpgDriver


class Transactions:
    """What a driver knows of transactions."""

    def transaction(
        self: Any,
        c: asyncpg.Connection,
        /,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        settings: LocalSettings | None = None,
        role: str | None = None,
    ) -> Transaction:
        """Return a transaction; inside of another one it is a savepoint.

        ``isolation``, ``readonly`` and ``deferrable`` are those of
        `asyncpg.Connection.transaction`. ``settings`` and ``role`` hold until the transaction ends;
        a savepoint cannot have them. They are set in the round trip of the BEGIN, unless somebody
        watches the statements, who is shown the BEGIN alone.

        Raises `PoolConfigError` for what cannot be a setting, a value or a role.
        """
        local = set_locally(settings, role)
        own = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}
        return Transaction(c, self, local, **own)

    def in_block(self, c: Any, /) -> bool:
        """Tell whether a block of ``async with c.transaction()`` has not ended yet."""
        return bool(getattr(getattr(c, "_top_xact", None), "_managed", False))

    async def set_locally(
        self, c: Any, /, *, settings: LocalSettings | None = None, role: str | None = None
    ) -> str:
        """Set what `transaction` would, in one that is open; return the SQL that sets it back."""
        local = set_locally(settings, role)
        if not local:
            return ""
        before = await c.fetch(reading(settings, role))
        await c.execute(local)
        return setting_back(dict(before))


class Transaction:
    """asyncpg's transaction; its end raises if the server has rolled back instead of committing.

    The server does so when a statement in the block has failed and its error was caught. In the
    block the connection calls `check` before each statement, also for statements prepared earlier.
    """

    def __init__(self, c: Any, driver: AsyncpgDriver, local: str, **settings: Any) -> None:
        self._connection = c
        self._driver = driver
        #: Sets what holds until the transaction ends.
        self._local = local
        self._settings = settings
        self._inner = c.transaction(**settings)
        #: Whether it has sent the BEGIN itself, without asyncpg's transaction.
        self._begins = False
        #: asyncpg's outermost transaction, if this is the one that has begun it.
        self._top: Any = None
        #: Set by the pool: the lease ends with the block. Then it may be undone with the COMMIT.
        self.ends_lease = False
        #: Whether that was done.
        self.has_reset: bool = False

    async def __aenter__(self) -> None:
        """Begin, or set a savepoint inside of another transaction."""
        c = self._connection
        is_first, lease = not c.is_in_transaction(), _lease_of(c)
        if not is_first:
            refuse_inside(self._local)
        if self._local:
            await self._begin_with_settings(lease)
        else:
            await self._inner.__aenter__()
        if is_first and lease == _lease_of(c):
            # Not `self._inner`, around which an agent may have put a wrapper.
            self._top = getattr(c, "_top_xact", self)
            c._block, c._block_was_replaced = self, False

    async def _begin_with_settings(self, lease: int) -> None:
        """Begin, and set what is the transaction's; if that fails, roll back."""
        c = self._connection
        at_once, text = self._can_begin_at_once(), _begin(**self._settings)
        try:
            if at_once:
                self._driver.note(c, text)
                await c.execute_own(f"{text};{self._local}")
            else:
                await self._inner.__aenter__()
                await c.execute_own(self._local)
        except Exception as error:
            if "query" in error.__dict__:
                error.__dict__["query"] = text  # and no values
            if lease == _lease_of(c) and not c.is_closed() and c.is_in_transaction():
                if at_once:
                    await c.execute_own("ROLLBACK;")
                else:
                    await self._inner.__aexit__(type(error), error, error.__traceback__)
            raise
        if at_once and lease == _lease_of(c):
            self._begins = True
            c._top_xact = unwrapped.plain_resource(self._inner)

    def _can_begin_at_once(self) -> bool:
        """Tell whether settings may stand in one text with the BEGIN, which asyncpg sends else."""
        c = self._connection
        if c._block is not None or not c._parts.has_top_transaction or c._top_xact is not None:
            return False  # asyncpg says what is wrong, or knows by the BEGIN that it has begun
        return c._undo_sql.takes_several and not c.has_watched_statements()

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
        if kind is not None and is_outermost and self._begins:
            c._top_xact = None
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


def _begin(*, isolation: str | None, readonly: bool, deferrable: bool) -> str:
    """Return the statement that asyncpg would send."""
    return begin(isolation=isolation, readonly=readonly or None, deferrable=deferrable or None)


def _lease_of(c: Any) -> int:
    count: int = getattr(c, "_pool_release_ctr", 0)
    return count
