"""The event loops on which there is something to measure."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


def installed() -> list[str]:
    """Return their names."""
    return [
        name
        for name in ("asyncio", "uvloop", "trio")
        if name == "asyncio" or importlib.util.find_spec(name) is not None
    ]


def run(loop: str, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it on that loop."""
    if loop == "trio":
        return anyio.run(main, backend="trio")
    if loop == "uvloop":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    return asyncio.run(main())


def one_turn(loop: str) -> Callable[[], Awaitable[object]]:
    """Return what lets a task go round the loop once."""
    if loop == "trio":
        from trio.lowlevel import checkpoint

        return checkpoint
    return lambda: asyncio.sleep(0)
