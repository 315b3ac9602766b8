"""L: byte streams, a line there and back per acquire: poolkit, no pool, a bare semaphore."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio

import poolkit
from benchmarks.drivers import SEMAPHORE, pooled, semaphore, tables
from benchmarks.peers import Postgresql, Request
from benchmarks.table import Table
from tests.faults.servers import LineServer
from tests.proxy import HOST

EACH = "no pool: connect per request"
PAIRS = [("poolkit", SEMAPHORE, 0.95), ("poolkit", EACH, 1.5)]


async def _ask(stream: Any) -> None:
    await stream.send(b"ping\n")
    answer = b""
    while not answer.endswith(b"\n"):
        answer += await stream.receive()


def _address(place: str) -> tuple[str, int]:
    host, _, port = place.partition(":")
    return host, int(port)


@contextlib.asynccontextmanager
async def _semaphore(place: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
    driver = poolkit.drivers.stream.StreamDriver(*_address(place))
    async with contextlib.AsyncExitStack() as stack:

        async def connect() -> Any:
            return await stack.enter_async_context(await driver.connect())

        yield await stack.enter_async_context(semaphore(connect, _ask, size))


def _ours(place: str, size: int, tasks: int) -> AbstractAsyncContextManager[Request]:  # noqa: ARG001
    create = poolkit.drivers.stream.create_pool
    return pooled(create(*_address(place), min_size=size, max_size=size), _ask)


@contextlib.asynccontextmanager
async def _each(place: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
    host, port = _address(place)

    async def request() -> None:
        async with await anyio.connect_tcp(host, port) as stream:
            await _ask(stream)

    yield request


WAYS = [
    Postgresql(
        name=SEMAPHORE,
        settings="the same streams, asyncio.Semaphore and a deque",
        reset="nothing",
        open=_semaphore,
    ),
    Postgresql(
        name="poolkit",
        settings="the defaults: a stream with anything unread or unanswered is not used again",
        reset="nothing",
        open=_ours,
    ),
    Postgresql(
        name=EACH,
        settings="anyio.connect_tcp; as many at once as there are tasks",
        reset="no pool",
        open=_each,
    ),
]


def run(*, quick: bool) -> Iterator[Table]:
    """Return a table for each number of tasks."""
    server = LineServer()
    try:
        server.start()
        place = f"{HOST}:{server.port}"
        yield from tables("stream", "L: byte streams, a line", WAYS, place, PAIRS, quick=quick)
    finally:
        server.close()
