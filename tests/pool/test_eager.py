"""Resets that begin inside of release, in a task of the pool's that starts at once."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poolkit import Pool
from poolkit._shell.view import held_slot
from poolkit.testing import VirtualTimeLoop
from poolkit.testing._invariants import check_state
from tests.fakes import Boom, FakeConnection, FullDriver, gone, own
from tests.pool.storm import come_to_rest
from tests.pool.test_gates import RudeError
from tests.pool.virtual import on_asyncio

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="tasks start at once from Python 3.12 on"
)

PLACE = contextvars.ContextVar("PLACE", default="nowhere")


class NotingDriver(FullDriver):
    """A driver that is never clean, and notes in which tasks and contexts it resets."""

    def __init__(self, **script: list[Any]) -> None:
        super().__init__(**script)
        self.resets: list[tuple[Any, str]] = []

    def is_clean(self, c: FakeConnection) -> bool:
        """Have every lease followed by a reset."""
        return False

    async def reset(self, c: FakeConnection, /) -> str | None:
        """Note who does it."""
        self.resets.append((asyncio.current_task(), PLACE.get()))
        PLACE.set("reset")
        return await super().reset(c)


async def use(pool: Pool[FakeConnection]) -> FakeConnection:
    """Acquire, and do something."""
    conn = await pool.acquire()
    await conn.query()
    return conn


LOOPS = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(
            ("asyncio", {"use_uvloop": True}),
            id="uvloop",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop"),
        ),
    ],
)


@LOOPS
async def test_reset_begins_in_release_in_a_task_and_the_context_of_the_pools() -> None:
    """Its first step has been made when release returns; the releaser goes on as before."""
    driver = NotingDriver()
    PLACE.set("opened")
    async with Pool(driver, max_size=1) as pool:
        PLACE.set("released")
        for _ in range(3):
            conn = await use(pool)
            pool.release(conn)
            assert pool.stats().recycling == 1
            task, place = driver.resets.pop()
            assert not driver.resets
            assert task not in (None, asyncio.current_task())
            assert task.get_name() == "poolkit reset"
            assert place == "opened"  # also if an earlier reset has left another one
            assert PLACE.get() == "released"


async def not_at_once(pool: Pool[FakeConnection], driver: NotingDriver) -> None:
    """Check that a reset was left to a worker, and is done."""
    async with pool.acquire():
        assert len(driver.resets) == 1
        assert driver.resets.pop()[0].get_name() != "poolkit reset"


@LOOPS
async def test_reset_is_left_to_a_worker_where_nothing_may_start_at_once() -> None:
    """Out of a callback; in another task; and where the program makes its tasks itself."""
    driver = NotingDriver()
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def release() -> None:
        pool.release(conn)
        assert not driver.resets
        done.set()

    async def release_in_a_task() -> None:
        release()

    async with Pool(driver, max_size=1) as pool:
        conn = await use(pool)
        loop.call_soon(release)
        await done.wait()
        await not_at_once(pool, driver)

        conn = await use(pool)
        await asyncio.create_task(release_in_a_task())
        await not_at_once(pool, driver)

        conn = await use(pool)
        loop.set_task_factory(lambda loop, coro, **more: asyncio.Task(coro, loop=loop, **more))
        release()
        await not_at_once(pool, driver)
        loop.set_task_factory(None)

        conn = await use(pool)
        pool.release(conn)
        assert driver.resets.pop()[0].get_name() == "poolkit reset"


@LOOPS
@pytest.mark.parametrize("doubt", ["busy", "cancelled"])
async def test_reset_of_what_is_in_doubt_is_left_to_a_worker(doubt: str) -> None:
    """Its operation has to be ended first, or to be waited for."""
    driver = NotingDriver()
    async with Pool(driver, max_size=1) as pool:
        conn = await use(pool)
        slot = held_slot(conn)
        if doubt == "busy":
            slot.busy += 1
        else:
            slot.cancelled = True
        pool.release(conn)
        assert not driver.resets
        slot.busy = 0
        async with pool.acquire():
            assert driver.resets[0][0].get_name() != "poolkit reset"


class OldLoop(asyncio.SelectorEventLoop):
    """A loop that makes tasks in its own way, and knows none that start at once."""

    def create_task(  # type: ignore[override]
        self, coro: Any, *, name: Any = None, context: Any = None
    ) -> Any:
        """Make one."""
        return asyncio.Task(coro, loop=self, name=name, context=context)


class LateLoop(asyncio.SelectorEventLoop):
    """A loop that takes the argument, and starts its tasks later all the same."""

    def create_task(  # type: ignore[override]
        self, coro: Any, *, eager_start: bool = False, **more: Any
    ) -> Any:
        """Make one."""
        return asyncio.Task(coro, loop=self, **more)


@pytest.mark.parametrize("kind", [OldLoop, LateLoop])
def test_loop_that_starts_nothing_at_once_has_workers(
    kind: type[asyncio.SelectorEventLoop],
) -> None:
    """That is tried, and not concluded from a version."""
    driver = NotingDriver()

    async def main() -> None:
        async with Pool(driver, max_size=1) as pool:
            conn = await use(pool)
            pool.release(conn)
            await not_at_once(pool, driver)

    with asyncio.Runner(loop_factory=kind) as runner:
        runner.run(main())


@pytest.mark.parametrize("waiters", [0, 300])
def test_driver_that_never_yields_serves_one_after_the_other(waiters: int) -> None:
    """Release, reset, hand-off, release: no stack grows by it."""
    driver = NotingDriver()

    async def step(call: str) -> None:
        driver.calls[call] += 1

    driver.step = step  # type: ignore[method-assign]

    async def user(pool: Pool[FakeConnection]) -> None:
        async with pool.acquire() as conn:
            own(conn).dirty = True

    async def main() -> None:
        async with Pool(driver, max_size=1) as pool:
            conn = await use(pool)
            users = [asyncio.create_task(user(pool)) for _ in range(waiters)]
            await asyncio.sleep(0)
            pool.release(conn)
            assert pool.stats().recycling == 0
            assert len(driver.resets) == 1
            await asyncio.gather(*users)
            await come_to_rest(pool, driver)

    on_asyncio(main)


@pytest.mark.parametrize("error", [Boom("at once"), RudeError("at once"), None])
@pytest.mark.parametrize("late", [False, True])
def test_reset_that_fails_costs_its_connection(error: BaseException | None, *, late: bool) -> None:
    """At its first step, or later; or it hangs until its limit."""
    driver = NotingDriver()

    async def step(call: str) -> None:
        driver.calls[call] += 1
        if call == "reset" and driver.calls[call] == 1:
            if late:
                await anyio.sleep(0.5)
            if error is None:
                await anyio.sleep_forever()
            else:
                raise error

    driver.step = step  # type: ignore[method-assign]

    async def main() -> None:
        pool = await Pool(driver, max_size=1, reset_timeout=2.0).open()
        begin = asyncio.get_running_loop().time()
        pool.release(await use(pool))
        assert len(driver.resets) == 1
        async with pool.acquire() as conn:
            assert conn.number == 2
            took = asyncio.get_running_loop().time() - begin
            assert took == (2.0 if error is None else 0.5 if late else 0.0)
            assert gone(pool.stats()) == {"broken": 1}
        with pytest.raises(RudeError) if isinstance(error, RudeError) else contextlib.nullcontext():
            await pool.aclose()
        await come_to_rest(pool, driver)

    on_asyncio(main)


def test_driver_that_releases_in_its_reset_starts_no_other_inside() -> None:
    """The second one is left to a worker: it could go on and on."""
    kept: list[FakeConnection] = []
    depth = 0

    class Releasing(NotingDriver):
        async def reset(self, c: FakeConnection, /) -> str | None:
            nonlocal depth
            depth += 1
            assert depth == 1
            if kept:
                pool.release(kept.pop())
            depth -= 1
            return await super().reset(c)

    driver = Releasing()
    pool = Pool(driver, max_size=3)

    async def main() -> None:
        async with pool:
            kept.extend([await use(pool) for _ in range(3)])
            pool.release(kept.pop())
            await asyncio.sleep(1.0)
            assert len(driver.resets) == 3
            await come_to_rest(pool, driver)

    on_asyncio(main)


def test_close_waits_for_a_reset_that_takes_its_time() -> None:
    """It is a task that the root task does not wait for, and is waited for all the same."""
    driver = NotingDriver()

    async def step(call: str) -> None:
        if call == "reset":
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(0.5)
                raise

    driver.step = step  # type: ignore[method-assign]

    async def main() -> None:
        pool = await Pool(driver, max_size=1, reset_timeout=None).open()
        pool.release(await use(pool))
        closing = asyncio.create_task(pool.aclose())
        await asyncio.sleep(1.0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert asyncio.all_tasks() == {asyncio.current_task()}

    on_asyncio(main)
    assert not driver.alive


def test_end_of_the_run_ends_a_reset_under_way() -> None:
    """Its task is one of those that the end of a run cancels and waits for."""
    driver = NotingDriver(reset=[3600.0])

    async def main() -> None:
        pool = await Pool(driver, max_size=1, reset_timeout=None).open()
        pool.release(await use(pool))
        assert pool.stats().recycling == 1

    on_asyncio(main)
    assert not driver.alive


class Dirty(FullDriver):
    """A driver that is never clean."""

    def is_clean(self, c: FakeConnection) -> bool:
        """Have every lease followed by a reset."""
        return False


def deep(left: int, call: Callable[[], object]) -> None:
    """Call with so many frames left on the stack, about."""

    def deeper(frames: int) -> None:
        if frames:
            deeper(frames - 1)
        else:
            call()

    here, frame = 0, sys._getframe()
    while frame is not None:
        here, frame = here + 1, frame.f_back  # type: ignore[assignment]
    deeper(max(0, sys.getrecursionlimit() - here - left))


def test_release_with_hardly_any_stack_left_loses_nothing() -> None:
    """Whichever line of release, or of the reset in it, finds none: that costs the connection."""

    async def main() -> None:
        for left in range(2, 60):
            driver = Dirty()
            async with Pool(driver, max_size=1) as pool:
                conn = await use(pool)
                with contextlib.suppress(RecursionError):
                    deep(left, functools.partial(pool.release, conn))
                with contextlib.suppress(Exception):
                    pool.release(conn)  # it may not have begun
                await anyio.sleep(3.0)
                check_state(pool._state, pool._now())
                assert pool.stats().leased == 0
                async with pool.acquire() as conn:
                    assert not own(conn).dirty
                await come_to_rest(pool, driver)

    on_asyncio(main)


def test_loop_of_virtual_time_starts_tasks_at_once() -> None:
    """Or most of these tests would show nothing."""
    driver = NotingDriver()

    async def main() -> None:
        async with Pool(driver, max_size=1) as pool:
            pool.release(await use(pool))
            assert len(driver.resets) == 1

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


def fail_once(runtime: Any, name: str, error: BaseException) -> None:
    """Have one call of the runtime's raise: there is no stack for it, say."""
    real = getattr(runtime, name)

    def fail(*_: object, **__: object) -> None:
        setattr(runtime, name, real)
        raise error

    setattr(runtime, name, fail)


@LOOPS
@pytest.mark.parametrize("error", [RecursionError, asyncio.CancelledError])
async def test_reset_that_breaks_off_between_two_lines_costs_its_connection(
    error: type[BaseException],
) -> None:
    """Whoever waits gets another one."""
    driver = NotingDriver()
    async with Pool(driver, max_size=1) as pool:
        conn = await use(pool)
        fail_once(pool._runtime, "read_clock", error("no stack"))
        pool.release(conn)
        async with pool.acquire():
            assert pool.stats().connected == 2
        await come_to_rest(pool, driver)


@LOOPS
async def test_task_that_cannot_be_made_leaves_the_reset_to_a_worker() -> None:
    """The releaser is told that there was no stack; the connection is given back all the same."""
    driver = NotingDriver()
    async with Pool(driver, max_size=1) as pool:
        conn = await use(pool)
        fail_once(pool._runtime, "_make_eager", RecursionError("no stack"))
        with pytest.raises(RecursionError, match="no stack"):
            pool.release(conn)
        await not_at_once(pool, driver)
        assert pool.stats().connected == 1


@LOOPS
async def test_task_that_ends_before_its_first_line_leaves_the_reset_to_a_worker() -> None:
    """Its error is seen: the loop does not complain of it."""
    driver = NotingDriver()
    async with Pool(driver, max_size=1) as pool:
        conn = await use(pool)

        def make(steps: Any, **_: object) -> Any:
            steps.close()
            failed = asyncio.get_running_loop().create_future()
            failed.set_exception(RecursionError("no stack"))
            return failed

        pool._runtime._make_eager = make  # type: ignore[union-attr]
        pool.release(conn)
        await not_at_once(pool, driver)
