"""Which of the jobs under way somebody who waits may count on.

A job that has been under way for half a second is *slow*: nobody counts on it any more, so that a
hung one delays no other. One that has outlasted even its time limit is *stuck*, and does not count
as a connection that will be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from poolkit._slot import NEVER

if TYPE_CHECKING:
    from poolkit._slot import Slot

#: Seconds until the first job is slow; doubled by each that is, so that a struggling database is
#: not rushed.
_PATIENCE: Final = 0.5


class Prospects:
    """The slots with a job under way, by what is to be expected of them."""

    __slots__ = ("_connecting", "_recycling", "slow", "stuck")

    def __init__(self, connecting: dict[Slot, None], recycling: dict[Slot, None]) -> None:
        self._connecting = connecting  # the book's own, the longest at it first
        self._recycling = recycling
        self.slow: set[Slot] = set()
        self.stuck: set[Slot] = set()

    def ended(self, slot: Slot) -> None:
        """Forget a slot whose job has ended."""
        self.slow.discard(slot)
        self.stuck.discard(slot)

    def look(self, now: float) -> None:
        """See which jobs are slow by now, and which are stuck."""
        for at_work in (self._connecting, self._recycling):
            while (slot := self._next_slow(at_work)) and now >= self._slow_at(slot, at_work):
                self.slow.add(slot)
        self.stuck = {slot for slot in self.slow if now >= slot.overdue_at}

    def next_look(self) -> float:
        """Return when the next job will be slow."""
        due = NEVER
        for at_work in (self._connecting, self._recycling):
            if slot := self._next_slow(at_work):
                due = min(due, self._slow_at(slot, at_work))
        return due

    def count(self) -> int:
        """Count the jobs, connects and others, that may serve somebody soon."""
        return len(self._connecting) + len(self._recycling) - len(self.slow)

    def connects(self) -> int:
        """Count the connects that may serve somebody soon."""
        return len(self._connecting.keys() - self.slow)

    def recycles(self) -> int:
        """Count the pings and resets that may serve somebody soon."""
        return len(self._recycling.keys() - self.slow)

    def underway(self) -> int:
        """Count the connects that may still succeed."""
        return len(self._connecting.keys() - self.stuck) if self.stuck else len(self._connecting)

    def _next_slow(self, at_work: dict[Slot, None]) -> Slot | None:
        return next((slot for slot in at_work if slot not in self.slow), None)

    def _slow_at(self, slot: Slot, at_work: dict[Slot, None]) -> float:
        return slot.begun_at + _PATIENCE * 2.0 ** len(self.slow & at_work.keys())
