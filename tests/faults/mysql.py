"""What differs in the fault tests if the server is MariaDB."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

from poolkit import Pool
from poolkit.drivers.asyncmy import create_pool
from tests.drivers.asyncmy_help import value
from tests.faults.harness import FAULTS, SIZE, VERSIONS, Fault, Run, until

if TYPE_CHECKING:
    from tests.mariadb import MariaDB


def mysql_fault(**words: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare the row of MySQL's table that a test is about."""

    def declare(test: Callable[..., Any]) -> Callable[..., Any]:
        FAULTS[test] = Fault(driver="asyncmy", **words)
        return test

    return declare


class MysqlRun(Run):
    """One run of a fault test on MariaDB."""

    async def hits_sessions(self, server: MariaDB, *numbers: int) -> None:
        """Call just before: these are sessions of the server, for the pool's user."""
        alive = await asyncio.to_thread(server.sessions)
        for number in numbers:
            assert number in alive, f"{number} is no session of the server"
        await note_version(server)
        for number in numbers:
            self._note("session id", number)

    async def hits_mariadb(self, server: MariaDB) -> None:
        """Call just before: the server says itself that this is its process."""
        pid = (server.folder.path / "pid").read_text()
        assert int(pid) == server.pid, f"{server.pid} is not the server"
        await note_version(server)
        self._note("server pid", server.pid)

    async def have_all(self, pool: Pool[Any], timeout: float) -> list[int]:
        """Hold every connection that there may be, all at once; return the numbers of sessions."""
        return await have_all_sessions(pool, timeout)

    async def nothing_is_lost(self, pool: Pool[Any], server: Any, pids: list[int]) -> None:
        """Check the counts, and that the server knows of these sessions and no others."""
        await until(lambda: pool.stats().recycling + pool.stats().closing == 0)
        stats = pool.stats()
        counts = (stats.idle, stats.leased, stats.connecting, stats.waiting)
        assert counts == (stats.capacity, 0, 0, 0), stats
        async with asyncio.timeout(10):
            database = pool.name.rpartition("/")[2]
            while set(await asyncio.to_thread(server.sessions, database)) != set(pids):  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def note_version(server: MariaDB) -> None:
    """Note what the page is to say of the server."""
    ((version,),) = await asyncio.to_thread(server.query, "SELECT VERSION()")
    VERSIONS["mariadb"] = re.sub(r"-.*", "", version)
    VERSIONS["asyncmy"] = metadata.version("asyncmy")


def create(url: str, **options: Any) -> Pool[Any]:
    """Return a pool of the size used here."""
    return create_pool(url, **{"max_size": SIZE, **options})


async def have_all_sessions(pool: Pool[Any], timeout: float = 10.0) -> list[int]:
    """Hold every connection that there may be, all at once; return the numbers of sessions."""
    deadline = time.monotonic() + timeout
    async with contextlib.AsyncExitStack() as stack:
        numbers = []
        for _ in range(pool.stats().capacity):
            left = max(0.0, deadline - time.monotonic())
            conn = await stack.enter_async_context(pool.acquire(timeout=left))
            async with asyncio.timeout(max(left, 0.1)):
                numbers.append(int(await value(conn, "SELECT CONNECTION_ID()")))
        stats = pool.stats()
        assert stats.leased == stats.size == stats.capacity == len(set(numbers))
    await until(lambda: pool.stats().recycling == 0)
    return numbers


async def until_at(server: MariaDB, number: int, text: str) -> None:
    """Wait until a session is in the middle of a statement."""
    async with asyncio.timeout(10):
        while (await asyncio.to_thread(server.sessions)).get(number) != text:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def query_under_way(
    pool: Pool[Any], server: MariaDB
) -> AsyncIterator[tuple[asyncio.Task[None], int]]:
    """Have a task run a query until the end of the block; give it, and its session."""
    session: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    text = "SELECT SLEEP(600)"

    async def run() -> None:
        async with pool.acquire() as conn:
            session.set_result(conn.thread_id())
            await conn.cursor().execute(text)

    task = asyncio.create_task(run())
    try:
        number = await session
        await until_at(server, number, text)
        yield task, number
    finally:
        task.cancel()
        await asyncio.wait([task])
