"""Loops, libraries and programs that do things in their own way."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

import poolkit
from poolkit import ConnectFailed, NotLeased, Pool, PoolError, PoolTimeout, Verdict
from poolkit._shell.log import Told
from poolkit._shell.view_class import view_class
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeDriver, FullDriver, own
from tests.pool.virtual import RUNNERS, on_asyncio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine


# -- task factories ------------------------------------------------------------------------------


class PlainTask(asyncio.Task[Any]):
    """What some factories return."""


def two_arguments(loop: Any, coro: Any) -> asyncio.Task[Any]:
    """Take what asyncio's first task factories took."""
    return PlainTask(coro, loop=loop)


def no_context(loop: Any, coro: Any, *, name: str | None = None) -> asyncio.Task[Any]:
    """Take no context."""
    return PlainTask(coro, loop=loop, name=name)


EAGER = pytest.param(
    getattr(asyncio, "eager_task_factory", None),
    id="eager",
    marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12"),
)


@pytest.mark.parametrize("factory", [two_arguments, no_context, EAGER])
@pytest.mark.parametrize("from_a_callback", [True, False])
def test_task_factory_need_not_know_of_contexts(factory: Any, *, from_a_callback: bool) -> None:
    """Jobs run in the context in which the pool was opened all the same."""
    place = contextvars.ContextVar("place", default="nowhere")
    seen = []

    class Noting(CleanDriver):
        async def reset(self, c: FakeConnection, /) -> str | None:
            seen.append(place.get())
            return await super().reset(c)

        async def connect(self) -> FakeConnection:
            seen.append(place.get())
            return await super().connect()

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        place.set("opened")
        pool = Pool(Noting(), min_size=1, max_size=2)
        await pool.open()
        place.set("later")
        connections = [await pool.acquire(), await pool.acquire()]
        for connection in connections:
            await connection.query()
            own(connection).in_transaction = True

        def give_back() -> None:
            for connection in connections:
                pool.release(connection)

        if from_a_callback:
            asyncio.get_running_loop().call_soon(give_back)
        else:
            give_back()
        await asyncio.sleep(1.0)
        assert pool.stats().idle == 2
        await pool.aclose()
        assert seen == ["opened"] * 4

    on_asyncio(main)


# -- cancellations that come together with a deadline --------------------------------------------


class Deaf(FakeDriver):
    """One whose calls ignore their cancellation for a while."""

    async def connect(self) -> FakeConnection:
        """Take longer than anybody waits."""
        with anyio.CancelScope(shield=True):
            await anyio.sleep(30.0)
        return await super().connect()


#: A task that a deadline and somebody else cancel in one turn may see one of the two only: which of
#: them comes first, the loop decides, and so it is tried both ways.
SOON = pytest.mark.parametrize("soon", [False, True], ids=["at once", "soon"])


async def check_cancelled(
    seconds: float, run: Callable[[], Coroutine[Any, Any, Any]], *, soon: bool
) -> None:
    """Check that a task that is cancelled in so many seconds, and not done then, ends like that."""
    loop = asyncio.get_running_loop()
    cancel_at = loop.time() + seconds
    task = loop.create_task(run())
    await asyncio.sleep(0)
    requested: list[bool] = []

    def cancel() -> None:
        requested.append(task.cancel())

    loop.call_at(cancel_at, (lambda: loop.call_soon(cancel)) if soon else cancel)
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert requested == [task.cancelled()], "the cancellation was lost"
    if not task.cancelled():
        assert isinstance(task.exception(), (PoolTimeout, Boom, type(None)))


@SOON
def test_cancelling_a_close_as_its_grace_ends_is_not_lost(*, soon: bool) -> None:
    """Before 4.16, anyio takes the one for the other; the pool is closed all the same."""

    async def main() -> None:
        pool = await Pool(CleanDriver(), max_size=1).open()
        held = await pool.acquire()
        await check_cancelled(5.0, lambda: pool.aclose(grace=5.0), soon=soon)
        assert pool.stats().size == 0
        with pytest.raises(NotLeased):
            await held.query()

    on_asyncio(main)


@SOON
@pytest.mark.parametrize("seconds", [2.0 + 1.0 + 1.0 + 0.5, 2.0 + 1.0 + 1.0 + 0.5 + 1.0])
def test_cancelling_a_close_as_its_patience_with_the_driver_ends_is_not_lost(
    seconds: float, *, soon: bool
) -> None:
    """After the limits of its calls, and after a second more."""

    async def main() -> None:
        driver = Deaf()
        pool = await Pool(driver, min_size=0, max_size=1).open()
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.1)
        await check_cancelled(seconds, pool.aclose, soon=soon)
        await asyncio.sleep(100.0)
        assert pool.stats().size == 0
        assert not driver.alive

    on_asyncio(main)


@SOON
def test_cancelling_a_caller_when_the_time_of_its_hook_ends_is_not_lost(*, soon: bool) -> None:
    """The connection goes back, and the caller does not go on."""

    async def hook(_: FakeConnection) -> None:
        await asyncio.sleep(100.0)

    async def main() -> None:
        async with Pool(CleanDriver(), max_size=1, on_acquire=hook) as pool:
            await check_cancelled(5.0, lambda: pool.acquire(timeout=5.0).__aenter__(), soon=soon)
            await asyncio.sleep(1.0)
            assert pool.stats().idle == 1

    on_asyncio(main)


@SOON
def test_cancelling_a_caller_when_the_time_of_its_rollback_ends_is_not_lost(*, soon: bool) -> None:
    """The reset rolls back."""

    async def main() -> None:
        async with Pool(FullDriver(rollback=[...]), max_size=1, reset_timeout=2.0) as pool:

            async def work() -> None:
                async with pool.transaction():
                    raise Boom

            await check_cancelled(2.0, work, soon=soon)
            await asyncio.sleep(5.0)
            assert pool.stats().idle == 1

    on_asyncio(main)


# -- refusals in a loop --------------------------------------------------------------------------


async def has_others_run(attempt: Callable[[], Awaitable[object]]) -> bool:
    """Try again and again; return whether a task beside that gets its turns."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        await anyio.lowlevel.checkpoint()
        for _ in range(100):
            with pytest.raises(PoolError):
                await attempt()
        group.cancel_scope.cancel()
    return turns >= 100


@RUNNERS
@pytest.mark.parametrize("refused", ["full", "no time", "down", "deadlock", "closed", "new"])
def test_refusal_lets_others_run(run: Any, refused: str) -> None:
    """A caller who tries again at once would stop all others, and the connections with them."""

    async def main() -> None:
        if refused in ("closed", "new"):
            pool: Pool[Any] = Pool(CleanDriver(), min_size=0)
            if refused == "closed":
                await pool.open()
                await pool.aclose()
            assert await has_others_run(pool.acquire)
            return
        if refused == "down":
            driver = FullDriver(connect=[Boom()] * 1000)
            driver.verdicts[Boom] = Verdict.FATAL
            async with Pool(driver, min_size=0, backoff_min=50.0, backoff_max=50.0) as pool:
                with pytest.raises(ConnectFailed):
                    await pool.acquire()
                assert await has_others_run(pool.acquire)
            return
        limit = 0 if refused == "full" else None
        async with Pool(CleanDriver(), max_size=1, max_waiting=limit) as pool, pool.acquire():
            timeout = 0.0 if refused == "no time" else 10.0
            assert await has_others_run(lambda: pool.acquire(timeout=timeout)._acquire())

    run(main)


@RUNNERS
@pytest.mark.parametrize("refused", ["full", "no time", "deadlock", "closed"])
def test_cancelling_a_caller_as_it_is_refused_loses_nothing(run: Any, refused: str) -> None:
    """It owns nothing, and is counted once."""

    async def main() -> None:
        limit = 0 if refused == "full" else None
        pool: Pool[Any] = Pool(CleanDriver(), max_size=1, max_waiting=limit)
        await pool.open()
        held = await pool.acquire()
        if refused == "closed":
            pool.release(held)
            await pool.aclose()
        before = sum(ends(pool))
        timeout = 0.0 if refused == "no time" else 10.0
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.acquire(timeout=timeout)
        assert scope.cancelled_caught
        assert sum(ends(pool)) == before + 1
        if refused != "closed":
            pool.release(held)
            async with pool.acquire():
                assert pool.stats().leased == 1
            await pool.aclose()
        assert pool.stats().size == pool.stats().waiting == 0

    run(main)


def ends(pool: Pool[Any]) -> tuple[int, ...]:
    """Return how the acquires have ended so far."""
    s = pool.stats()
    ended = (s.direct, s.waited, s.timed_out, s.cancelled, s.busy, s.shed, s.deadlocked, s.failed)
    return (*ended, s.closed)


# -- what is remembered --------------------------------------------------------------------------


def test_what_was_told_is_remembered_up_to_a_thousand_things() -> None:
    """The oldest is forgotten first: at worst it is told once more."""
    told = Told()
    for number in range(3000):
        assert number not in told
        told.add(number)
        told.add(number)
        assert number in told
    assert sum(number in told for number in range(3000)) == 1000
    assert 2000 in told


def test_places_that_left_something_behind_are_not_remembered_without_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Generated code has ever new ones."""

    async def main() -> None:
        driver = FakeDriver()
        async with Pool(driver, max_size=1) as pool:
            for number in range(1100):
                driver.note = f"thing {number}"
                async with pool.acquire() as connection:
                    await connection.query()
            async with pool.acquire():
                reports = pool._life.workers._reports  # type: ignore[union-attr]
                assert len(reports._left_behind._things) <= 1000

    on_asyncio(main)
    assert len(caplog.messages) > 1000


def test_view_classes_of_connection_classes_that_are_gone_go_too() -> None:
    """A library may make a class for each connection."""
    kinds = []
    for _ in range(600):
        kind = type("Connection", (), {"query": lambda _: None})
        assert view_class(kind) is view_class(kind)
        kinds.append(weakref.ref(kind))
        del kind
    gc.collect()
    assert sum(kind() is not None for kind in kinds) <= 256


def test_files_that_made_sessions_are_not_remembered_without_end() -> None:
    """Code that is made while the program runs has a name of its own each time."""
    pytest.importorskip("sqlalchemy")
    from poolkit.sqlalchemy import _pool  # it may not be installed

    for number in range(3000):
        assert _pool._is_users(f"<made {number}>")
        assert len(_pool._users) <= 1000


def test_dependencies_with_settings_are_not_remembered_without_end() -> None:
    """An application may make them of anything."""
    pytest.importorskip("fastapi")
    import poolkit.fastapi  # it may not be installed

    made = poolkit.fastapi.transaction_with(mode="0")
    assert poolkit.fastapi.transaction_with(mode="0") is made
    dependencies = poolkit.fastapi.for_pool("replica")
    for number in range(1100):
        dependencies.transaction_with(mode=str(number))
    assert dependencies._transaction.cache_info().currsize == 1000


def test_every_cache_has_a_bound() -> None:
    """Or holds what it is about weakly: a service runs for months."""
    source = Path(poolkit.__file__).parent
    unbounded = [
        f"{path.relative_to(source)}: {line}"
        for path in source.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"@(functools\.)?cache$|lru_cache(\(None|\(maxsize=None)", line.strip())
    ]
    assert unbounded == []


# -- a bare installation -------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["fastapi", "sqlalchemy", "asyncpg", "aiosqlite", "pytest"])
def test_star_import_needs_nothing_that_may_not_be_installed(missing: str) -> None:
    """The parts are imported by their names."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from poolkit import *\n"
        "print(Pool.__name__, 'fastapi' in globals(), 'fastapi' in dir(sys.modules['poolkit']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "Pool False True"
