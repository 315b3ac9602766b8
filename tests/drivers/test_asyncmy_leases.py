"""What a lease of asyncmy's has made and left, on a real server: it is no other lease's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING, Any

import asyncmy
import pytest
from asyncmy.cursors import SSDictCursor
from asyncmy.errors import InterfaceError

from poolkit import ConnectFailed, NotLeased, PoolConfigError
from poolkit.drivers.asyncmy import from_url
from poolkit.testing import check_pool
from tests.drivers.asyncmy_help import (
    execute,
    of_one,
    quiet,
    rows,
    until_asked,
    value,
    with_table,
)
from tests.drivers.asyncpg_help import LOOPS, until, warnings_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.mariadb import MariaDB

    Act = Callable[[Any], Awaitable[object]]


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncmy knows no others."""
    return request.param


# -- what was made in a lease --------------------------------------------------------------------


async def made_cursor(conn: Any) -> Callable[[], Any]:
    """Make a cursor."""
    cursor = conn.cursor()
    return lambda: cursor.execute("SELECT 1")


async def made_connection(conn: Any) -> Callable[[], Any]:
    """Get at the connection through a cursor."""
    return conn.cursor().connection.commit  # type: ignore[no-any-return]


async def made_statement(conn: Any) -> Callable[[], Any]:
    """Prepare a statement."""
    return (await conn.prepare("SELECT 1")).execute  # type: ignore[no-any-return]


async def made_rows(conn: Any) -> Callable[[], Any]:
    """Leave rows unread."""
    cursor = conn.cursor(SSDictCursor)
    await cursor.execute("SELECT seq FROM seq_1_to_100000")
    await cursor.fetchone()
    return cursor.fetchall  # type: ignore[no-any-return]


@pytest.mark.parametrize("level", ["full", "transaction", "none"])
@pytest.mark.parametrize("make", [made_cursor, made_connection, made_statement, made_rows])
async def test_what_a_lease_has_made_is_dead_after_it(mysql: str, make: Act, level: str) -> None:
    """And does nothing to the next lease, used, closed or collected."""
    async with with_table(mysql, reset=level) as pool:
        async with pool.acquire() as conn:
            use: Any = await make(conn)
            number = conn.thread_id()
        async with pool.acquire() as conn:
            await conn.begin()
            await execute(conn, "INSERT INTO t VALUES (1)")
            with pytest.raises((InterfaceError, NotLeased), match=r"lease is over|Not connected"):
                await use()
            if (closing := getattr(use, "__self__", conn.cursor()).close()) is not None:
                await closing
            del use
            gc.collect()
            await conn.commit()
            assert (conn.thread_id() == number) is (make is not made_rows)
        assert await rows(pool) == [1]
        await check_pool(pool)


async def test_results_that_were_not_asked_for_are_read(mysql: str) -> None:
    """What follows the first result of several statements costs no connection."""
    for level in ("full", "none"):
        async with of_one(mysql, reset=level) as pool:
            async with pool.acquire() as conn:
                cursor = conn.cursor()
                await cursor.execute("SELECT 1; SELECT 2; SELECT 3")
                assert await cursor.fetchone() == (1,)
                number = conn.thread_id()
            async with pool.acquire() as conn:
                assert await value(conn, "SELECT 4") == 4
                assert conn.thread_id() == number
            assert await cursor.nextset() is None


async def test_rows_that_were_read_can_be_had_after_the_lease(mysql: str) -> None:
    """They are data."""
    async with of_one(mysql) as pool:
        async with pool.acquire() as conn:
            cursor = conn.cursor()
            await cursor.execute("SELECT 1 UNION SELECT 2")
        assert await cursor.fetchone() == (1,)
        assert list(await cursor.fetchall()) == [(2,)]


async def test_answer_that_nobody_has_read_is_not_the_next_ones(mysql: str) -> None:
    """Whether it has come when the reset begins, or comes later."""
    driver = from_url(mysql)
    for wait in (False, True):
        c: Any = await driver.connect()
        session = c._poolkit_session
        session.transport.write(b"\x0a\x00\x00\x00\x03SELECT 17")
        if wait:
            await until(_has_come(session))
        with pytest.raises(asyncmy.Error):
            await driver.reset(c)
        driver.terminate(c)


async def test_coroutine_that_is_closed_leaves_its_answer_to_nobody(mysql: str) -> None:
    """As one that is collected with its task: it is not cancelled."""
    async with of_one(mysql, reset="none") as pool:
        async with pool.acquire() as conn:
            coroutine = conn.cursor().execute("SELECT 17, SLEEP(0.3)")
            coroutine.send(None)
            coroutine.close()
            number = conn.thread_id()
        async with pool.acquire() as conn:
            assert await value(conn, "SELECT 18") == 18
            assert conn.thread_id() != number


async def test_file_that_was_not_sent_is_no_other_leases(mysql: str, tmp_path: Path) -> None:
    """The server would take the next statement for a part of it: some asyncmy fails before."""
    (tmp_path / "numbers").write_text("1\n2\n")
    arguments = {"local_infile": True}
    async with with_table(mysql, reset="none", connect_kwargs=arguments) as pool:
        with contextlib.suppress(TypeError):
            async with pool.acquire() as conn:
                file = tmp_path / "numbers"
                await execute(conn, f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE t")
        async with pool.acquire() as conn:
            assert await value(conn, "SELECT 18") == 18


async def test_answer_that_cannot_be_read_costs_the_connection(mysql: str) -> None:
    """The rest of it may not have come yet."""
    async with of_one(mysql, reset="none") as pool:
        async with pool.acquire() as conn:
            await execute(conn, "SET NAMES latin1")
            with pytest.raises(UnicodeDecodeError):
                await execute(conn, "SELECT CHAR(233 USING latin1)")
            with pytest.raises(InterfaceError, match="not read to its end"):
                await execute(conn, "SELECT 1")
        async with pool.acquire() as conn:
            assert await value(conn, "SELECT 18") == 18
        assert pool.stats().connected == 2


async def test_prepared_statement_that_ends_autocommit_is_undone(mysql: str) -> None:
    """The server's status is 0 then, which asyncmy takes for none."""
    async with of_one(mysql + "?stmt_cache_size=5", reset="transaction") as pool:
        for fails in (False, True):
            async with pool.acquire() as conn:
                await execute(conn, "SET autocommit = %s", (0,))
                if fails:
                    with pytest.raises(asyncmy.Error):
                        await execute(conn, "SELECT nothing")
            async with pool.acquire() as conn:
                assert await value(conn, "SELECT @@autocommit") == 1
        assert pool.stats().connected == 1


async def test_role_is_restored_whatever_its_name(own_mariadb: MariaDB) -> None:
    """The server may read it before it knows the charset."""
    await asyncio.to_thread(own_mariadb.restart, character_set_server="latin1")
    for text in ("CREATE ROLE `rôle`", "GRANT `rôle` TO app@'%'"):
        await asyncio.to_thread(own_mariadb.query, text)
    try:
        await asyncio.to_thread(own_mariadb.query, "SET DEFAULT ROLE `rôle` FOR app@'%'")
        async with of_one(own_mariadb.url()) as pool:
            for _ in range(2):
                async with pool.acquire() as conn:
                    assert await value(conn, "SELECT CURRENT_ROLE()") == "rôle"
                    await execute(conn, "SET ROLE NONE")
                await quiet(pool)
            assert pool.stats().connected == 1
    finally:
        await asyncio.to_thread(own_mariadb.query, "DROP ROLE `rôle`")


def _has_come(session: Any) -> Callable[[], bool]:
    return lambda: session.proto.length > session.proto.pos


# -- set-up --------------------------------------------------------------------------------------


async def test_what_set_up_has_left_is_there_in_each_lease(mysql: str) -> None:
    """Also what no variable shows; and on_connect's objects are dead."""
    kept: list[Any] = []

    async def set_up(conn: Any) -> None:
        kept.append(conn.cursor())
        await kept[-1].execute("SET @who = 'alice'")
        await kept[-1].execute("CREATE TEMPORARY TABLE mine (x INT)")

    init = "SET time_zone = '+05:00', @tenant = 7"
    async with of_one(mysql, on_connect=set_up, connect_kwargs={"init_command": init}) as pool:
        for _ in range(3):
            async with pool.acquire() as conn:
                asked = "SELECT @who, @tenant, @@time_zone, (SELECT COUNT(*) FROM mine)"
                assert await execute(conn, asked) == [("alice", 7, "+05:00", 0)]
                await execute(conn, "SET time_zone = '+01:00', @who = 'bob'")
                await execute(conn, "INSERT INTO mine VALUES (1)")
        assert pool.stats().connected == 1
        with pytest.raises(InterfaceError, match="lease is over"):
            await kept[0].execute("SELECT 1")


@pytest.mark.parametrize(
    ("leave", "complaint"),
    [("START TRANSACTION", "a transaction open"), ("SELECT 1; SELECT 2", "a result unread")],
)
async def test_set_up_that_leaves_something_open_is_refused(
    mysql: str, leave: str, complaint: str
) -> None:
    """The first reset would end it."""

    async def set_up(conn: Any) -> None:
        await conn.cursor().execute(leave)

    with pytest.raises(ConnectFailed) as caught:
        await of_one(mysql, on_connect=set_up).open()
    assert isinstance(caught.value.__cause__, PoolConfigError)
    assert complaint in str(caught.value.__cause__)


async def test_statements_take_effect_at_once(mysql: str, caplog: pytest.LogCaptureFixture) -> None:
    """Unless autocommit is off: then a lease that does not commit has done nothing, and is told."""
    async with with_table(mysql) as pool:
        async with pool.acquire() as conn:
            assert conn.get_autocommit()
            await execute(conn, "INSERT INTO t VALUES (1)")
        assert await rows(pool) == [1]
        assert not warnings_in(caplog)
    async with of_one(mysql + "?autocommit=no") as pool:
        for commits in (False, True):
            async with pool.acquire() as conn:
                assert not conn.get_autocommit()
                await execute(conn, "INSERT INTO t VALUES (2)")
                if commits:
                    await conn.commit()
        assert await rows(pool) == [1, 2]
        assert ["an open transaction" in text for text in warnings_in(caplog)] == [True]


@pytest.mark.parametrize("level", ["transaction", "none"])
async def test_read_begins_no_transaction_that_outlives_its_lease(
    mysql: str, level: str, mariadb: MariaDB
) -> None:
    """Without autocommit a SELECT takes locks, and the server's answer does not say so."""
    async with with_table(mysql), of_one(mysql + "?autocommit=no", reset=level) as pool:
        async with pool.acquire() as conn:
            await execute(conn, "SELECT * FROM t FOR UPDATE")
        await quiet(pool)
        await until_asked(mariadb, "SELECT COUNT(*) FROM information_schema.INNODB_TRX", [(0,)])


@pytest.mark.parametrize("level", ["transaction", "none", "function"])
async def test_light_levels_need_no_round_trip(mysql: str, level: str) -> None:
    """But for a function, and the open transaction, and autocommit."""
    seen: list[Any] = []

    async def undo(conn: Any) -> None:
        seen.append(await value(conn, "SELECT @x"))
        await execute(conn, "SET @x = NULL")

    async with with_table(mysql, reset=undo if level == "function" else level) as pool:
        async with pool.acquire() as conn:
            await execute(conn, "SET @x = 4")
        assert pool.stats().idle == (level != "function")
        async with pool.acquire() as conn:
            left = None if level == "function" else 4
            assert await value(conn, "SELECT @x") == left
            await execute(conn, "SET autocommit = 0")
            await execute(conn, "INSERT INTO t VALUES (1)")
        async with pool.acquire() as conn:
            assert conn.get_autocommit() is (level != "none")
            assert await value(conn, "SELECT COUNT(*) FROM t") == 0
        assert pool.stats().connected == 1
        assert seen[:2] == ([None, 4] if level == "function" else [])


@pytest.mark.parametrize("level", ["full", "none"])
async def test_cached_statements_are_there_as_long_as_the_server_has_them(
    mysql: str, level: str
) -> None:
    """A full reset drops them on the server."""
    async with of_one(mysql + "?stmt_cache_size=5", reset=level) as pool:
        for number in range(3):
            async with pool.acquire() as conn:
                assert len(conn._stmt_cache) == (0 if level == "full" or not number else 1)
                assert await execute(conn, "SELECT %s", (number,)) == [(number,)]
        assert pool.stats().connected == 1


async def test_database_of_use_is_undone_where_there_was_none(mariadb: MariaDB, mysql: str) -> None:
    """No server can undo it, so it costs the connection."""
    async with of_one(mariadb.url()) as pool:
        async with pool.acquire() as conn:
            await conn.select_db(mysql.rpartition("/")[2])
        async with pool.acquire() as conn:
            assert await value(conn, "SELECT DATABASE()") is None
        assert pool.stats().connected == 2


async def test_attributes_of_the_connection_are_as_they_were(mysql: str) -> None:
    """Charset, encoding, and what a user sets on the view."""
    async with of_one(mysql) as pool:
        async with pool.acquire() as conn:
            before = conn.character_set_name(), conn._encoding
            await execute(conn, "SET NAMES latin1")
            inner = conn.cursor().connection
            inner._charset, inner._encoding = "latin1", "cp1252"
            conn.tenant = "alice"
        async with pool.acquire() as conn:
            assert (conn.character_set_name(), conn._encoding) == before
            assert await value(conn, "SELECT 'ü€'") == "ü€"
            assert not hasattr(conn, "tenant")
        assert pool.stats().connected == 1
