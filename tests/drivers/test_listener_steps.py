"""What a listener does step by step, with a driver in memory and a clock that jumps."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from typing import TYPE_CHECKING, Any

import pytest

from poolkit import ConnectFailed, Pool, PoolClosed
from poolkit.drivers._postgresql.listener import Listener
from poolkit.drivers._postgresql.notes import Mailbox, Missed, Notification
from poolkit.testing import NEVER, FakeDriver, VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable


class Driver(FakeDriver[Any]):
    """One that can listen, to channels of which it takes notes."""

    class settings:  # noqa: N801  # an attribute of drivers
        """A pooler that is told of: nobody looks for one."""

        pooler = "session"

    def __init__(self, **script: Any) -> None:
        super().__init__(**script)
        self.said: list[str] = []
        self.answer: Any = None
        self.heard: Any = None


class Ears:
    """Do nothing but note it."""

    session = None

    def __init__(self, c: Any, heard: Any) -> None:
        self._driver: Driver = c.driver
        self._driver.heard = heard

    async def _say(self, word: str, channels: Iterable[str]) -> None:
        self._driver.said.append(f"{word} {' '.join(sorted(channels))}")
        await asyncio.sleep(0)
        if isinstance(self._driver.answer, Exception):
            raise self._driver.answer
        if self._driver.answer is NEVER:
            await asyncio.sleep(3600)

    async def listen(self, channels: Iterable[str]) -> None:
        """Listen."""
        await self._say("LISTEN", channels)

    async def unlisten(self, channels: Iterable[str]) -> None:
        """Do so no more."""
        await self._say("UNLISTEN", channels)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run on a loop whose clock jumps."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


def opened(driver: Driver, **options: Any) -> tuple[Pool[Any], Listener[Any]]:
    """Return a pool and its listener."""
    pool: Pool[Any] = Pool(driver, **{"min_size": 0, **options})
    return pool, Listener(pool, Driver, Ears, 10)


# -- mailboxes -----------------------------------------------------------------------------------


def taken(mailbox: Mailbox) -> list[Any]:
    """Return what is in it."""
    return list(iter(mailbox.take, None))


def note(n: int) -> Notification:
    """Return one of many."""
    return Notification("c", str(n), 1)


@pytest.mark.parametrize(
    ("put", "found"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 4, 5], [Missed("slow", 2), 3, 4, 5]),
        (["lost", 1, "lost", "lost", 2], ["lost", 1, "lost", 2]),
        (["lost", 1, 2, 3, 4], [Missed("reconnected", 1), 2, 3, 4]),
        ([1, 2, "lost", 3, 4], [Missed("slow", 2), "lost", 3, 4]),
        ([1, 2, "lost", 3, 4, 5], [Missed("reconnected", 2), 3, 4, 5]),
    ],
)
def test_full_mailbox_tells_in_its_place_what_is_missing(put: list[Any], found: list[Any]) -> None:
    """However often; two that stand beside each other are one."""

    def made(one: Any) -> Any:
        if isinstance(one, int):
            return note(one)
        return Missed("reconnected") if one == "lost" else one

    mailbox = Mailbox(("c",), 3)
    for one in put:
        mailbox.put(made(one))
    assert taken(mailbox) == list(map(made, found))


# -- connecting ----------------------------------------------------------------------------------


def test_pauses_between_attempts_grow_within_the_pools_limits() -> None:
    """With jitter in their upper half; a connection that was there begins anew."""

    async def main() -> None:
        loop, times = asyncio.get_running_loop(), list[float]()

        class Noting(Driver):
            async def step(self, call: str) -> None:
                times.append(loop.time()) if call == "connect" else None
                await super().step(call)

        driver = Noting(connect=[ConnectionRefusedError("no")] * 6)
        pool, listener = opened(driver, backoff_min=0.2, backoff_max=1.5)
        async with pool, listener as listen, listen("news"):
            driver.crash()
            await until(lambda: len(driver.alive) == 1 and len(times) == 8)
        pauses = [b - a for a, b in itertools.pairwise(times)]
        for pause, longest in zip(pauses, [0.2, 0.4, 0.8, 1.5, 1.5, 1.5, 0.2], strict=True):
            assert longest / 2 <= pause <= longest

    run(main)


async def until(is_so: Callable[[], object]) -> None:
    """Wait, in steps so small that the clock decides nothing."""
    async with asyncio.timeout(1000):
        while not is_so():  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.001)


def test_nobody_connects_for_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Neither before anybody subscribes, nor again when all have got their error."""

    async def main() -> None:
        driver = Driver(connect=PoolClosedForever())
        pool, listener = opened(driver)
        async with pool, listener as listen:
            await asyncio.sleep(100)
            assert not driver.calls["connect"]
            for n in (1, 2):
                with pytest.raises(ConnectFailed, match="PoolClosedForever"):
                    await anext(listen("news"))
                await asyncio.sleep(100)
                assert driver.calls["connect"] == n

    class PoolClosedForever(PermissionError):
        pass

    with caplog.at_level(logging.INFO, "poolkit"):
        run(main)
    assert len(caplog.records) == 1


def test_server_that_does_not_listen_is_an_error_for_newcomers() -> None:
    """Those who have listened before wait until it does again, as after a failover."""

    async def main() -> None:
        driver = Driver()
        pool, listener = opened(driver)
        async with pool, listener as listen, listen("old") as old:
            refusal: Any = RuntimeError("cannot execute LISTEN during recovery")
            refusal.sqlstate = "25006"
            driver.answer = refusal
            with pytest.raises(ConnectFailed, match="during recovery") as caught:
                await listen("new").__aenter__()
            assert caught.value.__cause__ is driver.answer
            await asyncio.sleep(100)
            assert driver.calls["connect"] < 200
            driver.answer = None
            assert await anext(old) == Missed("reconnected")
            assert len(driver.alive) == 1

    run(main)


def test_listen_that_hangs_is_given_up() -> None:
    """After `connect_timeout`; and the next connection serves."""

    async def main() -> None:
        driver = Driver()
        pool, listener = opened(driver, connect_timeout=3.0)
        async with pool, listener as listen:
            driver.answer = NEVER
            entering = asyncio.create_task(listen("news").__aenter__())
            await asyncio.sleep(2.9)
            assert len(driver.alive) == 1
            await asyncio.sleep(0.05)
            driver.answer = None
            await asyncio.sleep(0.1)
            assert not driver.alive
            await entering
            assert driver.said == ["LISTEN news"] * 2

    run(main)


def test_connect_that_hangs_is_given_up() -> None:
    """As one of the pool's is."""

    async def main() -> None:
        driver = Driver(connect=[NEVER])
        pool, listener = opened(driver, connect_timeout=3.0)
        async with pool, listener as listen, listen("news"):
            assert asyncio.get_running_loop().time() == pytest.approx(3.15, abs=0.1)

    run(main)


@pytest.mark.parametrize("busy", [False, True])
def test_connection_is_pinged_as_the_pools_are(*, busy: bool) -> None:
    """However often somebody comes and goes; never, if the pool never does."""

    async def main() -> None:
        for every, pings in ((30.0, 3), (None, 0)):
            driver = Driver()
            pool, listener = opened(driver, ping_every=every)
            async with pool, listener as listen, listen("news"):
                for _ in range(100):
                    await asyncio.sleep(1)
                    if busy:
                        async with listen("news"):
                            pass
                assert driver.calls["ping"] == pings

    run(main)


def test_ping_without_an_answer_costs_the_connection() -> None:
    """And its subscriber is told."""

    async def main() -> None:
        driver = Driver(ping=[NEVER])
        pool, listener = opened(driver)
        async with pool, listener as listen, listen("news") as notes:
            assert await anext(notes) == Missed("reconnected")
            assert asyncio.get_running_loop().time() == pytest.approx(31.15, abs=0.1)
            assert (len(driver.alive), driver.calls["connect"]) == (1, 2)

    run(main)


def test_renewed_pool_leaves_the_listener_alone() -> None:
    """Its next connect has the new credentials."""

    async def main() -> None:
        driver = Driver()
        pool, listener = opened(driver)
        async with pool, listener as listen, listen("news"):
            pool.renew()
            await asyncio.sleep(5)
            assert driver.calls["connect"] == 1

    run(main)


def test_many_channels_are_listened_to_in_steps() -> None:
    """Each has the time limit of its own, since some libraries make a round trip for each channel."""

    async def main() -> None:
        driver = Driver()
        pool, listener = opened(driver)
        channels = [f"c{n:03}" for n in range(120)]
        async with pool, listener as listen:
            async with listen(*channels):
                assert [len(said.split()) - 1 for said in driver.said] == [50, 50, 20]
            await until(lambda: len(driver.said) == 6)
            assert sorted(" ".join(driver.said[3:]).replace("UNLISTEN ", "").split()) == channels

    run(main)


# -- coming and going ----------------------------------------------------------------------------


def test_who_comes_as_the_last_one_leaves_keeps_the_channel() -> None:
    """Nothing is sent, if it is in time."""

    async def main() -> None:
        driver = Driver()
        pool, listener = opened(driver)
        async with pool, listener as listen:
            first = await listen("news").__aenter__()
            first.close()
            async with listen("news"):
                await asyncio.sleep(1)
                assert driver.said == ["LISTEN news"]

    run(main)


def test_who_comes_while_the_channel_is_being_left_has_it_sent_again() -> None:
    """And is not in force until it is."""

    async def main() -> None:
        driver = Driver()
        pool, listener = opened(driver)
        async with pool, listener as listen:
            first = await listen("news").__aenter__()
            first.close()
            await until(lambda: driver.said[-1] == "UNLISTEN news")
            async with listen("news"):
                assert driver.said == ["LISTEN news", "UNLISTEN news", "LISTEN news"]

    run(main)


def test_subscriber_is_told_when_all_its_channels_are_there_again() -> None:
    """Not before: what is lost on the last one is to be told of, too."""

    async def main() -> None:
        driver = Driver()
        pool, listener = opened(driver)
        async with pool, listener as listen, listen("a") as one, listen("a", "b") as both:
            driver.crash()
            assert await anext(one) == Missed("reconnected")
            assert await anext(both) == Missed("reconnected")
            assert driver.said[-1] == "LISTEN a b"
            driver.heard("b", "x", 7)
            assert await anext(both) == Notification("b", "x", 7)

    run(main)


def test_task_that_nobody_else_refers_to_goes_on_hearing() -> None:
    """While it waits, the listener keeps it alive, as a socket would."""

    async def main() -> None:
        driver, heard = Driver(), list[Any]()
        pool, listener = opened(driver)
        async with pool, listener as listen:

            async def hear() -> None:
                async for one in listen("news"):
                    heard.append(one)

            asyncio.create_task(hear())  # noqa: RUF006  # that is the point
            await until(lambda: driver.said)
            gc.collect()
            driver.heard("news", "x", 7)
            await until(lambda: heard)

    run(main)


# -- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [{"connect": NEVER}, {"close": NEVER}, {"ping": NEVER}, {}])
def test_pool_closes_in_time_whatever_hangs(script: dict[str, Any]) -> None:
    """And whatever is under way is over."""

    async def main() -> None:
        driver = Driver(**script)
        pool, listener = opened(driver, ping_every=0.1, ping_timeout=None)
        async with pool, listener as listen:
            hearing = asyncio.create_task(anext(listen("news")))
            await asyncio.sleep(1)
            began = asyncio.get_running_loop().time()
            await pool.aclose()
            assert asyncio.get_running_loop().time() - began <= 1.0
            assert not driver.alive
            assert pool.stats().listening == 0
            with pytest.raises(PoolClosed):
                await hearing

    run(main)


def test_cancelled_at_any_step_it_leaves_nothing() -> None:
    """No connection, no count, no task."""

    async def scenario(driver: Driver, pool: Pool[Any], listener: Listener[Any]) -> None:
        async with listener as listen, listen("a") as notes, listen("a", "b"):
            driver.crash()
            await anext(notes)
            driver.heard("a", "x", 7)
            async for _ in notes:
                break
        assert pool.is_open

    async def main() -> None:
        for step in range(1000):
            driver = Driver(connect=0.1, close=0.1)
            pool, listener = opened(driver)
            async with pool:
                task = asyncio.create_task(scenario(driver, pool, listener))
                for _ in range(step):
                    await asyncio.sleep(0 if step % 2 else 0.01)
                task.cancel()
                await asyncio.wait([task])
                await asyncio.sleep(1)
                assert not driver.alive, step
                assert pool.stats().listening == 0
                assert "poolkit listener" not in {one.get_name() for one in asyncio.all_tasks()}
            if not task.cancelled():
                task.result()
                if step % 2 == 0:
                    break
        assert step > 20

    run(main)


def test_loop_that_ends_under_it_leaves_nothing() -> None:
    """Whoever is waiting is cancelled with all others, and nothing is reported."""
    driver = Driver()
    told: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        pool, listener = opened(driver)
        await pool.open()
        listen = await listener.__aenter__()
        asyncio.create_task(anext(listen("news")))  # noqa: RUF006
        await until(lambda: driver.alive)

    with pytest.warns(ResourceWarning, match="was never closed"):
        run(main)
    assert not driver.alive
    assert told == []
