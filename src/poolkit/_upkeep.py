"""The one background loop: once a second, look for the dead and do what is due by age."""

from __future__ import annotations

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
