"""How many connects and pings are due. These functions look at the state and change nothing.

One connect for each waiter whom nothing under way will serve soon, and those that ``min_size`` and
``min_idle`` lack; elastic at a cold start, careful while leases are out, one at a time during an
outage.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from poolkit._core.fitness import away_limit, leaving, needed
from poolkit._core.slot import NEVER

if TYPE_CHECKING:
    from poolkit._core.placement import Placement
    from poolkit._core.slot import Slot


def shortage(state: Placement) -> int:
    """Return for how many waiters nothing is under way that will serve them soon."""
    return len(state.queue) - state.progress.count()


def connects_due(state: Placement, now: float) -> int:
    """Return how many connects are to begin now."""
    wanted = _wanted(state)
    if wanted <= 0:
        return 0
    spare, due = _spare(state)
    return min(wanted, spare, state.room) if now >= due else 0


def next_connect_at(state: Placement) -> float:
    """Return when the next connect is due that has to wait for its time."""
    spare, due = _spare(state)
    return due if min(spare, _wanted(state), state.room) > 0 else NEVER


def untrusted_wanted(state: Placement) -> int:
    """Return how many idle connections to ping for those in line.

    They are idle, but not to be trusted without a ping, which beats any connect under way.
    """
    return min(len(state.queue) - state.progress.recycles(), len(state.idle))


def silent(state: Placement, now: float) -> list[Slot]:
    """Return the idle connections silent for ``ping_every``, at most half of all at once."""
    every = state.options.ping_every
    if every is None or state.queue:
        return []
    away = len(state.recycling)
    most = (len(state.idle) + away + 1) // 2 - away
    quiet = (slot for slot in state.idle if now >= slot.alive_at + every)
    return list(itertools.islice(quiet, max(0, most)))


def _spare(state: Placement) -> tuple[int, float]:
    """Return how many connects may begin beside those under way, and from when on.

    While somebody waits there may be one more for each that is slow, at most as many again:
    hung ones do not keep others from an answer. These begin one by one, for a server that is
    merely slow must not be stormed.
    """
    options, progress = state.options, state.progress
    underway, slow = progress.live_connects(), progress.slow_connects()
    most, due = options.max_connecting, -NEVER
    if state.outage:
        most, due = 1, state.outage.retry_at
    spare = most - underway
    if spare <= 0 and (state.queue or state.openers):
        spare = min(1, spare + min(slow, most))
        due = max(due, state.attempt_at + options.backoff_min)
    short = shortage(state)
    if not (state.outage or state.openers) and (short <= 0 or state.leased):
        spare = min(spare, (state.ramp if short > 0 else away_limit(state)) - progress.connects())
    return spare, due


def _wanted(state: Placement) -> int:
    """Return how many connections are missing.

    While somebody opens the pool, slow connects do not count as connections that will be there.
    Nor does a connection that is due to leave, if its successor may be opened beside it.
    """
    away = len(state.progress.stuck) + leaving(state)
    if state.openers:
        away += state.progress.slow_connects()
    # One beyond `max_size` would be a surplus one: closed at once, and missing again.
    most = state.options.max_size - state.live
    return max(shortage(state), min(needed(state) - (state.live - away), most))
