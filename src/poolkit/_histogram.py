"""How long something has taken, counted in buckets, as metrics have it."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Final

#: Upper bounds, in seconds: three a decade from 100 us, and the time limits that are usual.
BOUNDS: Final = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
    *(5.0, 10.0, 30.0, 60.0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histogram:
    """How many took how long: counts by duration, and the sum of the durations.

    One histogram minus an earlier one of the same pool is what came between them, as in
    ``(now.wait_times - before.wait_times).percentile(0.99)``.
    """

    bounds: tuple[float, ...]
    """The longest duration in each bucket, in seconds; the last bucket, for all that is longer, has
    none."""
    counts: tuple[int, ...]
    """How many durations are in each bucket: one number more than there are bounds."""
    sum: float
    """All durations together, in seconds."""

    @property
    def count(self) -> int:
        """How many durations there are."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """The mean duration, in seconds, and exact; None if there is none."""
        return self.sum / self.count if self.count else None

    def percentile(self, fraction: float) -> float | None:
        """Return the duration, in seconds, that this fraction of all did not exceed.

        ``fraction`` is 0.99 for the 99th percentile. None if there is no duration at all.

        Which bucket it is in is exact, where in it is a guess: as if the bucket's durations were
        spread evenly from one bound to the next. So it is off by less than the bucket is wide: up
        to a factor of 2.5, of 3 from 10 to 30 s. Of what is above the last bound, only that bound
        is known, and returned.

        Raises ValueError for a fraction that is not between 0 and 1.
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"a fraction is between 0 and 1, not {fraction!r}")
        rank, below, lower = fraction * self.count, 0, 0.0
        if not self.count:
            return None
        for upper, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (upper - lower) * max(0.0, rank - below) / count
            below += count
            lower = upper
        return lower

    def cumulative(self) -> tuple[int, ...]:
        """Return how many durations did not exceed each bound; the last number is `count`."""
        return tuple(itertools.accumulate(self.counts))

    def __sub__(self, earlier: Histogram) -> Histogram:
        """Return what has been counted since an earlier histogram."""
        if not isinstance(earlier, Histogram):
            return NotImplemented
        if earlier.bounds != self.bounds:
            raise ValueError("these histograms have different buckets")
        counts = tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True))
        return Histogram(bounds=self.bounds, counts=counts, sum=self.sum - earlier.sum)


#: What takes no time at all is counted apart, if it is frequent: a bucket of its own.
BOUNDS_FROM_0: Final = (0.0, *BOUNDS)
EMPTY: Final = Histogram(bounds=BOUNDS, counts=(0,) * (len(BOUNDS) + 1), sum=0.0)
EMPTY_FROM_0: Final = Histogram(
    bounds=BOUNDS_FROM_0, counts=(0,) * (len(BOUNDS_FROM_0) + 1), sum=0.0
)
