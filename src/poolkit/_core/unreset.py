"""Resets that are put off: a connection goes to the first in line as its last user has left it.

An idle connection owes no reset. So it is reset as soon as nobody waits (`_place` looks to that,
wherever the connection comes from), and from time to time whoever waits (`_must_be_reset`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit._core.lifecycle import Lifecycle

if TYPE_CHECKING:
    from poolkit._core.slot import Slot


class Unreset(Lifecycle):
    """The event by which it begins."""

    __slots__ = ()

    def release_unreset(self, slot: Slot, now: float) -> None:
        """Take back a connection whose reset may be put off for as long as somebody waits.

        It goes to the first in line, or else is reset: an idle connection owes no reset.
        """
        self._count_use(slot, now)
        slot.used_at = now
        slot.touched = slot.has_derived = False
        if not slot.unreset:
            slot.unreset_since = now
            if not self._puts_off_resets:
                self._puts_off_resets = True
                self._look_at_returns()
        slot.unreset += 1
        waiter = self.line.first()
        if (
            waiter is None
            or now >= waiter.deadline
            or now >= slot.retire_at
            or now >= self._awake_by
            or self._asks_all
            or self.line.shedder is not None
            or self._must_be_reset(slot, now)
        ):
            self._end_overdue(now)
            self._place(slot, now)
            return
        self._count_hand_off(slot, waiter, now, others=len(self.leased) - 1)
        # As in `release`.
        del self.queue[waiter.key]
        del self.leased[slot]
        self.leased[slot] = None
        slot.lease_to(waiter, now)
        waiter.slot = slot
        waiter.outcome = "served"
        self.outcomes["served"] += 1
        self.to_wake.append(waiter)
