"""What there is to tell of one pool, as plain data: a process can send it to another as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypedDict
from weakref import WeakKeyDictionary

from poolkit._shell.inspection import inspection_of

if TYPE_CHECKING:
    from poolkit._histogram import Histogram
    from poolkit._shell.pool import Pool

#: How many routes are told of that hold connections: each is a time series.
_ROUTES: Final = 10
#: The counters of acquires that ended without a connection; time-outs have a metric of their own.
_REFUSED: Final = ("busy", "shed", "deadlocked", "failed", "closed")


class Times(TypedDict):
    """A histogram."""

    bounds: list[float]
    counts: list[int]
    sum: float


class Snapshot(TypedDict):
    """One pool, at one moment."""

    pool: str
    open: bool
    idle: int
    used: int
    idle_max: int
    idle_min: int
    max: int
    pending: int
    oldest_wait: float
    oldest_lease: float
    listening: int
    connect_failures: int
    retried: int
    timeouts: int
    refused: dict[str, int]
    retired: dict[str, int]
    held: dict[str, int]
    wait_time: Times
    use_time: Times
    create_time: Times


#: The most that each of a pool's counters has been: see `_rising`.
_highest: Final[WeakKeyDictionary[Pool[Any], dict[str, int]]] = WeakKeyDictionary()


def snapshot(pool: Pool[Any]) -> Snapshot:
    """Return what metrics tell of a pool now; may be called from any thread."""
    seen = inspection_of(pool, 1)
    stats = seen.stats
    longest = next((slot.lease for slot in seen.slots), None)  # held the longest, if any is
    return Snapshot(
        pool=_encodable(pool.name),
        open=pool.is_open,
        idle=stats.idle,
        used=stats.leased,
        idle_max=stats.max_size,
        idle_min=stats.min_size,
        max=stats.capacity,
        pending=stats.waiting,
        oldest_wait=stats.oldest_wait,
        oldest_lease=0.0 if longest is None else longest.seconds,
        listening=stats.listening,
        connect_failures=stats.connect_failures,
        retried=stats.retried,
        timeouts=_rising(pool, "timed_out", stats.timed_out),
        refused={kind: _rising(pool, kind, getattr(stats, kind)) for kind in _REFUSED},
        retired=dict(stats.retired),
        held=dict(seen.held.most_common(_ROUTES)),
        wait_time=_times(stats.wait_times),
        use_time=_times(stats.use_times),
        create_time=_times(stats.create_times),
    )


def _encodable(name: str) -> str:
    """Return a name in which half a surrogate pair, which UTF-8 has not, is escaped."""
    return name.encode(errors="backslashreplace").decode()


def _rising(pool: Pool[Any], counter: str, value: int) -> int:
    """Return a counter that never falls.

    An acquire that timed out, and is cancelled before its caller has noticed, is counted anew, as
    cancelled. To Prometheus a counter that falls by one has begun again from 0.
    """
    highest = _highest.setdefault(pool, {})
    highest[counter] = value = max(value, highest.get(counter, 0))
    return value


def _times(histogram: Histogram) -> Times:
    return Times(bounds=list(histogram.bounds), counts=list(histogram.counts), sum=histogram.sum)
