"""What the tests of the asyncpg driver share: a second pair of eyes, and counted round trips."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from typing import TYPE_CHECKING, Any

import pytest

from poolkit import Pool
from poolkit.drivers.asyncpg import create_pool
from tests.conftest import BACKENDS
from tests.proxy import Proxy

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    import asyncpg

    Pooled = Pool[asyncpg.Connection]

#: Longer than anything takes, shorter than anybody's patience.
PATIENCE = 10.0
#: asyncpg knows no others.
LOOPS = [backend for backend in BACKENDS if backend.id != "trio"]
#: What asyncpg leaves to the loop when a connection ends in the very moment in which it connects
#: once more, to ask the server for a cancellation: it gives that up, and nobody awaits its end.
GIVEN_UP = "unexpected connection_lost() call"
#: Never ends by itself.
ENDLESS = "SELECT pg_sleep(600)"


async def leave_nothing(_: asyncpg.Connection) -> None:
    """Be an async function as reset, which has nothing to do."""


#: What may be given as ``reset``.
LEVELS = [
    pytest.param("full", id="full"),
    pytest.param("full+prepared", id="full+prepared"),
    pytest.param("auto", id="auto"),
    pytest.param("transaction", id="transaction"),
    pytest.param("none", id="none"),
    pytest.param(leave_nothing, id="function"),
]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the pool has said aloud."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def of_one(dsn: str, **options: Any) -> Pooled:
    """Return a pool of one connection, which every user gets in turn."""
    return create_pool(dsn, **{"max_size": 1, **options})


class CountingProxy(Proxy):
    """Counts what clients send: on the loopback, one piece of data for each round trip."""

    trips = 0

    async def _received(self, source: socket.socket) -> bytes:
        data = await super()._received(source)
        if data and any(link.client is source for link in self._links):
            self.trips += 1
        return data


# -- waiting -------------------------------------------------------------------------------------


async def until(is_so: Callable[[], object]) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(PATIENCE):
        while not is_so():  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.001)


async def until_true(ask: Callable[[], Awaitable[object]]) -> None:
    """Wait for what a server tells when asked."""
    async with asyncio.timeout(PATIENCE):
        while not await ask():  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.002)


async def quiet(pool: Pooled) -> None:
    """Wait until nothing is being cleaned, opened or closed."""
    await until(lambda: not (s := pool.stats()).recycling + s.closing + s.connecting)


# -- looking from outside ------------------------------------------------------------------------


async def running(outside: asyncpg.Connection, text: str, *, asleep: bool = True) -> int:
    """Wait until some backend of this database is in the middle of a statement; return its pid.

    ``asleep``: in its ``pg_sleep``, rather than anywhere.
    """
    sql = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND state = 'active' AND query LIKE $1 || '%' "
        "AND (wait_event = 'PgSleep' OR NOT $2)"
    )
    pids: list[int] = []

    async def seen() -> bool:
        pids[:] = [row["pid"] for row in await outside.fetch(sql, text, asleep)]
        return bool(pids)

    await until_true(seen)
    (pid,) = pids
    return pid


async def states(outside: asyncpg.Connection) -> dict[int, str]:
    """Return what every other backend of this database is doing."""
    sql = (
        "SELECT pid, state FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    return {row["pid"]: row["state"] for row in await outside.fetch(sql)}


async def rows(outside: asyncpg.Connection) -> list[int]:
    """Return what stands in the table: what has been committed."""
    return [row["x"] for row in await outside.fetch("SELECT x FROM t ORDER BY x")]


async def last_query(outside: asyncpg.Connection, pid: int) -> str:
    """Return the last text that a backend got, by the simple protocol or as a statement."""
    sql = "SELECT query FROM pg_stat_activity WHERE pid = $1"
    return str(await outside.fetchval(sql, pid))


async def nothing_is_lost(pool: Pooled, outside: asyncpg.Connection) -> None:
    """Check that all that there is is idle: for the pool, and for the server."""
    await quiet(pool)

    async def settled() -> bool:
        return sorted((await states(outside)).values()) == ["idle"] * pool.stats().size

    await until_true(settled)
    stats = pool.stats()
    assert (stats.idle, stats.leased, stats.waiting) == (stats.size, 0, 0), stats
    assert 1 <= stats.size <= stats.capacity


@contextlib.asynccontextmanager
async def left_running(
    operation: Callable[[], Awaitable[object]],
) -> AsyncIterator[asyncio.Task[object]]:
    """Run an operation in a task of its own; end it at the end of the block."""

    async def run() -> object:
        return await operation()

    task = asyncio.create_task(run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=PATIENCE)
        assert task.done()
        if not task.cancelled():
            task.exception()


@contextlib.contextmanager
def loop_is_told_only(*texts: str) -> Iterator[list[str]]:
    """Check that nothing but these errors is left to the loop, because nobody awaits them."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    told: list[str] = []

    def note(_: object, context: dict[str, Any]) -> None:
        told.append(str(context.get("exception") or context["message"]))

    loop.set_exception_handler(note)
    try:
        yield told
        gc.collect()
    finally:
        loop.set_exception_handler(before)
    assert set(told) <= set(texts), told
