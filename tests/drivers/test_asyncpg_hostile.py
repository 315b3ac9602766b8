"""Users who keep what they should not, late awaits, hostile SQL: the next user meets none of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from asyncpg import exceptions as pg

from poolkit import ConnectFailed, NotLeased, PoolConfigError, Verdict
from poolkit._shell.driver_calls import Hooks
from poolkit.drivers.asyncpg import AsyncpgDriver, create_pool
from tests.drivers.asyncpg_help import LOOPS, PATIENCE, leave_nothing, of_one, warnings_in

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.postgres import Postgres


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on the loops that asyncpg runs on."""
    return request.param


LATE: dict[str, Callable[[Any, Any], Coroutine[Any, Any, Any]]] = {
    "rollback": lambda transaction, _: transaction.rollback(),
    "commit": lambda transaction, _: transaction.commit(),
    "fetchval": lambda _, statement: statement.fetchval(),
    "fetch": lambda _, statement: statement.fetch(),
    "cursor": lambda transaction, _: anext(aiter(transaction._connection.cursor("SELECT 1"))),
    "cursor of a statement": lambda _, statement: anext(aiter(statement.cursor())),
}


@pytest.mark.parametrize("make", LATE.values(), ids=LATE)
async def test_coroutine_made_before_the_release_is_dead_when_it_is_awaited(
    dsn: str,
    outside: asyncpg.Connection,
    make: Callable[[Any, Any], Coroutine[Any, Any, Any]],
) -> None:
    """Asyncpg looks when the method is called; the next user's row would be lost without a word."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            transaction = conn.transaction()
            await transaction.start()
            late = make(transaction, await conn.prepare("SELECT current_setting('work_mem')"))
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(asyncpg.InterfaceError, match="released back"):
                await late
            assert conn.is_in_transaction()
    assert await outside.fetchval("SELECT count(*) FROM t") == 1


async def test_function_that_the_search_path_puts_first_is_not_called_by_the_reset(
    dsn: str, postgres: Postgres
) -> None:
    """It would run as the login role, and choose the next user's role."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            await conn.execute(
                """
                CREATE SCHEMA evil;
                CREATE FUNCTION evil.pg_advisory_unlock_all() RETURNS void LANGUAGE plpgsql AS $$
                    BEGIN PERFORM pg_catalog.set_config('role', 'pg_monitor', false); END $$;
                CREATE FUNCTION evil.count() RETURNS bigint LANGUAGE sql AS 'SELECT 1000::bigint';
                SET search_path = evil, pg_catalog;
                SELECT pg_catalog.pg_advisory_lock(4711);
                """
            )
            await conn.execute("SELECT pg_advisory_unlock_all()")
            assert await conn.fetchval("SELECT current_user") == "pg_monitor"
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert await conn.fetchval("SELECT current_user = session_user")
            locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = $1"
            assert await conn.fetchval(locks, pid) == 0
            await conn.execute("DROP SCHEMA evil CASCADE")


async def test_cached_statements_that_were_swapped_are_not_used_by_the_next_user(dsn: str) -> None:
    """At ``full+prepared`` a connection on which one is missing is replaced."""
    honest = "SELECT 'honest'"
    async with of_one(dsn, reset="full+prepared") as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            assert await conn.fetchval(honest) == "honest"
        async with pool.acquire() as conn:
            names = "SELECT name FROM pg_prepared_statements WHERE statement = $1"
            name = await conn.fetchval(names, honest)
            swap = f"EXECUTE 'DEALLOCATE ' || '{name}'; EXECUTE 'PREPARE {name} AS SELECT 1'"
            await conn.execute(f"DO $$ BEGIN {swap}; END $$")
        async with pool.acquire() as conn:
            assert await conn.fetchval(honest) == "honest"
            assert conn.get_server_pid() != pid


async def answered(task: asyncio.Task[Any]) -> None:
    """Wait until what the task waits for is there, in the very turn: it has not gone on yet."""
    for _ in range(100_000):
        await asyncio.sleep(0)
        waits_for: Any = task._fut_waiter  # type: ignore[attr-defined]
        if task.done() or waits_for is None or waits_for.done():
            break
    assert not task.done(), "too late"


@pytest.mark.parametrize("level", ["full", "transaction", "none", leave_nothing])
async def test_statement_that_a_child_gets_after_the_release_is_dead(dsn: str, level: Any) -> None:
    """Its answer came in the turn of the release: it was made after the others were revoked."""
    async with of_one(dsn, reset=level) as pool:
        async with pool.acquire() as conn:
            await conn.fetchval("SELECT 1")
            child = asyncio.create_task(conn.prepare("SELECT 1"))
            await answered(child)
        async with pool.acquire() as conn:
            with pytest.raises((asyncpg.InterfaceError, NotLeased)):
                await (await child).fetchval()
            assert await conn.fetchval("SELECT 2") == 2


@pytest.mark.parametrize("level", ["full", "transaction"])
async def test_listener_that_a_child_adds_after_the_release_is_removed(
    dsn: str, level: Any
) -> None:
    """It would hear what the next user hears, or deafen that one."""
    heard: list[object] = []
    async with of_one(dsn, reset=level) as pool:
        async with pool.acquire() as conn:
            await conn.fetchval("SELECT 1")
            add = conn.add_listener("here", lambda *args: heard.append(args))
            child = asyncio.create_task(add)
            await answered(child)
        async with pool.acquire() as conn:
            await asyncio.wait([child], timeout=PATIENCE)
            _ = child.exception()
            mine: asyncio.Queue[str] = asyncio.Queue()

            def hear(*args: Any) -> None:
                mine.put_nowait(args[3])

            await conn.add_listener("here", hear)
            await conn.execute("NOTIFY here, 'mine'")
            assert await asyncio.wait_for(mine.get(), PATIENCE) == "mine"
            await conn.remove_listener("here", hear)
    assert not heard


async def test_transaction_whose_failure_was_caught_does_not_seem_to_commit(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """The server answers COMMIT with ROLLBACK; the block ends with an error."""
    async with of_one(dsn) as pool:
        with pytest.raises(pg.InFailedSQLTransactionError, match="rolled back, not committed"):
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
                with contextlib.suppress(pg.DivisionByZeroError):
                    await conn.execute("SELECT 1 / 0")
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO t VALUES (2)")
            with contextlib.suppress(pg.DivisionByZeroError):
                async with conn.transaction():
                    await conn.execute("SELECT 1 / 0")
    assert await outside.fetchval("SELECT array_agg(x) FROM t") == [2]


async def test_type_codec_of_a_lease_does_not_reach_the_next_user(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is undone, and nobody is blamed."""
    seen: list[str] = []

    def decode(text: str) -> str:
        seen.append(text)
        return text

    async with of_one(dsn, reset="transaction") as pool:
        async with pool.acquire() as conn:
            await conn.set_type_codec("text", encoder=str, decoder=decode, schema="pg_catalog")
            assert await conn.fetchval("SELECT 'mine'::text") == "mine"
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT 'secret'::text") == "secret"
        assert pool.stats().connected == 1
    assert seen == ["mine"]
    assert not warnings_in(caplog)


async def test_statement_with_a_name_can_be_prepared_by_the_next_user_again(dsn: str) -> None:
    """Whether or not the last one has dropped it."""
    async with of_one(dsn) as pool:
        kept = []
        for keep in (True, False, True):
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                statement = await conn.prepare("SELECT 1", name='my "own"')
                assert await statement.fetchval() == 1
                if keep:
                    kept.append(statement)
                del statement
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid


async def test_generator_entered_after_the_release_is_dead(dsn: str) -> None:
    """It would log the next user's queries, arguments and all."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            late = conn.query_logger(print)
        async with pool.acquire() as conn:
            with pytest.raises(NotLeased), late:
                pass
            await conn.fetchval("SELECT 1")


async def test_another_database_that_dies_costs_no_connection_of_this_one(dsn: str) -> None:
    """Its error passes through a block of this pool's."""
    async with of_one(dsn) as pool, of_one(dsn) as other:
        with pytest.RaisesGroup(asyncpg.PostgresConnectionError):
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                async with other.acquire() as victim:
                    end = "SELECT pg_terminate_backend($1)"
                    async with asyncio.TaskGroup() as group:
                        group.create_task(victim.execute("SELECT pg_sleep(60)"))
                        await asyncio.sleep(0)  # it is sent
                        group.create_task(conn.execute(end, victim.get_server_pid()))
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
        async with other.acquire():
            pass  # asyncpg reports a connect that is cut off when the pool closes


async def test_query_under_way_when_the_grace_ends_is_ended_on_the_server(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Not only its client: it would hold its locks."""
    pool = await of_one(dsn).open()

    async def hold() -> None:
        async with pool.acquire() as conn:
            await conn.execute("SELECT pg_sleep(600)")

    task = asyncio.create_task(hold())
    running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'"
    async with asyncio.timeout(PATIENCE):
        while not await outside.fetchval(running):  # noqa: ASYNC110  # nobody else can tell
            await asyncio.sleep(0.005)
    (held,) = await pool.aclose(grace=0.0)
    assert "hold" in held.place
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await task
    assert not await outside.fetchval(running)


async def begin(conn: asyncpg.Connection) -> None:
    """Forget to commit."""
    await conn.execute("BEGIN")


async def listen(conn: asyncpg.Connection) -> None:
    """Listen on behalf of nobody."""
    await conn.add_listener("here", print)


@pytest.mark.parametrize(
    ("hook", "words"), [(begin, "has left a transaction open"), (listen, "hold a lease")]
)
async def test_on_connect_that_leaves_what_no_user_wants_is_refused(
    dsn: str, hook: Callable[..., Any], words: str
) -> None:
    """At once, with the remedy."""
    with pytest.raises(ConnectFailed, match=words) as caught:
        async with create_pool(dsn, max_size=1, on_connect=hook):
            pass
    assert isinstance(caught.value.__cause__, PoolConfigError)


async def test_change_of_role_is_seen_through_a_translated_error() -> None:
    """Raised from it, or in a group with others."""

    class Standby:
        in_hot_standby = "on"

    class Connection:
        def is_closed(self) -> bool:
            """Be open."""
            return False

        def get_settings(self) -> Standby:
            """Say that the server is a standby by now."""
            return Standby()

    driver = AsyncpgDriver("postgresql://host/db")
    driver._had_primary = True
    plain = pg.ReadOnlySQLTransactionError("cannot execute INSERT")
    translated = RuntimeError("could not save")
    translated.__cause__ = plain
    conn: Any = Connection()
    ask = Hooks(driver).classify
    for error in (plain, translated, ExceptionGroup("two", [ValueError(), translated])):
        assert ask(error, conn) is Verdict.STALE
    assert ask(RuntimeError("other"), conn) is Verdict.OK
