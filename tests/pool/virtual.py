"""Runs in virtual time, on asyncio and on trio: hours pass at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from poolkit.testing import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def on_asyncio(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run on asyncio, whose clock jumps."""

    async def coroutine() -> Any:
        return await main()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine())


def on_trio(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run on trio, likewise."""
    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


RUNNERS = pytest.mark.parametrize("run", [on_asyncio, on_trio])
