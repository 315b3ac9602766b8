"""Who is inside of ``async with pool``: the last one out closes it.

The end of a block is told nothing of its beginning. Within one life of a pool that does not matter,
for there they are only counted. But a block may end in another life than it began in, when the pool
was closed and opened again meanwhile, and must not be taken for one of the new life's. So each is
noted with its life and its task; in one task the last begun is the first to end.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any

from poolkit._shell.runtime import has_ended, running_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from poolkit._shell.life import Life


class _Block:
    __slots__ = ("life", "task")

    def __init__(self, life: Life) -> None:
        task = running_task()
        self.life = weakref.ref(life)
        self.task: Callable[[], Any] = _nobody if task is None else weakref.ref(task)


class Blocks:
    """The blocks on one pool that have begun and have not ended."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    def begin(self, life: Life) -> None:
        """Note that the running task is inside, in this life of the pool."""
        self._blocks.append(_Block(life))

    def end(self) -> Life | None:
        """Note that the running task has left a block; return the life in which that began.

        None: that life is over, and forgotten.
        """
        for block in self._likely():
            with contextlib.suppress(ValueError):  # a finalizer has ended the same one just now
                self._blocks.remove(block)
                return block.life()
        return None

    def has_any(self, life: Life) -> bool:
        """Tell whether anybody is inside, in this life."""
        return any(block.life() is life for block in self._blocks)

    def _likely(self) -> Iterator[_Block]:
        """Yield the blocks, those first that the running task may be about to end.

        Its own; then those of tasks that have ended, as those have that set up a fixture.
        """
        task = running_task()
        newest = self._blocks[::-1]
        yield from (block for block in newest if task is not None and block.task() is task)
        yield from (block for block in newest if has_ended(block.task()))
        yield from newest


def _nobody() -> None:
    return None
