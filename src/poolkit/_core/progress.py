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


#: The limit for *slow* doubles at most this often.
_DOUBLINGS: Final = 10


class _AtWork:
    """The slots of one container, the longest at it first, and which of them are slow."""

    __slots__ = ("slots", "slow")

    def __init__(self, slots: dict[Slot, None]) -> None:
        self.slots = slots  # the state's own container
        self.slow: set[Slot] = set()

    def prompt(self) -> int:
        """Count those that are not slow."""
        return len(self.slots) - len(self.slow)

    def next_slow(self) -> tuple[float, Slot] | None:
        """Return when the next one will be slow, and which."""
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
        """Forget a slot: its job has ended."""
        for slots in (self._connecting.slow, self._recycling.slow, self.stuck):
            if slots:
                slots.discard(slot)

    def distrust_recycles(self) -> None:
        """Count every ping and reset under way as slow."""
        self._recycling.slow.update(self._recycling.slots)

    def overtaken(self, by: Slot, now: float) -> None:
        """Count connects as slow that a later one has overtaken: they hang, the server does not.

        Not those that have hardly begun.
        """
        at_work = self._connecting
        at_work.slow.update(
            slot
            for slot in at_work.slots
            if slot.job_began_at < by.job_began_at and now >= slot.job_began_at + PATIENCE
        )

    def update(self, now: float) -> None:
        """Note which jobs are slow by now, and which are stuck."""
        for at_work in (self._connecting, self._recycling):
            while (one := at_work.next_slow()) and now >= one[0]:
                at_work.slow.add(one[1])
        slow = self._connecting.slow | self._recycling.slow
        self.stuck = {slot for slot in slow if now >= slot.overdue_at}

    def next_update(self, due: float) -> float:
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
        return self._connecting.prompt()

    def recycles(self) -> int:
        """Count the pings and resets that may serve somebody soon."""
        return self._recycling.prompt()

    def slow_connects(self) -> int:
        """Count the connects that are slow, and may still succeed."""
        slow = self._connecting.slow
        return len(slow - self.stuck) if self.stuck else len(slow)

    def live_connects(self) -> int:
        """Count the connects in flight that are not stuck."""
        connecting = self._connecting.slots
        return len(connecting.keys() - self.stuck) if self.stuck else len(connecting)
