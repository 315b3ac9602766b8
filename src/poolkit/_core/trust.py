"""Whether the connections that are open can be trusted: news of the server, and pings that ask."""

from __future__ import annotations

from poolkit._core.placement import Placement
from poolkit._core.slot import NEVER


class Trust(Placement):
    """The events that put connections in doubt."""

    __slots__ = ()

    def ping_idle(self, now: float) -> None:
        """Ping every idle connection before its next use, all together."""
        while self.idle:
            self._ping(self.idle[-1], now)

    def suspect(self, now: float) -> None:
        """Ping every idle connection, and count on none of them until it has answered."""
        self.ping_idle(now)
        self.progress.distrust_recycles()

    def is_awake(self, now: float, until: float) -> None:
        """Note that the event loop runs, and that the shell will call again by ``until``."""
        if now >= self._awake_by:
            self.was_away(now)
        self._awake_by = until + 3.0 * self.pulse

    def was_away(self, now: float) -> None:
        """Trust no connection until it has answered again: what it last said is old.

        The event loop was blocked, or nobody has run it, or the machine was suspended. Meanwhile
        the server may have ended sessions, and what it said before is only being read now.
        """
        if self._ping_after == NEVER:
            return
        self._back_at = now
        for slot in (*self.idle, *self.leased):
            slot.alive_at = slot.good_until = -NEVER
        self._look_at_returns()
