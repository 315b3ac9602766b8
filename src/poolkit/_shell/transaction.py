"""Transactions of the library's own kind, around a block."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Generic, Self

from poolkit._core.slot import UNDONE
from poolkit._driver import C
from poolkit._errors import PoolConfigError
from poolkit._shell import messages
from poolkit._shell.operations import watched
from poolkit._shell.view import held_slot

if TYPE_CHECKING:
    import types
    from collections.abc import Awaitable, Callable

    from poolkit._core.slot import Slot
    from poolkit._errors import PoolTimeout
    from poolkit._shell.lease import Lease

    #: Gives back a connection, which has raised this, and returns another one.
    Exchange = Callable[[BaseException], Awaitable[Any]]


class Transaction(Generic[C]):
    """Commits at the end of the block, or rolls back.

    After an ordinary exception the ROLLBACK is awaited, under ``reset_timeout``, so that a retry
    elsewhere does not meet our locks. After a cancellation nothing is awaited: the reset at the end
    of the lease rolls back, and until then nothing more can be done on the connection, since it
    would join the open transaction and be undone with it. Nor can anything be done in the block
    once its transaction has ended otherwise: it would stand by itself.

    A COMMIT that was sent and whose answer never came is a `CommitUnknown`. One that is cancelled
    is a cancellation.

    If the connection turns out to be lost when the transaction begins, and nothing else was done on
    it, another one is acquired, once, within the same deadline: a BEGIN has no effect to repeat.
    """

    __slots__ = (
        *("_ends_lease", "_exchange", "_has_ended", "_in_doubt", "_lease", "_manager", "_outer"),
        *("_place", "_release_count", "_settings", "_since", "_slot", "_timeout", "_view"),
    )

    def __init__(self, lease: Lease[C] | None, view: Any, settings: dict[str, Any]) -> None:
        self._lease = lease
        self._view: Any = view
        self._settings = settings
        self._timeout: float | None = None
        self._exchange: Exchange | None = None
        self._in_doubt = False
        self._ends_lease = lease is not None
        #: The block that this one is inside of, as `Slot.block`.
        self._outer: Transaction[C] | None = None
        self._has_ended: Callable[[], bool] | None = None

    def within(self, timeout: float | None, *, since: float) -> Self:
        """Have what beginning waits for end in time: an acquire, with its timeout, began then."""
        self._timeout = timeout
        self._since = since
        return self

    def exchanging(self, exchange: Exchange) -> Self:
        """Have a connection that is lost exchanged: nobody else has a view of it yet."""
        self._exchange = exchange
        return self

    def ending_lease(self) -> Self:
        """Have the lease undone with the COMMIT, if the driver can: it ends right after it."""
        self._ends_lease = True
        return self

    async def __aenter__(self) -> C:
        """Acquire the connection, unless it was given, and begin."""
        lease = self._lease
        if lease is not None:
            self._place = lease._code, lease._lasti
            self.within(lease._timeout, since=lease._pool._now())
            self._view = await lease.__aenter__()
        slot: Slot = self._view._poolkit_slot
        is_new = not slot.touched
        try:
            await self._begin()
        except BaseException as error:
            exchange = self._exchange if lease is None else self._acquire_another
            if exchange is None or not (is_new and self._was_lost(slot, error)):
                await self._end_lease(error)
                raise
            self._view = await exchange(error)  # what this raises has the error in its context
            await self._begin_again()
        view: C = self._view
        return view

    async def _begin_again(self) -> None:
        try:
            await self._begin()
        except BaseException as error:
            await self._end_lease(error)
            raise

    def _was_lost(self, slot: Slot, error: BaseException) -> bool:
        """Tell whether beginning has failed because there is no connection any more."""
        pool = self._view._poolkit_pool
        return isinstance(error, Exception) and pool._state.is_open and pool._hooks.has_lost(slot)

    async def _acquire_another(self, error: BaseException) -> C:
        """Acquire another connection in place of the one that was lost."""
        assert self._lease is not None
        pool, label = self._lease._pool, self._lease._label
        await self._end_lease(error)
        pool._uncount(self._lease)
        limit = None if self._timeout is None else self._left(self._timeout)
        self._lease = lease = pool.acquire(timeout=limit)
        lease._code, lease._lasti = self._place
        lease._label = label
        return await lease.__aenter__()

    async def _end_lease(self, error: BaseException) -> None:
        """Give back what was acquired here; nothing is awaited."""
        if self._lease is not None:
            await self._lease.__aexit__(type(error), error, None)

    async def _begin(self) -> None:
        self._slot = slot = held_slot(self._view)
        self._release_count = slot.release_count
        driver = self._view._poolkit_pool._driver
        if not hasattr(driver, "transaction"):
            raise PoolConfigError(
                f"{type(driver).__name__} has no transactions: begin and commit by statements"
            )
        self._view._poolkit_touch("transaction")
        try:
            self._manager = driver.transaction(slot.connection, **self._settings)
        except TypeError:
            _check_names(driver, self._settings)
            raise
        is_limited = self._timeout is not None and hasattr(self._manager, "patience")
        if self._timeout is not None and is_limited:
            self._manager.patience = self._left(self._timeout)
        self._has_ended = getattr(self._manager, "has_ended", None)
        self._outer = slot.block
        try:
            await watched(self._view, self._manager.__aenter__())
        except BaseException as error:
            if not isinstance(error, Exception):
                self._put_in_doubt()
            if is_limited and isinstance(error, TimeoutError):
                raise self._too_late(error) from error.__cause__
            raise
        if slot.release_count == self._release_count:
            slot.block = self

    def check(self, name: str) -> None:
        """Raise if nothing more can be done in this block, or in those around it."""
        block: Transaction[C] | None = self
        while block is not None:
            if block._in_doubt:
                raise messages.was_cancelled(self._view._poolkit_pool.name, name)
            if block._has_ended is not None and block._has_ended():
                raise messages.transaction_ended(self._view._poolkit_pool.name)
            block = block._outer

    def _left(self, timeout: float) -> float:
        now: float = self._view._poolkit_pool._now()
        return max(0.0, self._since + timeout - now)

    def _too_late(self, error: TimeoutError) -> PoolTimeout:
        pool = self._view._poolkit_pool
        return messages.not_begun(pool.name, self._timeout, str(error), pool.stats())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Commit or roll back, then give back what was acquired here."""
        try:
            if self._slot.release_count != self._release_count:
                if error is None:  # released inside the block, hence rolled back: say so
                    held_slot(self._view)
            elif self._is_in_doubt():
                if error is None:  # half of it was cancelled: not to be committed
                    self._slot.block.check("commit")
            elif error is None:
                await self._commit()
            elif isinstance(error, Exception):
                await self._roll_back(error)
            else:
                self._put_in_doubt()
        except BaseException as failure:
            if not isinstance(failure, Exception):
                self._put_in_doubt()
            error = error or failure
            raise
        finally:
            try:
                self._unlink()
                if self._lease is not None:
                    await self._lease.__aexit__(None, error, None)
            finally:
                del error  # which would hold this frame, and be held by it

    def _unlink(self) -> None:
        """Let operations ask this block no more; one that another task has begun in it goes on."""
        if self._slot.release_count != self._release_count or self._is_in_doubt():
            return
        block: Transaction[C] | None = self._slot.block
        if block is self:
            self._slot.block = self._outer
        while block is not None:
            if block._outer is self:
                block._outer = self._outer
            block = block._outer

    def _is_in_doubt(self) -> bool:
        """Tell whether this block, or one inside of it, was cancelled."""
        block: Transaction[C] | None = self._slot.block
        return block is not None and block._in_doubt

    async def _commit(self) -> None:
        if self._has_ended is not None and self._has_ended():
            ended = messages.transaction_ended(self._view._poolkit_pool.name)
            await self._roll_back(ended)  # what was begun in its place
            raise ended
        manager, slot = self._manager, self._slot
        in_doubt = slot.busy or slot.cancelled or slot.has_derived or slot.verdicts
        folds = self._ends_lease and not in_doubt and hasattr(manager, "ends_lease")
        is_undone = False
        try:
            if folds:
                manager.ends_lease = True
                slot.touched = UNDONE  # unless another task touches it meanwhile
            await watched(self._view, manager.__aexit__(None, None, None))
            is_undone = folds and manager.has_reset
        except Exception as error:
            pool = self._view._poolkit_pool
            is_whole = self._outer is None  # and no savepoint
            if pool._hooks.may_have_committed(manager, slot, error, is_whole=is_whole):
                raise messages.commit_unknown(pool.name, error) from error
            raise
        finally:
            if folds and not is_undone and slot.release_count == self._release_count:
                slot.touched = True

    async def _roll_back(self, error: Exception) -> None:
        pool = self._view._poolkit_pool
        runtime, limit = pool._runtime, pool._state.options.reset_timeout
        rolled_back = False
        try:
            with runtime.limited(runtime.after(limit)):
                await watched(self._view, self._leave(error))
                rolled_back = True
        except Exception:  # noqa: S110  # the caller's own error is the one to see
            pass
        if not rolled_back:  # the reset will
            self._put_in_doubt()

    async def _leave(self, error: Exception) -> None:
        """Roll back; the error that the manager lets through says nothing of the connection."""
        try:
            await self._manager.__aexit__(type(error), error, error.__traceback__)
        except Exception as failure:
            if failure is not error:
                raise

    def _put_in_doubt(self) -> None:
        """Refuse everything more in this lease: the transaction may still be open."""
        if self._slot.release_count == self._release_count:
            self._slot.cancelled = self._in_doubt = True
            self._slot.block = self


def _check_names(driver: Any, settings: dict[str, Any]) -> None:
    """Raise `PoolConfigError` for settings that the driver's transactions do not take."""
    _, *parameters = inspect.signature(driver.transaction).parameters.values()
    known = [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]
    unknown = [f"{name}=" for name in settings if name not in known]
    if unknown and len(known) == len(parameters):
        taken = ", ".join(f"{name}=" for name in known) or "nothing"
        raise PoolConfigError(
            f"{type(driver).__name__}: its transactions do not take {', '.join(unknown)}; "
            f"they take {taken}"
        ) from None


def transaction(connection: C, /, **settings: Any) -> Transaction[C]:
    """Run a block in a transaction, on a connection that you hold.

    ``async with poolkit.transaction(conn): ...`` commits at the end of the block or rolls back.
    After a cancellation of the block nothing more can be done on the connection but to release it.

    ``settings`` are the driver's: ``isolation``, ``readonly``, and on PostgreSQL ``settings`` and
    ``role``, which hold until the end of the transaction. Raises `NotLeased` when the connection
    was not acquired from a pool or has been given back, and `PoolConfigError` for settings that the
    driver does not take.
    """
    held_slot(connection)
    return Transaction(None, connection, settings)
