"""The log of an outage: one line when it begins, one when it is over, and nothing for each failure."""

from __future__ import annotations

import contextlib
import gc
import logging
from typing import Any

import anyio
import pytest

from poolkit import ConnectFailed, Pool, PoolTimeout, PoolUnavailable, Verdict
from tests.fakes import Boom, FakeConnection, FullDriver, own
from tests.pool.virtual import RUNNERS

#: Where the logs of these pools say that they are.
NAME = "shop"


class Connection(FakeConnection):
    """One that its user may close."""

    async def close(self) -> None:
        """Close it."""
        await self.driver.close(self)


class Database(FullDriver):
    """A database that goes away and comes back, with all its connections or with some."""

    name = "db.example:5432/shop"
    kind = Connection

    def __init__(self, **script: Any) -> None:
        super().__init__(**script)
        self.error: BaseException | None = None
        self.hangs = False
        self.verdicts[ConnectionRefusedError] = Verdict.TRANSIENT
        self.verdicts[ConnectionResetError] = Verdict.DEAD

    def is_clean(self, c: FakeConnection) -> bool:
        """Have what was used reset."""
        return not c.dirty

    def go_away(self, error: BaseException | None = None) -> None:
        """Refuse connects from now on, and end the connections there are."""
        self.error = error or ConnectionRefusedError("connect call failed")
        self.cut(*self.alive)

    def cut(self, *connections: FakeConnection) -> None:
        """End connections; the pool is told, as by a socket that is closed."""
        for connection in connections:
            connection.dead = True
            self.watched[connection]()

    async def step(self, call: str) -> None:
        """Be away."""
        await super().step(call)
        while self.hangs and call in ("connect", "ping", "reset"):  # noqa: ASYNC110
            await anyio.sleep(0.1)
        if self.error is not None and call == "connect":
            raise self.error


class Lines:
    """What was logged at INFO and above."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        caplog.set_level(logging.DEBUG, "poolkit")

    def take(self) -> list[tuple[str, str]]:
        """Return the levels and events since the last time."""
        found = [(record.levelname, self._event(record)) for record in self.records()]
        self._caplog.clear()
        return found

    def records(self) -> list[Any]:
        """Return the records at INFO and above."""
        return [record for record in self._caplog.records if record.levelno >= logging.INFO]

    def last(self, event: str) -> Any:
        """Return the last record of an event."""
        return [record for record in self.records() if self._event(record) == event][-1]

    @staticmethod
    def _event(record: Any) -> str:
        assert record.name == "poolkit"
        assert record.poolkit_pool == NAME
        event: str = record.poolkit_event
        return event


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """Return what is logged."""
    return Lines(caplog)


BEGAN, ENDED = ("WARNING", "outage_began"), ("INFO", "outage_ended")


async def use(pool: Pool[FakeConnection], times: int = 1, hold: float = 0.1) -> None:
    """Acquire, again and again, whatever comes of it."""
    for _ in range(times):
        with contextlib.suppress(PoolUnavailable, ConnectionError, Boom):
            async with pool.acquire() as conn:
                await conn.query()
                await anyio.sleep(hold)
        await anyio.sleep(0.01)


@RUNNERS
def test_outage_under_load_is_two_lines(run: Any, lines: Lines) -> None:
    """With what was lost, how often connecting failed, and what callers were told."""
    driver = Database()

    async def main() -> None:
        pool = Pool(driver, name=NAME, max_size=4, acquire_timeout=1.0)
        async with pool, anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(use, pool, 100)
            await anyio.sleep(1.0)
            driver.go_away()
            await anyio.sleep(5.0)
            assert lines.last("outage_began")
            driver.error = None
            await anyio.sleep(5.0)
            began, ended = lines.last("outage_began"), lines.last("outage_ended")
            assert lines.take() == [BEGAN, ENDED]
            text = began.getMessage()
            assert text.startswith(
                "pool 'shop' (db.example:5432/shop): cannot connect to the database: "
                "ConnectionRefusedError: connect call failed; "
            )
            text = ended.getMessage()
            assert "connected to the database again, after " in text
            assert ended.poolkit_seconds == pytest.approx(5.0, abs=1.6)
            stats = pool.stats()
            assert ended.poolkit_attempts == stats.connect_failures > 3
            assert (ended.poolkit_lost_idle, ended.poolkit_lost_leased) == (0, 4)
            assert ended.poolkit_timed_out == stats.timed_out > 0
            assert ended.poolkit_failed == stats.failed
            assert ended.poolkit_end == "connected"
            assert f"{stats.timed_out} with PoolTimeout" in text
            assert f"and {stats.connect_failures} failed attempts" in text
            assert "4 connections were lost, 0 idle and 4 leased" in text
            group.cancel_scope.cancel()
        assert lines.take() == []

    run(main)


@RUNNERS
def test_error_that_does_not_pass_is_one_line_and_who_opens_is_told_by_it_alone(
    run: Any, lines: Lines
) -> None:
    """A password that has become wrong; when the pool is opened, the error says it all."""
    driver = Database()
    driver.verdicts[Boom] = Verdict.FATAL

    async def main() -> None:
        driver.error = Boom("password authentication failed")
        pool = Pool(driver, name=NAME, max_size=2)
        with pytest.raises(ConnectFailed):
            await pool.open()
        assert lines.take() == []
        driver.error = None
        async with pool:
            driver.go_away(Boom("password authentication failed"))
            for _ in range(20):
                await use(pool)
                await anyio.sleep(1.0)
            text = lines.last("outage_began").getMessage()
            assert "cannot connect to the database: Fault: password authentication failed" in text
            assert lines.take() == [BEGAN]
            driver.error = None
            await anyio.sleep(10.0)
            assert lines.last("outage_ended").poolkit_failed >= 10
            assert lines.take() == [ENDED]

    run(main)


@RUNNERS
@pytest.mark.parametrize("count", [1, 50])
def test_lost_connections_are_one_line_if_the_database_can_be_reached(
    run: Any, lines: Lines, count: int
) -> None:
    """A warning if somebody held one of them; else nobody has noticed."""
    driver = Database()

    async def main() -> None:
        pool = Pool(driver, name=NAME, min_size=60, max_size=100)
        async with pool:
            driver.cut(*list(driver.alive)[:count])
            await anyio.sleep(70.0)
            record = lines.last("connections_lost")
            assert (record.poolkit_lost_idle, record.poolkit_lost_leased) == (count, 0)
            assert lines.take() == [("INFO", "connections_lost")]
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(count):
                    conn = await stack.enter_async_context(pool.acquire())
                    await conn.query()
                    driver.cut(own(conn))
                await anyio.sleep(1.0)
            await anyio.sleep(5.0)
            record = lines.last("connections_lost")
            assert (record.poolkit_lost_idle, record.poolkit_lost_leased) == (0, count)
            assert lines.take() == [("WARNING", "connections_lost")]

    run(main)


@RUNNERS
def test_connections_lost_again_and_again_are_one_line_a_minute(run: Any, lines: Lines) -> None:
    """Each with all since the one before."""
    driver = Database()

    async def main() -> None:
        async with Pool(driver, name=NAME, max_size=4) as pool:
            for _ in range(600):
                async with pool.acquire() as conn:
                    await conn.query()
                    driver.cut(own(conn))
                    await anyio.sleep(0.0)
                await anyio.sleep(0.5)
            said = [record.poolkit_lost_leased for record in lines.records()]
            assert 5 <= len(said) <= 6
            assert sum(said) > 400
            assert set(lines.take()) == {("WARNING", "connections_lost")}

    run(main)


@RUNNERS
def test_error_of_a_lease_is_the_cause(run: Any, lines: Lines) -> None:
    """The driver's own words say why the server has ended it."""
    driver = Database()

    async def main() -> None:
        async with Pool(driver, name=NAME) as pool:
            with contextlib.suppress(ConnectionResetError):
                async with pool.acquire() as conn:
                    await conn.query()
                    raise ConnectionResetError("terminated by administrator")
            await anyio.sleep(3.0)
            text = lines.last("connections_lost").getMessage()
            assert "ConnectionResetError: terminated by administrator" in text
            assert "1 connection was lost, 0 idle and 1 leased" in text

    run(main)


@RUNNERS
def test_database_that_comes_and_goes_makes_few_lines(run: Any, lines: Lines) -> None:
    """Minutes of it are one outage in many pieces."""
    driver = Database()

    async def main() -> None:
        async with Pool(driver, name=NAME, max_size=2) as pool, anyio.create_task_group() as group:
            group.start_soon(use, pool, 100000)
            for _ in range(120):
                driver.go_away()
                await anyio.sleep(5.0)
                driver.error = None
                await anyio.sleep(5.0)
            assert len(lines.records()) <= 14
            await anyio.sleep(120.0)
            assert lines.last("outage_ended").poolkit_times > 50
            taken = lines.take()
            assert taken == [BEGAN, ENDED] * (len(taken) // 2)
            group.cancel_scope.cancel()

    run(main)


@RUNNERS
def test_outage_that_ends_with_the_pool_is_two_lines(run: Any, lines: Lines) -> None:
    """Opened again, the pool begins anew."""
    driver = Database()

    async def main() -> None:
        pool = Pool(driver, name=NAME)
        for _ in range(2):
            driver.error = None
            await pool.open()
            driver.go_away()
            await anyio.sleep(3.0)
            assert lines.take() == [BEGAN]
            await pool.aclose()
            ended = lines.last("outage_ended")
            assert ended.poolkit_end == "closed"
            assert "closed without a connection to the database, after 3.0 s" in ended.getMessage()
            assert lines.take() == [ENDED]
        driver.error = None
        async with pool:
            await anyio.sleep(100.0)
        assert lines.take() == []

    run(main)


@RUNNERS
def test_pool_closed_just_after_an_outage_says_that_it_was_over(run: Any, lines: Lines) -> None:
    """Before it was sure of that."""
    driver = Database()

    async def main() -> None:
        async with Pool(driver, name=NAME):
            driver.go_away()
            await anyio.sleep(3.0)
            driver.error = None
            await anyio.sleep(1.6)
            assert lines.take() == [BEGAN]
        assert lines.last("outage_ended").poolkit_end == "connected"
        assert lines.take() == [ENDED]

    run(main)


@RUNNERS
def test_pings_notice_an_outage_without_load(run: Any, lines: Lines) -> None:
    """Nobody uses the pool, and no socket says that it was closed."""
    driver = Database()

    async def main() -> None:
        async with Pool(driver, name=NAME, min_size=3, ping_every=5.0):
            driver.error = ConnectionRefusedError("connect call failed")
            for connection in driver.alive:
                connection.lost = connection.dead = True
            await anyio.sleep(10.0)
            assert lines.take() == [BEGAN]
            driver.error = None
            await anyio.sleep(10.0)
            assert lines.last("outage_ended").poolkit_lost_idle == 3
            assert lines.take() == [ENDED]

    run(main)


@RUNNERS
def test_black_hole_is_two_lines(run: Any, lines: Lines) -> None:
    """Nothing is refused, and nothing answers: pings, resets and connects take too long."""
    driver = Database()

    async def main() -> None:
        pool = Pool(driver, name=NAME, min_size=3, max_size=4, acquire_timeout=2.0)
        async with pool, anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(use, pool, 10000)
            await anyio.sleep(1.0)
            driver.hangs = True
            await anyio.sleep(30.0)
            assert lines.take() == [BEGAN]
            driver.hangs = False
            await anyio.sleep(30.0)
            assert lines.last("outage_ended").poolkit_timed_out > 0
            assert lines.take() == [ENDED]
            group.cancel_scope.cancel()

    run(main)


@RUNNERS
def test_lost_connections_without_a_new_one_are_an_outage(run: Any, lines: Lines) -> None:
    """The connect hangs, and may hang for ever."""
    driver = Database()

    async def main() -> None:
        async with Pool(driver, name=NAME, connect_timeout=None) as pool:
            driver.hangs = True
            driver.cut(*driver.alive)
            await anyio.sleep(10.0)
            assert "no new connection for 3.0 s; 1 connection was lost" in (
                lines.last("outage_began").getMessage()
            )
            assert lines.take() == [BEGAN]
            await pool.aclose()
            assert lines.take() == [ENDED]

    run(main)


@RUNNERS
def test_failed_resets_are_one_warning_for_each_cause(run: Any, lines: Lines) -> None:
    """Not for each lease; a number in the error makes no other cause."""
    driver = Database()

    async def main() -> None:
        async with Pool(driver, name=NAME) as pool:
            for cause in ("lock held by {}", "no memory: {}"):
                driver.script["reset"] = [Boom(cause.format(n)) for n in range(20)]
                for _ in range(20):
                    async with pool.acquire() as conn:
                        await conn.query()
                    await anyio.sleep(0.3)
                await anyio.sleep(3.0)
            first, second = (record.getMessage() for record in lines.records())
            assert "lock held by 0" in first
            assert "no memory: 0" in second
            assert lines.take() == [("WARNING", "reset_failed")] * 2

    run(main)


@RUNNERS
def test_failed_resets_with_ever_new_causes_are_a_few_warnings(run: Any, lines: Lines) -> None:
    """All at once, or one after the other."""
    driver = Database()

    async def main() -> None:
        causes = [chr(ord("a") + n) * 3 for n in range(26)]
        async with Pool(driver, name=NAME, min_size=26, max_size=26) as pool:
            for pause in (0.0, 2.0):
                driver.script["reset"] = [Boom(f"{cause} {pause}") for cause in causes]
                for _ in causes:
                    async with pool.acquire() as conn:
                        await conn.query()
                    await anyio.sleep(pause)
                await anyio.sleep(3.0)
            assert lines.take() == [("WARNING", "reset_failed")] * 20

    run(main)


@RUNNERS
def test_opening_says_after_a_second_that_it_waits(run: Any, lines: Lines) -> None:
    """For a database that is down, and for one that does not answer; it is over when it is there."""
    driver = Database()

    async def main() -> None:
        driver.error = ConnectionRefusedError("connect call failed")
        pool = Pool(driver, name=NAME, acquire_timeout=4.0)
        with pytest.raises(PoolTimeout):
            await pool.open()
        waits = ("WARNING", "opening_waits")
        text = lines.last("opening_waits").getMessage()
        assert "opening has waited for the database for 1.0 s: ConnectionRefusedError" in text
        assert lines.take() == [waits, ENDED]
        driver.error, driver.hangs = None, True
        pool = Pool(driver, name=NAME)
        async with anyio.create_task_group() as group:
            group.start_soon(pool.open)
            await anyio.sleep(2.5)
            assert "its first connect takes long" in lines.last("opening_waits").getMessage()
            assert lines.take() == [waits]
            driver.hangs = False
        await anyio.sleep(10.0)
        assert lines.take() == [ENDED]
        await pool.aclose()

    run(main)


@RUNNERS
def test_opening_that_is_quick_or_merely_slow_says_nothing(run: Any, lines: Lines) -> None:
    """Nor one whose first attempt has failed."""

    async def main() -> None:
        driver = Database(connect=[ConnectionRefusedError("not yet"), None])
        async with Pool(driver, name=NAME):
            await anyio.sleep(10.0)
        driver = Database(connect=0.7)
        async with Pool(driver, name=NAME, min_size=20, max_size=20):
            pass
        assert lines.take() == []

    run(main)


@RUNNERS
def test_what_a_holder_closes_or_drops_is_not_lost(run: Any, lines: Lines) -> None:
    """The one is as it wants it; of the other a ResourceWarning tells."""
    driver = Database()

    async def main() -> None:
        async with Pool(driver, name=NAME, max_size=2) as pool:
            conn = await pool.acquire()
            await conn.query()
            await conn.close()  # type: ignore[attr-defined]
            await anyio.sleep(5.0)
            conn = await pool.acquire()
            await conn.query()
            with pytest.warns(ResourceWarning, match="never released"):  # noqa: PT031
                del conn
                gc.collect()
                await anyio.sleep(5.0)
            assert pool.stats().retired["broken"] == 2
        assert lines.take() == []

    run(main)


@RUNNERS
def test_connect_of_no_use_any_more_is_no_outage(run: Any, lines: Lines) -> None:
    """It fails after the pool was renewed, or because the pool is closed."""
    driver = Database()

    async def main() -> None:
        async with Pool(driver, name=NAME, min_size=0) as pool, anyio.create_task_group() as group:
            driver.hangs = True
            group.start_soon(use, pool)
            await anyio.sleep(0.1)
            pool.renew()
            await anyio.sleep(4.0)
            group.cancel_scope.cancel()
        assert lines.take() == []

    run(main)


# -- long waits ----------------------------------------------------------------------------------


async def hold(pool: Pool[FakeConnection], seconds: float) -> None:
    """Hold a connection."""
    async with pool.acquire(label="nightly import"):
        await anyio.sleep(seconds)


@RUNNERS
@pytest.mark.parametrize("limit", [2.0, 5.0, None])
def test_caller_that_waits_for_long_is_told_of_once_a_minute(
    run: Any, lines: Lines, limit: float | None
) -> None:
    """With the sizes, and who holds; the default is five seconds, and None is never."""
    options: dict[str, Any] = {} if limit == 5.0 else {"wait_notice": limit}

    async def main() -> None:
        pool = Pool(Database(), name=NAME, max_size=1, acquire_timeout=None, **options)
        async with pool, anyio.create_task_group() as group:
            group.start_soon(hold, pool, 200.0)
            await anyio.sleep(0.5)
            group.start_soon(use, pool)
            await anyio.sleep((limit or 5.0) - 0.1)
            assert lines.take() == []
            await anyio.sleep(1.1)
            if limit is None:
                await anyio.sleep(150.0)
                assert lines.take() == []
                group.cancel_scope.cancel()
                return
            record = lines.last("long_wait")
            assert record.poolkit_seconds == pytest.approx(limit, abs=1.01)
            assert (record.poolkit_waiting, record.poolkit_leased) == (1, 1)
            assert (record.poolkit_idle, record.poolkit_capacity) == (0, 1)
            text = record.getMessage()
            assert "in use has waited for " in text
            assert "1 leased, 0 idle" in text
            assert "Held longest: " in text
            assert "in nightly import (hold)" in text
            assert lines.take() == [("WARNING", "long_wait")]
            await anyio.sleep(58.0)
            assert lines.take() == []
            await anyio.sleep(4.0)
            assert lines.take() == [("WARNING", "long_wait")]
            group.cancel_scope.cancel()

    run(main)


@RUNNERS
def test_waits_of_an_outage_belong_to_its_lines(run: Any, lines: Lines) -> None:
    """They are long for a reason that is told."""
    driver = Database()

    async def main() -> None:
        pool = Pool(driver, name=NAME, acquire_timeout=60.0, fail_fast_after=None)
        async with pool, anyio.create_task_group() as group:
            driver.go_away()
            group.start_soon(use, pool)
            await anyio.sleep(30.0)
            assert pool.stats().waiting == 1
            driver.error = None
            await anyio.sleep(10.0)
            assert lines.take() == [BEGAN, ENDED]

    run(main)


def test_wait_notice_stands_in_a_url() -> None:
    """As a number, or none."""
    import poolkit

    for text, value in (("5", 5.0), ("none", None), ("0.5", 0.5)):
        pool = poolkit.create_pool(f"sqlite:///app.db?wait_notice={text}")
        assert pool._state.options.wait_notice == value
