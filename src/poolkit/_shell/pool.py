"""The shell: parks and wakes the callers, and runs what the book decides.

Every public method follows one pattern: tell the state what happened, then `_carry_out` what it has
decided: terminate connections, wake waiters, start jobs, set the alarm. Nothing is awaited between
taking a thing and owning it, and giving back never awaits at all.

The book handles one event at a time. The garbage collector may run a `finally` that releases, or
close a waiting task, in the middle of any line of ours: while `_amid` is True, an event is noted in
the inbox, and handled as soon as the other one is done.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import logging
import random
import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from anyio.lowlevel import checkpoint

from poolkit._awaits import awaited
from poolkit._core.deadlock import closed_by
from poolkit._core.progress import PATIENCE
from poolkit._core.slot import NEVER, Slot, Waiter
from poolkit._core.state import PoolState
from poolkit._driver import C, require_driver
from poolkit._errors import NotLeased, PoolClosed, PoolDeadlock, PoolError, PoolTimeout
from poolkit._options import check_seconds, make_options
from poolkit._shell import messages
from poolkit._shell.blocks import Blocks
from poolkit._shell.callsite import caller, indented, stack_shown
from poolkit._shell.driver_calls import GuardedPolicy, Hooks
from poolkit._shell.labels import checked as checked_label
from poolkit._shell.labels import current as current_label
from poolkit._shell.labels import get as get_label
from poolkit._shell.labels import in_use as labels_in_use
from poolkit._shell.leaks import Leaks
from poolkit._shell.lease import DONE, Closed, Lease, Released, TracedLease
from poolkit._shell.life import Life
from poolkit._shell.log import say, warn
from poolkit._shell.observe import Observers
from poolkit._shell.runtime import BETWEEN, current_runtime
from poolkit._shell.transaction import Transaction
from poolkit._shell.upkeep import Suspended, upkeep
from poolkit._shell.view import bind, held_slot, is_closed, make_view
from poolkit._shell.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Unpack

    from poolkit._core.slot import Event, Outcome, Reason
    from poolkit._driver import Driver
    from poolkit._options import Options, PoolOptions
    from poolkit._shell.lease import Over
    from poolkit._shell.runtime import Runtime
    from poolkit._stats import LeaseInfo, PoolStats


T = TypeVar("T")


class _NotGiven:
    """The type of the default of options for which None means something."""

    def __repr__(self) -> str:
        return "<the pool's acquire_timeout>"


NOT_GIVEN: Final = _NotGiven()

#: Seconds for tasks that have been cancelled to end.
_LAST_WAIT: Final = 1.0

#: How often another thread looks again at what changes under its eyes.
_LOOKS: Final = 100

# What the hot path calls, without the look-ups.
new: Final = object.__new__
getframe: Final = sys._getframe
ref: Final = weakref.ref


class Pool(Generic[C]):
    """A pool of connections: ``async with pool``, then ``async with pool.acquire() as conn``.

    Made from a driver and options (`Options` has them all), for example
    ``Pool(driver, min_size=1, max_size=10)``. Making one does nothing yet; opening it does. All
    methods must be called on the event loop on which the pool was opened.

    Raises `PoolConfigError` for options that cannot work, and for what is no driver.
    """

    def __init__(self, driver: Driver[C], /, **options: Unpack[PoolOptions]) -> None:
        require_driver(driver)
        given = make_options(options)
        self._driver = driver
        self._check_options(given)
        self.name: Final[str] = given.name or str(
            getattr(driver, "name", None) or type(driver).__name__
        )
        self._life: Life | None = None
        self._blocks = Blocks()
        self._held_at_end: list[LeaseInfo] = []  # when a life has ended without `aclose`
        self._amid = False
        self._inbox: deque[Callable[[], object]] = deque()
        self._hooks = Hooks(driver)
        if given.shedding is not None:
            policy = GuardedPolicy(given.shedding, self._hooks)
            given = dataclasses.replace(given, shedding=policy)
        self._state = PoolState(given, random.random)
        self._is_dead = self._hooks.is_dead
        self._driver_is_dead = driver.is_dead
        self._default_limit = given.acquire_timeout
        self._has_hook = given.on_acquire is not None
        #: None while there is nobody to be told.
        self._observers: Observers | None = None
        for observer in given.observers:
            self.observe(observer)
        traces = given.leak_after is not None or sys.flags.dev_mode
        self._new_lease: type[Lease[C]] = TracedLease if traces else Lease

    # Set by open(); nothing asks for them before.
    _runtime: Runtime
    _suspended: Suspended
    _leaks: Leaks

    # -- open and close --------------------------------------------------------------------------

    async def open(self) -> Self:
        """Open the pool and wait until ``min_size`` connections are there.

        Opening an open pool changes nothing. Whoever opens it this way closes it with `aclose`: the
        end of an ``async with`` leaves it open, also of ``async with await pool.open()``. A closed
        pool may be opened again, on another loop too.

        Raises:
            ConnectFailed: the database refused; its error is the ``__cause__``. An error that may
                pass is waited out for ``acquire_timeout`` first, then it is the cause of a
                `PoolTimeout`. The pool is closed again.
            PoolClosed: it is being closed, or was while this waited.
            WrongLoop: the pool is open on another event loop.

        """
        await self._open(Life.keep)
        return self

    async def _open(self, join: Callable[[Life], None]) -> None:
        """Open the pool, unless it is open; `join` counts the caller in with those who use it."""
        state = self._state
        if self._life is not None and self._runtime.has_ended():
            self._loop_ended(self._life, None)
        if self._life is None:
            self._begin()
        elif state.phase == "closing":
            raise PoolClosed(f"pool {self.name!r} is being closed: await that, then open it")
        runtime, life = self._runtime, self._life
        assert life is not None
        runtime.check()  # raises WrongLoop
        if state.phase == "open":
            join(life)
            return
        now = runtime.now()
        limit = state.options.acquire_timeout
        waiter = Waiter(NEVER if limit is None else now + limit, runtime.create_parking())
        try:
            self._tell(state.open, waiter, now)
        except BaseException:  # an overload policy that cannot begin
            self._collapse(life, None)
            await self._wait_ended(life)
            raise
        life.openers += 1
        try:
            try:
                self._carry_out()
                await waiter.parking
                if waiter.outcome != "served" or self._life is not life:
                    raise messages.refusal(self.name, waiter, limit)
                state.opened()
                join(life)
            finally:
                life.openers -= 1
        except BaseException:
            self._tell(state.give_up_opening, waiter)
            if life is self._life and state.is_open and not self._is_used(life):
                self._collapse(life, None)  # nobody else has opened it, or is about to
                await self._wait_ended(life)
                self._hooks.raise_again()
            raise

    async def __aenter__(self) -> Self:
        """Open the pool, or join those who are inside; wait for the end of one that is closing.

        Raises what `open` raises, and `PoolClosed` if closing outlasts ``acquire_timeout``.
        """
        await self._wait_closed()
        await self._open(self._blocks.begin)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the pool, as `aclose` does, if nobody else is inside or has called `open`.

        Does nothing if the pool was closed meanwhile, also if it was opened again.
        """
        begun_in, life = self._blocks.end(), self._life
        if life is None:
            await self.aclose()  # raises what the driver's calls have
        elif begun_in is life and self._state.phase != "closing" and not self._is_used(life):
            await self.aclose()

    def _is_used(self, life: Life) -> bool:
        """Tell whether anybody counts on the pool's being open, or is about to."""
        return life.is_kept or life.openers > 0 or self._blocks.has_any(life)

    async def _wait_closed(self) -> None:
        """Wait until a pool that is being closed is, unless the caller is waited for itself."""
        state, life = self._state, self._life
        if life is None or state.phase != "closing" or life.runtime.has_ended():
            return
        runtime = life.runtime
        own = runtime.task()  # raises WrongLoop
        if any(_task(slot) is own for slot in state.leased):
            return
        with runtime.limited(runtime.after(state.options.acquire_timeout)):
            while life is not None and state.phase == "closing":
                await self._wait_over(life)
                life = self._life if self._runtime is runtime else None

    async def _wait_over(self, life: Life) -> None:
        await life.wait_until(lambda: self._life is not life)
        with life.runtime.limited(life.runtime.after(_LAST_WAIT)):
            await life.wait_until(lambda: life.ended)

    async def aclose(self, *, grace: float | None = 10.0) -> list[LeaseInfo]:
        """Close the pool: decide first, wait second.

        Idle connections are closed and waiters get `PoolClosed` at once. Leases are waited for,
        for ``grace`` seconds (``None``: without limit; cancelling means 0), except the caller's
        own; then they are terminated and their handles are dead. Closing twice is harmless.

        Returns: who had not given back.

        Raises what calls of the driver have raised meanwhile that is neither an `Exception` nor a
        cancellation: it has cost its connection, and nobody has seen it yet.
        """
        check_seconds("grace", grace)
        held = await self._close(grace)
        self._hooks.raise_again()
        return held

    async def _close(self, grace: float | None) -> list[LeaseInfo]:
        life, state = self._life, self._state
        if life is not None and life.runtime.has_ended():
            self._collapse(life, None)
            life = None
        if life is None:
            held, self._held_at_end = self._held_at_end, []
            return held
        runtime = life.runtime
        own = runtime.task()
        self._tell(state.close)
        life.workers.abort_connects()
        self._carry_out()

        def is_given_back() -> bool:
            return all(_task(slot) is own for slot in state.leased)

        held = []
        try:
            with runtime.limited(runtime.after(grace)):
                await life.wait_until(lambda: self._life is not life or self._look(is_given_back))
            held = self.leases()
            self._abandon_leases(life)
            options = state.options
            limits = (options.reset_timeout, options.close_timeout, options.ping_timeout)
            limit = None if None in limits else sum(filter(None, limits)) + 0.5
            with runtime.limited(runtime.after(limit)):
                await life.wait_until(lambda: self._life is not life or not state.size)
        except BaseException:
            self._collapse(life, None)
            self._held_at_end = held or self._held_at_end  # for who closes it once more
            raise
        finally:
            self._collapse(life, None)
            await self._wait_ended(life)
        return held

    async def _wait_ended(self, life: Life) -> None:
        """Wait until the tasks of a life have ended; leave behind those that ignore their end."""
        with life.runtime.limited(life.runtime.after(_LAST_WAIT), shield=True):
            await life.wait_until(lambda: life.ended)
        if not life.ended:
            say(
                logging.WARNING,
                "pool %r: abandoned what ignores its cancellation: %s",
                *(self.name, life.workers.under_way() or "its root task"),
            )

    def _abandon_leases(self, life: Life) -> None:
        if self._life is life:
            self._tell(self._end_leases)
            self._tell(self._state.abandon_leases, self._runtime.now())
            self._carry_out()

    def _end_leases(self) -> None:
        """Say that the leases end which have not been given back, just before they do."""
        self._leaks.forget_leases()
        if self._state.is_observed:
            for slot in self._state.leased:
                self._note_released(slot)

    def _begin(self) -> None:
        runtime = current_runtime(self.name, self._on_alarm)
        workers = Workers(
            self._state,
            self._driver,
            self._hooks,
            runtime,
            self._tell,
            self._carry_out,
            self._found_dead,
        )
        runtime.protect(Pool, Lease, TracedLease, Transaction, Workers, Life, upkeep, but=awaited)
        self._runtime = runtime
        self._suspended = Suspended()
        self._hooks.end_run = runtime.end_run
        self._hooks.pool_opens()
        self._leaks = Leaks(self.name, self._state)
        self._life = life = Life(runtime, workers)
        _opened.add(self)
        life.begin(self.name, self._upkeep, lambda cause: self._loop_ended(life, cause))

    def _loop_ended(self, life: Life, cause: BaseException | None) -> None:
        """End a life whose tasks have ended, or will never run again."""
        if self._life is life and cause is None:
            _warn_of_the_open(self)
        self._collapse(life, cause)

    def _collapse(self, life: Life, cause: BaseException | None) -> None:
        """End a life at once, without waiting for anything."""
        if self._life is life:
            self._life = None
            _opened.discard(self)
            self._held_at_end = self.leases()
            self._tell(self._end_leases)
            self._tell(self._state.abort, cause)
            self._carry_out()
            life.cancel()
        life.changed()

    # -- acquire ---------------------------------------------------------------------------------

    def acquire(
        self, *, timeout: float | _NotGiven | None = NOT_GIVEN, label: str | None = None
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
            PoolClosed: the pool is not open, or was closed meanwhile.
            WrongLoop: the pool was opened on another event loop, or before a fork.
            PoolConfigError: the timeout or the label is none.

        """
        # The hot path begins: what follows is written out, for the sake of two calls less.
        frame = getframe(1)
        lease: Lease[C] = new(self._new_lease)
        lease._slot = lease._over = None  # before all else: its finalizer looks at it
        lease._pool = self
        lease._timeout = self._default_limit if timeout is NOT_GIVEN else _checked(timeout)
        lease._code = frame.f_code
        lease._lasti = frame.f_lasti
        if label is None and not labels_in_use:
            lease._label = None
        elif label is None:
            lease._label = found if type(found := get_label()) is str else current_label()
        else:
            lease._label = checked_label(label)
        return lease

    def transaction(
        self,
        *,
        timeout: float | _NotGiven | None = NOT_GIVEN,
        label: str | None = None,
        **settings: Any,
    ) -> Transaction[C]:
        """Acquire a connection and run a block in a transaction: commit at its end, or roll back.

        ``timeout`` and ``label`` are those of `acquire`, ``settings`` the driver's (isolation,
        readonly, ...). Raises what `acquire` raises, and `TransactionEnded` for what ends the
        transaction inside of the block. On SQLite ``timeout`` covers the wait for the lock of the
        file.
        """
        lease = self.acquire(timeout=timeout).at(caller(2))
        if label is not None:
            lease._label = checked_label(label)
        return Transaction(lease, None, settings)

    def _acquire_nowait(self, lease: Lease[C]) -> C | None:  # noqa: PLR0912  # the hot path
        """Lease an idle connection, without waiting; None if there is none, or others wait."""
        state = self._state
        if state.phase != "open" and not state.is_open:
            raise self._is_not_open(lease)
        runtime = self._runtime
        home = runtime.home
        if self._amid or runtime.where() is not home:
            runtime.check()  # raises WrongLoop, but for a finalizer
            raise self._busy_with_itself()
        if self._inbox:
            self._drain()
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
            self._tell_observers("leased", lease._label, 0.0)
        return view  # type: ignore[no-any-return]

    def _is_not_open(self, lease: Lease[Any]) -> PoolClosed:
        """Return the error for an acquire from a pool that is not open."""
        self._state.outcomes["closed"] += 1
        self._tell_observers("wait_ended", lease._label, 0.0, "closed")
        return messages.not_open(self.name)

    def _busy_with_itself(self) -> PoolError:
        """Return the error for a finalizer that acquires in the middle of a line of ours."""
        self._tell(self._state.count, "busy")
        return messages.amid(self.name)

    def _take_another(self, slot: Slot | None, now: float) -> Slot | None:
        """Take an idle connection that is not known to be dead, in place of one that may be."""
        while slot is not None and self._is_dead(slot.connection):
            self._state.undo_take(slot, now)
            slot = self._state.take(now)
        return slot

    async def _acquire_wait(self, lease: Lease[C]) -> C:  # noqa: PLR0912  # a call less
        """Wait for a connection; ``on_acquire``, if set, is still to be run.

        The steps are those of `_acquire_nowait`, and may find an idle connection at once if only
        the hook has led here.
        """
        runtime, state = self._runtime, self._state
        now = runtime.read_clock() if "time" in runtime.overrides else runtime.now()
        deadline = NEVER if lease._timeout is None else now + lease._timeout
        if (task := runtime.current_task(runtime.home)) is None:
            raise messages.no_task(self.name)
        lease._since = now
        waiter = Waiter(
            deadline, runtime.create_parking(), ref(task), lease._code, lease._lasti, lease._label
        )
        slot = self._take_for_hook(waiter, now) if self._has_hook else None
        direct = slot is not None
        if slot is None:
            try:
                self._amid = True
                try:
                    is_all = state.enqueue(waiter, now)
                finally:
                    self._amid = False
                if is_all:
                    runtime.set_alarm(waiter.deadline)
                else:
                    self._carry_out()
                if waiter.outcome == "waiting" and not (
                    state.options.deadlock != "off"
                    and (circle := closed_by(waiter, state, now))
                    and self._is_refused(waiter, circle)
                ):
                    await waiter.parking
                elif waiter.slot is None:
                    await checkpoint()  # refused at once: who tries again and again lets others run
                if self._observers is not None:
                    self._tell_wait_ended(lease, waiter.outcome)
            except BaseException:
                self._tell(state.give_up, waiter, runtime.now())
                self._carry_out()
                if self._observers is not None:
                    self._tell_wait_ended(lease, waiter.outcome)
                raise
            slot = waiter.slot
            if slot is None or slot.state != "leased":
                raise self._refusal(waiter, lease._timeout)
        if lease._slot is not None:  # used a second time while this one waited
            self._tell(state.recount, "direct" if direct else "served", "failed")
            self._tell(state.release, slot, runtime.now())
            self._carry_out()
            raise lease.is_used()
        lease._has_waited = not direct
        view: C = make_view(lease, slot)
        if self._observers is not None:
            self._tell_observers("leased", lease._label, runtime.now() - now)
        return view

    def _uncount(self, lease: Lease[Any]) -> None:
        """Forget that a lease was acquired: its caller acquires another one in its place."""
        was = "served" if getattr(lease, "_has_waited", False) else "direct"
        self._tell(self._state.uncount, was)

    def _refusal(self, waiter: Waiter, limit: float | None) -> PoolError:
        """Return the error for a wait that ended without a connection."""
        cause = waiter.cause
        if isinstance(cause, PoolDeadlock):
            waiter.cause = None  # its traceback will hold the waiter
            return cause
        if waiter.slot is not None:  # taken back between hand-off and now
            self._tell(self._state.recount, "served", "closed")
        return messages.refusal(self.name, waiter, limit, self._count_dead)

    def _count_dead(self) -> int:
        """Count the leases whose connections are dead, which nobody gives back."""
        return sum(self._is_dead(slot.connection) for slot in list(self._state.leased))

    def _take_for_hook(self, caller: Waiter, now: float) -> Slot | None:
        """Take an idle connection, as the fast path does, for a caller that has a hook to await."""

        def take() -> Slot | None:
            slot = self._take_another(self._state.take(now), now)
            if slot is not None:
                slot.lease_to(caller, now)
            return slot

        slot = self._look(take)
        self._carry_out()
        return slot

    def _is_refused(self, waiter: Waiter, circle: list[Waiter]) -> bool:
        """Refuse a caller that waits for itself by now, or warn; the others are in line."""
        state = self._state
        others = (other.parking for other in circle if other is not waiter)
        if not all(map(self._runtime.is_parked, others)):
            return False  # somebody is being cancelled
        error = self._look(messages.deadlock, self.name, state, circle, self._runtime.now())
        if state.options.deadlock == "warn":
            say(logging.WARNING, "%s", error)
            return False
        self._tell(state.end_wait, waiter, "deadlocked", self._runtime.now())
        waiter.cause = error
        self._carry_out()
        return True

    async def _run_on_acquire(self, lease: Lease[C], view: C) -> None:
        """Run ``on_acquire`` like the first line of the caller's block, within its deadline."""
        hook, slot, limit = self._state.options.on_acquire, lease._slot, lease._timeout
        assert hook is not None
        assert slot is not None
        if limit == 0:  # it waits for no other user, and this is none
            limit = PATIENCE
        try:
            with self._runtime.limited(NEVER if limit is None else lease._since + limit) as scope:
                try:
                    await awaited("on_acquire", hook, view)
                finally:
                    if slot.release_count == lease._release_count:
                        self._hooks.greeted(slot.connection)
            if slot.release_count != lease._release_count:
                held_slot(view)  # raises: the hook has closed it, or given it back
            if scope.cancelled_caught:
                slot.cancelled = True
                raise PoolTimeout(
                    f"pool {self.name!r}: on_acquire was not done {limit} s after the acquire began"
                )
        except BaseException as error:
            was = "served" if lease._has_waited else "direct"
            self._tell(self._state.recount, was, _outcome_of(error))
            self._end_lease(lease, (lease._code, lease._lasti), error)
            raise

    # -- release ---------------------------------------------------------------------------------

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

    def _ends_with(self, lease: Lease[C], over: Closed) -> bool:
        """End a lease if its holder has ended the connection; say whether. From any thread."""
        slot: Any = lease._slot
        if lease._release_count != slot.release_count or not self._is_dead(slot.connection):
            return False
        give_back = functools.partial(self._end_lease, lease, over, None)
        if self._runtime.where() in (self._runtime.home, BETWEEN):
            give_back()
        else:
            self._post(give_back)
        return True

    def _end_lease(  # noqa: PLR0912  # the hot path
        self, lease: Lease[C], over: Over, error: BaseException | None
    ) -> None:
        """End a lease, unless it has ended. Never awaits, hence cannot be interrupted."""
        state = self._state
        slot: Any = lease._slot
        runtime = self._runtime
        where = runtime.where()
        here = where is runtime.home
        if self._inbox and here:
            self._drain()
        if lease._release_count != slot.release_count:
            return
        lease._over = over
        if not here and where is not BETWEEN:
            # A block that is closed by the garbage collector, in whatever thread.
            self._dropped(slot, slot.release_count)
            return
        slot.release_count += 1
        uses = slot.uses
        if state.is_observed:
            self._note_released(slot)
        if self._amid or not here:  # closed by the collector, in the middle of a line of ours
            self._post(functools.partial(self._take_back, slot, slot.release_count, error))
            return
        self._amid = True
        try:
            if not slot.touched and not (state.queue and self._is_dead(slot.connection)):
                if not state.release(slot, runtime.now()):
                    return
            else:
                self._take_back(slot, slot.release_count, error)
            if state.to_wake:
                self._wake()
        except BaseException:  # a RecursionError: there is no stack left to call anything with
            if slot.uses == uses:  # it has not gone to the next one
                self._inbox.append(
                    functools.partial(self._take_back, slot, slot.release_count, error)
                )
            raise
        finally:
            self._amid = False
        if state.to_start or state.to_terminate or state.to_tell or state.line.shedder:
            self._carry_out()

    def _take_back(self, slot: Slot, turn: int, error: BaseException | None) -> None:
        """Tell the book how a lease has left its connection, unless that was taken away already."""
        if slot.release_count != turn or slot.state != "leased":
            return
        state = self._state
        now = self._runtime.now()
        slot.block = None
        if error is not None and not isinstance(error, Exception):
            slot.cancelled = slot.touched
        if not slot.touched and not (state.queue and self._is_dead(slot.connection)):
            state.release(slot, now)
        elif (reason := self._why_not_again(slot, error, now)) is not None:
            if slot.closing:
                state.release_closing(slot, now)
            else:
                state.release_broken(slot, now, reason)
        else:
            is_in_doubt = slot.busy or slot.cancelled or slot.has_derived
            if is_in_doubt or not self._hooks.is_clean(slot.connection):
                state.release_dirty(slot, now)
            else:
                state.release(slot, now)

    def _why_not_again(self, slot: Slot, error: BaseException | None, now: float) -> Reason | None:
        """Say why a used connection must not be used again, if so; renew or suspect the others."""
        # If this gives a reason: whoever kept the cursor would read the next user's session.
        reason = self._hooks.revoke(slot.connection, derived=slot.has_derived)
        if error is not None:
            self._hooks.heed(slot, error, passed=True)
        if slot.verdicts and self._state.learn(slot, now):
            return "broken"
        if self._is_dead(slot.connection):
            return "broken"
        if slot.attributes is not None and not self._hooks.restore(slot):
            return "broken"
        if self._hooks.is_used_up(slot.connection):
            slot.reason, slot.retire_at, slot.expires_at = "used_up", -NEVER, -NEVER
        return reason

    # -- inspect and adjust ----------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return the sizes and counters, as they are now."""
        return self._read(self._state.stats, self._now())

    def leases(self) -> list[LeaseInfo]:
        """Return who holds what, for how long, and where it was acquired; the longest first."""
        return self._read(messages.leases, self._state, self._now())

    def resize(
        self,
        *,
        min_size: int | None = None,
        max_size: int | None = None,
        max_overflow: int | None = None,
    ) -> None:
        """Change the sizes: growing is at once, shrinking as connections come back.

        Raises `PoolConfigError`, and changes nothing, for sizes that cannot work.
        """
        sizes = {"min_size": min_size, "max_size": max_size, "max_overflow": max_overflow}
        given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
        options = dataclasses.replace(self._state.options, **given)
        self._check_options(options)
        if self._state.is_open:
            self._runtime.check()  # raises WrongLoop
        self._tell(self._state.resize, options, self._now())
        self._carry_out()

    def renew(self, *, over: float = 0.0) -> None:
        """Replace every connection older than now: the idle ones at once, others on their return.

        For new credentials, a failover, a changed schema. None of them is handed out again.

        Args:
            over: seconds in the course of which their times come, one after the other, so that not
                all are missing at once.

        """
        check_seconds("over", over, optional=False)
        if self._state.is_open:
            self._runtime.check()  # raises WrongLoop
            self._tell(self._state.renew, self._runtime.now(), over)
            self._carry_out()

    def observe(self, observer: object, /) -> Callable[[], None]:
        """Tell an observer of the pool's events from now on; call what this returns to end that.

        `poolkit.Observer` has the events. Raises `PoolConfigError` for what has no method for any.
        """
        observers = self._observers or Observers(self._hooks)
        observers.add(observer)
        self._observers, self._state.is_observed = observers, True

        def stop() -> None:
            nonlocal observers
            observers.remove(observer)
            if not observers and self._observers is observers:
                self._observers, self._state.is_observed = None, False

        return stop

    def __repr__(self) -> str:
        """Return the name and the sizes."""
        closed = "" if self._state.is_open else " closed"
        return f"<Pool {self.name!r}{closed}: {self.stats()}>"

    # -- the shell's own -------------------------------------------------------------------------

    def _tell(self, event: Callable[..., T], *arguments: Any) -> T | None:
        """Have the book handle an event; while it is amid another, note it, and return None."""
        if self._is_interrupted():
            self._post(functools.partial(event, *arguments))
            return None
        return self._look(event, *arguments)

    def _is_interrupted(self) -> bool:
        """Tell whether a finalizer calls, in the middle of a line of ours or of the event loop."""
        return self._amid or (self._life is not None and self._runtime.is_interrupted())

    def _look(self, look: Callable[..., T], *arguments: Any) -> T:
        """Look at the book, or change it, while nobody else changes it."""
        amid, self._amid = self._amid, True
        try:
            return look(*arguments)
        finally:
            self._amid = amid

    def _read(self, look: Callable[..., T], *arguments: Any) -> T:
        """Look at the book, from any thread; another than the loop's sees it change meanwhile."""
        if self._life is None or self._runtime.is_here():
            return self._look(look, *arguments)
        for _ in range(_LOOKS):
            with contextlib.suppress(RuntimeError):  # what is being looked at has changed
                return look(*arguments)
        return look(*arguments)

    def _carry_out(self) -> None:
        """Do what the book has decided: after every event, in this order."""
        if self._is_interrupted():
            return  # what is noted is settled when it is done
        self._amid = True
        try:
            state, life = self._state, self._life
            while state.to_terminate:
                self._hooks.terminate(state.to_terminate.popleft())
            if state.to_wake:
                self._wake()
            if life is not None:
                if state.to_start:
                    life.workers.work()
                self._runtime.set_alarm(state.next_tick())
                if life.watchers:
                    life.changed()
        finally:
            self._amid = False
        if self._inbox:
            self._drain()
        if state.to_tell:
            self._tell_news()

    def _wake(self) -> None:
        """Wake whose wait is over. That alone makes nothing due earlier."""
        to_wake, unpark = self._state.to_wake, self._runtime.unpark
        while to_wake:
            unpark(to_wake.popleft().parking)

    # -- observers -------------------------------------------------------------------------------

    def _tell_observers(self, event: Event, *values: object) -> None:
        """Tell observers of an event of the caller's, after all that has come before it."""
        self._tell_news()
        if self._observers is not None:
            self._observers.tell(self, event, *values)

    def _tell_wait_ended(self, lease: Lease[Any], outcome: Outcome) -> None:
        seconds = self._runtime.now() - lease._since
        self._tell_observers("wait_ended", lease._label, seconds, outcome)

    def _note_released(self, slot: Slot) -> None:
        """Have observers told that a lease has ended."""
        held = self._runtime.now() - slot.leased_at
        self._state.to_tell.append(("released", slot.label, held))

    def _tell_news(self) -> None:
        """Tell observers what the state has noted; call when its books are in order."""
        news = self._state.to_tell
        while news and not self._is_interrupted():
            event = news.popleft()
            if self._observers is not None:
                self._observers.tell(self, *event)

    def _on_alarm(self) -> None:
        self._drain()
        now = self._runtime.now()
        if self._life is not None:
            self._life.workers.attend(now)
            self._look(self._life.workers.cancel_overdue, now)
        self._tell(self._state.tick, now)
        self._carry_out()

    def _upkeep(self) -> None:
        self._drain()
        self._runtime.read_clock()
        self._runtime.mind_alarm()
        self._tell(self._bury_the_dead)
        self._tell(self._hooks.tell, self._leaks.look, self._runtime.now())
        self._on_alarm()

    def _bury_the_dead(self) -> None:
        now = self._runtime.now()
        for slot in list(self._state.idle):
            if self._is_dead(slot.connection):
                self._state.found_dead(slot, now)
        if self._suspended.since_asked() >= 4.0 * self._state.pulse:
            self._state.was_away(now)

    def _dropped(self, slot: Slot, turn: int) -> None:
        """Note that a handle was collected without a release; callable from anywhere."""
        self._post(functools.partial(self._reclaim, slot, turn))

    def _found_dead(self, slot: Slot, error: BaseException | None = None) -> None:
        """Note that a connection has died, from anywhere; or what its user's error says of it."""
        if error is None:
            self._post(functools.partial(self._note_dead, slot, slot.release_count))
        elif slot.state == "leased":
            self._hooks.heed(slot, error)
            slot.touched = slot.touched or bool(slot.verdicts)

    def _note_dead(self, slot: Slot, release_count: int) -> None:
        self._state.found_dead(slot, self._runtime.now())
        # One with which nothing was done may be on its way to its holder, who is to find out.
        is_in_use = slot.state == "leased" and slot.touched
        if is_in_use and slot.release_count == release_count and self._hooks.ends_lost_leases:
            self._end_lost(slot)
            self._state.release_broken(slot, self._runtime.now())

    def _end_lost(self, slot: Slot) -> None:
        """End a lease whose connection goes although its holder has not given it back."""
        if self._state.is_observed:
            self._note_released(slot)
        slot.release_count += 1
        self._leaks.forget(slot)

    def _post(self, note: Callable[[], object]) -> None:
        self._inbox.append(note)
        if not self._runtime.call_soon(self._drain):  # the loop has ended
            if self._life is not None:
                self._loop_ended(self._life, None)
            self._drain()

    def _drain(self) -> None:
        """Take in what other threads, callbacks and finalizers have noted."""
        if self._inbox and not self._is_interrupted():
            while self._inbox:
                try:
                    note = self._inbox.popleft()
                except IndexError:  # a finalizer has seen to it in between
                    break
                self._tell(note)
            self._carry_out()

    def _reclaim(self, slot: Slot, turn: int) -> None:
        if slot.release_count != turn or slot.state != "leased":
            return
        holder = slot.holder
        self._end_lost(slot)
        # Terminated, never reused: nobody knows what was going on with it.
        now = self._runtime.now()
        self._state.learn(slot, now)
        self._state.release_broken(slot, now)
        self._hooks.tell(
            warn,
            f"pool {self.name!r}: a connection was never released; acquired at "
            f"{messages.place_of(holder)}{indented(stack_shown(holder.stack if holder else ()))}",
        )

    def _now(self) -> float:
        return self._runtime.read_clock() if hasattr(self, "_runtime") else 0.0

    def _check_options(self, options: Options) -> None:
        check = getattr(self._driver, "check_options", None)
        if check is not None:
            check(options)


_opened: Final[weakref.WeakSet[Pool[Any]]] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    # Those on a loop that was closed without a word to its tasks; others have noticed its end.
    for pool in list(_opened):
        if not pool._runtime.forked:
            _warn_of_the_open(pool)


def _warn_of_the_open(pool: Pool[Any]) -> None:
    if pool in _opened:
        _opened.discard(pool)
        warn(
            f"pool {pool.name!r} was never closed, and its event loop has ended: use "
            "`async with pool:` or `await pool.aclose()`"
        )


def _outcome_of(error: BaseException) -> Outcome:
    """Return what an acquire counts as that ended with this error of its ``on_acquire``."""
    if not isinstance(error, Exception):
        return "cancelled"
    return "timed_out" if isinstance(error, PoolTimeout) else "failed"


def _checked(timeout: Any) -> float | None:
    """Return the limit of an acquire: 0 for a deadline that has passed."""
    if isinstance(timeout, (int, float)) and timeout < 0:
        return 0.0
    check_seconds("timeout", timeout)
    limit: float | None = timeout
    return limit


def _task(slot: Slot) -> object:
    return slot.task() if slot.task is not None else None
