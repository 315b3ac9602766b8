"""What has happened, counted: how acquires have ended, and how long all of it took.

Every acquire ends in one of nine counters: `direct`, and `outcomes` but for "waiting". A lease that
has begun is counted in `begun` and, when it has ended, in `uses`, whatever its acquire is counted
as in the end; one that came from the queue, in `waits` as well. So, at any moment::

    sum(begun) = uses + leased = direct + served + recounted

What is found idle has waited for nothing: it is not counted as a wait, but known from `begun`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final, Literal

from poolkit._core.line import Line
from poolkit._core.slot import BATCH
from poolkit._core.slots import Slots
from poolkit._histogram import BOUNDS, BOUNDS_FROM_0, EMPTY, Histogram

if TYPE_CHECKING:
    from poolkit._core.slot import Outcome, Slot, Waiter


#: Durations that are kept until they are sorted into buckets, all together.
_MANY: Final = 250


class Times:
    """How long something has taken, so far.

    To find the bucket of each at once would cost a tenth of an acquire that does not wait, so they
    are sorted many together.
    """

    __slots__ = ("_told", "recent")

    def __init__(self) -> None:
        self.recent: list[float] = []
        # Replaced as a whole, the list included: another thread may be reading it.
        self._told = EMPTY, self.recent

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.recent.append(seconds)
        self.settle()

    def settle(self, least: int = _MANY) -> list[float]:
        """Sort what is recent into its buckets, if it is so much; return what was sorted."""
        recent = self.recent
        if len(recent) < least:
            return []
        told, empty = self.histogram(), list[float]()
        self._told = told, empty
        self.recent = empty
        return recent

    @property
    def count(self) -> int:
        """How many durations there are so far."""
        told, recent = self._told
        return told.count + len(recent)

    def histogram(self) -> Histogram:
        """Return what is counted so far; from any thread."""
        told, recent = self._told
        if not recent:
            return told
        durations, counts = sorted(recent), list(told.counts)
        first, last = (bisect_left(BOUNDS, durations[end]) for end in (0, -1))
        before = 0
        for bucket in range(first, last):
            up_to = bisect_right(durations, BOUNDS[bucket])
            counts[bucket] += up_to - before
            before = up_to
        counts[last] += len(durations) - before
        return Histogram(bounds=BOUNDS, counts=tuple(counts), sum=told.sum + sum(durations))


class Tally(Slots):
    """The counters of a pool, of all its lives; and the line, which counts how waits end."""

    __slots__ = (
        "_open_before",
        "_opened_at",
        "_recounted",
        "_zeros_told",
        "batch_is_over",
        "begun",
        "connect_failures",
        "creates",
        "line",
        "outcomes",
        "retried",
        "tells_times",
        "uses",
        "waits",
    )

    def __init__(self) -> None:
        super().__init__()
        self.line = Line()
        self.outcomes = self.line.outcomes
        self.connect_failures = 0
        self.retried = 0  # attempts at a transaction that were undone, and are made again
        self.begun = [0]  # leases, by how many others there were when each began
        self.waits = Times()
        self.uses = Times()
        self.creates = Times()
        self.batch_is_over = False  # then `uses` and `waits` are to be settled
        self.tells_times = False  # somebody wants to be told them
        self._zeros_told = 0  # acquires that have waited for nothing, and of whom that was told
        self._recounted = 0  # acquires that were given a connection and ended otherwise
        self._opened_at: float | None = None
        self._open_before = 0.0  # seconds, in the lives before

    @property
    def direct(self) -> int:
        """Acquires that found an idle connection."""
        return sum(self.begun) - self.outcomes["served"] - self._recounted

    @property
    def connected_total(self) -> int:
        """Connections opened."""
        return self.creates.count

    def wait_times(self) -> Histogram:
        """Return how long those have waited who were given a connection."""
        waited = self.waits.histogram()
        counts = sum(self.begun) - waited.count, *waited.counts
        return Histogram(bounds=BOUNDS_FROM_0, counts=counts, sum=waited.sum)

    def open_for(self, now: float) -> float:
        """Return for how many seconds the pool has been open, in all its lives."""
        return self._open_before + (0.0 if self._opened_at is None else now - self._opened_at)

    # -- what the events count -------------------------------------------------------------------

    def count(self, outcome: Outcome) -> None:
        """Count an acquire that has ended before it reached the queue."""
        self.outcomes[outcome] += 1

    def recount(self, was: Outcome | Literal["direct"], outcome: Outcome) -> None:
        """Count an acquire under another outcome: the one that its caller saw."""
        self.uncount(was)
        self.outcomes[outcome] += 1

    def uncount(self, was: Outcome | Literal["direct"]) -> None:
        """Count an acquire no more; a connection that it was given was leased all the same."""
        if was in ("direct", "served"):
            self._recounted += 1
        if was != "direct":
            self.outcomes[was] -= 1

    def count_retry(self, label: str | None, seconds: float, error: BaseException) -> None:
        """Count an attempt that was undone, and is made again in so many seconds."""
        self.retried += 1
        self._note_event("retried", label, seconds, error)

    # The hot edges have these written out, and do not look how many durations there are: a length
    # costs as much as noting one. Every hundredth lease of a slot has the next release look, and so
    # does each tick, since a slot's hundredth may be long in coming where there are many.

    def _count_hand_off(self, slot: Slot, waiter: Waiter, now: float, *, others: int) -> None:
        """Count the lease that a caller in line is about to be given."""
        self.begun[others] += 1
        # No call of ours in between: no other thread is to find the one without the other.
        self.waits.recent.append(now - waiter.since)
        self._settle_many(self.waits)
        slot.leases_left = left = slot.leases_left - 1
        if not left:
            slot.leases_left = BATCH
            slot.batches += 1

    def _count_use(self, slot: Slot, now: float) -> None:
        """Count a lease that ends now."""
        self.uses.recent.append(now - slot.leased_at)
        self._settle_many(self.uses)

    def _settle_many(self, times: Times) -> None:
        if len(times.recent) >= _MANY:
            self.settle_times()

    def settle_times(self, *, all_of_them: bool = False) -> None:
        """Sort the durations that were noted, if they are many; tell whoever asks."""
        self.batch_is_over = False
        least = 1 if all_of_them else _MANY
        for what, times in (("wait", self.waits), ("use", self.uses)):
            durations = times.settle(least)
            if durations and self.tells_times:
                self._note_event("timed", what, tuple(durations))
        if self.tells_times:
            # Of those who hold one still, the next tick tells: to sum up `begun` takes long.
            begun = sum(self.begun) if all_of_them else self.uses.count
            zeros = begun - self.waits.count - self._zeros_told
            if zeros >= least:
                self._zeros_told += zeros
                self._note_event("timed", "wait", (0.0,) * zeros)

    def tell_times(self, *, is_heard: bool) -> None:
        """Tell how long waits and leases take, from now on, or no more."""
        self.tells_times, self._zeros_told = is_heard, sum(self.begun) - self.waits.count

    def _count_open(self, now: float, *, is_open: bool) -> None:
        """Note that the pool is open from now on, or not any more."""
        self._open_before = self.open_for(now)
        self._opened_at = now if is_open else None

    def _count_slot(self) -> None:
        """Have a place in `begun` for as many leases as there are slots."""
        if self.size > len(self.begun):
            self.begun.append(0)
