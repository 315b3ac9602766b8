"""asyncmy's connections as they come and go: lost, closed, refused, opened again."""

from __future__ import annotations

import asyncio
import functools
import ssl
from typing import TYPE_CHECKING, Any

import anyio
import asyncmy
import pytest

from poolkit import ConnectFailed, PoolTimeout
from tests.drivers.asyncmy_help import (
    ENDLESS,
    ask,
    execute,
    of_one,
    quiet,
    until_asked,
    until_sessions,
    value,
)
from tests.drivers.asyncpg_help import LOOPS, CountingProxy, until
from tests.drivers.stream_help import certificate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.mariadb import MariaDB

    Act = Callable[[Any], Awaitable[object]]


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncmy knows no others."""
    return request.param


# -- loss ----------------------------------------------------------------------------------------


async def test_idle_connection_that_the_server_ends_is_noticed_at_once(
    mariadb: MariaDB, mysql: str
) -> None:
    """And replaced, before anybody asks for it."""
    async with of_one(mysql) as pool:
        async with pool.acquire() as conn:
            number = conn.thread_id()
        await quiet(pool)
        await ask(mariadb, f"KILL {number}")
        await until(lambda: pool.stats().connected == 2 and pool.stats().idle == 1)
        async with pool.acquire() as conn:
            assert conn.thread_id() != number


async def test_connection_that_was_lost_is_not_opened_again_in_its_lease(
    mariadb: MariaDB, mysql: str
) -> None:
    """What the lease has set would be gone without a word."""
    async with of_one(mysql) as pool:
        async with pool.acquire() as conn:
            await ask(mariadb, f"KILL {conn.thread_id()}")
            with pytest.raises(asyncmy.Error):
                await execute(conn, "SELECT 1")
            with pytest.raises(asyncmy.Error):
                await conn.ping()
        async with pool.acquire() as conn:
            assert await value(conn, "SELECT 1") == 1
        assert pool.stats().connected == 2


async def test_holder_may_close_the_connection(mysql: str) -> None:
    """That ends its lease."""
    async with of_one(mysql) as pool:
        for close in ("close", "ensure_closed"):
            async with pool.acquire() as conn:
                closing = getattr(conn, close)()
                if closing is not None:
                    await closing
        async with pool.acquire() as conn:
            assert await value(conn, "SELECT 1") == 1
        assert pool.stats().connected == 3


async def test_pool_may_be_opened_again_on_another_loop(mariadb: MariaDB, mysql: str) -> None:
    """What was bound to the first one is forgotten."""
    pool = of_one(mysql, reset_timeout=20)

    async def use() -> None:
        async with pool:
            for _ in range(2):
                with anyio.move_on_after(0.05):
                    async with pool.acquire() as conn:
                        await conn.cursor().execute(ENDLESS)
            await quiet(pool)

    await use()
    await asyncio.to_thread(asyncio.run, use())
    await until_sessions(mariadb, mysql, lambda seen: not seen)


async def test_what_a_connection_is_at_can_be_seen(mysql: str) -> None:
    """The number of its session, and the text if it is to be noted."""
    async with of_one(mysql, note_statements=True) as pool:
        async with pool.acquire() as conn:
            assert isinstance(conn, asyncmy.Connection)
            await execute(conn, "SELECT 'a'")
            (lease,) = pool.leases()
            assert lease.server_pid == conn.thread_id()
            assert lease.statement == "SELECT 'a'"
        async with pool.acquire() as conn:
            assert pool.leases()[0].statement == ""


@pytest.mark.parametrize(("level", "trips"), [("full", 2), ("transaction", 0), ("none", 0)])
async def test_round_trips_of_a_reset(mariadb: MariaDB, mysql: str, level: str, trips: int) -> None:
    """Beside that of the lease's one statement."""
    with CountingProxy(mariadb.host, mariadb.port) as proxy:
        async with of_one(proxy.through(mysql), reset=level) as pool:
            await quiet(pool)
            before = proxy.trips
            async with pool.acquire() as conn:
                await execute(conn, "SELECT 1")
            await quiet(pool)
            assert proxy.trips - before == 1 + trips
            async with pool.acquire():
                pass
            await quiet(pool)
            assert proxy.trips - before == 1 + trips


async def test_server_that_cannot_reset_a_session_is_refused(
    mysql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and with what to write; at other levels it is not needed."""
    monkeypatch.setattr("poolkit.drivers.asyncmy._session.COM_RESET_CONNECTION", 0x7F)
    with pytest.raises(ConnectFailed) as caught:
        await of_one(mysql).open()
    assert "give reset='transaction'" in str(caught.value.__cause__)
    async with of_one(mysql, reset="transaction") as pool, pool.acquire() as conn:
        assert await value(conn, "SELECT 1") == 1


async def test_server_without_tls_is_refused_where_tls_is_wanted(mysql: str) -> None:
    """And not talked to without it."""
    with pytest.raises((ConnectFailed, PoolTimeout)):
        await of_one(mysql + "?ssl=yes", acquire_timeout=3, connect_timeout=1).open()


async def test_over_tls_nothing_is_different(own_mariadb: MariaDB) -> None:
    """A reset undoes the session, a cancelled statement ends, an answer of megabytes is read."""
    file = certificate(own_mariadb.folder.path)
    file.chmod(0o644)
    tls = {"ssl-cert": str(file), "ssl-key": str(file), "require-secure-transport": "ON"}
    await asyncio.to_thread(functools.partial(own_mariadb.restart, **tls))
    context = ssl.create_default_context(cafile=file)
    context.check_hostname = False  # it is for localhost, and the server has a number
    async with of_one(own_mariadb.url(), reset_timeout=20, connect_kwargs={"ssl": context}) as pool:
        async with pool.acquire() as conn:
            ((_, cipher),) = await execute(conn, "SHOW STATUS LIKE 'Ssl_cipher'")
            assert cipher
            number = conn.thread_id()
            await execute(conn, "SET @mine = 1")
        busy = f"SELECT ID FROM information_schema.PROCESSLIST WHERE INFO = '{ENDLESS}' AND ID = {number}"
        async with pool.acquire() as conn:
            assert conn.thread_id() == number
            assert await value(conn, "SELECT @mine") is None
            assert len(await value(conn, "SELECT REPEAT('a', 3000000)")) == 3_000_000
            task = asyncio.ensure_future(execute(conn, ENDLESS))
            await until_asked(own_mariadb, busy, [(number,)])
            task.cancel()
            await asyncio.wait([task])
        async with pool.acquire() as conn:
            assert conn.thread_id() != number
            assert await ask(own_mariadb, busy) == []
