"""Hooks of `poolkit.compat.asyncpg` that are no async functions: by asyncpg's names."""

from __future__ import annotations

import functools
import logging
from typing import Any

import asyncpg as original
import pytest

import poolkit
from poolkit.compat import asyncpg
from tests.conftest import BACKENDS
from tests.drivers.asyncpg_help import until

create_pool: Any = asyncpg.create_pool


@pytest.fixture(params=[backend for backend in BACKENDS if backend.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


def has_broken(pool: Any, number: int) -> bool:
    """Tell whether so many connections were lost."""
    return bool(pool.stats().retired["broken"] == number)


def sync(_: Any) -> None:
    """Be no async function."""


async def test_init_that_cannot_be_awaited_is_the_error_of_opening(database: str) -> None:
    """As each error of connecting is, and named by its option."""
    with pytest.raises(poolkit.PoolConfigError, match=r"^init=<function sync .* cannot be awaited"):
        await create_pool(database, min_size=1, init=sync)


async def test_setup_that_cannot_be_awaited_is_the_callers_error(database: str) -> None:
    """And costs its connection, as a setup that fails does."""
    async with create_pool(database, min_size=1, max_size=1, setup=sync) as pool:
        for _ in range(2):
            with pytest.raises(
                poolkit.PoolConfigError, match=r"^setup=<function sync .* cannot be"
            ):
                await pool.acquire(timeout=5)
        assert pool.stats().leased == 0


async def test_reset_that_cannot_be_awaited_is_logged_once(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs each connection, and callers are served by others."""
    async with create_pool(database, min_size=1, max_size=1, reset=sync) as pool:
        for number in (1, 2, 3):
            assert await pool.fetchval("SELECT 1") == 1
            await until(functools.partial(has_broken, pool, number))
            await until(lambda: pool.stats().idle == 1)
    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "reset=<function sync " in said[0]
    assert "cannot be awaited" in said[0]


async def test_connect_that_cannot_be_awaited_is_the_error_of_opening(database: str) -> None:
    """By asyncpg's name for it, also when it is given the class's arguments."""

    def connect(*_: Any, **__: Any) -> None:
        pass

    with pytest.raises(poolkit.PoolConfigError, match=r"^connect=<function .* cannot be awaited"):
        await create_pool(database, min_size=1, connect=connect)
    async with create_pool(database, min_size=1, connect=lambda *a, **k: original.connect(*a, **k)):
        pass


@pytest.mark.parametrize("name", ["init", "setup", "reset"])
def test_hook_that_can_never_work_is_refused_when_the_pool_is_made(name: str) -> None:
    """By asyncpg's name for it."""

    async def nothing() -> None:
        pass

    for wrong in (nothing, int, "SET x"):
        with pytest.raises(poolkit.PoolConfigError, match=f"^{name}="):
            create_pool(**{name: wrong})
