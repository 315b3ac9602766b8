"""Leases held for longer than they should be: told of once, and once more when they come back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from poolkit._shell import messages
from poolkit._shell.callsite import indented
from poolkit._shell.log import say

if TYPE_CHECKING:
    from poolkit._core.slot import Slot
    from poolkit._core.state import PoolState


class Leaks:
    """What has been said of one pool's leases."""

    def __init__(self, pool: str, state: PoolState) -> None:
        self._pool = pool
        self._state = state
        self._told: dict[Slot, tuple[int, float, str]] = {}

    def look(self, now: float) -> None:
        """Warn of the leases older than ``leak_after``; tell of those that have ended meanwhile."""
        limit = self._state.options.leak_after
        if limit is None:
            return
        for slot in self._state.leased:  # the longest held first
            if now < slot.leased_at + limit:
                break
            turn, *_ = self._told.get(slot, (None,))
            if turn != slot.release_count:
                info = messages.lease(slot, now)
                self._told[slot] = (slot.release_count, slot.leased_at, info.place)
                say(
                    logging.WARNING,
                    "held_long",
                    "pool %r: leak_after=%s: a connection is held by %s%s",
                    *(self._pool, limit, info, indented(info.stack)),
                    pool=self._pool,
                    seconds=info.seconds,
                    label=info.label,
                    place=info.place,
                )
        for slot, (turn, since, place) in list(self._told.items()):
            if slot.release_count != turn:
                del self._told[slot]
                until = slot.used_at if slot.used_at > since else now
                say(
                    logging.WARNING,
                    "came_back",
                    "pool %r: the connection acquired at %s came back after all, after %.1f s",
                    *(self._pool, place, until - since),
                    pool=self._pool,
                    seconds=until - since,
                    place=place,
                )

    def forget(self, slot: Slot) -> None:
        """Say no more of a lease that has not come back, and never will."""
        self._told.pop(slot, None)

    def forget_leases(self) -> None:
        """Say no more of the leases that have not come back: they never will."""
        for slot in self._state.leased:
            self._told.pop(slot, None)
