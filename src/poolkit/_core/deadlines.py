"""The deadlines of the waiters: the next one, at hardly any cost.

Where all waiters have the same timeout, the order of arrival is the order of their deadlines: the
first in line has the next one. Only a waiter whose deadline is before that of somebody ahead of it
goes into a heap.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

from poolkit._core.slot import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from poolkit._core.slot import Waiter

#: Waiters in the heap that no longer wait, before they are swept out.
_SLACK = 32


class Deadlines:
    """The next deadline of the waiters in a queue, and of some beside it."""

    __slots__ = ("_heap", "_order", "_queue", "latest")

    def __init__(self, queue: Mapping[Any, Waiter]) -> None:
        self._queue = queue
        self.latest = -NEVER  # of those in line; whoever joins with an earlier one, `add` takes
        self._heap: list[tuple[float, int, Waiter]] = []  # who no longer waits leaves it lazily
        self._order = 0  # among equals, who came first; an iterator could not be copied

    def add(self, waiter: Waiter) -> None:
        """Note a waiter who is not in line, or out of order."""
        self._order += 1
        heapq.heappush(self._heap, (waiter.deadline, self._order, waiter))
        if len(self._heap) > 2 * len(self._queue) + _SLACK:
            self._heap = [entry for entry in self._heap if entry[2].outcome == "waiting"]
            heapq.heapify(self._heap)

    def next(self) -> float:
        """Return the earliest deadline of one who waits."""
        heap = self._heap
        while heap and heap[0][2].outcome != "waiting":
            heapq.heappop(heap)
        due = heap[0][0] if heap else NEVER
        for first in self._queue.values():
            return min(first.deadline, due)
        return due

    def passed(self, now: float) -> Iterator[Waiter]:
        """Return those who wait although their deadline has passed, each until dismissed."""
        while self.next() <= now:
            first = next(iter(self._queue.values()), None)
            if first is not None and first.deadline <= now:
                yield first
            else:
                yield self._heap[0][2]
