"""The deadlines of those who wait, the earliest first."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

from poolkit._slot import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit._slot import Waiter

#: So many that no longer wait may be among them before they are swept out.
_SLACK = 32


class Deadlines:
    """A heap of waiters; those who no longer wait leave it lazily, so leaving costs nothing."""

    __slots__ = ("_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Waiter]] = []
        self._order = itertools.count()

    def add(self, waiter: Waiter, waiting: int) -> None:
        """Add a waiter, to be one of so many."""
        if waiter.deadline == NEVER:
            return
        heapq.heappush(self._heap, (waiter.deadline, next(self._order), waiter))
        if len(self._heap) > 2 * waiting + _SLACK:
            self._heap = [entry for entry in self._heap if entry[2].outcome == "waiting"]
            heapq.heapify(self._heap)

    def next(self) -> float:
        """Return the earliest deadline of one who waits."""
        heap = self._heap
        while heap and heap[0][2].outcome != "waiting":
            heapq.heappop(heap)
        return heap[0][0] if heap else NEVER

    def passed(self, now: float) -> Iterator[Waiter]:
        """Return those who wait although their deadline has passed."""
        while self.next() <= now:
            yield heapq.heappop(self._heap)[2]
