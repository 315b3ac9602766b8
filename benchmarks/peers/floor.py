"""What bounds all pools: the least that taking, giving back and waiting can be."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import anyio

from benchmarks.peers import Acquire, Peer, Want
from benchmarks.wire import Wire

EVERYWHERE = ("asyncio", "uvloop", "trio")


class Floor:
    """Take from a deque, put back into it: no waiting, no checks."""

    __slots__ = ("_connection", "_idle")

    def __init__(self, idle: deque[Wire]) -> None:
        self._idle = idle

    async def __aenter__(self) -> Wire:
        """Take."""
        self._connection = self._idle.pop()
        return self._connection

    async def __aexit__(self, *error: object) -> None:
        """Give back."""
        self._idle.append(self._connection)


@contextlib.asynccontextmanager
async def floor(want: Want) -> AsyncIterator[Acquire]:
    """Open the floor."""
    yield functools.partial(Floor, await _wires(want))


class HandOff:
    """A bare hand-off: whoever finds nothing waits in line, whoever gives back serves the first."""

    __slots__ = ("_connection", "_idle", "_line")

    def __init__(self, idle: deque[Wire], line: deque[asyncio.Future[Wire]]) -> None:
        self._idle = idle
        self._line = line

    async def __aenter__(self) -> Wire:
        """Take, or wait in line."""
        if self._idle:
            self._connection = self._idle.pop()
        else:
            future = asyncio.get_running_loop().create_future()
            self._line.append(future)
            self._connection = await future
        return self._connection

    async def __aexit__(self, *error: object) -> None:
        """Give to the first in line, or back."""
        if self._line:
            self._line.popleft().set_result(self._connection)
        else:
            self._idle.append(self._connection)


@contextlib.asynccontextmanager
async def hand_off(want: Want) -> AsyncIterator[Acquire]:
    """Open the bare hand-off of asyncio."""
    line: deque[asyncio.Future[Wire]] = deque()
    yield functools.partial(HandOff, await _wires(want), line)


class TrioHandOff:
    """The same on trio, with its own way to park a task."""

    __slots__ = ("_connection", "_idle", "_line")

    def __init__(self, idle: deque[Wire], line: deque[Any]) -> None:
        self._idle = idle
        self._line = line

    async def __aenter__(self) -> Wire:
        """Take, or wait in line."""
        from trio import lowlevel

        if self._idle:
            self._connection = self._idle.pop()
        else:
            task = lowlevel.current_task()
            self._line.append(task)

            def abort(_: object) -> lowlevel.Abort:
                self._line.remove(task)
                return lowlevel.Abort.SUCCEEDED

            self._connection = await lowlevel.wait_task_rescheduled(abort)
        return self._connection

    async def __aexit__(self, *error: object) -> None:
        """Give to the first in line, or back."""
        if self._line:
            import outcome
            from trio import lowlevel

            lowlevel.reschedule(self._line.popleft(), outcome.Value(self._connection))
        else:
            self._idle.append(self._connection)


@contextlib.asynccontextmanager
async def trio_hand_off(want: Want) -> AsyncIterator[Acquire]:
    """Open the bare hand-off of trio."""
    yield functools.partial(TrioHandOff, await _wires(want), deque())


class Limited:
    """What people write by hand: a deque behind anyio's CapacityLimiter, and a timeout."""

    __slots__ = ("_connection", "_idle", "_limiter", "_timeout")

    def __init__(self, idle: deque[Wire], limiter: anyio.CapacityLimiter, timeout: float) -> None:
        self._idle = idle
        self._limiter = limiter
        self._timeout = timeout

    async def __aenter__(self) -> Wire:
        """Take."""
        with anyio.fail_after(self._timeout):
            await self._limiter.acquire_on_behalf_of(self)
        self._connection = self._idle.pop()
        return self._connection

    async def __aexit__(self, *error: object) -> None:
        """Give back."""
        self._idle.append(self._connection)
        self._limiter.release_on_behalf_of(self)


@contextlib.asynccontextmanager
async def limited(want: Want) -> AsyncIterator[Acquire]:
    """Open the hand-written one."""
    limiter = anyio.CapacityLimiter(want.size)
    yield functools.partial(Limited, await _wires(want), limiter, want.timeout)


async def _wires(want: Want) -> deque[Wire]:
    return deque([await want.database.connect(Wire) for _ in range(want.size)])


PEERS = [
    Peer(
        name="floor",
        settings="a hand-written __slots__ context manager around a deque; it cannot wait",
        open=floor,
        loops=EVERYWHERE,
        is_pool=False,
    ),
    Peer(
        name="bare hand-off",
        settings="the floor, and a deque of futures to wait in; no timeout, not safe to cancel",
        open=hand_off,
        is_pool=False,
    ),
    Peer(
        name="bare hand-off (trio)",
        settings="the floor, and a deque of parked tasks; no timeout",
        open=trio_hand_off,
        loops=("trio",),
        is_pool=False,
    ),
    Peer(
        name="CapacityLimiter + fail_after",
        settings="what people write by hand on anyio: a deque, a limiter, a timeout",
        open=limited,
        loops=EVERYWHERE,
        is_pool=False,
    ),
]
