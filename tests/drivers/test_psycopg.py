"""psycopg's driver on a real server: cancellation, what was made in a lease, transactions, loss."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg
import psycopg
import pytest

import poolkit
from poolkit import NotLeased, PoolConfigError, TransactionEnded
from poolkit.testing import check_pool
from tests.drivers.asyncpg_help import (
    LOOPS,
    CountingProxy,
    last_query,
    loop_is_told_only,
    quiet,
    rows,
    running,
    states,
    until,
    until_true,
    warnings_in,
)
from tests.drivers.psycopg_help import of_one
from tests.drivers.psycopg_kinds import value
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.postgres import Postgres

    Act = Callable[[Any], Awaitable[object]]

ENDLESS = "SELECT pg_sleep(600)"
OVER = "the lease is over: this was made from a connection that was given back to its pool"


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: psycopg knows no others."""
    return request.param


async def insert(conn: Any) -> None:
    """Write something."""
    await conn.execute("INSERT INTO t VALUES (1)")


# -- cancellation --------------------------------------------------------------------------------


async def execute(conn: Any) -> None:
    """Run for ever."""
    await conn.execute(ENDLESS)


async def by_cursor(conn: Any) -> None:
    """Run for ever in a cursor, with parameters and a statement that is prepared."""
    await conn.cursor().execute("SELECT pg_sleep(%s)", (600,), prepare=True)


async def stream(conn: Any) -> None:
    """Wait for rows for ever."""
    async for _ in conn.cursor().stream(ENDLESS):
        pass


async def copy_out(conn: Any) -> None:
    """Wait for a COPY for ever."""
    async with conn.cursor().copy(f"COPY ({ENDLESS}) TO STDOUT") as copy:
        async for _ in copy:
            pass


async def many(conn: Any) -> None:
    """Wait in a pipeline of psycopg's own."""
    await conn.cursor().executemany("SELECT pg_sleep(%s)", [(600,), (600,)])


async def pipeline(conn: Any) -> None:
    """Wait in a pipeline."""
    async with conn.pipeline():
        await conn.execute(ENDLESS)
        await conn.execute(ENDLESS)


async def nested(conn: Any) -> None:
    """Wait inside of a transaction of psycopg's."""
    async with conn.transaction():
        await insert(conn)
        await conn.execute(ENDLESS)


OPERATIONS: list[Act] = [execute, by_cursor, stream, copy_out, many, pipeline, nested]


async def test_cancelled_pipeline_leaves_no_statement_that_the_server_has_not(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Psycopg takes what a pipeline was to prepare for prepared; the next lease uses it."""
    sql = "SELECT %s::int"
    async with of_one(dsn, prepare_threshold=0, reset_timeout=20) as pool:

        async def use() -> None:
            async with pool.acquire() as conn, conn.pipeline():
                await conn.execute(ENDLESS)
                await conn.execute(sql, (1,))
                await conn.execute(ENDLESS)

        task = asyncio.ensure_future(use())
        await until_true(lambda: running(outside, ENDLESS))
        task.cancel()
        await asyncio.wait([task])
        async with pool.acquire() as conn:
            for number in range(2):
                assert await (await conn.execute(sql, (number,))).fetchone() == (number,)
        assert pool.stats().closed == 0


@pytest.mark.parametrize("how", ["scope", "task"])
@pytest.mark.parametrize("operate", OPERATIONS)
async def test_cancelled_operation_ends_on_the_server_and_costs_no_connection(
    dsn: str, outside: asyncpg.Connection, operate: Act, how: str
) -> None:
    """Whether a cancel scope of anyio's cancels, again and again, or a task is cancelled once."""
    async with of_one(dsn, reset_timeout=20) as pool:
        pids: list[int] = []
        scope = anyio.CancelScope()

        async def use() -> None:
            with scope:
                async with pool.acquire() as conn:
                    pids.append(conn.info.backend_pid)
                    await operate(conn)

        task = asyncio.ensure_future(use())
        await until_true(lambda: _sleeps(outside))
        (scope if how == "scope" else task).cancel()
        await asyncio.wait([task])
        async with pool.acquire() as conn:
            assert await (await conn.execute("SELECT 1")).fetchone() == (1,)
            assert [conn.info.backend_pid] == pids
            assert conn.info.pipeline_status == 0
        assert await rows(outside) == []
        assert not await _sleeps(outside)
        await check_pool(pool)


async def _sleeps(outside: asyncpg.Connection) -> bool:
    sql = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' "
        "AND datname = current_database()"
    )
    return bool(await outside.fetchval(sql))


async def test_lease_goes_on_after_an_operation_that_was_cancelled(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """The next operation waits until the server has ended the one before."""
    async with of_one(dsn) as pool, pool.acquire() as conn:
        cursor = conn.cursor()
        for operate in (conn.execute, cursor.execute):
            task = asyncio.ensure_future(operate(ENDLESS))
            await running(outside, ENDLESS)
            task.cancel()
            await asyncio.wait([task])
            assert await (await conn.execute("SELECT 2")).fetchone() == (2,)
        with anyio.move_on_after(0.05):
            async for _ in cursor.stream("SELECT generate_series(1, 1000000), pg_sleep(0.01)"):
                pass
        assert await (await cursor.execute("SELECT 3")).fetchone() == (3,)


@pytest.mark.parametrize("operate", [execute, copy_out, stream])
async def test_operation_of_a_task_that_outlives_the_lease_ends(
    dsn: str, outside: asyncpg.Connection, operate: Act
) -> None:
    """The reset cancels it on the server, and its task gets an error."""
    async with of_one(dsn, reset_timeout=20) as pool:
        async with pool.acquire() as conn:
            pid = conn.info.backend_pid
            task = asyncio.ensure_future(operate(conn))
            await until_true(lambda: _sleeps(outside))
        async with pool.acquire() as conn:
            assert await (await conn.execute("SELECT 1")).fetchone() == (1,)
            assert conn.info.backend_pid == pid
        await asyncio.wait([task])
        assert isinstance(task.exception(), (psycopg.Error, NotLeased))


async def test_task_that_awaits_notifications_beyond_the_lease_costs_the_connection(
    dsn: str,
) -> None:
    """No server can end that; and the next lease has no part in it."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            await conn.execute("LISTEN here")
            task = asyncio.ensure_future(anext(conn.notifies()))
            await asyncio.sleep(0)
        async with pool.acquire() as conn:
            await conn.execute("NOTIFY here")
        await asyncio.wait([task])
        assert isinstance(task.exception(), (psycopg.Error, NotLeased))
        await check_pool(pool)


# -- what was made in a lease --------------------------------------------------------------------


async def made_cursor(conn: Any) -> Callable[[], Any]:
    """Make a cursor."""
    cursor = await conn.execute("SELECT 1")
    return lambda: cursor.execute("SELECT 1")


async def made_connection(conn: Any) -> Callable[[], Any]:
    """Get at the connection through a cursor."""
    connection = conn.cursor().connection
    return lambda: connection.execute("SELECT 1")


async def made_transaction(conn: Any) -> Callable[[], Any]:
    """Make a transaction, which was begun."""
    transaction = conn.transaction()
    await transaction.__aenter__()
    return lambda: transaction.__aexit__(None, None, None)


async def made_pipeline(conn: Any) -> Callable[[], Any]:
    """Open a pipeline."""
    pipeline = await conn.pipeline().__aenter__()
    return pipeline.sync  # type: ignore[no-any-return]


async def made_notifies(conn: Any) -> Callable[[], Any]:
    """Make a generator that has not begun."""
    generator = conn.notifies(timeout=5)
    return lambda: anext(generator)


async def made_stream(conn: Any) -> Callable[[], Any]:
    """Make a generator that has begun."""
    generator = conn.cursor().stream("SELECT generate_series(1, 100000)")
    await anext(generator)
    return lambda: anext(generator)


async def made_copy(conn: Any) -> Callable[[], Any]:
    """Begin a COPY into a table."""
    manager = conn.cursor().copy("COPY t FROM STDIN")
    copy = await manager.__aenter__()
    return lambda: copy.write(b"1\n" * 200_000)


MADE: list[Callable[[Any], Awaitable[Callable[[], Any]]]] = [
    *(made_cursor, made_connection, made_transaction, made_pipeline),
    *(made_notifies, made_stream, made_copy),
]


@pytest.mark.parametrize("make", MADE)
async def test_what_a_lease_has_made_is_dead_after_it(
    dsn: str, outside: asyncpg.Connection, make: Callable[[Any], Awaitable[Callable[[], Any]]]
) -> None:
    """And does nothing to the next lease, used or collected."""
    with loop_is_told_only(OVER):  # psycopg before 3.3.9 raises it when a COPY is collected
        await outlive(dsn, outside, make)


async def outlive(
    dsn: str, outside: asyncpg.Connection, make: Callable[[Any], Awaitable[Callable[[], Any]]]
) -> None:
    """Use what was made in one lease in the next one."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            use = await make(conn)
            pid = conn.info.backend_pid
        async with pool.acquire() as conn:
            await conn.execute("BEGIN")
            await insert(conn)
            with pytest.raises((psycopg.InterfaceError, NotLeased), match="lease"):
                await use()
            del use
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await conn.execute("COMMIT")
            assert conn.info.backend_pid == pid
        assert await rows(outside) == [1]
        await check_pool(pool)


async def test_server_cursor_is_dead_after_its_lease(dsn: str) -> None:
    """Closing it late sends nothing."""
    async with of_one(dsn) as pool:
        async with pool.transaction() as conn:
            cursor = conn.cursor("here", withhold=True)
            await cursor.execute("SELECT generate_series(1, 10)")
        async with pool.acquire() as conn:
            await conn.execute("DECLARE here CURSOR WITH HOLD FOR SELECT 4711")
            with pytest.raises(psycopg.InterfaceError, match="the lease is over"):
                await cursor.fetchone()
            await cursor.close()
            assert await (await conn.execute("FETCH here")).fetchone() == (4711,)


async def test_rows_that_were_read_can_be_had_after_the_lease(dsn: str) -> None:
    """They are data."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            cursor = await conn.execute("SELECT generate_series(1, 3)")
        assert await cursor.fetchone() == (1,)
        assert await cursor.fetchall() == [(2,), (3,)]


async def test_class_of_ones_own_makes_what_dies_with_the_lease(dsn: str) -> None:
    """Its methods run on what the lease has, and not on the pool's connection."""

    class Own(psycopg.AsyncConnection[Any]):
        def repository(self) -> Callable[[], Awaitable[Any]]:
            return lambda: self.execute("SELECT 1")

        async def one(self) -> Any:
            return await (await self.execute("SELECT 1")).fetchone()

    async with of_one(dsn, connection_class=Own) as pool:
        async with pool.acquire() as conn:
            assert isinstance(conn, Own)
            assert await conn.one() == (1,)
            use = conn.repository()
            await use()
        with pytest.raises(psycopg.InterfaceError, match="the lease is over"):
            await use()


# -- transactions --------------------------------------------------------------------------------


async def test_transaction_that_ends_its_lease_takes_three_round_trips(
    postgres: Postgres, dsn: str
) -> None:
    """BEGIN, the statement, COMMIT with the reset; then the connection is idle, with no job."""
    with CountingProxy(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn)) as pool:
            await quiet(pool)  # type: ignore[arg-type]
            before = proxy.trips
            async with pool.transaction() as conn:
                await conn.execute("SET app.tenant = 'alice'")
            assert (proxy.trips - before, pool.stats().recycling) == (3, 0)
            async with pool.acquire() as conn:
                cursor = await conn.execute("SELECT current_setting('app.tenant', true)")
                assert await cursor.fetchone() == ("",)
            await check_pool(pool)


async def test_lease_at_the_level_transaction_takes_one_round_trip(
    postgres: Postgres, dsn: str
) -> None:
    """There is nothing to undo."""
    with CountingProxy(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn), reset="transaction") as pool:
            async with pool.acquire() as conn:
                before = proxy.trips
                await conn.execute("SELECT 1")
            assert (proxy.trips - before, pool.stats().recycling) == (1, 0)


async def test_commit_that_an_open_pipeline_holds_back_is_psycopgs_own_error(dsn: str) -> None:
    """Nothing was sent, so it is no `CommitUnknown`, and nothing was committed."""
    async with of_one(dsn) as pool:
        with pytest.raises(psycopg.OperationalError, match="pipeline"):
            async with pool.transaction() as conn:
                await conn.execute("CREATE TABLE half (id int)")
                await conn.pipeline().__aenter__()
        async with pool.acquire() as conn:
            cursor = await conn.execute("SELECT to_regclass('half')")
            assert await cursor.fetchone() == (None,)
        await check_pool(pool)


async def test_settings_of_a_transaction_are_the_servers(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """And inside of another one they are refused."""
    names = ("transaction_isolation", "transaction_read_only", "transaction_deferrable")
    asked = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    settings: dict[str, Any] = {"isolation": "serializable", "readonly": True, "deferrable": True}
    async with of_one(dsn) as pool:
        async with pool.transaction(**settings) as conn:
            cursor = await conn.execute(asked)
            assert await cursor.fetchone() == ("serializable", "on", "on")
            with pytest.raises(psycopg.ProgrammingError, match="inside of another"):
                async with poolkit.transaction(conn, readonly=True):
                    pass
        with pytest.raises(ValueError, match="repeatable_read"):
            async with pool.transaction(isolation="snapshot"):
                pass


async def test_transactions_inside_of_another_are_savepoints(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Of poolkit's and psycopg's, in turn; explicit commits are refused or end the block."""
    async with of_one(dsn) as pool:
        async with pool.transaction() as conn:
            await insert(conn)
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                async with poolkit.transaction(conn), conn.transaction():
                    await insert(conn)
                    await conn.execute("SELECT 1 / 0")
            async with conn.transaction(), poolkit.transaction(conn):
                await insert(conn)
        assert await rows(outside) == [1, 1]


async def test_transaction_comes_before_the_pipeline(dsn: str, outside: asyncpg.Connection) -> None:
    """Inside of a pipeline the pool's is refused, and psycopg's own works."""
    async with of_one(dsn) as pool:
        async with pool.transaction() as conn, conn.pipeline():
            await insert(conn)
            with pytest.raises(psycopg.ProgrammingError, match="a pipeline is open"):
                async with poolkit.transaction(conn):
                    pass
            async with conn.transaction():
                await insert(conn)
        assert await rows(outside) == [1, 1]
        await check_pool(pool)


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_commit_by_hand_is_refused_in_a_block(
    dsn: str, outside: asyncpg.Connection, end: str
) -> None:
    """As psycopg does in its own; without a block both are its user's."""
    async with of_one(dsn) as pool:
        async with pool.transaction() as conn:
            await insert(conn)
            with pytest.raises(psycopg.ProgrammingError, match="forbidden"):
                await getattr(conn, end)()
        async with pool.acquire() as conn:
            await conn.set_autocommit(False)
            await insert(conn)
            await getattr(conn, end)()
        assert len(await rows(outside)) == (2 if end == "commit" else 1)


async def test_transaction_is_as_the_connection_says(dsn: str) -> None:
    """If it is not told otherwise."""

    async def set_up(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
        await conn.set_read_only(True)

    async with of_one(dsn, on_connect=set_up) as pool:
        for isolation, wanted in (
            (None, "serializable"),
            ("repeatable_read", "repeatable read"),
        ):
            async with pool.transaction(isolation=isolation) as conn:
                assert await value(conn, "SHOW transaction_isolation") == wanted
                assert await value(conn, "SHOW transaction_read_only") == "on"


async def test_commit_that_did_not_commit_is_an_error(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """A statement had failed, and its error was caught."""
    async with of_one(dsn) as pool:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="rolled back"):
            async with pool.transaction() as conn:
                await insert(conn)
                with contextlib.suppress(psycopg.errors.DivisionByZero):
                    await conn.execute("SELECT 1 / 0")
        assert await rows(outside) == []
        await check_pool(pool)


ENDS = ["COMMIT", "ROLLBACK", "COMMIT AND CHAIN", "ROLLBACK AND CHAIN", "COMMIT; BEGIN"]


@pytest.mark.parametrize("by", ["connection", "cursor"])
@pytest.mark.parametrize("end", ENDS)
async def test_block_whose_transaction_has_ended_runs_nothing_more(
    dsn: str, outside: asyncpg.Connection, end: str, by: str
) -> None:
    """It would stand by itself."""
    async with of_one(dsn) as pool:
        with pytest.raises(TransactionEnded):
            async with pool.transaction() as conn:
                use: Any = conn if by == "connection" else conn.cursor()
                await use.execute(end)
                with pytest.raises(TransactionEnded):
                    await use.execute("INSERT INTO t VALUES (1)")
        assert await rows(outside) == []
        await check_pool(pool)


async def test_rollback_to_a_savepoint_goes_on(dsn: str, outside: asyncpg.Connection) -> None:
    """The server answers as to a ROLLBACK."""
    async with of_one(dsn) as pool:
        async with pool.transaction() as conn:
            await conn.execute("SAVEPOINT here")
            await insert(conn)
            await conn.execute("ROLLBACK TO SAVEPOINT here")
            await insert(conn)
        assert await rows(outside) == [1]


async def test_stream_that_was_left_before_its_end_fails_its_transaction(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """The loop ends the generator, which cancels the statement: the COMMIT waits for that."""
    async with of_one(dsn) as pool:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="rolled back"):
            async with pool.transaction() as conn:
                await insert(conn)
                async for _ in conn.cursor().stream("SELECT generate_series(1, 100000000)"):
                    break
        assert await rows(outside) == []
        async with pool.acquire() as conn:
            await conn.execute("SELECT 1")
        assert pool.stats().connected == 1


async def test_commit_while_a_generator_has_the_connection_is_refused(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """It would wait for ever for psycopg's lock."""
    async with of_one(dsn) as pool:
        with pytest.raises(psycopg.InterfaceError, match="has not ended"):
            async with pool.transaction() as conn:
                await insert(conn)
                kept = conn.cursor().stream("SELECT generate_series(1, 10)")
                await anext(kept)
        assert await rows(outside) == []
        await check_pool(pool)


# -- loss ----------------------------------------------------------------------------------------


async def test_death_of_an_idle_connection_is_noticed(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """At once, and not when it is used; also after a lease, and after a ping."""
    async with of_one(dsn, ping_every=None, ping_after=None, min_size=0) as pool:
        for use in (False, True):
            async with pool.acquire() as conn:
                pid = conn.info.backend_pid
                if use:
                    await conn.execute("SELECT 1")
            await quiet(pool)  # type: ignore[arg-type]
            await outside.execute("SELECT pg_terminate_backend($1)", pid)
            await until(lambda: pool.stats().size == 0)
        async with pool.acquire() as conn:
            assert conn.info.backend_pid != pid
            await conn.execute("SELECT 1")


async def test_connection_lost_in_a_lease_is_not_used_again(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Its operation gets psycopg's error, and the next lease another connection."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            cursor = conn.cursor()
            task = asyncio.ensure_future(cursor.execute(ENDLESS))
            pid = await running(outside, ENDLESS)
            await outside.execute("SELECT pg_terminate_backend($1)", pid)
            with pytest.raises(psycopg.OperationalError):
                await task
        async with pool.acquire() as conn:
            assert await (await conn.execute("SELECT 1")).fetchone() == (1,)
        await check_pool(pool)


async def test_close_by_the_holder_ends_the_lease(dsn: str, outside: asyncpg.Connection) -> None:
    """As psycopg's users do: `close()`, or a block that the connection is."""
    async with of_one(dsn) as pool:
        conn = await pool.acquire()
        await conn.close()
        assert pool.stats().leased == 0
        conn = await pool.acquire()
        async with conn:
            await insert(conn)
        assert pool.stats().leased == 0
        with pytest.raises(NotLeased, match="closed"):
            await conn.execute("SELECT 1")
        await check_pool(pool)
        assert await rows(outside) == [1]
    await until_true(lambda: _none(outside))


async def _none(outside: asyncpg.Connection) -> bool:
    return not await states(outside)


async def test_network_that_swallows_everything_costs_the_connection_and_not_the_pool(
    postgres: Postgres, dsn: str
) -> None:
    """Neither the cancellation nor its request get through; the slot is free when time is up."""
    with Proxy(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn), reset_timeout=0.3, connect_timeout=10) as pool:
            async with pool.acquire() as conn:
                await conn.execute("SELECT 1")
                proxy.hole()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await conn.execute("SELECT 1")
            await until(lambda: pool.stats().retired["broken"] == 1)
            proxy.pass_through()
            async with pool.acquire(timeout=15) as conn:
                assert await value(conn, "SELECT 1") == 1
            await check_pool(pool)


async def test_reset_of_the_line_is_noticed_while_idle(postgres: Postgres, dsn: str) -> None:
    """As the end of the server's process is."""
    with Proxy(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn), min_size=0, ping_after=None) as pool:
            for cut in (proxy.reset_all, proxy.fin_all):
                async with pool.acquire() as conn:
                    await conn.execute("SELECT 1")
                await quiet(pool)  # type: ignore[arg-type]
                cut()
                await until(lambda: pool.stats().size == 0)


# -- loops and classes ---------------------------------------------------------------------------


async def test_proactor_loop_is_refused_with_the_remedy(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows psycopg needs another one."""
    loop = type(asyncio.get_running_loop())
    monkeypatch.setattr(asyncio, "ProactorEventLoop", loop, raising=False)
    with pytest.raises(poolkit.ConnectFailed) as failed:
        async with of_one(dsn):
            pass
    assert isinstance(failed.value.__cause__, PoolConfigError)
    assert "loop_factory=asyncio.SelectorEventLoop" in str(failed.value.__cause__)


async def test_pool_of_psycopg_tells_of_handlers_that_a_lease_has_left(
    dsn: str, outside: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """They are removed, and it is said where they were left."""
    async with of_one(dsn) as pool:
        async with pool.transaction() as conn:
            conn.add_notice_handler(print)
            pid = conn.info.backend_pid
        await quiet(pool)  # type: ignore[arg-type]
        assert not (await last_query(outside, pid)).startswith("SET poolkit.committed")
    assert any("1 notice handler" in said for said in warnings_in(caplog))


async def test_handlers_of_on_acquire_are_removed_and_not_told_of(
    dsn: str, outside: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Each lease has them anew, and its reset goes with its COMMIT as ever; others are told of."""
    heard: list[Any] = []

    async def greet(conn: Any) -> None:
        conn.add_notice_handler(heard.append)

    async with of_one(dsn, on_acquire=greet) as pool:
        for number in (1, 2):
            async with pool.transaction() as conn:
                await conn.execute("DROP TABLE IF EXISTS nothing")
                assert len(heard) == number
                pid = conn.info.backend_pid
            await quiet(pool)  # type: ignore[arg-type]
            assert (await last_query(outside, pid)).startswith("SET poolkit.committed")
        assert warnings_in(caplog) == []
        async with pool.acquire() as conn:
            conn.add_notice_handler(print)
        await quiet(pool)  # type: ignore[arg-type]
    (said,) = warnings_in(caplog)
    assert "1 notice handler" in said


async def test_leases_tell_the_servers_process_and_their_last_statement(dsn: str) -> None:
    """The statement at `note_statements` only, while it runs as well."""
    for notes in (True, False):
        async with of_one(dsn, note_statements=notes) as pool, pool.acquire() as conn:
            await conn.execute("SELECT %s", (1,))
            (info,) = pool.leases()
            assert info.server_pid == conn.info.backend_pid
            assert info.statement == ("SELECT $1" if notes else "")
            async for _ in conn.cursor().stream("SELECT 2"):
                assert pool.leases()[0].statement == ("SELECT 2" if notes else "")
