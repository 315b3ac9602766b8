"""What goes on after a lease of asyncpg's, or is kept from it: the next user does not meet it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from poolkit import NotLeased
from poolkit.drivers.asyncpg import create_pool
from tests.drivers.asyncpg_help import (
    ENDLESS,
    LEVELS,
    LOOPS,
    leave_nothing,
    left_running,
    loop_is_told_only,
    nothing_is_lost,
    of_one,
    rows,
    running,
    states,
    until,
    until_true,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


# -- operations still under way ------------------------------------------------------------------


async def run_query(conn: asyncpg.Connection) -> None:
    """Be in a statement."""
    await conn.execute(ENDLESS)


async def run_fetch(conn: asyncpg.Connection) -> None:
    """Be in a query with arguments."""
    await conn.fetch("SELECT pg_sleep($1)", 600)


async def run_statement(conn: asyncpg.Connection) -> None:
    """Be in a prepared statement."""
    await (await conn.prepare("SELECT pg_sleep($1)")).fetch(600)


async def run_cursor(conn: asyncpg.Connection) -> None:
    """Be in the middle of a cursor."""
    async with conn.transaction():
        async for _ in conn.cursor(
            "SELECT x, pg_sleep(x) FROM (VALUES (0), (600)) v (x)", prefetch=1
        ):
            pass


async def run_awaited_cursor(conn: asyncpg.Connection) -> None:
    """Be in a cursor of the other kind."""
    async with conn.transaction():
        cursor = await conn.cursor("SELECT pg_sleep(600)")
        await cursor.fetch(1)


async def run_many(conn: asyncpg.Connection) -> None:
    """Be in the second of many."""
    await conn.executemany("SELECT pg_sleep($1)", [(0,), (600,)])


async def run_many_of_a_statement(conn: asyncpg.Connection) -> None:
    """Be in the second of many of a prepared statement."""
    await (await conn.prepare("SELECT pg_sleep($1)")).executemany([(0,), (600,)])


async def run_transaction(conn: asyncpg.Connection) -> None:
    """Be in a transaction within a transaction."""
    async with conn.transaction(), conn.transaction():
        await conn.execute("INSERT INTO t VALUES (1)")
        await conn.execute(ENDLESS)


async def run_copy_out(conn: asyncpg.Connection) -> None:
    """Be in a COPY that has nothing to give yet."""
    await conn.copy_from_query(ENDLESS, output=swallow)


async def swallow(data: bytes) -> None:
    """Take what comes."""


class Stuck:
    """The client's end of a COPY, in the middle of which it waits."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    async def stop(self) -> None:
        """Wait here."""
        self.reached.set()
        await self.go.wait()

    async def lines(self) -> AsyncIterator[bytes]:
        """Give a line, wait, and give another."""
        yield b"1\n"
        await self.stop()
        yield b"2\n"

    async def records(self) -> AsyncIterator[tuple[int]]:
        """Give a record, wait, and give another."""
        yield (1,)
        await self.stop()
        yield (2,)

    async def copy_out(self, conn: asyncpg.Connection) -> None:
        """Be told much."""
        much = "SELECT repeat('x', 1000), generate_series(1, 10000000)"
        await conn.copy_from_query(much, output=lambda _: self.stop())

    async def copy_in(self, conn: asyncpg.Connection) -> None:
        """Tell lines."""
        await conn.copy_to_table("t", source=self.lines())

    async def copy_in_records(self, conn: asyncpg.Connection) -> None:
        """Tell records."""
        await conn.copy_records_to_table("t", records=self.records())


SLEEPS = [
    (run_query, ENDLESS),
    (run_fetch, "SELECT pg_sleep($1)"),
    (run_statement, "SELECT pg_sleep($1)"),
    (run_cursor, "SELECT x, pg_sleep"),
    (run_awaited_cursor, "SELECT pg_sleep(600)"),
    (run_many, "SELECT pg_sleep($1)"),
    (run_many_of_a_statement, "SELECT pg_sleep($1)"),
    (run_transaction, ENDLESS),
    (run_copy_out, "COPY"),
]


@pytest.mark.parametrize("level", ["full", "transaction", leave_nothing])
@pytest.mark.parametrize(("run", "text"), SLEEPS)
async def test_operation_under_way_at_release_is_cancelled(
    dsn: str, outside: asyncpg.Connection, level: Any, run: Any, text: str
) -> None:
    """On the server, and waited for: the next user has the same session, and it is idle."""
    async with of_one(dsn, reset=level) as pool:
        async with contextlib.AsyncExitStack() as stack:
            async with pool.acquire() as conn:
                task = await stack.enter_async_context(left_running(lambda: run(conn)))
                pid = await running(outside, text)
            async with pool.acquire() as conn:
                assert conn.get_server_pid() == pid
                assert (await states(outside))[pid] == "idle"
                await until(task.done)
                error = task.exception()
                while not isinstance(error, asyncpg.QueryCanceledError):
                    assert "released back to the pool" in str(error)
                    assert error is not None
                    error = error.__context__
                assert await conn.fetchval("SELECT 17") == 17
        await nothing_is_lost(pool, outside)
        assert await rows(outside) == []


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("way", "waits_for"),
    [
        (Stuck.copy_out, "ClientWrite"),
        (Stuck.copy_in, "ClientRead"),
        (Stuck.copy_in_records, "ClientRead"),
    ],
)
async def test_copy_that_is_stuck_at_release_costs_the_connection(
    dsn: str, outside: asyncpg.Connection, level: Any, way: Any, waits_for: str
) -> None:
    """The server waits for the client's end and heeds no cancellation; the next user has another."""
    # asyncpg forgets that the server's end had an error to tell.
    with loop_is_told_only("connection was closed in the middle of operation"):
        await _leave_stuck(dsn, outside, level, way, waits_for, contextlib.nullcontext())


@pytest.mark.parametrize("level", LEVELS)
async def test_copy_whose_end_on_the_server_is_cancelled_costs_the_connection(
    dsn: str, outside: asyncpg.Connection, level: Any
) -> None:
    """The client's end may go on whatever the server is told, so the next user has another."""
    with loop_is_told_only("canceling statement due to user request") as told:
        # A wait for a lock is one that the server does end.
        await _leave_stuck(dsn, outside, level, Stuck.copy_in, "relation", _locked(dsn))
    assert told


async def _leave_stuck(
    dsn: str,
    outside: asyncpg.Connection,
    level: Any,
    way: Any,
    waits_for: str,
    meanwhile: contextlib.AbstractAsyncContextManager[None],
) -> None:
    """Release in the middle of a COPY, and let its client's end go on under the next lease.

    ``waits_for``: what its server's end waits for when the lease ends.
    """
    stuck = Stuck()
    async with of_one(dsn, reset=level, reset_timeout=0.2) as pool:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(meanwhile)
            async with pool.acquire() as conn:
                task = await stack.enter_async_context(left_running(lambda: way(stuck, conn)))
                await stuck.reached.wait()
                pid = await running(outside, "COPY", asleep=False)
                ask = "SELECT wait_event = $2 FROM pg_stat_activity WHERE pid = $1"
                await until_true(lambda: outside.fetchval(ask, pid, waits_for))
            async with pool.acquire() as conn:
                assert conn.get_server_pid() != pid
                stuck.go.set()
                await until(task.done)
                assert isinstance(task.exception(), Exception)
                assert await conn.fetchval("SELECT 17") == 17
        await nothing_is_lost(pool, outside)
        assert await rows(outside) == []


@contextlib.asynccontextmanager
async def _locked(dsn: str) -> AsyncIterator[None]:
    """Have the table locked by somebody else."""
    other = await asyncpg.connect(dsn)
    try:
        await other.execute("BEGIN; LOCK TABLE t")
        yield
    finally:
        await other.close()


@pytest.mark.parametrize("level", ["full", "transaction"])
async def test_late_answers_never_reach_the_next_user(dsn: str, level: str) -> None:
    """However the end of a child's query and the release fall together."""
    async with of_one(dsn, reset=level) as pool:
        for turn in range(60):
            async with contextlib.AsyncExitStack() as stack:
                async with pool.acquire() as conn:
                    query = f"SELECT 'other', pg_sleep({turn % 6 * 0.0005})"
                    await stack.enter_async_context(left_running(lambda: conn.fetch(query)))  # noqa: B023  # awaited within the turn
                    for _ in range(turn % 5):
                        await asyncio.sleep(0)
                async with pool.acquire() as conn:
                    assert await conn.fetchval("SELECT $1::int", turn) == turn
                    assert await conn.fetchval("SELECT 'mine'") == "mine"


async def test_flood_under_way_at_release_is_ended(dsn: str, outside: asyncpg.Connection) -> None:
    """Of many rows to a server that reads none of them, because it waits for a lock."""
    async with of_one(dsn) as pool:
        async with contextlib.AsyncExitStack() as stack, outside.transaction():
            await outside.execute("LOCK TABLE t")
            async with pool.acquire() as conn:
                many = [(i,) for i in range(1_000_000)]
                flood = lambda: conn.executemany("INSERT INTO t VALUES ($1)", many)  # noqa: E731
                await stack.enter_async_context(left_running(flood))
                await until_true(
                    lambda: outside.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
                )
            async with pool.acquire() as conn:
                assert await conn.fetchval("SELECT 17") == 17
        await nothing_is_lost(pool, outside)
        assert await rows(outside) == []


# -- asyncpg's own time limits -------------------------------------------------------------------


@pytest.mark.parametrize("caught", [True, False])
@pytest.mark.parametrize("level", LEVELS)
async def test_query_past_its_own_time_limit_costs_nothing(
    dsn: str, outside: asyncpg.Connection, level: Any, caught: bool
) -> None:
    """Whether the lease goes on or ends with it: the query is cancelled, the session goes on."""
    async with of_one(dsn, reset=level) as pool:
        with contextlib.suppress(TimeoutError):
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                if caught:
                    with pytest.raises(TimeoutError):
                        await conn.execute(ENDLESS, timeout=0.01)
                else:
                    await conn.execute(ENDLESS, timeout=0.01)
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert (await states(outside))[pid] == "idle"
            assert await conn.fetchval("SELECT 17") == 17
        await nothing_is_lost(pool, outside)


async def test_time_limit_of_all_commands_costs_nothing(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """In a transaction, so that the reset has something to roll back."""
    async with of_one(dsn, reset_timeout=20, connect_kwargs={"command_timeout": 3}) as pool:
        with pytest.raises(TimeoutError):
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                await conn.execute("BEGIN")
                await conn.execute(ENDLESS)
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert (await states(outside))[pid] == "idle"
        await nothing_is_lost(pool, outside)


# -- objects kept past release -------------------------------------------------------------------

SECRET = "SELECT current_setting('my.secret', true)"


@pytest.mark.parametrize("level", ["full", "none"])
async def test_objects_kept_past_release_are_dead(dsn: str, level: str) -> None:
    """Statements, transactions and cursors of all kinds; the next user's session is not theirs."""
    async with of_one(dsn, reset=level) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            statement = await conn.prepare(SECRET)
            transaction, unbegun = conn.transaction(), conn.transaction()
            await transaction.start()
            iterator = conn.cursor(SECRET).__aiter__()
            assert [row async for row in conn.cursor(SECRET)]
            cursor = await conn.cursor(SECRET)
            unused = conn.cursor(SECRET)
            of_statement = statement.cursor()
            method = conn.fetchval
        async with pool.acquire() as other:
            assert other.get_server_pid() == pid
            await other.execute("BEGIN")
            await other.execute("INSERT INTO t VALUES (1)")
            await other.execute("SET LOCAL my.secret = 'hidden'")
            uses: list[Callable[[], Any]] = [
                statement.fetchval,
                statement.fetch,
                lambda: statement.executemany([()]),
                transaction.commit,
                transaction.rollback,
                unbegun.start,
                unbegun.__aenter__,
                iterator.__anext__,
                lambda: cursor.fetch(1),
                lambda: cursor.forward(1),
                lambda: unused,
                lambda: anext(unused.__aiter__()),
                lambda: of_statement,
            ]
            for use in uses:
                with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                    await use()
            with pytest.raises(NotLeased):
                await method(SECRET)
            with pytest.raises(NotLeased):
                await conn.fetchval(SECRET)
            assert await other.fetchval(SECRET) == "hidden"
            assert other.is_in_transaction()
            await other.execute("ROLLBACK")


async def begin_and_yield(conn: asyncpg.Connection) -> AsyncIterator[int]:
    """Hold a transaction while somebody reads, as generators of rows do."""
    async with conn.transaction():
        yield 1


@pytest.mark.parametrize("level", ["full", "none"])
@pytest.mark.parametrize("how", ["closed", "collected", "thrown into"])
async def test_generator_finalised_late_leaves_the_next_user_alone(
    dsn: str, outside: asyncpg.Connection, level: str, how: str
) -> None:
    """Its transaction has been rolled back; the next user's is not."""
    async with of_one(dsn, reset=level) as pool:
        async with pool.acquire() as conn:
            read: Any = begin_and_yield(conn)
            await anext(read)
        async with pool.acquire() as conn, conn.transaction():
            await conn.execute("INSERT INTO t VALUES (2)")
            if how == "closed":
                await read.aclose()
            elif how == "thrown into":
                with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                    await read.athrow(ValueError)
            read = None
            gc.collect()
            for _ in range(5):
                await asyncio.sleep(0)
            assert await conn.fetchval("SELECT 17") == 17
        assert await rows(outside) == [2]


@pytest.mark.parametrize("level", LEVELS)
async def test_child_that_goes_on_after_release_is_told(
    dsn: str, outside: asyncpg.Connection, level: Any
) -> None:
    """A task in the middle of a transaction, between two statements, cannot go on with it."""
    go = asyncio.Event()

    async def work(conn: asyncpg.Connection) -> None:
        async with conn.transaction():
            await conn.execute("INSERT INTO t VALUES (1)")
            begun.set()
            await go.wait()

    begun = asyncio.Event()
    async with create_pool(dsn, max_size=1, reset=level) as pool:
        async with contextlib.AsyncExitStack() as stack:
            async with pool.acquire() as conn:
                task = await stack.enter_async_context(left_running(lambda: work(conn)))
                await begun.wait()
            async with pool.acquire() as conn, conn.transaction():
                await conn.execute("INSERT INTO t VALUES (2)")
                go.set()
                await until(task.done)
                assert isinstance(task.exception(), asyncpg.InterfaceError)
        assert await rows(outside) == [2]
