"""An event loop that was away, and a machine that was suspended: connections are pinged before use."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import anyio
import pytest

import poolkit
from poolkit import Pool
from poolkit.testing import NEVER, VirtualTimeLoop
from tests.fakes import CleanDriver, FullDriver


class StallingLoop(VirtualTimeLoop):
    """One that can be away."""

    def stall(self, seconds: float) -> None:
        """Have so much time pass in which nothing runs."""
        self._now += seconds


def run(main: Any) -> None:
    """Run in virtual time."""
    with asyncio.Runner(loop_factory=StallingLoop) as runner:
        runner.run(main())


def stall(seconds: float) -> None:
    """Have the running loop be away."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StallingLoop)
    loop.stall(seconds)


@pytest.mark.parametrize(("ping_after", "pings"), [(0.0, 1), (1.0, 1), (5.0, 0), (None, 0)])
def test_reset_answered_late_is_followed_by_a_ping(ping_after: float | None, pings: int) -> None:
    """If the loop was away for `ping_after` or longer; who waits gets the connection after that."""

    async def main() -> None:
        driver = FullDriver()
        async with Pool(driver, max_size=1, ping_after=ping_after, reset_timeout=None) as pool:
            conn = await pool.acquire()
            driver.calls.clear()
            conn.cursor()
            waiting = asyncio.ensure_future(anext_of(pool))
            await asyncio.sleep(0)
            driver.script["reset"] = [gate := anyio.Event()]
            pool.release(conn)
            await anyio.wait_all_tasks_blocked()
            gate.set()
            stall(3.0)
            await waiting
            assert driver.calls["ping"] == pings

    run(main)


async def anext_of(pool: Pool[Any]) -> None:
    """Use a connection."""
    async with pool.acquire() as conn:
        assert await conn.query() == "row"


@pytest.mark.parametrize("ping_after", [0.0, 1.0])
def test_reset_that_is_merely_slow_is_handed_on(ping_after: float) -> None:
    """The loop runs all the time."""

    async def main() -> None:
        driver = FullDriver(reset=[9.0])
        async with Pool(driver, max_size=1, ping_after=ping_after, reset_timeout=None) as pool:
            conn = await pool.acquire()
            driver.calls.clear()
            conn.cursor()
            pool.release(conn)
            await anext_of(pool)
            assert driver.calls["ping"] == 0

    run(main)


def test_answer_that_is_late_again_and_again_is_taken_in_the_end() -> None:
    """A loop that is away all the time must go on somehow."""

    class Stalling(FullDriver):
        async def step(self, call: str) -> None:
            await super().step(call)
            if call in ("ping", "reset"):
                stall(2.0)

    async def main() -> None:
        driver = Stalling()
        options: Any = {"reset_timeout": None, "ping_timeout": None}
        async with Pool(driver, max_size=1, **options) as pool:
            conn = await pool.acquire()
            conn.cursor()
            waiting = asyncio.ensure_future(anext_of(pool))
            await asyncio.sleep(0)
            pool.release(conn)
            await waiting
            assert driver.calls["ping"] == 3
            assert driver.calls["connect"] == 1

    run(main)


def test_answer_that_came_before_a_limit_that_passed_meanwhile_is_of_no_use() -> None:
    """The connection cannot be asked again in the time it has: it goes, and another comes."""

    class Stalling(FullDriver):
        async def reset(self, c: Any, /) -> str | None:
            note = await super().reset(c)
            stall(3.0)
            await asyncio.shield(asyncio.sleep(0))
            return note

    async def main() -> None:
        driver = Stalling()
        async with Pool(driver, max_size=1) as pool:
            conn = await pool.acquire()
            conn.cursor()
            waiting = asyncio.ensure_future(anext_of(pool))
            await asyncio.sleep(0)
            pool.release(conn)
            await waiting
            assert driver.calls["connect"] == 2

    run(main)


def test_connect_that_ignored_its_limit_is_not_asked_whether_it_is_alive() -> None:
    """It has no time left, and could hang for ever: it is late, and another one is made."""

    class Deaf(FullDriver):
        async def connect(self) -> Any:
            if not self.calls["connect"]:
                with contextlib.suppress(asyncio.CancelledError):
                    self.calls["connect"] += 1
                    await asyncio.sleep(3600)
                stall(10.0)
                self.script["ping"] = [NEVER]
            return await super().connect()

    async def main() -> None:
        driver = Deaf()
        async with Pool(driver, max_size=1, connect_timeout=1.0, acquire_timeout=60.0) as pool:
            await anext_of(pool)
            assert driver.calls["ping"] == 0
            assert len(driver.alive) == pool.stats().size == 1

    run(main)


@pytest.mark.parametrize("in_line", [False, True])
@pytest.mark.parametrize("noticed", [False, True])
def test_lease_in_which_the_loop_was_away_is_no_sign_of_life(
    *, in_line: bool, noticed: bool
) -> None:
    """The next user's connection is pinged first, also if nothing else has run in between."""

    async def main() -> None:
        driver = CleanDriver()
        async with Pool(driver, max_size=1) as pool:
            async with pool.acquire() as conn:
                await conn.query()
                waiting = asyncio.ensure_future(anext_of(pool)) if in_line else anext_of(pool)
                await asyncio.sleep(0)
                stall(3.0)
                if noticed:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
            await waiting
            assert driver.calls["ping"] == 1
            await anext_of(pool)
            assert driver.calls["ping"] == 1

    run(main)


def test_suspended_machine_makes_connections_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's clock has stood still meanwhile: a lease's end is no news, either."""
    suspended = 0.0
    monkeypatch.setattr(poolkit._shell.upkeep, "seconds_suspended", lambda: suspended)

    async def main() -> None:
        nonlocal suspended
        driver = CleanDriver()
        async with Pool(driver, min_size=3, max_size=3, ping_after=60.0, ping_every=None) as pool:
            held = await pool.acquire()
            await held.query()
            for seconds in (0.0, 59.0):  # shorter than `ping_after`
                suspended += seconds
                await asyncio.sleep(1.5)
                await anext_of(pool)
                assert driver.calls["ping"] == 0
            suspended += 61.0
            await asyncio.sleep(1.5)
            pool.release(held)
            async with pool.acquire() as one, pool.acquire() as two, pool.acquire() as three:
                assert {await one.query(), await two.query(), await three.query()} == {"row"}
            assert driver.calls["ping"] == 3
            await asyncio.sleep(1.5)
            await anext_of(pool)
            assert driver.calls["ping"] == 3

    run(main)


def test_clocks_that_are_turned_are_no_sign_of_a_suspended_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a test library freezes or turns is not what is looked at, where there is a choice."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("there is no such choice")
    before = poolkit._shell.upkeep.seconds_suspended()
    monkeypatch.setattr("time.time", lambda: 4e9)
    monkeypatch.setattr("time.monotonic", lambda: 7.0)
    assert poolkit._shell.upkeep.seconds_suspended() - before < 1.0


def test_where_there_is_no_clock_that_counts_suspensions_the_wall_clock_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is ahead by so much afterwards."""
    monkeypatch.delattr("time.CLOCK_BOOTTIME", raising=False)
    suspended = poolkit._shell.upkeep.Suspended()
    wall = time.time()
    monkeypatch.setattr("time.time", lambda: wall + 3600.0)
    assert 3590.0 < suspended.since_asked() < 3610.0
    assert suspended.since_asked() < 10.0
