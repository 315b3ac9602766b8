"""Servers that speak PostgreSQL's language, and lack some of what a reset sends."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from poolkit import Verdict
from poolkit.compat import asyncpg as compat
from poolkit.drivers.asyncpg import create_pool
from tests.drivers.asyncpg_help import LOOPS, of_one, quiet, warnings_in
from tests.drivers.other_server import DEATH, OtherServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.drivers.asyncpg_help import Pooled
    from tests.postgres import Postgres

LOCKS = r"pg_advisory_unlock_all"
DISCARD = r"\bDISCARD\b"
LOOP = r"^\s*DO\b|;\s*DO\b"

#: What others say of themselves, and with which codes they refuse what, as far as is known.
SERVERS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "Redshift": (
        {"server_version": "8.0.2", "padb_revision": "1"},
        {
            LOCKS: "42883",
            r"CLOSE ALL": "42601",
            r"UNLISTEN": "0A000",
            DISCARD: "42601",
            r"\bROLE\b": "42601",
            LOOP: "42601",
            r"\bCOPY\b": "42601",
            r"pg_prepared_statements": "42P01",
        },
    ),
    "CockroachDB 21": (
        {"server_version": "13.0.0", "crdb_version": "CockroachDB CCL v21.2.0"},
        {
            LOCKS: "42883",
            r"CLOSE ALL": "0A000",
            r"UNLISTEN": "42601",
            DISCARD: "0A000",
            r"RESET SESSION AUTHORIZATION": "42704",
            LOOP: "42601",
            r"\bCOPY\b": "0A000",
        },
    ),
    "CockroachDB 24": (
        {"server_version": "13.0.0", "crdb_version": "CockroachDB CCL v24.1.0"},
        {},
    ),
    "CrateDB": (
        {"server_version": "14.0", "crate_version": "5.6.0"},
        {
            LOCKS: "42883",
            r"CLOSE ALL": "42601",
            r"UNLISTEN": "42601",
            DISCARD: "42601",
            r"\bROLE\b": "42601",
            LOOP: "42601",
            r"\bCOPY\b": "42601",
            r"pg_catalog.pg_settings": "42P01",
        },
    ),
    "one that takes statements one by one": ({}, {r";\s*\S": "0A000"}),
    "YugabyteDB 2.0": ({}, {r"CLOSE ALL": "0A000", r"UNLISTEN": "0A000"}),
    "Materialize": ({}, {LOCKS: "42883", r"UNLISTEN": "42601", LOOP: "42601", DISCARD: "0A000"}),
    "Aurora DSQL": (
        {},
        {
            LOCKS: "0A000",
            r"UNLISTEN": "0A000",
            r"DISCARD (TEMP|SEQUENCES)": "0A000",
            LOOP: "42704",
        },
    ),
}


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


@pytest.fixture
def server(postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[OtherServer]:
    """Return one of them; by default one that is PostgreSQL itself."""
    says, refuses = SERVERS.get(getattr(request, "param", ""), ({}, {}))
    with OtherServer(postgres.host, postgres.port, says=says, refuses=refuses) as server:
        yield server


def through(server: OtherServer, dsn: str) -> str:
    """Return the DSN of the other server, without TLS."""
    return f"{server.through(dsn)}?sslmode=disable"


def of(server: OtherServer, dsn: str, **options: Any) -> Pooled:
    """Return a pool of one connection, which no stall of a busy machine costs it."""
    patient = {
        "ping_timeout": 30,
        "reset_timeout": 30,
        "connect_timeout": 30,
        "acquire_timeout": 60,
    }
    return of_one(through(server, dsn), **{**patient, **options})


async def use(conn: asyncpg.Connection) -> None:
    """Do what every server can."""
    assert await conn.fetchval("SELECT $1::int", 1) == 1
    await conn.execute("SET application_name = 'changed'")


@pytest.mark.parametrize("level", ["full", "full+prepared", "transaction"])
@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_five_leases_on_another_server_take_one_connection(
    dsn: str, server: OtherServer, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The reset leaves out what the server does not know, which is said once."""
    async with of(server, dsn, reset=level) as pool:
        for _ in range(5):
            async with pool.acquire() as conn:
                if level != "transaction":
                    assert await conn.fetchval("SHOW application_name") == ""
                await use(conn)
        await quiet(pool)
        assert pool.stats().size == 1
    assert server.accepted == 1
    said = [text for text in warnings_in(caplog) if "no statement to undo" in text]
    assert len(said) == len(warnings_in(caplog)) == bool(server.refuses), warnings_in(caplog)


@pytest.mark.parametrize("server", ["Aurora DSQL"], indirect=True)
async def test_what_is_not_undone_is_named(
    dsn: str, server: OtherServer, caplog: pytest.LogCaptureFixture
) -> None:
    """And what the server does know is undone all the same."""
    async with of(server, dsn) as pool:
        async with pool.acquire() as conn:
            await conn.execute("SET work_mem = '3MB'; SET ROLE pg_monitor")
            await conn.execute("DECLARE held CURSOR WITH HOLD FOR SELECT 1")
        async with pool.acquire() as conn:
            assert await conn.fetchval("SHOW work_mem") == "4MB"
            assert await conn.fetchval("SELECT current_user::text") != "pg_monitor"
            assert await conn.fetchval("SELECT count(*) FROM pg_cursors WHERE name = 'held'") == 0
    (said,) = warnings_in(caplog)
    for lost in ("advisory locks", "LISTEN", "temporary tables", "currval of sequences", "PREPARE"):
        assert lost in said
    for undone in ("settings", "role", "cursors", "session authorization"):
        assert undone not in said


@pytest.mark.parametrize("server", ["CockroachDB 24"], indirect=True)
async def test_what_the_library_does_not_expect_is_used_if_it_is_there(
    dsn: str, server: OtherServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Asyncpg takes CockroachDB to have no locks; this one has all that is asked for."""
    async with of(server, dsn) as pool:
        async with pool.acquire() as conn:
            await conn.execute("SELECT pg_advisory_lock(1); CREATE TEMP TABLE only_here (x int)")
        async with pool.acquire() as conn:
            left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            assert await conn.fetchval(left) == 0
            assert await conn.fetchval("SELECT to_regclass('pg_temp.only_here')") is None
    assert server.accepted == 1
    assert warnings_in(caplog) == []


async def test_server_is_tried_once(dsn: str, server: OtherServer) -> None:
    """The first connection asks, in one round trip; the others know."""
    async with create_pool(through(server, dsn), max_size=3, min_size=3):
        pass
    tried = [text for text in server.texts if "DISCARD" in text]
    assert 1 <= len(tried) <= 3  # at a cold start several connect at once
    before = len(server.texts)
    pool = create_pool(through(server, dsn), max_size=2, min_size=1)
    async with pool, pool.acquire(), pool.acquire():
        pass
    assert len([text for text in server.texts[before:] if "DISCARD" in text]) == 1


@pytest.mark.parametrize("code", ["0A000", "42601", "42883", "42704", "42501", "57014"])
async def test_reset_that_fails_teaches_nothing(
    dsn: str, server: OtherServer, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A tenant who makes it fail costs his own connection, and switches nothing off for others."""
    async with of(server, dsn, min_size=0) as pool:
        async with pool.acquire() as conn:
            await use(conn)
            server.refuses[DISCARD] = code
        await quiet(pool)
        del server.refuses[DISCARD]
        async with pool.acquire() as conn:
            await conn.execute("CREATE TEMP TABLE only_here (x int)")
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT to_regclass('pg_temp.only_here')") is None
        await quiet(pool)
    assert server.accepted == 2
    assert "no statement to undo" not in caplog.text


@pytest.mark.parametrize("code", ["42501", "57014", "53200", "XX000"])
async def test_trial_that_fails_for_another_reason_teaches_nothing(
    dsn: str, server: OtherServer, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Only an error that says that there is no such thing is a reason to leave it out."""
    server.refuses[DISCARD] = code
    async with of(server, dsn) as pool:
        del server.refuses[DISCARD]
        async with pool.acquire() as conn:
            await conn.execute("CREATE TEMP TABLE only_here (x int)")
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT to_regclass('pg_temp.only_here')") is None
        await quiet(pool)
    assert server.accepted == 1
    assert "no statement to undo" not in caplog.text


@pytest.mark.parametrize("server", ["Redshift", "Materialize", ""], indirect=True)
async def test_connection_that_dies_in_the_trial_teaches_nothing(
    dsn: str, server: OtherServer
) -> None:
    """The next one is tried instead."""
    server.refuses = {"RESET ALL": DEATH, **server.refuses}
    async with of(server, dsn, min_size=0) as pool:
        for _ in range(5):
            async with pool.acquire() as conn:
                await use(conn)
    assert server.accepted == 2


async def test_server_that_has_become_another_is_tried_anew(
    dsn: str, server: OtherServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A reset that it refuses as unknown costs one connection; the next one finds out why."""
    async with of(server, dsn) as pool:
        async with pool.acquire() as conn:
            await use(conn)
        await quiet(pool)
        server.refuses[DISCARD] = "0A000"
        for _ in range(5):
            async with pool.acquire() as conn:
                await use(conn)
        await quiet(pool)
    assert server.accepted == 2
    assert "temporary tables" in caplog.text


@pytest.mark.parametrize("server", ["CockroachDB 21"], indirect=True)
@pytest.mark.parametrize(
    "left", ["PREPARE mine AS SELECT 1", "DEALLOCATE ALL", "PREPARE a AS SELECT 1; DEALLOCATE a"]
)
async def test_statements_are_prepared_anew_where_some_cannot_be_ended_alone(
    dsn: str, server: OtherServer, left: str
) -> None:
    """All are ended then, asyncpg's too, whose next use prepares them."""
    async with of(server, dsn) as pool:
        for _ in range(3):
            async with pool.acquire() as conn:
                assert await conn.fetchval("SELECT $1::int", 1) == 1
                mine = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"
                assert await conn.fetchval(mine) == 0
                await conn.execute(left)
    assert server.accepted == 1


@pytest.mark.parametrize("server", ["Redshift", "CrateDB"], indirect=True)
async def test_session_that_cannot_be_read_is_set_up_all_the_same(
    dsn: str, server: OtherServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What on_connect sets is gone after a reset, which is said once."""

    async def set_up(conn: asyncpg.Connection) -> None:
        await conn.execute("SET work_mem = '3MB'")

    async with of(server, dsn, on_connect=set_up) as pool:
        for _ in range(3):
            async with pool.acquire() as conn:
                await use(conn)
        pool.renew()
        async with pool.acquire() as conn:
            await use(conn)
    assert server.accepted == 2
    assert [("no statement" in t, "ends what on_connect" in t) for t in warnings_in(caplog)] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_pool_in_asyncpgs_words_keeps_its_connection(dsn: str, server: OtherServer) -> None:
    """Where asyncpg knows of the server what it lacks, its own reset is sent."""
    async with compat.create_pool(through(server, dsn), min_size=1, max_size=1) as pool:
        for _ in range(5):
            async with pool.acquire() as conn:
                await use(conn)
    assert server.accepted == 1


@pytest.mark.parametrize("server", [it for it in SERVERS if SERVERS[it][0]], indirect=True)
async def test_pool_in_asyncpgs_words_takes_connections_from_a_function(
    dsn: str, server: OtherServer
) -> None:
    """Nothing is tried on what a function has set up: asyncpg's word is taken."""
    async with compat.create_pool(
        through(server, dsn),
        min_size=1,
        max_size=1,
        connect=lambda *a, **k: asyncpg.connect(*a, **k),
    ) as pool:
        for _ in range(5):
            async with pool.acquire() as conn:
                await use(conn)
    assert server.accepted == 1
    assert not any("DISCARD" in text for text in server.texts)


async def test_reset_query_of_ones_own_is_sent(dsn: str, server: OtherServer) -> None:
    """In the middle of what the server knows."""
    server.refuses[DISCARD] = "0A000"

    class Mine(asyncpg.Connection):
        def get_reset_query(self) -> str:
            return "RESET ALL -- mine"

    arguments = {"connection_class": Mine}
    async with of(server, dsn, connect_kwargs=arguments) as pool:
        for _ in range(3):
            async with pool.acquire() as conn:
                await use(conn)
    assert server.accepted == 1
    assert server.texts[-1].endswith("RESET ALL -- mine\n;")


async def test_verdict_on_a_doubtful_connection_is_about_it_alone(dsn: str) -> None:
    """It is closed, and nothing is said of the others."""
    from poolkit.drivers.asyncpg import AsyncpgDriver
    from poolkit.drivers.asyncpg._internals import Unfit

    driver = AsyncpgDriver(dsn)
    c = await driver.connect()
    try:
        assert driver.classify(Unfit("x"), c) is Verdict.SUSPECT
    finally:
        with contextlib.suppress(OSError):
            await driver.close(c)
