"""The queue of waiters, first come, first served; and how each wait ended."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, get_args

from poolkit._core.deadlines import Deadlines
from poolkit._core.slot import NEVER, Outcome, Waiter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit._core.shedding import Shedder


class Line:
    """The callers in line, and beside them those who wait for the pool to be open."""

    def __init__(self) -> None:
        self.queue: OrderedDict[Any, Waiter] = OrderedDict()  # by the task that waits
        self.openers: dict[Waiter, None] = {}
        self.outcomes: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self.to_wake: deque[Waiter] = deque()
        self.shedder: Shedder | None = None
        self._deadlines = Deadlines(self.queue)

    def enqueue(self, waiter: Waiter) -> None:
        """Put a caller at the end of the line."""
        queue, deadlines = self.queue, self._deadlines
        if not queue or waiter.deadline >= deadlines.latest:
            deadlines.latest = waiter.deadline
        else:
            deadlines.add(waiter)
        key: Any = waiter.task or waiter
        if queue.setdefault(key, waiter) is not waiter:  # the same task waits twice at once
            key = waiter
            queue[key] = waiter
        waiter.key = key

    def add_opener(self, waiter: Waiter) -> None:
        """Add somebody who waits for the pool to be open."""
        self.openers[waiter] = None
        self._deadlines.add(waiter)

    def end(self, waiter: Waiter, outcome: Outcome, cause: BaseException | None = None) -> None:
        """End a wait."""
        if waiter in self.openers:
            del self.openers[waiter]
        else:
            self.queue.pop(waiter.key, None)
            self.outcomes[outcome] += 1
        waiter.outcome = outcome
        waiter.cause = cause
        self.to_wake.append(waiter)

    def forget(self, waiter: Waiter) -> None:
        """Remove a caller that has given up; there is nobody to wake."""
        self.queue.pop(waiter.key, None)  # it may not have come so far
        self.outcomes["cancelled"] += 1
        waiter.outcome = "cancelled"

    def first(self) -> Waiter | None:
        """Return the waiter that has waited longest."""
        return next(iter(self.queue.values()), None)

    def overdue(self, now: float) -> Iterator[Waiter]:
        """Yield the waiters whose deadline has passed.

        Each is yielded again and again until its wait is ended.
        """
        return self._deadlines.passed(now)

    def next_deadline(self) -> float:
        """Return the earliest deadline of one who waits."""
        return self._deadlines.next()

    # -- the overload policy ---------------------------------------------------------------------

    def tell_shedder(self, waiter: Waiter, fit_since: float, now: float, *, served: bool) -> None:
        """Tell the overload policy that somebody is about to leave the line.

        Time waited before connections became available, at ``fit_since``, does not count.
        """
        if self.shedder is None or self.first() is not waiter:
            return
        self.shedder.left(max(waiter.since, fit_since), now, served=served)
        if len(self.queue) == 1:
            self.shedder.rest()

    def refuse_at(self, first: Waiter, fit_since: float) -> float:
        """Return when the overload policy refuses the first in line, as things are."""
        if self.shedder is None:
            return NEVER
        return self.shedder.refuse_at(max(first.since, fit_since))
