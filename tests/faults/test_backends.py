"""One backend ends: by an administrator, or because the server found its session idle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import asyncpg
from asyncpg import exceptions as pg

from tests.fakes import gone
from tests.faults.harness import (
    AT_ONCE,
    SIZE,
    PgPool,
    Run,
    create,
    fault,
    have_all,
    query_under_way,
    stretched,
    terminate,
    until,
)
from tests.postgres import Postgres, need


@fault(
    name="`pg_terminate_backend`, idle connection",
    sees="nothing, once the event loop has read the server's word",
    pool="learns it from the socket: drops the connection at once, and replaces it up to `min_size`",
    hits="backend pid",
    bound=1.0,
)
async def test_terminated_idle_backend_leaves_the_pool_at_once(
    run: Run, postgres: Postgres, database: str
) -> None:
    """Nobody is given it; the background loop, which looks once a second, is not needed for it."""
    async with create(database, min_size=SIZE) as pool:
        for broken in (1, 2):
            victim, *_ = await have_all(pool)
            run.hits_backend(postgres, victim)
            terminate(postgres, victim)
            await until(_has_retired(pool, broken), stretched(AT_ONCE))
            assert await run.waits(pool, 1.0) is None
            await run.recovered(pool, postgres, gone=(victim,))


async def test_backend_that_has_just_been_terminated_costs_one_caller_a_query_unless_each_is_pinged(
    postgres: Postgres, database: str
) -> None:
    """The loop has not read the server's word, and the connection was heard from a moment ago."""
    for ping_after, failures in ((60.0, 1), (0.0, 0)):
        failed = 0
        async with create(database, max_size=1, ping_after=ping_after) as pool:
            (victim,) = await have_all(pool)
            terminate(postgres, victim)
            while victim in {backend.pid for backend in postgres.backends()}:
                pass  # without a turn of the loop
            for _ in range(2):
                try:
                    async with pool.acquire() as conn:
                        await conn.fetchval("SELECT 1")
                except (pg.ConnectionDoesNotExistError, pg.InternalClientError):
                    failed += 1
        assert failed == failures, ping_after


@fault(
    name="`pg_terminate_backend`, query under way",
    sees="that query: `ConnectionDoesNotExistError` (cause: `AdminShutdownError`), at once; "
    "others, in a transaction or not: nothing",
    pool="drops the connection and pings the idle ones before anybody gets them",
    hits="backend pid",
    bound=1.0,
)
async def test_terminated_busy_backend_fails_its_query_and_no_other(
    run: Run, postgres: Postgres, database: str
) -> None:
    """Its slot is free for a new connection at once."""
    async with create(database) as pool:
        await have_all(pool)
        async with query_under_way(pool, postgres) as (task, victim), pool.acquire() as other:
            await other.execute("BEGIN")
            run.hits_backend(postgres, victim)
            terminate(postgres, victim)
            with run.sees(pg.ConnectionDoesNotExistError, cause=pg.AdminShutdownError):
                await task
            assert await run.waits(pool, 1.0) is None
            assert gone(pool.stats()) == {"broken": 1}
            await other.execute("COMMIT")
        await run.recovered(pool, postgres, gone=(victim,))


@fault(
    name="`idle_session_timeout` of the server",
    sees="nothing, once the event loop has read the server's word",
    pool="learns it from the socket: drops the connections at once, and replaces them up to "
    "`min_size` (here with `reset='none'`)",
    hits="backend pid",
    bound=1.0,
)
async def test_sessions_ended_for_being_idle_leave_the_pool(
    run: Run, postgres: Postgres, database: str
) -> None:
    """And those that follow them are used as ever."""
    ((version,),) = postgres.query("SHOW server_version_num")
    if int(version) < 140_000:
        need("PostgreSQL 14", "this one has no idle_session_timeout", "a newer one")
    async with create(database, reset="none") as pool:  # or the setting would not last
        victims = await have_all(pool)
        run.hits_backend(postgres, *victims)
        async with contextlib.AsyncExitStack() as stack:
            for conn in [await stack.enter_async_context(pool.acquire()) for _ in victims]:
                await conn.execute("SET idle_session_timeout = '300ms'")
        await until(_has_retired(pool, SIZE), 5.0)
        run.over()
        assert await run.waits(pool, 1.0) is None
        await run.recovered(pool, postgres, gone=tuple(victims))


@fault(
    name="`idle_in_transaction_session_timeout` of the server",
    sees="the next query of that transaction: `InterfaceError` (connection is closed), at once",
    pool="drops the connection when it comes back; does not suspect the others",
    hits="backend pid",
    bound=1.0,
)
async def test_session_ended_in_a_transaction_fails_its_next_query(
    run: Run, postgres: Postgres, database: str
) -> None:
    """The others are not even pinged."""
    async with create(database) as pool:
        await have_all(pool)
        conn = await pool.acquire()
        try:
            victim = await conn.fetchval("SELECT pg_backend_pid()")
            await conn.execute("BEGIN; SET LOCAL idle_in_transaction_session_timeout = '300ms'")
            run.hits_backend(postgres, victim)
            await until(conn.is_closed, 5.0)
            run.over()
            with run.sees(asyncpg.InterfaceError):
                await conn.execute("SELECT 1")
        finally:
            pool.release(conn)
        assert gone(pool.stats()) == {"broken": 1}
        assert pool.stats().idle == SIZE - 1
        assert await run.waits(pool, 1.0) is None
        await run.recovered(pool, postgres, gone=(victim,))


def _has_retired(pool: PgPool, many: int) -> Callable[[], bool]:
    return lambda: pool.stats().retired.get("broken") == many
