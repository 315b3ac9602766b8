"""Leaks: a lease held too long is told of, a handle that was dropped is reclaimed."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from anyio import wait_all_tasks_blocked

import poolkit._shell.life
from poolkit import Pool, PoolConfigError
from tests.fakes import CleanDriver, FakeConnection, FullDriver, gone
from tests.pool.virtual import RUNNERS

# -- held too long -------------------------------------------------------------------------------


@RUNNERS
def test_lease_held_too_long_is_told_of_once_and_once_more_when_it_comes_back(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With the stack that acquired it, and for how long it was held in all."""

    async def borrow(pool: Pool[FakeConnection]) -> FakeConnection:
        return await pool.acquire()

    async def main() -> None:
        async with Pool(CleanDriver(), name="shop", leak_after=10.0) as pool:
            conn = await borrow(pool)
            await anyio.sleep(9.5)
            assert not caplog.messages
            await anyio.sleep(30.0)
            (warning,) = caplog.messages
            assert "'shop': leak_after=10.0: a connection is held by " in warning
            assert "in test_lease_held_too_long" in warning
            places = [line.rsplit(".", 1)[-1] for line in warning.splitlines()[1:]]
            assert places[:2] == ["borrow", "main"]
            pool.release(conn)
            await anyio.sleep(2.0)
            _, news = caplog.messages
            assert "came back after all, after 39.5 s" in news
            assert "borrow" in news

    run(main)


@RUNNERS
def test_each_long_lease_of_a_connection_is_told_of(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of the one that was told of before; a short one never."""

    async def main() -> None:
        async with Pool(CleanDriver(), max_size=1, leak_after=10.0) as pool:
            for seconds in (12.0, 5.0, 12.0):
                async with pool.acquire():
                    await anyio.sleep(seconds)
            await anyio.sleep(2.0)
        assert sum("is held by" in message for message in caplog.messages) == 2
        assert sum("came back" in message for message in caplog.messages) == 2

    run(main)


@RUNNERS
def test_long_lease_whose_connection_broke_came_back_too(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The lease has ended, if badly."""

    async def main() -> None:
        async with Pool(CleanDriver(), leak_after=1.0) as pool:
            async with pool.acquire() as conn:
                await conn.query()
                await anyio.sleep(5.0)
                conn.dead = True
            await anyio.sleep(2.0)
        assert any("came back after all" in message for message in caplog.messages)

    run(main)


async def test_stacks_are_noted_only_if_asked_for() -> None:
    """They cost more than the rest of an acquire."""
    async with Pool(CleanDriver(), leak_after=None) as pool, pool.acquire():
        (info,) = pool.leases()
        assert (info.stack == ()) == (not sys.flags.dev_mode)
    async with Pool(FullDriver(), leak_after=60.0) as pool:
        for block in (pool.acquire(), pool.transaction()):
            async with block:
                (info,) = pool.leases()
                assert "test_leaks.py" in info.stack[0]
                assert info.stack[0] == info.place
                assert not any("asyncio/events.py" in line for line in info.stack)


async def test_place_is_the_line_that_acquires() -> None:
    """And no other of the same function."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        for _ in range(2):
            line = line_here() + 1
            async with pool.acquire():
                (info,) = pool.leases()
                assert info.place == (f"{__file__}:{line} in test_place_is_the_line_that_acquires")
        line = line_here() + 1
        conn = await pool.acquire()
        assert f"test_leaks.py:{line} in " in pool.leases()[0].place
        pool.release(conn)


def line_here() -> int:
    """Return the line of the caller."""
    return sys._getframe(1).f_lineno


async def test_stack_has_sixteen_places_at_most() -> None:
    """The innermost, however deep in a program the acquire is."""

    async def deep(steps: int) -> Any:
        return await (deep(steps - 1) if steps else pool.acquire())

    async with Pool(CleanDriver(), max_size=1, leak_after=60.0) as pool:
        conn = await deep(40)
        (info,) = pool.leases()
        assert len(info.stack) == 16
        assert all("deep" in line for line in info.stack)
        pool.release(conn)


def test_stack_of_a_shallow_program_is_whole() -> None:
    """It ends where a thread begins, of which the loop is all but what it runs."""
    stacks: list[tuple[str, ...]] = []

    async def main() -> None:
        async with Pool(CleanDriver(), max_size=1, leak_after=60.0) as pool, pool.acquire():
            stacks.extend(info.stack for info in pool.leases())

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join()
    ((line,),) = stacks
    assert line.endswith("main")


async def test_stack_of_a_lease_awaited_elsewhere_has_no_lines_of_the_pool() -> None:
    """Only those of its users."""
    async with Pool(CleanDriver(), leak_after=60.0) as pool:

        def ask() -> Any:
            return pool.acquire()

        conn = await ask()
        (info,) = pool.leases()
        assert ".ask" in info.stack[0]
        assert "test_leaks.py" in info.stack[1]
        pool.release(conn)


async def test_lease_that_was_waited_for_has_its_stack() -> None:
    """It was handed off by another task."""
    async with Pool(CleanDriver(), max_size=1, leak_after=60.0) as pool:

        async def wait_for_it() -> None:
            async with pool.acquire():
                (info,) = pool.leases()
                assert "wait_for_it" in info.stack[0]

        async with anyio.create_task_group() as group:
            async with pool.acquire():
                group.start_soon(wait_for_it)
                await wait_all_tasks_blocked()


@RUNNERS
def test_log_handler_that_raises_does_not_end_the_pool(run: Any) -> None:
    """The warning is lost, and nothing else."""

    def emit(_: object) -> None:
        raise RuntimeError("of the handler")

    async def main() -> None:
        async with Pool(CleanDriver(), leak_after=1.0) as pool:
            async with pool.acquire():
                await anyio.sleep(5.0)
            await anyio.sleep(2.0)
            async with pool.acquire() as conn:
                assert await conn.query() == "row"

    handler = logging.Handler()
    handler.emit = emit  # type: ignore[assignment,method-assign]
    logging.getLogger("poolkit").addHandler(handler)
    try:
        run(main)
    finally:
        logging.getLogger("poolkit").removeHandler(handler)


@RUNNERS
def test_long_lease_that_was_collected_has_not_come_back(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor one of a life before."""

    async def main() -> None:
        pool = Pool(CleanDriver(), leak_after=1.0)
        async with pool:
            kept = [await pool.acquire()]
            await anyio.sleep(3.0)

            async def drop() -> None:
                kept.clear()
                await anyio.sleep(3.0)

            with pytest.warns(ResourceWarning):
                await drop()
            kept.append(await pool.acquire())
            await anyio.sleep(3.0)
            await pool.aclose(grace=0.0)
        async with pool:
            await anyio.sleep(3.0)
        assert sum("is held by" in message for message in caplog.messages) == 2
        assert "came back" not in caplog.text

    run(main)


def test_leak_after_has_to_be_seconds() -> None:
    """Like every other limit."""
    with pytest.raises(PoolConfigError, match="leak_after"):
        Pool(CleanDriver(), leak_after="1 minute")  # type: ignore[arg-type]


# -- dropped -------------------------------------------------------------------------------------


async def _reclaimed(pool: Pool[FakeConnection], driver: CleanDriver, turns: int = 2000) -> None:
    """Collect what was dropped, and wait until its connection was terminated."""
    gc.collect()
    for _ in range(turns):
        if not driver.alive:
            break
        await anyio.sleep(0.001)
    assert not driver.alive
    assert pool.stats().leased == 0
    assert gone(pool.stats()) == {"broken": 1}


async def test_handle_dropped_in_a_cycle_is_reclaimed_by_the_collector() -> None:
    """Its connection is terminated, and the stack says where it came from."""
    driver = CleanDriver()
    async with Pool(driver, min_size=0, max_size=1, leak_after=60.0) as pool:

        async def drop() -> None:
            cycle: list[Any] = [await pool.acquire()]
            cycle.append(cycle)

        await drop()
        assert pool.stats().leased == 1
        with pytest.warns(ResourceWarning, match=r"never released; acquired at .*in .*drop\n +/"):
            await _reclaimed(pool, driver)


async def test_handle_dropped_in_another_thread_is_reclaimed() -> None:
    """On the loop's own thread, which is woken up for it."""
    driver = CleanDriver()
    async with Pool(driver, min_size=0, max_size=1) as pool:
        kept = [await pool.acquire()]
        threads: set[int] = set()
        terminate = driver.terminate

        def noted(c: FakeConnection) -> None:
            threads.add(threading.get_ident())
            terminate(c)

        driver.terminate = noted  # type: ignore[method-assign]
        pool._hooks.terminate = noted  # type: ignore[assignment,method-assign]

        async def drop() -> None:
            await anyio.to_thread.run_sync(kept.clear)
            await _reclaimed(pool, driver)

        with pytest.warns(ResourceWarning, match="never released"):
            await drop()
        assert threads == {threading.get_ident()}


def test_handle_dropped_after_the_loop_has_ended_says_no_more() -> None:
    """Its connection has ended with the loop, and that was told."""
    driver = CleanDriver()
    pool = Pool(driver)
    kept: list[Any] = []

    async def main() -> None:
        await pool.open()
        kept.append(await pool.acquire())

    with pytest.warns(ResourceWarning, match="was never closed"):
        asyncio.run(main())
    assert not driver.alive
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept.clear()


# -- the end of the process ----------------------------------------------------------------------

ENDS = {
    "leaves it open": "await pool.open()",
    "holds a connection": "await pool.open(); kept.append(await pool.acquire())",
    "is in a block": "await pool.open(); await pool.acquire().__aenter__()",
    "waits for a connection": (
        "await pool.open(); kept.append(await pool.acquire())\n"
        "    kept.append(asyncio.ensure_future(pool.acquire(timeout=None)._acquire()))\n"
        "    await asyncio.sleep(0.01)"
    ),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "url", ["fake", "sqlite+aiosqlite:///{}/a.db", "sqlite+threads:///{}/a.db"]
)
@pytest.mark.parametrize(
    "run",
    [
        "asyncio.run(main())",
        "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()",
    ],
    ids=["run", "close"],
)
def test_pool_never_closed_lets_the_program_end_and_says_so(
    end: str, url: str, run: str, tmp_path: Path
) -> None:
    """`asyncio.run` returns, no thread holds the interpreter, and the warning names the pool."""
    make = "Pool(CleanDriver(), max_size=1, name='shop')"
    if url != "fake":
        make = f"poolkit.create_pool({url.format(tmp_path)!r}, max_size=1, name='shop')"
    root = str(Path(__file__).resolve().parents[2])
    program = f"""
import asyncio, sys
sys.path.insert(0, {root!r})
import poolkit
from poolkit import Pool
from tests.fakes import CleanDriver
pool = {make}
kept = []
async def main():
    {ENDS[end]}
{run}
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ended"
    assert done.stderr.count("pool 'shop' was never closed") == 1, done.stderr
    if "asyncio.run" in run:
        assert "Exception ignored" not in done.stderr


def test_pool_that_was_closed_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """Nor one that was never opened."""

    async def main() -> None:
        async with Pool(CleanDriver()) as pool, pool.acquire():
            pass

    asyncio.run(main())
    trio.run(main)
    Pool(CleanDriver())
    gc.collect()
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


def test_pool_never_closed_on_trio_says_so() -> None:
    """The run ends all the same."""
    driver = CleanDriver()
    pool = Pool(driver, name="shop")

    async def main() -> None:
        await pool.open()

    with pytest.warns(ResourceWarning, match="'shop' was never closed"):
        trio.run(main)
    assert not driver.alive


@pytest.mark.filterwarnings("ignore:.*was never awaited")
def test_pool_on_a_loop_that_was_closed_without_a_word_is_told_of_at_exit() -> None:
    """Once; and one that is opened and closed again no more."""
    driver = CleanDriver()
    pool = Pool(driver, name="forgotten")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.open())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # as meant here
    loop.close()
    with pytest.warns(ResourceWarning, match="'forgotten' was never closed"):
        poolkit._shell.life._at_exit()
    anyio.run(pool.aclose)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        poolkit._shell.life._at_exit()
    assert not driver.alive
