"""Under load: 50 tasks, each acquiring and querying in a loop, over a pool of 10."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator

import anyio.to_thread
import asyncpg
import pytest
from asyncpg import exceptions as pg

from poolkit import PoolUnavailable
from tests.faults.harness import (
    PgPool,
    Run,
    create,
    fault,
    hole_old,
    query_under_way,
    terminate,
    until,
)
from tests.postgres import Postgres, Server
from tests.proxy import Link, Proxy

POOL, TASKS, CONNECTING = 10, 50, 4


def _is_loss(error: BaseException) -> bool:
    """Tell whether this is how a query finds out, by asyncpg's words.

    The second is for a query that begins when the end of the connection has been read, since that
    was handed to its task.
    """
    if type(error) is pg.InterfaceError:
        return str(error).endswith("connection is closed")
    return type(error) is pg.ConnectionDoesNotExistError


class Load:
    """What the tasks have met with so far."""

    def __init__(self) -> None:
        self.queries = 0
        self.refused: list[BaseException] = []
        self.failed: list[BaseException] = []
        self.rounds = Counter[int]()
        self.connecting = 0  # the most at once

    def check(self) -> None:
        """Check that no acquire has failed, and only the queries under way have."""
        assert self.refused == []
        assert len(self.failed) <= POOL - 1  # and the query that was waited for
        assert [error for error in self.failed if not _is_loss(error)] == []
        assert self.connecting <= CONNECTING

    async def done_by_all(self, more: int) -> None:
        """Wait until every task has done so many more rounds."""
        goal = {task: self.rounds[task] + more for task in range(TASKS)}
        await until(lambda: all(self.rounds[task] >= goal[task] for task in goal), 30.0)


@contextlib.asynccontextmanager
async def _under_load(pool: PgPool) -> AsyncIterator[Load]:
    """Run the tasks until the end of the block."""
    load = Load()
    over = False

    async def work(task: int) -> None:
        while not over:
            try:
                async with pool.acquire() as conn:
                    try:
                        await conn.execute("SELECT pg_sleep(0.05)")
                    except Exception as error:
                        load.failed.append(error)
                    else:
                        load.queries += 1
                        load.rounds[task] += 1
            except PoolUnavailable as error:
                load.refused.append(error)
            load.connecting = max(load.connecting, pool.stats().connecting)

    tasks = [asyncio.create_task(work(number)) for number in range(TASKS)]
    try:
        await load.done_by_all(2)
        yield load
    finally:
        over = True
        await asyncio.gather(*tasks)


@fault(
    name="all backends ended by `pg_terminate_backend`, under load: 50 tasks, 10 connections",
    sees="queries under way, 10 at most: `ConnectionDoesNotExistError`, at once; `acquire`: never "
    "fails",
    pool="drops each connection as the socket tells, opens others, the first in line first",
    hits="backend pid",
    bound=3.0,
)
async def test_all_backends_killed_under_load_fails_the_queries_under_way(
    run: Run, postgres: Postgres, database: str
) -> None:
    """And nothing else, whoever waits in line."""
    async with create(database, max_size=POOL) as pool:
        async with _under_load(pool) as load:
            async with query_under_way(pool, postgres) as (task, _):
                database = pool.name.rpartition("/")[2]
                victims = [backend.pid for backend in postgres.backends(database)]
                assert len(victims) == POOL
                waiter = asyncio.create_task(run.waits(pool, 5.0))
                run.hits_backend(postgres, *victims)
                killing = asyncio.create_task(
                    anyio.to_thread.run_sync(terminate, postgres, *victims)
                )
                with run.sees(pg.ConnectionDoesNotExistError):
                    await task
                await killing
            await load.done_by_all(1)
            run.is_normal()  # under load, everybody has been served again
            await load.done_by_all(4)
            assert await waiter is None
        load.check()
        await run.recovered(pool, postgres, gone=tuple(victims))


@pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")]
)
@fault(
    name="server restart that takes 2 s, under load: 50 tasks, 10 connections",
    sees="queries under way, 10 at most: `ConnectionDoesNotExistError`, at once; `acquire`: never "
    "fails, waits until the server is back",
    pool="at most `max_connecting` (4) attempts to connect at once, then one at a time, after "
    "pauses that double",
    hits="server pid",
    bound=3.0,
)
async def test_restart_under_load_is_waited_out_without_a_storm(
    run: Run, own_postgres: Server
) -> None:
    """The proxy in front counts the attempts: four, then one after each pause, 9 in 2 s at most."""
    with Proxy(own_postgres.host, own_postgres.port) as proxy:
        async with create(
            proxy.through(own_postgres.dsn(sslmode="disable")), max_size=POOL
        ) as pool:
            async with _under_load(pool) as load:
                async with query_under_way(pool, own_postgres) as (task, _):
                    assert pool.stats().size == POOL
                    run.hits_server(own_postgres)
                    down = time.monotonic()
                    patient = asyncio.create_task(run.waits(pool, 8.0))
                    stopping = asyncio.create_task(anyio.to_thread.run_sync(own_postgres.stop))
                    with run.sees(pg.ConnectionDoesNotExistError):
                        await task
                    await stopping
                await asyncio.sleep(max(0.0, down + 2.0 - time.monotonic()))
                up = time.monotonic()
                await anyio.to_thread.run_sync(own_postgres.start)
                run.over()
                await load.done_by_all(1)
                run.is_normal()
                await load.done_by_all(2)
                assert await patient is None
            load.check()
            _check_attempts([link for link in proxy.links if link.begin >= down], up)
            await run.recovered(pool, own_postgres)


def _check_attempts(links: list[Link], up: float) -> None:
    """Check how many attempts to connect there were, and when, while the server was down."""
    failed = [link for link in links if link.begin < up]
    for link in links:
        at_once = sum(each.begin <= link.begin < (each.end or up) for each in failed)
        assert at_once <= CONNECTING, failed
    # Four at first, then one after each pause, of which at least half is kept: 0.1, 0.2, 0.4 and
    # 0.75 s from then on. (It may be down for longer than 2 s when the machine is busy.)
    for number, (before, after) in enumerate(itertools.pairwise(failed[CONNECTING - 1 :])):
        pause = min(0.2 * 2**number, 1.5) / 2
        assert after.begin - before.begin >= pause - 0.01, failed


async def test_attempts_that_fail_together_are_followed_by_the_shortest_pause(
    postgres: Postgres, database: str
) -> None:
    """They are one failure, not four in a row: the next attempt comes after ``backoff_min``."""
    with Proxy(postgres.host, postgres.port) as proxy:
        proxy.reset_new()
        dsn = f"{proxy.through(database)}?sslmode=disable"
        async with create(
            dsn, min_size=0, max_size=CONNECTING, backoff_min=1.0, backoff_max=8.0
        ) as pool:

            async def waits() -> None:
                async with pool.acquire(timeout=20.0):
                    pass

            tasks = [asyncio.create_task(waits()) for _ in range(CONNECTING)]
            await until(lambda: proxy.accepted == CONNECTING)
            await until(lambda: proxy.accepted > CONNECTING)
            proxy.pass_through()
            await asyncio.gather(*tasks)
            *_, last, probe = proxy.links[: CONNECTING + 1]
            assert probe.begin - last.begin < 4.0  # after four in a row it would be 4 s or more


@pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")]
)
async def test_asyncpgs_own_pool_loses_a_silent_connection_for_ever(
    postgres: Postgres, database: str
) -> None:
    """A query is cancelled while the network is silent, for a moment.

    With poolkit that costs a bounded time; asyncpg's pool of one is lost, after three times as long.
    """
    with Proxy(postgres.host, postgres.port) as proxy:
        dsn = proxy.through(database)
        async with create(dsn, max_size=1, reset_timeout=0.5) as ours:
            async with query_under_way(ours, postgres) as (task, _):
                begun = time.monotonic()
                await _cancel_in_silence(task, proxy)
                async with ours.acquire(timeout=5.0) as conn:
                    assert await conn.fetchval("SELECT 1") == 1
            took = time.monotonic() - begun
        theirs = await asyncpg.create_pool(dsn, min_size=1, max_size=1)
        try:
            async with query_under_way(theirs, postgres) as (task, _):
                await _cancel_in_silence(task, proxy)
                with pytest.raises(TimeoutError):
                    await theirs.acquire(timeout=3 * took)
        finally:
            theirs.terminate()


async def _cancel_in_silence(task: asyncio.Task[None], proxy: Proxy) -> None:
    """Cancel a query; what that sends is lost, and only new connections work after it."""
    proxy.hole()
    accepted = proxy.accepted
    task.cancel()
    await until(lambda: proxy.accepted > accepted)  # it is on a connection of its own
    hole_old(proxy)
