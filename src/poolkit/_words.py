"""The words of errors and logs: who holds what, where, and why somebody got nothing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from poolkit._errors import ConnectFailed, PoolBusy, PoolClosed, PoolError, PoolTimeout
from poolkit._stats import LeaseInfo

if TYPE_CHECKING:
    import types

    from poolkit._slot import Waiter
    from poolkit._state import PoolState

    Holder = tuple[Any, types.CodeType, int]


# -- places and people ---------------------------------------------------------------------------


def caller(depth: int) -> tuple[types.CodeType, int]:
    """Return where the caller's caller is: cheap to note, and turned into words only if asked."""
    frame = sys._getframe(depth)
    return frame.f_code, frame.f_lasti


def place(code: types.CodeType, lasti: int) -> str:
    """Return ``file:line in function``."""
    lines = [start for start, *_ in code.co_positions()]
    line = lines[lasti // 2] if lasti // 2 < len(lines) else code.co_firstlineno
    return f"{code.co_filename}:{line} in {code.co_qualname}"


def place_of(holder: Holder | None) -> str:
    """Return where a lease was acquired."""
    return "an unknown place" if holder is None else place(holder[1], holder[2])


def _task_of(holder: Holder) -> str:
    task = holder[0]()
    if task is None:
        return "a task that has ended"
    name: str = task.get_name() if hasattr(task, "get_name") else task.name
    return name


def leases(book: PoolState, now: float) -> list[LeaseInfo]:
    """Return who holds what, the longest first."""
    return [
        LeaseInfo(
            task=_task_of(slot.holder), seconds=now - slot.leased_at, place=place_of(slot.holder)
        )
        for slot in book.leased
    ]


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
    elif waiter.outcome == "failed":
        error = ConnectFailed(f"pool {pool!r}: connecting failed: {_brief(cause)} ({stats})")
    else:
        error = PoolClosed(f"pool {pool!r} was closed while waiting for a connection")
    error.__cause__ = cause
    return error


def _why(book: PoolState, now: float) -> str:
    """Say what keeps callers waiting, and what helps."""
    if book.outage is not None:
        failures, error = book.outage.failures, book.outage.error
        return f"; connecting has failed {failures} times, the last time with {_brief(error)}"
    holders = leases(book, now)
    if not holders:
        return "; nothing is leased: opening, resetting or closing connections takes long"
    longest = "; ".join(str(info) for info in holders[:3])
    return (
        f". Held longest: {longest}. Hold connections for a shorter time, raise max_size, or raise "
        "acquire_timeout; a task that holds one while it waits for tasks that acquire here may be "
        "waiting for itself"
    )


def _brief(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"
