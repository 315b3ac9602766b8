"""What a pool does not keep: how long each wait has taken, and what was where a while ago.

A watch stands before the method of a pool where callers wait, `_acquire_wait`; those who find an
idle connection at once do not come by. For `ServerTiming` it stands before `_end_lease` as well.
Looked at no longer, a watch for the page alone steps aside at the next wait: there is no task and
no timer.
"""

from __future__ import annotations

import contextvars
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from poolkit._core.slot import Slot
    from poolkit._shell.lease import Lease
    from poolkit._shell.pool import Pool

#: The request that the running code belongs to, if its application is wrapped in `ServerTiming`.
current: Final = contextvars.ContextVar["Timing | None"]("poolkit_timing", default=None)

#: Seconds between two samples at least, however many look; and how many are kept: five minutes.
_STEP: Final = 0.9
_KEPT: Final = 300
#: Looked at no more after this many seconds: a page asks once a second.
_GONE: Final = 10.0
#: Waits kept between two samples: the latest.
_MOST_WAITS: Final = 10_000


class Timing:
    """What one request has spent on connections so far, in seconds."""

    __slots__ = ("began", "held", "outer", "waited")

    def __init__(self, pools: Iterable[Pool[Any]], outer: Timing | None) -> None:
        #: When it began, by the clock of each pool that it is about; others are not its concern.
        self.began = {pool: pool._now() for pool in pools}
        self.outer = outer  # of a wrapper around this one, about the same request
        self.waited = 0.0
        self.held = 0.0

    def held_since(self, pool: Pool[Any], slot: Slot) -> float:
        """Return how long the request has held it: what was before that is another's."""
        return pool._now() - max(slot.leased_at, self.began[pool])


def _timings(pool: Pool[Any]) -> Iterator[Timing]:
    """Return those of the running request that a pool is to tell."""
    timing = current.get()
    while timing is not None:
        if pool in timing.began:
            yield timing
        timing = timing.outer


class Sample(NamedTuple):
    """What was where at one time, and the waits that ended since the sample before."""

    at: float
    leased: int
    idle: int
    waiting: int
    p50: float | None
    p99: float | None


class Watch:
    """Notes the waits of one pool for as long as somebody is interested."""

    def __init__(self, pool: Pool[Any]) -> None:
        self._pool = pool
        self._times = False
        self._looked_at = pool._now()
        self._waits: deque[float] = deque(maxlen=_MOST_WAITS)
        self._waited = 0  # how many there were, those not kept included
        self._samples: deque[Sample] = deque(maxlen=_KEPT)
        self._ended = _ended(pool)
        self._places: list[Slot | None] = []
        self._acquire_wait = pool._acquire_wait
        self._end_lease = pool._end_lease
        vars(pool)["_acquire_wait"] = self._wait

    # -- for `ServerTiming` ----------------------------------------------------------------------

    def time(self) -> None:
        """From now on tell each request what it has spent, for good."""
        if not self._times:
            self._times = True
            vars(self._pool)["_end_lease"] = self._end

    async def _wait(self, lease: Lease[Any]) -> Any:
        pool = self._pool
        began = pool._now()
        try:
            return await self._acquire_wait(lease)
        finally:
            now = pool._now()
            for timing in _timings(pool):
                timing.waited += now - began
            if now - self._looked_at < _GONE:
                self._waits.append(now - began)
                self._waited += 1
            elif not self._times:
                self._step_aside()

    def _end(self, lease: Lease[Any], over: Any, error: BaseException | None) -> None:
        slot: Any = lease._slot
        # Giving back twice is harmless, and is to count once.
        if lease._release_count == slot.release_count:
            for timing in _timings(self._pool):
                timing.held += timing.held_since(self._pool, slot)
        self._end_lease(lease, over, error)

    def _step_aside(self) -> None:
        own = vars(self._pool)
        if own.get("_watch") is self:
            del own["_watch"], own["_acquire_wait"]

    # -- for the page ----------------------------------------------------------------------------

    def look(self) -> None:
        """Take a sample, if the last one is old enough."""
        pool, state = self._pool, self._pool._state
        now = pool._now()
        gap = now - self._looked_at >= _GONE
        self._looked_at = now
        if self._samples and not 0 <= now - self._samples[-1].at < _KEPT:
            self._samples.clear()  # another loop's clock, or another day
        if self._samples and now - self._samples[-1].at < _STEP:
            return
        ended = _ended(pool)
        if gap:  # what has ended meanwhile was not seen, or is long past
            self._ended = ended
            self._waits.clear()
            self._waited = 0
        waits = [*self._waits, *(now - waiter.since for waiter in state.queue.values())]
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
                len(state.leased),
                len(state.idle),
                len(state.queue),
                percentile(waits, at_once, 0.50),
                percentile(waits, at_once, 0.99),
            )
        )

    def samples(self, after: float) -> list[Sample]:
        """Return the samples taken after a time."""
        return [sample for sample in self._samples if sample.at > after]

    def places(self, slots: Sequence[Slot]) -> list[Slot | None]:
        """Return the slots, each in the place that it had when it was seen before."""
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


def watch(pool: Pool[Any]) -> Watch:
    """Return the watch of a pool; it begins when it is first asked for."""
    own = vars(pool)
    found: Watch | None = own.get("_watch")
    if found is None:
        found = own["_watch"] = Watch(pool)
    return found


def percentile(waits: Sequence[float], at_once: int, share: float) -> float | None:
    """Return the wait that a share of all callers did not exceed; None if there were none.

    ``waits`` are sorted; before them come ``at_once`` callers who have not waited.
    """
    callers = at_once + len(waits)
    if not callers:
        return None
    rank = min(callers - 1, int(share * callers))
    return waits[rank - at_once] if rank >= at_once else 0.0


def _ended(pool: Pool[Any]) -> int:
    state = pool._state
    return state.direct + sum(state.outcomes.values())
