"""The only file that knows asyncio from trio.

What a pool needs of its event loop: the time, who is calling, a way to park a task and to wake it,
one alarm for all deadlines, a task of its own that outlives the caller's, and a door for other
threads and finalizers. Raw futures and trio's own parking are used because each wait costs a
quarter of what an `anyio.Event` inside `anyio.fail_after` costs.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import os
import sys
import time
import types
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import anyio

from poolkit._errors import WrongLoop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping

    from anyio import CancelScope
    from anyio.abc import TaskGroup


def current_runtime(pool: str, ring: Callable[[], None]) -> Runtime:
    """Return a runtime for the running event loop; `ring` is what its alarm calls."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        runtime: Runtime = _Trio(pool, ring)
    else:
        runtime = _Asyncio(pool, ring)
    _runtimes.add(runtime)
    return runtime


def cancellations() -> tuple[type[BaseException], ...]:
    """Return by what a cancelled task is told, on the kinds of loops that are in use."""
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio")
    found: list[type[BaseException]] = [] if asyncio is None else [asyncio.CancelledError]
    return (*found, *([] if trio is None else [trio.Cancelled]))


def running_task() -> Any:
    """Return the task that calls, on whatever event loop; None: no task does."""
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_task()
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # no loop is running
        return None


def has_ended(task: Any) -> bool:
    """Tell whether a task, of asyncio's or trio's, has ended; None: it was collected."""
    if task is None:
        return True
    if hasattr(task, "done"):
        return bool(task.done())
    return getattr(task.coro, "cr_frame", task) is None


def timeouts() -> tuple[type[BaseException], ...]:
    """Return what is raised at the end of a time limit, on the kinds of loops that are in use."""
    trio = sys.modules.get("trio")
    return (TimeoutError,) if trio is None else (TimeoutError, trio.TooSlowError)


def is_cancellation(error: BaseException) -> bool:
    """Tell whether an error is a cancellation, or several of them and nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(cancellations())[1] is None
    return isinstance(error, cancellations())


_runtimes: weakref.WeakSet[_Loop] = weakref.WeakSet()


def _after_fork() -> None:
    # The sockets and the loop's wake-up pipe are shared with the parent: touch nothing.
    for runtime in list(_runtimes):
        runtime.forked = True
        runtime.home = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

#: How soon anyio cancels a task that was about to run, if at all.
_TURNS_TO_CANCEL = 5

_ELSEWHERE = (
    "was opened on another event loop: open one pool per loop, inside the loop that uses it (with "
    "a test client, use `with TestClient(app)`, which keeps one loop)"
)
_FORKED = "was opened before a fork: open a pool of its own in each process"

#: Seconds: the coarsest timers there are. Those of uvloop count milliseconds.
_COARSE = max(0.001, time.get_clock_info("monotonic").resolution)
#: The clock of asyncio's own loops, which have it in a Python function that costs as much again.
_MONOTONIC = time.monotonic


#: Where a finalizer is that interrupts trio's run loop between the steps of two tasks: here, but
#: what it schedules or wakes may be lost.
BETWEEN = object()


class _Loop:
    """What both have in common; `_Asyncio` says what each method is for."""

    #: The loop that runs the calling code, whatever it is, and the one that is ours.
    where: Callable[[], Any]
    home: Any
    #: Return the running task, given `home`.
    current_task: Callable[[Any], Any]
    now: Callable[[], float]
    read_clock: Callable[[], float]
    #: Has "time" while `now` may have to go by another clock; then `read_clock` knows.
    overrides: Mapping[str, Any]
    #: Return what a task may await until it is unparked, which may have happened already.
    create_parking: Callable[[], Any]

    def __init__(self, pool: str, ring: Callable[[], None]) -> None:
        self.forked = False
        self._pool = pool
        self._ring = ring
        self._context = contextvars.copy_context()
        self._alarm_at = math.inf

    def check(self) -> None:
        """Raise `WrongLoop` unless this loop is running the calling code."""
        where = self.where()
        if where is not self.home and where is not BETWEEN:
            raise WrongLoop(f"pool {self._pool!r} {_FORKED if self.forked else _ELSEWHERE}")

    def task(self) -> Any:
        """Return the running task; raise `WrongLoop` when it is not one of this loop's."""
        self.check()
        return self.current_task(self.home)

    def is_here(self) -> bool:
        """Tell whether this loop is running the calling code."""
        return self.where() is self.home

    def is_interrupted(self) -> bool:
        """Tell whether a finalizer calls that has interrupted the event loop itself."""
        return False

    def protect(self, *parts: Callable[..., Any], but: Callable[..., Any]) -> None:
        """Let Ctrl-C wait for the caller's next checkpoint while these functions and methods run.

        Nothing to do on asyncio, whose runner turns it into a cancellation. ``but`` calls code of
        the user's, to which that does not apply.
        """

    def mind_alarm(self) -> None:
        """Let a lost alarm be set again; call every second or so.

        Loops put away their timers in several steps, and finalizers may set one between two.
        """
        if self._alarm_at < self.now() - 1.0:
            self._alarm_at = math.inf

    def after(self, seconds: float | None) -> float:
        """Return the time in so many seconds; None: never."""
        return math.inf if seconds is None else self.read_clock() + seconds

    def spawn(
        self, group: TaskGroup, function: Callable[..., Coroutine[Any, Any, None]], *args: Any
    ) -> None:
        """Start a child of the root task, in the context in which the pool was opened."""
        self._context.copy().run(lambda: group.start_soon(function, *args))


class _Asyncio(_Loop):
    """asyncio, uvloop included."""

    def __init__(self, pool: str, ring: Callable[[], None]) -> None:
        import asyncio  # noqa: PLC0415  # half of the time that importing this package would take

        super().__init__(pool, ring)
        self._asyncio = asyncio
        self._loop = self.home = asyncio.get_running_loop()
        self._cancelled, self._invalid = asyncio.CancelledError, asyncio.InvalidStateError
        self.where = asyncio._get_running_loop  # raises nothing where there is none
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
        self._clock: Callable[[], float] | None = None
        self.read_clock()
        self.create_parking = self._loop.create_future

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
        if not parking.done():
            try:
                parking.set_result(None)
            except self._invalid:  # a finalizer has cancelled it just now
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
        if when < self._alarm_at:
            self.stop_alarm()
            self._alarm_at = when
            self._alarm = self._loop.call_at(when, self._alarmed, context=self._context)

    def _alarmed(self) -> None:
        if self.read_clock() < self._alarm_at:
            # The loop's timers are coarser than its clock: the same time again would ring at once,
            # and again, until the clock is there; one that is moved by its timers never would be.
            later = self._alarm_at + _COARSE
            self._alarm = self._loop.call_at(later, self._alarmed, context=self._context)
            return
        self._alarm_at = math.inf
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


class _Parking:
    """Where one trio task is parked, while it awaits this."""

    __slots__ = ("_lowlevel", "task", "unparked")

    def __init__(self, lowlevel: Any) -> None:
        self._lowlevel = lowlevel
        self.task: Any = None
        self.unparked = False

    def __await__(self) -> Generator[Any, Any, None]:
        self.task = self._lowlevel.current_task()  # before the look: a finalizer may unpark between
        try:
            if not self.unparked:
                yield from self._lowlevel.wait_task_rescheduled(self._abort).__await__()
        finally:
            self.task = None  # which may wait for something else by now

    def _abort(self, _: object) -> Any:
        task, self.task = self.task, None
        abort = self._lowlevel.Abort
        return abort.SUCCEEDED if task is not None else abort.FAILED  # it was unparked just now


class _Trio(_Loop):
    """trio."""

    def __init__(self, pool: str, ring: Callable[[], None]) -> None:
        import trio  # noqa: PLC0415  # not installed where only asyncio is used

        super().__init__(pool, ring)
        self._trio = trio
        self._lowlevel = trio.lowlevel
        self._token = self.home = trio.lowlevel.current_trio_token()
        self._main = weakref.ref(self._main_task())
        self.overrides = {}
        self._alarm: trio.CancelScope | None = None
        self.now = trio.lowlevel.current_clock().current_time  # works after the run as well
        self.create_parking = functools.partial(_Parking, trio.lowlevel)
        # Closures, because each acquire asks: as methods they cost a third more.
        current_token, current_task = trio.lowlevel.current_trio_token, trio.lowlevel.current_task

        def where() -> Any:
            try:
                token = current_token()
            except RuntimeError:
                return None
            try:
                current_task()
            except RuntimeError:
                return BETWEEN
            return token

        self.where = where
        self.current_task = lambda _: current_task()

    def is_interrupted(self) -> bool:
        return self.where() is BETWEEN

    def read_clock(self) -> float:
        return self.now()  # a run has one clock

    def protect(self, *parts: Callable[..., Any], but: Callable[..., Any]) -> None:
        for part in (_Trio, *parts):
            for function in vars(part).values() if isinstance(part, type) else (part,):
                if isinstance(function, types.FunctionType):
                    self._lowlevel.enable_ki_protection(function)
        self._lowlevel.disable_ki_protection(but)

    def limited(self, deadline: float, *, shield: bool = False) -> anyio.CancelScope:
        return anyio.CancelScope(deadline=deadline, shield=shield)

    def is_ending(self) -> bool:
        """Tell whether the main task has ended: then trio cancels all the others."""
        main: Any = self._main()
        nursery = None if main is None else main.parent_nursery
        return nursery is None or main not in nursery.child_tasks

    def goes_on(self) -> bool:
        return False  # only the end of a run cancels the root task

    def cancel(self, task: Any, scope: CancelScope, calm: CancelScope) -> None:  # noqa: ARG002
        scope.cancel()

    def trace(self, task: Any) -> tuple[float, contextvars.Context]:  # noqa: ARG002
        return self._trio.current_effective_deadline(), contextvars.copy_context()

    async def forget_cancellations(self) -> None:
        """Nothing: they are the scopes', not the task's."""

    def end_run(self, error: BaseException) -> bool:
        def end() -> NoReturn:
            raise error

        def deliver() -> None:
            # Where trio raises a KeyboardInterrupt: in the main task, when that waits.
            main: Any = self._main()
            if self.is_ending():
                return
            if main._abort_func is None:
                self._token.run_sync_soon(deliver)
            else:
                main._attempt_abort(end)

        main = self._main()
        if not (hasattr(main, "_abort_func") and hasattr(main, "_attempt_abort")):
            return False  # no main task, or another trio than is known
        return self.call_soon(deliver)

    def _main_task(self) -> Any:
        """Return the task from which all others of this run come, as far as anybody knows."""
        task, root = self._lowlevel.current_task(), self._lowlevel.current_root_task()
        while (nursery := task.parent_nursery) is not None and nursery.parent_task is not root:
            task = nursery.parent_task
        return task

    def has_ended(self) -> bool:
        return False  # the end of a run cancels the root task

    def is_parked(self, parking: Any) -> bool:
        return parking.task is not None

    def unpark(self, parking: Any) -> None:
        parking.unparked = True
        if parking.task is not None and parking.task is self._running():
            # Interrupted by a finalizer when it was about to wait.
            self._token.run_sync_soon(self.unpark, parking)
            return
        task, parking.task = parking.task, None  # at once: a finalizer may cancel it meanwhile
        if task is not None:
            self._lowlevel.reschedule(task)

    def _running(self) -> Any:
        try:
            return self._lowlevel.current_task()
        except RuntimeError:
            return None

    def set_alarm(self, when: float) -> None:
        if when < self._alarm_at:
            self._alarm_at = when
            if self._alarm is not None:
                self._alarm.deadline = when

    async def keep_alarm(self) -> None:
        while True:
            with self._trio.CancelScope(deadline=self._alarm_at) as self._alarm:
                await self._trio.sleep_forever()
            self._alarm_at = math.inf
            self._ring()

    def stop_alarm(self) -> None:
        """Nothing: its task ends with the root."""

    def start_root(self, root: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._lowlevel.spawn_system_task(root, name="poolkit root", context=self._context.copy())

    def call_soon(self, function: Callable[[], None]) -> bool:
        if self.forked:
            return True
        try:
            self._token.run_sync_soon(function)
        except self._trio.RunFinishedError:
            return False
        return True


#: One event loop, seen from a pool that was opened on it.
Runtime: TypeAlias = _Asyncio | _Trio
