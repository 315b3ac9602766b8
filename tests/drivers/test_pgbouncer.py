"""The asyncpg driver behind a real PgBouncer: many processes, few sessions, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import pytest

import poolkit
from poolkit import ConnectFailed, PoolConfigError
from poolkit.drivers.asyncpg import create_pool
from tests.conftest import BACKENDS
from tests.drivers.asyncpg_help import quiet
from tests.drivers.pgbouncer_worker import TABLES
from tests.effort import SHARE

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit import Pool
    from tests.pgbouncer import PgBouncer, StartPgBouncer
    from tests.postgres import Postgres, Server

ROOT = Path(__file__).parents[2]
#: Longer than anything takes, shorter than anybody's patience.
PATIENCE = 20.0
ENDLESS = "SELECT pg_sleep(600)"
#: Sent through PgBouncer by eight processes.
QUERIES = round(10_000 * SHARE)


@pytest.fixture(params=[backend for backend in BACKENDS if backend.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


def name_of(dsn: str) -> str:
    """Return the database that a DSN names."""
    return urlsplit(dsn).path[1:]


async def until(is_so: Callable[[], Any]) -> None:
    """Look again and again until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "it never was so"
        await asyncio.sleep(0.01)


async def ask(pool: Pool[asyncpg.Connection], question: str = "SELECT 1") -> Any:
    """Ask one question on a lease of its own."""
    async with pool.acquire() as conn:
        return await conn.fetchval(question)


# -- many processes ------------------------------------------------------------------------------


def run_processes(
    bouncer: PgBouncer, database: str, processes: int, queries: int, **settings: Any
) -> dict[str, Any]:
    """Have processes work at the same time; return the sum of what they say."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.drivers.pgbouncer_worker", bouncer.dsn(database)),
            *(str(processes), str(queries // processes), json.dumps(settings)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == processes
    return {
        "made": sum(result["made"] for result in results),
        "parts": sum((Counter(result["parts"]) for result in results), Counter[str]()),
        "errors": sum((Counter(result["errors"]) for result in results), Counter[str]()),
        "wrong": [answer for result in results for answer in result["wrong"]],
        "said": done.stderr,
    }


def test_eight_processes_get_no_error_and_no_wrong_row(
    pgbouncer: StartPgBouncer, postgres: Postgres, database: str
) -> None:
    """In thousands of queries of every kind, through four sessions; and all that was committed is there."""
    bouncer, name = pgbouncer(default_pool_size=4), name_of(database)
    for statement in TABLES.split(";")[:-1]:
        postgres.query(statement, database=name)
    result = run_processes(bouncer, name, 8, QUERIES, pooler="transaction")
    assert (dict(result["errors"]), result["wrong"]) == ({}, [])
    assert result["made"] >= QUERIES
    assert result["said"] == ""
    transactions, batches = result["parts"]["transact"], result["parts"]["execute_many"]
    assert transactions > QUERIES / 20
    assert postgres.query("SELECT count(*) FROM work", database=name) == [(transactions,)]
    assert postgres.query("SELECT count(*) FROM batch", database=name) == [(5 * batches,)]
    sessions = [backend.pid for backend in postgres.backends(name)]
    assert len(sessions) <= 4


def test_processes_without_the_preset_get_errors_or_wrong_rows(
    pgbouncer: StartPgBouncer, postgres: Postgres, database: str
) -> None:
    """So the test above can fail; and every one of them is told what to set."""
    bouncer, name = pgbouncer(), name_of(database)
    for statement in TABLES.split(";")[:-1]:
        postgres.query(statement, database=name)
    result = run_processes(bouncer, name, 3, 180)
    assert result["errors"].total() + len(result["wrong"]) > 10
    assert result["said"].count("pooler='transaction'") == 3


# -- the preset ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", ["full", "full+prepared"])
def test_reset_of_the_session_is_refused_behind_a_pooler(reset: Any) -> None:
    """It would be somebody else's session."""
    with pytest.raises(PoolConfigError, match="reset a session that belongs to others"):
        create_pool("postgresql://host/db", pooler="transaction", reset=reset)


@pytest.mark.parametrize("name", ["search_path", "statement_timeout", "jit", "options"])
def test_setting_of_the_session_is_refused_behind_a_pooler(name: str) -> None:
    """However it is given: PgBouncer refuses it, or ignores it."""
    with pytest.raises(PoolConfigError, match=f"^{name}: settings of the session"):
        create_pool(
            "postgresql://host/db",
            pooler="transaction",
            connect_kwargs={"server_settings": {"application_name": "a", name: "b"}},
        )
    with pytest.raises(PoolConfigError, match=f"^{name}: settings of the session"):
        create_pool(f"postgresql://host/db?sslmode=disable&{name}=b", pooler="transaction")
    with pytest.raises(PoolConfigError, match=f"^{name}: settings of the session"):
        poolkit.create_pool(f"postgresql://host/db?pooler=transaction&{name}=b")


async def test_settings_that_a_pooler_carries_along_pass(pgbouncer: StartPgBouncer) -> None:
    """Each client has its own, whatever session it gets."""
    bouncer = pgbouncer(default_pool_size=1)
    one = create_pool(f"{bouncer.dsn()}?application_name=one", pooler="transaction")
    settings = {"application_name": "two", "TimeZone": "Asia/Tokyo"}
    two = create_pool(
        bouncer.dsn(), pooler="transaction", connect_kwargs={"server_settings": settings}
    )
    async with one, two:
        for _ in range(2):
            assert await ask(one, "SELECT current_setting('application_name')") == "one"
            assert await ask(two, "SELECT current_setting('application_name')") == "two"
            assert await ask(two, "SELECT current_setting('TimeZone')") == "Asia/Tokyo"


@pytest.mark.parametrize(("arguments", "cached"), [({}, 0), ({"statement_cache_size": 10}, 1)])
async def test_statements_are_cached_only_if_asked_for(
    arguments: dict[str, Any], cached: int, pgbouncer: StartPgBouncer
) -> None:
    """From 1.21 on PgBouncer can keep track of them, where it is told to."""
    bouncer = pgbouncer(default_pool_size=1)
    query = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE '__asyncpg%'"
    async with create_pool(
        bouncer.dsn(), max_size=1, pooler="transaction", connect_kwargs=arguments
    ) as pool:
        assert await ask(pool, query) == cached


# -- between two leases --------------------------------------------------------------------------


def sent(server: Server) -> list[str]:
    """Return the statements that the server has had from the pool, which goes by a name."""
    found = re.findall(
        r"^tested LOG:  (?:statement|execute <unnamed>): (.*?);?$", server.said(), re.MULTILINE
    )
    return [statement for statement in found if not statement.startswith("SET client_encoding")]


async def test_release_sends_nothing_or_a_rollback(
    pgbouncer: StartPgBouncer, own_postgres: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing else concerns this lease alone; listeners do not work there, and are removed."""
    own_postgres.configure(log_statement="all", log_line_prefix="%a ")
    bouncer = pgbouncer(own_postgres, default_pool_size=1)
    dsn = f"{bouncer.dsn()}?application_name=tested"
    async with create_pool(dsn, max_size=1, pooler="transaction", ping_after=None) as pool:
        for n in range(2):
            assert await ask(pool, f"SELECT {n}") == n
        async with pool.acquire() as conn:
            await conn.execute("BEGIN")
            await conn.execute("CREATE TABLE undone ()")
        assert await ask(pool, "SELECT to_regclass('undone') IS NULL")
        async with pool.transaction() as conn:
            await conn.execute("SELECT 2")
        async with pool.acquire() as conn:
            await conn.add_listener("news", print)
        await ask(pool, "SELECT 3")
        assert pool.stats().connected == 1
    assert sent(own_postgres) == [
        *("SELECT 0", "SELECT 1"),
        *("BEGIN", "CREATE TABLE undone ()", "ROLLBACK"),
        "SELECT to_regclass('undone') IS NULL",
        *("BEGIN", "SELECT 2", "COMMIT"),
        *('LISTEN "news"', "UNLISTEN *"),
        "SELECT 3",
    ]
    assert "an open transaction was left behind" in caplog.text


async def test_ping_goes_through_to_the_server(
    pgbouncer: StartPgBouncer, own_postgres: Server
) -> None:
    """That PgBouncer is alive says little."""
    own_postgres.configure(log_statement="all", log_line_prefix="%a ")
    bouncer = pgbouncer(own_postgres)
    dsn = f"{bouncer.dsn()}?application_name=tested"
    async with create_pool(dsn, max_size=1, pooler="transaction", ping_after=0.0) as pool:
        for n in range(10, 12):
            assert await ask(pool, f"SELECT {n}") == n
        assert pool.stats().connected == 1
    assert sent(own_postgres) == ["SELECT 1", "SELECT 10", "SELECT 1", "SELECT 11"]


async def test_cancelled_query_ends_on_the_server(
    pgbouncer: StartPgBouncer, postgres: Postgres, database: str
) -> None:
    """The connection stays, and its next user finds nothing of it."""
    bouncer, name = pgbouncer(default_pool_size=1), name_of(database)

    def running() -> list[str]:
        return [b.query for b in postgres.backends(name) if b.state == "active"]

    async with create_pool(bouncer.dsn(name), max_size=1, pooler="transaction") as pool:
        for block in (pool.acquire, pool.transaction):

            async def work(block: Any = block) -> None:
                async with block() as conn:
                    await conn.execute(ENDLESS)

            task = asyncio.create_task(work())
            await until(running)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            async with pool.acquire() as conn:
                assert not conn.is_in_transaction()
                assert await conn.fetchval("SELECT 7") == 7
            assert running() == []
        assert pool.stats().connected == 1


# -- looking for a pooler ------------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said of a pooler."""
    return [r.getMessage() for r in caplog.records if "there is a pooler" in r.getMessage()]


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
async def test_pooler_in_front_is_warned_of_once(
    pool_mode: Any, pgbouncer: StartPgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    """By each pool, however many connections it opens, at once or later; with what to set."""
    bouncer = pgbouncer(pool_mode=pool_mode, default_pool_size=4)
    async with create_pool(bouncer.dsn(), min_size=4, max_size=4) as pool:
        pool.renew()
        await ask(pool)
        await quiet(pool)
    (warning,) = warnings_of(caplog)
    assert f"{bouncer.host}:{bouncer.port}" in warning
    assert "pooler='transaction'" in warning
    assert "pooler='session'" in warning


@pytest.mark.parametrize(
    "settings",
    [
        {"pooler": "transaction"},
        {"pooler": "session"},
        {"connect_kwargs": {"statement_cache_size": 0}},
    ],
)
async def test_pooler_that_does_no_harm_is_not_warned_of(
    settings: Any, pgbouncer: StartPgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    """Who has said so knows; and without the cache nothing happens."""
    async with create_pool(pgbouncer(pool_mode="session").dsn(), **settings) as pool:
        await ask(pool)
    assert warnings_of(caplog) == []


async def test_direct_connection_is_not_taken_for_a_pooler(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is warned for nothing."""
    async with create_pool(database, min_size=3) as pool:
        await ask(pool)
    assert warnings_of(caplog) == []


# -- faults --------------------------------------------------------------------------------------


async def test_killed_pooler_costs_the_queries_in_flight(
    pgbouncer: StartPgBouncer, database: str
) -> None:
    """Whoever comes meanwhile waits, and is served by the next one that runs."""
    bouncer = pgbouncer()
    async with create_pool(bouncer.dsn(), pooler="transaction", min_size=3, max_size=3) as pool:
        in_flight = asyncio.create_task(ask(pool, ENDLESS))
        await until(lambda: pool.stats().leased == 1)
        bouncer.kill()
        with pytest.raises((asyncpg.ConnectionDoesNotExistError, ConnectionError)):
            await in_flight
        await until(lambda: pool.stats().idle == 0)
        meanwhile = [asyncio.create_task(ask(pool)) for _ in range(5)]
        await until(lambda: pool.stats().waiting == 5)
        bouncer.start()
        assert await asyncio.gather(*meanwhile) == [1] * 5
        stats = pool.stats()
        assert (stats.leased, stats.waiting) == (0, 0)
        assert stats.size <= 3


async def test_paused_pooler_lets_callers_wait(pgbouncer: StartPgBouncer) -> None:
    """As its operators mean it, also when a ping comes to nothing; nobody sees an error."""
    bouncer = pgbouncer()
    options: dict[str, Any] = {"max_size": 2, "ping_after": 0.0, "ping_timeout": 0.1}
    async with create_pool(bouncer.dsn(), pooler="transaction", **options) as pool:
        await ask(pool)
        console = await asyncpg.connect(bouncer.dsn("pgbouncer"))
        try:
            await console.execute("PAUSE")
            callers = [asyncio.create_task(ask(pool)) for _ in range(3)]
            await until(lambda: (pool.stats().leased, pool.stats().waiting) == (2, 1))
            await console.execute("RESUME")
            assert await asyncio.gather(*callers) == [1, 1, 1]
        finally:
            await console.close()
        assert pool.stats().leased == 0


async def test_pool_recovers_after_the_server_behind_the_pooler(
    pgbouncer: StartPgBouncer, own_postgres: Server
) -> None:
    """PgBouncer accepts connections all the while, so it is the queries that fail, not acquiring."""
    bouncer = pgbouncer(own_postgres, query_wait_timeout=1, server_login_retry=0.1)
    failures = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
    async with create_pool(bouncer.dsn(), pooler="transaction", max_size=3) as pool:
        assert await ask(pool) == 1
        own_postgres.stop()
        for _ in range(4):
            with pytest.raises(failures):
                await ask(pool)
        own_postgres.start()
        deadline = time.monotonic() + PATIENCE
        answer = None
        while answer is None:
            assert time.monotonic() < deadline, "the pool has not recovered"
            with contextlib.suppress(*failures):
                answer = await ask(pool)
            await asyncio.sleep(0.01)
        stats = pool.stats()
        assert (stats.leased, stats.waiting) == (0, 0)
        assert stats.size <= 3


async def test_unknown_database_behind_the_pooler_is_told_at_once(
    pgbouncer: StartPgBouncer,
) -> None:
    """Though PgBouncer has one code for all that goes wrong."""
    pool = create_pool(pgbouncer().dsn("no_such_database"), pooler="transaction")
    with pytest.raises(ConnectFailed, match='"no_such_database" does not exist'):
        await pool.open()


async def test_full_pooler_is_waited_for(pgbouncer: StartPgBouncer) -> None:
    """Who leaves makes room."""
    bouncer = pgbouncer(max_client_conn=2)
    others = [await asyncpg.connect(bouncer.dsn()) for _ in range(2)]
    try:
        async with create_pool(bouncer.dsn(), pooler="transaction", min_size=0) as pool:
            callers = [asyncio.create_task(ask(pool)) for _ in range(3)]
            await until(lambda: "no more connections allowed" in bouncer.said())
            await others.pop().close()
            assert await asyncio.gather(*callers) == [1, 1, 1]
    finally:
        for other in others:
            await other.close()
