"""The runtime on trio."""

from __future__ import annotations

import contextvars
import functools
import math
import types
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

import anyio

from poolkit._shell.loop import BETWEEN, Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from anyio import CancelScope


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


class OnTrio(Loop):
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
        for part in (OnTrio, *parts):
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
        if when < self.alarm_at:
            self.alarm_at = when
            if self._alarm is not None:
                self._alarm.deadline = when

    async def keep_alarm(self) -> None:
        while True:
            with self._trio.CancelScope(deadline=self.alarm_at) as self._alarm:
                await self._trio.sleep_forever()
            self.alarm_at = math.inf
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
