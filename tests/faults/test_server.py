"""The whole server: stopped in each of its ways, crashed, killed, suspended, full.

On one event loop only: a restart takes its time, and the loop has no part in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import anyio.to_thread
import asyncpg
import pytest
from asyncpg import exceptions as pg

from tests.drivers.asyncpg_help import until
from tests.faults.harness import (
    PgPool,
    Run,
    create,
    fault,
    have_all,
    query_under_way,
    stopped,
)
from tests.postgres import Server


@pytest.fixture
def anyio_backend() -> Any:
    """Run on asyncio's own loop."""
    return ("asyncio", {"use_uvloop": False})


# -- stopped and started -------------------------------------------------------------------------


async def _restart(
    run: Run, server: Server, pool: PgPool, *, stop: Any, cause: type[BaseException] | None
) -> None:
    """Stop the server under a query; have one caller lose its patience, and one keep it."""
    victims = await have_all(pool)
    async with query_under_way(pool, server) as (task, _):
        run.hits_server(server)
        stopping = asyncio.create_task(anyio.to_thread.run_sync(stop))
        with run.sees(pg.ConnectionDoesNotExistError, cause=cause):
            await task
        await stopping
    patient = asyncio.create_task(run.waits(pool, 10.0))
    await run.waits_in_vain(pool, 0.5, ConnectionRefusedError)
    await anyio.to_thread.run_sync(server.start)
    run.over()
    assert await patient is None
    await run.recovered(pool, server, gone=tuple(victims))


_WAITING = (
    "query under way: `ConnectionDoesNotExistError`{}, at once; `acquire`: waits until the server "
    "is back, or `PoolTimeout` (cause: `ConnectionRefusedError`) at its deadline"
)
_PROBING = "drops all connections; one attempt to connect at a time, after pauses that double"


@fault(
    name="server stopped (`-m fast`) and started",
    sees=_WAITING.format(" (cause: `AdminShutdownError`)"),
    pool=_PROBING,
    hits="server pid",
    bound=3.0,
)
async def test_fast_stop_is_waited_out(run: Run, own_postgres: Server) -> None:
    """Only the queries under way are lost."""
    async with create(own_postgres.dsn()) as pool:
        await _restart(
            run,
            own_postgres,
            pool,
            stop=lambda: own_postgres.stop("fast"),
            cause=pg.AdminShutdownError,
        )


@fault(
    name="server stopped (`-m immediate`) and started",
    sees=_WAITING.format(""),
    pool=_PROBING,
    hits="server pid",
    bound=3.0,
)
async def test_immediate_stop_is_waited_out(run: Run, own_postgres: Server) -> None:
    """As a crash is, whose recovery is part of the start."""
    async with create(own_postgres.dsn()) as pool:
        await _restart(
            run, own_postgres, pool, stop=lambda: own_postgres.stop("immediate"), cause=None
        )


@fault(
    name="server killed (`kill -9` of the postmaster) and started",
    sees=_WAITING.format(""),
    pool=_PROBING,
    hits="server pid",
    bound=3.0,
)
async def test_killed_server_is_waited_out(run: Run, own_postgres: Server) -> None:
    """Its orphans end by themselves."""
    async with create(own_postgres.dsn()) as pool:
        await _restart(run, own_postgres, pool, stop=own_postgres.kill, cause=None)


@fault(
    name="server being stopped (`-m smart`)",
    sees="on an open connection: nothing; `acquire` when a new one is needed: waits, or "
    "`PoolTimeout` (cause: `CannotConnectNowError`) at its deadline",
    pool="goes on with the connections it has; the server waits for them: `pool.renew()` "
    "closes them",
    hits="server pid",
    bound=3.0,
)
async def test_smart_stop_leaves_open_connections_at_work(run: Run, own_postgres: Server) -> None:
    """Both wait for each other, until the pool is told to renew its connections."""
    async with create(own_postgres.dsn(), min_size=2) as pool:
        async with pool.acquire() as one, pool.acquire() as two:
            victims = [await conn.fetchval("SELECT pg_backend_pid()") for conn in (one, two)]
            run.hits_server(own_postgres)
            await anyio.to_thread.run_sync(own_postgres.stop, "smart")
            await run.waits_in_vain(pool, 0.5, pg.CannotConnectNowError)
            for conn in (one, two):
                assert await conn.fetchval("SELECT 1") == 1
        for _ in range(5):
            async with pool.acquire(timeout=1.0) as conn:
                assert await conn.fetchval("SELECT pg_backend_pid()") in victims
        assert own_postgres.is_running()
        pool.renew()
        await anyio.to_thread.run_sync(own_postgres.wait_ended)
        await anyio.to_thread.run_sync(own_postgres.start)
        run.over()
        await run.recovered(pool, own_postgres, gone=tuple(victims))


# -- crashed, suspended, full --------------------------------------------------------------------


@fault(
    name="`kill -9` of a backend: the server restarts all of them",
    sees="queries under way, on all connections: `ConnectionDoesNotExistError`, at once; "
    "`acquire`: waits until the server is back",
    pool=_PROBING,
    hits="backend pid",
    bound=3.0,
)
async def test_crashed_backend_takes_all_with_it_and_is_waited_out(
    run: Run, own_postgres: Server
) -> None:
    """Connecting is refused while the server recovers; nobody is told of it."""
    async with create(own_postgres.dsn()) as pool:
        victims = await have_all(pool)
        async with (
            query_under_way(pool, own_postgres) as (task, victim),
            query_under_way(pool, own_postgres) as (other, _),
        ):
            run.hits_backend(own_postgres, victim)
            os.kill(victim, signal.SIGKILL)
            for query in (task, other):
                with run.sees(pg.ConnectionDoesNotExistError):
                    await query
            # The server has told all of them to quit, and the idle ones take a moment longer.
            await until(lambda: not any(map(_exists, victims)))
            assert await run.waits(pool, 10.0) is None
        await run.recovered(pool, own_postgres, gone=tuple(victims))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@fault(
    name="backend suspended (SIGSTOP)",
    sees="a query with a `timeout`: `TimeoutError` at its time; the cancelled task: its cancellation, "
    "at once; `acquire`: waits for a free slot, or `PoolTimeout` at its deadline",
    pool="gives the reset `reset_timeout` (2 s), then cuts the connection and opens another",
    hits="backend pid",
    bound=5.0,
)
async def test_suspended_backend_costs_the_reset_timeout_and_no_slot(
    run: Run, own_postgres: Server
) -> None:
    """Whether its query has timed out or was cancelled, and while its process is still there."""
    async with create(own_postgres.dsn(), max_size=2) as pool:
        await have_all(pool)
        async with (
            query_under_way(pool, own_postgres, timeout=0.5) as (timed, one),
            query_under_way(pool, own_postgres) as (cancelled, two),
        ):
            run.hits_backend(own_postgres, one, two)
            with stopped(one, two):
                assert not cancelled.done()
                cancelled.cancel()
                await asyncio.wait([cancelled], timeout=0.5)
                assert cancelled.cancelled()
                with pytest.raises(TimeoutError) as caught:
                    await timed
                run.saw(caught.value, TimeoutError)
                run.over()  # for the caller; the backends stay as they are
                await run.waits_in_vain(pool, 0.5)
                pids = await have_all(pool, run.fault.bound)
                run.is_normal()
                assert not {one, two} & set(pids)
        await run.recovered(pool, own_postgres, gone=(one, two))


@fault(
    name="server suspended (SIGSTOP of the postmaster)",
    sees="on an open connection: nothing; `acquire` when a new one is needed: waits, or "
    "`PoolTimeout` (cause: `TimeoutError`) at its deadline",
    pool="gives up each attempt to connect after `connect_timeout` (here 1 s), and tries again",
    hits="server pid",
    bound=3.0,
)
async def test_suspended_server_leaves_open_connections_at_work(
    run: Run, own_postgres: Server
) -> None:
    """Those who need no new one do not notice."""
    async with create(own_postgres.dsn(), min_size=2, connect_timeout=1.0) as pool:
        run.hits_server(own_postgres)
        async with pool.acquire() as one, pool.acquire() as two:
            with stopped(own_postgres.pid):
                await run.waits_in_vain(pool, 1.5, TimeoutError)
                for conn in (one, two):
                    assert await conn.fetchval("SELECT 1", timeout=5) == 1
                pool.release(one)
                assert await run.waits(pool, 1.0) is None
        run.over()
        await run.recovered(pool, own_postgres)


@fault(
    name="`max_connections` used up by others",
    sees="on an open connection: nothing; `acquire` when a new one is needed: waits for one to "
    "come back, or `PoolTimeout` (cause: `TooManyConnectionsError`) at its deadline",
    pool="serves waiters with the connections it has; one attempt to connect at a time",
    hits="backend pid",
    bound=3.0,
)
async def test_full_server_is_waited_out_with_the_connections_there_are(
    run: Run, own_postgres: Server
) -> None:
    """Growing is what has to wait; the others are real connections, too."""
    own_postgres.configure(max_connections=12)
    own_postgres.query("CREATE ROLE app LOGIN")  # what is kept for superusers is not for it
    dsn = own_postgres.dsn("postgres", user="app")
    try:
        async with create(dsn, min_size=2) as pool:
            async with contextlib.AsyncExitStack() as others:
                pids = await _fill(dsn, others)
                run.hits_backend(own_postgres, *pids)
                async with pool.acquire(), pool.acquire() as two:
                    await run.waits_in_vain(pool, 0.5, pg.TooManyConnectionsError)
                    waiter = asyncio.create_task(run.waits(pool, 5.0))
                    assert await two.fetchval("SELECT 1") == 1
                    pool.release(two)
                    assert await waiter is None
            run.over()
            await run.recovered(pool, own_postgres)
    finally:
        own_postgres.query("DROP ROLE app")


async def _fill(dsn: str, others: contextlib.AsyncExitStack) -> list[int]:
    """Connect until the server takes no more; return the backends."""
    pids = []
    with contextlib.suppress(pg.TooManyConnectionsError):
        while True:
            conn = await asyncpg.connect(dsn)
            others.push_async_callback(conn.close)
            pids.append(conn.get_server_pid())
    return pids
