"""COMMIT and reset in one round trip: when they are, and what becomes of it when one of them fails."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import poolkit
from poolkit import CommitUnknown, ConnectFailed, PoolTimeout
from poolkit.testing import check_pool
from tests.drivers.asyncpg_help import (
    LOOPS,
    PATIENCE,
    CountingProxy,
    last_query,
    of_one,
    quiet,
    rows,
    running,
    until,
    warnings_in,
)
from tests.drivers.postgresql_kinds import KINDS, Kind, Own, is_seen, leave

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.drivers.asyncpg_help import Pooled
    from tests.postgres import Postgres

    Act = Callable[[Any], Awaitable[object]]

FOLDED = "SET poolkit.committed"
ALONE = "COMMIT;"


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


async def insert(conn: Any) -> None:
    """Write something."""
    await conn.execute("INSERT INTO t VALUES (1)")


def jobs(pool: Pooled) -> int:
    """Return how many connections have a job."""
    stats = pool.stats()
    return stats.recycling + stats.closing + stats.connecting


# -- one round trip ------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["full", "auto"])
async def test_transaction_that_ends_its_lease_takes_three_round_trips(
    postgres: Postgres, dsn: str, level: str
) -> None:
    """BEGIN, the statement, COMMIT with the reset; then the connection is idle, with no job."""
    with CountingProxy(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn), reset=level) as pool:
            await quiet(pool)
            before = proxy.trips
            async with pool.transaction() as conn:
                await conn.execute("SET app.tenant = 'alice'")
            assert (proxy.trips - before, jobs(pool)) == (3, 0)
            async with pool.acquire() as conn:
                assert not await conn.fetchval("SELECT current_setting('app.tenant', true)")
            await check_pool(pool)


async def test_level_without_a_reset_sends_the_commit_alone(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """What a light reset leaves, the COMMIT leaves as well."""
    async with of_one(dsn, reset="transaction") as pool:
        async with pool.transaction() as conn:
            await conn.execute("SET app.tenant = 'alice'")
            pid = conn.get_server_pid()
        assert await last_query(outside, pid) == ALONE
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT current_setting('app.tenant', true)") == "alice"


async def test_transaction_on_a_connection_that_one_holds_leaves_the_lease_as_it_is(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """The lease goes on after the COMMIT, with its settings."""
    async with of_one(dsn) as pool, pool.acquire() as conn:
        async with poolkit.transaction(conn):
            await conn.execute("SET app.tenant = 'alice'")
        assert await last_query(outside, conn.get_server_pid()) == ALONE
        assert await conn.fetchval("SELECT current_setting('app.tenant')") == "alice"


async def nested(conn: Any) -> None:
    """Set a savepoint, which makes an object of asyncpg's."""
    async with conn.transaction():
        await insert(conn)


async def prepare(conn: Any) -> None:
    """Make a statement, which outlives the block."""
    await conn.prepare("SELECT 1")


async def listen(conn: Any) -> None:
    """Add a listener, which only the release removes."""
    await conn.add_listener("here", lambda *_: None)


async def prepare_by_sql(conn: Any) -> None:
    """Prepare a statement, for which a reset is longer."""
    await conn.execute("PREPARE mine AS SELECT 1")


async def set_codec(conn: Any) -> None:
    """Set a codec, which only the release removes."""
    await conn.set_type_codec("json", encoder=str, decoder=str, schema="pg_catalog")


@pytest.mark.parametrize("act", [nested, prepare, listen, prepare_by_sql, set_codec])
async def test_lease_that_leaves_more_than_the_server_knows_is_reset_at_its_release(
    dsn: str, outside: asyncpg.Connection, act: Act
) -> None:
    """Objects, callbacks and codecs end with the release, hence the reset is its."""
    async with of_one(dsn) as pool:
        async with pool.transaction() as conn:
            await act(conn)
            pid = conn.get_server_pid()
        await quiet(pool)
        assert not (await last_query(outside, pid)).startswith((FOLDED, ALONE))
        await check_pool(pool)


@pytest.mark.parametrize("level", ["full", "auto"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_what_a_transaction_leaves_behind_is_not_seen_by_the_next_user(
    dsn: str, outside: asyncpg.Connection, kind: Kind, level: str
) -> None:
    """Whether or not COMMIT and reset go together."""
    async with of_one(dsn, connect_kwargs={"connection_class": Own}, reset=level) as pool:
        with contextlib.suppress(poolkit.PoolError, asyncpg.PostgresError, asyncpg.InterfaceError):
            async with pool.transaction() as conn:
                await leave(conn, kind)
        async with pool.acquire() as conn:
            assert bool(kind.note) or not await is_seen(conn, kind)
        await check_pool(pool)


# -- seen by others ------------------------------------------------------------------------------


async def test_query_logger_sees_the_commit(dsn: str) -> None:
    """It is shown what its user knows, statement by statement."""
    seen: list[str] = []

    async def watch(conn: asyncpg.Connection) -> None:
        conn.add_query_logger(lambda record: seen.append(record.query))

    async with of_one(dsn, on_connect=watch) as pool:
        async with pool.transaction() as conn:
            await insert(conn)
        await until(lambda: "COMMIT;" in seen)
    assert not any(FOLDED in query for query in seen)


class Watching(asyncpg.Connection):
    """Sees what is executed, as an application's own class may."""

    texts: list[str]

    async def execute(self, query: str, *args: Any, **kwargs: Any) -> str:
        """Note it."""
        type(self).texts.append(query)
        return await super().execute(query, *args, **kwargs)


async def test_class_with_an_execute_of_its_own_sees_the_commit(dsn: str) -> None:
    """It may count, trace or rewrite statements."""
    Watching.texts = []
    async with of_one(dsn, connect_kwargs={"connection_class": Watching}) as pool:
        async with pool.transaction() as conn:
            await insert(conn)
        await quiet(pool)
    assert Watching.texts[-1] == "COMMIT;"


async def test_agent_that_comes_later_sees_the_commit(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be switched on when connections are open, or off."""
    seen: list[str] = []
    execute = asyncpg.Connection.execute

    async def traced(self: Any, query: str, *args: Any, **kwargs: Any) -> str:
        seen.append(query)
        return await execute(self, query, *args, **kwargs)

    async with of_one(dsn) as pool:
        async with pool.transaction() as conn:
            await insert(conn)
        with monkeypatch.context() as agent:
            agent.setattr(asyncpg.Connection, "execute", traced)
            async with pool.transaction() as conn:
                await insert(conn)
        assert seen[-1] == ALONE


# -- when one of them fails ----------------------------------------------------------------------


@pytest.mark.parametrize("level", ["full", "auto"])
async def test_commit_of_a_failed_transaction_is_an_error_and_rolled_back(
    dsn: str, outside: asyncpg.Connection, caplog: pytest.LogCaptureFixture, level: str
) -> None:
    """The error of a statement was caught: the server would roll back without a word."""
    async with of_one(dsn, reset=level) as pool:
        with pytest.raises(asyncpg.InFailedSQLTransactionError, match="rolled back, not committed"):
            async with pool.transaction() as conn:
                await insert(conn)
                with pytest.raises(asyncpg.DivisionByZeroError):
                    await conn.execute("SET app.tenant = 'alice'; SELECT 1 / 0")
        await quiet(pool)
        assert await rows(outside) == []
        async with pool.acquire() as conn:
            assert not await conn.fetchval("SELECT current_setting('app.tenant', true)")
        assert pool.stats().retired == {} or sum(pool.stats().retired.values()) == 0
    assert warnings_in(caplog) == []


@pytest.fixture
async def checked_late(outside: asyncpg.Connection) -> str:
    """Return what only a COMMIT finds out."""
    await outside.execute("DROP TABLE IF EXISTS late")
    await outside.execute("CREATE TABLE late (x int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    return "INSERT INTO late VALUES (1), (1)"


@pytest.mark.parametrize("level", ["full", "auto"])
async def test_commit_that_fails_is_followed_by_a_reset(
    dsn: str, outside: asyncpg.Connection, checked_late: str, level: str
) -> None:
    """Nothing is committed, its error is the caller's, and the session is undone all the same."""
    async with of_one(dsn, reset=level) as pool:
        with pytest.raises(asyncpg.UniqueViolationError):
            async with pool.transaction() as conn:
                await conn.execute("SELECT pg_advisory_lock(7)")
                await conn.execute(checked_late)
        async with pool.acquire() as conn:
            held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            assert await conn.fetchval(held) == 0
        assert await outside.fetchval("SELECT count(*) FROM late") == 0


@pytest.fixture
async def role(outside: asyncpg.Connection) -> Any:
    """Create a role that nobody needs."""
    await outside.execute("DROP ROLE IF EXISTS fleeting")
    await outside.execute("CREATE ROLE fleeting")
    yield "fleeting"
    await outside.execute("DROP ROLE IF EXISTS fleeting")


async def test_reset_that_fails_after_the_commit_is_no_error_of_the_commit(
    dsn: str, outside: asyncpg.Connection, role: str
) -> None:
    """What is committed is committed: who was told of an error would do it again."""

    async def become(conn: asyncpg.Connection) -> None:
        await conn.execute(f"SET ROLE {role}")

    async with of_one(dsn, on_connect=become, acquire_timeout=1.0) as pool:
        async with pool.transaction() as conn:
            pid = conn.get_server_pid()
            await conn.execute("RESET ROLE")
            await insert(conn)
            await outside.execute(f"DROP ROLE {role}")
        assert await rows(outside) == [1]
        await until(lambda: sum(pool.stats().retired.values()) == 1)  # its reset fails as well
        assert pid
        with pytest.raises((ConnectFailed, PoolTimeout)):
            await pool.acquire()


class Cleaning(asyncpg.Connection):
    """Has a reset query of its own."""

    query: str

    def get_reset_query(self) -> str:
        """Return it."""
        if not self.query:
            raise RuntimeError("no query")
        return type(self).query


@pytest.mark.parametrize("query", ["BEGIN; SELECT 1 / 0; COMMIT", "SELEC 1", ""])
async def test_reset_query_that_fails_is_no_error_of_the_commit(
    dsn: str, outside: asyncpg.Connection, query: str
) -> None:
    """Of a user's query nobody knows how it ends: it is not sent with the COMMIT."""
    Cleaning.query = query
    async with of_one(dsn, connect_kwargs={"connection_class": Cleaning}) as pool:
        async with pool.transaction() as conn:
            await insert(conn)
        assert await rows(outside) == [1]
        await until(lambda: pool.stats().retired["broken"] == 1)
        await quiet(pool)


DEFERRABLE = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
}


@pytest.mark.parametrize("begins_so", [True, False])
async def test_commit_does_not_wait_for_others_with_its_reset(
    dsn: str, outside: asyncpg.Connection, *, begins_so: bool
) -> None:
    """A session may be such that each of its transactions waits until no other one writes."""
    settings = DEFERRABLE if begins_so else {}
    arguments = {"server_settings": settings, "command_timeout": PATIENCE}
    async with of_one(dsn, connect_kwargs=arguments) as pool:
        async with pool.transaction() as conn:
            pid = conn.get_server_pid()
            for name, value in DEFERRABLE.items():
                await conn.execute(f"SET {name} TO {value}")
            await conn.fetch("SELECT x FROM t")
            await outside.execute("BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO t VALUES (1)")
        assert (await last_query(outside, pid)).startswith(FOLDED)
        await outside.execute("ROLLBACK")
        await check_pool(pool)


async def test_connection_lost_during_the_commit_is_an_error(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Nobody knows whether it took effect."""
    await outside.execute(LATE_TRIGGER)
    async with of_one(dsn) as pool:
        task = asyncio.ensure_future(commit_late(pool))
        pid = await running(outside, FOLDED)
        await outside.fetchval("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(CommitUnknown) as caught:
            await task
        lost = (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError)
        assert isinstance(caught.value.__cause__, lost)
        await quiet(pool)
        await check_pool(pool)


LATE_TRIGGER = """
    DROP TABLE IF EXISTS waits;
    CREATE TABLE waits (x int);
    CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(600); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON waits
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait();
"""


async def commit_late(pool: Pooled, *, note: Callable[[Any], object] = id) -> None:
    """Run a transaction whose COMMIT takes for ever."""
    async with pool.transaction() as conn:
        note(conn)
        await conn.execute("INSERT INTO waits VALUES (1)")


async def test_commit_that_is_cancelled_costs_nobody_anything(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """It is cancelled on the server, and the next user finds nothing of the lease."""
    await outside.execute(LATE_TRIGGER)
    async with of_one(dsn) as pool:
        task = asyncio.ensure_future(commit_late(pool))
        pid = await running(outside, FOLDED)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert not conn.is_in_transaction()
        assert await outside.fetchval("SELECT count(*) FROM waits") == 0
        await check_pool(pool)


async def test_connection_that_another_task_touches_during_the_commit_is_reset(
    dsn: str, outside: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """What it does then nobody has undone yet: here it adds a listener, which sends nothing."""
    await outside.execute(LATE_TRIGGER.replace("pg_sleep(600)", "pg_sleep(0.3)"))
    got: list[Any] = []
    async with of_one(dsn) as pool:
        task = asyncio.ensure_future(commit_late(pool, note=got.append))
        pid = await running(outside, FOLDED)
        got[0].add_log_listener(print)
        await task
        await quiet(pool)
        assert not (await last_query(outside, pid)).startswith(FOLDED)
        assert any("1 log listener" in said for said in warnings_in(caplog))
        await check_pool(pool)
