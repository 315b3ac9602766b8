"""The one background loop: once a second, look for the dead and do what is due by age."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

PERIOD = 1.0


async def upkeep(once: Callable[[], None]) -> None:
    """Call `once` every second, for ever."""
    while True:
        await anyio.sleep(PERIOD)
        once()


class Suspended:
    """For how long the machine was suspended, which the clock of an event loop may not count."""

    def __init__(self) -> None:
        self._seconds = seconds_suspended()

    def since_asked(self) -> float:
        """Return for how many seconds since this was asked last."""
        before, self._seconds = self._seconds, seconds_suspended()
        return self._seconds - before


def seconds_suspended() -> float:
    """Return by how much the clock that goes on is ahead of the one that stands still.

    Where there is a choice, by clocks that a test library does not freeze or turn.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.time() - time.monotonic()
