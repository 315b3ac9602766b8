"""Applications that share a pool: the last one out closes it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from fastapi import FastAPI

import poolkit.fastapi
from tests.integrations.live import SQLitePool
from tests.integrations.test_fastapi_lifespan import lifespan, make_app

try:
    import httpx2 as httpx
except ImportError:
    import httpx  # type: ignore[no-redef]  # one or the other


def client_of(app: FastAPI) -> Any:
    """Return a client on the running loop; the lifespan is the test's to enter."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize("first_out", [0, 1])
async def test_shutdown_of_one_application_leaves_the_pool_to_the_other(
    pool: SQLitePool, first_out: int
) -> None:
    """Whichever of them ends first."""
    apps = [make_app(lifespan(pool)) for _ in range(2)]
    lives = [lifespan(pool)(app) for app in apps]
    for life in lives:
        await life.__aenter__()
    await lives[first_out].__aexit__(None, None, None)
    async with client_of(apps[1 - first_out]) as client:
        assert (await client.get("/")).json() == [[1]]
    await lives[1 - first_out].__aexit__(None, None, None)
    assert pool.stats().size == 0


async def test_application_leaves_the_pool_to_the_program_that_has_opened_it(
    pool: SQLitePool,
) -> None:
    """By a block, or by `open`: a worker beside it goes on."""
    app = make_app(lifespan(pool))
    async with pool:
        async with lifespan(pool)(app):
            pass
        async with pool.acquire() as conn:
            assert await conn.execute_fetchall("SELECT 1")
    assert pool.stats().size == 0
    await pool.open()
    async with lifespan(pool)(app):
        pass
    async with pool.acquire() as conn:
        assert await conn.execute_fetchall("SELECT 1")
    await pool.aclose()


async def test_pool_of_two_names_is_closed_once(pool: SQLitePool) -> None:
    """As in development, where there is no replica."""
    app = make_app(lifespan(pool, replica=pool))
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(lifespan(pool, replica=pool)(app))
        async with client_of(app) as client:
            assert (await client.get("/")).json() == [[1]]
    assert pool.stats().size == 0


async def test_application_that_fails_to_start_leaves_the_pool_to_the_other(
    pool: SQLitePool,
) -> None:
    """It was inside already when its second pool could not be opened."""
    broken = poolkit.create_pool("sqlite:////no/such/folder/app.db")
    app = make_app(lifespan(pool))
    async with lifespan(pool)(app):
        with pytest.raises(poolkit.ConnectFailed):
            await lifespan(pool, second=broken)(make_app(None)).__aenter__()
        async with client_of(app) as client:
            assert (await client.get("/")).json() == [[1]]
    assert pool.stats().size == 0
