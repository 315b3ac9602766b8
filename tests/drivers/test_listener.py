"""Listeners of both drivers for PostgreSQL, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import poolkit
from poolkit import ConnectFailed, PoolClosed, PoolConfigError, WrongLoop
from poolkit.drivers.asyncpg import Missed, Notification
from poolkit.prometheus import snapshot
from tests.drivers.asyncpg_help import LOOPS, PATIENCE, CountingProxy, until, until_true
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from poolkit import Pool
    from tests.pgbouncer import StartPgBouncer
    from tests.postgres import Postgres, Server

#: Connects again at once, and notices at once.
EAGER: Any = {"min_size": 0, "max_size": 2, "backoff_min": 0.01, "backoff_max": 0.05}


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: these libraries know no others."""
    return request.param


@pytest.fixture(params=["asyncpg", "psycopg"])
def library(request: pytest.FixtureRequest) -> Any:
    """One of the drivers' modules."""
    return getattr(poolkit.drivers, request.param)


@contextlib.asynccontextmanager
async def listening(
    library: Any, dsn: str, *, buffer_size: int = 1000, **options: Any
) -> AsyncIterator[tuple[Pool[Any], Any]]:
    """Open a pool and a listener on it."""
    async with (
        library.create_pool(dsn, **{**EAGER, **options}) as pool,
        library.listener(pool, buffer_size=buffer_size) as listen,
    ):
        yield pool, listen


async def next_of(notes: Any) -> Any:
    """Return the next note, which is about to come."""
    async with asyncio.timeout(PATIENCE):
        return await anext(notes)


async def notify(conn: asyncpg.Connection, channel: str, *payloads: str) -> None:
    """Send."""
    for payload in payloads:
        await conn.execute("SELECT pg_notify($1, $2)", channel, payload)


#: The backends that listen, by what they were told last.
LISTENERS = (
    "SELECT pid, query FROM pg_stat_activity WHERE datname = current_database() "
    "AND query LIKE ANY (ARRAY['LISTEN%', 'UNLISTEN%', 'SELECT 1']) AND pid <> pg_backend_pid()"
)


async def listener_of(outside: asyncpg.Connection) -> Any:
    """Return the one backend that listens, and what it was told last."""
    (row,) = await outside.fetch(LISTENERS)
    return row


# -- what is heard -------------------------------------------------------------------------------


async def test_ten_thousand_notifications_on_twenty_channels_are_heard_in_order(
    library: Any, dsn: str, outside: asyncpg.Connection
) -> None:
    """By one subscriber to all of them, and by one to each; over one connection."""
    channels = [f"channel {n}" for n in range(20)]
    many, all_heard = 10_000, list[Any]()
    each_heard: dict[str, list[Any]] = {channel: [] for channel in channels}
    async with (
        listening(library, dsn, buffer_size=many) as (pool, listen),
        asyncio.TaskGroup() as tasks,
    ):

        async def hear(into: list[Any], count: int, *names: str) -> None:
            async with listen(*names) as notes:
                begun.release()
                async for note in notes:
                    into.append(note)
                    if len(into) == count:
                        return

        begun = asyncio.Semaphore(0)
        tasks.create_task(hear(all_heard, many, *channels))
        for channel in channels:
            tasks.create_task(hear(each_heard[channel], many // 20, channel))
        for _ in range(21):
            await begun.acquire()
        assert pool.stats().listening == 1
        sql = "SELECT pg_notify('channel ' || n % 20, n::text) FROM generate_series(0, $1) n"
        await outside.execute(sql, many - 1)
    assert [int(note.payload) for note in all_heard] == list(range(many))
    for n, channel in enumerate(channels):
        assert [int(note.payload) for note in each_heard[channel]] == list(range(n, many, 20))
        assert {note.channel for note in each_heard[channel]} == {channel}


@pytest.mark.parametrize("channel", ["Orders", 'a "quoted" one', "naïve ✓", "a; b'", "x" * 63])
async def test_channel_is_listened_to_by_the_name_it_is_given(
    library: Any, dsn: str, outside: asyncpg.Connection, channel: str
) -> None:
    """Whatever is in it; and so are payloads."""
    payload = "5 € – \u202e 😀\n"  # noqa: RUF001
    async with listening(library, dsn) as (_, listen), listen(channel) as notes:
        await notify(outside, channel, payload, "")
        sender = outside.get_server_pid()
        assert await next_of(notes) == Notification(channel, payload, sender)
        assert await next_of(notes) == Notification(channel, "", sender)


async def test_each_subscriber_gets_everything_and_the_server_is_asked_once(
    library: Any, dsn: str, outside: asyncpg.Connection, postgres: Postgres
) -> None:
    """The second one begins at once; UNLISTEN is sent when the last one leaves."""
    with CountingProxy(postgres.host, postgres.port) as proxy:
        dsn = f"{proxy.through(dsn)}?sslmode=disable"
        async with listening(library, dsn) as (_, listen), listen("news") as first:
            assert (await listener_of(outside))["query"] == 'LISTEN "news"'
            trips = proxy.trips
            async with listen("news") as second:
                await notify(outside, "news", "a", "b")
                for notes in (first, second):
                    assert [(await next_of(notes)).payload for _ in "ab"] == ["a", "b"]
            await notify(outside, "news", "c")
            assert (await next_of(first)).payload == "c"
            assert proxy.trips == trips
            first.close()
            await until(lambda: proxy.trips > trips)

            async def is_unlistened() -> bool:
                return bool((await listener_of(outside))["query"] == 'UNLISTEN "news"')

            await until_true(is_unlistened)
            async with listen("news") as third:
                await notify(outside, "news", "d")
                assert (await next_of(third)).payload == "d"


async def test_tasks_share_one_subscription(
    library: Any, dsn: str, outside: asyncpg.Connection
) -> None:
    """Each note goes to one of them; one that is cancelled takes none along."""
    async with listening(library, dsn) as (_, listen), listen("news") as notes:
        heard: list[str] = []

        async def hear() -> None:
            async for note in notes:
                heard.append(note.payload)  # noqa: PERF401  # one by one

        tasks = [asyncio.create_task(hear()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await notify(outside, "news", *"abcdef")
        await until(lambda: len(heard) == 6)
        assert sorted(heard) == list("abcdef")
        notes.close()
        await asyncio.wait_for(asyncio.gather(*tasks[1:]), PATIENCE)


async def test_channels_may_be_named_twice(
    library: Any, dsn: str, outside: asyncpg.Connection
) -> None:
    """And are heard once."""
    async with listening(library, dsn) as (_, listen), listen("a", "a", "b") as notes:
        await notify(outside, "a", "1")
        await notify(outside, "b", "2")
        assert [(await next_of(notes)).payload for _ in "12"] == ["1", "2"]


async def test_iterating_begins_without_a_block(
    library: Any, dsn: str, outside: asyncpg.Connection
) -> None:
    """When the first note is asked for."""
    async with listening(library, dsn) as (pool, listen):
        assert pool.stats().listening == 0
        hearing = asyncio.create_task(next_of(listen("news")))
        while not hearing.done():  # what is sent before the server listens is for nobody
            await notify(outside, "news", "a")
        assert hearing.result().payload == "a"


# -- who does not read ---------------------------------------------------------------------------


async def test_slow_subscriber_is_told_what_was_dropped(
    library: Any, dsn: str, outside: asyncpg.Connection
) -> None:
    """The oldest go, and in their place it is told how many; another one has them all."""
    async with (
        listening(library, dsn, buffer_size=3) as (_, listen),
        listen("news") as slow,
        listen("news") as quick,
    ):
        for payload in "abcdefgh":
            await notify(outside, "news", payload)
            assert (await next_of(quick)).payload == payload
        assert await next_of(slow) == Missed("slow", 5)
        assert [(await next_of(slow)).payload for _ in range(3)] == ["f", "g", "h"]


async def test_subscriber_that_breaks_out_is_forgotten(
    library: Any, dsn: str, outside: asyncpg.Connection
) -> None:
    """And nobody sends to it any more."""
    async with listening(library, dsn) as (_, listen):

        async def hear_one() -> None:
            async for note in listen("news"):
                assert note.payload == "a"
                break

        hearing = asyncio.create_task(hear_one())
        while not hearing.done():
            await notify(outside, "news", "a")
        hearing.result()
        gc.collect()

        async def is_unlistened() -> bool:
            return bool((await listener_of(outside))["query"] == 'UNLISTEN "news"')

        await until_true(is_unlistened)


# -- what is lost --------------------------------------------------------------------------------


async def test_killed_backend_is_replaced_and_each_subscriber_is_told(
    library: Any, dsn: str, outside: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes afterwards is heard. A subscriber that comes later has missed nothing."""
    caplog.set_level(logging.INFO, "poolkit")
    async with (
        listening(library, dsn) as (pool, listen),
        listen("a", "b") as both,
        listen("b") as one,
    ):
        await notify(outside, "a", "1")
        assert (await next_of(both)).payload == "1"
        pid = (await listener_of(outside))["pid"]
        await outside.execute("SELECT pg_terminate_backend($1, 5000)", pid)
        assert await next_of(both) == Missed("reconnected")
        assert await next_of(one) == Missed("reconnected")
        async with listen("b") as later:
            await notify(outside, "a", "2")
            await notify(outside, "b", "3")
            assert [(await next_of(both)).payload for _ in "23"] == ["2", "3"]
            assert (await next_of(one)).payload == (await next_of(later)).payload == "3"
        assert pool.stats().listening == 1
    events = [vars(record)["poolkit_event"] for record in caplog.records]
    assert events == ["listener_lost", "listener_back"]


def when_it_has_listened(
    monkeypatch: pytest.MonkeyPatch, library: Any, then: Callable[[Any, list[str]], Awaitable[None]]
) -> None:
    """Have something done when the server listens, and the listener does not know it yet."""
    ears: Any = sys.modules[f"{library.__name__}._listen"]._Ears
    plain = ears.listen

    async def listen(self: Any, channels: list[str]) -> None:
        await plain(self, channels)
        await then(self.session, channels)

    monkeypatch.setattr(ears, "listen", listen)


async def notify_from(dsn: str, session: Any, channel: str, payload: str) -> None:
    """Send, from a connection of its own, and have it heard."""
    conn = await asyncpg.connect(dsn)
    await notify(conn, channel, payload)
    await conn.close()
    await session.execute_own("SELECT 1")  # the note comes before the answer
    if hasattr(session, "watch"):  # psycopg's
        session.watch()


async def test_note_that_comes_while_the_listener_returns_comes_after_what_is_missed(
    library: Any, dsn: str, outside: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or not at all: nobody takes it for the next one after those that were heard before."""
    pids: list[int] = []

    async def then(session: Any, _: list[str]) -> None:
        pids.append(session.get_server_pid())
        if len(pids) == 2:
            await notify_from(dsn, session, "news", "early")

    when_it_has_listened(monkeypatch, library, then)
    async with listening(library, dsn) as (_, listen), listen("news") as notes:
        await notify(outside, "news", "before")
        assert (await next_of(notes)).payload == "before"
        await outside.execute("SELECT pg_terminate_backend($1, 5000)", pids[0])
        assert await next_of(notes) == Missed("reconnected")
        await notify(outside, "news", "after")
        while (await next_of(notes)).payload != "after":
            pass
        assert len(pids) == 2


async def test_connection_lost_before_all_channels_are_heard_leaves_no_gap(
    library: Any, dsn: str, outside: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one that is new is told of nothing that it has missed."""
    lost = 0

    async def then(session: Any, channels: list[str]) -> None:
        nonlocal lost
        if "a" in channels and not lost:
            await notify_from(dsn, session, "a", "early")
            lost += 1
            raise ConnectionError

    when_it_has_listened(monkeypatch, library, then)
    async with listening(library, dsn) as (_, listen):
        channels = ["a", *(f"b{n}" for n in range(60))]  # more than are listened to at once
        hearing = asyncio.create_task(next_of(listen(*channels)))
        while not hearing.done():
            await notify(outside, "b59", "late")
        assert (lost, hearing.result().payload) == (1, "late")


async def test_restarted_server_is_waited_for(
    library: Any, own_database: str, own_postgres: Server
) -> None:
    """For as long as it takes."""
    async with listening(library, own_database) as (pool, listen), listen("news") as notes:
        own_postgres.stop()
        await until(lambda: not pool.stats().listening)
        own_postgres.start()
        assert await next_of(notes) == Missed("reconnected")
        conn = await asyncpg.connect(own_database)
        await notify(conn, "news", "a")
        await conn.close()
        assert (await next_of(notes)).payload == "a"


async def test_silent_network_is_noticed_by_a_ping(
    library: Any, dsn: str, outside: asyncpg.Connection, postgres: Postgres
) -> None:
    """Though nothing is sent that could fail."""
    limits: Any = {"ping_every": 0.1, "ping_timeout": 1.0, "connect_timeout": 2.0}
    with Proxy(postgres.host, postgres.port) as proxy:
        dsn = f"{proxy.through(dsn)}?sslmode=disable"
        async with listening(library, dsn, **limits) as (pool, listen), listen("news") as notes:
            proxy.hole()
            await until(lambda: not pool.stats().listening)
            proxy.pass_through()
            assert await next_of(notes) == Missed("reconnected")
            await notify(outside, "news", "a")
            while isinstance(note := await next_of(notes), Missed):  # a ping was late, too
                await notify(outside, "news", "a")
            assert note.payload == "a"


async def test_server_that_cannot_be_reached_yet_is_waited_for(
    library: Any, dsn: str, outside: asyncpg.Connection, postgres: Postgres
) -> None:
    """And nothing was missed when it is there."""
    with Proxy(postgres.host, postgres.port) as proxy:
        proxy.refuse()
        dsn = f"{proxy.through(dsn)}?sslmode=disable"
        async with listening(library, dsn) as (_, listen):
            subscription = listen("news")
            entering = asyncio.create_task(subscription.__aenter__())
            await asyncio.wait([entering], timeout=0.1)
            assert not entering.done()
            proxy.accept_again()
            notes = await entering
            await notify(outside, "news", "a")
            assert (await next_of(notes)).payload == "a"


async def test_database_that_is_not_there_is_an_error(library: Any, dsn: str) -> None:
    """For who enters a subscription, and for who iterates; the database's own is the cause."""
    async with listening(library, f"{dsn}_nowhere") as (pool, listen):
        with pytest.raises(ConnectFailed, match="its listener cannot listen") as caught:
            async with listen("news"):
                pass
        assert "does not exist" in str(caught.value.__cause__)
        with pytest.raises(ConnectFailed):
            await next_of(listen("news"))
        assert pool.stats().listening == 0


class FromServer(Exception):
    """As both libraries raise it."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.parametrize("sqlstate", ["57P01", "53200", None, "25006", "0A000"])
async def test_refused_listen_is_an_error_unless_it_passes(
    library: Any, dsn: str, monkeypatch: pytest.MonkeyPatch, sqlstate: str | None
) -> None:
    """A server that shuts down is waited for, whether or not the connection has ended by then."""
    asked = 0

    async def then(_: Any, __: list[str]) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise FromServer(sqlstate)

    when_it_has_listened(monkeypatch, library, then)
    async with listening(library, dsn) as (_, listen):
        if sqlstate in ("25006", "0A000"):
            with pytest.raises(ConnectFailed, match=f"cannot listen.*{sqlstate}"):
                await listen("news").__aenter__()
        async with asyncio.timeout(PATIENCE), listen("news"):
            assert asked == 2


# -- the end -------------------------------------------------------------------------------------


async def gone(outside: asyncpg.Connection) -> None:
    """Wait until the server knows of nobody else."""
    sql = (
        "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    await until_true(lambda: outside.fetchval(sql))


async def test_pool_that_closes_ends_the_iteration(
    library: Any, dsn: str, outside: asyncpg.Connection
) -> None:
    """With `PoolClosed`, and takes the connection along; the block may end later."""
    async with listening(library, dsn) as (pool, listen), listen("news") as notes:
        hearing = asyncio.create_task(next_of(notes))
        await asyncio.sleep(0)
        await pool.aclose()
        assert pool.stats().listening == 0
        await gone(outside)
        with pytest.raises(PoolClosed, match="was closed, and its listener with it"):
            await hearing
        with pytest.raises(PoolClosed, match="was closed, and its listener with it"):
            listen("news")


async def test_listener_that_ends_ends_the_iteration(
    library: Any, dsn: str, outside: asyncpg.Connection
) -> None:
    """Also what is still to be read, and what is asked for later."""
    async with library.create_pool(dsn, **EAGER) as pool:
        async with library.listener(pool) as listen:
            notes = await listen("news").__aenter__()
            hearing = asyncio.create_task(next_of(notes))
            await asyncio.sleep(0)
        with pytest.raises(PoolClosed, match="has ended with its block"):
            await hearing
        with pytest.raises(PoolClosed, match="has ended with its block"):
            await anext(notes)
        with pytest.raises(PoolClosed, match="has ended with its block"):
            listen("news")
        with pytest.raises(PoolConfigError, match="make another one"):
            await listen.__aenter__()
        await gone(outside)
        assert pool.stats().listening == 0


async def test_cancelled_block_leaves_no_connection(
    library: Any, dsn: str, outside: asyncpg.Connection
) -> None:
    """Whoever is inside."""
    async with library.create_pool(dsn, **EAGER) as pool:

        async def hear() -> None:
            async with library.listener(pool) as listen:
                async for _ in listen("news"):
                    pass

        hearing = asyncio.create_task(hear())
        await until(lambda: pool.stats().listening)
        hearing.cancel()
        await asyncio.wait([hearing])
        assert hearing.cancelled()
        assert pool.stats().listening == 0
        await gone(outside)


async def test_subscription_that_was_closed_is_heard_no_more(
    library: Any, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor asked for: neither before it has begun, nor after."""
    asked: list[str] = []

    async def then(_: Any, channels: list[str]) -> None:
        asked.extend(channels)

    when_it_has_listened(monkeypatch, library, then)
    async with listening(library, dsn) as (_, listen):
        closed = listen("closed")
        closed.close()
        assert [note async for note in closed] == []
        with pytest.raises(PoolClosed, match="was closed: make another one"):
            await closed.__aenter__()
        async with listen("news") as notes:
            pass
        with pytest.raises(PoolClosed, match="was closed: make another one"):
            await notes.__aenter__()
        async with listen("more"):
            assert asked == ["news", "more"]


async def test_hook_that_hides_a_cancellation_does_not_keep_the_listener(
    library: Any, dsn: str
) -> None:
    """It ends all the same, and so does its block."""
    began = asyncio.Event()

    async def on_connect(_: Any) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("mine") from None

    limits: Any = {"on_connect": on_connect, "backoff_min": 60.0, "backoff_max": 60.0}
    async with library.create_pool(dsn, **{**EAGER, **limits}) as pool:
        async with asyncio.timeout(PATIENCE):
            async with library.listener(pool) as listen:
                hearing = asyncio.create_task(next_of(listen("news")))
                await began.wait()
        with pytest.raises(PoolClosed, match="has ended with its block"):
            await hearing
        assert pool.stats().listening == 0


async def test_two_listeners_of_one_pool_have_a_connection_each(
    library: Any, dsn: str, outside: asyncpg.Connection
) -> None:
    """Beside a pool that is full, whose lease is none of them."""
    async with (
        library.create_pool(dsn, max_size=1) as pool,
        library.listener(pool) as one,
        library.listener(pool) as two,
        pool.acquire(),
        one("news") as first,
        two("news") as second,
    ):
        await notify(outside, "news", "a")
        assert (await next_of(first)).payload == (await next_of(second)).payload == "a"
        stats = pool.stats()
        assert (stats.listening, stats.leased, stats.size, stats.capacity) == (2, 1, 1, 1)
        assert "; 2 listening beside" in str(stats)
        assert snapshot(pool)["listening"] == 2


async def test_connection_is_set_up_as_the_pools_are(
    library: Any, dsn: str, outside: asyncpg.Connection
) -> None:
    """By ``on_connect``, and ``on_close`` runs before it is closed."""
    called: list[str] = []

    async def on_connect(conn: Any) -> None:
        await conn.execute("SET application_name = 'ears'")
        called.append("on_connect")

    async def on_close(conn: Any) -> None:
        await conn.execute("SELECT 1")
        called.append("on_close")

    hooks: Any = {"on_connect": on_connect, "on_close": on_close}
    async with listening(library, dsn, **hooks) as (_, listen), listen("news"):
        sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ears'"
        assert await outside.fetchval(sql) == 1
    assert called == ["on_connect", "on_close"]


async def test_other_thread_is_refused(library: Any, dsn: str) -> None:
    """As it is by the pool."""
    async with listening(library, dsn) as (_, listen), listen("news") as notes:
        refused = threading.Event()

        async def elsewhere() -> None:
            with pytest.raises(WrongLoop):
                await anext(notes)
            with pytest.raises(WrongLoop):
                listen("more")
            refused.set()

        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        await until(lambda: not thread.is_alive())
        assert refused.is_set()


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "complaint"),
    [
        ("", "channel '' is empty"),
        ("a\0b", "has a NUL"),
        (b"news", "channel b'news' is a bytes: give a text"),
        (7, "channel 7 is a int"),
        ("x" * 64, "has 64 bytes: PostgreSQL would cut it after 63"),
        ("é" * 32, "has 64 bytes"),
        ("\ud800", "cannot be encoded"),
    ],
)
async def test_channel_that_the_server_would_not_take_is_refused(
    library: Any, dsn: str, channel: Any, complaint: str
) -> None:
    """At once, with what was given; also as the second one."""
    async with listening(library, dsn) as (pool, listen):
        for names in ((channel,), ("news", channel)):
            with pytest.raises(PoolConfigError, match=complaint):
                listen(*names)
        assert pool.stats().listening == 0


async def test_listener_without_a_pool_that_can_listen_is_refused(library: Any, dsn: str) -> None:
    """By the name of what is wrong, and with what to do."""
    behind = library.create_pool(f"{dsn}?pooler=transaction")
    with pytest.raises(PoolConfigError, match=r"LISTEN there is lost.*create_pool\(direct_dsn"):
        library.listener(behind)
    with pytest.raises(PoolConfigError, match="driver of type ThreadsDriver"):
        library.listener(poolkit.create_pool("sqlite+threads:///a.db"))
    with pytest.raises(PoolConfigError, match="was given a str: give a pool"):
        library.listener(dsn)
    pool = library.create_pool(dsn, **EAGER)
    for size in (0, -1, 1.5, True, None):
        with pytest.raises(PoolConfigError, match=f"buffer_size={size} is not"):
            library.listener(pool, buffer_size=size)
    with pytest.raises(PoolClosed, match="is not open"):
        await library.listener(pool).__aenter__()
    with pytest.raises(PoolClosed, match="has not begun"):
        library.listener(pool)("news")


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
async def test_pooler_that_nobody_has_told_of_is_found(
    library: Any, pgbouncer: StartPgBouncer, pool_mode: Any
) -> None:
    """For LISTEN would be lost there, without a word; behind one by session it works, if told."""
    dsn = pgbouncer(pool_mode=pool_mode).dsn()
    async with listening(library, dsn) as (_, listen):
        with pytest.raises(ConnectFailed, match=r"pooler='session'.*a LISTEN there is lost"):
            await listen("news").__aenter__()
    if pool_mode == "session":
        async with (
            listening(library, f"{dsn}?pooler=session") as (pool, listen),
            listen("news") as notes,
            pool.acquire() as conn,
        ):
            await conn.execute("NOTIFY news, 'a'")
            assert (await next_of(notes)).payload == "a"


def test_other_driver_is_named() -> None:
    """As is the function that it needs."""
    pool = poolkit.create_pool("postgresql+psycopg://h/d")
    with pytest.raises(
        PoolConfigError, match=r"PsycopgDriver: poolkit\.drivers\.asyncpg\.listener"
    ):
        poolkit.drivers.asyncpg.listener(pool)
