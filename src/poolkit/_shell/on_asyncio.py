"""The runtime on asyncio, uvloop included."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import sys
import time
from threading import get_ident
from typing import TYPE_CHECKING, Any

import anyio

from poolkit._shell.loop import Loop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Iterator

    from anyio import CancelScope
    from anyio.abc import TaskGroup

#: How soon anyio cancels a task that was about to run, if at all.
_TURNS_TO_CANCEL = 5

#: Seconds: the coarsest timers there are. Those of uvloop count milliseconds.
_COARSE = max(0.001, time.get_clock_info("monotonic").resolution)
#: The name of the tasks that start at once.
_EAGER = "poolkit reset"
#: The clock of asyncio's own loops, which have it in a Python function that costs as much again.
_MONOTONIC = time.monotonic


class OnAsyncio(Loop):
    """asyncio, uvloop included."""

    def __init__(self, pool: str, ring: Callable[[], None]) -> None:
        import asyncio  # noqa: PLC0415  # half of the time that importing this package would take

        super().__init__(pool, ring)
        self._asyncio = asyncio
        self._loop = self.home = asyncio.get_running_loop()
        self._cancelled, self._invalid = asyncio.CancelledError, asyncio.InvalidStateError
        self.where = self._find_where()
        # The public one is a Python function in 3.11, around this.
        self.current_task = (
            asyncio.current_task
            if sys.version_info >= (3, 12)
            else vars(asyncio.tasks)["_current_tasks"].get
        )
        self._alarm: asyncio.TimerHandle | None = None
        self._root: asyncio.Task[None] | None = None
        self._starters: set[asyncio.Task[None]] = set()
        self._own_time = asyncio.BaseEventLoop.time
        self._attributes: dict[str, Any] = getattr(self._loop, "__dict__", {})
        self._make_eager = self._find_eager()
        self.starts_at_once = self._make_eager is not None
        self._clock: Callable[[], float] | None = None
        self.read_clock()
        self.create_parking = self._loop.create_future

    def _find_where(self) -> Callable[[], Any]:
        """Return what tells the running loop, None where there is none, at the least cost."""
        running, loop = self._asyncio._get_running_loop, self._loop
        if sys.version_info >= (3, 12) or not hasattr(loop, "_thread_id"):
            return running

        # There that one asks the system for the number of the process, each time.
        def where() -> Any:
            return loop if loop._thread_id == get_ident() else running()

        return where

    def spawn(
        self, group: TaskGroup, function: Callable[..., Coroutine[Any, Any, None]], *args: Any
    ) -> None:
        """Start a child of the root task, also out of a callback, where anyio cannot."""
        if self.current_task(self._loop) is not None:
            super().spawn(group, function, *args)
            return

        async def start() -> None:
            with contextlib.suppress(RuntimeError):  # the group has ended meanwhile
                group.start_soon(function, *args)

        starter = self._create_task(start)
        self._starters.add(starter)
        starter.add_done_callback(self._starters.discard)

    def _create_task(self, function: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        # As an argument the context, or a name, would be too much for some task factories.
        return self._context.copy().run(lambda: self._loop.create_task(function()))

    def start_at_once(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Any:
        """Run a task of the pool's up to its first wait, inside of the task that calls; return it.

        None: nothing was started. Python has such tasks from 3.12 on, uvloop has them from 0.22 on,
        and a program that has a task factory makes all its tasks by that. Call it from a task of
        this loop only: started from a callback, or in another thread, it may take the place of a
        task that runs there.
        """
        make = self._make_eager
        if make is None or self._loop.get_task_factory() is not None:
            return None
        steps = function(*args)
        try:
            return make(steps, context=self._context.copy(), eager_start=True, name=_EAGER)
        except BaseException:  # there is no stack, or no memory
            steps.close()
            raise

    def _find_eager(self) -> Callable[..., Any] | None:
        """Return what makes tasks that start at once; None: nothing does. Tried, for loops vary."""
        if self._loop.get_task_factory() is not None:
            return None
        makers: list[Callable[..., Any]] = [self._loop.create_task]
        # Until 3.14 asyncio's own takes no `eager_start`. Another one decides for itself.
        plain = self._asyncio.BaseEventLoop.create_task
        if type(self._loop).create_task is plain and "create_task" not in self._attributes:
            makers.append(functools.partial(self._asyncio.Task, loop=self._loop))

        async def nothing() -> None:
            """End at once."""

        for make in makers:
            steps = nothing()
            try:
                task = make(steps, context=self._context.copy(), eager_start=True, name=_EAGER)
            except TypeError:
                steps.close()
                continue
            return make if task.done() else None
        return None

    def is_ending(self) -> bool:
        """Tell whether somebody has cancelled the root task, as the end of a run does."""
        root = self._root
        return root is not None and (root.done() or root.cancelling() > 0)

    def goes_on(self) -> bool:
        """Tell whether somebody is at work here whom nobody has cancelled."""
        tasks = self._asyncio.all_tasks(self._loop)
        return any(task is not self._root and not task.cancelling() for task in tasks)

    def cancel(self, task: asyncio.Task[None], scope: CancelScope, calm: CancelScope) -> None:
        """Cancel a task in two scopes, one around the other, once.

        By itself anyio does that again in each turn of the loop until the task ends: for ever, if
        it does not.
        """
        before = task.cancelling()

        def calm_down(turns: int) -> None:
            calm.shield = task.cancelling() > before
            if not calm.shield and turns:  # it is about to run, and is cancelled when it has
                self._loop.call_soon(calm_down, turns - 1)

        scope.cancel()
        calm_down(_TURNS_TO_CANCEL)

    def trace(self, task: asyncio.Task[None]) -> tuple[float, contextvars.Context]:
        """Return what a call, or who cancels, can leave in a task: the same as before, if none."""
        return task.cancelling(), contextvars.copy_context()

    async def forget_cancellations(self) -> None:
        """Have a task that is about to end do so as if nobody had ever cancelled it."""
        with contextlib.suppress(self._cancelled):
            await self._asyncio.sleep(0)

    def end_run(self, error: BaseException) -> bool:
        """Have what ends a process come out of the run of the loop; False: there is none.

        As it does where a task raises it; but nobody's task, and no line of the pool, is broken
        off by it.
        """

        def end() -> None:
            raise error

        return self.call_soon(end)

    @contextlib.contextmanager
    def limited(self, deadline: float, *, shield: bool = False) -> Iterator[anyio.CancelScope]:
        """Cancel a block of the caller's at a deadline, and lose no other cancellation.

        Until 4.15 anyio took one that comes in the same turn of the loop for the deadline's (its
        issue 1214), and the caller, whom somebody had cancelled, went on.
        """
        task = self.current_task(self._loop)
        requests = task.cancelling()
        with anyio.CancelScope(deadline=deadline, shield=shield) as scope:
            yield scope
        if scope.cancelled_caught and task.cancelling() > requests:
            raise self._cancelled

    def has_ended(self) -> bool:
        """Tell whether the loop was closed without a word to its tasks."""
        return self._loop.is_closed()

    def is_parked(self, parking: Any) -> bool:
        """Tell whether a task that was parked there waits still, and was not cancelled."""
        return not parking.done()

    def unpark(self, parking: Any) -> None:
        """Wake whoever is or will be parked there."""
        try:
            parking.set_result(None)
        except self._invalid:  # who was parked there is cancelled, or is woken already
            pass
        except RuntimeError:
            assert self._loop.is_closed()

    def read_clock(self) -> float:
        """Return the time by the clock that the loop has by now, and have `now` go by it.

        Libraries for virtual time put a clock in place of the loop's, or of its class's, at any
        moment. Asking for it at each acquire would cost as much as the clock itself, so it is asked
        for where a deadline or an alarm depends on it: when a job begins, when the alarm rings, by
        upkeep, and when somebody begins to wait; for one of the class not even then, but if the
        clock is no longer asyncio's own.
        """
        if (
            type(self._loop).time is self._own_time
            and "time" not in self._attributes
            and time.monotonic is _MONOTONIC
        ):
            clock: Callable[[], float] = _MONOTONIC
        else:
            clock = self._loop.time
        if clock is not self._clock and clock != self._clock:  # bound methods may be equal
            self._clock = self.now = clock
            self.overrides = self._attributes if clock is _MONOTONIC else {"time": clock}
        return self.now()

    def set_alarm(self, when: float) -> None:
        """Ring then, or earlier: a later time never replaces an earlier one."""
        if when < self.alarm_at:
            self.stop_alarm()
            self.alarm_at = when
            self._alarm = self._loop.call_at(when, self._alarmed, context=self._context)

    def _alarmed(self) -> None:
        if self.read_clock() < self.alarm_at:
            # The loop's timers are coarser than its clock: the same time again would ring at once,
            # and again, until the clock is there; one that is moved by its timers never would be.
            later = self.alarm_at + _COARSE
            self._alarm = self._loop.call_at(later, self._alarmed, context=self._context)
            return
        self.alarm_at = math.inf
        self._ring()

    async def keep_alarm(self) -> None:
        """Do what the alarm needs a task for: nothing, the loop rings it."""

    def start_root(self, root: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run the pool's root task until it ends or the loop does."""
        self._root = self._create_task(root)
        if hasattr(self._root, "set_name"):
            self._root.set_name("poolkit root")

    def stop_alarm(self) -> None:
        """Ring no more."""
        if self._alarm is not None:
            self._alarm.cancel()

    def call_soon(self, function: Callable[[], None]) -> bool:
        """Call a function in the loop's thread, soon; from anywhere, also out of a finalizer.

        False: the loop has ended, and will never call it.
        """
        if self.forked:
            return True
        try:
            # Without a context of ours the callback would run in that of the calling thread.
            self._loop.call_soon_threadsafe(function, context=self._context)
        except RuntimeError:  # the loop is closed
            return False
        return True
