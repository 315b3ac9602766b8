"""Between the pool and the server: refused, silent, cut with a RST, with a FIN, or without a word."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from asyncpg import exceptions as pg

from tests.fakes import gone
from tests.faults.harness import (
    AT_ONCE,
    SIZE,
    Run,
    create,
    fault,
    have_all,
    hole_old,
    query_under_way,
    stretched,
    terminate,
    until,
)
from tests.postgres import Postgres
from tests.proxy import Proxy


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    """Stand in front of the server."""
    with Proxy(postgres.host, postgres.port) as proxy:
        yield proxy


# -- connecting ----------------------------------------------------------------------------------


@fault(
    name="connecting refused; open connections ended",
    sees="`acquire`: waits, or `PoolTimeout` (cause: `ConnectionRefusedError`) at its deadline",
    pool="one attempt to connect at a time, after pauses that double",
    hits="port",
    bound=3.0,
)
async def test_refused_port_is_waited_out(
    run: Run, postgres: Postgres, database: str, proxy: Proxy
) -> None:
    """As a server that is not there."""
    async with create(proxy.through(database)) as pool:
        victims = await have_all(pool)
        run.hits_port(proxy.port)
        proxy.refuse()
        terminate(postgres, *victims)
        await until(lambda: pool.stats().idle == 0)
        patient = asyncio.create_task(run.waits(pool, 10.0))
        await run.waits_in_vain(pool, 0.5, ConnectionRefusedError)
        proxy.accept_again()
        run.over()
        assert await patient is None
        await run.recovered(pool, postgres, gone=tuple(victims))


@fault(
    name="a connect that is never answered",
    sees="`acquire` when a new connection is needed: waits, or `PoolTimeout` (cause: "
    "`TimeoutError`) at its deadline; callers go on with the open connections",
    pool="gives up each attempt to connect after `connect_timeout` (here 1 s), and tries again",
    hits="port",
    bound=3.5,
)
async def test_unanswered_connect_delays_nobody_who_needs_none(
    run: Run, postgres: Postgres, database: str, proxy: Proxy
) -> None:
    """And is not waited for longer than its limit."""
    async with create(proxy.through(database), connect_timeout=1.0) as pool:
        run.hits_port(proxy.port)
        proxy.hole_new()
        async with pool.acquire() as conn:
            await run.waits_in_vain(pool, 1.5, TimeoutError)
            waiter = asyncio.create_task(run.waits(pool, 5.0))
            assert await conn.fetchval("SELECT 1") == 1
        assert await waiter is None
        proxy.pass_through()
        run.over()
        await run.recovered(pool, postgres)


@fault(
    name="never answered from the start",
    sees="`pool.open()`: `PoolTimeout` (cause: `TimeoutError`) at its deadline, `acquire_timeout`",
    pool="is closed again, and may be opened again",
    hits="port",
    bound=1.0,
)
async def test_open_that_is_never_answered_ends_at_its_deadline(
    run: Run, postgres: Postgres, database: str, proxy: Proxy
) -> None:
    """And leaves nothing behind."""
    pool = create(proxy.through(database), connect_timeout=0.5, acquire_timeout=0.8)
    run.hits_port(proxy.port)
    proxy.hole_new()
    await run.opens_in_vain(pool, 0.8, TimeoutError)
    assert pool.stats().size == 0
    await until(lambda: proxy.open == 0)
    proxy.pass_through()
    run.over()
    async with pool:
        await run.recovered(pool, postgres)


# -- cut with a word -----------------------------------------------------------------------------


@fault(
    name="all connections reset (RST) by something in between",
    sees="queries under way: `ConnectionDoesNotExistError` (cause: `ConnectionResetError`), at once",
    pool="learns it from the sockets: drops all of them at once, opens new ones",
    hits="open sockets",
    bound=1.0,
)
async def test_connections_that_are_reset_are_replaced(
    run: Run, postgres: Postgres, database: str, proxy: Proxy
) -> None:
    """No caller is given one of them."""
    async with create(proxy.through(database)) as pool:
        victims = await have_all(pool)
        async with query_under_way(pool, postgres) as (task, victim):
            run.hits_sockets(proxy)
            proxy.reset_all()
            with run.sees(pg.ConnectionDoesNotExistError, cause=ConnectionResetError):
                await task
        assert await run.waits(pool, 1.0) is None
        await have_all(pool)
        run.is_normal()
        terminate(postgres, victim)  # it does not look at its socket until its query is done
        await run.recovered(pool, postgres, gone=tuple(victims))


@fault(
    name="all connections ended (FIN) by something in between",
    sees="queries under way: `ConnectionDoesNotExistError`, at once",
    pool="learns it from the sockets: drops all of them at once, opens new ones",
    hits="open sockets",
    bound=1.0,
)
async def test_connections_that_are_ended_are_replaced(
    run: Run, postgres: Postgres, database: str, proxy: Proxy
) -> None:
    """No caller is given one of them."""
    async with create(proxy.through(database)) as pool:
        victims = await have_all(pool)
        async with query_under_way(pool, postgres) as (task, victim):
            run.hits_sockets(proxy)
            proxy.fin_all()
            with run.sees(pg.ConnectionDoesNotExistError):
                await task
        assert await run.waits(pool, 1.0) is None
        await have_all(pool)
        run.is_normal()
        terminate(postgres, victim)  # it does not look at its socket until its query is done
        await run.recovered(pool, postgres, gone=tuple(victims))


# -- cut without a word --------------------------------------------------------------------------


@fault(
    name="idle connections cut without a word (packets vanish, but are acknowledged)",
    sees="the next `acquire`: takes up to `ping_timeout` (1 s) longer",
    pool="pings what was idle for `ping_after` (1 s); after one failure, all of them; cuts the dead",
    hits="open sockets",
    bound=3.5,
)
async def test_silent_idle_connections_are_found_by_a_ping(
    run: Run, postgres: Postgres, database: str, proxy: Proxy
) -> None:
    """All of them at the price of one ping, and nobody is given one."""
    async with create(proxy.through(database)) as pool:
        victims = await have_all(pool)
        run.hits_sockets(proxy)
        hole_old(proxy)
        last_heard = time.monotonic()
        await until(lambda: time.monotonic() > last_heard + 1.0)
        run.over()
        assert await run.waits(pool, 1.0 + stretched(AT_ONCE)) is None
        await until(lambda: gone(pool.stats()) == {"broken": SIZE}, 1.0 + stretched(AT_ONCE))
        await run.recovered(pool, postgres, gone=tuple(victims))


@fault(
    name="connection cut without a word, then its query is cancelled",
    sees="the cancelled task: its cancellation, at once; others: `acquire` waits for a free slot, "
    "or `PoolTimeout` at its deadline",
    pool="gives the reset `reset_timeout` (2 s), then cuts the connection and opens another",
    hits="open sockets",
    bound=4.0,
)
async def test_silent_connection_of_a_cancelled_query_costs_the_reset_timeout(
    run: Run, postgres: Postgres, database: str, proxy: Proxy
) -> None:
    """And no slot, even of a pool with only one."""
    async with create(proxy.through(database), max_size=1) as pool:
        async with query_under_way(pool, postgres) as (task, victim):
            run.hits_sockets(proxy)
            hole_old(proxy)
            task.cancel()
            await asyncio.wait([task], timeout=stretched(AT_ONCE))
            assert task.cancelled()
            patient = asyncio.create_task(run.waits(pool, 5.0))
            await run.waits_in_vain(pool, 0.5)
            assert await patient is None
        await run.recovered(pool, postgres, gone=(victim,))
