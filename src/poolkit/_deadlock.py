"""Deadlock: every connection is held by a task that is itself waiting for one.

With ``tasks`` that each hold ``n - 1`` connections while they acquire one more, a pool needs
``tasks x (n - 1) + 1`` connections, or the day comes when all hold and all wait. If anybody is seen
who might release, might be served or might give up first, there is no verdict. Not to be seen are a
time limit around the wait of another task (`asyncio.timeout`, a cancel scope), and a block whose
lease somebody else ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from poolkit._slot import Waiter
    from poolkit._state import PoolState

#: Seconds by which another's deadline may come first: who gives up much earlier ends the deadlock.
_MUCH: Final = 1.0


def closed_by(waiter: Waiter, book: PoolState) -> list[Waiter]:
    """Return who waits for each other, if the last one in line has just closed the circle."""
    circle = {waiter: None}
    holds = False
    for slot in book.leased:
        if slot.holder is None or slot.loose_turn == slot.turn:
            return []  # anybody may release it
        task = slot.holder[0]
        other = None if task() is None else book.queue.get(task)
        if other is None or other.deadline < waiter.deadline - _MUCH:
            return []
        holds = holds or other is waiter
        circle[other] = None
    if book.idle or book.connecting or book.recycling or book.closing:
        return []
    return list(circle) if holds and len(book.leased) >= book.options.capacity else []
