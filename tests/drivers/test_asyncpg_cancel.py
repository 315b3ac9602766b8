"""Cancellation at every point of a lease: the next user of the slot finds a clean, idle session."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import asyncpg
import pytest
from anyio import wait_all_tasks_blocked
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse

import poolkit.fastapi
from poolkit import Pool
from poolkit.drivers.asyncpg import create_pool
from tests.drivers.asyncpg_help import (
    ENDLESS,
    LOOPS,
    PATIENCE,
    left_running,
    nothing_is_lost,
    of_one,
    quiet,
    rows,
    running,
    states,
    until,
    until_true,
)
from tests.fakes import gone
from tests.integrations.live import serve
from tests.proxy import Proxy

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from tests.drivers.asyncpg_help import Pooled
    from tests.postgres import Postgres


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


# -- ways to be cancelled ------------------------------------------------------------------------


class Task:
    """Work in a task that is cancelled once, from outside, as asyncio does it."""

    def __init__(self, work: Callable[[], Awaitable[object]]) -> None:
        async def run() -> None:
            await self.run(work)

        self._task = asyncio.create_task(run())
        self.begin()

    def begin(self) -> None:
        """Prepare what cancels."""

    async def run(self, work: Callable[[], Awaitable[object]]) -> None:
        """Work."""
        await work()

    def cancel(self) -> None:
        """Cancel it now."""
        self._task.cancel()

    async def end(self) -> None:
        """Wait for its end, which has to be that of a cancelled task."""
        await asyncio.wait([self._task], timeout=PATIENCE)
        assert self._task.done()
        with pytest.raises((asyncio.CancelledError, TimeoutError)):
            self._task.result()


class Scope(Task):
    """Work in a scope of anyio's, which cancels again at every await."""

    def begin(self) -> None:
        """Prepare what cancels."""
        self._scope = anyio.CancelScope()

    async def run(self, work: Callable[[], Awaitable[object]]) -> None:
        """Work."""
        with self._scope:
            await work()
        assert self._scope.cancelled_caught
        raise TimeoutError

    def cancel(self) -> None:
        """Cancel it now."""
        self._scope.cancel()


class Timeout(Task):
    """Work in a time limit of asyncio's, which passes when the test says so."""

    def begin(self) -> None:
        """Prepare what cancels."""
        self._limit = asyncio.timeout(None)

    async def run(self, work: Callable[[], Awaitable[object]]) -> None:
        """Work."""
        async with self._limit:
            await work()

    def cancel(self) -> None:
        """Cancel it now."""
        self._limit.reschedule(asyncio.get_running_loop().time())


# -- kinds of leases -----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def acquired(pool: Pooled) -> AsyncIterator[Any]:
    """Hold a connection, and a transaction of asyncpg's."""
    async with pool.acquire() as conn, conn.transaction():
        yield conn


@contextlib.asynccontextmanager
async def awaited(pool: Pooled) -> AsyncIterator[Any]:
    """Hold a connection by hand, and a transaction of poolkit's."""
    conn = await pool.acquire()
    try:
        async with poolkit.transaction(conn):
            yield conn
    finally:
        pool.release(conn)


def transaction(pool: Pooled) -> Any:
    """Hold a transaction of the pool's."""
    return pool.transaction()


KINDS = [acquired, awaited, transaction]
#: Each kind with the two that differ: cancelled once, or again and again.
PAIRS = [
    pytest.param(kind, way, id=f"{kind.__name__}-{way.__name__}")
    for kind, *ways in (
        (acquired, Task, Scope),
        (awaited, Timeout, Scope),
        (transaction, Task, Scope),
    )
    for way in ways
]


# -- points --------------------------------------------------------------------------------------


async def query(conn: Any) -> None:
    """Be in a statement."""
    await conn.execute(ENDLESS)


async def fetch(conn: Any) -> None:
    """Be in a query with arguments."""
    await conn.fetch("SELECT pg_sleep($1)", 600)


async def statement(conn: Any) -> None:
    """Be in a prepared statement."""
    await (await conn.prepare("SELECT pg_sleep($1)")).fetchval(600)


async def cursor(conn: Any) -> None:
    """Be in the middle of a cursor."""
    sql = "SELECT x, pg_sleep(x) FROM (VALUES (0), (600)) v (x)"
    async for _ in conn.cursor(sql, prefetch=1):
        pass


async def many(conn: Any) -> None:
    """Be in the second of many."""
    await conn.executemany("SELECT pg_sleep($1)", [(0,), (600,)])


async def savepoint(conn: Any) -> None:
    """Be in a transaction of asyncpg's, within two others."""
    async with conn.transaction():
        await conn.execute("INSERT INTO t VALUES (2)")
        async with conn.transaction():
            await conn.execute(ENDLESS)


async def nested(conn: Any) -> None:
    """Be in a transaction of poolkit's, within another."""
    async with poolkit.transaction(conn):
        await conn.execute(ENDLESS)


async def lock(conn: Any) -> None:
    """Hold locks of rows."""
    await conn.execute("SELECT pg_sleep(600) FROM t FOR UPDATE")


async def copy_out(conn: Any) -> None:
    """Be told much."""

    async def take(data: bytes) -> None:
        raise AssertionError("there is nothing to take")

    await conn.copy_from_query(ENDLESS, output=take)


async def commit(conn: Any) -> None:
    """Be in the COMMIT."""
    await conn.execute("INSERT INTO slow VALUES (1)")  # which takes its time at COMMIT


POINTS = [
    (query, ENDLESS),
    (fetch, "SELECT pg_sleep($1)"),
    (statement, "SELECT pg_sleep($1)"),
    (cursor, "SELECT x, pg_sleep"),
    (many, "SELECT pg_sleep($1)"),
    (savepoint, ENDLESS),
    (nested, ENDLESS),
    (lock, "SELECT pg_sleep(600) FROM t"),
    (copy_out, "COPY"),
    (commit, "%COMMIT;"),  # with the reset, or without
]
SLOW = """
    CREATE TABLE IF NOT EXISTS slow (x int);
    CREATE OR REPLACE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(600); RETURN NULL; END $$;
    DROP TRIGGER IF EXISTS slowly ON slow;
    CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON slow
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slowly();
"""


async def next_user_is_well(pool: Pooled, outside: asyncpg.Connection, pid: int | None) -> None:
    """Check that the slot is there, with a clean session: this one, if one is named.

    Then its reset has not been given up, as it would be after ``reset_timeout``.
    """
    async with pool.acquire(timeout=PATIENCE) as conn:
        assert pid in (None, conn.get_server_pid())
        assert not conn.is_in_transaction()
        assert await states(outside) == {conn.get_server_pid(): "idle"}
        locks = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass"
        assert await outside.fetchval(locks) == 0
        async with conn.transaction():
            assert await conn.fetchval("SELECT $1::int", 17) == 17
    assert await rows(outside) == []
    await nothing_is_lost(pool, outside)
    stats = pool.stats()
    assert (stats.size, stats.timed_out, stats.failed) == (1, 0, 0)


@pytest.mark.parametrize(("kind", "way"), PAIRS)
@pytest.mark.parametrize(("point", "text"), POINTS)
async def test_cancelled_statement_leaves_a_clean_session(
    dsn: str, outside: asyncpg.Connection, point: Any, text: str, kind: Any, way: type[Task]
) -> None:
    """The query is cancelled on the server, and the session is used again."""
    if point is commit:
        await outside.execute(SLOW)
    async with of_one(dsn) as pool:

        async def work() -> None:
            async with kind(pool) as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
                await point(conn)

        task = way(work)
        pid = await running(outside, text)
        task.cancel()
        await task.end()
        await next_user_is_well(pool, outside, pid)


@pytest.mark.parametrize("level", ["full", "transaction", "none"])
@pytest.mark.parametrize("way", [Task, Scope, Timeout])
async def test_cancelled_copy_from_the_client_leaves_a_clean_session(
    dsn: str, outside: asyncpg.Connection, way: type[Task], level: Any
) -> None:
    """It ends in the middle; nothing of it is there."""

    async def lines() -> AsyncIterator[bytes]:
        """Give a line, wait, and give another."""
        yield b"1\n" * 10_000
        reached.set()
        await asyncio.Event().wait()

    reached = asyncio.Event()
    async with of_one(dsn, reset=level) as pool:

        async def work() -> None:
            async with pool.acquire() as conn:
                await conn.copy_to_table("t", source=lines())

        task = way(work)
        await reached.wait()
        pid = await running(outside, "COPY", asleep=False)
        task.cancel()
        await task.end()
        await next_user_is_well(pool, outside, pid)


@pytest.mark.parametrize("level", ["full", "transaction", "none"])
@pytest.mark.parametrize("way", [Task, Scope, Timeout])
async def test_cancelled_copy_to_the_client_leaves_a_clean_session(
    dsn: str, outside: asyncpg.Connection, way: type[Task], level: Any
) -> None:
    """Its reader is slow, and much is still to come."""

    async def take(_: bytes) -> None:
        reached.set()
        await asyncio.Event().wait()

    reached = asyncio.Event()
    async with of_one(dsn, reset=level) as pool:

        async def work() -> None:
            async with pool.acquire() as conn:
                much = "SELECT repeat('x', 1000), generate_series(1, 10000000)"
                await conn.copy_from_query(much, output=take)

        task = way(work)
        await reached.wait()
        pid = await running(outside, "COPY", asleep=False)
        task.cancel()
        await task.end()
        await next_user_is_well(pool, outside, pid)


@pytest.mark.parametrize("level", ["full", "transaction", "none"])
@pytest.mark.parametrize(("kind", "way"), PAIRS)
async def test_cancelled_begin_leaves_a_clean_session(
    postgres: Postgres,
    dsn: str,
    outside: asyncpg.Connection,
    kind: Any,
    way: type[Task],
    level: Any,
) -> None:
    """It is on its way, and takes effect after the cancellation."""
    with Proxy(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn), reset=level) as pool:
            ((pid, _),) = (await states(outside)).items()

            async def work() -> None:
                async with kind(pool):
                    raise AssertionError("begun")

            proxy.hold()
            task = way(work)
            await wait_all_tasks_blocked()
            assert pool.stats().leased == 1
            task.cancel()
            await wait_all_tasks_blocked()
            proxy.pass_through()
            await task.end()
            await next_user_is_well(pool, outside, pid)


@pytest.mark.parametrize("way", [Task, Scope, Timeout])
@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_commit_on_its_way_leaves_a_clean_session(
    postgres: Postgres, dsn: str, outside: asyncpg.Connection, kind: Any, way: type[Task]
) -> None:
    """Nobody can tell whether it took effect; the next user does not have to care."""
    with Proxy(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn)) as pool:
            ((pid, _),) = (await states(outside)).items()

            async def work() -> None:
                async with kind(pool) as conn:
                    await conn.execute("INSERT INTO t VALUES (1)")
                    proxy.hold()

            task = way(work)
            await until_true(lambda: outside.fetchval(IN_TRANSACTION, pid))
            await wait_all_tasks_blocked()
            assert pool.stats().leased == 1
            task.cancel()
            await wait_all_tasks_blocked()
            proxy.pass_through()
            await task.end()
            await quiet(pool)
            assert await rows(outside) in ([], [1])
            await outside.execute("TRUNCATE t")
            await next_user_is_well(pool, outside, pid)


IN_TRANSACTION = """
    SELECT 1 FROM pg_stat_activity
    WHERE pid = $1 AND state = 'idle in transaction' AND query LIKE 'INSERT%'
"""


@pytest.mark.parametrize("way", [Task, Scope, Timeout])
@pytest.mark.parametrize("kind", KINDS)
async def test_transaction_cancelled_between_statements_is_rolled_back(
    dsn: str, outside: asyncpg.Connection, kind: Any, way: type[Task]
) -> None:
    """Nothing is under way then."""
    reached = asyncio.Event()
    async with of_one(dsn) as pool:

        async def work() -> None:
            async with kind(pool) as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
                reached.set()
                await asyncio.Event().wait()

        task = way(work)
        await reached.wait()
        ((pid, state),) = (await states(outside)).items()
        assert state == "idle in transaction"
        task.cancel()
        await task.end()
        await next_user_is_well(pool, outside, pid)


@pytest.mark.parametrize("way", [Task, Scope, Timeout])
@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_acquire_owns_nothing(
    dsn: str, outside: asyncpg.Connection, kind: Any, way: type[Task]
) -> None:
    """A place in the queue is all it had."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()

            async def work() -> None:
                async with kind(pool):
                    raise AssertionError("served")

            tasks = [way(work) for _ in range(3)]
            await until(lambda: pool.stats().waiting == 3)
            for task in tasks:
                task.cancel()
                await task.end()
            assert pool.stats().waiting == 0
            assert pool.stats().cancelled == 3
        await next_user_is_well(pool, outside, pid)


async def test_cancelled_connect_goes_on_for_the_next(
    postgres: Postgres, dsn: str, outside: asyncpg.Connection
) -> None:
    """Who wanted it first has gone."""
    with Proxy(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn), min_size=0) as pool:
            proxy.hold()
            task = Task(lambda: pool.acquire().__aenter__())
            await until(lambda: pool.stats().connecting == 1)
            task.cancel()
            await task.end()
            proxy.pass_through()
            await next_user_is_well(pool, outside, None)
            assert pool.stats().connected == 1


async def test_cancelled_child_query_in_a_lease_that_goes_on_costs_nothing(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """The lease uses the session again by itself; the release resets it."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(conn.execute, ENDLESS)
                    assert await running(outside, ENDLESS) == pid
                    scope.cancel()
            assert await conn.fetchval("SELECT 17") == 17
        await next_user_is_well(pool, outside, pid)


class Overtaken(Proxy):
    """Holds what its first client sends, so that what later ones send overtakes it."""

    _held: asyncio.Event | None = None

    def hold_first(self) -> None:
        """Hold from now on."""

        async def change() -> None:
            self._held = asyncio.Event()

        self._do(change)

    def deliver(self) -> None:
        """Deliver what was held."""

        async def change() -> None:
            assert self._held is not None
            self._held.set()

        self._do(change)

    async def _received(self, source: socket.socket) -> bytes:
        data = await super()._received(source)
        if self._held is not None and source is self._links[0].client:
            await self._held.wait()
        return data


@pytest.mark.parametrize("is_left_running", [True, False], ids=["left running", "cancelled"])
async def test_cancellation_that_overtakes_its_statement_is_repeated(
    postgres: Postgres, dsn: str, outside: asyncpg.Connection, *, is_left_running: bool
) -> None:
    """The server forgets the first request, which comes before there is anything to cancel."""
    with Overtaken(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn), reset_timeout=PATIENCE) as pool:
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                proxy.hold_first()
                task = asyncio.create_task(conn.execute(ENDLESS))
                await wait_all_tasks_blocked()
                if not is_left_running:
                    task.cancel()
                    await asyncio.wait([task])
            await until(lambda: len(proxy.links) > 1 and proxy.links[1].end)
            proxy.deliver()
            await next_user_is_well(pool, outside, pid)
            await asyncio.wait([task])
            error = asyncpg.QueryCanceledError if is_left_running else asyncio.CancelledError
            with pytest.raises(error):
                task.result()


async def test_statement_under_way_in_another_task_at_release_is_ended(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """A prepared statement runs outside of the view: only asyncpg knows that it does."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            await conn.execute("SET application_name = 'mine'")
            statement = await conn.prepare(ENDLESS)
            task = asyncio.create_task(statement.fetch())
            assert await running(outside, ENDLESS) == pid
        with pytest.raises(asyncpg.QueryCanceledError):
            await task
        async with pool.acquire() as conn:
            assert await conn.fetchval("SHOW application_name") != "mine"
        await next_user_is_well(pool, outside, pid)


async def test_many_cancelled_at_every_moment_leave_clean_sessions(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Also at those for which there is no gate; no user meets what another has left."""
    async with create_pool(dsn, max_size=4) as pool:

        async def work(turn: int) -> None:
            async with pool.transaction() if turn % 2 else acquired(pool) as conn:
                assert await conn.fetchval("SELECT $1::int", turn) == turn
                await conn.execute("INSERT INTO t VALUES (1)")
                assert await conn.fetchval("SELECT $1::int + 1", turn) == turn + 1
                raise LookupError

        async def use(turn: int) -> None:
            kind = (Task, Scope, Timeout)[turn % 3]
            task = kind(lambda: work(turn))
            for _ in range(1 + turn % 23):
                await asyncio.sleep(0)
            if not task._task.done():
                task.cancel()
            with pytest.raises((asyncio.CancelledError, TimeoutError, LookupError)):
                await task._task

        async with asyncio.TaskGroup() as group:
            for turn in range(200):
                group.create_task(use(turn))
                if turn % 10 == 9:
                    await asyncio.sleep(0.003)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                conn = await stack.enter_async_context(pool.acquire())
                assert not conn.is_in_transaction()
        await nothing_is_lost(pool, outside)
        assert await rows(outside) == []
        assert gone(pool.stats()) == {}


# -- a network that is gone ----------------------------------------------------------------------


@pytest.mark.parametrize("way", [Task, Scope, Timeout])
@pytest.mark.parametrize("kind", [Pool.acquire, awaited, transaction])
async def test_black_hole_after_a_cancelled_query_costs_a_bounded_time(
    postgres: Postgres, dsn: str, outside: asyncpg.Connection, kind: Any, way: type[Task]
) -> None:
    """The reset is given up at its limit, and the slot is had again.

    (A transaction of asyncpg's own would wait for its ROLLBACK, in the caller's task, without end.)
    """
    with Proxy(postgres.host, postgres.port) as proxy:
        async with of_one(
            proxy.through(dsn), reset_timeout=0.2, connect_timeout=0.2, backoff_min=0.01
        ) as pool:

            async def work() -> None:
                async with kind(pool) as conn:
                    await conn.execute(ENDLESS)

            task = way(work)
            pid = await running(outside, ENDLESS)
            proxy.hole()
            task.cancel()
            await task.end()
            await until(lambda: gone(pool.stats()) == {"broken": 1})
            proxy.pass_through()
            async with pool.acquire(timeout=PATIENCE) as conn:
                assert conn.get_server_pid() != pid
                assert await conn.fetchval("SELECT 17") == 17
            await outside.execute("SELECT pg_terminate_backend($1)", pid)
            await nothing_is_lost(pool, outside)


async def test_black_hole_after_a_cancelled_query_costs_asyncpgs_own_pool_its_slot(
    postgres: Postgres, dsn: str, outside: asyncpg.Connection
) -> None:
    """For good, although the network is there again: it is what the other test compares with."""
    with Proxy(postgres.host, postgres.port) as proxy:
        pool = await asyncpg.create_pool(proxy.through(dsn), min_size=1, max_size=1)
        try:

            async def work() -> None:
                async with pool.acquire() as conn:
                    await conn.execute(ENDLESS)

            async with left_running(work) as task:
                pid = await running(outside, ENDLESS)
                proxy.hole()
                task.cancel()
                await wait_all_tasks_blocked()
                proxy.pass_through()
                with pytest.raises(TimeoutError):
                    await pool.acquire(timeout=0.5)
                assert not task.done()
                await outside.execute("SELECT pg_terminate_backend($1)", pid)
                pool.terminate()
        finally:
            pool.terminate()


# -- clients that vanish -------------------------------------------------------------------------


def make_app(pool: Pooled) -> FastAPI:
    """Return an application whose endpoints are at work until somebody ends them."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/stream")
    async def stream(pool: Annotated[Any, Depends(poolkit.fastapi.pool)]) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
                yield b"first\n"
                await conn.execute(ENDLESS)

        return StreamingResponse(lines())

    @app.get("/locked")
    async def locked(conn: poolkit.fastapi.Transaction[Any]) -> None:
        await conn.execute("INSERT INTO t VALUES (1)")
        await conn.execute("SELECT pg_advisory_xact_lock(17)")

    return app


async def test_client_that_leaves_a_stream_in_mid_query_leaves_a_clean_session(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Its query is cancelled on the server, and its transaction rolled back."""
    pool = of_one(dsn)
    async with serve(make_app(pool)) as client:
        async with client.cut("/stream") as reader:
            await reader.readuntil(b"first\n")
            pid = await running(outside, ENDLESS)
        await next_user_is_well(pool, outside, pid)


async def test_client_that_leaves_a_plain_request_has_it_done_nevertheless(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """FastAPI goes on to the end: it commits, and gives back."""
    pool = of_one(dsn)
    async with serve(make_app(pool)) as client:
        await outside.execute("SELECT pg_advisory_lock(17)")
        async with client.cut("/locked"):
            pid = await running(outside, "SELECT pg_advisory_xact_lock", asleep=False)
        assert pool.stats().leased == 1
        await outside.execute("SELECT pg_advisory_unlock(17)")
        await until(lambda: pool.stats().leased == 0)
        assert await rows(outside) == [1]
        await outside.execute("TRUNCATE t")
        await next_user_is_well(pool, outside, pid)
