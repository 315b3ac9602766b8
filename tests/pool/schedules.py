"""Runs that come out the same each time, for the same choices: on asyncio and on trio."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random as global_random
from typing import TYPE_CHECKING, Any, Self

import anyio._backends._asyncio as anyio_asyncio
import trio
import trio._core._run as trio_run
import trio.testing

from poolkit.testing._loops import OneStepLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from random import Random


class _CountedTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    numbers = itertools.count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.number = next(self.numbers)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self.number


class _CountedScope(anyio_asyncio.CancelScope):
    """A cancel scope likewise."""

    __slots__ = ("number",)
    number: int
    numbers = itertools.count()

    def __new__(cls, *_: object, **__: object) -> Self:
        self = object.__new__(cls)
        self.number = next(cls.numbers)
        return self

    def __hash__(self) -> int:
        return self.number


class _EagerLoop(OneStepLoop):
    """A loop whose tasks may start at once: it has no task factory, which would prevent that."""

    def create_task(self, coro: Any, **more: Any) -> Any:
        """Make one that is counted."""
        return _CountedTask(coro, loop=self, **more)


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Take away what makes two runs differ: addresses as hashes, the collector, and chance."""
    _CountedTask.numbers = itertools.count()
    _CountedScope.numbers = itertools.count()
    plain = anyio_asyncio.CancelScope
    anyio_asyncio.CancelScope = _CountedScope  # type: ignore[misc]
    state = global_random.getstate()
    global_random.seed(0)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        global_random.setstate(state)
        anyio_asyncio.CancelScope = plain  # type: ignore[misc]


def run_on_asyncio(
    random: Random,
    function: Callable[[Random], Awaitable[Any]],
    *,
    choose: Callable[[int], int] | None = None,
    eager: bool = True,
) -> int:
    """Run, with each next callback chosen, by ``random`` if not otherwise; return the steps.

    ``eager``: resets begin at once, where Python can do that; else by workers.
    """
    loop = (_EagerLoop if eager else OneStepLoop)(choose or random.randrange)
    if not eager:
        loop.set_task_factory(lambda loop, coro, **more: _CountedTask(coro, loop=loop, **more))

    async def main() -> None:
        await function(random)

    with steady(), asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    return loop.steps


def run_on_trio(random: Random, function: Callable[[Random], Awaitable[Any]]) -> None:
    """Run on trio, whose own chance is seeded by ``random``, in virtual time."""
    allowed, chance = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r = type(chance)(random.randrange(1 << 30))
    clock = trio.testing.MockClock(autojump_threshold=0)
    try:
        with steady():
            trio.run(function, random, clock=clock)
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # type: ignore[misc]
        trio_run._r = chance
