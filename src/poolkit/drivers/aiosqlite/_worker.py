"""The thread of one connection of aiosqlite's; tasks that wait for it can be cancelled any time."""

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
    """The thread of one connection: runs functions in their order, and closes it at the end."""

    def __init__(self) -> None:
        self._raw: Raw | None = None
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any] | None] | None]
        self._calls = SimpleQueue()
        self._lock = threading.Lock()
        #: Futures to be set when the thread has ended; None: it has.
        self._waiting: list[asyncio.Future[None]] | None = []
        # A daemon: a connection that nobody has closed must not keep the interpreter from ending.
        self.thread = threading.Thread(target=self._run, name="poolkit-aiosqlite", daemon=True)
        self.thread.start()

    def open(self, opening: Callable[[], Raw]) -> Raw:
        """Open the connection; called in the thread, which closes it even if the caller is gone."""
        self._raw = opening()
        return self._raw

    def submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Have a function run in the thread; the future need not be awaited."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.put(function, future)
        return future

    def put(self, function: Callable[[], T], future: asyncio.Future[T] | None) -> None:
        """Have a function run in the thread, and set a future to what comes of it."""
        self._calls.put((function, future))

    def end(self) -> None:
        """Have the thread close the connection and end, after what is queued already."""
        self._calls.put(None)

    def ended(self) -> asyncio.Future[None]:
        """Have the thread close the connection and end; the future is set when it has."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
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
                _set_from_thread(future, None, error)
            else:
                _set_from_thread(future, result, None)
                # Else the variable would keep it, perhaps a half-read cursor, until the next call.
                del result
            del call, function, future
        try:
            if self._raw is not None:
                self._raw.close()
        finally:
            with self._lock:
                waiting, self._waiting = self._waiting or [], None
            for future in waiting:
                _set_from_thread(future, None, None)


def _set_from_thread(
    future: asyncio.Future[Any] | None, result: object, error: BaseException | None
) -> None:
    if future is None:
        return
    if isinstance(error, StopIteration):  # a future refuses it
        error = RuntimeError(f"StopIteration raised in a database thread: {error}")
    # (Not contextlib.suppress, which takes longer: the loop waits for this.)
    try:
        if not future.cancelled():
            future.get_loop().call_soon_threadsafe(_set, future, result, error)
    except RuntimeError:
        pass  # the loop was closed meanwhile: nobody waits


def _set(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
