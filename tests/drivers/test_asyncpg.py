"""The asyncpg driver: all that asyncpg can do, through a pool of poolkit's."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, assert_type

import anyio
import asyncpg
import pytest

import poolkit
from poolkit import ConnectFailed, NotLeased, Pool, PoolConfigError
from poolkit.drivers._peer import watch_peer
from poolkit.drivers.asyncpg import AsyncpgDriver, create_pool
from tests.drivers.asyncpg_help import (
    LOOPS,
    last_query,
    nothing_is_lost,
    of_one,
    quiet,
    rows,
    states,
    until,
    until_true,
)
from tests.fakes import gone
from tests.postgres import need
from tests.proxy import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.postgres import Postgres, Server


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


# -- pools ---------------------------------------------------------------------------------------


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "poolkit.drivers.asyncpg")
    with pytest.raises(PoolConfigError, match=r"pip install 'poolkit\[asyncpg\]'"):
        importlib.import_module("poolkit.drivers.asyncpg")


async def test_pool_is_of_connections_of_asyncpg(dsn: str) -> None:
    """For type checkers as for asyncpg itself, which asks in its own way."""
    async with create_pool(dsn, max_size=2) as pool:
        assert_type(pool, Pool[asyncpg.Connection])
        async with pool.acquire() as conn:
            assert isinstance(conn, asyncpg.Connection)
            assert isinstance(conn, asyncpg.connection._ConnectionProxy)
            assert not isinstance(object(), type(conn))


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
async def test_url_opens_a_pool(dsn: str, scheme: str) -> None:
    """Of each scheme; what stands in the query is the session's."""
    url = dsn.replace("postgresql", scheme, 1) + "?application_name=me&max_size=2"
    async with poolkit.create_pool(url) as pool, pool.acquire() as conn:
        assert await conn.fetchval("SHOW application_name") == "me"
        assert pool.stats().max_size == 2


def test_trio_is_told_that_there_is_no_driver(dsn: str) -> None:
    """It would fail in some depth of asyncio otherwise."""
    with pytest.raises(PoolConfigError, match="asyncio only"):
        anyio.run(AsyncpgDriver(dsn).connect, backend="trio")

    async def main() -> None:
        with anyio.fail_after(1), pytest.raises(ConnectFailed, match="asyncio only") as caught:
            await create_pool(dsn).open()
        assert isinstance(caught.value.__cause__, PoolConfigError)

    anyio.run(main, backend="trio")


async def test_view_does_all_that_a_connection_does(dsn: str, outside: asyncpg.Connection) -> None:
    """Queries of all kinds, statements, cursors, COPY both ways, transactions in each other."""
    conn: Any
    async with of_one(dsn) as pool, pool.acquire() as conn:
        assert await conn.execute("INSERT INTO t VALUES ($1)", 1) == "INSERT 0 1"
        await conn.executemany("INSERT INTO t VALUES ($1)", [(2,), (3,)])
        assert await conn.fetchval("SELECT max(x) FROM t") == 3
        assert await conn.fetchrow("SELECT x FROM t WHERE x = 2") == (2,)
        assert await conn.fetch("SELECT x FROM t ORDER BY x") == [(1,), (2,), (3,)]
        assert await conn.copy_records_to_table("t", records=[(4,), (5,)]) == "COPY 2"
        lines: list[bytes] = []

        async def take(data: bytes) -> None:
            lines.append(data)

        await conn.copy_from_query("SELECT x FROM t WHERE x > 3 ORDER BY x", output=take)
        assert b"".join(lines) == b"4\n5\n"
        statement: Any = await conn.prepare("SELECT x FROM t WHERE x > $1 ORDER BY x")
        assert await statement.fetch(4) == [(5,)]
        async with conn.transaction():
            assert [row["x"] async for row in conn.cursor("SELECT x FROM t WHERE x < 3")] == [1, 2]
            cursor: Any = await conn.cursor("SELECT x FROM t ORDER BY x")
            assert await cursor.forward(3) == 3
            assert await cursor.fetch(1) == [(4,)]
            with pytest.raises(ValueError, match="inner"):
                async with conn.transaction():
                    await conn.execute("DELETE FROM t")
                    raise ValueError("inner")
        assert await conn.fetchval("SELECT count(*) FROM t") == 5
        assert conn.get_server_version().major >= 12
        assert conn.get_settings().server_encoding == "UTF8"
        assert await conn.fetchval("SELECT 1", timeout=5) == 1


# -- arguments of asyncpg.connect ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["function", "async function"])
async def test_password_function_is_asked_for_each_connection(dsn: str, kind: str) -> None:
    """So that passwords which expire can be had anew."""
    asked: list[int] = []

    def ask() -> str:
        asked.append(1)
        return "secret"

    async def ask_async() -> str:
        return ask()

    given = ask if kind == "function" else ask_async
    async with create_pool(dsn, min_size=3, connect_kwargs={"password": given}) as pool:
        assert len(asked) == 3
        pool.renew()
        await quiet(pool)
        assert len(asked) == 6


async def test_second_host_is_tried_when_the_first_refuses(postgres: Postgres, dsn: str) -> None:
    """Given in the DSN, and by keyword."""
    closed, database = free_port(), dsn.rpartition("/")[2]
    both = f"{postgres.host}:{closed},{postgres.host}:{postgres.port}"
    async with of_one(f"postgresql://{postgres.user}@{both}/{database}") as pool:
        assert pool.name == f"{both}/{database}"
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT current_database()") == database
    given = {"host": [postgres.host] * 2, "port": [closed, postgres.port], "database": database}
    async with of_one(dsn, connect_kwargs=given) as pool, pool.acquire() as conn:
        assert await conn.fetchval("SELECT current_database()") == database


async def test_server_settings_are_those_of_each_session(dsn: str) -> None:
    """Also of those opened later."""
    given = {"server_settings": {"application_name": "shop", "work_mem": "3MB"}}
    async with create_pool(dsn, min_size=2, connect_kwargs=given) as pool:
        async with pool.acquire() as a, pool.acquire() as b:
            for conn in (a, b):
                assert await conn.fetchval("SHOW application_name") == "shop"
                assert await conn.fetchval("SHOW work_mem") == "3MB"


class Slotted(asyncpg.Connection):
    """A user's own class of connections."""

    __slots__ = ("tenant",)

    tenant: str

    def whoami(self) -> str:
        """Use what is set through the view."""
        return f"I am {self.tenant}"

    async def double(self, x: int) -> int:
        """Be a method of its own."""
        return int(await self.fetchval("SELECT 2 * $1::int", x))


class OwnRecord(asyncpg.Record):
    """A user's own class of records."""

    def __getattr__(self, name: str) -> Any:
        """Let columns be attributes."""
        return self[name]


async def test_classes_of_the_user_are_used(dsn: str) -> None:
    """For connections, with slots and methods, and for records."""
    given = {"connection_class": Slotted, "record_class": OwnRecord}
    pool: Pool[Any] = of_one(dsn, connect_kwargs=given)
    async with pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                assert issubclass(conn.__class__, Slotted)
                conn.tenant = "alice"
                assert conn.whoami() == "I am alice"
                assert await conn.double(4) == 8
                record = await conn.fetchrow("SELECT 1 AS one")
                assert isinstance(record, OwnRecord)
                assert record.one == 1


async def test_codecs_set_on_connect_are_for_every_user(dsn: str) -> None:
    """After resets, and after a reload of the schema as well."""

    async def install(conn: asyncpg.Connection) -> None:
        await conn.set_type_codec(
            "json", encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
        )

    async with of_one(dsn, on_connect=install) as pool:
        for _ in range(3):
            async with pool.acquire() as conn:
                assert await conn.fetchval("SELECT $1::json", {"a": [1]}) == {"a": [1]}
                await conn.reload_schema_state()


async def test_tls_is_spoken_and_its_certificate_checked(own_postgres: Server) -> None:
    """A server without TLS, and one that is not who it says it is, are told of at once."""
    dsn = own_postgres.dsn()
    with pytest.raises(ConnectFailed, match="it has no TLS, or is no PostgreSQL"):
        await of_one(dsn, connect_kwargs={"ssl": "require"}).open()
    _give_certificate(own_postgres)
    async with of_one(f"{dsn}?sslmode=require") as pool:
        async with pool.acquire() as conn:
            sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert await conn.fetchval(sql)
            assert options_of(conn) == WANTED
        async with pool.acquire() as conn:
            assert await conn.fetchval(sql)
    with pytest.raises(ConnectFailed, match="certificate verify failed"):
        await of_one(dsn, connect_kwargs={"ssl": True}).open()


def _give_certificate(server: Server) -> None:
    folder: Path = server.folder.path
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        f"-keyout {folder}/key.pem -out {folder}/cert.pem"
    )
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
        server.folder.give()
        (folder / "key.pem").chmod(0o600)
        server.configure(
            ssl_cert_file=f"{folder}/cert.pem", ssl_key_file=f"{folder}/key.pem", ssl="on"
        )
    except (OSError, ValueError) as error:
        need("TLS", str(error), "apt-get install openssl postgresql")


# -- the socket ----------------------------------------------------------------------------------

#: The system's own numbers are others.
WANTED = {
    "SO_KEEPALIVE": 1,
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 45_000,
}


def options_of(conn: Any) -> dict[str, int]:
    """Return what the system says of a connection's socket."""
    sock = conn._transport.get_extra_info("socket")
    return {
        name: sock.getsockopt(
            socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP,
            getattr(socket, name),
        )
        for name in WANTED
    }


@pytest.mark.skipif(sys.platform != "linux", reason="the names and defaults are Linux's")
async def test_dead_peers_are_watched_for(dsn: str) -> None:
    """By default, after another time, or not at all."""
    async with of_one(dsn) as pool, pool.acquire() as conn:
        assert options_of(conn) == WANTED
    async with of_one(dsn, tcp_timeout=3) as pool, pool.acquire() as conn:
        shortest = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_USER_TIMEOUT": 3000}
        assert options_of(conn) == WANTED | shortest
    raw = await asyncpg.connect(dsn)
    untouched = options_of(raw)
    await raw.close()
    async with of_one(dsn, tcp_timeout=None) as pool, pool.acquire() as conn:
        assert options_of(conn) == untouched


def test_local_sockets_are_left_alone() -> None:
    """They have no peer that could be out of reach."""
    a, b = socket.socketpair()
    with a, b:
        watch_peer(a, 45)
        assert a.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    watch_peer(None, 45)


async def test_time_that_no_system_can_do_is_no_error(dsn: str) -> None:
    """As no socket option is; the peer is watched for nevertheless."""
    for seconds in (100_000, 1e12):
        async with of_one(dsn, tcp_timeout=seconds) as pool, pool.acquire() as conn:
            assert options_of(conn)["SO_KEEPALIVE"] == 1


# -- transactions --------------------------------------------------------------------------------


async def test_transaction_commits_or_rolls_back(dsn: str, outside: asyncpg.Connection) -> None:
    """By how the block ends."""
    async with of_one(dsn) as pool:
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(ValueError, match="no"):
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO t VALUES (2)")
                raise ValueError("no")
        async with pool.acquire() as conn:
            async with poolkit.transaction(conn):
                await conn.execute("INSERT INTO t VALUES (3)")
            assert not conn.is_in_transaction()
        assert await rows(outside) == [1, 3]
        await nothing_is_lost(pool, outside)


async def test_settings_of_a_transaction_are_asyncpgs(dsn: str) -> None:
    """Isolation, read-only, deferrable."""
    async with of_one(dsn) as pool:
        for isolation in ("serializable", "repeatable_read", "read_committed", "read_uncommitted"):
            async with pool.transaction(isolation=isolation) as conn:
                assert await conn.fetchval("SHOW transaction_isolation") == isolation.replace(
                    "_", " "
                )
                assert await conn.fetchval("SHOW transaction_read_only") == "off"
        async with pool.transaction(isolation="serializable", readonly=True, deferrable=True) as c:
            assert await c.fetchval("SHOW transaction_read_only") == "on"
            assert await c.fetchval("SHOW transaction_deferrable") == "on"


async def test_settings_of_a_transaction_that_do_not_exist_are_refused(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Before it begins; the connection comes back."""
    async with of_one(dsn) as pool:
        with pytest.raises(PoolConfigError, match="do not take read_only="):
            async with pool.transaction(read_only=True):
                pass
        with pytest.raises(ValueError, match="isolation"):
            async with pool.transaction(isolation="strict"):
                pass
        await nothing_is_lost(pool, outside)


async def test_commit_that_fails_raises_and_rolls_back(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Of a constraint that is checked at its end."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            await conn.execute(
                "DROP TABLE IF EXISTS u;"
                "CREATE TABLE u (x int UNIQUE DEFERRABLE INITIALLY DEFERRED, y int)"
            )
        for _ in range(2):
            with pytest.raises(asyncpg.UniqueViolationError):
                async with pool.transaction() as conn:
                    pid = conn.get_server_pid()
                    await conn.execute("INSERT INTO u VALUES (1), (1)")
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            assert not conn.is_in_transaction()
            assert await conn.fetchval("SELECT count(*) FROM u") == 0


async def test_transaction_within_one_of_the_pool_is_a_savepoint(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Of either kind."""
    async with of_one(dsn) as pool:
        async with pool.transaction() as conn:
            pid = conn.get_server_pid()
            assert await last_query(outside, pid) == "BEGIN;"
            await conn.execute("INSERT INTO t VALUES (1)")
            for nested in (
                lambda: conn.transaction(),
                lambda: poolkit.transaction(conn),
            ):  # called within the turn
                with pytest.raises(ValueError, match="inner"):
                    async with nested():
                        assert (await last_query(outside, pid)).startswith("SAVEPOINT ")
                        await conn.execute("INSERT INTO t VALUES (2)")
                        raise ValueError("inner")
        assert await rows(outside) == [1]


# -- the end of a connection ---------------------------------------------------------------------


async def test_backend_that_ends_while_idle_costs_nobody_an_error(
    dsn: str, outside: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the pool when the socket says so: nobody has asked for a connection."""
    monkeypatch.setattr(Pool, "_upkeep", lambda _: None)  # which looks, but every second only
    async with create_pool(dsn, min_size=2, max_size=2) as pool:
        (one, two) = await states(outside)
        await outside.execute("SELECT pg_terminate_backend($1)", one)
        await until(lambda: gone(pool.stats()) == {"broken": 1})
        await quiet(pool)
        assert pool.stats().direct + pool.stats().waited == 0
        async with pool.acquire() as conn:
            assert conn.get_server_pid() != one
        monkeypatch.undo()
        assert two in await states(outside)


@pytest.mark.parametrize("way", ["close", "terminate"])
async def test_connection_ended_by_its_user_is_replaced(
    dsn: str, outside: asyncpg.Connection, way: str
) -> None:
    """Its lease ends with it, also if it could still be asked; the next user has another."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            if way == "close":
                await conn.close()
            else:
                conn.terminate()
            assert conn.is_closed()
            assert pool.stats().leased == 0
            with pytest.raises(
                NotLeased, match=r"closed at .*test_asyncpg\.py:\d+ in test_connect"
            ):
                await conn.fetchval("SELECT 1")
            async with pool.acquire(timeout=5) as other:
                assert other.get_server_pid() != pid
        await nothing_is_lost(pool, outside)


async def test_connection_may_be_ended_twice(dsn: str, outside: asyncpg.Connection) -> None:
    """In whatever order; nothing is left on the server."""
    driver = AsyncpgDriver(dsn)
    for first in (driver.close, driver.terminate):
        for second in (driver.close, driver.terminate):
            c = await driver.connect()
            assert not driver.is_dead(c)
            for end in (first, second):
                result = end(c)
                if result is not None:
                    await result
                assert driver.is_dead(c)

    async def gone() -> bool:
        return not await states(outside)

    await until_true(gone)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_connection_whose_loop_is_closed_may_be_ended(dsn: str) -> None:
    """It cannot be closed any more, and that is no error."""
    driver = AsyncpgDriver(dsn)
    c = asyncio.run(driver.connect())
    driver.terminate(c)
    driver.terminate(c)
    assert driver.is_dead(c)
    del c
    gc.collect()  # asyncio's warning is of this test
