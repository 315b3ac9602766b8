"""Deadlock: every connection is held by a task that is itself waiting for one.

With ``tasks`` that each hold ``n - 1`` connections while they acquire one more, a pool needs
``tasks x (n - 1) + 1`` connections, or the day comes when all hold and all wait. If anybody is seen
who might release, might be served or might give up within `CERTAIN_FOR`, there is no verdict: then
the first deadline ends the circle. Not to be seen are a time limit around the wait of a task
(`asyncio.timeout`, a cancel scope), and a block whose lease somebody else ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from poolkit._core.slot import Waiter
    from poolkit._core.state import PoolState

#: Seconds for which a circle must be sure to last: nobody in it gives up or is refused before.
CERTAIN_FOR: Final = 1.0


def closed_by(waiter: Waiter, state: PoolState, now: float) -> list[Waiter]:
    """Return who waits for each other, if the last one in line has just closed the circle."""
    circle = {waiter: None}
    holds = False
    for slot in list(state.leased):  # a finalizer may release meanwhile
        task = slot.task
        if task is None or slot.awaited_release_count == slot.release_count:
            return []  # anybody may release it
        other = None if task() is None else state.queue.get(task)
        if other is None:
            return []
        holds = holds or other is waiter
        circle[other] = None
    if state.idle or state.connecting or state.recycling or state.closing:
        return []
    until = now + CERTAIN_FOR
    if state.refuses_at() < until or any(other.deadline < until for other in circle):
        return []  # a place in the circle is about to be given up
    return list(circle) if holds and len(state.leased) >= state.options.capacity else []
