"""What knows asyncio from trio: this file, and one for each of them.

What a pool needs of its event loop: the time, who is calling, a way to park a task and to wake it,
one alarm for all deadlines, a task of its own that outlives the caller's, and a door for other
threads and finalizers. Raw futures and trio's own parking are used because each wait costs a
quarter of what an `anyio.Event` inside `anyio.fail_after` costs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

from poolkit._shell.on_asyncio import OnAsyncio
from poolkit._shell.on_trio import OnTrio

if TYPE_CHECKING:
    from collections.abc import Callable

Runtime: TypeAlias = OnAsyncio | OnTrio


def current_runtime(pool: str, ring: Callable[[], None]) -> Runtime:
    """Return a runtime for the running event loop; `ring` is what its alarm calls."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return OnTrio(pool, ring)
    return OnAsyncio(pool, ring)


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
