"""An event loop that was away: what it reads then is old, and the session may have ended meanwhile.

The loop is really blocked, or not run at all, and the connection really cut, without a word or with
a FIN, after the server's answer was on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.drivers import asyncpg_help
from tests.drivers.asyncpg_help import LOOPS, CountingProxy, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg

    from tests.drivers.asyncpg_help import Pooled
    from tests.postgres import Postgres
    from tests.proxy import Proxy

#: Seconds after which what is idle is pinged.
PING_AFTER = 0.2
#: Seconds for which the loop is away: longer than that, shorter than any limit of a reset.
AWAY = 0.4
#: Seconds within which somebody is answered: `ping_timeout`, a connect, and a very busy machine. Who
#: is given a connection that was cut waits for minutes.
SOON = 10.0

#: A pool of one connection, which does not wait long for what will not answer.
of_one = partial(asyncpg_help.of_one, ping_timeout=0.5, reset_timeout=1.0)

pytestmark = [
    pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True),
    pytest.mark.parametrize(("damage", "ping_after"), [("hole_old", PING_AFTER), ("fin_all", 0.0)]),
]


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Check that the block takes no longer."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[CountingProxy]:
    """Stand in front of the server."""
    with CountingProxy(postgres.host, postgres.port) as proxy:
        yield proxy


def be_away(proxy: Proxy, damage: str, seconds: float = AWAY) -> None:
    """Block the loop; what is under way is answered, and then the connection is cut."""
    proxy.pass_through()
    time.sleep(0.1)  # blocking is the subject; the answer comes
    getattr(proxy, damage)()
    time.sleep(seconds)


async def send(pool: Pooled) -> None:
    """Let the jobs that are owed begin, whose requests the proxy holds."""
    for _ in range(10):
        await asyncio.sleep(0)
    assert pool.stats().recycling == 1


async def make_dirty(conn: Any) -> None:
    """Leave something behind, so that a reset is sent."""
    await conn.execute("SET application_name = 'somebody'")
    conn._poolkit_slot.cancelled = True


async def ask(pool: Pooled) -> Any:
    """Use a connection."""
    async with pool.acquire() as conn:
        return await conn.fetchval("SELECT 1")


async def test_reset_answered_before_the_loop_was_away_is_no_sign_of_life(
    dsn: str, proxy: CountingProxy, damage: str, ping_after: float
) -> None:
    """Who waits in line gets a connection that lives."""
    async with of_one(proxy.through(dsn), ping_after=ping_after) as pool:
        conn = await pool.acquire()
        await make_dirty(conn)
        waiting = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        proxy.hold()
        pool.release(conn)
        await send(pool)
        be_away(proxy, damage)
        with within(SOON):
            assert await waiting == 1
        with within(SOON):
            assert await ask(pool) == 1


async def test_ping_answered_before_the_loop_was_away_is_no_sign_of_life(
    dsn: str, proxy: CountingProxy, damage: str, ping_after: float
) -> None:
    """Who waits for it gets a connection that lives."""
    async with of_one(proxy.through(dsn), ping_after=ping_after) as pool:
        proxy.hold()
        pool._state.suspect(pool._now())
        pool._carry_out()
        waiting = asyncio.create_task(ask(pool))
        await send(pool)
        be_away(proxy, damage)
        with within(SOON + 1.0):
            assert await waiting == 1


@pytest.mark.parametrize("in_line", [False, True])
async def test_lease_in_which_the_loop_was_away_is_no_sign_of_life(
    dsn: str, proxy: CountingProxy, damage: str, ping_after: float, *, in_line: bool
) -> None:
    """Given back and taken again in the same turn of the loop, and by who waits in line."""
    # Nothing is sent at the release, which would find out.
    async with of_one(proxy.through(dsn), ping_after=ping_after, reset="none") as pool:
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT 1") == 1
            waiting = asyncio.create_task(ask(pool)) if in_line else None
            await asyncio.sleep(0)
            # As long as upkeep may sleep; what comes earlier may be met in the middle of that.
            be_away(proxy, damage, AWAY + 1.0)
        with within(SOON):
            assert await (waiting or ask(pool)) == 1


@pytest.mark.parametrize("idle", [1, 3])
async def test_connections_idle_while_the_loop_was_away_are_pinged(
    dsn: str, proxy: CountingProxy, damage: str, ping_after: float, idle: int
) -> None:
    """After the first that does not answer all of them, together."""
    pool = of_one(proxy.through(dsn), ping_after=ping_after, min_size=idle, max_size=idle)
    async with pool:
        be_away(proxy, damage)
        with within(SOON):
            assert await asyncio.gather(*(ask(pool) for _ in range(idle))) == [1] * idle


async def test_connect_answered_before_the_loop_was_away_is_no_sign_of_life(
    dsn: str, proxy: CountingProxy, damage: str, ping_after: float
) -> None:
    """What connecting has read last is old; who waits gets another connection."""
    stalls = [be_away]

    async def on_connect(conn: asyncpg.Connection) -> None:
        await conn.fetchval("SELECT 1")
        while stalls:
            stalls.pop()(proxy, damage)

    options = {"min_size": 0, "connect_timeout": 1.5, "on_connect": on_connect}
    pool = of_one(proxy.through(dsn), ping_after=ping_after, **options)
    async with pool:
        with within(AWAY + SOON + 1.5 * (damage == "hole_old")):
            with contextlib.suppress(Exception):
                await ask(pool)
            assert await ask(pool) == 1


def test_loop_that_runs_only_during_calls_hands_out_what_lives(
    dsn: str, proxy: CountingProxy, damage: str, ping_after: float, anyio_backend: Any
) -> None:
    """Between two calls nobody reads, and the session ends."""
    with contextlib.ExitStack() as stack:
        if anyio_backend[1]["use_uvloop"]:
            uvloop = pytest.importorskip("uvloop")
            loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        else:
            loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        pool = of_one(proxy.through(dsn), ping_after=ping_after)
        loop.run_until_complete(pool.open())

        async def first() -> None:
            conn = await pool.acquire()
            await make_dirty(conn)
            proxy.hold()
            pool.release(conn)
            await send(pool)

        async def second() -> None:
            with within(SOON):
                assert await ask(pool) == 1

        for _ in range(2):
            loop.run_until_complete(first())
            be_away(proxy, damage)
            loop.run_until_complete(second())
        loop.run_until_complete(pool.aclose())


async def test_slow_reset_is_handed_on_as_it_is_while_the_loop_runs(
    dsn: str, proxy: CountingProxy, damage: str, ping_after: float
) -> None:
    """However long it takes, nothing more is sent before the next user's own statement."""
    if damage != "hole_old":
        pytest.skip("there is no damage here")
    async with of_one(proxy.through(dsn), ping_after=ping_after, ping_every=None) as pool:
        conn = await pool.acquire()
        await make_dirty(conn)
        waiting = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        before = proxy.trips
        proxy.delay(AWAY / 2)
        pool.release(conn)
        await asyncio.sleep(AWAY / 2)
        proxy.pass_through()
        assert await waiting == 1
        await quiet(pool)
        # The reset; the query, which is prepared first; and the next reset.
        assert proxy.trips - before == 1 + 2 + 1
