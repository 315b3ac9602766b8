"""The pool: acquires and releases connections, and tells what it has.

Nothing is awaited between taking a connection and owning it. What is common to all events is in
`events`, the end of a lease in `returning`, opening and closing in `life`, the line in `waiting`,
`on_acquire` in `greeting`.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

from poolkit._awaits import check_hook
from poolkit._driver import C, require_driver
from poolkit._errors import NotLeased, PoolClosed, PoolError
from poolkit._options import check_seconds, make_options
from poolkit._shell import messages
from poolkit._shell.callsite import caller
from poolkit._shell.greeting import Greeting
from poolkit._shell.labels import checked as checked_label
from poolkit._shell.labels import current as current_label
from poolkit._shell.labels import get as get_label
from poolkit._shell.labels import in_use as labels_in_use
from poolkit._shell.lease import DONE, Lease, Released, TracedLease
from poolkit._shell.limits import NOT_GIVEN, NotGiven, checked
from poolkit._shell.retrying import Attempts, Retrying
from poolkit._shell.transaction import Transaction
from poolkit._shell.view import bind, held_slot, is_closed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from typing_extensions import Unpack

    from poolkit._driver import Driver
    from poolkit._options import Options, PoolOptions


T = TypeVar("T")

# What the hot path calls, without the look-ups.
new: Final = object.__new__
getframe: Final = sys._getframe
ref: Final = weakref.ref


class Pool(Greeting[C]):
    """A pool of connections: ``async with pool``, then ``async with pool.acquire() as conn``.

    Made from a driver and options (`Options` has them all), for example
    ``Pool(driver, min_size=1, max_size=10)``. Making one does nothing yet; opening it does. All
    methods must be called on the event loop on which the pool was opened.

    Raises `PoolConfigError` for options that cannot work, and for what is no driver.
    """

    def __init__(self, driver: Driver[C], /, **options: Unpack[PoolOptions]) -> None:
        require_driver(driver)
        given = make_options(options)
        _check_options(driver, given)
        name = given.name or str(getattr(driver, "name", None) or type(driver).__name__)
        super().__init__(driver, given, name)
        self._driver_is_dead = driver.is_dead
        self._default_limit = given.acquire_timeout
        self._has_hook = given.on_acquire is not None
        traces = given.leak_after is not None or sys.flags.dev_mode
        self._new_lease: type[Lease[C]] = TracedLease if traces else Lease

    # -- acquire ---------------------------------------------------------------------------------

    def acquire(
        self, *, timeout: float | NotGiven | None = NOT_GIVEN, label: str | None = None
    ) -> Lease[C]:
        """Return the right to a connection: ``async with pool.acquire() as conn``, or await it.

        What is awaited has to be given back with `release`.

        Args:
            timeout: seconds that waiting may take in all; None: no limit. 0, or less: wait for no
                other user; only a ping or a reset of a connection that nobody holds, and
                ``on_acquire``, may take a moment, half a second in all. Without it, the pool's
                ``acquire_timeout``.
            label: what the connection is for, as errors, `leases` and observers name it; one line
                of at most 200 characters. Without it, that of the `poolkit.labelled` block around,
                or none.

        Raises:
            PoolTimeout: none became free in time; the message says what the pool was doing.
            PoolBusy: ``max_waiting`` are waiting already, the ``shedding`` policy has refused it,
                or a finalizer calls in the middle of the pool's own work.
            PoolDeadlock: all who hold a connection are waiting for another one.
            ConnectFailed: the database cannot be reached.
            PoolUnavailable: ``on_acquire`` has rejected one connection after the other.
            PoolClosed: the pool is not open, or was closed meanwhile.
            WrongLoop: the pool was opened on another event loop, or before a fork.
            PoolConfigError: the timeout is no number of seconds, or the label no text.

        """
        # The hot path begins: what follows is written out, for the sake of two calls less.
        frame = getframe(1)
        lease: Lease[C] = new(self._new_lease)
        lease._slot = lease._over = None  # before all else: its finalizer looks at it
        lease._pool = self
        lease._timeout = self._default_limit if timeout is NOT_GIVEN else checked(timeout)
        lease._code = frame.f_code
        lease._lasti = frame.f_lasti
        if label is None and not labels_in_use:
            lease._label = None
        elif label is None:
            found = get_label()
            lease._label = found if isinstance(found, str) else current_label()
        else:
            lease._label = checked_label(label)
        return lease

    def transaction(
        self,
        *,
        timeout: float | NotGiven | None = NOT_GIVEN,
        label: str | None = None,
        **settings: Any,
    ) -> Transaction[C]:
        """Acquire a connection and run a block in a transaction: commit at its end, or roll back.

        ``timeout`` and ``label`` are those of `acquire`, ``settings`` the driver's: ``isolation``,
        ``readonly``, ..., and on PostgreSQL ``settings={"app.tenant": "42"}`` and ``role="web"``,
        which are gone when the transaction ends. Raises what `acquire` raises, `TransactionEnded`
        for what ends the transaction inside of the block, `CommitUnknown` if the answer to the
        COMMIT never comes, and `PoolConfigError` for settings that the driver does not take. On
        SQLite ``timeout`` covers the wait for the lock of the file.
        """
        lease = self.acquire(timeout=timeout).at(caller(2))
        if label is not None:
            lease._label = checked_label(label)
        return Transaction(lease, None, settings)

    def run(
        self,
        fn: Callable[[C], Awaitable[T]],
        /,
        *,
        retries: int = 3,
        timeout: float | NotGiven | None = NOT_GIVEN,
        label: str | None = None,
        **settings: Any,
    ) -> Coroutine[Any, Any, T]:
        """Await ``fn(conn)`` in a transaction, and again if that is undone; return its result.

        It is run again after a conflict with other transactions, also one that the COMMIT finds
        (serialization failures and deadlocks; on SQLite, a lock that was not had in time), and if
        the connection is lost before the COMMIT was sent. Each attempt has a new lease. Between two
        attempts is a short pause, drawn by chance. ``fn`` should do nothing that cannot be done
        twice, beside what it does on ``conn``: send no mail, and no part of a response.

        No other error is tried again, nor is a cancellation: not one that ``fn`` has raised itself,
        not one ``from`` a conflict, not one of acquiring, nor `CommitUnknown`. A group of errors is
        if all in it are.

        Args:
            fn: an async function of one connection.
            retries: attempts that may follow the first one; 0: none.
            timeout: seconds after which no attempt begins: the deadline of all acquires and of the
                pauses, and on SQLite of the wait for the lock of the file. The time that ``fn``
                takes counts, but neither ``fn`` nor a COMMIT is ended by it. None: no limit.
                Without it, the pool's ``acquire_timeout``.
            label: as in `acquire`.
            settings: as in `transaction`.

        Raises:
            CommitUnknown: the answer to the COMMIT never came.
            PoolConfigError: ``fn`` is no async function, or ``retries`` no number of attempts.
            Exception: what `transaction` raises, and ``fn``; of several attempts, the last one.

        """
        if not inspect.iscoroutinefunction(fn):  # else it is sure to be one
            check_hook("fn", fn)
        return self._retrying(retries, timeout, label, settings).run(fn)

    def attempts(
        self,
        *,
        retries: int = 3,
        timeout: float | NotGiven | None = NOT_GIVEN,
        label: str | None = None,
        **settings: Any,
    ) -> Attempts[C]:
        """Return the attempts at one transaction, for a loop: `run` for what is no function.

        ::

            async for attempt in pool.attempts():
                async with attempt as conn:
                    ...

        The arguments, and what is tried again, are those of `run`. The loop ends after the first
        attempt that succeeds; the block of the last one raises its error. Let nothing follow the
        block in the loop: it would be done after failed attempts, too. A conflict that only the
        COMMIT finds is tried again if the block has come to its end; if a ``return`` or ``break``
        has left it, or if something follows it, the error is raised.

        Raises `PoolConfigError` in an async generator: what it has yielded cannot be taken back.
        """
        return Attempts(self._retrying(retries, timeout, label, settings))

    def _retrying(
        self,
        retries: int,
        timeout: float | NotGiven | None,
        label: str | None,
        settings: dict[str, Any],
    ) -> Retrying[C]:
        return Retrying(
            self,
            caller(3),
            retries=retries,
            timeout=self._default_limit if timeout is NOT_GIVEN else checked(timeout),
            label=None if label is None else checked_label(label),
            settings=settings,
        )

    def _acquire_nowait(self, lease: Lease[C]) -> C | None:  # noqa: PLR0912  # the hot path
        """Lease an idle connection, without waiting; None if there is none, or others wait."""
        state = self._state
        if state.phase != "open" and not state.is_open:
            raise self._is_not_open(lease)
        runtime = self._runtime
        home = runtime.home
        if self._amid or runtime.where() is not home:
            runtime.check()  # raises WrongLoop, but for a finalizer
            raise self._busy_with_itself(lease)
        if self._inbox:
            self._drain()
        if self._observers is not None:
            self._tell_acquire_began(lease)
        if state.queue or self._has_hook:
            return None  # waiting, or awaiting the hook, makes this no fast path
        try:
            task = ref(runtime.current_task(home))
        except (TypeError, RuntimeError):  # None of asyncio, or an error of trio's
            raise messages.no_task(self.name) from None
        self._amid = True
        try:
            now = runtime.now()
            slot = state.take(now)
            if slot is not None:
                try:
                    is_sound = not self._driver_is_dead(slot.connection)
                except BaseException as error:
                    state.undo_take(slot, now)
                    self._hooks.report("is_dead", error)
                    slot, is_sound = state.take(now), False
                if not is_sound:
                    slot = self._take_another(slot, now)
                if slot is not None:
                    slot.code = lease._code
                    slot.lasti = lease._lasti
                    slot.label = lease._label
                    slot.task = task
                    lease._release_count = slot.release_count
                    lease._slot = slot
        finally:
            self._amid = False
        if state.to_start or state.to_terminate:  # the dead and the overaged ones passed over
            self._carry_out()
        if slot is None:
            return None
        view = new(slot.view_class)
        bind(view, lease)
        if self._observers is not None:
            self._tell_leased(lease, slot, 0.0)
        return view  # type: ignore[no-any-return]

    def _is_not_open(self, lease: Lease[Any]) -> PoolClosed:
        """Return the error for an acquire from a pool that is not open."""
        self._state.outcomes["closed"] += 1
        self._tell_refused(lease, "closed")
        return messages.not_open(self.name)

    def _busy_with_itself(self, lease: Lease[Any]) -> PoolError:
        """Return the error for a finalizer that acquires in the middle of a line of ours."""
        self._tell(self._state.count, "busy")
        self._tell_refused(lease, "busy")
        return messages.amid(self.name)

    # -- release, inspect and adjust --------------------------------------------------------------

    def release(self, connection: C, /) -> Released:
        """Give a connection back: done when this returns; the result may be awaited or not.

        Raises `NotLeased` when it was given back before, or belongs to another pool, and changes
        nothing then, whoever holds the connection by now. A connection that its holder has closed
        is given back already: then there is nothing to do.
        """
        try:
            held_slot(connection)
        except NotLeased:
            if not is_closed(connection):
                raise
        pool = connection._poolkit_pool  # type: ignore[attr-defined]  # held_slot saw a view
        if pool is not self:
            raise NotLeased(
                f"this connection belongs to pool {pool.name!r}, not to pool {self.name!r}: "
                "release it there"
            )
        self._runtime.check()  # raises WrongLoop
        lease = connection._poolkit_lease  # type: ignore[attr-defined]  # held_slot saw a view
        self._end_lease(lease, caller(2), None)
        return DONE

    @property
    def is_open(self) -> bool:
        """Whether the pool is open, or being opened; False from the moment it begins to close.

        Also False when its event loop has ended, or the run of trio's. May be asked from any
        thread.
        """
        life = self._life
        return life is not None and self._state.is_open and not life.runtime.has_ended()

    def resize(
        self,
        *,
        min_size: int | None = None,
        min_idle: int | None = None,
        max_size: int | None = None,
        max_overflow: int | None = None,
    ) -> None:
        """Change the sizes: growing is at once, shrinking as connections come back.

        Raises `PoolConfigError`, and changes nothing, for sizes that cannot work.
        """
        sizes = {
            "min_size": min_size,
            "min_idle": min_idle,
            "max_size": max_size,
            "max_overflow": max_overflow,
        }
        given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
        options = dataclasses.replace(self._state.options, **given)
        _check_options(self._driver, options)
        if self._state.is_open:
            self._runtime.check()  # raises WrongLoop
        self._tell(self._state.resize, options, self._now())
        self._carry_out()

    def renew(self, *, over: float = 0.0) -> None:
        """Replace every connection older than now: the idle ones at once, others on their return.

        For new credentials, a failover, a changed schema. None of them is handed out again.

        Args:
            over: seconds in the course of which their times come, one after the other, so that not
                all are missing at once. Each goes as soon as its successor is there, if there is
                room for one within ``max_size``.

        """
        check_seconds("over", over, optional=False)
        if self._state.is_open:
            self._runtime.check()  # raises WrongLoop
            self._renew(over)

    def __repr__(self) -> str:
        """Return the name and the sizes."""
        closed = "" if self._state.is_open else " closed"
        return f"<Pool {self.name!r}{closed}: {self.stats()}>"


def _check_options(driver: Driver[Any], options: Options) -> None:
    check = getattr(driver, "check_options", None)
    if check is not None:
        check(options)
