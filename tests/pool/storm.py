"""A storm: many callers, a database that is slow, fails and hangs, and a pool that is reshaped.

What happens is drawn from a `random.Random`, so that a seed, or Hypothesis, can bring it back.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

import poolkit
from poolkit import Pool, PoolError, Verdict
from poolkit.testing._invariants import check_state
from tests.fakes import Boom, FakeConnection, FullDriver

if TYPE_CHECKING:
    from random import Random


class StormyConnection(FakeConnection):
    """A connection that may die in its user's hands."""

    async def query(self, answer: str = "row") -> str:
        """Fail if the connection has died, which nobody need have noticed yet."""
        if self.dead and self in self.driver.alive:
            raise Boom("died")
        return await super().query(answer)


class StormyDriver(FullDriver):
    """A driver whose calls take some turns of the loop, or some time, and may fail or hang."""

    kind = StormyConnection

    def __init__(self, random: Random, calm: float) -> None:
        super().__init__()
        self.random = random
        self.calm = calm  # how likely a call is to go well
        self.faults = 0
        self.verdicts = {Boom: Verdict.TRANSIENT}
        self.conflicts = {Boom}

    async def step(self, call: str) -> None:
        """Take some turns, then perhaps some time, then perhaps fail."""
        self.calls[call] += 1
        random = self.random
        for _ in range(random.randrange(3)):
            await checkpoint()
        if random.random() < self.calm:
            return
        self.faults += 1
        fault = random.choice(["fail", "slow", "hang", "dies"])
        if fault == "slow":
            await anyio.sleep(random.choice([0.1, 1.0, 3.0]))
        elif fault == "hang":
            await anyio.sleep_forever()
        elif fault == "dies" and self.alive:
            random.choice(sorted(self.alive, key=lambda c: c.number)).dead = True
        else:
            raise Boom(call)


def make_pool(random: Random, *, calm: float = 0.85) -> tuple[Pool[FakeConnection], StormyDriver]:
    """Return a pool of random options whose book is checked after every event."""
    driver = StormyDriver(random, calm)
    pool = Pool(
        driver,
        min_size=random.choice([0, 1]),
        max_size=random.choice([1, 2, 3]),
        max_overflow=random.choice([0, 1]),
        ping_after=random.choice([0.0, 0.5, None]),
        ping_every=random.choice([1.0, None]),
        shedding=random.choice([poolkit.CoDel(target=0.2, interval=1.0), None]),
        deadlock=random.choice(["raise", "warn"]),
        max_uses=random.choice([None, 3]),
        max_lifetime=random.choice([None, 5.0]),
        max_waiting=random.choice([None, 2]),
        max_connecting=random.choice([1, 3]),
        min_idle=random.choice([0, 0, 1]),
        acquire_timeout=5.0,
        connect_timeout=2.0,
        backoff_min=0.1,
        backoff_max=0.5,
    )
    settle = pool._carry_out

    def checked_settle() -> None:
        settle()
        check_state(pool._state, pool._now())
        stats = pool.stats()
        ended = stats.use_times.count + stats.leased
        assert ended == stats.wait_times.count, "I15: a lease ended twice, or never"

    pool._carry_out = checked_settle  # type: ignore[method-assign]
    # No finalizer shall make good what nobody has released.
    pool._reclaim = lambda slot, turn: None  # type: ignore[method-assign]
    return pool, driver


async def user(pool: Pool[FakeConnection], random: Random) -> None:
    """Come a few times."""
    for _ in range(random.randrange(1, 5)):
        await use(pool, random)
        assert not pool._state.to_wake, "I12: served, and not woken"
        assert not pool._state.to_terminate, "I7: doomed, and not terminated"


async def use(pool: Pool[FakeConnection], random: Random) -> None:
    """Do what callers do, some of it wrong, and be cancelled at some moment, or not."""
    with contextlib.suppress(PoolError, Boom):
        limit = random.choice([60.0, 60.0, 0.0, 0.05, 0.5, 2.0])
        with anyio.move_on_after(limit):
            how = random.choice(["acquire", "transaction", "run", "nested", "greedy", "kept"])
            timeout = random.choice([0.0, 0.1, 1.0, None, 5.0])
            if how == "kept":
                conn = await pool.acquire(timeout=timeout)
                try:
                    await work(conn, random)
                finally:
                    pool.release(conn)
            elif how == "transaction":
                async with pool.transaction(timeout=timeout) as conn:
                    await work(conn, random)
            elif how == "run":
                await pool.run(functools.partial(work, random=random), timeout=timeout)
            else:
                async with pool.acquire(timeout=timeout) as conn:
                    await work(conn, random)
                    if how == "greedy":
                        async with pool.acquire(timeout=timeout) as another:
                            await work(another, random)
                    if how == "nested":
                        async with poolkit.transaction(conn):
                            await work(conn, random)


async def work(conn: FakeConnection, random: Random) -> None:
    """Run a few statements, or none, or fail."""
    for _ in range(random.randrange(3)):
        await conn.query()
    what = random.random()
    if what < 0.1:
        raise Boom("of the block")
    if what < 0.3:
        conn.cursor()
    if what < 0.5:
        await anyio.sleep(random.choice([0.01, 0.3, 1.0]))


async def reshape(pool: Pool[FakeConnection], random: Random) -> None:
    """Resize, renew, close and open again."""
    for _ in range(random.randrange(4)):
        await anyio.sleep(random.choice([0.01, 0.2, 1.5]))
        what = random.choice(["resize", "renew", "reopen"])
        if what == "resize":
            sizes = {"min_idle": random.choice([0, 1]), "max_size": random.choice([1, 2, 4])}
            pool.resize(min_size=0, **sizes)
        elif what == "renew":
            pool.renew(over=random.choice([0.0, 1.0]))
        else:
            await pool.aclose(grace=random.choice([0.0, 0.5]))
            with contextlib.suppress(PoolError):
                await pool.open()


async def storm(random: Random, *, users: int = 8) -> dict[str, Any]:
    """Let it rage, then see that nothing was lost; return what happened."""
    pool, driver = make_pool(random)
    with contextlib.suppress(PoolError):
        await pool.open()
    async with anyio.create_task_group() as group:
        for _ in range(users):
            group.start_soon(user, pool, random)
            if random.random() < 0.3:
                await checkpoint()
        group.start_soon(reshape, pool, random)
    driver.calm = 1.0
    await come_to_rest(pool, driver)
    return {"faults": driver.faults, "connects": driver.calls["connect"]}


async def come_to_rest(pool: Pool[FakeConnection], driver: FullDriver) -> None:
    """Nothing may be held or waited for; after closing nothing is left; and the pool works."""
    with anyio.fail_after(60):
        if not pool._state.is_open:
            await pool.open()
        await until_quiet(pool)
    stats = pool.stats()
    assert (stats.leased, stats.waiting, stats.size) == (0, 0, stats.idle), f"I8: {stats}"
    assert len(driver.alive) == stats.idle, f"I7: {driver.alive}"
    with anyio.fail_after(60):
        await one_that_works(pool)
        await pool.aclose()
    stats = pool.stats()
    assert (stats.size, stats.waiting) == (0, 0), f"I8: {stats}"
    assert not driver.alive, f"I7: {driver.alive}"
    check_state(pool._state, pool._now())


async def until_quiet(pool: Pool[FakeConnection]) -> None:
    """Wait, in virtual time, until no job is under way."""
    while True:
        stats = pool.stats()
        if not stats.recycling + stats.connecting + stats.closing:
            return
        await anyio.sleep(0.1)


async def one_that_works(pool: Pool[FakeConnection]) -> None:
    """Use a connection; an outage of the storm may have to be waited out."""
    while True:
        with contextlib.suppress(PoolError, Boom):
            async with pool.acquire() as conn:
                assert await conn.query() == "row"
                return
        await anyio.sleep(0.1)
