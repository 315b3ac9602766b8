"""Which of the jobs under way somebody who waits may count on.

A job that has been under way for half a second is *slow*: nobody counts on it any more, so that a
hung one delays no other; beside a slow connect another may begin. One that has outlasted even its
time limit is *stuck*, and does not count as a connection that will be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from poolkit._core.slot import Slot

#: Seconds until the first job is slow; doubled by each that is, so that a struggling database is
#: not rushed.
PATIENCE: Final = 0.5


#: So often at most.
_DOUBLINGS: Final = 10


class _AtWork:
    """The slots of one container, the longest at it first, and which of them are slow."""

    __slots__ = ("slots", "slow")

    def __init__(self, slots: dict[Slot, None]) -> None:
        self.slots = slots  # the book's own
        self.slow: set[Slot] = set()

    def soon(self) -> int:
        """Count those that may serve somebody soon."""
        return len(self.slots) - len(self.slow)

    def next_slow(self) -> tuple[float, Slot] | None:
        """Return which one will be slow next, and when."""
        slow = self.slow
        for slot in self.slots:
            if slot not in slow:
                return slot.job_began_at + PATIENCE * 2.0 ** min(len(slow), _DOUBLINGS), slot
        return None


class JobProgress:
    """The slots with a job under way, by what is to be expected of them."""

    __slots__ = ("_connecting", "_recycling", "stuck")

    def __init__(self, connecting: dict[Slot, None], recycling: dict[Slot, None]) -> None:
        self._connecting = _AtWork(connecting)
        self._recycling = _AtWork(recycling)
        self.stuck: set[Slot] = set()

    def ended(self, slot: Slot) -> None:
        """Forget a slot whose job has ended."""
        for slots in (self._connecting.slow, self._recycling.slow, self.stuck):
            if slots:
                slots.discard(slot)

    def doubt(self) -> None:
        """Count on no ping or reset that is under way now."""
        self._recycling.slow.update(self._recycling.slots)

    def overtaken(self, by: Slot, now: float) -> None:
        """Count on no connect that one begun later has overtaken: the server is not slow, it hangs.

        Unless it has hardly begun.
        """
        at_work = self._connecting
        at_work.slow.update(
            slot
            for slot in at_work.slots
            if slot.job_began_at < by.job_began_at and now >= slot.job_began_at + PATIENCE
        )

    def look(self, now: float) -> None:
        """See which jobs are slow by now, and which are stuck."""
        for at_work in (self._connecting, self._recycling):
            while (one := at_work.next_slow()) and now >= one[0]:
                at_work.slow.add(one[1])
        slow = self._connecting.slow | self._recycling.slow
        self.stuck = {slot for slot in slow if now >= slot.overdue_at}

    def next_look(self, due: float) -> float:
        """Return when the next job will be slow, or what is due if that is earlier."""
        for at_work in (self._connecting, self._recycling):
            if at_work.slots and (one := at_work.next_slow()) and one[0] < due:
                due = one[0]
        return due

    def count(self) -> int:
        """Count the jobs, connects and others, that may serve somebody soon."""
        return self.connects() + self.recycles()

    def connects(self) -> int:
        """Count the connects that may serve somebody soon."""
        return self._connecting.soon()

    def recycles(self) -> int:
        """Count the pings and resets that may serve somebody soon."""
        return self._recycling.soon()

    def slow_connects(self) -> int:
        """Count the connects that are slow, and may still succeed."""
        slow = self._connecting.slow
        return len(slow - self.stuck) if self.stuck else len(slow)

    def underway(self) -> int:
        """Count the connects that may still succeed."""
        connecting = self._connecting.slots
        return len(connecting.keys() - self.stuck) if self.stuck else len(connecting)
