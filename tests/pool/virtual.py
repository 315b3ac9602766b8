"""Runs in virtual time, on asyncio and on trio: hours pass at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from poolkit._shell.on_asyncio import OnAsyncio
from poolkit.testing import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


def on_asyncio(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run on asyncio, whose clock jumps."""

    async def coroutine() -> Any:
        return await main()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine())


def on_workers(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run on asyncio as on a loop that knows no tasks that start at once."""
    with only_workers():
        return on_asyncio(main)


@contextlib.contextmanager
def only_workers() -> Iterator[None]:
    """Leave all resets of the pools that are opened meanwhile to parked workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnAsyncio, "_find_eager", lambda _: None)
        yield


def on_trio(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run on trio, likewise."""
    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


RUNNERS = pytest.mark.parametrize("run", [on_asyncio, on_trio])
