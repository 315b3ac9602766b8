"""A pool of SQLAlchemy's that has no connections: it borrows poolkit's.

SQLAlchemy keeps a *record* of each connection, with its adapter, its ``info`` and what it has
prepared. Here a record belongs to a slot of poolkit's pool for as long as the connection in it
lives, so nothing has to be prepared twice; a lease comes and goes with each checkout::

    _do_get ─────────▶ lease ─▶ the slot's record gets its view
    _do_return_conn ─▶ given back, as every lease is: poolkit's reset comes after SQLAlchemy's
    _close_connection  what SQLAlchemy gives up: poolkit terminates it, or resets it if SQLAlchemy
                       was interrupted and cannot know

What SQLAlchemy closes is given back through the pool's inbox, because it may do so while garbage is
collected: in the middle of any line, in any thread.

What it leans on that SQLAlchemy does not document is in `poolkit.sqlalchemy._internals`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import greenlet  # type: ignore[import-untyped, unused-ignore]
import sqlalchemy
from sqlalchemy import exc
from sqlalchemy.pool import Pool as _Pool

import poolkit
from poolkit._core.slot import Slot
from poolkit._errors import PoolClosed, PoolConfigError, WrongLoop
from poolkit._errors import PoolTimeout as _PoolTimeout
from poolkit._shell.callsite import indented, place
from poolkit._shell.log import say
from poolkit.sqlalchemy._internals import ConnectionRecord, await_only

if TYPE_CHECKING:
    import types

    from sqlalchemy.engine import Dialect

    from poolkit._shell.pool import Pool
    from poolkit.sqlalchemy._adapters import Adapters

    #: The innermost frame first: a code, and an offset in it.
    Stack = tuple[tuple[types.CodeType, int], ...]


class PoolTimeout(_PoolTimeout, exc.TimeoutError):
    """No connection became free in time: `poolkit.PoolTimeout` and `sqlalchemy.exc.TimeoutError`.

    What catches either of them catches it.
    """

    __module__ = "poolkit.sqlalchemy"


class _Record(ConnectionRecord):
    """SQLAlchemy's record of one connection, and the lease in which it is in use."""

    def __init__(self, pool: PoolkitPool, slot: Slot, view: Any, stack: Stack) -> None:
        super().__init__(pool, connect=False)
        self.pool = pool
        self.slot = slot
        #: The lease that ends when this record is checked in; None when it has ended, or will by
        #: itself: with a detached connection.
        self.view: Any = view
        self.stack = stack
        #: What the connection has of SQLAlchemy's in its leases only, as the events have left it.
        self.set_up: Any = None
        #: Whether `on_acquire` is still to be run.
        self.has_hook_to_run = False
        #: Why SQLAlchemy gives the connection up.
        self.error: BaseException | None = None
        #: Whether the connection is to be replaced when it comes back.
        self.is_invalid = False

    def get_connection(self) -> Any:
        """Return the adapter; make one, and run the connect events, if there is none."""
        before = self.dbapi_connection
        try:
            adapter = super().get_connection()
            if adapter is not before:
                self.set_up = self.pool._adapters.connected(adapter)
                if self.has_hook_to_run:
                    self.has_hook_to_run = False
                    self.pool._run_on_acquire(self.view)
                self.pool._adapters.lend(adapter, self.view, self.set_up)
        except BaseException as error:
            view, self.has_hook_to_run = self.view, False
            if self.dbapi_connection is None and view is not None:  # nothing SQLAlchemy could close
                self.view = None
                view._poolkit_lease.end(_HERE, error)
            raise
        return adapter

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:  # noqa: FBT001, FBT002
        """Give the connection up; what an event raises must not keep one that nobody has yet."""
        self.error = e
        self.is_invalid = self.dbapi_connection is not None
        try:
            super().invalidate(e, soft)
        except BaseException:
            has_user = self.in_use and not getattr(self, "needs_gc", False)
            if not (soft or has_user):
                self._abandon()
            raise

    def checkin(self, _fairy_was_created: bool = True) -> None:  # noqa: FBT001, FBT002
        """Give back; what an event raises must not keep the connection."""
        try:
            super().checkin(_fairy_was_created)
        except BaseException as error:
            self.error = error
            self._abandon()
            raise

    def _abandon(self) -> None:
        adapter, self.dbapi_connection = self.dbapi_connection, None
        if adapter is not None:
            self.pool._close_connection(adapter)


class PoolkitPool(_Pool):
    """What stands in ``AsyncEngine.pool``: it borrows its connections from a pool of poolkit's."""

    __module__ = "poolkit.sqlalchemy"  # which is where it logs, too
    _is_asyncio = True  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        creator: Any,  # noqa: ARG002  # poolkit opens the connections
        lender: Pool[Any],
        adapters: Adapters,
        pre_ping: bool = False,  # noqa: FBT001, FBT002  # SQLAlchemy's
        **options: Any,
    ) -> None:
        super().__init__(self._open, **options)  # type: ignore[arg-type]
        self._lender = lender
        self._adapters = adapters
        self._asked_to_ping = pre_ping
        self._has_hook = lender._state.options.on_acquire is not None
        #: Set by `create_async_engine`.
        self.dialect: Dialect
        self._records: dict[Slot, _Record] = {}
        #: Those whose connections are gone; the next ones get them, with their `record_info`.
        self._spares: list[_Record] = []

    # -- checkout --------------------------------------------------------------------------------

    def _do_get(self) -> ConnectionRecord:
        stack = _stack()
        view = self._acquire(stack)
        try:
            record = self._records.get(view._poolkit_slot)
            is_set_up = False
            if record is not None and record.dbapi_connection is not None:
                is_set_up = True
                self._adapters.begin(view, record.set_up)
                self._run_on_acquire(view)
            record = self._record_for(view, stack)
            record.has_hook_to_run = not is_set_up  # when the connect events have run
        except BaseException as error:
            view._poolkit_lease.end(_HERE, error)
            raise
        return record

    def _acquire(self, stack: Stack) -> Any:
        """Wait for a lease, in the name of SQLAlchemy's user; `on_acquire` is still to be run."""
        lease = self._lender.acquire().at(stack[0])
        try:
            view: Any = lease.take_nowait()  # without a switch of greenlets
            if view is None:
                view = await_only(lease.wait())
        except _PoolTimeout as error:
            raise PoolTimeout(str(error)) from error.__cause__
        except (PoolClosed, WrongLoop):
            _check_loop()
            raise
        slot = view._poolkit_slot
        slot.awaited_release_count = slot.release_count  # any task may close a session
        slot.note_stack(stack)
        return view

    def _run_on_acquire(self, view: Any) -> None:
        """Run `on_acquire`: what it sets is the lease's, and no part of what is set up for all."""
        if self._has_hook:
            try:
                await_only(view._poolkit_lease.run_on_acquire(view))
            except _PoolTimeout as error:
                raise PoolTimeout(str(error)) from error.__cause__

    def _record_for(self, view: Any, stack: Stack) -> _Record:
        slot: Slot = view._poolkit_slot
        record = self._records.get(slot)
        if record is None:
            self._forget_closed()
            record = self._spares.pop() if self._spares else _Record(self, slot, view, stack)
            self._records[slot] = record
        elif record.dbapi_connection is not None:
            self._adapters.lend(record.dbapi_connection, view, record.set_up)
        record.slot, record.view, record.stack, record.error = slot, view, stack, None
        return record

    def _open(self, record: Any) -> Any:
        """Do what SQLAlchemy takes for connecting: adapt the connection that was borrowed."""
        record.is_invalid = False
        dialect = self.dialect
        if dialect.dispatch.do_connect:
            raise PoolConfigError(
                "an event listener for do_connect: poolkit opens the connections. Give "
                "create_pool() what it would set (connect_kwargs={'password': function})"
            )
        view = self._exchange(record) if record.view is None else record.view
        return self._adapters.adapt(dialect, view)

    def _exchange(self, record: _Record) -> Any:
        """Borrow another connection for a record whose own was closed during its checkout."""
        if self._records.get(record.slot) is record:  # or another checkout would take it meanwhile
            del self._records[record.slot]
        view, record.has_hook_to_run = self._acquire(record.stack), True
        record.slot = view._poolkit_slot
        record.view, record.error = view, None
        self._records[record.slot] = record
        return view

    # -- checkin ---------------------------------------------------------------------------------

    def _do_return_conn(self, record: Any) -> None:
        adapter, view = record.dbapi_connection, record.view
        record.view = None
        if adapter is None:  # closed, which has ended the lease; or detached, and lives on without
            caller = sys._getframe(1).f_back
            dropped = caller is not None and caller.f_code.co_name == "_finalize_fairy"
            if (
                dropped
                and view is not None
                and view._poolkit_release_count == record.slot.release_count
            ):
                # Detached, and not by its user: that one was collected without having given back.
                self._lender._post(functools.partial(self._report, record.stack))
            self._spare(record)
        elif view is not None:
            self._give_back(record, adapter, view)
            if record.slot.generation < 0 or record.slot.state in ("closing", "gone"):
                self._forget(record)

    def _give_back(self, record: _Record, adapter: Any, view: Any) -> None:
        lender, slot = self._lender, record.slot
        if view._poolkit_release_count == slot.release_count and lender._runtime.is_here():
            now = lender._runtime.now()
            if record.is_invalid or not self._adapters.keeps:
                slot.generation, slot.retire_at, slot.expires_at = -1, now, now
            if self._adapters.settle(adapter, slot.connection):
                slot.has_derived = False  # by the adapter, and what it has made has ended
        view._poolkit_lease.end(_HERE)

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        view = connection._connection
        slot: Slot = view._poolkit_slot
        record, error = self._records.get(slot), None
        if record is not None and record.view is view:
            record.view, error = None, record.error
        self.logger.debug(
            "%s connection %r", "Hard-closing" if terminate else "Closing", connection
        )
        if view._poolkit_release_count == slot.release_count:
            self._lender._post(functools.partial(self._give_up, view, error))

    def _give_up(self, view: Any, error: BaseException | None) -> None:
        """End the lease of a connection that SQLAlchemy has closed."""
        slot: Slot = view._poolkit_slot
        if view._poolkit_release_count != slot.release_count:
            return
        slot.touched = True
        if error is None or (isinstance(error, Exception) and not isinstance(error, TimeoutError)):
            self._lender._hooks.terminate(slot.connection)
        # Else it may be good: the driver's reset rolls back, and finds out.
        view._poolkit_lease.end(_HERE, error)

    def _report(self, stack: Stack) -> None:
        say(
            logging.ERROR,
            "never_given_back",
            "pool %r: a connection of SQLAlchemy's was never given back: whoever had it was "
            "garbage-collected. It is terminated. It was acquired at%s",
            self._lender.name,
            indented(place(*frame) for frame in stack),
            pool=self._lender.name,
        )

    # -- the others ------------------------------------------------------------------------------

    def _invalidate(
        self,
        connection: Any,
        exception: BaseException | None = None,
        _checkin: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Have the idle connections pinged before their next use: one of them was found dead."""
        lender = self._lender
        if lender._state.is_open:
            lender._tell(lender._state.suspect, lender._runtime.now())
            lender._carry_out()
        if _checkin and getattr(connection, "is_valid", False):
            connection.invalidate(exception)

    def _forget_closed(self) -> None:
        """Drop the records of connections that poolkit has closed meanwhile."""
        for slot, record in list(self._records.items()):
            if slot.state in ("closing", "gone") and not record.in_use:
                self._forget(record)

    def _forget(self, record: _Record) -> None:
        try:
            record.close()
        except Exception:
            self.logger.exception("Exception in an event of closing a connection")
            record.dbapi_connection = None
        self._spare(record)

    def _spare(self, record: _Record) -> None:
        """Part a record from its slot."""
        if self._records.get(record.slot) is record:
            del self._records[record.slot]
        record.slot, record.set_up = _NOWHERE, None  # or the connection that is gone would be kept
        if record not in self._spares:
            self._spares.append(record)

    # -- for SQLAlchemy's users ------------------------------------------------------------------

    def dispose(self) -> None:
        """Have every connection replaced: idle ones now, the others when they come back.

        poolkit's pool stays open. On another event loop, or after a fork, nothing is done.
        """
        lender = self._lender
        if lender._state.is_open and lender._runtime.is_here():
            lender.renew()
        self._forget_closed()

    def recreate(self) -> PoolkitPool:
        """Return another one over the same pool, with the same events; or this one."""
        try:
            settings: dict[str, Any] = {
                "logging_name": self._orig_logging_name,
                "reset_on_return": self._reset_on_return,
            }
        except AttributeError:
            return self
        made = type(self)(
            None,
            self._lender,
            self._adapters,
            pre_ping=self._asked_to_ping,
            echo=self.echo,
            _dispatch=self.dispatch,
            dialect=self.dialect,
            **settings,
        )
        made.dialect = self.dialect
        return made

    def status(self) -> str:
        """Return the name and the sizes of poolkit's pool, in one line."""
        return f"pool {self._lender.name!r}: {self._lender.stats()}"

    def size(self) -> int:
        """Return ``max_size``."""
        return self._lender._state.options.max_size

    def timeout(self) -> float | None:
        """Return ``acquire_timeout``, in seconds."""
        return self._lender._state.options.acquire_timeout

    def checkedin(self) -> int:
        """Return how many connections are idle."""
        return self._lender.stats().idle

    def checkedout(self) -> int:
        """Return how many connections are leased, whoever has them."""
        return self._lender.stats().leased

    def overflow(self) -> int:
        """Return by how many connections there are more than ``max_size``; fewer are negative."""
        return self._lender.stats().size - self.size()


#: The slot of a record without a connection.
_NOWHERE: Final = Slot(-1)
#: Where leases end, as a view says that is used later.
_HERE: Final = (PoolkitPool._do_return_conn.__code__, 0)


def _check_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise PoolConfigError(
            "SQLAlchemy's AsyncEngine runs on asyncio only, inside its event loop; on trio acquire "
            "from the pool itself"
        ) from None


# -- where a connection was acquired -------------------------------------------------------------

#: To look at a frame costs as much as a call: enough of them to find the place in a program.
_DEPTH: Final = 3
_NOT_USERS: Final = (
    "<sqlalchemy generated",
    *(str(Path(str(module.__file__)).parent) + os.sep for module in (sqlalchemy, poolkit)),
)
_users: Final[dict[str, bool]] = {}
_MANY: Final = 1000


def _stack() -> Stack:
    """Return the innermost frames of the user's program, without SQLAlchemy's own.

    SQLAlchemy runs its synchronous code on a stack of its own, in a greenlet; the one that awaits
    it is its parent's.
    """
    found: list[tuple[types.CodeType, int]] = []
    parent = greenlet.getcurrent().parent
    frame = parent.gr_frame if parent is not None else sys._getframe(1)
    while frame is not None and len(found) < _DEPTH:
        code = frame.f_code
        users = _users.get(code.co_filename)
        if _is_users(code.co_filename) if users is None else users:
            found.append((code, frame.f_lasti))
        frame = frame.f_back
    return tuple(found) or (_HERE,)


def _is_users(filename: str) -> bool:
    if filename not in _users:
        if len(_users) >= _MANY:  # code that is made all the time
            _users.clear()
        own = filename.startswith(_NOT_USERS) or f"{os.sep}sqlmodel{os.sep}" in filename
        _users[filename] = not own
    return _users[filename]
