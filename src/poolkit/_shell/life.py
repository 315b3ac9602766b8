"""The life of a pool: opened, closed, or ended by its event loop or its process.

`Life` is one life, with its event loop, its workers and its root task; `Living` begins and ends it.
"""

from __future__ import annotations

import atexit
import functools
import logging
import weakref
from typing import TYPE_CHECKING, Any, Final, Self

import anyio

from poolkit._awaits import awaited
from poolkit._core.slot import NEVER, Slot, Waiter
from poolkit._credentials import Credentials
from poolkit._driver import C
from poolkit._errors import PoolClosed
from poolkit._options import check_seconds
from poolkit._shell import messages
from poolkit._shell.blocks import Blocks
from poolkit._shell.credentials import keep_fresh
from poolkit._shell.leaks import Leaks
from poolkit._shell.lease import Lease, TracedLease
from poolkit._shell.log import say, warn
from poolkit._shell.reports import Reports
from poolkit._shell.returning import Returning
from poolkit._shell.runtime import current_runtime, is_cancellation
from poolkit._shell.transaction import Transaction
from poolkit._shell.upkeep import Suspended, upkeep
from poolkit._shell.workers import Workers
from poolkit._text import told

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from poolkit._driver import Driver
    from poolkit._options import Options
    from poolkit._shell.beside import Beside
    from poolkit._shell.runtime import Runtime
    from poolkit._stats import LeaseInfo

#: Seconds for tasks that have been cancelled to end.
_LAST_WAIT: Final = 1.0


class Life:
    """The tasks of an open pool, and those who wait for something to change in it."""

    def __init__(self, runtime: Runtime, workers: Workers) -> None:
        self.runtime = runtime
        self.workers = workers
        self.openers = 0  # those under way to open it
        self.is_kept = False  # whoever has called `open` is to call `aclose`
        self._has_root_ended = False
        self._scope = anyio.CancelScope()
        self.watchers: list[Any] = []
        self.beside: set[Beside[Any]] = set()
        workers.changed = self.changed

    @property
    def ended(self) -> bool:
        """Whether its tasks have ended."""
        return self._has_root_ended and not self.workers.is_busy

    def is_ending(self) -> bool:
        """Tell whether its tasks are cancelled, by the pool or by the end of the run."""
        return self._scope.cancel_called or self.runtime.is_ending()

    def begin(
        self,
        name: str,
        look_after: Callable[[], None],
        end: Callable[[BaseException | None], None],
        *others: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        """Start the root task; `end` is called when it ends, with the error that ended it.

        ``others`` run in tasks of their own meanwhile; they raise nothing and never return.
        """
        runtime = self.runtime

        async def root() -> None:
            cause: BaseException | None = None
            try:
                with self._scope:
                    async with anyio.create_task_group() as group:
                        if self._scope.cancel_called:
                            return  # closed before it began
                        runtime.spawn(group, runtime.keep_alarm)
                        runtime.spawn(group, upkeep, look_after)
                        for other in others:
                            runtime.spawn(group, other)
                        self.workers.begin(group)
                if not self._scope.cancel_called:
                    cause = RuntimeError("a task of the pool's was cancelled, by nobody who may")
            except BaseException as error:
                ended = is_cancellation(error) or isinstance(error, GeneratorExit)
                # Mostly that is the end of the event loop under an open pool, or `aclose`.
                if not (
                    ended
                    and (self._scope.cancel_called or runtime.has_ended() or not runtime.goes_on())
                ):
                    cause = error
                if ended:
                    raise
            finally:
                if cause is not None:
                    say(
                        logging.ERROR,
                        "root_failed",
                        "pool %r: its root task failed, and the pool is closed: %s",
                        name,
                        told(cause),
                        pool=name,
                        error=cause,
                    )
                runtime.stop_alarm()
                self._has_root_ended = True
                end(cause)

        runtime.start_root(root)

    def keep(self) -> None:
        """Let no block end this life: somebody has opened the pool to close it himself."""
        self.is_kept = True

    def cancel(self) -> None:
        """End the root task and all its children, without waiting."""
        if not self.runtime.has_ended():
            self.workers.end()
            self._scope.cancel()

    async def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until it is so, looking after every change."""
        while True:
            parking = self.runtime.create_parking()
            self.watchers.append(parking)  # before the look, or a change just after it is missed
            if is_so():
                return
            await parking

    def changed(self) -> None:
        """Wake those who wait for a change."""
        watchers, self.watchers = self.watchers, []
        for parking in watchers:
            self.runtime.unpark(parking)


class Living(Returning[C]):
    """How a pool is opened and closed."""

    def __init__(self, driver: Driver[C], options: Options, name: str) -> None:
        super().__init__(driver, options, name)
        self._blocks = Blocks()
        self._held_at_end: list[LeaseInfo] = []  # when a life has ended without `aclose`

    async def open(self, *, wait: bool = True) -> Self:
        """Open the pool and wait until ``min_size`` connections are there.

        With ``wait=False`` it is open at once, and connects by itself, in its own tasks: `wait`
        waits for that later, and nothing is raised here because of the database.

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
        await self._open(Life.keep, wait=wait)
        return self

    async def _open(self, join: Callable[[Life], None], *, wait: bool = True) -> None:
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
        waiter = None
        if wait:
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
                if waiter is not None:
                    await waiter.parking
                    if waiter.outcome != "served" or self._life is not life:
                        raise messages.refusal(self.name, waiter, limit)
                    state.open_succeeded()
                join(life)
            finally:
                life.openers -= 1
        except BaseException:
            if waiter is not None:
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
        """Wait until closing ends; return at once if closing waits for a lease of the caller's."""
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
        own; then they are terminated and their views are dead. Closing twice is harmless.

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
        self._tell(state.close, self._now())
        life.workers.abort_connects()
        self._carry_out()
        for one in list(life.beside):
            one.pool_closes()

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
                await life.wait_until(
                    lambda: self._life is not life or not (state.size or life.beside)
                )
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
                "abandoned",
                "pool %r: abandoned what ignores its cancellation: %s",
                *(self.name, life.workers.under_way() or "its root task"),
                pool=self.name,
            )

    def _abandon_leases(self, life: Life) -> None:
        if self._life is life:
            self._tell(self._end_leases)
            self._tell(self._state.abandon_leases, self._runtime.now())
            self._carry_out()

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
            self._inbox,
            self._reset_succeeded,
            Reports(self._hooks, self._outages),
        )
        runtime.protect(
            *_own_classes(type(self)),
            Lease,
            TracedLease,
            Transaction,
            Workers,
            Life,
            upkeep,
            but=awaited,
        )
        self._runtime = runtime
        self._suspended = Suspended()
        self._hooks.end_run = runtime.end_run
        self._hooks.pool_opens()
        self._leaks = Leaks(self.name, self._state)
        self._life = life = Life(runtime, workers)
        _opened.add(self)
        found, others = getattr(self._driver, "credentials", None), []
        if isinstance(found, Credentials):
            limit, report = self._state.options.connect_timeout, self._hooks.report
            others = [
                functools.partial(
                    keep_fresh, found, self.name, limit, self._renew, report, life.is_ending
                )
            ]
        life.begin(self.name, self._upkeep, lambda cause: self._loop_ended(life, cause), *others)

    def _renew(self, over: float) -> None:
        if self._state.is_open:
            self._tell(self._state.renew, self._runtime.now(), over)
            self._carry_out()

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
            self._tell(self._state.abort, self._now(), cause)
            self._tell(self._hooks.tell, self._outages.end, self._runtime.now())
            self._carry_out()
            for one in list(life.beside):
                one.pool_closes()
                one.end()
            life.cancel()
        life.changed()


_opened: Final[weakref.WeakSet[Living[Any]]] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    # Those on a loop that was closed without a word to its tasks; others have noticed its end.
    for pool in list(_opened):
        if not pool._runtime.forked:
            _warn_of_the_open(pool)


def _warn_of_the_open(pool: Living[Any]) -> None:
    if pool in _opened:
        _opened.discard(pool)
        warn(
            f"pool {pool.name!r} was never closed, and its event loop has ended: use "
            "`async with pool:` or `await pool.aclose()`",
            pool.name,
        )


def _own_classes(kind: type) -> list[type]:
    """Return the classes of ours that a pool's class is made of."""
    return [one for one in kind.__mro__ if one.__module__.startswith("poolkit.")]


def _task(slot: Slot) -> object:
    return slot.task() if slot.task is not None else None
