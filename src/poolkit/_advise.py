"""`advise`: how many connections a pool has needed, and how many would do."""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from poolkit._histogram import Histogram
from poolkit._stats import PoolStats

#: The share of leases that the usual number of them at once is about; the rest are peaks.
_USUAL: Final = 0.999
#: The share of callers who may wait in a pool that is large enough.
_FEW: Final = 0.01
#: From here on a pool is so full, on average, that shorter leases help before more connections do.
_FULL: Final = 0.9
#: With fewer leases than these, chance says more than they do.
_ENOUGH_LEASES: Final = 1000
#: Connections beyond which they are estimated in one step: to go through all takes seconds.
_LARGE: Final = 10_000
#: Seconds: beyond, a duration is told in minutes; and minutes, beyond which it is told in hours.
_MINUTES: Final = 120


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """What `advise` has found; ``str()`` of it is the sentence."""

    seconds: float
    """How long the pool was open in the time that this is about."""
    leases: int
    """Leases that ended in it."""
    leased: int
    """Leases that had not ended at the end of it. The rate and the averages do not count them."""
    capacity: int
    """The pool's capacity, at the end of it."""
    rate: float
    """Leases a second."""
    mean_use: float
    """How long a lease was held on average, in seconds."""
    mean_leased: float
    """Connections leased on average: ``rate`` times ``mean_use``, which is Little's law."""
    usual_leased: int
    """So many or fewer were leased at once when 99.9 % of the leases began."""
    peak_leased: int
    """The most that were leased at once."""
    waited: float
    """The share of callers, from 0 to 1, who found no connection idle, whatever came of it."""
    without: int
    """Callers who got no connection because they had waited for too long, or were refused."""
    wait: float | None
    """Of those who waited and got a connection, 99 % waited for at most so many seconds; None if
    there were none."""
    is_scarce: bool
    """Whether all connections were leased at once, and more than 1 % of the callers waited."""
    enough: int | None
    """Connections that would do; None if nothing is known. Above the capacity it is an estimate:
    with it 99 % of callers would find one idle (Erlang's formula), if they come at random."""
    listening: int
    """Connections of listeners, at the end of it. They are beside the capacity, and beside
    ``enough``; the server counts them all."""
    unknown: tuple[str, ...]
    """What the figures cannot tell, in sentences."""

    def __str__(self) -> str:
        """Return all of it in a few short sentences."""
        if not self.leases:
            none = f"No lease has ended in {_span(self.seconds)}: there is nothing to go by."
            held = (self._held(),) if self.without and self._is_held() else ()
            return " ".join((none, *self._without(), *held, *self._listeners()))
        said = (self._need(), *self._waits(), self._what_to_do(), *self._listeners())
        return " ".join(said)

    def _need(self) -> str:
        usual = ""
        if self.usual_leased < self.peak_leased:
            usual = f", {self.usual_leased} or fewer for 99.9 % of the leases"
        return (
            f"Peak need {self.peak_leased} of {self.capacity} connections{usual}; "
            f"{_few(self.mean_leased)} on average in {_span(self.seconds)} "
            f"({_few(self.rate)} leases a second, held for {_span(self.mean_use)})."
        )

    def _waits(self) -> tuple[str, ...]:
        if not self.waited:
            return ("Nobody waited.",)
        long = "" if self.wait is None else f", 99 % of them for at most {_span(self.wait)}"
        why = ""
        if self.peak_leased < self.capacity:
            why = ", though not all were leased: for one that was being opened, pinged or reset"
        waited = f"{_percent(self.waited)} of the callers waited{long}{why}."
        return waited, *self._without()

    def _without(self) -> tuple[str, ...]:
        return (f"{_number(self.without, 'caller')} got no connection.",) if self.without else ()

    def _listeners(self) -> tuple[str, ...]:
        if not self.listening:
            return ()
        return (f"Besides, the server has {_number(self.listening, 'connection')} for listening.",)

    def _is_held(self) -> bool:
        """Return True if leases that have not ended take most of the pool: leaks, perhaps."""
        return 2 * self.leased > self.capacity and self.leased > 2 * self.mean_leased

    def _held(self) -> str:
        return (
            f"{self.leased} of {self.capacity} connections are held by leases that have not ended, "
            "and are in no average: see who holds them (`pool.leases()`) before you add any."
        )

    def _what_to_do(self) -> str:
        if self.is_scarce and self._is_held():
            return self._held()
        if self.is_scarce:
            first = ""
            if self.mean_leased >= _FULL * self.capacity:
                first = "The pool is full nearly all the time: hold connections for shorter. "
            return f"{first}About {self.enough} connections would let 99 % find one idle."
        if self.enough == self.capacity:
            return f"{self.capacity} are as many as it takes."
        return f"{self.enough} would do."


def advise(stats: PoolStats, /, *, since: PoolStats | None = None) -> Advice:
    """Say how many connections a pool has needed, from what it has counted.

    By Little's law as many are leased on average as leases begin in a second, times the seconds
    that one is held. What is needed beyond that is seen from the leases themselves: how many others
    there were when each began. A pool with the usual number, and its square root to spare, would
    do. If all were leased and callers waited, Erlang's formula estimates how many would do.

    It cannot know how short bursts were, what more connections would do to the database, or how
    long resets take, during which a connection is not leased: ``unknown`` of the answer says so.

    Args:
        stats: a snapshot, ``pool.stats()``.
        since: an earlier one of the same pool: then only the time between the two counts. Without
            it, all the time that the pool has been open.

    Raises ValueError if ``since`` is the later one, or that of another pool.

    """
    if since is not None:
        stats -= since
    seconds, at_once, uses = stats.open_for, list(stats.leased_at_once), stats.use_times
    found, waited, without = (
        max(0, sum(getattr(stats, name) for name in names))
        for names in (("direct",), ("waited", "cancelled"), ("timed_out", "busy", "shed"))
    )
    callers = found + waited + without
    share = (waited + without) / callers if callers else 0.0
    rate = uses.count / seconds if seconds else 0.0
    mean_use = uses.mean or 0.0
    peak = max([stats.leased, *(n for n, leases in enumerate(at_once) if leases)])
    usual = _usual(at_once)
    scarce = peak >= stats.capacity and share > _FEW
    enough = min(stats.capacity, usual + math.isqrt(max(0, usual - 1)) + 1)
    if scarce:
        offered = callers / seconds * mean_use if seconds else 0.0
        enough = max(stats.capacity + 1, _by_erlang(offered))
    return Advice(
        seconds=seconds,
        leases=uses.count,
        leased=stats.leased,
        capacity=stats.capacity,
        rate=rate,
        mean_use=mean_use,
        mean_leased=rate * mean_use,
        usual_leased=usual,
        peak_leased=peak,
        waited=share,
        without=without,
        wait=_without_first(stats.wait_times).percentile(0.99),
        is_scarce=scarce,
        enough=enough if uses.count else None,
        listening=stats.listening,
        unknown=tuple(_unknown(stats, uses.count, scarce=scarce, is_window=since is not None)),
    )


def _unknown(stats: PoolStats, leases: int, *, scarce: bool, is_window: bool) -> list[str]:
    """Return what the figures cannot tell."""
    found = ["How short the bursts were: waits and averages are those of the whole time."]
    if not is_window:
        found.append("What has changed: the time goes back to when the pool was made.")
    if leases < _ENOUGH_LEASES:
        found.append(f"Much: {_number(leases, 'lease')} {'is' if leases == 1 else 'are'} few.")
    if stats.leased:
        found.append(
            f"How long those will be held that have not ended: {_number(stats.leased, 'lease')}."
        )
    found.append("How long resets take: a connection that is being reset is not leased, nor free.")
    if scarce:
        found.append("What more connections do to the database: each lease may take longer then.")
    return found


def _usual(at_once: list[int]) -> int:
    """Return how many were leased at once, or fewer, when 99.9 % of leases began."""
    beyond = sum(at_once) * (1.0 - _USUAL)
    for n in range(len(at_once) - 1, 0, -1):
        beyond -= at_once[n]
        if beyond < 0:
            return n
    return 0


def _without_first(waits: Histogram) -> Histogram:
    """Return the waits of those who waited."""
    return dataclasses.replace(waits, counts=(0, *waits.counts[1:]))


def _by_erlang(offered: float) -> int:
    """Return how many connections let 99 % of callers find one idle.

    ``offered`` are the connections that they would have leased on average, had nobody waited.
    """
    if offered > _LARGE:
        return math.ceil(offered + 2.4 * math.sqrt(offered))  # as Halfin and Whitt have it
    busy = 1.0  # the probability that all n are leased, if nobody waits (Erlang B)
    n = 0
    while True:
        n += 1
        busy = offered * busy / (n + offered * busy)
        if n > offered and busy / (1.0 - offered / n * (1.0 - busy)) <= _FEW:
            return n


def _percent(share: float) -> str:
    return "Less than 1 %" if share < _FEW else f"{share:.0%}".replace("%", " %")


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _few(number: float) -> str:
    """Return a number with two digits that matter, or all before the point."""
    if 0.0 < number < 0.01:  # noqa: PLR2004
        return "less than 0.01"
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"  # noqa: PLR2004


def _span(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 0.9995:  # noqa: PLR2004  # else it would be rounded to 1e+03
        return f"{seconds * 1000:.3g} ms"
    if seconds < _MINUTES:
        return f"{seconds:.3g} s"
    if seconds < 60 * _MINUTES:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h"
