"""What a pool tells about itself, for its statistics and its errors."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from poolkit._stats import Facts, PoolStats, task_name

if TYPE_CHECKING:
    from poolkit._core.placement import Placement

#: Leases that are counted for an error: errors are many when there is much to do.
_COUNTED: Final = 1000


def stats_of(state: Placement, now: float, **times: Any) -> PoolStats:
    """Return a snapshot; of ``times``, what is given."""
    first = next(iter(state.queue.values()), None)
    return PoolStats(
        min_size=state.options.min_size,
        min_idle=state.options.min_idle,
        max_size=state.options.max_size,
        capacity=state.options.capacity,
        idle=len(state.idle),
        leased=len(state.leased),
        connecting=len(state.connecting),
        recycling=len(state.recycling),
        closing=len(state.closing),
        stuck=len(state.progress.stuck),
        listening=state.listening,
        waiting=len(state.queue),
        oldest_wait=now - first.since if first else 0.0,
        direct=state.direct,
        waited=state.outcomes["served"],
        timed_out=state.outcomes["timed_out"],
        cancelled=state.outcomes["cancelled"],
        busy=state.outcomes["busy"],
        shed=state.outcomes["shed"],
        deadlocked=state.outcomes["deadlocked"],
        failed=state.outcomes["failed"],
        closed=state.outcomes["closed"],
        connected=state.connected_total,
        connect_failures=state.connect_failures,
        retried=state.retried,
        retired=dict(state.retired),
        **times,
    )


def times_of(state: Placement, now: float) -> dict[str, Any]:
    """Return how long all has taken, which errors do not tell: they are to be cheap."""
    return {
        "wait_times": state.wait_times(),
        "use_times": state.uses.histogram(),
        "create_times": state.creates.histogram(),
        "leased_at_once": (0, *state.begun),
        "open_for": state.open_for(now),
    }


def facts_of(state: Placement, now: float) -> Facts:
    """Return what errors tell of a pool: small, and fit to be shared by many of them."""
    outage = state.outage
    held = list(itertools.islice(state.leased, _COUNTED))
    return Facts(
        now=now,
        stats=stats_of(state, now),
        options=state.options,
        failures=outage.failures if outage else 0,
        error=outage.error if outage else None,
        longest=tuple(
            (task_name(holder), now - slot.leased_at, holder)
            for slot in held[:3]
            if (holder := slot.holder)
        ),
        holders=tuple([slot.holder for slot in held]),  # a third faster than a generator
    )
