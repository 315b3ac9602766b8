"""The options that live in the shell: time limits of jobs, and hooks."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import pytest
from anyio import wait_all_tasks_blocked

import poolkit._shell.log
from poolkit import ConnectFailed, NotLeased, Pool, PoolOptions, PoolTimeout, Verdict
from poolkit.testing import VirtualTimeLoop
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeDriver, FullDriver, gone, own

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

#: Far longer than any of these tests may take: what ends before it was ended by its own limit.
LONG = 60.0


async def test_connect_timeout_ends_a_hung_connect() -> None:
    """The slot is free again, and the next attempt succeeds."""
    driver = FakeDriver(connect=[anyio.Event()])
    options = {"connect_timeout": 0.01, "backoff_min": 0.0, "backoff_max": 0.0}
    async with Pool(driver, min_size=0, max_size=1, **options) as pool:  # type: ignore[arg-type]
        async with pool.acquire(timeout=LONG) as conn:
            assert await conn.query() == "row"
        assert pool.stats().connect_failures == 1


def test_connect_timeout_covers_on_connect() -> None:
    """A connection whose greeting hangs is terminated."""

    async def on_connect(_: FakeConnection) -> None:
        await anyio.sleep_forever()

    async def main() -> None:
        pool = Pool(driver, connect_timeout=2.0, on_connect=on_connect, max_size=1)
        with pytest.raises(PoolTimeout, match=r"connecting took longer than 2\.0 s"):
            await pool.open()

    driver = FakeDriver()
    in_virtual_time(main())
    assert driver.calls["terminate"] >= 1
    assert not driver.alive


async def test_ping_timeout_ends_a_hung_ping() -> None:
    """The connection is terminated, and the caller gets another."""
    driver = FakeDriver(ping=[anyio.Event()])
    async with Pool(driver, max_size=1, ping_after=0.0, ping_timeout=0.01) as pool:
        async with pool.acquire(timeout=LONG) as conn:
            assert conn.number == 2
        assert driver.calls["terminate"] == 1


async def test_reset_timeout_ends_a_hung_reset() -> None:
    """The connection is terminated, and the next caller gets another."""
    driver = FakeDriver(reset=[anyio.Event()])
    async with Pool(driver, max_size=1, reset_timeout=0.01) as pool:
        async with pool.acquire() as conn:
            await conn.query()
        async with pool.acquire(timeout=LONG) as conn:
            assert conn.number == 2


async def test_close_timeout_ends_a_hung_close_and_its_hook() -> None:
    """What is not closed by then is terminated; its slot is free only after that."""
    hang = anyio.Event()

    async def on_close(_: FakeConnection) -> None:
        await hang.wait()

    driver = FakeDriver()
    async with Pool(driver, max_size=1, max_uses=1, close_timeout=0.01, on_close=on_close) as pool:
        async with pool.acquire():
            pass
        assert pool.stats().closing == 1
        async with pool.acquire(timeout=LONG) as conn:
            assert conn.number == 2
        assert driver.most_alive == 1


async def test_failed_reset_terminates_the_connection() -> None:
    """Raising is a driver's way of saying that it could not verify."""
    driver = FakeDriver(reset=[Boom("still busy")])
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.query()
        await wait_all_tasks_blocked()
        assert gone(pool.stats()) == {"broken": 1}
        assert driver.calls["terminate"] == 1


async def test_failed_close_terminates_the_connection() -> None:
    """And frees its slot."""
    driver = FakeDriver(close=[Boom("cannot close")])
    async with Pool(driver):
        pass
    assert driver.calls["terminate"] == 1
    assert not driver.alive


async def test_terminate_that_raises_does_not_stop_the_pool() -> None:
    """A driver that breaks its promise is reported, and its slot is free."""

    class Rude(CleanDriver):
        def terminate(self, c: FakeConnection) -> None:
            super().terminate(c)
            raise Boom

    driver = Rude()
    async with Pool(driver, max_size=1) as pool:
        next(iter(driver.alive)).dead = True
        async with pool.acquire(timeout=LONG) as conn:
            assert await conn.query() == "row"


@pytest.mark.parametrize(
    ("method", "number"), [("is_dead", 2), ("revoke", 2), ("is_clean", 1), ("classify", 1)]
)
async def test_driver_that_raises_where_it_must_not_loses_at_most_its_connection(
    method: str, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a slot nor the pool: it is reported, and what it would have said is not relied on."""
    driver = FullDriver()
    is_rude = False
    real = getattr(driver, method)

    def perhaps(*args: Any) -> Any:
        if is_rude:
            raise Boom(method)
        return real(*args)

    monkeypatch.setattr(driver, method, perhaps)
    async with Pool(driver, max_size=1) as pool:
        is_rude = True
        if method == "is_dead":
            pool._upkeep()
            is_rude = False  # the next one would be lost as well
            await wait_all_tasks_blocked()
        else:
            with pytest.raises(ValueError, match="of the block"):
                async with pool.acquire() as conn:
                    conn.peek()
                    raise ValueError("of the block")
        is_rude = False
        async with pool.acquire(timeout=LONG) as conn:
            assert conn.number == number
        assert gone(pool.stats()) == ({"broken": 1} if number == 2 else {})
    assert f"FullDriver.{method} raised" in caplog.text


async def test_on_connect_greets_each_connection_before_its_first_use() -> None:
    """Once for each."""
    seen: list[int] = []

    async def on_connect(conn: FakeConnection) -> None:
        seen.append(conn.number)

    async with Pool(FakeDriver(), min_size=2, on_connect=on_connect) as pool:
        assert seen == [1, 2]
        async with pool.acquire():
            pass
    assert seen == [1, 2]


async def test_on_connect_that_fails_is_a_failed_connect() -> None:
    """The connection is not leaked."""

    async def on_connect(_: FakeConnection) -> None:
        raise Boom("no such schema")

    driver = FakeDriver()
    with pytest.raises(ConnectFailed, match="no such schema"):
        await Pool(driver, on_connect=on_connect).open()
    assert not driver.alive


async def test_connection_that_on_connect_closes_is_handed_to_nobody() -> None:
    """It is a failed connect: who waits is given another."""
    driver = FakeDriver()

    async def on_connect(conn: FakeConnection) -> None:
        conn.dead = conn.number == 1

    async with Pool(driver, min_size=0, on_connect=on_connect) as pool:
        async with pool.acquire(timeout=LONG) as conn:
            assert conn.number == 2
    assert not driver.alive


async def test_on_close_sees_each_healthy_connection_before_it_is_closed() -> None:
    """Its errors do not keep the connection open."""
    seen: list[bool] = []

    async def on_close(conn: FakeConnection) -> None:
        seen.append(conn.dead)
        raise Boom

    driver = FakeDriver()
    async with Pool(driver, min_size=2, on_close=on_close):
        pass
    assert seen == [False, False]
    assert driver.calls["close"] == 2


async def test_on_acquire_runs_in_the_callers_task_with_its_context() -> None:
    """For every lease, waited for or not, like the first line of its block."""
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who")
    seen: list[str] = []

    async def on_acquire(conn: FakeConnection) -> None:
        assert await conn.query() == "row"
        seen.append(who.get())

    async with Pool(CleanDriver(), max_size=1, on_acquire=on_acquire) as pool:

        async def user(name: str) -> None:
            who.set(name)
            async with pool.acquire() as conn:
                await conn.query()

        async with anyio.create_task_group() as group:
            group.start_soon(user, "ann")
            group.start_soon(user, "ben")
    assert sorted(seen) == ["ann", "ben"]


async def test_on_acquire_that_fails_gives_the_connection_back() -> None:
    """The caller sees the hook's error."""

    async def on_acquire(_: FakeConnection) -> None:
        raise Boom("not for you")

    async with Pool(CleanDriver(), max_size=1, on_acquire=on_acquire) as pool:
        with pytest.raises(Boom):
            await pool.acquire()
        assert pool.stats().leased == 0


async def test_on_acquire_is_within_the_deadline() -> None:
    """Its time counts, and a hanging hook leaks nothing."""

    async def on_acquire(conn: FakeConnection) -> None:
        await conn.query()
        await anyio.sleep_forever()

    driver = CleanDriver()
    async with Pool(driver, max_size=1, on_acquire=on_acquire) as pool:
        with pytest.raises(PoolTimeout, match="on_acquire"):
            await pool.acquire(timeout=0.01)
        await wait_all_tasks_blocked()
        assert pool.stats().leased == 0
        assert driver.calls["reset"] == 1


async def test_on_acquire_that_yields_is_run_for_who_does_not_wait() -> None:
    """It is no other user."""

    async def on_acquire(conn: FakeConnection) -> None:
        for _ in range(3):
            await conn.query()

    async with Pool(CleanDriver(), max_size=1, on_acquire=on_acquire) as pool:
        for timeout in (0, -1.0):
            async with pool.acquire(timeout=timeout) as conn:
                assert await conn.query() == "row"
        assert pool.stats().direct == 2


def test_on_acquire_that_hangs_ends_with_the_half_second_of_who_does_not_wait() -> None:
    """That half second includes the ping before it."""

    async def on_acquire(conn: FakeConnection) -> None:
        await conn.query()
        await anyio.sleep_forever()

    async def main() -> float:
        driver = CleanDriver(ping=[0.2])
        async with Pool(driver, max_size=1, on_acquire=on_acquire, ping_after=0.0) as pool:
            with pytest.raises(PoolTimeout, match=r"on_acquire was not done 0\.5 s after"):
                await pool.acquire(timeout=0)
            return anyio.current_time()

    assert in_virtual_time(main()) == pytest.approx(0.5, abs=0.01)


HOW_HOOKS_FAIL: dict[str, tuple[BaseException | None, str]] = {
    "error": (Boom("not for you"), "failed"),
    "timeout of another pool": (PoolTimeout("elsewhere"), "timed_out"),
    "hang": (None, "timed_out"),
    "cancelled": (None, "cancelled"),
}


@pytest.mark.parametrize("how", HOW_HOOKS_FAIL)
@pytest.mark.parametrize("pinged", [False, True])
async def test_on_acquire_that_fails_is_no_success(how: str, pinged: bool) -> None:
    """Whether the connection was there at once or had been waited for."""
    error, counter = HOW_HOOKS_FAIL[how]

    async def on_acquire(_: FakeConnection) -> None:
        if error is not None:
            raise error
        await anyio.sleep_forever()

    ping_after = 0.0 if pinged else None
    async with Pool(CleanDriver(), on_acquire=on_acquire, ping_after=ping_after) as pool:
        async with anyio.create_task_group() as group:

            async def acquire() -> None:
                with contextlib.suppress(Boom, PoolTimeout):
                    await pool.acquire(timeout=0.01 if how == "hang" else None)

            group.start_soon(acquire)
            await wait_all_tasks_blocked()
            if how == "cancelled":
                group.cancel_scope.cancel()
        stats = pool.stats()
        assert (stats.direct, stats.waited, stats.leased) == (0, 0, 0)
        assert getattr(stats, counter) == 1


async def test_max_connecting_bounds_real_connects() -> None:
    """Never more at once than allowed."""
    gates = [anyio.Event() for _ in range(6)]
    driver = FakeDriver(connect=list(gates))
    async with Pool(driver, min_size=0, max_size=6, max_connecting=2) as pool:
        async with anyio.create_task_group() as group:

            async def user() -> None:
                async with pool.acquire():
                    pass

            for _ in range(6):
                group.start_soon(user)
            await wait_all_tasks_blocked()
            assert driver.calls["connect"] == 2
            for gate in gates:
                gate.set()


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop whose clock jumps."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


class Visitors:
    """Callers who come together, and hold what they get; they note how long they have waited."""

    def __init__(self, count: int, *, timeout: float) -> None:
        self.count = count
        self.timeout = timeout
        self.waits: list[float] = []

    async def come(self, pool: Pool[FakeConnection], *, hold: float) -> None:
        """Come all at once, and wait for the last one to go."""
        came = anyio.current_time()

        async def visit() -> None:
            async with pool.acquire(timeout=self.timeout):
                self.waits.append(anyio.current_time() - came)
                await anyio.sleep(hold)

        async with anyio.create_task_group() as group:
            for _ in range(self.count):
                group.start_soon(visit)


@pytest.mark.parametrize("max_connecting", [1, 2, 4])
def test_hung_connects_keep_nobody_from_those_that_answer(max_connecting: int) -> None:
    """As many hang as may be under way: others are begun beside them, one after the other."""

    async def main() -> None:
        async with Pool(driver, min_size=0, max_size=20, max_connecting=max_connecting) as pool:
            await visitors.come(pool, hold=LONG)

    driver = FakeDriver(connect=[LONG] * max_connecting)
    visitors = Visitors(max_connecting + 1, timeout=3.0)
    in_virtual_time(main())
    steps = [0.5 + 0.2 * n for n in range(visitors.count)]
    assert visitors.waits == pytest.approx(steps, abs=0.01)


def test_hung_connect_beside_leases_keeps_nobody_from_those_that_answer() -> None:
    """Where one is begun at a time."""

    async def main() -> None:
        async with Pool(driver, max_size=20, max_connecting=1) as pool, pool.acquire():
            driver.script["connect"] = [LONG]
            await visitors.come(pool, hold=LONG)

    driver = FakeDriver()
    visitors = Visitors(3, timeout=3.0)
    in_virtual_time(main())
    assert visitors.waits == pytest.approx([0.5, 0.7, 0.9], abs=0.01)


def test_hung_connect_keeps_no_pool_from_opening() -> None:
    """Another one is begun beside it."""

    async def main() -> float:
        async with Pool(FakeDriver(connect=[LONG]), max_connecting=1):
            return anyio.current_time()

    assert in_virtual_time(main()) == pytest.approx(0.5, abs=0.01)


def test_hung_attempt_in_an_outage_keeps_nobody_from_one_that_answers() -> None:
    """One other one is begun beside it."""

    async def main() -> None:
        async with Pool(driver, min_size=0) as pool:
            await visitors.come(pool, hold=LONG)

    driver = FullDriver(connect=[Boom(), LONG])
    driver.verdicts[Boom] = Verdict.TRANSIENT
    visitors = Visitors(1, timeout=3.0)
    in_virtual_time(main())
    assert visitors.waits[0] <= 0.2 + 0.5 + 0.01


@pytest.mark.parametrize(
    ("seconds", "extra"), [(0.4, 0), (0.7, 1), (1.5, 2), (3.0, 3), (4.9, 4), (LONG, 4)]
)
@pytest.mark.parametrize("cold", [True, False])
def test_server_that_is_merely_slow_is_not_stormed(seconds: float, extra: int, cold: bool) -> None:
    """An extra attempt for the first that takes 0.5 s, 1 s, 2 s, 4 s, ... and no more."""

    class SlowDriver(FakeDriver):
        most = now = 0

        async def connect(self) -> FakeConnection:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                return await super().connect()
            finally:
                self.now -= 1

    async def main() -> None:
        async with Pool(driver, min_size=int(not cold), max_size=40, max_connecting=4) as pool:
            driver.script["connect"] = seconds
            with contextlib.suppress(ExceptionGroup):
                await visitors.come(pool, hold=9.0)

    driver = SlowDriver()
    visitors = Visitors(60, timeout=30.0)
    in_virtual_time(main())
    assert driver.most <= 4 + extra


class AgingDriver(CleanDriver):
    """One that notes when each connection came and went, and how many the pool had to hand out."""

    def __init__(self, seconds: float) -> None:
        super().__init__(connect=seconds, close=seconds)
        self.pool: Any = None
        self.came: dict[FakeConnection, float] = {}
        self.ages: list[float] = []
        self.there: list[int] = []

    async def step(self, call: str) -> None:
        """Look before and after."""
        self.look()
        await super().step(call)
        self.look()

    def look(self) -> None:
        """Count those that can be had or are in use."""
        stats = self.pool.stats()
        self.there.append(stats.idle + stats.leased + stats.recycling)

    async def connect(self) -> FakeConnection:
        """Note when it came."""
        connection = await super().connect()
        self.came[connection] = anyio.current_time()
        return connection

    async def close(self, c: FakeConnection, /) -> None:
        """Note how old it has become."""
        self.ages.append(anyio.current_time() - self.came.pop(c))
        await super().close(c)


@pytest.mark.parametrize(
    ("count", "seconds"), [(1, 0.1), (2, 0.1), (20, 0.001), (20, 0.1), (20, 0.25), (200, 0.08)]
)
@pytest.mark.parametrize("room", ["none", "overflow", "within max_size"])
@pytest.mark.parametrize("users", [0, 10])
def test_connections_of_one_age_are_replaced_a_few_at_a_time(
    count: int, seconds: float, room: str, users: int
) -> None:
    """All of them between 90 and 100 % of their lifetime, and never is more than a tenth away."""

    async def use(pool: Pool[FakeConnection]) -> None:
        for turn in range(120):
            async with pool.acquire() as conn:
                await conn.query()
                await anyio.sleep(0.5 + 0.01 * (turn % 7))

    async def main() -> None:
        options: PoolOptions = {
            "min_size": count,
            "max_size": 2 * count if room == "within max_size" else count,
            "max_overflow": 5 if room == "overflow" else 0,
            "max_lifetime": 60.0,
        }
        driver.pool = Pool(driver, **options)
        async with driver.pool as pool, anyio.create_task_group() as group:
            driver.there.clear()
            for _ in range(min(users, count)):
                group.start_soon(use, pool)
            await anyio.sleep(59.9)
            await anyio.sleep(2.0 + count * seconds / 4)
            assert len(driver.ages) == count
            assert min(driver.ages) >= 54.0
            assert max(driver.ages) <= 60.0 + (0.6 if users else 0.0), "then it was in use"
            few = 0 if room == "within max_size" else max(2, count // 10)
            assert min(driver.there) >= count - few

    driver = AgingDriver(seconds)
    random.seed(1)  # what would hardly ever happen
    in_virtual_time(main())


async def test_reset_that_the_server_refuses_is_told_aloud_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else every connection would be replaced after its first use, and nobody knew why."""
    driver = FullDriver(reset=[Boom("no such statement"), Boom("no such statement")])
    driver.verdicts[Boom] = Verdict.OK
    async with Pool(driver, max_size=1) as pool:
        for _ in range(2):
            async with pool.acquire(timeout=LONG) as conn:
                conn.cursor()
    told = [record.levelname for record in caplog.records if "no such statement" in record.message]
    assert told.count("WARNING") == 1


async def test_refusals_that_are_remembered_as_told_are_limited(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may put a number of its own into each."""
    monkeypatch.setattr(poolkit._shell.log, "_MANY", 1)
    driver = FullDriver(reset=[Boom("first"), Boom("second"), Boom("third"), Boom("first")])
    driver.verdicts[Boom] = Verdict.OK
    async with Pool(driver, max_size=1) as pool:
        for _ in range(4):
            async with pool.acquire(timeout=LONG) as conn:
                conn.cursor()
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert sum("first" in message for message in told) == 2


# -- drivers that want to know -------------------------------------------------------------------


class KnowingDriver(CleanDriver):
    """One that runs on_connect itself, and is told of on_acquire."""

    async def set_up(self, c: FakeConnection, on_connect: Any) -> None:
        """Run it, and look at what it has left."""
        await on_connect(c)
        self.log.append(f"set up {c.label}")
        if c.label == "wrong":
            raise Boom("cannot be restored")

    def greeted(self, c: FakeConnection) -> None:
        """Look at what on_acquire has set up."""
        self.log.append(f"greeted {c.label}")
        if c.label == "rude":
            raise Boom("rude")


async def label_it(conn: FakeConnection) -> None:
    """Set up."""
    conn.label = "set up"


async def test_driver_may_run_on_connect_itself() -> None:
    """What it raises is a failed connect; without the hook it is not asked."""
    driver = KnowingDriver()
    async with Pool(driver, max_size=1, on_connect=label_it):
        assert [line for line in driver.log if "up" in line] == ["set up set up"]
    async with Pool(driver := KnowingDriver(), max_size=1):
        assert not [line for line in driver.log if "up" in line]

    async def mislabel(conn: FakeConnection) -> None:
        conn.label = "wrong"

    with pytest.raises(ConnectFailed, match="cannot be restored"):
        await Pool(driver := KnowingDriver(), max_size=1, on_connect=mislabel).open()
    assert not driver.alive


async def test_driver_is_told_that_on_acquire_has_run(caplog: pytest.LogCaptureFixture) -> None:
    """Or failed, but not if it has given the connection back; what it raises is logged."""

    async def greet(conn: Any) -> None:
        if do == "release":
            pool.release(conn)
        own(conn).label = do
        if do == "fail":
            raise Boom

    driver = KnowingDriver()
    async with Pool(driver, max_size=1, on_acquire=greet) as pool:
        for do, told in (("greet", True), ("rude", True), ("fail", True), ("release", False)):
            driver.log.clear()
            with contextlib.suppress(Boom, NotLeased):
                async with pool.acquire():
                    pass
            assert [line for line in driver.log if "greeted" in line] == [f"greeted {do}"] * told
    (said,) = (record.getMessage() for record in caplog.records)
    assert "KnowingDriver.greeted raised" in said
