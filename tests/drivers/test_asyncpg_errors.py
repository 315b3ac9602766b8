"""What errors of asyncpg's say about a connection, about the others, and about connecting."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

import asyncpg
import pytest

from poolkit import ConnectFailed, PoolTimeout, Verdict
from poolkit.drivers.asyncpg import AsyncpgDriver, create_pool
from tests.drivers.asyncpg_help import LOOPS, PATIENCE, of_one, quiet, states, until
from tests.fakes import gone
from tests.proxy import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.postgres import Postgres, Server


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


async def failed_connect(dsn: str, **arguments: Any) -> tuple[BaseException, Verdict | None]:
    """Return the error of a connect, and what the driver makes of it."""
    driver = AsyncpgDriver(dsn, connect_kwargs={"timeout": 2, **arguments})
    try:
        c = await driver.connect()
    except Exception as error:
        return error, driver.classify(error, None)
    driver.terminate(c)
    raise AssertionError("connected")


# -- connecting ----------------------------------------------------------------------------------

CONNECTS: dict[str, tuple[dict[str, Any], str | None, Verdict]] = {
    "no such database": ({"database": "nowhere"}, "3D000", Verdict.FATAL),
    "no such role": ({"user": "nobody_there"}, "28000", Verdict.FATAL),
    "wrong password": ({"user": "bob", "password": "wrong"}, "28P01", Verdict.FATAL),
    "no password": ({"user": "bob"}, "28P01", Verdict.FATAL),
    "may not connect": ({"user": "dave", "database": "closed"}, "42501", Verdict.FATAL),
    "no such setting": ({"server_settings": {"nonsense": "1"}}, "42704", Verdict.FATAL),
    "no such value": ({"server_settings": {"work_mem": "much"}}, "22023", Verdict.FATAL),
    "no TLS": ({"ssl": "require"}, None, Verdict.FATAL),
    "too many": ({"user": "carol"}, "53300", Verdict.TRANSIENT),
    "refused": ({"port": 1}, None, Verdict.TRANSIENT),
    "no such host": ({"host": "nowhere.invalid"}, None, Verdict.TRANSIENT),
    "only a primary": ({"target_session_attrs": "standby"}, None, Verdict.TRANSIENT),
}


@pytest.mark.parametrize("name", CONNECTS)
async def test_failed_connect_is_fatal_or_will_pass(own_postgres: Server, name: str) -> None:
    """By what the server itself has said."""
    arguments, code, verdict = CONNECTS[name]
    for sql in (
        "CREATE ROLE needs_password",
        "CREATE ROLE bob LOGIN PASSWORD 'right' IN ROLE needs_password",
        "CREATE ROLE carol LOGIN CONNECTION LIMIT 0",
        "CREATE ROLE dave LOGIN",
        "CREATE DATABASE closed",
        "REVOKE CONNECT ON DATABASE closed FROM PUBLIC",
    ):
        own_postgres.query(sql)
    error, said = await failed_connect(own_postgres.dsn(), **arguments)
    assert getattr(error, "sqlstate", None) == code, repr(error)
    assert said is verdict, repr(error)


async def test_server_that_begins_or_ends_will_pass(own_postgres: Server) -> None:
    """It says so itself, while it can; then nobody is there."""
    own_postgres.reset()
    held = await asyncpg.connect(own_postgres.dsn())
    own_postgres.stop("smart")
    error, said = await failed_connect(own_postgres.dsn())
    assert isinstance(error, asyncpg.CannotConnectNowError)
    assert said is Verdict.TRANSIENT
    await held.close()
    own_postgres.stop("fast")
    error, said = await failed_connect(own_postgres.dsn())
    assert isinstance(error, OSError)
    assert said is Verdict.TRANSIENT


class Stranger:
    """Something else that listens at a port."""

    def __init__(self, greeting: bytes, answer: bytes) -> None:
        self._greeting, self._answer = greeting, answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, contextlib.suppress(OSError):
                    client.sendall(self._greeting)
                    client.settimeout(1)
                    client.recv(4096)
                    client.sendall(self._answer)


STRANGERS = {
    "http": (b"", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
    "redis": (b"", b"-ERR Protocol error: invalid multibulk length\r\n"),
    "smtp": (b"220 mail.example ESMTP\r\n", b"502 5.5.2 Error: command not recognized\r\n"),
    "mysql": (b"\x4a\x00\x00\x00\x0a8.0.36\x00" + bytes(60), b""),
    "ssh": (b"SSH-2.0-OpenSSH_9.2\r\n", b""),
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_server_of_another_kind_is_told_from_postgresql(name: str) -> None:
    """At once, and not at the deadline, to whoever opens the pool; it will not become one."""
    with Stranger(*STRANGERS[name]) as stranger:
        dsn = f"postgresql://me@127.0.0.1:{stranger.port}/db"
        pool = create_pool(dsn, acquire_timeout=PATIENCE)
        with pytest.raises(ConnectFailed, match="no PostgreSQL"):
            await pool.open()


# asyncpg 0.32 goes round in circles over the zeros in MySQL's greeting, and holds its loop up.
@pytest.mark.parametrize("name", [name for name in STRANGERS if name != "mysql"])
async def test_server_of_another_kind_without_tls_is_one_that_hangs_up(name: str) -> None:
    """As a server does that is about to end, and a balancer with none: it may pass."""
    with Stranger(*STRANGERS[name]) as stranger:
        dsn = f"postgresql://me@127.0.0.1:{stranger.port}/db?sslmode=disable"
        with pytest.raises(PoolTimeout, match="connection was closed") as caught:
            await create_pool(dsn, acquire_timeout=0.5).open()
        assert isinstance(caught.value.__cause__, asyncpg.ConnectionDoesNotExistError)


# -- using ---------------------------------------------------------------------------------------


async def sql(conn: asyncpg.Connection, text: str) -> None:
    """Run a statement."""
    await conn.execute(text)


async def terminated(conn: asyncpg.Connection) -> None:
    """Have the server end the session."""
    await sql(conn, "SELECT pg_terminate_backend(pg_backend_pid())")


async def idle_too_long(conn: asyncpg.Connection) -> None:
    """Have the server end the session alone, and note it in the next query."""
    await sql(conn, "SET idle_in_transaction_session_timeout = 1; BEGIN")
    await until(conn.is_closed)
    await sql(conn, "SELECT 1")


async def read_only(conn: asyncpg.Connection) -> None:
    """Write in a transaction that may only read."""
    async with conn.transaction(readonly=True):
        await sql(conn, "CREATE TABLE nowhere (x int)")


async def two_at_once(conn: asyncpg.Connection) -> None:
    """Use one connection for two things."""
    task = asyncio.ensure_future(conn.fetch("SELECT pg_sleep(0.05)"))
    await asyncio.sleep(0)
    try:
        await conn.fetch("SELECT 1")
    finally:
        await task


async def lose_statement(conn: asyncpg.Connection) -> None:
    """Use a statement of asyncpg's that is not there any more."""
    await conn.fetch("SELECT 1")
    await sql(conn, "DEALLOCATE ALL")
    await conn.fetch("SELECT 1")


USES: dict[str, tuple[Callable[[Any], Awaitable[None]], type[Exception], Verdict]] = {
    "syntax": (lambda c: sql(c, "SELCT"), asyncpg.PostgresSyntaxError, Verdict.OK),
    "no table": (lambda c: sql(c, "SELECT * FROM n"), asyncpg.UndefinedTableError, Verdict.OK),
    "division": (lambda c: sql(c, "SELECT 1/0"), asyncpg.DivisionByZeroError, Verdict.OK),
    "argument": (lambda c: c.fetch("SELECT $1::int", "x"), asyncpg.DataError, Verdict.OK),
    "time limit of the server": (
        lambda c: sql(c, "SET statement_timeout = 5; SELECT pg_sleep(9)"),
        asyncpg.QueryCanceledError,
        Verdict.OK,
    ),
    "time limit of asyncpg": (
        lambda c: c.execute("SELECT pg_sleep(9)", timeout=0.01),
        TimeoutError,
        Verdict.OK,
    ),
    "serialization": (
        lambda c: sql(c, "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"),
        asyncpg.SerializationError,
        Verdict.OK,
    ),
    "deadlock": (
        lambda c: sql(c, "DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$"),
        asyncpg.DeadlockDetectedError,
        Verdict.OK,
    ),
    "disk full": (
        lambda c: sql(c, "DO $$ BEGIN RAISE SQLSTATE '53100'; END $$"),
        asyncpg.DiskFullError,
        Verdict.OK,
    ),
    "read-only transaction": (read_only, asyncpg.ReadOnlySQLTransactionError, Verdict.OK),
    "two at once": (two_at_once, asyncpg.InterfaceError, Verdict.OK),
    "statement lost": (
        lose_statement,
        asyncpg.InvalidSQLStatementNameError,
        Verdict.SUSPECT,
    ),
    "statement of another": (
        lambda c: sql(c, "PREPARE __asyncpg_1 AS SELECT 1; PREPARE __asyncpg_1 AS SELECT 1"),
        asyncpg.DuplicatePreparedStatementError,
        Verdict.SUSPECT,
    ),
    "terminated": (terminated, asyncpg.ConnectionDoesNotExistError, Verdict.SERVER_GONE),
    "idle too long": (idle_too_long, asyncpg.InterfaceError, Verdict.DEAD),
}


@pytest.mark.parametrize("name", USES)
async def test_error_of_a_lease_says_what_it_means(dsn: str, name: str) -> None:
    """For this connection, and for the others; asked with the connection that raised it."""
    use, kind, verdict = USES[name]
    driver = AsyncpgDriver(dsn)
    c = await driver.connect()
    try:
        with pytest.raises(kind) as caught:
            await use(c)
        assert driver.classify(caught.value, c) is verdict, repr(caught.value)
    finally:
        await driver.close(c)


async def test_session_that_is_ended_alone_says_nothing_of_the_others(
    postgres: Postgres, dsn: str
) -> None:
    """It was idle for too long in its transaction, and its user did not see the end coming."""
    driver = AsyncpgDriver(dsn)
    c = await driver.connect()
    # Long enough for the answer to be read before the end comes: together asyncpg takes them amiss.
    await sql(c, "SET idle_in_transaction_session_timeout = 500; BEGIN")
    alive = "SELECT 1 FROM pg_stat_activity WHERE pid = $1"
    while postgres.query(alive, c.get_server_pid()):
        pass  # in this thread, so that the loop does not read what the server says
    with pytest.raises(asyncpg.ConnectionDoesNotExistError) as caught:
        await sql(c, "SELECT 1")
    assert driver.classify(caught.value, c) is Verdict.DEAD


@pytest.mark.parametrize(
    "name", [name for name, (_, _, verdict) in USES.items() if verdict is Verdict.OK]
)
async def test_error_of_a_statement_costs_no_connection(dsn: str, name: str) -> None:
    """The next user has the same session, reset."""
    use, kind, _ = USES[name]
    async with of_one(dsn) as pool:
        with pytest.raises(kind):
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                await use(conn)
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert await conn.fetchval("SHOW statement_timeout") == "0"


@contextlib.asynccontextmanager
async def raw(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect to another database than the pool's."""
    conn = await asyncpg.connect(dsn)
    try:
        yield conn
    finally:
        conn.terminate()


async def lose_another_database(dsn: str) -> None:
    """Fail as an application does that uses two."""
    async with raw(dsn) as conn:
        await terminated(conn)


async def use_a_closed_connection(dsn: str) -> None:
    """Fail at once."""
    async with raw(dsn) as conn:
        await conn.close()
        await conn.fetch("SELECT 1")


async def reach_nobody(dsn: str) -> None:
    """Fail to connect elsewhere."""
    await asyncio.open_connection("127.0.0.1", free_port())


async def wait_in_vain(dsn: str) -> None:
    """Fail by a time limit of the application's own."""
    async with asyncio.timeout(0):
        await asyncio.sleep(1)


async def be_reset(dsn: str) -> None:
    """Fail as a socket does."""
    raise ConnectionResetError


async def write_to_a_replica(dsn: str) -> None:
    """Fail as another database does that may only be read."""
    async with raw(dsn) as conn:
        await read_only(conn)


ELSEWHERE = [
    lose_another_database,
    use_a_closed_connection,
    reach_nobody,
    wait_in_vain,
    be_reset,
    write_to_a_replica,
]


@pytest.mark.parametrize("fail", ELSEWHERE)
async def test_error_of_something_else_costs_no_connection(
    dsn: str, fail: Callable[[str], Awaitable[None]]
) -> None:
    """Neither this one nor the others; it only passes through the lease."""
    async with create_pool(dsn, min_size=3, max_size=3) as pool:
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            async with pool.acquire() as conn:
                await conn.fetchval("SELECT 1")
                await fail(dsn)
        await quiet(pool)
        stats = pool.stats()
        assert (stats.idle, stats.connected, gone(stats)) == (3, 3, {})


async def test_connection_lost_in_use_has_the_others_looked_at(
    postgres: Postgres, dsn: str, outside: asyncpg.Connection
) -> None:
    """All are terminated at once; one user only sees an error, the others are served."""
    async with create_pool(dsn, min_size=4, max_size=4) as pool:
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            async with pool.acquire() as conn:
                pids = list(await states(outside))
                # From a thread, while this loop sees nothing of it.
                postgres.query("SELECT pg_terminate_backend(p) FROM unnest($1::int[]) p", pids)
                await conn.fetchval("SELECT 1")
        for _ in range(4):
            async with pool.acquire() as conn:
                assert conn.get_server_pid() not in pids
                assert await conn.fetchval("SELECT 1") == 1


async def test_error_of_a_commit_that_was_caught_is_heeded(dsn: str) -> None:
    """Of asyncpg's own transaction, which no view sees: the next user has another session."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            await conn.execute(
                """
                CREATE TEMPORARY TABLE late (x int);
                CREATE FUNCTION pg_temp.fail() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN RAISE SQLSTATE '08P01'; END $$;
                CREATE CONSTRAINT TRIGGER t AFTER INSERT ON late
                    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_temp.fail();
                """
            )
            with pytest.raises(asyncpg.ProtocolViolationError):
                async with conn.transaction():
                    await conn.execute("INSERT INTO late VALUES (1)")
        await quiet(pool)
        assert pool.stats().retired["broken"] == 1
