"""Random operations on asyncio and uvloop, in real and in virtual time, with eager tasks or not."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import uvloop

from poolkit.testing import VirtualTimeLoop
from scripts.soak.model import where
from scripts.soak.users import Run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from scripts.soak.model import World

# In turns, by the seed. Virtual time is the most thorough, and the only one that repeats exactly.
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [
    VirtualTimeLoop,
    asyncio.SelectorEventLoop,
    VirtualTimeLoop,
    uvloop.new_event_loop,
]


class Tasks:
    """Tasks of asyncio, cancelled by `task.cancel`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._running: dict[asyncio.Task[None], None] = {}
        self._cancelled: set[asyncio.Task[None]] = set()

    def spawn(self, name: str, function: Callable[[], Awaitable[object]]) -> None:
        """Start a task whose errors are failures."""

        async def run() -> None:
            try:
                await function()
            except asyncio.CancelledError:
                task: Any = asyncio.current_task()
                self._world.check(task in self._cancelled, f"{name} was cancelled by nobody")
            except BaseException as error:
                self._world.fail(error)

        task = asyncio.get_running_loop().create_task(run(), name=name)
        self._running[task] = None
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        self._cancelled.discard(task)

    def cancel(self, task: asyncio.Task[None]) -> None:
        """Cancel one."""
        self._world.note(f"cancel {task.get_name()}")
        self._cancelled.add(task)
        task.cancel()

    def where(self) -> list[str]:
        """Return where each is."""
        return [f"{task.get_name()} at {where(task.get_coro())}" for task in self._running]

    def alive(self) -> list[asyncio.Task[None]]:
        """Return those that have not ended."""
        return list(self._running)

    def park(self) -> asyncio.Future[None]:
        """Return what nobody will wake, nor even refer to."""
        return asyncio.get_running_loop().create_future()

    def lose(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a task that is collected."""
        asyncio.get_running_loop().create_task(coroutine)


def run(world: World, steps: int) -> str:
    """Run one seed; return on what."""
    make_loop = LOOPS[world.seed % len(LOOPS)]
    eager = world.seed // len(LOOPS) % 2 == 1 and make_loop is not uvloop.new_event_loop

    def complain(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "was destroyed" not in context["message"]:  # the lost ones
            world.fail(context.get("exception") or RuntimeError(context["message"]))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        world.everybody = lambda: [
            f"{task.get_name()} at {where(task.get_coro())}" for task in asyncio.all_tasks(loop)
        ]
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(complain)
        world.now = loop.time
        if isinstance(loop, VirtualTimeLoop):
            world.patience = 0.01
            world.stall = lambda seconds: setattr(loop, "_now", loop._now + seconds)
        if eager and sys.version_info >= (3, 12):
            loop.set_task_factory(asyncio.eager_task_factory)
        await Run(world, Tasks(world), asyncio.CancelledError).live(steps)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())
    return f"{make_loop.__qualname__}{', eager tasks' if eager else ''}"
