"""Work that nobody waits for: ending at a server what a closed connection has left there."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: The event loop refers to its tasks weakly.
_tasks: Final[set[asyncio.Task[None]]] = set()


def run_later(
    loop: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[object]], limit: float
) -> None:
    """Do something in a task of its own, for ``limit`` seconds at most; errors are nobody's.

    Does nothing if the event loop has ended, or is another thread's; nor for a task that is being
    cancelled: the loop may be about to end, and would leave a half-opened connection.
    """
    with contextlib.suppress(RuntimeError):
        current = asyncio.current_task()  # raises where no loop runs
        if asyncio.get_running_loop() is not loop or (current and current.cancelling()):
            return
        for left in _tasks.copy():
            if left.get_loop().is_closed():
                _tasks.discard(left)
        task = loop.create_task(_in_time(work, limit))
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # the loop may be ending
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)


async def _in_time(work: Callable[[], Awaitable[object]], limit: float) -> None:
    try:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(limit):
                await work()
    except asyncio.CancelledError:
        await asyncio.sleep(0)  # the loop may be ending: a transport closes in the turn after
        raise
