"""Event loops under a test's control: time that jumps, and schedules that somebody else chooses."""

from __future__ import annotations

import asyncio
import heapq
import math
import selectors
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop of asyncio whose clock jumps to the next timer when nothing else is to be done.

    Days pass in seconds: ``asyncio.Runner(loop_factory=VirtualTimeLoop)``. What waits for a socket
    or a thread does not hold up the clock. (On trio, there is `trio.testing.MockClock`.)
    """

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self._now = 0.0

    def time(self) -> float:
        """Return the virtual seconds that have passed."""
        return self._now

    def _run_once(self) -> None:
        loop: Any = self
        timers = loop._scheduled
        while timers and timers[0]._cancelled:
            loop._timer_cancelled_count -= 1
            heapq.heappop(timers)._scheduled = False
        if not loop._ready and timers:
            self._now = max(self._now, timers[0]._when)
        # What is due now, and nothing that is due later: asyncio's own leeway of a nanosecond would
        # ring a hair early, and is lost in the rounding of a time of half a year, never to ring.
        loop._clock_resolution = math.ulp(self._now)
        super()._run_once()  # type: ignore[misc]


_FAIR = 50


class OneStepLoop(VirtualTimeLoop):
    """One that runs a single callback at a time: the one that ``choose(how_many)`` picks.

    asyncio runs what is ready in batches and in order. Whoever relies on that relies on luck, for
    when things get ready depends on sockets and threads. Both are out of place here: a loop with
    nothing to run raises `RuntimeError`, for that is a deadlock; so does one that runs for more
    than ``most`` steps. The oldest callback is passed over 50 times at most, for some callbacks
    (anyio's cancellations) come again until another one has run.
    """

    def __init__(self, choose: Callable[[int], int], *, most: int = 100_000) -> None:
        super().__init__()
        self._choose = choose
        self._most = most
        self._waiting: list[Any] = []
        self._passed_over = 0
        self.steps: int = 0

    def _run_once(self) -> None:
        loop: Any = self
        self._waiting.extend(loop._ready)
        loop._ready.clear()
        if self._waiting:
            self.steps += 1
            if self.steps > self._most:
                raise RuntimeError(f"still running after {self._most} steps")
            index = self._choose(len(self._waiting)) if self._passed_over < _FAIR else 0
            self._passed_over = self._passed_over + 1 if index else 0
            loop._ready.append(self._waiting.pop(index))
        elif not (loop._scheduled or loop._stopping):
            raise RuntimeError("a deadlock: nothing is left to run")
        super()._run_once()
