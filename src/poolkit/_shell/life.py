"""One life of a pool, from `open` to `aclose`: its event loop, its workers, its root task."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio

from poolkit._shell.log import say
from poolkit._shell.runtime import is_cancellation
from poolkit._shell.upkeep import upkeep
from poolkit._text import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._shell.runtime import Runtime
    from poolkit._shell.workers import Workers


class Life:
    """The tasks of an open pool, and those who wait for something to change in it."""

    def __init__(self, runtime: Runtime, workers: Workers) -> None:
        self.runtime = runtime
        self.workers = workers
        self.openers = 0  # those under way to open it
        self.is_kept = False  # whoever has called `open` is to call `aclose`
        self.ended = False  # its tasks have
        self._scope = anyio.CancelScope()
        self.watchers: list[Any] = []

    def begin(
        self, name: str, look_after: Callable[[], None], end: Callable[[BaseException | None], None]
    ) -> None:
        """Start the root task; `end` is called when it ends, with the error that ended it."""
        runtime = self.runtime

        async def root() -> None:
            cause: BaseException | None = None
            try:
                with self._scope:
                    async with anyio.create_task_group() as group:
                        if self._scope.cancel_called:
                            return  # closed before it began
                        runtime.spawn(group, runtime.keep_alarm)
                        runtime.spawn(group, upkeep, look_after)
                        self.workers.begin(group)
                if not self._scope.cancel_called:
                    cause = RuntimeError("a task of the pool's was cancelled, by nobody who may")
            except BaseException as error:
                ended = is_cancellation(error) or isinstance(error, GeneratorExit)
                # Mostly that is the end of the event loop under an open pool, or `aclose`.
                if not (
                    ended
                    and (self._scope.cancel_called or runtime.has_ended() or not runtime.goes_on())
                ):
                    cause = error
                if ended:
                    raise
            finally:
                if cause is not None:
                    say(
                        logging.ERROR,
                        "pool %r: its root task failed, and the pool is closed: %s",
                        name,
                        told(cause),
                        error=cause,
                    )
                runtime.stop_alarm()
                self.ended = True
                end(cause)

        runtime.start_root(root)

    def keep(self) -> None:
        """Let no block end this life: somebody has opened the pool to close it himself."""
        self.is_kept = True

    def cancel(self) -> None:
        """End the root task and all its children, without waiting."""
        if not self.runtime.has_ended():
            self.workers.end()
            self._scope.cancel()

    async def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until it is so, looking after every change."""
        while True:
            parking = self.runtime.create_parking()
            self.watchers.append(parking)  # before the look, or a change just after it is missed
            if is_so():
                return
            await parking

    def changed(self) -> None:
        """Wake those who wait for a change."""
        watchers, self.watchers = self.watchers, []
        for parking in watchers:
            self.runtime.unpark(parking)
