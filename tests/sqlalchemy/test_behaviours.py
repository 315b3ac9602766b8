"""What SQLAlchemy says that a pool of its does, over poolkit: events, records, invalidation.

SQLAlchemy's own ``test/engine/test_pool.py`` names these behaviours. They hold here, in our words and
on real databases, except for these, which do not apply, or differ on purpose:

============================================  ======================================================
theirs                                        here
============================================  ======================================================
``PoolTest.test_no_connect_on_recreate``,     held: see `test_recreate_keeps_events_and_settings`
``test_recreate_state``
``PoolTest.test_rec_unconnected``,            a record is made when a connection has been borrowed,
``test_rec_close_reopen``                     so there is none without; it reopens by borrowing
``PoolTest.test_is_asyncio_from_dialect``     always asyncio
``PoolDialectTest``, ``AssertionPoolTest``,   of other classes of pools
``NullPoolTest``, ``StaticPoolTest``,
``SingletonThreadPoolTest``
``PoolEventsTest.test_checkin_event_gc``      of asyncio: a collected user's connection is terminated,
                                              there is no checkin event (see ``test_forgotten.py``)
``PoolEventsTest.test_listen_targets_*``      of SQLAlchemy's event registry
``PoolFirstConnectSyncTest``                  held: ``test_first_connects_do_not_overtake``
``QueuePoolTest.test_timeout*``,              poolkit's queue: ``tests/pool/test_acquire.py``; here
``test_waiters_handled``,                     the limit of five, and the error that is both's
``test_notify_waiters``, ``test_max_overflow``
``test_no_overflow``, ``test_hanging_connect``
``QueuePoolTest.test_unlimited``              poolkit has no unlimited pool
``QueuePoolTest.test_recycle``,               ``max_lifetime``, whose tests are in ``tests/state``;
``test_recycle_pool_no_race``                 ``pool_recycle`` is refused
``QueuePoolTest.test_fifo``                   poolkit takes the connection used last
``QueuePoolTest.test_recycle_on_invalidate``  a dead connection has the others pinged rather than
                                              replaced: ``test_one_dead_connection_has_...``
``QueuePoolTest.test_recycle_on_soft_-``      replaced when it comes back instead of at its next
``invalidate``                                checkout, by a record of its own
``CreatorCompatibilityTest``                  poolkit opens the connections; ``creator`` is refused
============================================  ======================================================
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util.concurrency import greenlet_spawn

import poolkit
from poolkit.sqlalchemy import create_async_engine
from tests.drivers.asyncpg_help import until
from tests.fakes import gone
from tests.sqlalchemy.conftest import Database, at_rest, opened

ONE = sa.text("SELECT 1")
EVENTS = [
    "connect",
    "first_connect",
    "checkout",
    "checkin",
    "reset",
    "invalidate",
    "soft_invalidate",
    "close",
    "detach",
    "close_detached",
]


class Heard(list[str]):
    """The events that an engine's pool has told of."""

    def __init__(self, engine: AsyncEngine) -> None:
        for name in EVENTS:
            event.listen(engine.sync_engine, name, self._noting(name))

    def _noting(self, name: str) -> Any:
        def note(*_: Any) -> None:
            self.append(name)

        # SQLAlchemy looks at how many arguments a listener takes.
        return {
            "checkout": lambda a, b, c: note(a, b, c),
            "reset": lambda a, b, c: note(a, b, c),
            "invalidate": lambda a, b, c: note(a, b, c),
            "soft_invalidate": lambda a, b, c: note(a, b, c),
            "close_detached": lambda a: note(a),
        }.get(name, lambda a, b: note(a, b))


@pytest.fixture
def heard(engine: AsyncEngine) -> Heard:
    """Listen to all events."""
    return Heard(engine)


async def checked_out(engine: AsyncEngine) -> Any:
    """Return what SQLAlchemy's pool hands out."""
    return await engine.raw_connection()


async def close(fairy: Any) -> None:
    """Give it back."""
    await greenlet_spawn(fairy.close)


async def closed(pool: poolkit.Pool[Any], many: int) -> None:
    """Wait until so many connections have been retired."""
    await until(lambda: sum(pool.stats().retired.values()) == many)


# -- events --------------------------------------------------------------------------------------


async def test_events_of_a_first_and_a_second_checkout(engine: AsyncEngine, heard: Heard) -> None:
    """Connecting is told of once: the record stays with the connection."""
    await close(await checked_out(engine))
    assert heard == ["first_connect", "connect", "checkout", "reset", "checkin"]
    heard.clear()
    await at_rest(engine.pool._lender)  # type: ignore[attr-defined]
    await close(await checked_out(engine))
    assert heard == ["checkout", "reset", "checkin"]


async def test_connect_is_told_of_for_each_connection(engine: AsyncEngine, heard: Heard) -> None:
    """And first_connect for the first."""
    one, two = await checked_out(engine), await checked_out(engine)
    assert heard.count("connect") == 2
    assert heard.count("first_connect") == 1
    assert one.driver_connection is not two.driver_connection
    await close(one)
    await close(two)


async def test_reset_is_told_whether_the_transaction_was(engine: AsyncEngine) -> None:
    """SQLAlchemy's reset state is what its listeners get."""
    states = []
    event.listen(engine.sync_engine, "reset", lambda _, __, state: states.append(state))
    await close(await checked_out(engine))
    async with engine.connect() as conn:
        await conn.execute(ONE)
    assert [(s.transaction_was_reset, s.terminate_only, s.asyncio_safe) for s in states] == [
        (False, False, True),
        (True, False, True),
    ]


async def test_invalidate_closes_and_the_next_checkout_connects(
    engine: AsyncEngine, heard: Heard, pool: poolkit.Pool[Any]
) -> None:
    """The events come in SQLAlchemy's order, and the connection is gone."""
    async with engine.connect() as conn:
        heard.clear()
        await conn.invalidate()
        assert heard == ["invalidate", "close", "checkin"]
    await closed(pool, 1)
    assert gone(pool.stats()) == {"broken": 1}
    heard.clear()
    async with engine.connect():
        assert heard == ["connect", "checkout"]


async def test_soft_invalidate_replaces_it_when_it_comes_back(
    engine: AsyncEngine, heard: Heard, pool: poolkit.Pool[Any]
) -> None:
    """Until then it works."""
    fairy = await checked_out(engine)
    heard.clear()
    fairy.invalidate(soft=True)
    assert heard == ["soft_invalidate"]
    cursor = await greenlet_spawn(fairy.cursor)
    await greenlet_spawn(cursor.execute, "SELECT 1")
    assert cursor.fetchone() == (1,)
    await greenlet_spawn(cursor.close)
    await close(fairy)
    await closed(pool, 1)
    assert heard == ["soft_invalidate", "reset", "checkin", "close"]
    async with engine.connect():
        assert heard[-2:] == ["connect", "checkout"]


async def test_detach_keeps_the_slot_until_the_connection_is_closed(
    engine: AsyncEngine, heard: Heard, pool: poolkit.Pool[Any]
) -> None:
    """It is nobody else's from then on, and no other is opened in its place: the limit holds."""
    fairy = await checked_out(engine)
    heard.clear()
    fairy.detach()
    assert heard == ["detach"]
    assert pool.stats().leased == 1
    async with engine.connect() as conn:
        assert await conn.scalar(ONE) == 1
    assert pool.stats().size == 2
    cursor = await greenlet_spawn(fairy.cursor)
    await greenlet_spawn(cursor.execute, "SELECT 1")
    await greenlet_spawn(cursor.close)
    heard.clear()
    await close(fairy)
    assert heard == ["reset", "close_detached"]
    await closed(pool, 1)
    assert pool.stats().leased == 0


async def test_close_is_told_of_when_poolkit_retires_a_connection(database: Database) -> None:
    """When the engine learns of it: at its next connect."""
    async with opened(database, max_size=1) as pool:
        engine = create_async_engine(pool)
        heard = Heard(engine)
        await close(await checked_out(engine))
        await at_rest(pool)
        heard.clear()
        pool.renew()
        await close(await checked_out(engine))
        assert heard == ["close", "connect", "checkout", "reset", "checkin"]


async def test_first_connects_do_not_overtake(engine: AsyncEngine) -> None:
    """The first connection is set up before a second one is used: the dialect learns from it."""
    order: list[str] = []

    def connect(dbapi_connection: Any, record: Any) -> None:
        order.append("begin")
        if len(order) == 1:
            dbapi_connection.run_async(lambda _: asyncio.sleep(0.02))
        order.append("end")

    event.listen(engine.sync_engine, "connect", connect, insert=True)
    one, two = await asyncio.gather(checked_out(engine), checked_out(engine))
    assert order == ["begin", "end", "begin", "end"]
    await close(one)
    await close(two)


@pytest.mark.parametrize("name", ["connect", "first_connect", "checkout"])
async def test_an_event_that_raises_at_checkout_costs_the_connection_only(
    name: str, engine: AsyncEngine, pool: poolkit.Pool[Any]
) -> None:
    """The slot is free again, and the caller has the listener's error."""
    fail = True

    def listener(*_: Any) -> None:
        if fail:
            raise ZeroDivisionError

    event.listen(
        engine.sync_engine,
        name,
        (lambda a, b, c: listener(a, b, c))
        if name == "checkout"
        else (lambda a, b: listener(a, b)),
    )
    with pytest.raises(ZeroDivisionError):
        await checked_out(engine)
    await closed(pool, 1)
    assert pool.stats().leased == 0
    fail = False
    async with engine.connect() as conn:
        assert await conn.scalar(ONE) == 1


@pytest.mark.parametrize("name", ["checkin", "reset"])
async def test_an_event_that_raises_at_checkin_costs_the_connection_only(
    name: str, engine: AsyncEngine, pool: poolkit.Pool[Any]
) -> None:
    """SQLAlchemy logs what a reset raises, and lets through what a checkin does."""

    def listener(*_: Any) -> None:
        raise ZeroDivisionError

    args = (lambda a, b, c: listener()) if name == "reset" else (lambda a, b: listener())
    event.listen(engine.sync_engine, name, args)
    fairy = await checked_out(engine)
    if name == "checkin":
        with pytest.raises(ZeroDivisionError):
            await close(fairy)
    else:
        await close(fairy)
    await closed(pool, 1)
    assert pool.stats().leased == 0


async def test_an_event_that_raises_at_invalidation_does_not_keep_the_connection(
    engine: AsyncEngine, pool: poolkit.Pool[Any]
) -> None:
    """Before 2.1 it is still the user's then, and given back by closing."""

    def listener(*_: Any) -> None:
        raise ZeroDivisionError

    event.listen(engine.sync_engine, "invalidate", lambda a, b, c: listener())
    fairy = await checked_out(engine)
    with pytest.raises(ZeroDivisionError):
        fairy.invalidate()
    if fairy.is_valid:
        await close(fairy)
    await until(lambda: pool.stats().leased == 0)
    async with engine.connect() as conn:
        assert await conn.scalar(ONE) == 1


async def test_events_that_raise_one_after_the_other_at_checkout_cost_the_connection_only(
    engine: AsyncEngine, pool: poolkit.Pool[Any]
) -> None:
    """At connecting, and when that connection is given up: nobody has it who could close it."""

    def listener(*_: Any) -> None:
        raise ZeroDivisionError

    event.listen(engine.sync_engine, "connect", lambda a, b: listener())
    event.listen(engine.sync_engine, "invalidate", lambda a, b, c: listener())
    event.listen(engine.sync_engine, "close", lambda a, b: listener())
    with pytest.raises(ZeroDivisionError):
        await checked_out(engine)
    await until(lambda: pool.stats().leased == 0)


async def test_a_checkout_that_a_listener_refuses_is_tried_with_another_connection(
    engine: AsyncEngine, heard: Heard, pool: poolkit.Pool[Any]
) -> None:
    """SQLAlchemy's recipe for connections that came from elsewhere: DisconnectionError."""
    event.listen(engine.sync_engine, "checkout", refuse_once())
    async with engine.connect() as conn:
        assert await conn.scalar(ONE) == 1
        assert heard.count("connect") == 2
        assert heard.count("close") == 1
    await closed(pool, 1)
    assert gone(pool.stats()) == {"broken": 1}


async def test_a_checkout_that_is_always_refused_gives_up(
    engine: AsyncEngine, pool: poolkit.Pool[Any]
) -> None:
    """After SQLAlchemy's two attempts; nothing stays leased."""

    def checkout(*_: Any) -> None:
        raise sa.exc.DisconnectionError

    event.listen(engine.sync_engine, "checkout", lambda a, b, c: checkout())
    with pytest.raises(sa.exc.InvalidRequestError, match="closed"):
        await checked_out(engine)
    await until(lambda: pool.stats().leased == 0)


async def test_a_refused_checkout_finds_no_other_connection(database: Database) -> None:
    """While it looks for one the pool is closed: it has that error, and holds nothing."""
    async with opened(database, max_size=1) as pool:
        engine = create_async_engine(pool)

        def checkout(*_: Any) -> None:
            pool._state.close(pool._now())
            raise sa.exc.DisconnectionError

        event.listen(engine.sync_engine, "checkout", lambda a, b, c: checkout())
        with pytest.raises(poolkit.PoolClosed):
            await checked_out(engine)
        await until(lambda: pool.stats().leased == 0)


# -- records -------------------------------------------------------------------------------------


async def test_info_stays_with_the_connection(engine: AsyncEngine, pool: poolkit.Pool[Any]) -> None:
    """As long as that lives, and no longer."""
    fairy = await checked_out(engine)
    fairy.info["a"] = 1
    await close(fairy)
    await at_rest(pool)
    fairy = await checked_out(engine)
    assert fairy.info == {"a": 1}
    fairy.invalidate()
    await closed(pool, 1)
    fairy = await checked_out(engine)
    assert fairy.info == {}
    await close(fairy)


@pytest.mark.parametrize("how", ["invalidated", "soft", "detached", "retired", "refused"])
async def test_record_info_outlasts_the_connection(
    engine: AsyncEngine, pool: poolkit.Pool[Any], how: str
) -> None:
    """As in SQLAlchemy's pool: a place among the connections has it, whatever becomes of them."""
    fairy = await checked_out(engine)
    fairy.info["a"] = 1
    fairy.record_info["a"] = 2
    if how in ("invalidated", "soft"):
        fairy.invalidate(soft=how == "soft")
    elif how == "detached":
        fairy.detach()
    await close(fairy)
    await at_rest(pool)
    if how == "retired":
        pool.renew()
    elif how == "refused":
        event.listen(engine.sync_engine, "checkout", refuse_once())
    fairy = await checked_out(engine)
    assert (fairy.info, fairy.record_info) == ({}, {"a": 2})
    other = await checked_out(engine)
    assert (other.info, other.record_info) == ({}, {})
    await close(fairy)
    await close(other)
    assert len(engine.pool._spares) == 0  # type: ignore[attr-defined]


def refuse_once() -> Any:
    """Return a listener that gives up the first connection it sees."""
    refused: list[Any] = []

    def checkout(_: Any, record: Any, __: Any) -> None:
        if not refused:
            refused.append(record)
            raise sa.exc.DisconnectionError

    return checkout


async def test_the_connection_used_last_is_used_next(database: Database) -> None:
    """Last in, first out."""
    async with opened(database, max_size=3) as pool:
        engine = create_async_engine(pool)
        fairies = [await checked_out(engine) for _ in range(3)]
        records = [fairy._connection_record for fairy in fairies]
        for fairy in fairies:
            await close(fairy)
            await at_rest(pool)
        for record in reversed(records):
            fairy = await checked_out(engine)
            assert fairy._connection_record is record
            fairies.append(fairy)
        for fairy in fairies[3:]:
            await close(fairy)


async def test_a_second_close_changes_nothing(engine: AsyncEngine, pool: poolkit.Pool[Any]) -> None:
    """Whoever has the connection by now keeps it."""
    fairy = await checked_out(engine)
    await close(fairy)
    async with engine.connect() as conn:
        await close(fairy)
        assert await conn.scalar(ONE) == 1
        assert pool.stats().leased == 1


async def test_recreate_keeps_events_and_settings(
    engine: AsyncEngine, heard: Heard, pool: poolkit.Pool[Any]
) -> None:
    """What dispose() does; nothing is connected by it."""
    before: Any = engine.pool
    await engine.dispose()
    after: Any = engine.pool
    assert after is not before
    assert (after._lender, after._reset_on_return) == (pool, before._reset_on_return)
    assert heard == []
    await close(await checked_out(engine))
    assert heard[-2:] == ["reset", "checkin"]


async def test_a_connection_that_outlives_a_dispose_is_given_back(
    engine: AsyncEngine, pool: poolkit.Pool[Any]
) -> None:
    """By the stand-in that handed it out, which nobody else uses any more."""
    fairy = await checked_out(engine)
    await engine.dispose()
    await close(fairy)
    await closed(pool, 1)
    assert pool.stats().leased == 0


@pytest.mark.filterwarnings("ignore:The garbage collector:sqlalchemy.exc.SAWarning")
async def test_closing_the_pool_ends_what_is_checked_out(database: Database) -> None:
    """The engine's users get an error from then on, where there is one to be lost also for the transaction."""
    async with opened(database) as pool:
        engine = create_async_engine(pool)
        conn = await engine.connect()
        await conn.execute(ONE)
        held = await asyncio.create_task(pool.aclose(grace=0))
        assert len(held) == 1
        with pytest.raises((poolkit.NotLeased, sa.exc.StatementError)):
            await conn.execute(ONE)
        if database.is_sqlite:
            await conn.close()
        else:
            with pytest.raises(Exception, match="no longer leased"):
                await conn.close()
        del conn
        gc.collect()  # earlier than 2.1 it would be told of then, in the midst of another test
        with pytest.raises(poolkit.PoolClosed):
            await checked_out(engine)


# -- the driver's own connection -----------------------------------------------------------------


async def test_the_drivers_connection_is_dead_after_the_checkout(
    engine: AsyncEngine, pool: poolkit.Pool[Any]
) -> None:
    """One holder: what ``driver_connection`` gave is a view, as everywhere in poolkit."""
    async with engine.connect() as conn:
        fairy = await conn.get_raw_connection()
        own: Any = fairy.driver_connection
        await own.execute("SELECT 1")
    with pytest.raises(poolkit.NotLeased, match="no longer leased"):
        await own.execute("SELECT 1")


async def test_a_statement_made_beside_sqlalchemy_is_dead_after_the_checkout(
    on_postgresql: Database,
) -> None:
    """SQLAlchemy's own live on, and nobody else's."""
    async with opened(on_postgresql, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            await conn.execute(ONE)
            own: Any = (await conn.get_raw_connection()).driver_connection
            statement = await own.prepare("SELECT 2")
        async with engine.connect() as conn:
            await conn.execute(ONE)
            with pytest.raises(Exception, match="released back to the pool"):
                await statement.fetchval()


async def test_record_that_waits_for_another_connection_is_no_other_checkouts(
    database: Database,
) -> None:
    """Its own was given up while it was idle, and its exchange has to wait in line."""
    pool = poolkit.create_pool(database.url, min_size=1, max_size=2)
    records: list[Any] = []
    users: dict[str, int] = {}
    let_go = asyncio.Event()
    async with pool:
        engine = create_async_engine(pool)
        event.listen(engine.sync_engine.pool, "checkin", lambda _, record: records.append(record))
        async with engine.connect():
            pass
        records[0].invalidate(soft=True)
        await until(lambda: pool.stats().recycling == 0)
        other = await pool.acquire()

        async def use(name: str) -> None:
            async with engine.connect() as conn:
                users[name] = id((await conn.get_raw_connection())._connection_record)
                assert await conn.scalar(ONE) == 1
                await let_go.wait()
                assert await conn.scalar(ONE) == 1

        def arrived() -> int:
            return len(users) + pool.stats().waiting

        tasks = [asyncio.create_task(use("a"))]
        await until(lambda: arrived() == 1)
        tasks.append(asyncio.create_task(use("b")))
        await until(lambda: arrived() == 2)
        tasks.append(asyncio.create_task(use("c")))
        await until(lambda: arrived() == 3)
        pool.release(other)
        await until(lambda: len(users) >= 2)
        assert len(set(users.values())) == len(users)
        let_go.set()
        await asyncio.gather(*tasks)
