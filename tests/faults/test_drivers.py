"""The same faults on psycopg, redis-py and byte streams, each on a real server of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio.to_thread
import psycopg
import pytest
import redis

from poolkit import ConnectFailed, Pool
from tests.fakes import gone
from tests.faults.harness import AT_ONCE, FAULTS, SIZE, hole_old, stopped, stretched, until
from tests.faults.kinds import Kind, KindRun, Lines, Psycopg, Redis, faults
from tests.proxy import Proxy, free_port


@pytest.fixture
def anyio_backend() -> Any:
    """Run on asyncio's own loop."""
    return ("asyncio", {"use_uvloop": False})


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    """Return a driver, with its server."""
    if request.param == "psycopg":
        yield Psycopg(request.getfixturevalue("own_postgres"))
        return
    made = Redis() if request.param == "redis" else Lines()
    try:
        yield made
    finally:
        made.server.close()


@pytest.fixture
def run(request: pytest.FixtureRequest, kind: Kind) -> KindRun:
    """Return what the test has to complete."""
    return KindRun(FAULTS[request.function, kind.driver], kind)


@pytest.fixture
def proxy(kind: Kind) -> Iterator[Proxy]:
    """Stand in front of the server."""
    with Proxy(kind.server.host, kind.server.port) as proxy:
        yield proxy


# -- one session ---------------------------------------------------------------------------------


@faults(
    name="{end}, idle connection",
    sees="nothing, once the pool knows",
    pool="{learns}: drops the connection, and replaces it up to `min_size`",
    bound=2.0,
)
async def test_idle_connection_that_the_server_ends_leaves_the_pool(
    run: KindRun, kind: Kind
) -> None:
    """Nobody is given it."""
    async with kind.create(min_size=SIZE) as pool:
        victim, *_ = await run.have_all(pool)
        run.hits_session(victim)
        kind.end(victim)
        await until(lambda: gone(pool.stats()) == {"broken": 1}, stretched(kind.notices))
        assert await run.waits(pool, 1.0) is None
        await run.recovered(pool, gone=(victim,))


@faults(
    name="{end}, operation under way",
    sees="that operation: {ended}, at once; others: nothing",
    pool="drops the connection",
    bound=1.0,
)
async def test_busy_connection_that_the_server_ends_fails_its_operation_and_no_other(
    run: KindRun, kind: Kind
) -> None:
    """Its slot is free for a new connection at once."""
    async with kind.create() as pool:
        await run.have_all(pool)
        async with kind.hanging(pool) as (task, victim), pool.acquire() as other:
            run.hits_session(victim)
            kind.end(victim)
            with run.sees(kind.ended):
                await task
            assert await run.waits(pool, 1.0) is None
            assert gone(pool.stats()) == {"broken": 1}
            await kind.identify(other)
        await run.recovered(pool, gone=(victim,))


# -- the server ----------------------------------------------------------------------------------


async def _restart(
    run: KindRun, kind: Kind, stop: Callable[[], None], error: type[BaseException]
) -> None:
    """Stop the server under an operation; one caller loses its patience, and one keeps it."""
    async with kind.create() as pool:
        await run.have_all(pool)
        async with kind.hanging(pool) as (task, _):
            run.hits_the_server()
            stopping = asyncio.create_task(anyio.to_thread.run_sync(stop))
            with run.sees(error):
                await task
            await stopping
        patient = asyncio.create_task(run.waits(pool, 10.0))
        await run.waits_in_vain(pool, 0.5, kind.refused)
        await anyio.to_thread.run_sync(kind.start)
        run.over()
        assert await patient is None
        await run.recovered(pool)


_PROBING = "drops all connections; one attempt to connect at a time, after pauses that double"


@faults(
    name="server stopped and started",
    sees="operation under way: {ended}, at once; `acquire`: waits until the server is back, or "
    "`PoolTimeout` (cause: {refused}) at its deadline",
    pool=_PROBING,
    hits="server pid",
    bound=3.0,
)
async def test_stopped_server_is_waited_out(run: KindRun, kind: Kind) -> None:
    """Only the operations under way are lost."""
    await _restart(run, kind, kind.stop, kind.ended)


@faults(
    name="server killed (`kill -9`) and started",
    sees="operation under way: {gone}, at once; `acquire`: waits until the server is back, or "
    "`PoolTimeout` (cause: {refused}) at its deadline",
    pool=_PROBING,
    hits="server pid",
    bound=3.0,
)
async def test_killed_server_is_waited_out(run: KindRun, kind: Kind) -> None:
    """It has no last word."""
    await _restart(run, kind, kind.server.kill, kind.gone)


@faults(
    "redis",
    name="server suspended (SIGSTOP)",
    sees="an operation: takes until the server goes on, or your own time limit is over; `acquire`: "
    "as well, or `PoolTimeout` (cause: `TimeoutError`) at its deadline",
    pool="gives each ping `ping_timeout` (1 s) and each connect `connect_timeout` (here 1 s), and "
    "tries again (here with `ping_after=0`)",
    hits="server pid",
    bound=3.0,
)
async def test_suspended_server_is_waited_out(run: KindRun, kind: Kind) -> None:
    """What was idle for a second is pinged first; what has hung is not used again."""
    async with kind.create(connect_timeout=1.0, ping_after=0) as pool:
        victims = await run.have_all(pool)
        run.hits_the_server()
        with stopped(kind.server.pid):
            await run.waits_in_vain(pool, 3.0, TimeoutError)
            patient = asyncio.create_task(run.waits(pool, 10.0))
        run.over()
        assert await patient is None
        await run.recovered(pool, gone=tuple(victims))


# -- between them --------------------------------------------------------------------------------


@faults(
    name="connecting refused; open connections ended",
    sees="`acquire`: waits, or `PoolTimeout` (cause: {refused}) at its deadline",
    pool="one attempt to connect at a time, after pauses that double",
    hits="port",
    bound=3.0,
)
async def test_refused_port_is_waited_out(run: KindRun, kind: Kind, proxy: Proxy) -> None:
    """As a server that is not there."""
    async with kind.create(proxy.through(kind.url())) as pool:
        victims = await run.have_all(pool)
        run.hits_port(proxy.port)
        proxy.refuse()
        kind.end(*victims)
        await until(lambda: pool.stats().idle == 0)
        patient = asyncio.create_task(run.waits(pool, 10.0))
        await run.waits_in_vain(pool, 0.5, kind.refused)
        proxy.accept_again()
        run.over()
        assert await patient is None
        await run.recovered(pool, gone=tuple(victims))


@faults(
    *("psycopg", "redis"),
    name="a connect that is never answered",
    sees="`acquire` when a new connection is needed: waits, or `PoolTimeout` (cause: "
    "`TimeoutError`) at its deadline; callers go on with the open connections",
    pool="gives up each attempt to connect after `connect_timeout` (here 1 s), and tries again",
    hits="port",
    bound=3.5,
)
async def test_unanswered_connect_delays_nobody_who_needs_none(
    run: KindRun, kind: Kind, proxy: Proxy
) -> None:
    """And is not waited for longer than its limit."""
    async with kind.create(proxy.through(kind.url()), connect_timeout=1.0) as pool:
        run.hits_port(proxy.port)
        proxy.hole_new()
        async with pool.acquire() as conn:
            await run.waits_in_vain(pool, 1.5, TimeoutError)
            waiter = asyncio.create_task(run.waits(pool, 5.0))
            await kind.identify(conn)
        assert await waiter is None
        proxy.pass_through()
        run.over()
        await run.recovered(pool)


async def _cut(
    run: KindRun, kind: Kind, proxy: Proxy, cut: Callable[[], None], error: type[BaseException]
) -> None:
    async with kind.create(proxy.through(kind.url())) as pool:
        victims = await run.have_all(pool)
        async with kind.hanging(pool) as (task, victim):
            run.hits_sockets(proxy)
            cut()
            with run.sees(error):
                await task
        assert await run.waits(pool, 1.0) is None
        await run.have_all(pool)
        run.is_normal()
        kind.end(victim)  # a server at work may not look at its socket
        await run.recovered(pool, gone=tuple(victims))


@faults(
    name="all connections reset (RST) by something in between",
    sees="operations under way: {reset}, at once",
    pool="{learns}: drops all of them, opens new ones",
    hits="open sockets",
    bound=1.0,
)
async def test_connections_that_are_reset_are_replaced(
    run: KindRun, kind: Kind, proxy: Proxy
) -> None:
    """No caller is given one of them."""
    await _cut(run, kind, proxy, proxy.reset_all, kind.reset)


@faults(
    name="all connections ended (FIN) by something in between",
    sees="operations under way: {cut}, at once",
    pool="{learns}: drops all of them, opens new ones",
    hits="open sockets",
    bound=1.0,
)
async def test_connections_that_are_ended_are_replaced(
    run: KindRun, kind: Kind, proxy: Proxy
) -> None:
    """No caller is given one of them."""
    await _cut(run, kind, proxy, proxy.fin_all, kind.cut)


@faults(
    name="idle connections cut without a word (packets vanish, but are acknowledged)",
    sees="the next `acquire`: takes up to `ping_timeout` (1 s) longer",
    pool="pings what was idle for `ping_after` (1 s); after one failure, all of them; cuts the dead",
    hits="open sockets",
    bound=3.5,
)
async def test_silent_idle_connections_are_found_by_a_ping(
    run: KindRun, kind: Kind, proxy: Proxy
) -> None:
    """All of them at the price of one ping, and nobody is given one."""
    async with kind.create(proxy.through(kind.url())) as pool:
        victims = await run.have_all(pool)
        run.hits_sockets(proxy)
        hole_old(proxy)
        last_heard = time.monotonic()
        await until(lambda: time.monotonic() > last_heard + 1.0)
        run.over()
        assert await run.waits(pool, 1.0 + stretched(AT_ONCE)) is None
        await until(lambda: gone(pool.stats()) == {"broken": SIZE}, 1.0 + stretched(AT_ONCE))
        await run.recovered(pool, gone=tuple(victims))


@faults(
    name="connection cut without a word, then its operation is cancelled",
    sees="the cancelled task: its cancellation, at once{others}",
    pool="{cuts}",
    hits="open sockets",
    bound=4.0,
)
async def test_silent_connection_of_a_cancelled_operation_costs_no_slot(
    run: KindRun, kind: Kind, proxy: Proxy
) -> None:
    """Even of a pool with only one."""
    async with kind.create(proxy.through(kind.url()), max_size=1) as pool:
        async with kind.hanging(pool) as (task, victim):
            run.hits_sockets(proxy)
            hole_old(proxy)
            task.cancel()
            await asyncio.wait([task], timeout=stretched(AT_ONCE))
            assert task.cancelled()
            patient = asyncio.create_task(run.waits(pool, 5.0 if kind.ends_cancelled else AT_ONCE))
            if kind.ends_cancelled:
                await run.waits_in_vain(pool, 0.5)
            assert await patient is None
        await run.recovered(pool, gone=(victim,))


# -- the server says no --------------------------------------------------------------------------

_FAILS_WAITERS = "fails all waiters at once, and newcomers; tries again, after pauses that double"


async def _is_refused(run: KindRun, kind: Kind, pool: Pool[Any], victims: list[int]) -> None:
    """End all connections; callers are told at once, again and again."""
    kind.end(*victims)
    await until(lambda: pool.stats().idle == 0)
    with run.sees(ConnectFailed, cause=kind.denied):
        async with pool.acquire(timeout=5.0):
            pass
    assert isinstance(await run.waits(pool, 1.0), ConnectFailed)


@faults(
    "psycopg",
    name="wrong password (SCRAM)",
    sees="`acquire`: `ConnectFailed` (cause: {denied}) at once, with no password in it",
    pool=_FAILS_WAITERS,
    bound=3.0,
)
async def test_wrong_password_of_psycopg_is_told_at_once(
    run: KindRun, kind: Psycopg, caplog: pytest.LogCaptureFixture
) -> None:
    """When it is right again, so is the pool."""
    server = kind.server
    server.query("CREATE ROLE needs_password")
    server.query("CREATE ROLE app LOGIN PASSWORD 'hunter2' IN ROLE needs_password")
    url = server.dsn(user="app", password="hunter2").replace("postgresql:", "postgresql+psycopg:")
    async with kind.create(url) as pool:
        victims = await run.have_all(pool)
        server.query("ALTER ROLE app PASSWORD 'changed'")
        run.hits_session(*victims)
        await _is_refused(run, kind, pool, victims)
        with pytest.raises(ConnectFailed) as caught:
            await pool.acquire()
        assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r} {caplog.text}"
        server.query("ALTER ROLE app PASSWORD 'hunter2'")
        run.over()
        await run.recovered(pool, gone=tuple(victims), patient=True)


@faults(
    "redis",
    name="wrong password",
    sees="`acquire`: `ConnectFailed` (cause: {denied}) at once, with no password in it",
    pool=_FAILS_WAITERS,
    bound=3.0,
)
async def test_wrong_password_of_redis_is_told_at_once(
    run: KindRun, kind: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """When it is right again, so is the pool."""
    client = kind.server.client
    client.config_set("requirepass", "hunter2")
    async with kind.create(kind.url().replace("//", "//:hunter2@")) as pool:
        victims = await run.have_all(pool)
        client.config_set("requirepass", "changed")
        run.hits_session(*victims)
        await _is_refused(run, kind, pool, victims)
        with pytest.raises(ConnectFailed) as caught:
            await pool.acquire()
        assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r} {caplog.text}"
        client.config_set("requirepass", "hunter2")
        run.over()
        await run.recovered(pool, gone=tuple(victims), patient=True)


@faults(
    *("psycopg", "redis"),
    name="{full} used up by others",
    sees="on an open connection: nothing; `acquire` when a new one is needed: waits for one to "
    "come back, or `PoolTimeout` (cause: {crowded}) at its deadline",
    pool="serves waiters with the connections it has; one attempt to connect at a time",
    bound=3.0,
)
async def test_full_server_is_waited_out_with_the_connections_there_are(
    run: KindRun, kind: Kind
) -> None:
    """Growing is what has to wait; the others are real connections, too."""
    async with kind.crowded_url() as url, kind.create(url, min_size=2) as pool:
        async with kind.crowd(url) as others:
            run.hits_session(*others)
            async with pool.acquire(), pool.acquire() as two:
                await run.waits_in_vain(pool, 0.5, kind.crowded)
                waiter = asyncio.create_task(run.waits(pool, 5.0))
                await kind.identify(two)
                pool.release(two)
                assert await waiter is None
        run.over()
        await run.recovered(pool)


@faults(
    "psycopg",
    name="`pg_cancel_backend`, statement under way",
    sees="that statement: `QueryCanceled`, at once; others: nothing",
    pool="nothing: the connection is as good as before",
    bound=1.0,
)
async def test_statement_that_the_server_cancels_costs_no_connection(
    run: KindRun, kind: Psycopg
) -> None:
    """It fails, and all connections stay."""
    async with kind.create() as pool:
        before = await run.have_all(pool)
        async with kind.hanging(pool) as (task, victim):
            run.hits_session(victim)
            kind.server.query("SELECT pg_cancel_backend($1)", victim)
            with run.sees(psycopg.errors.QueryCanceled):
                await task
        assert await run.waits(pool, 1.0) is None
        await run.recovered(pool)
        assert kind.sessions().keys() == set(before)


@faults(
    "psycopg",
    name="server suspended (SIGSTOP of the postmaster)",
    sees="on an open connection: nothing; `acquire` when a new one is needed: waits, or "
    "`PoolTimeout` (cause: `TimeoutError`) at its deadline",
    pool="gives up each attempt to connect after `connect_timeout` (here 1 s), and tries again",
    hits="server pid",
    bound=3.0,
)
async def test_suspended_postmaster_leaves_open_connections_at_work(
    run: KindRun, kind: Psycopg
) -> None:
    """Those who need no new one do not notice."""
    async with kind.create(min_size=2, connect_timeout=1.0) as pool:
        run.hits_the_server()
        async with pool.acquire() as one, pool.acquire() as two:
            with stopped(kind.server.pid):
                await run.waits_in_vain(pool, 1.5, TimeoutError)
                await kind.identify(two)
                pool.release(one)
                assert await run.waits(pool, 1.0) is None
        run.over()
        await run.recovered(pool)


@faults(
    "redis",
    name="server becomes a replica (failover)",
    sees="a command that writes: `ReadOnlyError`, at once; one that reads: nothing",
    pool="renews: replaces all connections, since they may lead to the wrong server",
    bound=1.0,
)
async def test_server_that_becomes_a_replica_renews_the_connections(
    run: KindRun, kind: Redis
) -> None:
    """The address may lead to another server by now."""
    async with kind.create() as pool:
        victims = await run.have_all(pool)
        run.hits_session(*victims)
        kind.server.client.replicaof(kind.server.host, free_port())
        with run.sees(redis.exceptions.ReadOnlyError):
            async with pool.acquire() as conn:
                assert await conn.get("key") is None
                await conn.set("key", "value")
        assert await run.waits(pool, 1.0) is None
        kind.server.client.replicaof("NO", "ONE")
        await run.recovered(pool, gone=tuple(victims))
        assert gone(pool.stats()) == {"stale": SIZE}
