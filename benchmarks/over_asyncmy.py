"""M: asyncmy, ``SELECT 1`` per acquire on MariaDB: poolkit, asyncmy's pool, a bare semaphore."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlsplit

import asyncmy
import pytest

import poolkit
from benchmarks.drivers import SEMAPHORE, pooled, semaphore, tables
from benchmarks.peers import Postgresql, Request, Reset
from benchmarks.table import Table
from tests.mariadb import MariaDB, find_programs

PAIRS = [
    ("poolkit, reset='none'", SEMAPHORE, 0.8),
    ("poolkit, reset='transaction'", "asyncmy.Pool", 1.0),
]


async def _ask(connection: Any) -> None:
    async with connection.cursor() as cursor:
        await cursor.execute("SELECT 1")
        await cursor.fetchone()


def _arguments(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    place = {"host": parts.hostname, "port": parts.port}
    return {**place, "user": parts.username, "password": parts.password, "autocommit": True}


@contextlib.asynccontextmanager
async def _semaphore(url: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
    async with contextlib.AsyncExitStack() as stack:

        async def connect() -> Any:
            made = await asyncmy.connect(**_arguments(url))
            stack.push_async_callback(made.ensure_closed)
            return made

        yield await stack.enter_async_context(semaphore(connect, _ask, size))


@contextlib.asynccontextmanager
async def _theirs(url: str, size: int, tasks: int) -> AsyncIterator[Request]:  # noqa: ARG001
    async with asyncmy.create_pool(minsize=size, maxsize=size, **_arguments(url)) as pool:

        async def request() -> None:
            async with pool.acquire() as connection:
                await _ask(connection)

        yield request


def _ours(level: Any, undone: Reset, settings: str) -> Postgresql:
    def open_pool(url: str, size: int, tasks: int) -> AbstractAsyncContextManager[Request]:  # noqa: ARG001
        create = poolkit.drivers.asyncmy.create_pool
        return pooled(create(url, min_size=size, max_size=size, reset=level), _ask)

    name = f"poolkit, reset={level!r}"
    return Postgresql(name=name, settings=settings, reset=undone, open=open_pool)


WAYS = [
    Postgresql(
        name=SEMAPHORE,
        settings="connections, asyncio.Semaphore and a deque",
        reset="nothing",
        open=_semaphore,
    ),
    _ours("none", "nothing", "an open transaction alone is rolled back"),
    Postgresql(
        name="asyncmy.Pool",
        settings="autocommit; closes connections that have a transaction, and undoes nothing else",
        reset="the transaction",
        open=_theirs,
    ),
    _ours("transaction", "the transaction", "the transaction, and autocommit"),
    _ours("full", "the session", "COM_RESET_CONNECTION and a check, two round trips: the default"),
]


def run(*, quick: bool) -> Iterator[Table]:
    """Return a table for each number of tasks; none where there is no MariaDB."""
    try:
        programs = find_programs()
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:
        print(f"M is left out: {missing}\n")
        return
    server = MariaDB(*programs)
    try:
        server.start()
        url = server.url()
        yield from tables("mysql", "M: asyncmy, SELECT 1", WAYS, url, PAIRS, quick=quick)
    finally:
        server.close()
