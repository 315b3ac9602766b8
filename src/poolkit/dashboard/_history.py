"""What a pool does not keep: how long each wait has taken, and what was where a while ago.

An observer notes the waits; those who find an idle connection at once have waited 0 s. Looked at no
longer, it ends at the next release: there is no task and no timer.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from poolkit._shell.shared import OnePerPool, Shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolkit._shell.inspection import Inspection
    from poolkit._shell.pool import Pool
    from poolkit._stats import PoolStats

#: Seconds between two samples at least, however many look; and how many are kept: five minutes.
_STEP: Final = 0.9
_KEPT: Final = 300
#: Looked at no more after this many seconds: a page asks once a second.
_GONE: Final = 10.0
#: Waits kept between two samples: the latest.
_MOST_WAITS: Final = 10_000


class Sample(NamedTuple):
    """What was where at one time, and the waits that ended since the sample before."""

    at: float
    leased: int
    idle: int
    waiting: int
    p50: float | None
    p99: float | None


class Watch(Shared):
    """Notes the waits of one pool for as long as somebody looks."""

    def __init__(self) -> None:
        self._looked_at = float("-inf")
        self._waits: deque[float] = deque(maxlen=_MOST_WAITS)
        self._waited = 0  # how many there were, those not kept included
        self._samples: deque[Sample] = deque(maxlen=_KEPT)
        self._ended = 0
        self._places: list[int | None] = []

    # -- as an observer --------------------------------------------------------------------------

    def wait_ended(
        self,
        pool: Pool[Any],  # noqa: ARG002
        label: str | None,  # noqa: ARG002
        seconds: float,
        outcome: str,  # noqa: ARG002
    ) -> None:
        """Note how long somebody has waited."""
        self._waits.append(seconds)
        self._waited += 1

    def released(self, pool: Pool[Any], label: str | None, seconds: float) -> None:  # noqa: ARG002
        """End if nobody looks any more."""
        if pool._now() - self._looked_at >= _GONE:
            _watches.end(pool)

    # -- for the page ----------------------------------------------------------------------------

    def look(self, seen: Inspection) -> None:
        """Take a sample of what is seen of the pool, if the last one is old enough."""
        now = seen.now
        gap = now - self._looked_at >= _GONE
        self._looked_at = now
        if self._samples and not 0 <= now - self._samples[-1].at < _KEPT:
            self._samples.clear()  # another loop's clock, or another day
        if self._samples and now - self._samples[-1].at < _STEP:
            return
        ended = _ended(seen.stats)
        if gap:  # what has ended meanwhile was not seen, or is long past
            self._ended = ended
            self._waits.clear()
            self._waited = 0
        waits = [*self._waits, *seen.waits]
        # Whoever has not waited has waited 0 s.
        at_once = max(0, ended - self._ended - self._waited)
        if self._waited > _MOST_WAITS:  # not all are kept: keep the proportion
            at_once = at_once * _MOST_WAITS // self._waited
        self._ended = ended
        self._waits.clear()
        self._waited = 0
        waits.sort()
        self._samples.append(
            Sample(
                now,
                seen.stats.leased,
                seen.stats.idle,
                seen.stats.waiting,
                percentile(waits, at_once, 0.50),
                percentile(waits, at_once, 0.99),
            )
        )

    def samples(self, after: float) -> list[Sample]:
        """Return the samples taken after a time."""
        return [sample for sample in self._samples if sample.at > after]

    def places(self, slots: Sequence[int]) -> list[int | None]:
        """Return the keys of the slots, each in the place that it had when it was seen before."""
        alive = set(slots)
        places = [slot if slot in alive else None for slot in self._places]
        known = set(places)
        newcomers = iter([slot for slot in slots if slot not in known])
        places = [next(newcomers, None) if slot is None else slot for slot in places]
        places += newcomers
        while places and places[-1] is None:
            places.pop()
        self._places = places
        return list(places)


_watches: Final = OnePerPool(Watch)


def watch(pool: Pool[Any]) -> Watch:
    """Return the watch of a pool; it begins when it is first asked for."""
    return _watches.of(pool) or _watches.begin(pool)


def samples_of(pool: Pool[Any], after: float) -> list[Sample]:
    """Return the samples of a pool taken after a time; none if nobody looks, or can, from here."""
    watched = _watches.of(pool)
    return [] if watched is None else watched.samples(after)


def percentile(waits: Sequence[float], at_once: int, share: float) -> float | None:
    """Return the wait that a share of all callers did not exceed; None if there were none.

    ``waits`` are sorted; before them come ``at_once`` callers who have not waited.
    """
    callers = at_once + len(waits)
    if not callers:
        return None
    rank = min(callers - 1, int(share * callers))
    return waits[rank - at_once] if rank >= at_once else 0.0


def _ended(stats: PoolStats) -> int:
    """Return how many acquires have ended, in whatever way."""
    served = stats.direct + stats.waited
    refused = stats.timed_out + stats.busy + stats.shed + stats.deadlocked
    return served + refused + stats.cancelled + stats.failed + stats.closed
