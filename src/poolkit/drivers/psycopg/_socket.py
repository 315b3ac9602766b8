"""Waiting for what the server sends: the event loop keeps one reader for all that a session does.

psycopg adds a reader for each wait, with a timer, and removes both after it; a pool's watch over an
idle connection would come on top. The reader here stays: it wakes the operations that wait, or
between two leases tells the session. One timer serves all waits of a tenth of a second.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from psycopg import waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

#: Seconds after which psycopg looks by itself whether something has happened, as its own default.
_INTERVAL: Final = 0.1
#: Seconds for which operations that need not wait may keep the event loop from others; psycopg's.
_BUSY: Final = 0.005
_TO_READ: Final = int(waiting.WAIT_R)
_READABLE: Final = waiting.READY_R


class Socket:
    """The socket of a session, as the event loop knows it."""

    __slots__ = (
        "_fd",
        "_is_ahead",
        "_is_shared",
        "_loop",
        "_pgconn",
        "_tell",
        "_timer",
        "_waiters",
        "_yielded_at",
    )

    def __init__(self, pgconn: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._pgconn = pgconn
        self._loop = loop
        #: What the reader was added for; -1 if there is none.
        self._fd = -1
        #: Operations that wait for input: more than one if a task does without psycopg's lock.
        self._waiters: list[asyncio.Future[None]] = []
        #: Told of input while nothing is under way between two leases.
        self._tell: Callable[[], None] | None = None
        #: Whether there was input that no operation has waited for, and whether others may read.
        self._is_ahead = self._is_shared = False
        self._timer: asyncio.TimerHandle | None = None
        self._yielded_at = 0.0

    # -- operations ------------------------------------------------------------------------------

    async def run(
        self, generator: Generator[Any, Any, Any], interval: float | None = None, **more: Any
    ) -> Any:
        """Run a generator of psycopg's to its end, and return what that returns.

        ``interval`` and what newer versions of psycopg have beside it: it is to have a look in
        between, or to end in time. That is left to psycopg.
        """
        if interval is not None or more or self._is_shared:
            return await self._run_timed(generator, interval, **more)
        try:
            wants = next(generator)
        except StopIteration as end:
            await self._let_others_run()
            return end.value
        try:
            while wants == _TO_READ:
                if self._fd < 0:
                    self._add()
                if self._timer is None:
                    self._timer = self._loop.call_later(_INTERVAL, self._look_again)
                self._is_ahead = False
                waiter = self._loop.create_future()
                self._waiters.append(waiter)
                await waiter
                self._yielded_at = time.monotonic()
                wants = generator.send(_READABLE)
        except StopIteration as end:
            return end.value
        return await self._run_timed(_going_on(generator, wants))  # it wants to write, too

    async def _run_timed(
        self, generator: Generator[Any, Any, Any], interval: float | None = None, **more: Any
    ) -> Any:
        self.remove()
        every = _INTERVAL if interval is None else interval
        try:
            return await waiting.wait_async(generator, self._pgconn.socket, every, **more)
        finally:  # it lets others run, too
            self._yielded_at = time.monotonic()

    async def _let_others_run(self) -> None:
        """Yield to the event loop, unless that was done just now."""
        if time.monotonic() - self._yielded_at > _BUSY:
            await asyncio.sleep(0)
            self._yielded_at = time.monotonic()

    # -- the reader ------------------------------------------------------------------------------

    def watch(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` when there is something to read, until `unwatch`."""
        if self._is_ahead:  # libuv may have dropped the reader, see `_look_again`
            self.remove()
        if self._fd < 0:
            self._add()
        self._tell = tell

    def unwatch(self) -> None:
        """Tell of nothing more: what is read belongs to an operation."""
        self._tell = None
        if self._is_shared:
            self.remove()

    def share(self) -> None:
        """Keep no reader any more: somebody has the socket's number, and may add or remove one."""
        self._is_shared = True
        self.remove()

    def remove(self) -> None:
        """Take the reader from the event loop: the socket will be closed, or read by others."""
        self._tell, self._is_ahead = None, False
        fd, self._fd = self._fd, -1
        if fd >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(fd)
            self._wake()

    def _add(self) -> None:
        fd = self._pgconn.socket
        self._loop.add_reader(fd, self._has_input)
        self._fd = fd

    def _has_input(self) -> None:
        if self._waiters:
            self._wake()
        elif self._tell is not None:
            self._tell()
        elif self._is_ahead:  # it stays in the socket until an operation looks
            self.remove()
        else:  # the event loop has looked before the operation that it has woken
            self._is_ahead = True

    def _look_again(self) -> None:
        """Have what waits look by itself: if the socket has an error, libuv reads it once at most.

        It drops the reader then, and tells nobody.
        """
        self._timer = None
        if self._waiters:
            self.remove()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _going_on(generator: Generator[Any, Any, Any], wants: Any) -> Generator[Any, Any, Any]:
    """Go on with a generator that has said what it wants."""
    try:
        while True:
            wants = generator.send((yield wants))
    except StopIteration as end:
        return end.value
