"""The reset that begins inside of release: its first step sends, and only the answer is waited for.

A parked worker would have to be woken for it, which costs a third of a lease. The task that starts
at once is one of the pool's as well, in the context in which the pool was opened, and does one job.
Nothing of it is awaited by the release. What is in doubt (busy, or cancelled) is left to a worker:
there the first step is not the one that counts.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from poolkit._core.progress import PATIENCE
from poolkit._core.slot import NEVER
from poolkit._shell.at_work import Once

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from poolkit._core.slot import Job, Slot
    from poolkit._core.state import PoolState
    from poolkit._driver import Driver
    from poolkit._shell.driver_calls import Hooks
    from poolkit._shell.runtime import Runtime

_JOB: Final = "reset"


class Eager:
    """How `Workers` begin a reset at once."""

    _state: PoolState
    _runtime: Runtime
    _busy: dict[Any, Job]
    _inbox: deque[Callable[[], object]]
    _group: Any
    _driver: Driver[Any]
    _hooks: Hooks
    _carry_out: Callable[[], None]
    _reset_succeeded: Callable[[Slot, float], None]

    def __init__(self) -> None:
        self._is_starting = False
        #: Called when a task has ended that the root task does not wait for.
        self.changed: Callable[[], None] = int  # type: ignore[assignment]

    if TYPE_CHECKING:

        async def _reset(self, slot: Slot, worker: Any, first: Any = None) -> None: ...

        def _is_old_news(self, worker: Any) -> bool: ...

        def _judge(self, slot: Slot, worker: Any, result: object, error: Any) -> Any: ...

        async def _try(self, job: str, worker: Any, call: Any, *arguments: Any) -> Any: ...

    def reset_at_once(self, slot: Slot) -> bool:
        """Begin the reset that is owed for a slot, unless a worker had better do it: then False.

        That is so out of a callback, and in another task than the one that has acquired: a
        finalizer may call, in the middle of a line of the driver's.
        """
        runtime = self._runtime
        if slot.busy or slot.cancelled or slot.task is None or self._is_starting:
            return False
        task = runtime.current_task(runtime.home)
        if task is None or slot.task() is not task:
            return False
        if self._group is None or runtime.is_ending() or not runtime.starts_at_once:
            return False
        jobs, once = self._state.to_start, Once(slot)
        started: Any = None
        self._is_starting = True  # what follows from it is for workers, or it could go on and on
        try:
            try:
                jobs.remove((_JOB, slot))
            except ValueError:  # a finalizer has released as well, and had all of it carried out
                return True
            try:
                started = runtime.start_at_once(self._run_once, once)
            finally:
                if not once.has_begun:  # there are no such tasks here, or no stack was left
                    jobs.appendleft((_JOB, slot))
                    if started is not None:
                        started.exception()  # seen
        finally:
            self._is_starting = False
        return once.has_begun

    async def _run_once(self, once: Once) -> None:
        once.has_begun = True
        slot, state, runtime = once.slot, self._state, self._runtime
        try:
            once.task = runtime.current_task(runtime.home)
            self._busy[once] = _JOB
            try:
                now = runtime.read_clock()
                limit = state.options.reset_timeout
                due = once.limit_at = NEVER if limit is None else now + limit
                # For somebody in line it is slow before.
                runtime.set_alarm(min(due, now + PATIENCE) if state.queue else due)
                note, error = await self._try(_JOB, once, self._driver.reset, slot.connection)
                once.limit_at = NEVER
                is_plain = error is None and note is None and not slot.busy
                if not is_plain or self._is_old_news(once):
                    await self._reset(slot, once, self._judge(slot, once, note, error))
                    is_plain = False
                elif self._hooks.is_dead(slot.connection):
                    self._judge(slot, once, note, error)
                    is_plain = False
            finally:
                del self._busy[once]
            if is_plain:
                self._reset_succeeded(slot, runtime.now())
            else:
                self._carry_out()
        except BaseException as error:
            # Stack or memory has run out between two lines, and whose job it is nobody knows now.
            self._inbox.append(functools.partial(self._break_off, slot, error))
            if not isinstance(error, Exception):
                raise
        if self._group is None:
            self.changed()

    def _break_off(self, slot: Slot, error: BaseException) -> None:
        self._hooks.report(_JOB, error)
        self._state.recycle_failed(slot, self._runtime.now(), suspect_others=False)
