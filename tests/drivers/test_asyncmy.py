"""asyncmy's driver on a real server: its contract, and statements that are cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio
import asyncmy
import pytest
from asyncmy.cursors import DictCursor, SSCursor
from asyncmy.errors import InterfaceError, OperationalError

from poolkit import NotLeased
from poolkit.drivers.asyncmy import create_pool, from_url
from poolkit.drivers.asyncmy._connection import LeaseConnection
from poolkit.testing import Probe, check_driver, check_pool
from tests.drivers.asyncmy_help import (
    ENDLESS,
    ask,
    database_of,
    execute,
    of_one,
    quiet,
    running,
    sessions,
    until_sessions,
    value,
    with_table,
)
from tests.drivers.asyncpg_help import LOOPS
from tests.mariadb import PASSWORD
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.mariadb import MariaDB

    Act = Callable[[Any], Awaitable[object]]


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncmy knows no others."""
    return request.param


@pytest.mark.parametrize("derived", ["cursor", "unbuffered", "statement"])
@pytest.mark.parametrize("level", ["full", "transaction"])
async def test_driver_keeps_every_line(
    mariadb: MariaDB, mysql: str, derived: str, level: Any
) -> None:
    """With what asyncmy makes from a connection."""
    async with with_table(mysql) as outside, outside.acquire() as other:
        keys = iter(range(100_000))

        async def derive(c: Any) -> Callable[[], Awaitable[object]]:
            if derived == "statement":
                return (await c.prepare("SELECT 1")).execute  # type: ignore[no-any-return]
            cursor = c.cursor(SSCursor if derived == "unbuffered" else None)

            async def read() -> None:
                await cursor.execute("SELECT 1")
                await cursor.fetchall()

            return read

        async def spoil(c: Any) -> None:
            await execute(c, "START TRANSACTION")
            await execute(c, "SET @x = 1, time_zone = '+03:00'")

        async def is_spoiled(c: Any) -> bool:
            if c.get_transaction_status():
                return True
            return level == "full" and bool(
                await value(c, "SELECT @x IS NOT NULL OR @@time_zone = '+03:00'")
            )

        async def count() -> int:
            return len(await sessions(mariadb, mysql)) - 1

        probe: Probe[Any] = Probe(
            operate=lambda c: execute(c, ENDLESS),
            count=count,
            kill=lambda c: execute(other, f"KILL {c.thread_id()}"),
            spoil=spoil,
            is_spoiled=is_spoiled,
            derive=derive,
            write=lambda c: execute(c, f"INSERT INTO t VALUES ({next(keys)})"),
            count_rows=lambda: value(other, "SELECT COUNT(*) FROM t"),
            secrets=(PASSWORD,),
        )
        report = await check_driver(from_url(mysql, reset=level), probe)
        assert "revoke ends the objects made from the connection" in report.checked
        assert len(report.checked) > 30, str(report)


# -- cancellation --------------------------------------------------------------------------------


async def by_cursor(conn: Any) -> None:
    """Run for ever in a cursor."""
    await conn.cursor().execute(ENDLESS)


async def by_dict_cursor(conn: Any) -> None:
    """Run for ever in another one, by the binary protocol."""
    await conn.cursor(DictCursor).execute("SELECT SLEEP(%s)", (600,))


async def unbuffered(conn: Any) -> None:
    """Wait for rows for ever."""
    cursor = conn.cursor(SSCursor)
    await cursor.execute("SELECT 1 UNION ALL SELECT SLEEP(600)")
    await cursor.fetchall()


async def by_statement(conn: Any) -> None:
    """Run for ever in a prepared statement."""
    statement = await conn.prepare("SELECT SLEEP(?)")
    await statement.execute((600,))


async def many(conn: Any) -> None:
    """Run for ever one after another."""
    await conn.cursor().executemany("INSERT INTO t VALUES (SLEEP(%s))", [(600,), (600,)])


async def by_connection(conn: Any) -> None:
    """Run for ever without a cursor."""
    await conn.query(ENDLESS)


OPERATIONS: list[Act] = [by_cursor, by_dict_cursor, unbuffered, by_statement, many, by_connection]


@pytest.mark.parametrize("how", ["scope", "task"])
@pytest.mark.parametrize("operate", OPERATIONS)
@pytest.mark.parametrize("level", ["full", "none"])
async def test_cancelled_operation_ends_on_the_server(
    mariadb: MariaDB, mysql: str, operate: Act, how: str, level: str
) -> None:
    """With its locks, and with its connection; the next lease has another one."""
    lock = database_of(mysql)
    arguments = {"stmt_cache_size": 9}
    async with with_table(mysql, reset=level, reset_timeout=20, connect_kwargs=arguments) as pool:
        scope = anyio.CancelScope()

        async def use() -> None:
            with scope:
                async with pool.acquire() as conn:
                    await execute(conn, f"DO GET_LOCK('{lock}', 0)")
                    await operate(conn)

        task = asyncio.ensure_future(use())
        found = await until_sessions(
            mariadb, mysql, lambda seen: any("SLEEP(" in text for text in seen.values())
        )
        (scope if how == "scope" else task).cancel()
        await asyncio.wait([task])
        async with pool.acquire() as conn:
            assert conn.thread_id() not in found
            assert await value(conn, f"SELECT GET_LOCK('{lock}', 0)") == 1
        await until_sessions(mariadb, mysql, lambda seen: len(seen) == 1)
        await check_pool(pool)


async def test_many_cancelled_operations_end_by_one_connection_more(
    mariadb: MariaDB, mysql: str
) -> None:
    """However many there are, and the server's limit is near."""
    before = int((await ask(mariadb, "SHOW GLOBAL STATUS LIKE 'Connections'"))[0][1])
    async with create_pool(mysql, min_size=9, max_size=9, reset_timeout=20) as pool:

        async def use() -> None:
            async with pool.acquire() as conn:
                await conn.cursor().execute(ENDLESS)

        tasks = [asyncio.ensure_future(use()) for _ in range(9)]
        await until_sessions(mariadb, mysql, lambda seen: [*seen.values()] == [ENDLESS] * 9)
        asked = await ask(mariadb, "SHOW GLOBAL STATUS LIKE 'Connections'")
        made = int(asked[0][1])
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await quiet(pool)
        assert not any(at == ENDLESS for at in (await sessions(mariadb, mysql)).values())
        asked = await ask(mariadb, "SHOW GLOBAL STATUS LIKE 'Connections'")
        # Of the pool, of the two questions, and of the killing: the first alone, then the rest.
        assert int(asked[0][1]) - made <= pool.stats().connected - 9 + 4
        assert made > before


async def test_statement_that_outlasts_read_timeout_ends_on_the_server(
    mariadb: MariaDB, mysql: str
) -> None:
    """Asyncmy would hang up, and leave it to the server."""
    async with of_one(mysql + "?read_timeout=0.2") as pool:
        async with pool.acquire() as conn:
            cursor = conn.cursor()
            with pytest.raises(OperationalError, match="read timeout"):
                await cursor.execute(ENDLESS)
            with pytest.raises(InterfaceError, match="nothing was read within read_timeout"):
                await cursor.execute("SELECT 1")
        async with pool.acquire() as conn:
            assert await value(conn, "SELECT 1") == 1
        await until_sessions(mariadb, mysql, lambda seen: len(seen) == 1)


@pytest.mark.parametrize("operate", OPERATIONS)
async def test_operation_of_a_task_that_outlives_the_lease_ends(
    mariadb: MariaDB, mysql: str, operate: Act
) -> None:
    """Its task gets an error, and the next lease has no part in it."""
    async with with_table(mysql, reset_timeout=20) as pool:
        async with pool.acquire() as conn:
            task = asyncio.ensure_future(operate(conn))
            await until_sessions(
                mariadb, mysql, lambda seen: any("SLEEP(" in text for text in seen.values())
            )
        async with pool.acquire() as conn:
            assert await value(conn, "SELECT 1") == 1
        await asyncio.wait([task])
        assert isinstance(task.exception(), (asyncmy.Error, NotLeased))
        await until_sessions(mariadb, mysql, lambda seen: len(seen) == 1)
        await check_pool(pool)


async def test_closing_pool_ends_what_its_holders_run(mariadb: MariaDB, mysql: str) -> None:
    """A statement would go on, with its locks, when its client has hung up."""
    pool = of_one(mysql)
    await pool.open()

    async def use() -> None:
        async with pool.acquire() as conn:
            await conn.cursor().execute(ENDLESS)

    task = asyncio.ensure_future(use())
    await running(mariadb, mysql)
    await pool.aclose(grace=0)
    await asyncio.wait([task])
    assert isinstance(task.exception(), (asyncmy.Error, NotLeased))
    await until_sessions(mariadb, mysql, lambda seen: not seen)


async def test_connection_is_used_by_one_task_at_a_time(mysql: str, mariadb: MariaDB) -> None:
    """Asyncmy would mix their answers."""
    async with of_one(mysql) as pool, pool.acquire() as conn:
        task = asyncio.ensure_future(conn.cursor().execute("SELECT SLEEP(0.2)"))
        await running(mariadb, mysql, "SELECT SLEEP(0.2)")
        with pytest.raises(InterfaceError, match="another task is using this connection"):
            await conn.cursor().execute("SELECT 1")
        assert await task == 1
        assert await value(conn, "SELECT 2") == 2


async def test_session_of_another_server_is_not_ended(
    mariadb: MariaDB, own_mariadb: MariaDB, mysql: str
) -> None:
    """Where a load balancer leads elsewhere, the same number is somebody else's."""
    await ask(own_mariadb, f"CREATE DATABASE {database_of(mysql)}")
    with Proxy(mariadb.host, mariadb.port) as proxy:
        async with (
            of_one(proxy.through(mysql), reset_timeout=20) as pool,
            create_pool(own_mariadb.url(), min_size=9) as others,
        ):
            task = asyncio.ensure_future(use_for_ever(pool))
            victim = await running(mariadb, mysql)
            there = set(await asyncio.to_thread(own_mariadb.sessions))
            proxy._upstream = own_mariadb.host, own_mariadb.port
            task.cancel()
            await asyncio.wait([task])
            await quiet(pool)
            assert there <= set(await asyncio.to_thread(own_mariadb.sessions))
            assert others.stats().connected == others.stats().idle == 9
            assert victim in await sessions(mariadb, mysql)
            await ask(mariadb, f"KILL {victim}")


async def test_session_whose_number_is_a_proxys_is_not_ended(
    mariadb: MariaDB, mysql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the server that number is somebody else's."""
    async with create_pool(mysql) as others, others.acquire() as other:
        victim = other.thread_id()
        monkeypatch.setattr(LeaseConnection, "thread_id", lambda _: victim)
        async with of_one(mysql, reset_timeout=20) as pool:
            task = asyncio.ensure_future(use_for_ever(pool))
            number = await running(mariadb, mysql)
            task.cancel()
            await asyncio.wait([task])
            await quiet(pool)
        assert await value(other, "SELECT 1") == 1
        await ask(mariadb, f"KILL {number}")


async def test_session_from_before_a_restart_is_not_ended(own_mariadb: MariaDB) -> None:
    """Since then its number is another session's."""
    driver = from_url(own_mariadb.url())
    c: Any = await driver.connect()
    session = c._poolkit_session
    session.began_at -= 60
    await asyncio.to_thread(own_mariadb.restart)
    async with create_pool(own_mariadb.url()) as others, others.acquire() as other:
        session.thread_id = other.thread_id()
        session.abandon("its statement was cancelled")
        with pytest.raises(InterfaceError, match="its statement was cancelled"):
            await driver.reset(c)
        assert await value(other, "SELECT 1") == 1
    driver.terminate(c)


async def use_for_ever(pool: Any) -> None:
    """Run a statement that does not end."""
    async with pool.acquire() as conn:
        await conn.cursor().execute(ENDLESS)
