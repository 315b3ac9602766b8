"""All that is to be seen of a pool at one moment, for the live page.

`Pool.stats` and `Pool.leases` have less: not who waits, not the slots one by one, no outage. And
`Pool.leases` describes every lease, which takes long if there are thousands; here each list has an
end.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

from poolkit._shell import messages

if TYPE_CHECKING:
    from poolkit._core.slot import Slot
    from poolkit._options import Options
    from poolkit._shell.pool import Pool
    from poolkit._stats import LeaseInfo, PoolStats


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotSeen:
    """One slot."""

    key: int
    """Tells it from others of the same moment, and it is found by it again."""
    state: str
    since: float | None
    """When this began, by the pool's clock: the lease, the idle time, the job; None: not known."""
    lease: LeaseInfo | None
    """If it is leased."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """A pool at one moment."""

    now: float
    """By the pool's clock."""
    is_open: bool
    is_here: bool
    """Whether the pool is on the event loop that asks, so that it may be observed from here."""
    stats: PoolStats
    options: Options
    outage: tuple[str, float] | None
    """While the database cannot be reached: the class of the last error, and for how long."""
    slots: list[SlotSeen]
    """The longest held first, then the idle, and those with a job."""
    queue: list[tuple[str, float]]
    """Who waits, and for how long; the first in line first."""
    waits: list[float]
    """The same of all who wait, and no names."""
    held: Counter[str]
    """How many each label holds."""


def is_open_here(pool: Pool[Any]) -> bool:
    """Tell whether a pool is open, and on the event loop that asks."""
    return pool._state.is_open and pool._runtime.is_here()


def inspection_of(pool: Pool[Any], most: int) -> Inspection:
    """Look at a pool, from any thread; ``most``: slots and waiters that are described."""
    return pool._read(_inspect, pool, most)


def _inspect(pool: Pool[Any], most: int) -> Inspection:
    state, now = pool._state, pool._now()
    # A finalizer may ask while a connection is on its way to a holder.
    leased = [slot for slot in state.leased if slot.task is not None]
    others = itertools.chain(state.idle, state.connecting, state.recycling, state.closing)
    outage = state.outage
    return Inspection(
        now=now,
        is_open=state.is_open,
        is_here=pool._life is None or pool._runtime.is_here(),
        stats=state.stats(now),
        options=state.options,
        outage=None if outage is None else (type(outage.error).__name__, now - outage.since),
        slots=[
            *(_leased(slot, now, pool) for slot in leased[:most]),
            *(_other(slot) for slot in itertools.islice(others, max(0, most - len(leased)))),
        ],
        queue=[
            (messages.label_of(waiter), now - waiter.since)
            for waiter in itertools.islice(state.queue.values(), most)
        ],
        waits=[now - waiter.since for waiter in state.queue.values()],
        held=Counter([slot.label or messages.label_of(slot) for slot in leased]),
    )


def _leased(slot: Slot, now: float, pool: Pool[Any]) -> SlotSeen:
    info = messages.lease(slot, now, pool._hooks)
    return SlotSeen(key=id(slot), state="leased", since=slot.leased_at, lease=info)


def _other(slot: Slot) -> SlotSeen:
    # Since when one is closing, nobody has noted.
    since = {"idle": slot.used_at, "closing": None}.get(slot.state, slot.job_began_at)
    return SlotSeen(key=id(slot), state=slot.state, since=since, lease=None)
