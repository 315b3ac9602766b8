"""What the log says of a PostgreSQL server that stops under load, and of sessions that it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import anyio.to_thread
import asyncpg
import pytest

from poolkit import ConnectFailed, PoolUnavailable
from poolkit.drivers.asyncpg import create_pool
from tests.drivers.asyncpg_help import until
from tests.faults.harness import PgPool
from tests.postgres import Postgres, Server


@pytest.fixture
def anyio_backend() -> Any:
    """Run on asyncio's own loop."""
    return ("asyncio", {"use_uvloop": False})


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return the levels and events of all that anybody has logged at INFO and above."""
    return [
        (record.levelname, getattr(record, "poolkit_event", record.getMessage()))
        for record in caplog.records
        if record.levelno >= logging.INFO and record.name != "asyncio"
    ]


@contextlib.asynccontextmanager
async def load(pool: PgPool, workers: int) -> Any:
    """Have many callers use a pool, whatever comes of it."""

    async def work() -> None:
        while True:
            try:
                async with pool.acquire() as conn:
                    await conn.execute("SET application_name = 'shop'")  # so that it is reset
                    await conn.fetch("SELECT pg_sleep(0.01)")
            except (PoolUnavailable, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_server_stopped_for_seconds_under_load_is_two_lines(
    own_postgres: Server, own_database: str, mode: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever fails meanwhile: statements, resets, pings, connects and waits."""
    caplog.set_level(logging.DEBUG)
    pool = create_pool(own_database, max_size=8, acquire_timeout=1.0, name="shop")
    async with pool, load(pool, 24):
        await until(lambda: pool.stats().size == 8 and pool.stats().waited > 100)
        await anyio.to_thread.run_sync(own_postgres.stop, mode)
        # Pauses of 1.5 s at most: this takes five seconds.
        await until(lambda: pool.stats().connect_failures >= 7 and pool.stats().timed_out > 0)
        await anyio.to_thread.run_sync(own_postgres.start)
        await until(lambda: ("INFO", "outage_ended") in events(caplog))
        done = pool.stats().waited
        await until(lambda: pool.stats().waited > done + 100)
    assert events(caplog) == [("WARNING", "outage_began"), ("INFO", "outage_ended")]
    began, ended = (record for record in caplog.records if record.levelno >= logging.INFO)
    text = began.getMessage()
    assert text.startswith(f"pool 'shop' (127.0.0.1:{own_postgres.port}/")
    assert "cannot connect to the database: " in text
    fields: Any = vars(ended)
    assert fields["poolkit_lost_idle"] + fields["poolkit_lost_leased"] == 8
    assert fields["poolkit_attempts"] >= 7
    assert fields["poolkit_timed_out"] > 0
    assert fields["poolkit_seconds"] > 1.0


async def test_wrong_password_is_told_by_the_error_at_opening_and_by_one_line_later(
    own_postgres: Server, own_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No record has a password in it."""
    caplog.set_level(logging.DEBUG, "poolkit")
    own_postgres.query("CREATE ROLE needs_password")
    own_postgres.query("CREATE ROLE shopper LOGIN PASSWORD 'hunter2' IN ROLE needs_password")
    password = "hunter3"
    dsn = own_postgres.dsn("postgres", user="shopper")
    pool = create_pool(dsn, connect_kwargs={"password": lambda: password})
    try:
        with pytest.raises(ConnectFailed):
            await pool.open()
        assert events(caplog) == []
        password = "hunter2"
        async with pool:
            password = "hunter3"
            own_postgres.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'shopper'"
            )
            await until(lambda: pool.stats().connect_failures >= 4)
            assert events(caplog) == [("WARNING", "outage_began")]
            password = "hunter2"
            await until(lambda: ("INFO", "outage_ended") in events(caplog))
        assert events(caplog) == [("WARNING", "outage_began"), ("INFO", "outage_ended")]
        assert not any("hunter" in str(vars(record)) for record in caplog.records)
    finally:
        own_postgres.query("DROP ROLE shopper, needs_password")


@pytest.mark.parametrize(("count", "is_idle"), [(1, True), (1, False), (10, True), (10, False)])
async def test_sessions_that_the_server_ends_are_one_line(
    postgres: Postgres,
    database: str,
    count: int,
    is_idle: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A warning if they were held; it has the server's reason if a statement was told it."""
    caplog.set_level(logging.INFO, "poolkit")
    async with create_pool(database, min_size=10, max_size=10, name="shop") as pool:
        async with contextlib.AsyncExitStack() as stack:
            held = [await stack.enter_async_context(pool.acquire()) for _ in range(10)]
            pids = [conn.get_server_pid() for conn in held[:count]]
            if is_idle:
                await stack.aclose()
            postgres.query("SELECT pg_terminate_backend(unnest($1::int[]))", pids)
            await until(lambda: pool.stats().connected == 10 + count or not is_idle)
            for conn in held[:count] if not is_idle else ():
                with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                    await conn.fetch("SELECT 1")
        await until(lambda: events(caplog))
        await until(lambda: pool.stats().connected == 10 + count)
    expected = "INFO" if is_idle else "WARNING"
    assert events(caplog) == [(expected, "connections_lost")]
    fields: Any = vars(caplog.records[0])
    lost = (fields["poolkit_lost_idle"], fields["poolkit_lost_leased"])
    assert lost == ((count, 0) if is_idle else (0, count))
