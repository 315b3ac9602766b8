"""J: psycopg, ``SELECT 1`` per acquire: poolkit, psycopg_pool and a bare semaphore."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import psycopg
import psycopg_pool

import poolkit
from benchmarks.drivers import SEMAPHORE, pooled, semaphore, tables
from benchmarks.peers import Postgresql, Request, Reset
from benchmarks.postgres import NoServerError, server
from benchmarks.table import Table

PAIRS = [
    ("poolkit, reset='none'", SEMAPHORE, 0.95),
    ("poolkit, reset='transaction'", "psycopg_pool, autocommit", 1.0),
    ("poolkit, reset='transaction'", "psycopg_pool", 1.5),
    ("poolkit, reset='full'", "psycopg_pool, reset= the same", 1.0),
]
#: Statements are prepared from the second use on, by all.
_PREPARE = 1


async def _ask(connection: Any) -> None:
    await (await connection.execute("SELECT 1")).fetchone()


@contextlib.asynccontextmanager
async def _semaphore(dsn: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
    async with contextlib.AsyncExitStack() as stack:

        async def connect() -> Any:
            made = await psycopg.AsyncConnection.connect(
                dsn, autocommit=True, prepare_threshold=_PREPARE
            )
            stack.push_async_callback(made.close)
            return made

        yield await stack.enter_async_context(semaphore(connect, _ask, size))


def _create(dsn: str, size: int, level: Any) -> poolkit.Pool[Any]:
    create = poolkit.drivers.psycopg.create_pool
    return create(dsn, min_size=size, max_size=size, reset=level, prepare_threshold=_PREPARE)


def _ours(level: Any, undone: Reset, settings: str) -> Postgresql:
    def open_pool(dsn: str, size: int, tasks: int) -> AbstractAsyncContextManager[Request]:  # noqa: ARG001
        return pooled(_create(dsn, size, level), _ask)

    name = f"poolkit, reset={level!r}"
    return Postgresql(name=name, settings=settings, reset=undone, open=open_pool)


async def _full_reset(dsn: str) -> str:
    """Return the SQL by which poolkit resets a session."""
    async with _create(dsn, 1, "full") as pool:
        driver: Any = pool._driver
        sql: str = driver.reset_with_commit(pool._state.idle[0].connection)
        assert sql, "there is a full reset"
        return sql


def _theirs(
    name: str, settings: str, undone: Reset, *, same: bool = False, **arguments: Any
) -> Postgresql:
    @contextlib.asynccontextmanager
    async def open_pool(dsn: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
        sql: Any = await _full_reset(dsn) if same else ""

        async def reset(connection: psycopg.AsyncConnection[Any]) -> None:
            await connection.execute(sql)

        kwargs = {"prepare_threshold": _PREPARE, **arguments}
        async with psycopg_pool.AsyncConnectionPool(
            dsn,
            min_size=size,
            max_size=size,
            open=False,
            kwargs=kwargs,
            reset=reset if sql else None,
        ) as pool:
            await pool.wait()

            async def request() -> None:
                async with pool.connection() as connection:
                    await _ask(connection)

            yield request

    return Postgresql(name=name, settings=settings, reset=undone, open=open_pool)


WAYS = [
    Postgresql(
        name=SEMAPHORE,
        settings="psycopg in autocommit, asyncio.Semaphore and a deque",
        reset="nothing",
        open=_semaphore,
    ),
    _ours("none", "nothing", "nothing is sent between two leases"),
    _ours("transaction", "the transaction", "an open transaction is rolled back"),
    _theirs(
        "psycopg_pool, autocommit", "no BEGIN and no COMMIT", "the transaction", autocommit=True
    ),
    _theirs("psycopg_pool", "the defaults: a transaction for each lease", "the transaction"),
    _ours("full", "the session", "the default"),
    _theirs(
        "psycopg_pool, reset= the same",
        "autocommit, and reset= a function that sends what poolkit's full reset sends",
        "the session",
        same=True,
        autocommit=True,
    ),
]


def run(*, quick: bool) -> Iterator[Table]:
    """Return a table for each number of tasks."""
    try:
        with server() as postgres:
            yield from tables(
                "psycopg", "J: psycopg, SELECT 1", WAYS, postgres.dsn(), PAIRS, quick=quick
            )
    except NoServerError as missing:
        print(f"J is left out: {missing}\n")
