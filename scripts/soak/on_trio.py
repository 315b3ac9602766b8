"""Random operations on trio, in real and in virtual time."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any
from unittest import mock

import trio
import trio.testing

from scripts.soak.model import where
from scripts.soak.users import Run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

    from scripts.soak.model import World


class Batches(trio.abc.Instrument):
    """Counts the batches in which trio runs tasks, in any order within each."""

    def __init__(self) -> None:
        self.number = 0

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        """Note that a batch begins."""
        self.number += 1


class Tasks:
    """Tasks of one nursery, each in a scope of its own."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self._world = world
        self._nursery = nursery
        self._running: dict[trio.CancelScope, str] = {}
        self._tasks: dict[trio.CancelScope, trio.lowlevel.Task] = {}

    def spawn(self, name: str, function: Callable[[], Awaitable[object]]) -> None:
        """Start a task whose errors are failures."""
        scope = trio.CancelScope()
        self._running[scope] = name

        async def run() -> None:
            self._tasks[scope] = trio.lowlevel.current_task()
            try:
                with scope:
                    await function()
            except Exception as error:
                self._world.fail(error)
            finally:
                del self._running[scope], self._tasks[scope]

        self._nursery.start_soon(run, name=name)

    def cancel(self, task: trio.CancelScope) -> None:
        """Cancel one."""
        self._world.note(f"cancel {self._running[task]}")
        task.cancel()

    def where(self) -> list[str]:
        """Return where each is."""
        return [f"{self._running[one]} at {where(self._tasks[one].coro)}" for one in self._tasks]

    def alive(self) -> list[trio.CancelScope]:
        """Return those that have not ended."""
        return list(self._running)

    def park(self) -> Parked:
        """Return what nobody will wake."""
        return Parked()

    def lose(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Begin a coroutine by hand, for trio loses no task."""
        try:
            yielded = coroutine.send(None)
        except StopIteration:
            return
        if isinstance(yielded, Parked):
            yielded.parked = coroutine  # a circle, which only the collector finds
        else:  # it waits for something of trio's
            coroutine.close()


class Parked:
    """An awaitable that yields itself, to whoever began its coroutine."""

    parked: object

    def __await__(self) -> Generator[Parked, None, None]:
        """Yield once."""
        yield self


def tree(task: trio.lowlevel.Task | None) -> list[str]:
    """Return where a task and its children are."""
    if task is None:
        return []
    children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return [f"{task.name} at {where(task.coro)}", *itertools.chain(*map(tree, children))]


def run(world: World, steps: int) -> str:
    """Run one seed; return on what."""
    virtual = world.seed % 2 == 0
    batches = Batches()
    world.batch = lambda: batches.number
    order = random.Random(world.seed)  # within each batch

    async def main() -> None:
        world.now = trio.current_time
        root = trio.lowlevel.current_root_task()
        world.everybody = lambda: tree(root)
        if clock is not None:
            world.patience = 0.01
            world.stall = clock.jump
        async with trio.open_nursery() as nursery:
            await Run(world, Tasks(world, nursery), None).live(steps)

    clock = trio.testing.MockClock(autojump_threshold=0) if virtual else None
    with mock.patch.multiple(trio._core._run, _r=order, _ALLOW_DETERMINISTIC_SCHEDULING=True):
        trio.run(main, clock=clock, instruments=[batches])
    return "trio in virtual time" if virtual else "trio"
