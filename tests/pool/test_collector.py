"""The garbage collector strikes at every line of the heart, and Ctrl-C does so on trio.

A collected task's `finally` runs in the loop's own thread, in the middle of whatever line allocated:
a release inside a release. Here it runs at each line of a life of the pool in turn, and afterwards
nothing may be lost.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import poolkit
from poolkit import NotLeased, Pool, PoolError, PoolTimeout
from poolkit.testing._invariants import check_state
from tests.effort import CASE, SHARE, again, each
from tests.fakes import FakeConnection, FullDriver
from tests.pool.storm import come_to_rest
from tests.pool.virtual import on_asyncio, on_trio, on_workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="sys.monitoring came with Python 3.12"
)

monitoring: Any = getattr(sys, "monitoring", None)

Line = tuple[CodeType, int]
Strike = Callable[[Pool[FakeConnection], list[FakeConnection]], None]

#: Around those who wait in a life of a pool.
SCOPES: list[anyio.CancelScope] = []


@contextlib.contextmanager
def watching(codes: Iterable[CodeType], at: Callable[[CodeType, int], object]) -> Iterator[None]:
    """Call ``at`` before each line of these while the block runs."""
    tool, line = monitoring.DEBUGGER_ID, monitoring.events.LINE
    codes = list(codes)
    if monitoring.get_tool(tool) is None:
        monitoring.use_tool_id(tool, "strike")
    try:
        monitoring.register_callback(tool, line, at)
        for code in codes:
            monitoring.set_local_events(tool, code, line)
        yield
    finally:
        for code in codes:
            monitoring.set_local_events(tool, code, 0)
        monitoring.register_callback(tool, line, None)


def codes_of_the_heart() -> Iterator[CodeType]:
    """Return every function of the heart: neither a driver's nor of a test's tools."""
    for name, module in list(sys.modules.items()):
        if name.startswith("poolkit._"):
            for function in functions_in(vars(module).values(), name):
                yield from nested(function.__code__)


def functions_in(values: Iterable[Any], module: str) -> Iterator[Any]:
    """Return the functions and methods among them that this module defines."""
    for value in values:
        inner = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if isinstance(inner, type) and inner.__module__ == module:
            yield from functions_in(vars(inner).values(), module)
        elif isinstance(inner, FunctionType) and inner.__module__ == module:
            yield inner


def nested(code: CodeType) -> Iterator[CodeType]:
    """Return it, and the code of the functions that it makes."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested(constant)


async def life(pool: Pool[FakeConnection]) -> None:
    """Have everything happen that a pool does: what follows holds at most two of three."""
    SCOPES.clear()
    pool.stats()
    repr(pool)
    async with pool.acquire() as conn:
        await conn.query()
    async with pool.acquire() as conn:
        conn.cursor()
        pool.leases()
        async with pool.transaction():
            pool.leases()
            with contextlib.suppress(PoolTimeout):
                await pool.acquire(timeout=0.1)
            with anyio.move_on_after(0.1):
                await pool.acquire()
            with contextlib.suppress(PoolTimeout):
                await pool.acquire(timeout=0)

            async def wait() -> None:
                with anyio.CancelScope() as scope:
                    SCOPES.append(scope)
                    async with pool.acquire() as mine:
                        await mine.query()

            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                group.start_soon(wait)
                await checkpoint()
                pool.release(conn)
    await anyio.sleep(2.0)  # upkeep; and what was not heard from is pinged before its use
    async with pool.acquire() as conn:
        pool.renew()
    pool.resize(max_size=2)
    pool.resize(max_size=3)
    await anyio.sleep(0.5)


async def make(driver: FullDriver) -> Pool[FakeConnection]:
    """Return an open pool of three."""
    return await Pool(
        driver, max_size=3, deadlock="off", shedding=poolkit.CoDel(), leak_after=1.0
    ).open()


async def seen() -> list[Line]:
    """Return the lines of the heart that run in such a life."""
    lines: dict[Line, None] = {}
    for _ in range(2):  # what is remembered is worked out the first time only
        lines.clear()
        pool = await make(driver := FullDriver())
        victim = await pool.acquire()
        await victim.query()
        with watching(codes_of_the_heart(), lambda *line: lines.setdefault(line)):
            await life(pool)
        pool.release(victim)
        await come_to_rest(pool, driver)
    return list(lines)


async def struck(line: Line, strike: Strike) -> bool:
    """Let it strike the first time that this line runs, if it does; look what is left."""
    pool = await make(driver := FullDriver())
    victims = [await pool.acquire()]
    await victims[0].query()

    def at(code: CodeType, number: int) -> object:
        if number == line[1] and victims:
            strike(pool, victims)
        return None if victims else monitoring.DISABLE

    with watching([line[0]], at):
        with contextlib.suppress(PoolError):
            await life(pool)
        await anyio.sleep(0.1)
    has_struck = not victims
    for victim in victims:
        pool.release(victim)
    check_state(pool._state, pool._now())
    await come_to_rest(pool, driver)
    assert sum(pool.stats().retired.values()) == driver.calls["connect"]
    return has_struck


def releases(pool: Pool[FakeConnection], victims: list[FakeConnection]) -> None:
    """Be a `finally` that gives back; the connection is dead at once."""
    conn = victims.pop()
    pool.release(conn)
    with pytest.raises(NotLeased):
        conn.peek()
    with pytest.raises(NotLeased):
        pool.release(conn)


def forgets(pool: Pool[FakeConnection], victims: list[FakeConnection]) -> None:
    """Collect the last reference to what was leased."""
    victims.clear()


def runs_on(pool: Pool[FakeConnection], victims: list[FakeConnection]) -> None:
    """Be a `finally` that gives back, looks around, and tries to acquire, which cannot wait."""
    pool.release(victims.pop())
    pool.stats()
    pool.leases()
    pool.renew()

    async def another() -> None:
        async with pool.acquire():
            pass

    coroutine = another()
    with contextlib.suppress(PoolError, StopIteration):
        coroutine.send(None)
    with contextlib.suppress(PoolError, RuntimeError):
        coroutine.close()


def cancels(pool: Pool[FakeConnection], victims: list[FakeConnection]) -> None:
    """Be the end of an owner of tasks: it gives back, and cancels those who wait."""
    pool.release(victims.pop())
    for scope in SCOPES:
        scope.cancel()


async def in_time(run: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Notice that somebody is never woken."""
    with anyio.fail_after(600):
        return await run(*arguments)


STRIKES: list[Strike] = [releases, forgets, runs_on, cancels]
RUNS = [on_asyncio, on_workers, on_trio]
#: Of so many lines one is tried. The eight tests begin at different ones: together they try all.
STEP = max(1, round(1 / SHARE))


def called(line: Line) -> str:
    """Return the name of a line, as a failure tells it."""
    return f"{Path(line[0].co_filename).name}:{line[1]}"


def some(lines: list[Line], first: int) -> list[Line]:
    """Return each so many-th of them, or only the one that is asked for."""
    return list(each(lines, called)) if CASE is not None else lines[first % STEP :: STEP]


def check_none(failed: dict[str, BaseException], lines: list[Line]) -> None:
    """Tell all lines at which something went wrong, and how to bring back the first."""
    if failed:
        all_told = "\n".join(f"{name}: {error!r}" for name, error in failed.items())
        name = next(iter(failed))
        raise AssertionError(f"{len(failed)} of {len(lines)} lines:\n{all_told}\n{again(name)}")


@pytest.mark.parametrize("strike", STRIKES)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*never released.*:ResourceWarning")
def test_release_in_the_middle_of_any_line_loses_nothing(run: Any, strike: Strike) -> None:
    """Whatever the heart is doing, another lease ends, as the collector has it."""
    lines = run(seen)
    assert len(lines) > 600
    lines = some(lines, STRIKES.index(strike) + len(STRIKES) * RUNS.index(run))
    failed: dict[str, BaseException] = {}
    strikes = 0
    for line in lines:
        try:
            strikes += run(functools.partial(in_time, struck, line, strike))
        except BaseException as error:
            failed[called(line)] = error
    check_none(failed, lines)
    assert strikes > 0.97 * len(lines), "hardly any line depends on chance"


# -- Ctrl-C --------------------------------------------------------------------------------------


async def interrupted(line: Line) -> bool:
    """Press Ctrl-C the first time that this line runs, if it does; the caller is told of it."""
    pool = await make(driver := FullDriver())
    victim = await pool.acquire()
    await victim.query()
    pressed = False

    def at(_: CodeType, number: int) -> object:
        nonlocal pressed
        if number == line[1] and not pressed:
            pressed = True
            signal.raise_signal(signal.SIGINT)
        return monitoring.DISABLE if pressed else None

    told = False
    with watching([line[0]], at):
        try:
            await life(pool)
            await checkpoint()
        except* KeyboardInterrupt:
            told = True
    assert told == pressed, "nobody was told"
    pool.release(victim)
    await anyio.sleep(0.1)
    check_state(pool._state, pool._now())
    await come_to_rest(pool, driver)
    assert sum(pool.stats().retired.values()) == driver.calls["connect"]
    return pressed


@pytest.fixture
def _interrupts() -> Iterator[None]:
    """Have Ctrl-C do what it does in a program; who shares out tests may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interrupts")
def test_interrupt_at_any_line_loses_nothing_on_trio() -> None:
    """Ctrl-C arrives at the caller's next checkpoint, and the line runs to its end."""
    of_views = ("view.py", "view_class.py", "methods.py", "operations.py", "kinds.py")
    lines = [line for line in on_trio(seen) if not line[0].co_filename.endswith(of_views)]
    lines = some(lines, 0)
    failed: dict[str, BaseException] = {}
    presses = 0
    for line in lines:
        try:
            presses += on_trio(functools.partial(in_time, interrupted, line))
        except BaseException as error:
            failed[called(line)] = error
    check_none(failed, lines)
    assert presses > 0.97 * len(lines), "hardly any line depends on chance"


async def test_note_that_a_finalizer_sees_to_in_between_is_taken_in_once() -> None:
    """It strikes after the look whether there is one, and empties the inbox."""

    class Struck(collections.deque[Any]):
        looks = 0

        def __bool__(self) -> bool:
            is_there = len(self) > 0
            self.looks += 1
            if self.looks == 2:
                pool._drain()
            return is_there

    noted: list[str] = []
    async with Pool(FullDriver()) as pool:
        pool._inbox = Struck([lambda: noted.append("one"), lambda: noted.append("two")])
        pool._drain()
        assert noted == ["one", "two"]
