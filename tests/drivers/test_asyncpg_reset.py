"""What is left of one lease of asyncpg's when the next begins: nothing, on the same session."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.drivers.asyncpg_help import (
    ENDLESS,
    LEVELS,
    LOOPS,
    CountingProxy,
    last_query,
    leave_nothing,
    of_one,
    quiet,
    rows,
    states,
    warnings_in,
)
from tests.fakes import gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.postgres import Postgres, Server


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


async def answer(conn: asyncpg.Connection, sql: str) -> object:
    """Return the answer to a question, or the kind of error."""
    try:
        return await conn.fetchval(sql)
    except asyncpg.PostgresError as error:
        return type(error)


# -- the state of the session --------------------------------------------------------------------

STATE = {
    "search_path": ("SET search_path TO elsewhere", "SHOW search_path"),
    "work_mem": ("SET work_mem = '3MB'", "SHOW work_mem"),
    "statement_timeout": ("SET statement_timeout = 54321", "SHOW statement_timeout"),
    "time zone": ("SET TIME ZONE 'Asia/Tokyo'", "SHOW timezone"),
    "set_config": ("SELECT set_config('work_mem', '3MB', false)", "SHOW work_mem"),
    "custom setting": (
        "SET my.tenant = 'alice'",
        "SELECT coalesce(current_setting('my.tenant', true), '')",
    ),
    "read only": ("SET default_transaction_read_only = on", "SHOW transaction_read_only"),
    "isolation": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SHOW transaction_isolation",
    ),
    "role": ("SET ROLE pg_monitor", "SELECT current_user::text"),
    "session authorization": (
        "SET SESSION AUTHORIZATION pg_monitor",
        "SELECT session_user::text",
    ),
    "temporary table": (
        "CREATE TEMPORARY TABLE only_here (x int)",
        "SELECT to_regclass('pg_temp.only_here') IS NOT NULL",
    ),
    "advisory lock": (
        "SELECT pg_advisory_lock(1)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    "LISTEN": ("LISTEN here", "SELECT count(*) FROM pg_listening_channels()"),
    "held cursor": (
        "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE name = 'held'",
    ),
    "lastval": ("SELECT nextval('s')", "SELECT lastval() > 0"),
    "currval": ("SELECT nextval('s')", "SELECT currval('s') > 0"),
}
PREPARED = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"


@pytest.mark.parametrize("ending", ["well", "by a cancellation"])
@pytest.mark.parametrize("what", STATE)
async def test_state_of_a_session_does_not_reach_the_next_user(
    dsn: str, outside: asyncpg.Connection, what: str, ending: str
) -> None:
    """It was there within the lease, and is gone for the next user of the same session."""
    change, question = STATE[what]
    async with of_one(dsn) as pool:
        with contextlib.suppress(TimeoutError):
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                before = await answer(conn, question)
                await conn.execute(change)
                assert await answer(conn, question) != before
                if ending == "by a cancellation":
                    async with asyncio.timeout(0.01):
                        await conn.execute(ENDLESS)
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert await answer(conn, question) == before


@pytest.mark.parametrize("level", ["transaction", "none"])
@pytest.mark.parametrize(
    "what", ["search_path", "role", "temporary table", "advisory lock", "LISTEN"]
)
async def test_light_reset_leaves_the_state_of_the_session(
    dsn: str, outside: asyncpg.Connection, what: str, level: str
) -> None:
    """Those who choose it see to that themselves; it is how the other test can fail."""
    change, question = STATE[what]
    async with of_one(dsn, reset=level) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            await conn.execute(change)
            during = await answer(conn, question)
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert await answer(conn, question) == during


async def test_settings_given_for_all_connections_survive_the_reset(dsn: str) -> None:
    """What ``server_settings`` says is what a reset goes back to."""
    settings = {"search_path": "elsewhere", "my.tenant": "all"}
    async with of_one(dsn, connect_kwargs={"server_settings": settings}) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await conn.fetchval("SHOW search_path") == "elsewhere"
                assert await conn.fetchval("SHOW my.tenant") == "all"
                await conn.execute("SET search_path TO public; SET my.tenant = 'one'")


async def test_role_that_a_login_begins_with_is_the_one_a_reset_goes_back_to(
    own_postgres: Server,
) -> None:
    """Whichever way the lease has left it."""
    for sql in (
        "CREATE ROLE worker",
        "CREATE ROLE app LOGIN IN ROLE worker",
        "ALTER ROLE app SET role = 'worker'",
    ):
        own_postgres.query(sql)
    async with of_one(own_postgres.dsn(user="app")) as pool:
        for change in ("SET ROLE NONE", "SET SESSION AUTHORIZATION app", "SELECT 1"):
            async with pool.acquire() as conn:
                assert await conn.fetchval("SELECT current_user") == "worker"
                await conn.execute(change)


NAMES = ["plain", "Mixed Case", 'with "quotes"', "it's; DROP", "ünï", "%I %s"]


async def test_statement_prepared_in_secret_is_kept_by_full(dsn: str) -> None:
    """What functions do nobody reads; ``full+prepared`` is for those who mind."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            secret = "EXECUTE 'PRE' || 'PARE mine AS SELECT 1'"
            await conn.execute(f"DO $$ BEGIN {secret}; END $$")
        async with pool.acquire() as conn:
            assert await conn.fetchval(PREPARED) == 1


@pytest.mark.parametrize("how", ["execute", "fetch", "PREPARE /* so */ mine AS SELECT 1"])
async def test_statement_prepared_by_sql_is_undone_by_full(dsn: str, how: str) -> None:
    """It may have data in it. Those of on_connect stay, and a connection without them is replaced."""

    async def set_up(conn: asyncpg.Connection) -> None:
        await conn.execute('PREPARE "o\'wn" AS SELECT 17')

    async with of_one(dsn, on_connect=set_up) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await conn.fetchval('EXECUTE "o\'wn"') == 17
                assert await conn.fetchval(PREPARED) == 1
                sql = how if how.startswith("P") else "PREPARE mine AS SELECT 1"
                await getattr(conn, "fetch" if how == "fetch" else "execute")(sql)
                assert await conn.fetchval(PREPARED) == 2
        assert pool.stats().connected == 1
        async with pool.acquire() as conn:
            await conn.execute("DEALLOCATE ALL")
        async with pool.acquire() as conn:
            assert await conn.fetchval('EXECUTE "o\'wn"') == 17


async def test_statement_that_a_lease_has_named_and_ended_by_sql_costs_nothing(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not ended twice; the others are."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            kept = [await conn.prepare("SELECT 1", name=name) for name in NAMES]
            await conn.execute(f"DEALLOCATE {NAMES[0]}")
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            names = await conn.fetch("SELECT name FROM pg_prepared_statements")
            assert not {row["name"] for row in names} & set(NAMES)
        del kept
    assert not warnings_in(caplog)


async def test_statements_prepared_by_sql_are_gone_with_full_prepared(dsn: str) -> None:
    """Whatever their names are."""
    async with of_one(dsn, reset="full+prepared") as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            for name in NAMES:
                quoted = name.replace('"', '""')
                await conn.execute(f'PREPARE "{quoted}" AS SELECT 1')
            assert await conn.fetchval(PREPARED) == len(NAMES)
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert await conn.fetchval(PREPARED) == 0


@pytest.mark.parametrize("level", LEVELS)
async def test_cache_of_statements_outlives_the_reset(
    postgres: Postgres, dsn: str, level: Any
) -> None:
    """The next user's query is one round trip, without an error."""
    with CountingProxy(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn), reset=level) as pool:
            for expected in (2, 1, 1):
                async with pool.acquire() as conn:
                    before = proxy.trips
                    assert await conn.fetchval("SELECT $1::int + 1", 1) == 2
                    assert proxy.trips - before == expected
                await quiet(pool)


# -- what a release costs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "idle", "open_"),
    [
        pytest.param("full", 1, 1, id="full"),
        pytest.param("full+prepared", 1, 1, id="full+prepared"),
        pytest.param("transaction", 0, 1, id="transaction"),
        pytest.param("none", 0, 1, id="none"),
        pytest.param(leave_nothing, 0, 1, id="function"),
    ],
)
async def test_release_takes_so_many_round_trips(
    postgres: Postgres, dsn: str, level: Any, idle: int, open_: int
) -> None:
    """None for an untouched lease; one for a full reset, also out of a transaction."""
    with CountingProxy(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn), reset=level) as pool:
            await quiet(pool)
            for queries, expected in (([], 0), (["SELECT 1"], idle), (["BEGIN"], open_)):
                async with pool.acquire() as conn:
                    for query in queries:
                        await conn.execute(query)
                    before = proxy.trips
                await quiet(pool)
                assert proxy.trips - before == expected, queries
            # Statements and transactions that were made and are over cost nothing more.
            async with pool.acquire() as conn:
                async with conn.transaction():
                    await (await conn.prepare("SELECT 1")).fetch()
                before = proxy.trips
            await quiet(pool)
            assert proxy.trips - before == idle


# -- transactions left open ----------------------------------------------------------------------


async def begin_by_hand(conn: asyncpg.Connection) -> None:
    """Begin by a statement."""
    await conn.execute("BEGIN")
    await conn.execute("INSERT INTO t VALUES (1)")


async def begin_and_fail(conn: asyncpg.Connection) -> None:
    """Leave a transaction that has failed."""
    await begin_by_hand(conn)
    with pytest.raises(asyncpg.UndefinedTableError):
        await conn.execute("SELECT * FROM nonsense")


async def begin_by_object(conn: asyncpg.Connection) -> None:
    """Start a transaction of asyncpg's and forget it."""
    await conn.transaction().start()
    await conn.execute("INSERT INTO t VALUES (1)")


async def begin_nested(conn: asyncpg.Connection) -> None:
    """Start one within another, and forget both."""
    await begin_by_object(conn)
    await begin_by_object(conn)


OPENINGS = [begin_by_hand, begin_and_fail, begin_by_object, begin_nested]


@pytest.mark.parametrize("begin", OPENINGS)
@pytest.mark.parametrize("level", LEVELS)
async def test_transaction_left_open_is_rolled_back(
    dsn: str,
    outside: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
    level: Any,
    begin: Callable[[asyncpg.Connection], Any],
) -> None:
    """At every level; it is said once for each place. The next transaction is a real one."""
    async with of_one(dsn, reset=level) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                await begin(conn)
                assert (await states(outside))[pid].startswith("idle in transaction")
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert (await states(outside))[pid] == "idle"
            async with conn.transaction():
                assert await last_query(outside, pid) == "BEGIN;"
                await conn.execute("INSERT INTO t VALUES (2)")
        assert await rows(outside) == [2]
    (said,) = warnings_in(caplog)
    assert said.startswith("an open transaction was left behind by the lease acquired at ")
    assert "test_asyncpg_reset.py:" in said


async def test_transaction_left_by_a_cancelled_lease_is_not_complained_of(
    dsn: str, outside: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody could have ended it."""
    async with of_one(dsn) as pool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), pool.acquire() as conn:
                await conn.execute("BEGIN")
                await conn.execute(ENDLESS)
        async with pool.acquire() as conn:
            assert not conn.is_in_transaction()
    assert not warnings_in(caplog)


# -- other resets --------------------------------------------------------------------------------


async def test_function_as_reset_gets_the_connection_itself(dsn: str) -> None:
    """After the rollback; what it does is what is done."""
    seen: list[Any] = []

    async def reset(c: asyncpg.Connection) -> None:
        seen.append((asyncpg.Connection in type(c).__mro__, c.is_in_transaction()))
        await c.execute("RESET work_mem")

    async with of_one(dsn, reset=reset) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            await conn.execute("BEGIN; SET SESSION work_mem = '3MB'; SET my.tenant = 'a'; COMMIT")
            await conn.execute("BEGIN")
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert await conn.fetchval("SHOW work_mem") != "3MB"
            assert await conn.fetchval("SHOW my.tenant") == "a"
    assert seen == [(True, False)] * 2


class Resetter:
    """An object that is as good as an async function."""

    async def __call__(self, c: asyncpg.Connection) -> None:
        """Undo one thing."""
        await c.execute("RESET work_mem")


async def test_object_that_can_be_awaited_when_called_may_be_the_reset(dsn: str) -> None:
    """As with any hook."""
    async with of_one(dsn, reset=Resetter()) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            await conn.execute("SET work_mem = '3MB'")
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert await conn.fetchval("SHOW work_mem") != "3MB"


@pytest.mark.parametrize("query", ["SELECT nonsense", "BEGIN"])
async def test_function_as_reset_that_fails_costs_the_connection(dsn: str, query: str) -> None:
    """By an error, or by leaving a transaction open: the next user has another."""

    async def reset(c: asyncpg.Connection) -> None:
        await c.execute(query)

    async with of_one(dsn, reset=reset) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            await conn.execute("SELECT 1")
        async with pool.acquire() as conn:
            assert conn.get_server_pid() != pid
            assert not conn.is_in_transaction()
        await quiet(pool)
        assert gone(pool.stats()) == {"broken": 2}


@pytest.mark.parametrize("query", ["RESET ALL;", "RESET ALL", "RESET ALL -- all", "", None])
async def test_reset_query_of_a_subclass_takes_the_place_of_asyncpgs(
    dsn: str, caplog: pytest.LogCaptureFixture, query: str | None
) -> None:
    """Written in any way that asyncpg itself takes, with and without a semicolon, or empty."""

    class Own(asyncpg.Connection):
        def get_reset_query(self) -> Any:
            """Return the text under test."""
            return query

    async with of_one(dsn, connect_kwargs={"connection_class": Own}) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            await conn.execute("LISTEN here; SET ROLE pg_monitor")
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert await conn.fetchval("SELECT count(*) FROM pg_listening_channels()") == 1
            assert await conn.fetchval("SELECT current_user = session_user")
    assert not warnings_in(caplog)
