"""What runs at PostgreSQL on a connection that is given up: it ends, for either driver."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from typing import Any

import asyncpg
import psycopg
import pytest

import poolkit
from poolkit import NotLeased
from poolkit.drivers import _background
from poolkit.drivers._background import run_later
from poolkit.drivers.asyncpg import AsyncpgDriver, _internals
from poolkit.drivers.psycopg import PsycopgDriver, _session
from tests.drivers.asyncpg_help import ENDLESS, LOOPS, until, until_true

SCHEMES = ["postgresql", "postgresql+psycopg"]


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop, as the drivers do."""
    return request.param


@pytest.fixture(params=SCHEMES)
def url(request: pytest.FixtureRequest, dsn: str) -> str:
    """Return the database's URL, for each driver in turn.

    asyncpg leaves an exception to nobody if its request to cancel is cancelled while it asks for
    TLS.
    """
    return dsn.replace("postgresql:", f"{request.param}:", 1) + "?sslmode=disable"


async def sleeping(outside: asyncpg.Connection) -> bool:
    """Tell whether a statement of the tests runs."""
    sql = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' "
        "AND datname = current_database()"
    )
    return bool(await outside.fetchval(sql))


async def none_sleeping(outside: asyncpg.Connection) -> bool:
    """Tell whether none does any more."""
    return not await sleeping(outside)


async def end_sleeping(dsn: str) -> None:
    """End what runs still."""
    conn = await asyncpg.connect(dsn)
    await conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' "
        "AND datname = current_database()"
    )
    await conn.close()


async def use(pool: poolkit.Pool[Any]) -> None:
    """Run for ever."""
    async with pool.acquire() as conn:
        await conn.execute(ENDLESS)


async def test_statement_whose_reset_runs_out_of_time_ends(
    url: str, outside: asyncpg.Connection
) -> None:
    """The request to cancel it would end with the connection, and the statement go on for long."""
    async with poolkit.create_pool(url, max_size=1, reset_timeout=1e-6) as pool:
        task = asyncio.ensure_future(use(pool))
        await until_true(lambda: sleeping(outside))
        task.cancel()
        await asyncio.wait([task])
        await until_true(lambda: none_sleeping(outside))


async def test_pipeline_that_is_given_up_leaves_nothing_to_the_garbage_collector(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Psycopg's generator sends something as it ends, which fails if the connection is closed."""
    driver = PsycopgDriver(dsn)
    conn = await driver.connect()

    async def work() -> None:
        async with conn.pipeline():
            await conn.execute(ENDLESS)

    task = asyncio.ensure_future(work())
    await until_true(lambda: sleeping(outside))
    driver.terminate(conn)
    task.cancel()
    await asyncio.wait([task])
    del task
    gc.collect()
    await until_true(lambda: none_sleeping(outside))


async def test_closing_pool_ends_what_its_holders_run(
    url: str, outside: asyncpg.Connection
) -> None:
    """A statement would go on, with its locks, when its client has hung up."""
    pool = poolkit.create_pool(url, max_size=1)
    await pool.open()
    task = asyncio.ensure_future(use(pool))
    await until_true(lambda: sleeping(outside))
    await pool.aclose(grace=0)
    await asyncio.wait([task])
    assert isinstance(task.exception(), Exception)
    await until_true(lambda: none_sleeping(outside))


async def test_holder_that_terminates_its_connection_ends_what_runs(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """By asyncpg's own method, from another task than the one that waits for the statement."""
    async with poolkit.create_pool(dsn, max_size=1) as pool:
        async with pool.acquire() as conn:
            task = asyncio.ensure_future(conn.execute(ENDLESS))
            await until_true(lambda: sleeping(outside))
            with contextlib.suppress(NotLeased):
                conn.terminate()
            await asyncio.wait([task])
            assert task.exception() is not None
            await until_true(lambda: none_sleeping(outside))


async def test_libpq_that_cannot_ask_without_blocking_does_not_ask(
    dsn: str, outside: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread would wait for a server that does not answer, and the process not end before it."""
    asked: list[object] = []
    monkeypatch.setattr(psycopg.capabilities, "has_cancel_safe", lambda: False)
    monkeypatch.setattr(_session, "run_later", lambda *about: asked.append(about))
    driver = PsycopgDriver(dsn)
    conn = await driver.connect()
    task = asyncio.ensure_future(conn.execute(ENDLESS))
    await until_true(lambda: sleeping(outside))
    driver.terminate(conn)
    await asyncio.wait([task])
    assert task.exception() is not None
    assert asked == []
    await end_sleeping(dsn)


@pytest.mark.parametrize("error", [RecursionError, MemoryError])
@pytest.mark.parametrize("driver", [AsyncpgDriver, PsycopgDriver])
async def test_connection_is_closed_whatever_becomes_of_the_request(
    dsn: str,
    outside: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    driver: Any,
    error: type[Exception],
) -> None:
    """The stack may have run out, or the memory: a connection is given up from anywhere."""

    def run_out(*_: object) -> None:
        raise error

    monkeypatch.setattr(_session, "run_later", run_out)
    monkeypatch.setattr(_internals, "run_later", run_out)
    made = driver(dsn)
    conn = await made.connect()
    task = asyncio.ensure_future(conn.execute(ENDLESS))
    await until_true(lambda: sleeping(outside))
    with contextlib.suppress(MemoryError):  # which may be told, once it is closed
        made.terminate(conn)
    assert made.is_dead(conn)
    await asyncio.wait([task])
    assert task.exception() is not None
    await end_sleeping(dsn)


def test_request_of_an_event_loop_that_has_ended_is_forgotten() -> None:
    """It would be kept for ever, with its socket: a process may run many event loops in turn."""

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        run_later(loop, asyncio.Event().wait, 600)
        await asyncio.sleep(0)

    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(ask())
        loop.close()
    assert len(_background._tasks) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("how", ["left", "terminated"])
def test_event_loop_that_ends_meanwhile_leaves_nothing_open(
    dsn: str, scheme: str, how: str
) -> None:
    """A request that is under way then would leave a connection that is half open."""

    async def main() -> None:
        pool = poolkit.create_pool(dsn.replace("postgresql:", f"{scheme}:", 1), max_size=2)
        await pool.open()
        task = asyncio.ensure_future(use(pool))
        async with pool.acquire() as conn:
            busy = asyncio.ensure_future(conn.execute(ENDLESS))
            await until(lambda: pool.stats().leased == 2)
            if how == "terminated":
                conn._poolkit_pool._driver.terminate(conn._poolkit_slot.connection)
                await asyncio.wait([busy])
                busy.exception()
        del task

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    asyncio.run(end_sleeping(dsn))
    assert [str(each.message) for each in caught if "unclosed" in str(each.message)] == []


async def test_idle_connection_that_is_terminated_asks_for_nothing(
    dsn: str, outside: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request would open a connection to a server that may be in trouble already."""
    from asyncpg import connect_utils

    asked: list[object] = []
    monkeypatch.setattr(connect_utils, "_cancel", lambda **about: asked.append(about))
    pool = poolkit.create_pool(dsn, max_size=1)
    async with pool, pool.acquire() as conn:
        await conn.execute("SELECT 1")
        conn.terminate()
    assert asked == []
