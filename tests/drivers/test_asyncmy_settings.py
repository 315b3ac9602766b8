"""What may be given to the driver for asyncmy, what is refused and how, and what its errors mean."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import asyncmy
import pytest
from asyncmy import errors
from asyncmy.cursors import DictCursor

import poolkit
from poolkit import ConnectFailed, PoolConfigError, PoolTimeout, Verdict
from poolkit.drivers.asyncmy import AsyncmyDriver, create_pool, from_url
from poolkit.drivers.asyncmy import _errors as rules
from tests.drivers.asyncmy_help import ask, execute, of_one, quiet, value
from tests.drivers.asyncpg_help import until, warnings_in
from tests.mariadb import PASSWORD, USER
from tests.proxy import HOST, free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mariadb import MariaDB


@pytest.fixture
def anyio_backend() -> Any:
    """Run on one loop: nothing here depends on it."""
    return ("asyncio", {"use_uvloop": False})


# -- settings ------------------------------------------------------------------------------------


async def test_settings_may_stand_in_the_url(mysql: str) -> None:
    """And a keyword wins."""
    url = mysql + "?charset=latin1&sql_mode=ANSI_QUOTES&autocommit=no&program_name=shop&max_size=3"
    async with create_pool(url, connect_kwargs={"autocommit": True}) as pool:
        assert pool.stats().max_size == 3
        for _ in range(2):
            async with pool.acquire() as conn:
                asked = "SELECT @@character_set_client, @@sql_mode, @@autocommit"
                assert await execute(conn, asked) == [("latin1", "ANSI_QUOTES", 1)]
                await execute(conn, "SET sql_mode = '', NAMES utf8mb4, autocommit = 0")
        assert pool.stats().connected == 1


async def test_connect_kwargs_are_asyncmys(mysql: str, mariadb: MariaDB) -> None:
    """On a Unix socket, with a class of cursors, and a password that is asked for each time."""
    asked: list[str] = []

    def password() -> str:
        asked.append("")
        return PASSWORD

    pool = create_pool(
        connect_kwargs={
            "user": USER,
            "password_creator": password,
            "unix_socket": str(mariadb.socket),
            "cursor_cls": DictCursor,
            "database": mysql.rpartition("/")[2],
        }
    )
    assert pool.name.startswith(str(mariadb.socket))
    async with pool, pool.acquire() as conn, conn.cursor() as cursor:
        await cursor.execute("SELECT 1 AS x")
        assert await cursor.fetchone() == {"x": 1}
    assert asked


async def test_converters_of_the_users_are_not_the_pools(mysql: str) -> None:
    """What it asks the server itself it reads as it is."""
    given: list[dict[str, Any]] = [{"conv": {}}, {"use_unicode": False}]
    for kwargs in given:
        async with of_one(mysql, connect_kwargs=kwargs) as pool:
            for _ in range(2):
                async with pool.acquire() as conn:
                    await execute(conn, "SELECT 1")
            assert pool.stats().connected == 1


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"reset": "auto"}, "give 'full', 'transaction', 'none', or an async function"),
        ({"tcp_timeout": 1.0}, "below 3.0 s"),
        ({"note_statements": "yes"}, "give True or False"),
        ({"charset": "latin1"}, "give connect_kwargs={'charset': ...}"),
        ({"resett": "full"}, "did you mean reset"),
        ({"connection_class": object}, "unknown option"),
        ({"connect_kwargs": {"cursor_cls": dict}}, "give a class of asyncmy.cursors"),
        ({"connect_kwargs": {"cursor_cls": "DictCursor"}}, "give a class of asyncmy.cursors"),
        ({"connect_kwargs": {"charset": "utf9"}}, "give a name of MySQL's"),
        ({"connect_kwargs": {"password": "s3cr€t"}}, "give it as bytes"),
        ({"connect_kwargs": {"password": 7}}, "a string or bytes"),
        ({"connect_kwargs": {"port": "3306"}}, "a whole number from 1 to 65535"),
        ({"connect_kwargs": {"sql_mode": "a'; DROP TABLE t"}}, "names with commas"),
        ({"connect_kwargs": {"connect_timeout": 4}}, "an option of the pool"),
        ({"connect_kwargs": {"sock": None}}, "give host and port, or unix_socket"),
        ({"connect_kwargs": {"db": "x"}}, "give database"),
        ({"connect_kwargs": {"hots": "x"}}, "did you mean host"),
        ({"connect_kwargs": ["host"]}, "a dict from names"),
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, Any], complaint: str) -> None:
    """In a sentence that has the remedy, and no value that may be a password."""
    with pytest.raises(PoolConfigError) as caught:
        create_pool("mysql://app:s3cret@db.example/shop", **given)
    assert complaint in str(caught.value)
    assert "s3cr" not in str(caught.value)


async def _undo(conn: asyncmy.Connection) -> None:
    """Be an async function."""


def test_coroutine_is_no_reset() -> None:
    """It could be awaited but once."""
    with pytest.raises(PoolConfigError, match="without calling it"):
        create_pool(reset=_undo(None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("postgresql://db.example/shop", "begin with mysql:// or mysql+asyncmy://"),
        ("mysql://db.example/shop/x", "a '/' in it has to be written %2F"),
        ("mysql://db.example/shop?charset=", "is empty"),
        ("mysql://db.example/shop?autocommit=maybe", "write yes or no"),
        ("mysql://db.example/shop?chraset=utf8mb4", "did you mean charset"),
        ("mysql://db.example/shop?ssl_ca=/nowhere/ca.pem", "cannot be read"),
        ("mysql://db.example/shop?stmt_cache_size=many", "stmt_cache_size"),
        ("mysql://app:s3c@ret@db.example/shop", "%40"),
    ],
)
def test_url_that_cannot_work_is_refused(url: str, complaint: str) -> None:
    """In a sentence that has the remedy."""
    with pytest.raises(PoolConfigError) as caught:
        from_url(url)
    assert complaint in str(caught.value)
    assert "s3c" not in str(caught.value)


def test_options_of_the_pool_are_not_the_drivers() -> None:
    """`from_url` makes a driver alone."""
    with pytest.raises(PoolConfigError, match="max_size is an option of the pool"):
        from_url("mysql://db.example/shop?max_size=3")
    with pytest.raises(PoolConfigError, match="did you mean reset"):
        AsyncmyDriver(rset="full")  # type: ignore[call-arg]
    assert from_url("mysql://db.example/shop", reset="none").name == "db.example:3306/shop"


def test_names_and_reprs_have_no_password() -> None:
    """Nor has what is inside."""
    pool = create_pool("mysql+asyncmy://app:s3cret@db.example/shop?ssl=yes")
    driver = from_url("mysql+asyncmy://app:s3cret@db.example/shop")
    for shown in (repr(pool), pool.name, repr(driver), repr(driver.settings), str(pool.stats())):
        assert "s3cret" not in shown
    assert pool.name == "db.example:3306/shop"


@pytest.mark.parametrize("made", ["s3cret-€", 17])
async def test_password_that_cannot_be_sent_is_not_shown(made: Any, mysql: str) -> None:
    """Not by the repr of an error either, as Python's for a text that it cannot encode is."""

    async def create() -> Any:
        return made

    with pytest.raises(ConnectFailed) as caught:
        await of_one(mysql, connect_kwargs={"password_creator": create}).open()
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cret-€" not in repr(error)
        error = error.__cause__ or error.__context__
    assert isinstance(caught.value.__cause__, PoolConfigError)


def test_missing_library_is_said_with_its_remedy(tmp_path: Path) -> None:
    """In another process, where it cannot be imported."""
    code = (
        "import sys; sys.modules['asyncmy'] = None\n"
        "import poolkit\n"
        "try: poolkit.drivers.asyncmy\n"
        "except poolkit.PoolConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'poolkit[asyncmy]'" in done.stdout


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_is_refused() -> None:
    """Asyncmy is not for it."""
    with pytest.raises(ConnectFailed) as caught:
        await create_pool().open()
    assert "asyncio only" in str(caught.value.__cause__)


async def test_dead_peers_are_watched_for(mysql: str) -> None:
    """By TCP keepalive, unless that is left to the system."""
    import socket

    for timeout, found in ((45.0, 30), (None, 7200)):
        async with of_one(mysql, tcp_timeout=timeout) as pool, pool.acquire() as conn:
            sock = conn._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            if hasattr(socket, "TCP_KEEPIDLE"):
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == found


async def test_servers_init_connect_does_not_hold_in_the_first_lease_alone(
    own_mariadb: MariaDB, caplog: pytest.LogCaptureFixture
) -> None:
    """A reset undoes it, and the server does not run it again: a warning says so."""
    name = own_mariadb.create_database()
    await ask(own_mariadb, "SET GLOBAL init_connect = 'SET @greeting = 1'")
    async with of_one(own_mariadb.url(name)) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await value(conn, "SELECT @greeting") is None
        pool.renew()
    assert ["init_connect" in text for text in warnings_in(caplog)] == [True]


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ((f":{PASSWORD}@", ":wr0ng@"), 1045),
        (("/poolkit_", "/poolkit_no_such_"), 1049),
        (("/poolkit_", "/mysql_"), 1044),
    ],
)
async def test_refusal_is_told_at_once(mysql: str, change: tuple[str, str], code: int) -> None:
    """Somebody has to change something."""
    with pytest.raises(ConnectFailed) as caught:
        await create_pool(mysql.replace(*change)).open()
    cause = caught.value.__cause__
    assert isinstance(cause, asyncmy.MySQLError)
    assert cause.args[0] == code
    assert "wr0ng" not in str(caught.value)


async def test_server_that_is_not_there_is_waited_for() -> None:
    """It may come back."""
    pool = create_pool(f"mysql://app@{HOST}:{free_port()}/shop", acquire_timeout=0.3)
    with pytest.raises(PoolTimeout) as caught:
        await pool.open()
    assert isinstance(caught.value.__cause__, errors.OperationalError)
    assert caught.value.__cause__.args[0] == 2003


async def test_statement_that_a_replica_refuses_renews_the_pool(own_mariadb: MariaDB) -> None:
    """If the server has taken writes before: it, and a replica, have changed places."""
    url = own_mariadb.url(own_mariadb.create_database())
    async with of_one(url) as pool:
        async with pool.acquire() as conn:
            await execute(conn, "CREATE TABLE t (x INT)")
        await ask(own_mariadb, "SET GLOBAL read_only = 1")
        try:
            async with pool.acquire() as conn:
                number = conn.thread_id()
                with pytest.raises(errors.OperationalError) as caught:
                    await execute(conn, "INSERT INTO t VALUES (1)")
                assert caught.value.args[0] == 1290
            await until(lambda: pool.stats().connected == 2)
            async with pool.acquire() as conn:
                assert conn.thread_id() != number
            async with of_one(url) as replica:
                for _ in range(2):
                    async with replica.acquire() as conn:
                        with pytest.raises(errors.OperationalError):
                            await execute(conn, "INSERT INTO t VALUES (1)")
                await quiet(replica)
                assert replica.stats().connected == 1
        finally:
            await ask(own_mariadb, "SET GLOBAL read_only = 0")


READ_ONLY = "The MariaDB server is running with the --read-only option so it cannot execute this"


@pytest.mark.parametrize(
    ("error", "closed", "verdict"),
    [
        (errors.OperationalError(1213, "Deadlock found"), False, Verdict.OK),
        (errors.OperationalError(1205, "Lock wait timeout exceeded"), False, Verdict.OK),
        (errors.OperationalError(1317, "Query execution was interrupted"), False, Verdict.OK),
        (errors.OperationalError(1317, "Query execution was interrupted"), True, "gone"),
        (errors.OperationalError(1792, "in a READ ONLY transaction"), False, Verdict.OK),
        (errors.OperationalError(1053, "Server shutdown in progress"), False, "gone"),
        (errors.OperationalError(1927, "Connection was killed"), True, Verdict.DEAD),
        (errors.OperationalError(4031, "disconnected because of inactivity"), True, Verdict.DEAD),
        (errors.OperationalError(2006, "MySQL server has gone away"), True, "gone"),
        (errors.OperationalError(2013, "Lost connection"), True, "gone"),
        (errors.OperationalError(2014, "Command Out of Sync"), False, Verdict.SUSPECT),
        (errors.InternalError("Packet sequence number wrong"), False, Verdict.SUSPECT),
        (errors.InterfaceError(0, "Not connected"), True, Verdict.DEAD),
        (errors.OperationalError(1153, "Got a packet bigger"), False, Verdict.OK),
        (errors.OperationalError(1153, "Got a packet bigger"), True, Verdict.DEAD),
        (ValueError("mine"), True, Verdict.OK),
    ],
)
def test_error_in_a_lease_says(error: Exception, closed: bool, verdict: Any) -> None:
    """What has become of the connection, and of the server."""
    expected = Verdict.SERVER_GONE if verdict == "gone" else verdict
    assert rules.of_lease(error, closed=closed) is expected


@pytest.mark.parametrize(
    ("code", "text", "is_so"),
    [
        (1290, READ_ONLY, True),
        (1290, "running with the --super-read-only option", True),
        (1836, "Running in read-only mode", True),
        (1290, "running with the --secure-file-priv option", False),
        (1792, "Cannot execute statement in a READ ONLY transaction", False),
    ],
)
def test_server_that_takes_no_writes_is_known(code: int, text: str, is_so: bool) -> None:
    """By its error, and not by that of a transaction or of another option."""
    assert rules.is_read_only(errors.OperationalError(code, text)) is is_so


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (errors.OperationalError(1040, "Too many connections"), Verdict.TRANSIENT),
        (errors.OperationalError(1053, "Server shutdown in progress"), Verdict.TRANSIENT),
        (errors.OperationalError(2013, "Lost connection"), Verdict.TRANSIENT),
        (errors.OperationalError(1045, "Access denied"), Verdict.FATAL),
        (errors.OperationalError(1049, "Unknown database"), Verdict.FATAL),
        (errors.OperationalError(1130, "Host is not allowed"), Verdict.FATAL),
        (errors.OperationalError(2059, "Authentication plugin"), Verdict.FATAL),
        (errors.ProgrammingError(1064, "syntax"), Verdict.FATAL),
        (errors.InternalError("Packet sequence number wrong"), None),
        (PoolConfigError("x"), Verdict.FATAL),
        (RuntimeError("x"), None),
    ],
)
def test_error_of_connecting_says(error: Exception, verdict: Verdict | None) -> None:
    """Whether it may pass."""
    assert rules.of_connecting(error) is verdict


def test_pool_is_found_by_its_url() -> None:
    """As any driver's is."""
    for scheme in ("mysql", "mysql+asyncmy"):
        pool = poolkit.create_pool(f"{scheme}://app@db.example/shop", reset="none")
        assert pool.name == "db.example:3306/shop"
