"""The words of errors and logs: who holds what, where, and why somebody got nothing."""

from __future__ import annotations

import functools
import itertools
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from poolkit._errors import (
    ConnectFailed,
    PoolBusy,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolTimeout,
)
from poolkit._say import shown, told
from poolkit._stats import LeaseInfo

if TYPE_CHECKING:
    import types
    from collections.abc import Iterable

    from poolkit._slot import Slot, Waiter
    from poolkit._state import PoolState

    Place = tuple[types.CodeType, int]
    #: The task, a place: where it has acquired; and how it got there, if that was noted.
    Holder = tuple[Any, ...]


#: Where in a holder that is.
_STACK = 3

NO_TASK = "a connection can only be acquired in a task, not in a callback of the event loop"

# -- places and people ---------------------------------------------------------------------------


def caller(depth: int) -> Place:
    """Return where the caller's caller is: cheap to note, and turned into words only if asked."""
    frame = sys._getframe(depth)
    return frame.f_code, frame.f_lasti


def callers(depth: int, most: int = 16) -> tuple[Place, ...]:
    """Return where the caller's caller is, and who has called it in turn."""
    frame: types.FrameType | None = sys._getframe(depth)
    places: list[Place] = []
    while frame is not None and len(places) < most:
        places.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(places)


@functools.lru_cache(maxsize=256)
def place(code: types.CodeType, lasti: int) -> str:
    """Return ``file:line in function``."""
    lines = [start for start, *_ in code.co_positions()]
    line = lines[lasti // 2] if lasti // 2 < len(lines) else code.co_firstlineno
    return f"{code.co_filename}:{line} in {code.co_qualname}"


def place_of(holder: Holder | None) -> str:
    """Return where a lease was acquired."""
    return "an unknown place" if holder is None else place(holder[1], holder[2])


def label_of(holder: Holder) -> str:
    """Return what a lease is for.

    The code of a lease of a request is a copy that has the name of the route: see
    ``poolkit.fastapi``. Routes have a space, functions have not.
    """
    code: types.CodeType = holder[1]
    return code.co_name if " " in code.co_name else code.co_qualname


def _task_of(holder: Holder) -> str:
    task = holder[0]()
    if task is None:
        return "a task that has ended"
    name: str = task.get_name() if hasattr(task, "get_name") else task.name
    return name


def lease(slot: Slot, now: float) -> LeaseInfo:
    """Return who holds a connection."""
    holder = slot.holder
    return LeaseInfo(
        task=_task_of(holder),
        seconds=now - slot.leased_at,
        place=place_of(holder),
        label=label_of(holder),
        stack=stack_of(holder),
    )


def leases(book: PoolState, now: float) -> list[LeaseInfo]:
    """Return who holds what, the longest first."""
    return [lease(slot, now) for slot in book.leased]


#: Where the event loop begins, which says nothing.
_LOOPS = ("asyncio/events.py", "asyncio/runners.py", "trio/_core/_run.py")


def stack_of(holder: Holder | None) -> tuple[str, ...]:
    """Return the places that led to an acquire, the innermost first, if they were noted."""
    places = []
    for code, lasti in holder[_STACK] if holder is not None and len(holder) > _STACK else ():
        if code.co_filename.replace("\\", "/").endswith(_LOOPS):
            break
        places.append(place(code, lasti))
    return tuple(places)


def indented(lines: Iterable[str]) -> str:
    """Return lines to follow a line of a log."""
    return "".join(f"\n    {line}" for line in lines)


# -- why somebody got nothing --------------------------------------------------------------------


def not_open(pool: str) -> PoolClosed:
    """Return the error for a pool that is closed, or not open yet."""
    return PoolClosed(
        f"pool {pool!r} is not open: use `async with pool:` or `await pool.open()` first"
    )


def refusal(
    pool: str, book: PoolState, waiter: Waiter, limit: float | None, *, now: float
) -> PoolError:
    """Return the error for a wait that ended without a connection."""
    stats = book.stats(now)
    cause = waiter.cause
    error: PoolError
    if waiter.outcome == "timed_out":
        why = _why(book, now)
        error = PoolTimeout(f"pool {pool!r}: no connection within {limit} s ({stats}){why}")
        cause = book.last_error
    elif waiter.outcome == "busy":
        many = book.options.max_waiting
        error = PoolBusy(
            f"pool {pool!r}: {many} are waiting already, which is max_waiting "
            f"({stats}){_why(book, now)}"
        )
    elif waiter.outcome == "shed":
        error = PoolBusy(
            f"pool {pool!r}: refused after {now - waiter.since:.2f} s in line by "
            f"shedding={shown(book.options.shedding)}, so that others are served in time "
            f"({stats}){_why(book, now)}"
        )
    elif waiter.outcome == "failed":
        error = ConnectFailed(f"pool {pool!r}: connecting failed: {_brief(cause)} ({stats})")
    else:
        error = PoolClosed(f"pool {pool!r} was closed while waiting for a connection")
    error.__cause__ = cause
    return error


def deadlock(pool: str, book: PoolState, circle: list[Waiter], *, now: float) -> PoolDeadlock:
    """Return the error for a circle of tasks that wait for each other, the last one first."""
    held = Counter(slot.holder[0] for slot in book.leased)
    tasks = "; ".join(
        f"{_task_of(waiter.holder)} waits at {place_of(waiter.holder)} and holds "
        + " and ".join(
            f"one for {now - slot.leased_at:.2f} s, acquired at {place_of(slot.holder)}"
            for slot in book.leased
            if slot.holder[0] is waiter.holder[0]
        )
        for waiter in circle
    )
    most = max(held.values()) + 1
    enough = len(held) * (most - 1) + 1
    return PoolDeadlock(
        f"pool {pool!r}: deadlock: every task that holds a connection is waiting for another one "
        f"({book.stats(now)}). {tasks}. Acquire once and pass the connection on, or have a "
        "capacity of tasks x (connections per task - 1) + 1, "
        f"here {len(held)} x ({most} - 1) + 1 = {enough}"
    )


def _why(book: PoolState, now: float) -> str:
    """Say what keeps callers waiting, and what helps."""
    if book.outage is not None:
        failures, error = book.outage.failures, book.outage.error
        return f"; connecting has failed {failures} times, the last time with {_brief(error)}"
    if not book.leased:
        return "; nothing is leased: opening, resetting or closing connections takes long"
    # Refusals have to be cheap: there are many of them when there is much to do.
    labels = Counter(label_of(slot.holder) for slot in itertools.islice(book.leased, 1000))
    most = labels.most_common(3)
    sums = "".join(f". {label} holds {n} of {book.options.capacity}" for label, n in most if n > 1)
    longest = "; ".join(str(lease(slot, now)) for slot in itertools.islice(book.leased, 3))
    return (
        f"{sums}. Held longest: {longest}. Hold connections for a shorter time, raise max_size, or "
        "raise acquire_timeout; a task that holds one while it waits for tasks that acquire here "
        "may be waiting for itself"
    )


def _brief(error: BaseException | None) -> str:
    return "no error" if error is None else told(error)
