"""Callbacks of asyncpg's connections: of one lease, or of the connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from poolkit import NotLeased
from tests.drivers.asyncpg_help import (
    LOOPS,
    of_one,
    quiet,
    until,
    warnings_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.drivers.asyncpg_help import Pooled


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


CALLBACKS: dict[str, Callable[[Any, Any], Any]] = {
    "notification listener": lambda conn, callback: conn.add_listener("here", callback),
    "log listener": lambda conn, callback: conn.add_log_listener(callback),
    "termination listener": lambda conn, callback: conn.add_termination_listener(callback),
    "query logger": lambda conn, callback: conn.add_query_logger(callback),
}
#: Has each of them called, but for the third.
PROVOKE = "DO $$ BEGIN RAISE WARNING 'loud'; END $$; NOTIFY here, 'hello'"


async def add(conn: asyncpg.Connection, kind: str, callback: Any) -> None:
    """Add a callback of this kind."""
    added = CALLBACKS[kind](conn, callback)
    if added is not None:
        await added


@pytest.mark.parametrize("level", ["full", "transaction", "none"])
@pytest.mark.parametrize("kind", CALLBACKS)
async def test_callback_left_behind_is_removed_and_warned_about(
    dsn: str, caplog: pytest.LogCaptureFixture, kind: str, level: Any
) -> None:
    """The next user's events are not told to the last one."""
    calls: list[Any] = []
    async with of_one(dsn, reset=level) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            await add(conn, kind, lambda *args: calls.append(args))
            await add(conn, kind, lambda *args: calls.append(args))
            await conn.execute(PROVOKE)
            await until(lambda: calls or kind == "termination listener")
        (said,) = warnings_in(caplog) or await _said_soon(pool, caplog)
        assert said.startswith(f"2 {kind}s w")
        calls.clear()
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            await conn.execute(PROVOKE)
            listening = await conn.fetchval("SELECT count(*) FROM pg_listening_channels()")
            assert listening == (kind == "notification listener" and level == "none")
        await quiet(pool)
    await until(lambda: pool.stats().size == 0)
    await asyncio.sleep(0)
    assert not calls
    assert len(warnings_in(caplog)) == 1


async def _said_soon(pool: Pooled, caplog: pytest.LogCaptureFixture) -> list[str]:
    await quiet(pool)
    return warnings_in(caplog)


@pytest.mark.parametrize("kind", CALLBACKS)
async def test_callback_removed_in_time_is_not_warned_about(
    dsn: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """There is nothing to say."""

    def callback(*_: object) -> None:
        pass

    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            await add(conn, kind, callback)
            if kind == "notification listener":
                await conn.remove_listener("here", callback)
            else:
                getattr(conn, f"remove_{kind.replace(' ', '_')}")(callback)
        await quiet(pool)
    assert not warnings_in(caplog)


async def test_callbacks_set_on_connect_stay(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """They are of the connection, and of no lease; also when a lease adds and leaves its own."""
    calls: list[str] = []
    kinds = [kind for kind in CALLBACKS if kind != "notification listener"]

    async def install(conn: asyncpg.Connection) -> None:
        for kind in kinds:
            await add(conn, kind, lambda *_, kind=kind: calls.append(kind))

    async with of_one(dsn, on_connect=install) as pool:
        for turn in range(3):
            calls.clear()
            async with pool.acquire() as conn:
                await conn.execute(PROVOKE)
                await until(lambda: {*calls} >= {"log listener", "query logger"})
                if turn == 1:
                    for kind in kinds:
                        await add(conn, kind, lambda *_: calls.append("other"))
            await quiet(pool)
            assert "other" not in calls
    await until(lambda: "termination listener" in calls)
    assert len(warnings_in(caplog)) == 1


async def test_callback_set_on_connect_gets_no_view_of_another_lease(dsn: str) -> None:
    """One that is dead would be of no use to it."""
    calls: list[Any] = []

    async def install(conn: asyncpg.Connection) -> None:
        conn.add_log_listener(lambda c, _: calls.append(c))

    async with of_one(dsn, on_connect=install) as pool:
        async with pool.acquire() as first:
            first.add_log_listener(lambda *_: None)
        await quiet(pool)
        async with pool.acquire() as conn:
            await conn.execute("DO $$ BEGIN RAISE WARNING 'loud'; END $$")
            await until(lambda: calls)
            assert first not in calls
            assert not calls[0].is_closed()


@pytest.mark.parametrize("kind", [kind for kind in CALLBACKS if kind != "query logger"])
async def test_callback_gets_the_view_which_dies_with_the_lease(dsn: str, kind: str) -> None:
    """It could use the next user's session otherwise."""
    calls: list[Any] = []
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            await add(conn, kind, lambda c, *_: calls.append(c))
            await (conn.close() if kind == "termination listener" else conn.execute(PROVOKE))
            await until(lambda: calls)
            assert calls[0] is conn
        async with pool.acquire():
            with pytest.raises(NotLeased):
                await calls[0].fetchval("SELECT 1")


async def test_callback_called_late_finds_a_dead_view(dsn: str) -> None:
    """The event was of the lease, the callback comes after it."""
    calls: list[Any] = []
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            conn.add_log_listener(lambda c, _: calls.append(c))
            await conn.execute("DO $$ BEGIN RAISE WARNING 'loud'; END $$")
        (late,) = calls or [await _first(calls)]
        async with pool.acquire():
            with pytest.raises(NotLeased):
                await late.fetchval("SELECT 1")


async def _first(calls: list[Any]) -> Any:
    await until(lambda: calls)
    return calls[0]
