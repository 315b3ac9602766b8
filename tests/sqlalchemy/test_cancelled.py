"""Cancelled at every step: no slot, no transaction and no next user is the worse for it."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

import poolkit
from poolkit.sqlalchemy import create_async_engine
from tests.drivers.asyncpg_help import ENDLESS, until, until_true
from tests.fakes import gone
from tests.sqlalchemy.conftest import Database, at_rest, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

INSERT = sa.text("INSERT INTO t VALUES (1)")
COUNT = sa.text("SELECT count(*) FROM t")
SLOW_SQLITE = sa.text(
    "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c"
)


async def with_session(engine: AsyncEngine) -> None:
    """Write through a session, and never commit."""
    async with AsyncSession(engine) as session:
        await session.execute(INSERT)
        await session.execute(COUNT)


async def with_connection(engine: AsyncEngine) -> None:
    """The same with Core."""
    async with engine.connect() as conn:
        await conn.execute(INSERT)
        await conn.execute(COUNT)


async def rolled_back(engine: AsyncEngine) -> None:
    """With a rollback of the user's."""
    async with AsyncSession(engine) as session:
        await session.execute(INSERT)
        await session.rollback()


class Steps:
    """Runs a coroutine in a task, counts how often it waits, and cancels it at one of those."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], cancel_at: int) -> None:
        self.taken = 0
        self._driven = coroutine.__await__()
        self._cancel_at = cancel_at
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await self

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait for whatever the coroutine waits for."""
        error: BaseException | None = None
        while True:
            try:
                waits_for = self._driven.throw(error) if error else self._driven.send(None)
            except StopIteration:
                return
            self.taken += 1
            if self.taken == self._cancel_at:
                self.task.cancel()
            error = None
            try:
                yield waits_for
            except BaseException as thrown:
                error = thrown


async def all_is_well(pool: poolkit.Pool[Any], database: Database) -> None:
    """Check that every slot can be had, by a clean connection, and that nothing was committed."""
    await at_rest(pool)
    assert pool.stats().leased == 0, pool.leases()
    engine = create_async_engine(pool)
    connections = [await engine.connect() for _ in range(pool.stats().capacity)]
    for conn in connections:
        assert await conn.scalar(COUNT) == 0
    for conn in connections:
        await conn.close()
    await at_rest(pool)
    if not database.is_sqlite:
        open_ones = await asyncio.to_thread(
            database.query,
            "SELECT state, query FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND state <> 'idle'",
        )
        assert open_ones == []


@pytest.mark.parametrize("work", [with_session, with_connection, rolled_back])
async def test_cancelled_at_every_step(
    work: Callable[[AsyncEngine], Coroutine[Any, Any, None]], database: Database
) -> None:
    """Once at each await, on a pool of two, from its first connection on."""
    for warm in (False, True):
        step = 0
        while True:
            step += 1
            async with opened(database, max_size=2, min_size=0) as pool:
                engine = create_async_engine(pool)
                if warm:
                    await rolled_back(engine)
                    await at_rest(pool)
                with anyio.fail_after(10):
                    steps = Steps(work(engine), step)
                    await asyncio.wait([steps.task])
                    await all_is_well(pool, database)
                if steps.taken < step:
                    steps.task.result()
                    break
                if not steps.task.cancelled():
                    # SQLAlchemy 2.0, as it asks psycopg's first connection, rolls back by hand in
                    # the middle of a block of psycopg's, whose error takes the cancellation's place.
                    assert sa.__version__ < "2.1"
                    assert not warm
                    with pytest.raises(sa.exc.ProgrammingError, match="rollback"):
                        steps.task.result()
        assert step > (2 if database.is_sqlite else 4)
        # psycopg waits once for each part of an answer, of which the network makes any number.
        assert steps.taken == step - 1 or "+psycopg" in database.url


@pytest.mark.parametrize("work", [with_session, with_connection])
async def test_cancelled_again_and_again(
    work: Callable[[AsyncEngine], Coroutine[Any, Any, None]], database: Database
) -> None:
    """Many at once on few connections, each at a time of its own, with anyio's scopes."""
    chance = random.Random(8)
    async with opened(database, max_size=2) as pool:
        engine = create_async_engine(pool)

        async def one() -> None:
            with anyio.move_on_after(chance.uniform(0, 0.02)):
                await work(engine)

        with anyio.fail_after(60):
            for _ in range(10):
                async with anyio.create_task_group() as group:
                    for _ in range(10):
                        group.start_soon(one)
                await all_is_well(pool, database)


async def test_a_cancelled_query_ends_on_the_server_and_its_connection_is_kept(
    on_server: Database,
) -> None:
    """SQLAlchemy gives it up; poolkit's reset finds that it is good, and rolls back."""
    async with opened(on_server, max_size=1) as pool:
        engine = create_async_engine(pool)

        async def work() -> None:
            async with AsyncSession(engine) as session:
                await session.execute(INSERT)
                pids.append(await session.scalar(sa.text("SELECT pg_backend_pid()")))
                await session.execute(sa.text(ENDLESS))

        pids: list[Any] = []
        task = asyncio.create_task(work())
        await until(lambda: pids)
        activity = f"SELECT wait_event FROM pg_stat_activity WHERE pid = {pids[0]}"

        async def asleep() -> bool:
            return await asyncio.to_thread(on_server.query, activity) == [("PgSleep",)]

        await until_true(asleep)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        async with engine.connect() as conn:
            assert await conn.scalar(sa.text("SELECT pg_backend_pid()")) == pids[0]
            assert await conn.scalar(COUNT) == 0
        assert pool.stats().connected == 1


async def test_a_cancelled_query_of_sqlite_is_interrupted(on_sqlite: Database) -> None:
    """It would never end by itself, and with it nobody else's turn would come."""
    async with opened(on_sqlite, max_size=1) as pool:
        engine = create_async_engine(pool)
        await with_session(engine)  # cancelled in its setting up, a connection would be given up
        with anyio.fail_after(10):
            with anyio.move_on_after(0.05) as scope:
                async with AsyncSession(engine) as session:
                    await session.execute(INSERT)
                    await session.execute(SLOW_SQLITE)
            assert scope.cancelled_caught
            await all_is_well(pool, on_sqlite)
        assert pool.stats().connected == 1


async def test_a_cancelled_wait_for_a_connection_leaves_the_queue(database: Database) -> None:
    """The next in line is served instead."""
    async with opened(database, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect():
            waiting = [asyncio.create_task(with_connection(engine)) for _ in range(2)]
            await until(lambda: pool.stats().waiting == 2)
            waiting[0].cancel()
            await asyncio.wait([waiting[0]])
            assert pool.stats().waiting == 1
        await waiting[1]
        assert waiting[0].cancelled()


async def test_a_command_timeout_costs_no_connection(on_postgresql: Database) -> None:
    """To SQLAlchemy a timeout is as good as a cancellation; the driver knows better.

    asyncpg terminates the connection if its request to cancel takes as long again.
    """
    async with poolkit.drivers.asyncpg.create_pool(
        on_postgresql.url, max_size=1, reset_timeout=20, connect_kwargs={"command_timeout": 3}
    ) as pool:
        engine = create_async_engine(pool)
        with pytest.raises(TimeoutError):
            async with engine.connect() as conn:
                await conn.execute(sa.text(ENDLESS))
        await all_is_well(pool, on_postgresql)
        assert pool.stats().connected == 1


# -- forgotten -----------------------------------------------------------------------------------


async def forget(engine: AsyncEngine) -> None:
    """Write through a session, and drop it without closing it."""
    session = AsyncSession(engine)
    await session.execute(INSERT)


@pytest.mark.filterwarnings("ignore:The garbage collector:sqlalchemy.exc.SAWarning")
async def test_a_forgotten_session_is_reported_with_its_stack_and_given_back(
    engine: AsyncEngine,
    pool: poolkit.Pool[Any],
    database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its connection is terminated, for nobody knows what goes on there; its slot is free."""
    await forget(engine)
    gc.collect()
    await until(lambda: pool.stats().leased == 0)
    assert gone(pool.stats()) == {"broken": 1}
    (report,) = [r.getMessage() for r in caplog.records if r.name == "poolkit"]
    assert "never given back" in report
    first, second, *_ = report.split("acquired at")[1].strip().splitlines()
    assert "test_cancelled.py" in first
    assert "in forget" in first
    assert "in test_a_forgotten_session_is_reported" in second
    await all_is_well(pool, database)


@pytest.mark.filterwarnings("ignore:The garbage collector:sqlalchemy.exc.SAWarning")
async def test_forgotten_in_another_thread(engine: AsyncEngine, pool: poolkit.Pool[Any]) -> None:
    """Garbage is collected wherever it likes."""
    held = [await engine.connect()]
    await held[0].execute(COUNT)

    def drop() -> None:
        held.clear()
        gc.collect()

    await asyncio.to_thread(drop)
    await until(lambda: pool.stats().leased == 0)
    async with engine.connect() as conn:
        assert await conn.scalar(COUNT) == 0


async def test_forgotten_after_a_detach(
    engine: AsyncEngine, pool: poolkit.Pool[Any], recwarn: pytest.WarningsRecorder
) -> None:
    """SQLAlchemy leaves those to their fate; the view notices."""
    fairy: Any = await engine.raw_connection()
    fairy.detach()
    with pytest.warns(ResourceWarning, match=r"never released.*test_cancelled\.py"):  # noqa: PT031
        del fairy
        gc.collect()
        await until(lambda: pool.stats().leased == 0)


async def test_a_session_that_is_closed_is_not_reported(
    engine: AsyncEngine, pool: poolkit.Pool[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """However it ends."""
    session = AsyncSession(engine)
    await session.execute(COUNT)
    await session.close()
    async with engine.connect() as conn:
        await conn.invalidate()
    fairy: Any = await engine.raw_connection()
    fairy.detach()
    await sa.util.concurrency.greenlet_spawn(fairy.close)
    del session, conn, fairy
    gc.collect()
    await at_rest(pool)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
