"""MariaDB, and its sessions: killed, idle too long, cancelled, stopped, suspended, cut off, full.

On one event loop only: a restart takes its time, and the loop has no part in it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import asyncmy
import pytest
from asyncmy.errors import OperationalError

from poolkit import ConnectFailed, Pool
from tests.drivers.asyncmy_help import ask, execute, value
from tests.fakes import gone
from tests.faults.harness import AT_ONCE, FAULTS, SIZE, stopped, stretched, until
from tests.faults.mysql import MysqlRun as Run
from tests.faults.mysql import (
    create,
    have_all_sessions,
    mysql_fault,
    note_version,
    query_under_way,
    until_at,
)
from tests.mariadb import PASSWORD, USER, MariaDB
from tests.proxy import Proxy


@pytest.fixture
def anyio_backend() -> Any:
    """Run on asyncio's own loop."""
    return ("asyncio", {"use_uvloop": False})


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Run:
    """Return what the test has to complete."""
    return Run(FAULTS[request.function])


def code(error: BaseException | None) -> int:
    """Return the server's or the client's number of an error."""
    assert isinstance(error, asyncmy.MySQLError)
    found: int = error.args[0]
    return found


def _has_lost(pool: Pool[Any], expected: dict[str, int]) -> Callable[[], bool]:
    return lambda: gone(pool.stats()) == expected


# -- sessions ------------------------------------------------------------------------------------


@mysql_fault(
    name="`KILL`, idle connection",
    sees="nothing, once the event loop has read the server's word",
    pool="learns it from the socket: drops the connection at once, and replaces it up to `min_size`",
    hits="session id",
    bound=1.0,
)
async def test_killed_idle_session_leaves_the_pool_at_once(
    run: Run, mariadb: MariaDB, mysql: str
) -> None:
    """Nobody is given it."""
    async with create(mysql, min_size=SIZE) as pool:
        for broken in (1, 2):
            victim, *_ = await have_all_sessions(pool)
            await run.hits_sessions(mariadb, victim)
            await ask(mariadb, f"KILL {victim}")
            expected = {"broken": broken}
            await until(_has_lost(pool, expected), stretched(AT_ONCE))
            assert await run.waits(pool, 1.0) is None
            await run.recovered(pool, mariadb, gone=(victim,))


@mysql_fault(
    name="`KILL`, query under way",
    sees="that query: `OperationalError` (1927 or 2013), at once; others, in a transaction or not: "
    "nothing",
    pool="drops the connection",
    hits="session id",
    bound=1.0,
)
async def test_killed_busy_session_fails_its_query_and_no_other(
    run: Run, mariadb: MariaDB, mysql: str
) -> None:
    """Its slot is free for a new connection at once."""
    async with create(mysql) as pool:
        await have_all_sessions(pool)
        async with query_under_way(pool, mariadb) as (task, victim), pool.acquire() as other:
            await other.begin()
            await run.hits_sessions(mariadb, victim)
            await ask(mariadb, f"KILL {victim}")
            with run.sees(OperationalError):
                await task
            assert code(task.exception()) in (1317, 1927, 2013)
            assert await run.waits(pool, 1.0) is None
            await other.commit()
        await run.recovered(pool, mariadb, gone=(victim,))


@mysql_fault(
    name="`KILL QUERY` by somebody else",
    sees="that query: `OperationalError` (1317), at once",
    pool="keeps the connection",
    hits="session id",
    bound=1.0,
)
async def test_killed_query_costs_no_connection(run: Run, mariadb: MariaDB, mysql: str) -> None:
    """Only the statement has failed."""
    async with create(mysql) as pool:
        before = await have_all_sessions(pool)
        async with pool.acquire() as conn:
            text = "SELECT COUNT(*) FROM seq_1_to_100000 a, seq_1_to_100000 b"
            task = asyncio.create_task(execute(conn, text))
            await until_at(mariadb, conn.thread_id(), text)
            await run.hits_sessions(mariadb, conn.thread_id())
            await ask(mariadb, f"KILL QUERY {conn.thread_id()}")
            with run.sees(OperationalError):
                await task
            assert code(task.exception()) == 1317
            assert await value(conn, "SELECT 1") == 1
        assert await run.waits(pool, 1.0) is None
        await run.recovered(pool, mariadb)
        assert set(await have_all_sessions(pool)) == set(before)


@mysql_fault(
    name="statement cancelled",
    sees="the cancelled task: its cancellation, at once; `acquire`: waits for a free slot",
    pool="ends the session on the server by `KILL`, from a connection of its own, and opens another",
    hits="session id",
    bound=1.5,
)
async def test_cancelled_statement_ends_on_the_server(
    run: Run, mariadb: MariaDB, mysql: str
) -> None:
    """With its transaction and its locks."""
    async with create(mysql) as pool:
        await have_all_sessions(pool)
        async with query_under_way(pool, mariadb) as (task, victim):
            await run.hits_sessions(mariadb, victim)
            task.cancel()
            await asyncio.wait([task], timeout=stretched(AT_ONCE))
            assert task.cancelled()
            assert await run.waits(pool, 5.0) is None
        await run.recovered(pool, mariadb, gone=(victim,))
        assert victim not in await asyncio.to_thread(mariadb.sessions)


@mysql_fault(
    name="`wait_timeout` of the server",
    sees="nothing, once the event loop has read the server's word",
    pool="learns it from the socket: drops the connections at once, and replaces them up to "
    "`min_size`",
    hits="session id",
    bound=1.0,
)
async def test_sessions_ended_for_being_idle_leave_the_pool(run: Run, own_mariadb: MariaDB) -> None:
    """And those that follow them are used as ever."""
    url = own_mariadb.url(own_mariadb.create_database())
    async with create(url, min_size=1, ping_every=None) as pool:
        victims = await have_all_sessions(pool)
        await ask(own_mariadb, "SET GLOBAL wait_timeout = 1")
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(SIZE):  # whose resets take over what is set now
                await value(await stack.enter_async_context(pool.acquire()), "SELECT 1")
        await run.hits_sessions(own_mariadb, *victims)
        await ask(own_mariadb, "SET GLOBAL wait_timeout = 28800")
        await until(lambda: pool.stats().retired["broken"] == SIZE)
        run.over()
        assert await run.waits(pool, 1.0) is None
        await run.recovered(pool, own_mariadb, gone=tuple(victims))


# -- the server ----------------------------------------------------------------------------------


async def _restart(run: Run, server: MariaDB, stop: Any) -> None:
    """Stop the server under a query; have one caller lose its patience, and one keep it."""
    async with create(server.url(server.create_database())) as pool:
        victims = await have_all_sessions(pool)
        async with query_under_way(pool, server) as (task, _):
            await run.hits_mariadb(server)
            stopping = asyncio.create_task(anyio.to_thread.run_sync(stop))
            with run.sees(OperationalError, within=2.0):
                await task
            assert code(task.exception()) in (1053, 1317, 1927, 2013)
            await stopping
        patient = asyncio.create_task(run.waits(pool, 20.0))
        await run.waits_in_vain(pool, 0.5, OperationalError)
        await anyio.to_thread.run_sync(server.start)
        run.over()
        assert await patient is None
        # The numbers begin anew.
        await run.recovered(pool, server)
        assert len(victims) == SIZE


_WAITING = (
    "query under way: `OperationalError`, within 2 s; `acquire`: waits until the server is back, "
    "or `PoolTimeout` (cause: `OperationalError`, 2003) at its deadline"
)
_PROBING = "drops all connections; one attempt to connect at a time, after pauses that double"


@mysql_fault(
    name="server stopped (SIGTERM) and started",
    sees=_WAITING,
    pool=_PROBING,
    hits="server pid",
    bound=3.0,
)
async def test_stopped_server_is_waited_out(run: Run, own_mariadb: MariaDB) -> None:
    """Only the queries under way are lost."""
    await _restart(run, own_mariadb, own_mariadb.stop)


@mysql_fault(
    name="server killed (`kill -9`) and started",
    sees=_WAITING,
    pool=_PROBING,
    hits="server pid",
    bound=3.0,
)
async def test_killed_server_is_waited_out(run: Run, own_mariadb: MariaDB) -> None:
    """Its recovery is part of the start."""
    await _restart(run, own_mariadb, own_mariadb.kill)


@mysql_fault(
    name="server suspended (SIGSTOP), then a query is cancelled",
    sees="the cancelled task: its cancellation, at once; `acquire`: waits, or `PoolTimeout` at its "
    "deadline",
    pool="gives the reset `reset_timeout` (2 s), then cuts the connection",
    hits="server pid",
    bound=5.0,
)
async def test_suspended_server_holds_nobody_up(run: Run, own_mariadb: MariaDB) -> None:
    """Nor can anything be killed on it."""
    url = own_mariadb.url(own_mariadb.create_database())
    async with create(url, max_size=1, connect_timeout=1.0) as pool:
        async with query_under_way(pool, own_mariadb) as (task, _):
            await run.hits_mariadb(own_mariadb)
            with stopped(own_mariadb.pid):
                task.cancel()
                await asyncio.wait([task], timeout=stretched(AT_ONCE))
                assert task.cancelled()
                await run.waits_in_vain(pool, 3.0)
            run.over()
        await run.recovered(pool, own_mariadb)


# -- connecting ----------------------------------------------------------------------------------


@mysql_fault(
    name="wrong password",
    sees="`acquire`: `ConnectFailed` (cause: `OperationalError`, 1045) at once, with no password "
    "in it",
    pool="fails all waiters at once, and newcomers; tries again, after pauses that double",
    hits="session id",
    bound=3.0,
)
async def test_wrong_password_is_told_at_once(run: Run, own_mariadb: MariaDB) -> None:
    """It was right until somebody has changed it."""
    url = own_mariadb.url(own_mariadb.create_database())
    async with create(url) as pool:
        victims = await have_all_sessions(pool)
        await ask(own_mariadb, f"SET PASSWORD FOR {USER}@'%' = PASSWORD('other')")
        try:
            await run.hits_sessions(own_mariadb, *victims)
            for victim in victims:
                await ask(own_mariadb, f"KILL {victim}")
            await until(lambda: not pool.stats().idle)
            with run.sees(ConnectFailed, cause=OperationalError):
                await pool.acquire(timeout=5.0)
            error = await run.waits(pool, 5.0)
            assert code(error.__cause__ if error else None) == 1045
            assert PASSWORD not in str(error)
        finally:
            await ask(own_mariadb, f"SET PASSWORD FOR {USER}@'%' = PASSWORD('{PASSWORD}')")
        run.over()
        await run.recovered(pool, own_mariadb, gone=tuple(victims), patient=True)


@mysql_fault(
    name="`max_connections` used up by others",
    sees="on an open connection: nothing; `acquire` when a new one is needed: waits for one to come "
    "back, or `PoolTimeout` (cause: `OperationalError`, 1040) at its deadline",
    pool="serves waiters with the connections it has; one attempt to connect at a time",
    hits="session id",
    bound=3.0,
)
async def test_full_server_is_waited_for(run: Run, own_mariadb: MariaDB) -> None:
    """The pool goes on with what it has."""
    url = own_mariadb.url(own_mariadb.create_database())
    other = own_mariadb.url(own_mariadb.create_database())
    await ask(own_mariadb, "SET GLOBAL max_connections = 10")
    try:
        async with create(url, min_size=1) as pool:
            async with create(other, min_size=8, max_size=8) as others, pool.acquire() as conn:
                await run.hits_sessions(own_mariadb, *await have_all_sessions(others))
                async with create(other, max_size=1):
                    await run.waits_in_vain(pool, 0.5, OperationalError)
                    assert await value(conn, "SELECT 1") == 1
            run.over()
            await run.recovered(pool, own_mariadb)
    finally:
        await ask(own_mariadb, "SET GLOBAL max_connections = 100")


# -- the way to it -------------------------------------------------------------------------------


@mysql_fault(
    name="all connections reset (RST) by something in between",
    sees="queries under way: `OperationalError` (2013), at once",
    pool="learns it from the sockets: drops all of them at once, opens new ones",
    hits="open sockets",
    bound=1.0,
)
async def test_reset_connections_are_replaced(run: Run, mariadb: MariaDB, mysql: str) -> None:
    """No caller is given one of them."""
    with Proxy(mariadb.host, mariadb.port) as proxy:
        async with create(proxy.through(mysql)) as pool:
            victims = await have_all_sessions(pool)
            async with query_under_way(pool, mariadb) as (task, victim):
                await note_version(mariadb)
                run.hits_sockets(proxy)
                proxy.reset_all()
                with run.sees(OperationalError):
                    await task
                assert code(task.exception()) == 2013
            assert await run.waits(pool, 1.0) is None
            await have_all_sessions(pool)
            run.is_normal()
            await ask(mariadb, f"KILL {victim}")  # it does not look at its socket meanwhile
            await run.recovered(pool, mariadb, gone=tuple(victims))
