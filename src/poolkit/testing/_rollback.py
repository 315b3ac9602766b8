"""A pool for tests that must not leave rows: one connection, in a transaction that never commits.

The pool is a real one, of one connection; what is special is its driver. It wraps the real driver
around a connection that it borrows, and keeps this order on it::

    BEGIN                                   once, by the real driver
      SAVEPOINT checkout                    before each lease, ended by the reset after it
        SAVEPOINT transaction_1             what transaction() is inside
    ROLLBACK                                at the end of the block
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Final, Generic

import anyio

from poolkit._driver import C, Verdict
from poolkit._errors import PoolConfigError, PoolError
from poolkit._shell.pool import Pool
from poolkit._shell.view import held_slot

if TYPE_CHECKING:
    import types
    from collections.abc import AsyncIterator

    from poolkit._driver import Driver
    from poolkit._options import PoolOptions

_CHECKOUT: Final = "poolkit_checkout"


@contextlib.asynccontextmanager
async def rollback(pool: Pool[C]) -> AsyncIterator[Pool[C]]:
    """Borrow a connection of an open pool, and undo at the end of the block all that it has done.

    What is given is a `Pool` of that one connection, to be used in place of ``pool``: what one
    checkout writes, the next one sees, and nobody else. Each checkout runs in a savepoint, so that
    an error in one does not spoil the next; ``transaction()`` is a savepoint inside it. Checkouts
    wait for each other: code that holds one and acquires another waits for itself.

    It differs from a real pool in what a checkout that fails leaves behind: nothing of a checkout
    remains in which a statement has failed in PostgreSQL, or was cancelled. The code under test
    must not end the transaction itself (``COMMIT``, ``conn.commit()``): SQLite's drivers refuse it
    (`TransactionEnded`); on PostgreSQL that is found out at the end of its checkout, and from then
    on there are no more. A savepoint of its own that it never releases is kept with the checkout,
    where a real pool would undo it.

    Works with connections that have ``execute(sql)`` and a database with savepoints: asyncpg,
    aiosqlite and `poolkit.drivers.sqlite` are tested. The connection goes back to ``pool``.

    Raises:
        AssertionError: a checkout was not given back within a second of the block's end.
        PoolError: whatever ``pool.acquire()`` raises.

    """
    async with pool.acquire() as view:
        slot = held_slot(view)
        # The reset at the end has something to undo, whatever happens here.
        slot.touched = slot.cancelled = slot.has_derived = True
        options = pool._state.options
        driver = _PinnedDriver(pool._driver, slot.connection, options.reset_timeout)
        given: PoolOptions = {
            "min_size": 0,
            "max_size": 1,
            "ping_after": None,
            "max_lifetime": None,
            "max_idle_time": None,
            "acquire_timeout": options.acquire_timeout,
            "reset_timeout": options.reset_timeout,
            "on_acquire": options.on_acquire,
            "name": f"{pool.name} (rolled back)",
        }
        pinned = await Pool(driver, **given).open()
        held = []
        try:
            await driver.begin()
            yield pinned
        finally:
            # Without waiting if the block was cancelled.
            held = await pinned.aclose(grace=1.0)
        await driver.roll_back()
    if held:
        holders = "; ".join(map(str, held))
        raise AssertionError(f"{pinned.name}: not given back at the end of the block: {holders}")


class _PinnedDriver(Generic[C]):
    """The real driver, for one connection that stays in one transaction."""

    def __init__(self, driver: Driver[C], connection: C, limit: float | None) -> None:
        self._driver: Any = driver
        self._connection: Any = connection
        self._patience = 1.0 if limit is None else limit / 2
        self._outermost: Any = None
        self._savepoints: list[str] = []
        self._made = 0
        self._failure: BaseException | None = None
        self.view_bases: tuple[type, ...] = getattr(driver, "view_bases", ())

    async def execute(self, sql: str) -> None:
        """Execute a statement on the connection itself."""
        await self._connection.execute(sql)

    async def begin(self) -> None:
        """Begin the transaction that is never committed."""
        if hasattr(self._driver, "transaction"):
            # By the library's own means, so that its own transactions inside become savepoints.
            await self._driver.transaction(self._connection).__aenter__()
        else:
            await self.execute("BEGIN")
        self._outermost = getattr(self._connection, "_top_xact", None)
        if hasattr(self._driver, "spare"):
            self._driver.spare(self._connection)
        else:
            self._revoke()  # the transaction is of no block of the driver's any more
        await self.execute(f"SAVEPOINT {_CHECKOUT}")

    async def roll_back(self) -> None:
        """Undo everything; what fails here is left to the reset that follows."""
        self._revoke()
        with contextlib.suppress(Exception), anyio.move_on_after(self._patience):
            if hasattr(self._driver, "roll_back"):
                await self._driver.roll_back(self._connection)
            else:
                await self.execute("ROLLBACK")

    # -- the protocol ----------------------------------------------------------------------------

    async def connect(self) -> C:
        """Hand out the one connection."""
        if self._failure is not None or self.is_dead(self._connection):
            raise PoolError(
                "rollback() has lost its connection, and with it all that the test has written: a "
                "checkout has ended the transaction itself, or was cut off"
            ) from self._failure
        connection: C = self._connection
        return connection

    def is_dead(self, c: C, /) -> bool:
        """Ask the driver."""
        return bool(self._driver.is_dead(c))

    async def ping(self, c: C, /) -> None:
        """Ask the driver."""
        await self._driver.ping(c)

    def revoke(self, c: C, /) -> None:
        """Leave it to the reset.

        The real one may interrupt a statement that was cancelled, and to interrupt a write of
        SQLite's is to roll back all of its transaction.
        """

    async def reset(self, c: C, /) -> None:
        """End the checkout: what it has done stays for the next one, unless it was broken off."""
        try:
            with contextlib.suppress(Exception), anyio.move_on_after(self._patience):
                await self._driver.ping(c)  # after what is still under way, which may end by itself
            self._revoke()
            await self._end_checkout()
            await self.execute(f"SAVEPOINT {_CHECKOUT}")
        except BaseException as error:
            self._failure = error
            raise

    async def _end_checkout(self) -> None:
        abandoned, self._savepoints = bool(self._savepoints), []
        if not abandoned:
            try:
                await self.execute(f"RELEASE SAVEPOINT {_CHECKOUT}")
            except Exception:  # PostgreSQL allows nothing else after an error
                abandoned = True
        if abandoned:
            await self.execute(f"ROLLBACK TO SAVEPOINT {_CHECKOUT}")
            await self.execute(f"RELEASE SAVEPOINT {_CHECKOUT}")

    def _revoke(self) -> None:
        if hasattr(self._driver, "revoke"):
            self._driver.revoke(self._connection)
        if self._outermost is not None:
            # asyncpg makes a transaction a savepoint if it knows of the one around it.
            self._connection._top_xact = self._outermost

    async def close(self, c: C, /) -> None:
        """Keep it: the pool of the test may ask for it again."""

    def terminate(self, c: C, /) -> None:
        """End it: nobody knows what is going on with it."""
        self._failure = self._failure or ConnectionError("the connection was terminated")
        self._driver.terminate(c)

    def classify(self, exc: BaseException, c: C | None, /) -> Verdict | None:
        """Ask the driver; there is no connecting again."""
        if c is None:
            return Verdict.FATAL
        ask = getattr(self._driver, "classify", None)
        verdict: Verdict | None = ask and ask(exc, c)
        return verdict

    def transaction(
        self,
        _: C,
        /,
        *,
        settings: Any = None,
        role: Any = None,
        **others: Any,  # noqa: ARG002
    ) -> _Savepoint:
        """Return a savepoint, in which settings and role hold as in a transaction.

        The other settings are those of the transaction around it.
        """
        local = {"settings": settings, "role": role}
        if settings is None and role is None:
            local = {}
        elif not hasattr(self._driver, "set_locally"):
            raise PoolConfigError(
                f"{type(self._driver).__name__}: in rollback() a transaction is a savepoint, which "
                "has no settings and no role there"
            )
        elif self._savepoints:
            raise PoolConfigError(
                "settings and role are of a whole transaction, and this one is inside of another"
            )
        self._made += 1
        return _Savepoint(self, f"poolkit_{self._made}", local)

    async def set_locally(self, local: dict[str, Any]) -> str:
        """Set what holds until a savepoint ends; return the SQL that sets it back."""
        undo: str = await self._driver.set_locally(self._connection, **local)
        return undo


@dataclasses.dataclass
class _Savepoint:
    """Releases at the end of the block, or rolls back to its begin after an exception."""

    driver: _PinnedDriver[Any]
    name: str
    local: dict[str, Any]
    #: Sets back what was set, for a release does not.
    undo: str = ""

    async def __aenter__(self) -> None:
        """Begin."""
        await self.driver.execute(f"SAVEPOINT {self.name}")
        self.driver._savepoints.append(self.name)
        if self.local:
            try:
                self.undo = await self.driver.set_locally(self.local)
            except Exception as error:
                await self.__aexit__(type(error), error, None)
                raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Keep or undo; after a cancellation the reset undoes the checkout."""
        if error is not None and not isinstance(error, Exception):
            return
        if error is not None:
            await self.driver.execute(f"ROLLBACK TO SAVEPOINT {self.name}")
        await self.driver.execute(f"RELEASE SAVEPOINT {self.name}")
        if self.undo and error is None:
            await self.driver.execute(self.undo)
        self.driver._savepoints.remove(self.name)
