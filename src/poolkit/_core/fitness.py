"""Which connection goes, and why. These functions look at a pool's state and change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from poolkit._core.slot import NEVER
from poolkit._driver import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolkit._core.placement import Placement
    from poolkit._core.slot import Reason, Slot

#: After an error that says one of these, a connection is not used again.
BROKEN: Final = frozenset({Verdict.SUSPECT, Verdict.DEAD, Verdict.SERVER_GONE})
#: Why a connection goes when its time has come.
AGED: Final = ("expired", "stale")
#: The last part of the lifetime, in which a connection is replaced.
OLD_AGE: Final = 0.1
#: Connections that may be away at once to be replaced: at least two, or a tenth of a larger pool.
_FEW: Final = 2


def why_unfit(state: Placement, slot: Slot, now: float, *, more: int = 0) -> Reason | None:
    """Return why a connection must not be used again, or None.

    ``more``: connections that are about to be in use, and are not leased yet.
    """
    if not slot.verdicts.isdisjoint(BROKEN):  # it died while it was away
        return "broken"
    if not state.is_open:
        return "pool_closed"
    if state.options.max_uses is not None and slot.uses >= state.options.max_uses:
        return "used_up"
    if now >= slot.expires_at:
        return slot.reason or "expired"
    if now >= slot.retire_at and _can_spare(state, slot, more):
        return slot.reason or "expired"
    return None


def why_unneeded(state: Placement, slot: Slot, now: float) -> Reason | None:
    """Return why an idle connection is to go although it is good, or None."""
    options = state.options
    lingers_until = slot.used_at + options.overflow_linger  # as `next_tick` has it
    if state.live > options.max_size and now >= lingers_until:
        return "surplus"
    limit = options.max_idle_time
    if limit is None or now < slot.used_at + limit:
        return None
    # What is about to leave, and what is only being opened, is nothing to count on: else the next
    # look would find one missing.
    return "unused" if _ready(state) > needed(state) + leaving(state) else None


def needed(state: Placement, more: int = 0) -> int:
    """Return how many connections there are to be: `min_size`, or those in use and `min_idle`.

    ``more``: how many more are in use than are leased and waited for; fewer if below 0.
    """
    options = state.options
    in_use = len(state.leased) + len(state.queue) + more
    return min(max(options.min_size, in_use + options.min_idle), options.max_size)


def leaving(state: Placement) -> int:
    """Return how many of the connections that are due to leave may be replaced now."""
    return min(state.aging, away_limit(state)) if state.aging else 0


def why_not_kept(state: Placement, slot: Slot, *, wanted: bool) -> Reason | None:
    """Return why a good connection goes when it is free; ``wanted``: somebody waits for it."""
    if is_surplus(state, wanted=wanted):
        return "surplus"
    if wanted or not state.options.keeps_none:
        return None
    kept = needed(state, -(slot.state == "leased")) + leaving(state)
    # What is only being opened is nothing to count on.
    return "unused" if _ready(state) + (slot.state == "connecting") > kept else None


def is_surplus(state: Placement, *, wanted: bool) -> bool:
    """Tell whether there is one connection too many; ``wanted``: somebody waits for it."""
    if state.live > state.options.capacity:
        return True
    if wanted or state.options.overflow_linger:
        return False
    return state.live > state.options.max_size


def away_limit(state: Placement) -> int:
    """Return how many connections may be away at once with nobody waiting for them."""
    return max(_FEW, max(state.size, state.options.min_size) // 10)


def _ready(state: Placement) -> int:
    # Not those that are stuck, in whose place others are opened (`supply`).
    stuck = sum(slot.state == "recycling" for slot in state.progress.stuck)
    return len(state.idle) + len(state.leased) + len(state.recycling) - stuck


def _can_spare(state: Placement, slot: Slot, more: int) -> bool:
    """Tell whether a connection may go for its age: its successor first, if there is room.

    Whoever is about to take it, or to have it pinged, does not wait for another one in its place.
    """
    if slot.state == "leased":  # and is being given back
        more -= 1
    missing = needed(state, more) - _ready(state)
    has_room = state.live < state.options.max_size and state.room > 0
    is_wanted = more > 0 or (bool(state.queue) and slot.state == "idle")
    if missing >= 0 and (has_room or len(state.connecting) > missing or is_wanted):
        return False
    going = sum(slot.reason in AGED for slot in state.closing)
    return max(going, missing) < away_limit(state)


class Ages(NamedTuple):
    """When connections are to be replaced."""

    retire_at: list[tuple[Slot, float]]
    """Each slot's time."""
    next_at: float
    """When the next one comes of age or is due, to be asked again."""
    due: int
    """Connections whose time has come."""


def pace_ages(slots: Sequence[Slot], lifetime: float, now: float) -> Ages:
    """Spread the replacement of connections that expire together, so that all go in time.

    Each has drawn its time by chance. Where that is later than the pace allows at which all
    that follow can still be replaced, the pace counts. A renewal over time has its own times.
    """
    old_age = lifetime * OLD_AGE
    spare = old_age / 10  # for the connect that replaces the last one
    of_age = [slot for slot in slots if slot.reason is None]
    of_age.sort(key=lambda slot: (slot.expires_at, slot.retire_at), reverse=True)
    pace = (old_age - spare) / max(1, len(of_age))
    renewed = [slot for slot in slots if slot.reason == "stale" and now < slot.expires_at]
    times = [(slot, slot.retire_at) for slot in renewed]
    next_at = latest = NEVER
    for slot in of_age:  # the youngest first
        latest = min(latest - pace, slot.expires_at - spare)
        times.append((slot, min(slot.retire_at, latest)))
        if now < (comes_of_age_at := slot.expires_at - old_age):
            next_at = min(next_at, comes_of_age_at)
    for slot, retire_at in times:
        if now < slot.expires_at:
            next_at = min(next_at, slot.expires_at if now >= retire_at else retire_at)
    return Ages(times, next_at, sum(now >= retire_at for _, retire_at in times))
