"""What is decided when a pool is opened, renewed, resized, closed, or ended by its event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit._core import fitness
from poolkit._core.slot import NEVER
from poolkit._core.trust import Trust

if TYPE_CHECKING:
    from poolkit._core.slot import Waiter
    from poolkit._options import Options


class Lifecycle(Trust):
    """The events of a pool's life."""

    __slots__ = ()

    def open(self, waiter: Waiter | None, now: float) -> None:
        """Open, once or again; serve the waiter when `min_size` connections are there.

        A waiter whose deadline has passed waits for its connects all the same: there is no other
        user to wait for. Without a waiter the pool is open at once, and connects by itself.
        """
        if self.phase == "closed":  # the clock may be another one by now
            self._fit_since = self.renewed_at = self.attempt_at = self._back_at = -NEVER
            self._ticked_at = now
            self._count_open(now, is_open=True)
            self._awake_by = NEVER
            policy = self.options.shedding
            self.line.shedder = policy.begin() if policy else None
            self.phase = "opening"
        if waiter is None:
            self.open_succeeded()
            self._follow_up(now)
            return
        if waiter.deadline <= now:
            limit = self.options.connect_timeout
            waiter.deadline = NEVER if limit is None else now + limit
        self.wait_ready(waiter, now)

    def wait_ready(self, waiter: Waiter, now: float) -> None:
        """Serve the waiter when `min_size` connections are there, or tell it why they are not."""
        waiter.since = now
        self.line.add_opener(waiter)
        self._follow_up(now)

    def open_succeeded(self) -> None:
        """Record that an `open()` has returned: from now on only closing ends this life."""
        if self.phase == "opening":
            self.phase = "open"

    def give_up_opening(self, waiter: Waiter) -> None:
        """End the wait of a caller that has given up waiting for `min_size` connections."""
        self.openers.pop(waiter, None)
        waiter.outcome = "cancelled"

    def renew(self, now: float, over: float = 0.0) -> None:
        """Replace every connection that is open now, one after the other in ``over`` seconds.

        An idle one goes when its time has come, a leased one when it comes back after that. Each
        may go when the one before has to: then its successor is opened first, if there is room.
        """
        self.renewed_at = now
        if not over:
            self.generation += 1
        slots = [*self.idle, *self.connecting, *self.recycling, *self.leased]
        for place, slot in enumerate(slots, 1):
            if slot.reason != "broken":
                slot.reason = "stale"
            slot.expires_at = min(slot.expires_at, now + over * place / len(slots))
            slot.retire_at = min(slot.retire_at, now + over * (place - 1) / len(slots))
            slot.good_until = min(slot.good_until, slot.retire_at)
        self._pace_ages(now)
        self._retire_idle(now)
        self._follow_up(now)

    def resize(self, options: Options, now: float) -> None:
        """Adopt new sizes: grow at once, shrink as connections come back."""
        self._adopt(options)
        for slot in list(self.idle):
            reason = fitness.why_not_kept(self, slot, wanted=False)
            if reason is None:
                break
            self._retire(slot, reason)
        self._follow_up(now)

    def close(self, now: float, cause: BaseException | None = None) -> None:
        """Stop serving: waiters fail, idle connections close, the others when they come back."""
        self._count_open(now, is_open=False)
        self.settle_times(all_of_them=True)
        self.phase = "closing"
        self._age_at, self.aging = NEVER, 0
        self.outage = None
        self.generation += 1
        for waiter in [*self.openers, *self.queue.values()]:
            self.line.end(waiter, "closed", cause)
        for slot in [*self.connecting, *self.leased, *self.recycling]:
            if slot.reason != "broken":
                slot.reason = "pool_closed"
            slot.retire_at = slot.expires_at = -NEVER
        for slot in list(self.idle):
            self._retire(slot, "pool_closed")

    def abandon_leases(self, now: float) -> None:
        """Terminate what has not been given back; the views of its holders are dead from now on.

        A reset ends the operations that are under way, on the server as well; then it is closed.
        """
        for slot in list(self.leased):
            slot.release_count += 1
            self._count_use(slot, now)
            if slot.busy:
                self._reset(slot, now)
            else:
                self._terminate(slot, "pool_closed")

    def abort(self, now: float, cause: BaseException | None) -> None:
        """End the life of a pool that has nobody left to run jobs: terminate everything."""
        self.close(now, cause)
        self.phase = "closed"
        self.to_start.clear()
        for slot in list(self.leased):
            slot.release_count += 1
            self._count_use(slot, now)
            self._terminate(slot, "pool_closed")
        for slot in list(self.recycling):
            self._terminate(slot, "pool_closed")
        for slot in list(self.closing):
            self.to_terminate.append(slot.connection)
            self._move(slot, "gone")
        for slot in list(self.connecting):
            self._move(slot, "gone")
