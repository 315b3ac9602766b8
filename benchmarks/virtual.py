"""An event loop whose clock jumps when there is nothing to do: hours of load in seconds, no noise.

What is shown on it are decisions, in the order and at the times at which a pool takes them; its own
code takes no time there. Libraries that look at `time.monotonic` themselves are shown the loop's.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from unittest import mock

from poolkit.testing import VirtualTimeLoop

T = TypeVar("T")

_LOOK_AT_CLOCKS = ("psycopg_pool", "connpool")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it to its end and return its result."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        clock = runner.get_loop().time
        patches = [
            mock.patch.object(module, name, clock if name == "monotonic" else _Clock(clock))
            for module in list(sys.modules.values())
            if module.__name__.startswith(_LOOK_AT_CLOCKS)
            for name, value in vars(module).copy().items()
            if value is time.monotonic or value is time
        ]
        for patch in patches:
            patch.start()
        try:
            return runner.run(main())
        finally:
            for patch in patches:
                patch.stop()


class _Clock:
    """The module `time`, with another clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.monotonic = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)
