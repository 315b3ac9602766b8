"""Settings and a role of one transaction: in the round trip of its BEGIN, and gone with it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import psycopg
import pytest

import poolkit
from poolkit import PoolConfigError
from poolkit.drivers import aiosqlite, sqlite
from poolkit.drivers import asyncpg as on_asyncpg
from poolkit.drivers import psycopg as on_psycopg
from poolkit.drivers._postgresql import begin
from poolkit.drivers._postgresql.undo import UndoSQL
from poolkit.testing import check_pool, verify_auto_reset
from tests.drivers import psycopg_kinds
from tests.drivers.asyncpg_help import LOOPS, CountingProxy, quiet, rows, warnings_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.pgbouncer import StartPgBouncer
    from tests.postgres import Postgres

TENANT = "SELECT current_setting('app.tenant', true)"
ROLE = "SELECT current_user::text"


class Kind(NamedTuple):
    """One of the two drivers for PostgreSQL."""

    module: Any
    #: The class of what the server raises.
    error: type[Exception]

    def of_one(self, dsn: str, **options: Any) -> Any:
        """Return a pool of one connection."""
        return self.module.create_pool(dsn, **{"max_size": 1, **options})

    async def value(self, conn: Any, sql: str) -> Any:
        """Return the first value of the first row."""
        if self.module is on_asyncpg:
            return await conn.fetchval(sql)
        return await psycopg_kinds.value(conn, sql)

    def is_in_transaction(self, conn: Any) -> bool:
        """Tell whether a transaction is open."""
        if self.module is on_asyncpg:
            return bool(conn.is_in_transaction())
        return bool(conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE)


KINDS = [
    pytest.param(Kind(on_asyncpg, asyncpg.PostgresError), id="asyncpg"),
    pytest.param(Kind(on_psycopg, psycopg.Error), id="psycopg"),
]


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: the two know no others."""
    return request.param


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """One of the two drivers."""
    found: Kind = request.param
    return found


@pytest.fixture
async def role(outside: asyncpg.Connection) -> AsyncIterator[str]:
    """Return the name of a role whose quotes have to be minded."""
    name = "we\"b \\ 'r"
    quoted = '"we""b \\ \'r"'
    await outside.execute(f"DROP ROLE IF EXISTS {quoted}")
    await outside.execute(f"CREATE ROLE {quoted}")
    yield name
    await outside.execute(f"DROP ROLE IF EXISTS {quoted}")


# -- one round trip ------------------------------------------------------------------------------


async def test_settings_go_with_the_begin_and_are_gone_after_the_commit(
    postgres: Postgres, dsn: str, role: str, kind: Kind
) -> None:
    """Three round trips: BEGIN with all of it, the statement, COMMIT with the reset."""
    with CountingProxy(postgres.host, postgres.port) as proxy:
        async with kind.of_one(proxy.through(dsn)) as pool:
            await quiet(pool)
            before = proxy.trips
            async with pool.transaction(settings={"app.tenant": "42"}, role=role) as conn:
                await conn.execute("SET app.other = 'x'")
            assert proxy.trips - before == 3
            async with pool.transaction(settings={"app.tenant": "42"}, role=role) as conn:
                assert await kind.value(conn, TENANT) == "42"
                assert await kind.value(conn, ROLE) == role
            async with pool.acquire() as conn:
                assert not await kind.value(conn, TENANT)
                assert await kind.value(conn, ROLE) == postgres.user
            await check_pool(pool)


@pytest.mark.parametrize("ends", ["commit", "error", "cancelled"])
@pytest.mark.parametrize("level", ["full", "transaction", "none"])
async def test_settings_end_with_the_transaction_however_it_ends(
    dsn: str, kind: Kind, level: str, ends: str
) -> None:
    """The server sees to it; so the lightest reset does, too."""
    settings = {"app.tenant": "42", "statement_timeout": 7000}
    async with kind.of_one(dsn, reset=level) as pool:
        with contextlib.suppress(ValueError, TimeoutError):
            async with asyncio.timeout(10) as limit, pool.transaction(settings=settings) as conn:
                assert await kind.value(conn, "SHOW statement_timeout") == "7s"
                if ends == "error":
                    raise ValueError
                if ends == "cancelled":
                    limit.reschedule(0)
                    await conn.execute("SELECT pg_sleep(60)")
        async with pool.acquire() as conn:
            assert not await kind.value(conn, TENANT)
            assert await kind.value(conn, "SHOW statement_timeout") == "0"
        await check_pool(pool)


async def test_settings_of_a_connection_one_holds_end_with_the_block(
    dsn: str, role: str, kind: Kind
) -> None:
    """The lease goes on without them, and a second transaction has its own."""
    async with kind.of_one(dsn) as pool, pool.acquire() as conn:
        for tenant in ("1", "2"):
            async with poolkit.transaction(conn, settings={"app.tenant": tenant}, role=role):
                assert await kind.value(conn, TENANT) == tenant
            assert await kind.value(conn, TENANT) == ""
            assert await kind.value(conn, ROLE) != role


async def test_settings_are_set_with_the_rights_of_the_login(
    dsn: str, role: str, kind: Kind
) -> None:
    """And then the role is taken on, which may set less."""
    settings = {"session_replication_role": "replica"}
    async with kind.of_one(dsn) as pool:
        async with pool.transaction(settings=settings, role=role) as conn:
            assert await kind.value(conn, "SHOW session_replication_role") == "replica"
            assert await kind.value(conn, ROLE) == role
            with pytest.raises(kind.error, match="permission denied"):
                async with conn.transaction():
                    await conn.execute("SET session_replication_role = 'origin'")
        async with pool.acquire() as conn:
            assert await kind.value(conn, "SHOW session_replication_role") == "origin"
        await check_pool(pool)


async def test_other_settings_of_the_transaction_hold_beside_them(dsn: str, kind: Kind) -> None:
    """The BEGIN is the one that the driver would send."""
    own = {"isolation": "serializable", "readonly": True, "deferrable": True}
    names = ("transaction_isolation", "transaction_read_only", "transaction_deferrable")
    async with kind.of_one(dsn) as pool:
        async with pool.transaction(settings={"app.tenant": "42"}, **own) as conn:
            found = [await kind.value(conn, f"SHOW {name}") for name in names]
        assert found == ["serializable", "on", "on"]
        async with pool.transaction(settings={"app.tenant": "42"}) as conn:
            found = [await kind.value(conn, f"SHOW {name}") for name in names]
        assert found == ["read committed", "off", "off"]


async def test_session_that_is_read_only_stays_so(dsn: str, kind: Kind) -> None:
    """What is not given is as the session has it."""
    async with kind.of_one(dsn) as pool, pool.acquire() as conn:
        await conn.execute("SET default_transaction_read_only = on")
        async with poolkit.transaction(conn, settings={"app.tenant": "42"}):
            assert await kind.value(conn, "SHOW transaction_read_only") == "on"


async def test_connection_lost_before_the_begin_is_replaced_with_the_settings(
    dsn: str, outside: asyncpg.Connection, kind: Kind
) -> None:
    """The second BEGIN has them as the first one had."""
    async with kind.of_one(dsn, ping_after=None) as pool:
        async with pool.acquire() as conn:
            pid = await kind.value(conn, "SELECT pg_backend_pid()")
        await quiet(pool)
        await outside.fetchval("SELECT pg_terminate_backend($1)", pid)
        async with pool.transaction(settings={"app.tenant": "42"}) as conn:
            assert await kind.value(conn, TENANT) == "42"
            assert await kind.value(conn, "SELECT pg_backend_pid()") != pid
        await check_pool(pool)


async def test_each_attempt_at_a_transaction_has_the_settings(dsn: str, kind: Kind) -> None:
    """`Pool.run` hands them on, also when the first attempt was undone."""
    seen: list[Any] = []

    async def work(conn: Any) -> None:
        seen.append(await kind.value(conn, TENANT))
        if len(seen) == 1:
            await conn.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

    async with kind.of_one(dsn) as pool:
        await pool.run(work, settings={"app.tenant": "42"})
        assert seen == ["42", "42"]
        await check_pool(pool)


async def test_begin_that_is_cancelled_costs_nobody_anything(
    dsn: str, outside: asyncpg.Connection, kind: Kind
) -> None:
    """A deferrable one waits for others' writes, in the round trip in which it begins."""
    await outside.execute("BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO t VALUES (1)")
    own = {"isolation": "serializable", "readonly": True, "deferrable": True}
    try:
        async with kind.of_one(dsn) as pool:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    async with pool.transaction(settings={"app.tenant": "42"}, **own):
                        raise AssertionError
            connected = pool.stats().connected
            async with pool.transaction() as conn:
                assert not await kind.value(conn, TENANT)
            assert pool.stats().connected == connected
            await check_pool(pool)
    finally:
        await outside.execute("ROLLBACK")


async def test_settings_that_are_cancelled_after_the_begin_cost_nobody_anything(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """With a query logger they take a round trip of their own, in which this one waits."""
    await outside.execute("BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO t VALUES (1)")
    own: Any = {"isolation": "serializable", "readonly": True, "deferrable": True}
    seen: list[str] = []
    try:
        async with on_asyncpg.create_pool(dsn, max_size=1) as pool:
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                conn.add_query_logger(lambda record: seen.append(record.query))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        async with poolkit.transaction(conn, settings={"app.tenant": "1"}, **own):
                            raise AssertionError
                assert len(seen) == 1
                with pytest.raises(poolkit.PoolError, match="cancelled"):
                    await conn.execute("SELECT 1")
            async with pool.acquire() as conn:
                assert conn.get_server_pid() == pid
                assert not conn.is_in_transaction()
                assert not await conn.fetchval(TENANT)
            await check_pool(pool)
    finally:
        await outside.execute("ROLLBACK")


# -- inside of another transaction ---------------------------------------------------------------


async def test_transactions_inside_keep_the_settings(
    dsn: str, outside: asyncpg.Connection, kind: Kind
) -> None:
    """A savepoint, of poolkit's or of the library's own; the driver knows that it is inside."""
    async with kind.of_one(dsn) as pool:
        async with pool.transaction(settings={"app.tenant": "42"}) as conn:
            async with conn.transaction():
                await conn.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(ValueError, match="undone"):
                async with conn.transaction():
                    await conn.execute("INSERT INTO t VALUES (2)")
                    raise ValueError("undone")
            async with poolkit.transaction(conn):
                await conn.execute("INSERT INTO t VALUES (3)")
            with pytest.raises(ValueError, match="undone"):
                async with poolkit.transaction(conn):
                    await conn.execute("INSERT INTO t VALUES (4)")
                    raise ValueError("undone")
            assert await kind.value(conn, TENANT) == "42"
        assert await rows(outside) == [1, 3]
        with pytest.raises(ValueError, match="all"):
            async with pool.transaction(settings={"app.tenant": "42"}) as conn:
                async with conn.transaction():
                    await conn.execute("INSERT INTO t VALUES (5)")
                raise ValueError("all")
        assert await rows(outside) == [1, 3]
        await check_pool(pool)


@pytest.mark.parametrize("given", [{"settings": {"app.tenant": "1"}}, {"role": "web"}])
async def test_settings_of_a_transaction_inside_are_refused(
    dsn: str, kind: Kind, given: dict[str, Any]
) -> None:
    """They would outlive it; the one around goes on."""
    async with kind.of_one(dsn) as pool:
        async with pool.transaction(settings={"app.tenant": "42"}) as conn:
            with pytest.raises(PoolConfigError, match="Give them where the outermost begins"):
                async with poolkit.transaction(conn, **given):
                    raise AssertionError
            assert await kind.value(conn, TENANT) == "42"
        await check_pool(pool)


async def test_transaction_that_its_block_has_ended_is_an_error(
    dsn: str, outside: asyncpg.Connection, kind: Kind
) -> None:
    """As without settings: what comes later would stand by itself."""
    async with kind.of_one(dsn) as pool:
        with pytest.raises(poolkit.TransactionEnded):
            async with pool.transaction(settings={"app.tenant": "42"}) as conn:
                await conn.execute("COMMIT")
                await conn.execute("INSERT INTO t VALUES (1)")
        assert await rows(outside) == []
        await check_pool(pool)


# -- quoting -------------------------------------------------------------------------------------

HEX = "SELECT encode(convert_to(current_setting('app.text'), 'UTF8'), 'hex')"
TEXTS = [
    "",
    "plain",
    "it's",
    "''; DROP TABLE t; --",
    "\\",
    "\\'; DROP TABLE t; --",
    'say "x"',
    "$$ $poolkit$",
    "a;b",
    "line\nline\r\ttab\x01\x7f",
    "E'\\u0041' {} %s %% $1 :name ?",
    "Zürich ☃ 𝄞",
    "DISCARD ALL; DEALLOCATE ALL; PREPARE TRANSACTION 'x'",
    "x" * 100_000,
]


@pytest.mark.parametrize("conforming", ["on", "off"])
async def test_value_arrives_as_it_was_given(
    dsn: str, outside: asyncpg.Connection, kind: Kind, conforming: str
) -> None:
    """Whatever a backslash means in the session, and whatever is in it."""
    async with kind.of_one(dsn, reset="none") as pool:
        async with pool.acquire() as conn:
            await conn.execute(f"SET standard_conforming_strings = {conforming}")
        for text in TEXTS:
            async with pool.transaction(settings={"app.text": text}) as conn:
                found = await kind.value(conn, HEX)
                await conn.execute("INSERT INTO t VALUES (1)")
            assert bytes.fromhex(found).decode() == text
        assert len(await rows(outside)) == len(TEXTS)
        await check_pool(pool)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "WIN1252"])
async def test_value_arrives_whatever_encoding_the_client_has(
    dsn: str, kind: Kind, encoding: str
) -> None:
    """The text of the BEGIN has nothing but ASCII in it."""
    async with kind.of_one(dsn, reset="none") as pool, pool.acquire() as conn:
        await conn.execute(f"SET client_encoding = '{encoding}'")
        async with poolkit.transaction(conn, settings={"app.text": "Zürich ☃"}):
            found = await kind.value(conn, HEX)  # bytes from psycopg at SQL_ASCII
            text = found.decode() if isinstance(found, bytes) else found
            assert bytes.fromhex(text).decode() == "Zürich ☃"


class Color(str, enum.Enum):  # noqa: UP042  # the older way, whose str() is its name
    """An enum that is a text."""

    RED = "red"


class Level(enum.IntEnum):
    """An enum that is a number."""

    HIGH = 3


ID = uuid.UUID("12345678-1234-5678-1234-567812345678")
VALUES = [
    (True, "true"),
    (False, "false"),
    (42, "42"),
    (-1, "-1"),
    (1.5, "1.5"),
    (1e22, "1e+22"),
    (ID, str(ID)),
    (Color.RED, "red"),
    (Level.HIGH, "3"),
]


@pytest.mark.parametrize(("value", "text"), VALUES)
def test_value_that_is_no_text_has_one(value: Any, text: str) -> None:
    """The one that PostgreSQL reads as the same value."""
    assert begin.checked({"app.x": value}, None) == {"app.x": text}


async def test_search_path_is_given_as_in_a_connection_string(dsn: str, kind: Kind) -> None:
    """Several names in one text, which SET would take for one name."""
    async with kind.of_one(dsn) as pool:
        async with pool.transaction(settings={"search_path": "tenant_42, public"}) as conn:
            found = await kind.value(conn, "SELECT current_schemas(false)::text")
            assert found == "{public}"
            assert await kind.value(conn, "SHOW search_path") == "tenant_42, public"


# -- what is refused at once ---------------------------------------------------------------------

WRONG = [
    ({"": "1"}, None, "'' cannot be the name of a setting"),
    ({"a b": "1"}, None, "'a b' cannot be the name"),
    ({"x;drop": "1"}, None, "'x;drop' cannot be the name"),
    ({"app.": "1"}, None, "'app.' cannot be the name"),
    ({".x": "1"}, None, "'.x' cannot be the name"),
    ({"1x": "1"}, None, "'1x' cannot be the name"),
    ({"app.x\n": "1"}, None, "cannot be the name"),
    ({'"app".x': "1"}, None, "cannot be the name"),
    ({"app.\0": "1"}, None, "cannot be the name"),
    ({3: "1"}, None, "3 cannot be the name"),
    ({None: "1"}, None, "None cannot be the name"),
    ({"app.x": None}, None, "the value of 'app.x' is None: give a text"),
    ({"app.x": ["1"]}, None, "the value of 'app.x' is a list"),
    ({"app.x": b"1"}, None, "the value of 'app.x' is a bytes"),
    ({"app.x": "a\0secret"}, None, "the value of 'app.x' has a NUL character in it"),
    ({"app.x": "\ud800"}, None, "the value of 'app.x' has a lone surrogate in it"),
    ({"app.x": "1", "APP.X": "2"}, None, "'APP.X' is there twice"),
    ({"transaction_isolation": "serializable"}, None, "is set by isolation="),
    ({"Transaction_Read_Only": "on"}, None, "is set by readonly="),
    ({"transaction_deferrable": "on"}, None, "is set by deferrable="),
    ({"role": "web"}, None, "is set by role="),
    ({"session_authorization": "web"}, None, "is set by role="),
    ([("app.x", "1")], None, "settings is a list: give names and values"),
    ("app.x=1", None, "settings is a str: give names and values"),
    (None, "", "role is empty: give the name"),
    (None, 3, "role is a int: give the name"),
    (None, "none", "role='none' is no role: it means the login itself"),
    (None, "a\0b", "role has a NUL character"),
]


@pytest.mark.parametrize(("settings", "role", "said"), WRONG)
async def test_setting_that_cannot_be_one_is_refused_at_once(
    postgres: Postgres, dsn: str, kind: Kind, settings: Any, role: Any, said: str
) -> None:
    """Nothing is sent, nothing is lost, and no value is told."""
    with CountingProxy(postgres.host, postgres.port) as proxy:
        async with kind.of_one(proxy.through(dsn), reset="none") as pool:
            await quiet(pool)
            before = proxy.trips
            with pytest.raises(PoolConfigError) as refused:
                async with pool.transaction(settings=settings, role=role):
                    raise AssertionError
            assert said in str(refused.value)
            assert "secret" not in str(refused.value)
            assert proxy.trips == before
            await check_pool(pool)


@pytest.mark.parametrize("given", [{}, {"settings": None, "role": None}, {"settings": {}}])
async def test_no_settings_are_as_none_given(dsn: str, kind: Kind, given: dict[str, Any]) -> None:
    """An empty dict sets nothing."""
    async with kind.of_one(dsn) as pool:
        async with pool.transaction(**given) as conn:
            assert await kind.value(conn, "SELECT 1") == 1
        await check_pool(pool)


@pytest.mark.parametrize("name", ["asyncpg", "aiosqlite", "sqlite"])
async def test_driver_that_does_not_take_a_setting_is_named(
    dsn: str, tmp_path: Path, name: str
) -> None:
    """With what its transactions do take."""
    makers: dict[str, Callable[[], Any]] = {
        "asyncpg": lambda: on_asyncpg.create_pool(dsn, max_size=1),
        "aiosqlite": lambda: aiosqlite.create_pool(tmp_path / "a.db", max_size=1),
        "sqlite": lambda: sqlite.create_pool(tmp_path / "a.db", max_size=1),
    }
    wrong: dict[str, Any] = {"mode": "DEFERRED"} if name == "asyncpg" else {"settings": {"a.b": ""}}
    known = "isolation=" if name == "asyncpg" else "mode="
    async with makers[name]() as pool:
        with pytest.raises(PoolConfigError, match=f"do not take .*they take {known}") as refused:
            async with pool.transaction(**wrong):
                raise AssertionError
        assert str(refused.value).startswith(type(pool._driver).__name__)
        await check_pool(pool)


# -- what the server refuses ---------------------------------------------------------------------

REFUSED = [
    ({"role": "nobody_here"}, "does not exist"),
    ({"role": "public"}, "does not exist"),
    ({"role": "None"}, "does not exist"),
    ({"settings": {"tenant": "42"}}, "unrecognized configuration parameter"),
    ({"settings": {"statement_timeout": "soon"}}, "invalid value for parameter"),
    ({"settings": {"app.x": "1", "server_version": "1"}}, "cannot be changed"),
]


@pytest.mark.parametrize("is_held", [False, True], ids=["pool", "connection"])
@pytest.mark.parametrize(("given", "said"), REFUSED)
async def test_setting_that_the_server_refuses_is_an_ordinary_error(
    dsn: str, kind: Kind, given: dict[str, Any], said: str, is_held: bool
) -> None:
    """Rolled back at once; the connection is kept, and is in no transaction."""
    async with kind.of_one(dsn) as pool:
        async with pool.acquire() as conn:
            pid = await kind.value(conn, "SELECT pg_backend_pid()")
            if is_held:
                with pytest.raises(kind.error, match=said):
                    async with poolkit.transaction(conn, **given):
                        raise AssertionError
                assert not kind.is_in_transaction(conn)
                async with conn.transaction():  # and the library does not think so either
                    assert not await kind.value(conn, "SELECT current_setting('app.x', true)")
        if not is_held:
            with pytest.raises(kind.error, match=said):
                async with pool.transaction(**given):
                    raise AssertionError
        async with pool.transaction(settings={"app.tenant": "42"}) as conn:
            assert await kind.value(conn, "SELECT pg_backend_pid()") == pid
        await check_pool(pool)


@pytest.mark.parametrize("is_watched", [False, True])
async def test_error_of_the_server_has_no_values(dsn: str, kind: Kind, *, is_watched: bool) -> None:
    """Those of asyncpg have the text that has failed."""
    async with kind.of_one(dsn) as pool, pool.acquire() as conn:
        if is_watched and kind.module is on_asyncpg:
            conn.add_query_logger(print)
        with pytest.raises(kind.error, match="does not exist") as caught:
            async with poolkit.transaction(conn, settings={"app.x": "secret"}, role="nobody"):
                raise AssertionError
        assert "secret" not in repr(vars(caught.value))
        if is_watched and kind.module is on_asyncpg:
            conn.remove_query_logger(print)


async def test_role_that_one_may_not_take_on_is_an_ordinary_error(
    dsn: str, outside: asyncpg.Connection, role: str, kind: Kind
) -> None:
    """And what the login may do, the transaction may not."""
    await outside.execute("DROP ROLE IF EXISTS login_only")
    await outside.execute("CREATE ROLE login_only LOGIN")
    other = dsn.replace("postgres@", "login_only@")
    assert other != dsn
    try:
        async with kind.of_one(other) as pool:
            with pytest.raises(kind.error, match="permission denied"):
                async with pool.transaction(role=role):
                    raise AssertionError
            await check_pool(pool)
        async with kind.of_one(dsn) as pool:
            with pytest.raises(kind.error, match="permission denied"):
                async with pool.transaction(role="login_only") as conn:
                    await conn.execute("INSERT INTO t VALUES (1)")
            await check_pool(pool)
        assert await rows(outside) == []
    finally:
        await outside.execute("DROP ROLE IF EXISTS login_only")


async def test_long_role_name_is_not_cut_to_another(
    dsn: str, outside: asyncpg.Connection, kind: Kind
) -> None:
    """The server would cut it to 63 bytes, and find the role of that name."""
    name = "n" * 63
    await outside.execute(f"DROP ROLE IF EXISTS {name}")
    await outside.execute(f"CREATE ROLE {name}")
    try:
        async with kind.of_one(dsn) as pool:
            async with pool.transaction(role=name) as conn:
                assert await kind.value(conn, ROLE) == name
                await conn.execute(f"SELECT set_config('role', '{name}n', true)")
                assert await kind.value(conn, ROLE) == name
            with pytest.raises(PoolConfigError, match="longer than 63 bytes"):
                async with pool.transaction(role=f"{name}n"):
                    raise AssertionError
    finally:
        await outside.execute(f"DROP ROLE IF EXISTS {name}")


# -- resets and poolers --------------------------------------------------------------------------


async def test_settings_do_not_make_a_plain_lease_less_plain(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At ``"auto"`` what they leave is nothing, and the server agrees."""
    async with on_asyncpg.create_pool(dsn, max_size=1, reset="auto") as pool:
        async with pool.transaction(settings={"app.tenant": "42"}, role="postgres") as conn:
            await conn.fetch("SELECT x FROM t")
            assert inner(conn).has_run_only_plain()
        async with pool.transaction(settings={"app.tenant": "42"}) as conn:
            await conn.execute("SET app.tenant = '1'")
            assert not inner(conn).has_run_only_plain()
        async with verify_auto_reset(pool):
            async with pool.transaction(settings={"app.tenant": "42"}) as conn:
                await conn.fetch("SELECT x FROM t")
        async with pool.acquire() as conn:
            assert not await conn.fetchval(TENANT)
        await check_pool(pool)
    assert warnings_in(caplog) == []


def inner(conn: Any) -> Any:
    """Return the driver's connection under a view."""
    return conn._poolkit_slot.connection


@pytest.mark.parametrize("seen", ["query logger", "agent"])
async def test_whoever_watches_the_statements_sees_the_begin_and_no_values(
    dsn: str, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    """They may be somebody's; the settings then take a round trip of their own."""
    texts: list[str] = []
    execute = asyncpg.Connection.execute

    async def traced(self: Any, query: str, *args: Any, **kwargs: Any) -> str:
        texts.append(query)
        return await execute(self, query, *args, **kwargs)

    async with on_asyncpg.create_pool(dsn, max_size=1) as pool:
        if seen == "agent":
            monkeypatch.setattr(asyncpg.Connection, "execute", traced)
        async with pool.acquire() as conn:
            if seen == "query logger":
                conn.add_query_logger(lambda record: texts.append(record.query))
            async with poolkit.transaction(conn, settings={"app.tenant": "secret"}):
                assert await conn.fetchval(TENANT) == "secret"
                async with conn.transaction():
                    ...
            with pytest.raises(asyncpg.UndefinedObjectError):
                async with poolkit.transaction(conn, settings={"tenant": "secret"}):
                    raise AssertionError
            async with conn.transaction():
                assert not await conn.fetchval(TENANT)
            await asyncio.sleep(0)
            if seen == "query logger":
                conn.remove_query_logger(next(iter(inner(conn)._query_loggers)).cb)
        monkeypatch.undo()
    assert "BEGIN;" in texts
    assert not any("secret" in text or "set_config" in text for text in texts)


async def test_noted_statement_has_no_values(dsn: str) -> None:
    """`Pool.leases` shows that a transaction has begun, and not for whom."""
    async with on_asyncpg.create_pool(dsn, max_size=1, note_statements=True) as pool:
        async with pool.transaction(settings={"app.tenant": "secret"}):
            (lease,) = pool.leases()
            assert lease.statement == "BEGIN"


async def test_server_that_takes_statements_one_by_one_gets_them_so(dsn: str, kind: Kind) -> None:
    """BEGIN first, then the settings; if these fail, it is rolled back."""
    one_by_one = UndoSQL(takes_several=False)
    async with kind.of_one(dsn) as pool, pool.acquire() as conn:
        known = inner(conn)
        known = getattr(known, "_poolkit_session", known)
        before, known._undo_sql = known._undo_sql, one_by_one
        async with poolkit.transaction(conn, settings={"app.tenant": "42"}):
            assert await kind.value(conn, TENANT) == "42"
        with pytest.raises(kind.error, match="unrecognized"):
            async with poolkit.transaction(conn, settings={"tenant": "42"}):
                raise AssertionError
        assert not kind.is_in_transaction(conn)
        async with conn.transaction():
            assert not await kind.value(conn, TENANT)
        known._undo_sql = before


async def test_settings_behind_a_pooler_stay_with_their_transaction(
    pgbouncer: StartPgBouncer, kind: Kind
) -> None:
    """The pooler's sessions are shared, and settings of a transaction are not."""
    bouncer = pgbouncer(default_pool_size=2)
    pool = kind.module.create_pool(bouncer.dsn(), pooler="transaction", max_size=6)
    async with pool:

        async def use(tenant: str) -> None:
            async with pool.transaction(settings={"app.tenant": tenant}, role="postgres") as conn:
                for _ in range(5):
                    assert await kind.value(conn, TENANT) == tenant

        async def use_none() -> None:
            async with pool.acquire() as conn:
                assert not await kind.value(conn, TENANT)

        await asyncio.gather(*(use(str(n)) for n in range(24)), *(use_none() for _ in range(24)))
        await check_pool(pool)
