"""The thread of one connection of aiosqlite's, which can be left at any moment."""

from __future__ import annotations

import asyncio
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit.drivers.sqlite._connection import Raw

T = TypeVar("T")


class Worker:
    """The thread of one connection: does what comes, in the order it came, and closes it last."""

    def __init__(self) -> None:
        self._raw: Raw | None = None
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any] | None] | None]
        self._calls = SimpleQueue()
        self._gate = threading.Lock()
        #: Who waits for the end of the thread; None: it has ended.
        self._waiting: list[asyncio.Future[None]] | None = []
        # A daemon, so that a connection nobody has closed does not keep the interpreter.
        self.thread = threading.Thread(target=self._run, name="poolkit-aiosqlite", daemon=True)
        self.thread.start()

    def open(self, opening: Callable[[], Raw]) -> Raw:
        """Open the connection, in the thread, which closes it whatever becomes of the caller."""
        self._raw = opening()
        return self._raw

    def submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Have a function run in the thread; what is returned may be awaited, or not."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.put(function, future)
        return future

    def put(self, function: Callable[[], T], future: asyncio.Future[T] | None) -> None:
        """Have a function run in the thread, and a future told."""
        self._calls.put((function, future))

    def end(self) -> None:
        """Have the thread close the connection and end, after what is queued already."""
        self._calls.put(None)

    def ended(self) -> asyncio.Future[None]:
        """Have the thread close the connection and end; what is returned is done when it has."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._gate:
            if self._waiting is None:
                future.set_result(None)
            else:
                self._waiting.append(future)
        self.end()
        return future

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            try:
                result = function()
            except BaseException as error:
                _tell(future, None, error)
            else:
                _tell(future, result, None)
                # What stays in these variables until the next call may be a half-read cursor.
                del result
            del call, function, future
        try:
            if self._raw is not None:
                self._raw.close()
        finally:
            with self._gate:
                waiting, self._waiting = self._waiting or [], None
            for future in waiting:
                _tell(future, None, None)


def _tell(future: asyncio.Future[Any] | None, result: object, error: BaseException | None) -> None:
    if future is None:
        return
    if isinstance(error, StopIteration):  # no future takes it
        error = RuntimeError(f"StopIteration raised in a database thread: {error}")
    # (Not contextlib.suppress: what the thread does here, the loop waits for.)
    try:
        if not future.cancelled():
            future.get_loop().call_soon_threadsafe(_settle, future, result, error)
    except RuntimeError:
        pass  # the loop was closed meanwhile: there is nobody to be told


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
