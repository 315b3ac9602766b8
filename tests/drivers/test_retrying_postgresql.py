"""Transactions that are run again, on a real PostgreSQL, by asyncpg and by psycopg."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg
import psycopg
import pytest

import poolkit
from poolkit import CommitUnknown, Observer, Pool, PoolUnavailable
from poolkit.drivers import asyncpg as on_asyncpg
from poolkit.drivers import psycopg as on_psycopg
from poolkit.testing import check_pool
from tests.drivers.asyncpg_help import LOOPS, rows, running, until
from tests.drivers.test_asyncpg_fold import LATE_TRIGGER
from tests.drivers.test_asyncpg_lost import say_the_last_word
from tests.fakes import own
from tests.proxy import Proxy

if TYPE_CHECKING:
    import socket

    from tests.postgres import Postgres

MODULES: dict[str, Any] = {"asyncpg": on_asyncpg, "psycopg": on_psycopg}
#: How COMMIT is sent: with the reset, or alone.
LEVELS = ["full", "transaction"]
MANY = 6


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: these drivers know no others."""
    return request.param


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> Any:
    """The driver's module."""
    return MODULES[request.param]


async def ask(conn: Any, sql: str) -> Any:
    """Return the one value that a query gives, whichever library it is."""
    if hasattr(conn, "fetchval"):
        return await conn.fetchval(sql)
    row = await (await conn.execute(sql)).fetchone()
    return row and row[0]


async def account(outside: asyncpg.Connection, rows: int = 1) -> None:
    """Make accounts with nothing in them."""
    await outside.execute("DROP TABLE IF EXISTS account")
    await outside.execute("CREATE TABLE account (id int, x int)")
    await outside.execute("INSERT INTO account SELECT n, 0 FROM generate_series(1, $1) n", rows)


class Together:
    """Has some tasks wait for each other, the first time."""

    def __init__(self, many: int) -> None:
        self._missing = many
        self._all = anyio.Event()

    async def meet(self) -> None:
        """Wait until all have come; who comes later does not wait."""
        self._missing -= 1
        if self._missing <= 0:
            self._all.set()
        await self._all.wait()


# -- conflicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["run", "attempts"])
@pytest.mark.parametrize("level", LEVELS)
async def test_incrementers_that_meet_count_right(
    dsn: str, outside: asyncpg.Connection, module: Any, level: str, how: str
) -> None:
    """All have read before the first one writes: all but that one have to begin anew."""
    await account(outside)
    together = Together(MANY)

    async def increment(conn: Any) -> None:
        x = await ask(conn, "SELECT x FROM account")
        await together.meet()
        await conn.execute(f"UPDATE account SET x = {x} + 1")

    async def user() -> None:
        options: Any = {"retries": 1000, "timeout": None, "isolation": "repeatable_read"}
        if how == "run":
            await pool.run(increment, **options)
            return
        async for attempt in pool.attempts(**options):
            async with attempt as conn:
                await increment(conn)

    async with module.create_pool(dsn, max_size=MANY, reset=level) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(MANY):
                group.start_soon(user)
        assert await outside.fetchval("SELECT x FROM account") == MANY
        assert pool.stats().retried >= MANY - 1
        await check_pool(pool)


@pytest.mark.parametrize("how", ["run", "attempts"])
@pytest.mark.parametrize("level", LEVELS)
async def test_conflict_that_only_the_commit_finds_is_tried_again(
    dsn: str, outside: asyncpg.Connection, module: Any, level: str, how: str
) -> None:
    """Two that each count what the other one adds to; no statement of theirs has failed."""
    await account(outside, 0)
    together = Together(2)
    committed = anyio.Event()
    errors: list[str] = []

    class Watching(Observer):
        def retried(self, pool: Any, label: Any, seconds: float, error: Any) -> None:
            errors.append(error.sqlstate)

    async def add(conn: Any, number: int) -> None:
        many = await ask(conn, "SELECT count(*) FROM account")
        await conn.execute(f"INSERT INTO account VALUES ({number}, {many})")
        await together.meet()
        if number == 2:
            await committed.wait()

    async def user(number: int) -> None:
        options: Any = {"timeout": None, "isolation": "serializable"}
        if how == "run":
            await pool.run(lambda conn: add(conn, number), **options)
        else:
            async for attempt in pool.attempts(**options):
                async with attempt as conn:
                    await add(conn, number)
        committed.set()

    async with module.create_pool(dsn, max_size=2, reset=level, observers=[Watching()]) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(user, 1)
            group.start_soon(user, 2)
        found = await outside.fetch("SELECT id, x FROM account ORDER BY id")
        assert [tuple(row) for row in found] == [(1, 0), (2, 1)]
        assert errors == ["40001"]
        await check_pool(pool)


async def test_deadlock_is_tried_again(dsn: str, outside: asyncpg.Connection, module: Any) -> None:
    """The server chooses one of them, which begins anew; no money is lost."""
    await account(outside, 2)
    together = Together(2)

    async def move(conn: Any, there: int, here: int) -> None:
        await conn.execute("SET LOCAL deadlock_timeout TO '10ms'")
        await conn.execute(f"UPDATE account SET x = x - 1 WHERE id = {here}")
        await together.meet()
        await conn.execute(f"UPDATE account SET x = x + 3 WHERE id = {there}")

    async with module.create_pool(dsn, max_size=2) as pool:
        async with anyio.create_task_group() as group:
            for there, here in ((1, 2), (2, 1)):
                work = functools.partial(move, there=there, here=here)
                group.start_soon(functools.partial(pool.run, work, timeout=None))
        assert [row["x"] for row in await outside.fetch("SELECT x FROM account")] == [2, 2]
        assert pool.stats().retried >= 1
        await check_pool(pool)


async def test_error_of_a_statement_is_raised_at_once(
    dsn: str, outside: asyncpg.Connection, module: Any
) -> None:
    """Also one that only the COMMIT finds: it would come again."""
    await outside.execute("DROP TABLE IF EXISTS late")
    await outside.execute("CREATE TABLE late (x int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    calls = 0

    async def twice(conn: Any) -> None:
        nonlocal calls
        calls += 1
        await conn.execute("INSERT INTO late VALUES (1), (1)")

    async def wrong(conn: Any) -> None:
        nonlocal calls
        calls += 1
        await conn.execute("SELECT 1 / 0")

    async with module.create_pool(dsn) as pool:
        for work, code in ((twice, "23505"), (wrong, "22012")):
            calls = 0
            with pytest.raises(Exception, match=r"duplicate|division") as caught:
                await pool.run(work)
            assert (caught.value.sqlstate, calls) == (code, 1)  # type: ignore[attr-defined]
        await check_pool(pool)


async def test_text_that_has_committed_by_itself_is_not_run_again(
    dsn: str, outside: asyncpg.Connection, module: Any
) -> None:
    """A conflict after that has not undone it."""
    calls = 0

    async def work(conn: Any) -> None:
        nonlocal calls
        calls += 1
        fails = "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"
        await conn.execute(f"INSERT INTO t VALUES (1); COMMIT; {fails}")

    async with module.create_pool(dsn) as pool:
        with pytest.raises(Exception, match="40001"):
            await pool.run(work)
        assert (calls, await rows(outside)) == (1, [1])
        await check_pool(pool)


# -- a connection that is lost before its COMMIT was sent ----------------------------------------


async def end(outside: asyncpg.Connection, pid: int) -> None:
    """End a backend, and wait until it is gone."""
    await outside.fetchval("SELECT pg_terminate_backend($1, 10000)", pid)


async def test_connection_killed_before_the_commit_is_tried_again(
    dsn: str, outside: asyncpg.Connection, module: Any
) -> None:
    """On another one; the row is there once."""
    pids: list[int] = []

    async def work(conn: Any) -> str:
        pids.append(await ask(conn, "SELECT pg_backend_pid()"))
        await conn.execute("INSERT INTO t VALUES (1)")
        if len(pids) == 1:
            await end(outside, pids[0])
        await conn.execute("INSERT INTO t VALUES (2)")
        return "done"

    async with module.create_pool(dsn, max_size=2) as pool:
        assert await pool.run(work) == "done"
        assert len(set(pids)) == 2
        assert await rows(outside) == [1, 2]
        await check_pool(pool)


@pytest.mark.parametrize("how", ["killed", "idle for too long"])
@pytest.mark.parametrize("level", LEVELS)
async def test_connection_known_to_be_lost_has_no_commit_sent(
    dsn: str, outside: asyncpg.Connection, module: Any, level: str, how: str
) -> None:
    """It has ended between the last statement and the COMMIT."""
    calls = 0

    async def work(conn: Any) -> None:
        nonlocal calls
        calls += 1
        pid = await ask(conn, "SELECT pg_backend_pid()")
        await conn.execute("INSERT INTO t VALUES (1)")
        if calls == 1:
            if how == "killed":
                await end(outside, pid)
            else:
                await conn.execute("SET LOCAL idle_in_transaction_session_timeout = 1")
            if module is on_asyncpg:  # which reads as soon as there is anything
                await until(own(conn).is_closed)
            elif how != "killed":
                await until(own(conn)._poolkit_session.has_ended)

    async with module.create_pool(dsn, max_size=2, reset=level) as pool:
        await pool.run(work)
        assert (calls, await rows(outside)) == (2, [1])
        await check_pool(pool)


async def test_connection_whose_last_word_was_read_has_no_commit_sent(
    postgres: Postgres, dsn: str, outside: asyncpg.Connection
) -> None:
    """Before asyncpg knows of the end, it refuses to send."""
    calls = 0

    with Proxy(postgres.host, postgres.port) as proxy:

        async def work(conn: Any) -> None:
            nonlocal calls
            calls += 1
            await conn.execute("INSERT INTO t VALUES (1)")
            if calls == 1:
                await say_the_last_word(proxy, dsn, pool)

        through = f"{proxy.through(dsn)}?sslmode=disable"
        async with on_asyncpg.create_pool(through, max_size=2) as pool:
            await pool.run(work)
            assert calls == 2
            proxy.pass_through()
    async with asyncio.timeout(10):
        conn = await asyncpg.connect(dsn)
        assert await rows(conn) == [1]
        await conn.close()


# -- a COMMIT whose answer never comes -----------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
async def test_connection_killed_during_the_commit_is_unknown(
    dsn: str, outside: asyncpg.Connection, module: Any, level: str
) -> None:
    """It is not tried again."""
    await outside.execute(LATE_TRIGGER)
    calls = 0

    async def work(conn: Any) -> None:
        nonlocal calls
        calls += 1
        await conn.execute("INSERT INTO waits VALUES (1)")

    async with module.create_pool(dsn, max_size=2, reset=level) as pool:
        task = asyncio.ensure_future(pool.run(work))
        await end(outside, await running(outside, ""))
        with pytest.raises(CommitUnknown, match="nobody knows whether") as caught:
            await task
        assert not isinstance(caught.value, PoolUnavailable)
        cause = caught.value.__cause__
        assert isinstance(cause, Exception)
        assert type(cause).__module__.startswith(("asyncpg", "psycopg"))
        assert calls == 1
        await check_pool(pool)


async def test_connection_killed_during_the_commit_of_a_held_one_is_unknown(
    dsn: str, outside: asyncpg.Connection, module: Any
) -> None:
    """The lease goes on, and is of no use."""
    await outside.execute(LATE_TRIGGER)

    async def hold() -> None:
        async with pool.acquire() as conn, poolkit.transaction(conn):
            await conn.execute("INSERT INTO waits VALUES (1)")

    async with module.create_pool(dsn, max_size=2) as pool:
        task = asyncio.ensure_future(hold())
        await end(outside, await running(outside, ""))
        with pytest.raises(CommitUnknown):
            await task
        await check_pool(pool)


class CuttingProxy(Proxy):
    """Cuts a connection off in its COMMIT: before the server has it, or with its answer."""

    arrives = True
    _is_committing = False

    async def _received(self, source: socket.socket) -> bytes:
        data = await super()._received(source)
        is_client = any(link.client is source for link in self._links)
        if is_client and b"COMMIT" in data:
            self._is_committing = True
            return data if self.arrives else b""
        return b"" if self._is_committing and not is_client else data


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("arrives", [True, False])
async def test_commit_that_is_cut_off_is_unknown_whether_it_took_effect_or_not(
    postgres: Postgres,
    dsn: str,
    outside: asyncpg.Connection,
    module: Any,
    level: str,
    *,
    arrives: bool,
) -> None:
    """The two look the same, so neither is tried again."""
    calls = 0

    async def work(conn: Any) -> None:
        nonlocal calls
        calls += 1
        await conn.execute("INSERT INTO t VALUES (1)")

    with CuttingProxy(postgres.host, postgres.port) as proxy:
        proxy.arrives = arrives
        through = f"{proxy.through(dsn)}?sslmode=disable"
        async with module.create_pool(through, max_size=2, min_size=1, reset=level) as pool:
            with pytest.raises(CommitUnknown):
                await pool.run(work)
            proxy._is_committing = False
            assert calls == 1
            found = await outside.fetchval("SELECT count(*) FROM t")
            assert found == (1 if arrives else 0)
            async with pool.acquire() as conn:
                assert await ask(conn, "SELECT 1") == 1


async def test_commit_that_takes_too_long_for_asyncpg_is_unknown(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """By a limit of asyncpg's own: the request to cancel it may come too late."""
    await outside.execute(LATE_TRIGGER)

    async def work(conn: Any) -> None:
        await conn.execute("INSERT INTO waits VALUES (1)")

    arguments = {"command_timeout": 3}
    async with on_asyncpg.create_pool(dsn, connect_kwargs=arguments, reset="none") as pool:
        with pytest.raises(CommitUnknown) as caught:
            await pool.run(work)
        assert isinstance(caught.value.__cause__, TimeoutError)
        await check_pool(pool)


@pytest.mark.parametrize("level", LEVELS)
async def test_commit_that_is_cancelled_is_a_cancellation(
    dsn: str, outside: asyncpg.Connection, module: Any, level: str
) -> None:
    """It is not tried again, and no error takes its place."""
    await outside.execute(LATE_TRIGGER)
    calls = 0

    async def work(conn: Any) -> None:
        nonlocal calls
        calls += 1
        await conn.execute("INSERT INTO waits VALUES (1)")

    async with module.create_pool(dsn, max_size=1, reset=level) as pool:
        task = asyncio.ensure_future(pool.run(work))
        await running(outside, "")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert calls == 1
        assert await outside.fetchval("SELECT count(*) FROM waits") == 0
        await check_pool(pool)


async def test_pool_that_closes_during_a_commit_tells_what_is_known(
    dsn: str, outside: asyncpg.Connection, module: Any
) -> None:
    """It has the COMMIT cancelled on the server, whose answer may come, or not."""
    await outside.execute(LATE_TRIGGER)

    async def work(conn: Any) -> None:
        await conn.execute("INSERT INTO waits VALUES (1)")

    pool: Pool[Any] = await module.create_pool(dsn).open()
    task = asyncio.ensure_future(pool.run(work))
    await running(outside, "")
    await pool.aclose(grace=0.0)
    answers = (asyncpg.QueryCanceledError, psycopg.errors.QueryCanceled)
    with pytest.raises((CommitUnknown, *answers)):
        await task
    assert await outside.fetchval("SELECT count(*) FROM waits") == 0
