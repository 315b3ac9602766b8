"""Drivers, hooks and policies that raise what they must not: each costs its connection, at most."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

import poolkit
from poolkit import NotLeased, Pool, PoolClosed, PoolUnavailable, Verdict
from poolkit.testing._invariants import check_state
from tests.fakes import Boom, FakeConnection, FullDriver
from tests.pool.storm import come_to_rest, until_quiet
from tests.pool.test_gates import RudeError, swallow_a_cancellation
from tests.pool.virtual import only_workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Unprintable(Exception):
    """An error that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __str__(self) -> str:
        raise RudeError("no str")


#: What is raised, and whether the user is to see it again when the pool is closed.
KINDS: dict[str, tuple[Callable[[], BaseException], bool]] = {
    "error": (lambda: Boom("an ordinary one"), False),
    "cancellation": (lambda: asyncio.CancelledError("its own"), False),
    "unprintable": (Unprintable, False),
    "group": (lambda: BaseExceptionGroup("", [asyncio.CancelledError(), Boom("x")]), False),
    "base": (lambda: RudeError("rude"), True),
    "generator exit": (lambda: GeneratorExit("its own"), True),
    "rude group": (lambda: BaseExceptionGroup("", [Boom("x"), RudeError("rude")]), True),
}
ASYNC = ("connect", "on_connect", "ping", "reset", "on_close", "close")
SYNC = ("is_dead", "is_clean", "revoke", "classify", "terminate", "watch")


class RudeDriver(FullDriver):
    """A driver of which one call raises something once, when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.call = ""
        self.error: BaseException | None = None

    def meet(self, call: str) -> None:
        """Raise it."""
        if call == self.call and self.error is not None:
            error, self.error = self.error, None
            raise error

    async def step(self, call: str) -> None:
        """Do what every asynchronous call does."""
        await super().step(call)
        self.meet(call)

    def hook(self, name: str) -> Any:
        """Return a hook that does so too."""

        async def hook(_: FakeConnection) -> None:
            await self.step(name)

        return hook

    def is_dead(self, c: FakeConnection, /) -> bool:
        """Raise it, or answer."""
        self.meet("is_dead")
        return super().is_dead(c)

    def is_clean(self, c: FakeConnection) -> bool:
        """Raise it, or answer."""
        self.meet("is_clean")
        return super().is_clean(c)

    def revoke(self, c: FakeConnection) -> None:
        """Raise it, or end what was made."""
        self.meet("revoke")
        super().revoke(c)

    def classify(self, exc: BaseException, c: FakeConnection | None) -> Verdict | None:
        """Raise it, or say nothing."""
        self.meet("classify")
        return super().classify(exc, c)

    def terminate(self, c: FakeConnection, /) -> None:
        """End the connection, and raise it."""
        super().terminate(c)
        self.meet("terminate")

    def watch(self, c: FakeConnection, dead: Any) -> None:
        """Raise it, or remember whom to tell."""
        self.meet("watch")
        super().watch(c, dead)


async def live_through(pool: Pool[FakeConnection], driver: RudeDriver) -> int:
    """Have every call happen, with others at work and in line; return how many were served."""
    served = 0

    async def user(how: str) -> None:
        nonlocal served
        for _ in range(5):
            with contextlib.suppress(Boom, PoolUnavailable):
                async with pool.acquire() as conn:
                    await conn.query()
                    if how == "derive":
                        conn.cursor()
                    if how == "fail":
                        served += 1
                        raise Boom("of the block")
                served += 1
                return

    for _ in range(2):
        async with anyio.create_task_group() as group:
            for how in ("plain", "derive", "fail", "plain", "derive"):
                group.start_soon(user, how)
        pool.renew()
        with contextlib.suppress(PoolUnavailable):
            async with pool.acquire() as conn:
                conn._poolkit_slot.connection.dead = True  # type: ignore[attr-defined]
    return served


async def test_driver_that_raises_when_the_pool_opens_keeps_it_from_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is only told; the log says so."""

    class Rude(FullDriver):
        def pool_opens(self) -> None:
            raise Boom("not ready")

    async with Pool(Rude()) as pool, pool.acquire() as conn:
        assert await conn.query() == "row"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "pool_opens" in record.getMessage()
    assert "not ready" in record.getMessage()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ASYNC + SYNC)
async def test_call_that_raises_costs_its_connection_at_most(
    call: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is, others go on, it is logged, and what nobody catches is seen at the end."""
    caplog.set_level(logging.DEBUG, "poolkit")
    make, seen_again = KINDS[kind]
    driver = RudeDriver()
    hooks = {name: driver.hook(name) for name in ASYNC if name.startswith("on_")}
    pool = await Pool(driver, max_size=2, ping_after=0.0, acquire_timeout=5.0, **hooks).open()
    error = make()
    driver.call, driver.error = call, error
    assert await live_through(pool, driver) >= 10
    if driver.error is not None:  # what happens at the end only
        assert call in ("on_close", "close", "terminate", "classify")
    check_state(pool._state, pool._now())
    with pytest.raises(type(error)) if seen_again else contextlib.nullcontext():
        await pool.aclose()
    assert driver.error is None
    assert not driver.alive
    if kind not in ("error", "unprintable") or call in SYNC:
        assert type(error).__name__ in caplog.text
    await come_to_rest(pool, driver)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "error"])
async def test_first_connect_that_raises_anything_is_told_to_who_opens(kind: str) -> None:
    """The pool is closed then, and may be opened again."""
    make, seen_again = KINDS[kind]
    error = make()
    driver = RudeDriver()
    driver.call, driver.error = "connect", error
    pool = Pool(driver)
    with pytest.raises(type(error) if seen_again else PoolUnavailable) as told:
        await pool.open()
    assert told.value is error or told.value.__cause__ is error or seen_again
    async with pool, pool.acquire() as conn:
        assert await conn.query() == "row"


class RudePolicy:
    """A policy that sheds nobody, and raises once, or says what is no time."""

    def __init__(self, call: str, error: BaseException | None, answer: Any = poolkit.CoDel) -> None:
        self.call = call
        self.error = error
        self.answer = answer

    def meet(self, call: str, answer: Any = None) -> Any:
        """Raise it, or answer."""
        if call == self.call:
            if self.error is not None:
                error, self.error = self.error, None
                raise error
            if call == "refuse_at" and self.answer is not poolkit.CoDel:
                return self.answer
        return answer

    def begin(self) -> RudePolicy:
        """Decide for one pool."""
        self.meet("begin")
        return self

    def left(self, since: float, now: float, *, served: bool) -> None:
        """Note that somebody is served, or gone."""
        self.meet("left")

    def rest(self) -> None:
        """Note that nobody waits."""
        self.meet("rest")

    def refuse_at(self, since: float) -> float:
        """Refuse nobody."""
        when: float = self.meet("refuse_at", float("inf"))
        return when


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["left", "rest", "refuse_at"])
async def test_policy_that_raises_costs_nobody_anything(
    call: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Everybody is served in turn, and the error is logged."""
    make, seen_again = KINDS[kind]
    policy = RudePolicy(call, make())
    driver = RudeDriver()
    pool = await Pool(driver, max_size=2, shedding=policy).open()
    assert await live_through(pool, driver) >= 10
    assert policy.error is None
    assert f"RudePolicy.{call} raised" in caplog.text
    check_state(pool._state, pool._now())
    with pytest.raises(BaseException) if seen_again else contextlib.nullcontext():
        await pool.aclose()
    policy.call = ""
    await come_to_rest(pool, driver)


@pytest.mark.parametrize("answer", [None, float("nan"), "soon", [], complex(1)])
async def test_policy_that_answers_nonsense_sheds_nobody(answer: Any) -> None:
    """What is no time is never."""
    driver = RudeDriver()
    policy = RudePolicy("refuse_at", None, answer)
    async with Pool(driver, max_size=2, shedding=policy) as pool:
        assert await live_through(pool, driver) >= 10
        assert pool.stats().shed == 0


async def test_policy_that_cannot_begin_is_told_to_who_opens() -> None:
    """The pool is closed then, and may be opened again."""
    error = RudeError("cannot begin")
    pool = Pool(RudeDriver(), shedding=RudePolicy("begin", error))
    with pytest.raises(RudeError):
        await pool.open()
    async with pool, pool.acquire() as conn:
        assert await conn.query() == "row"


@pytest.mark.parametrize("note", [["a", "b"], {"a": 1}, 7, True, b"x", Unprintable()])
async def test_reset_that_returns_anything_is_a_reset(
    note: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be a note is printed as it is; nobody and nothing is lost."""

    class Noting(FullDriver):
        async def reset(self, c: FakeConnection, /) -> Any:
            await super().reset(c)
            return note

    driver = Noting()
    async with Pool(driver, max_size=1) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                conn.cursor()
        async with pool.acquire() as conn:
            assert await conn.query() == "row"
        assert driver.calls["connect"] == 1
    assert "was left behind by the lease" in caplog.text


async def test_unprintable_errors_of_connecting_are_told_all_the_same() -> None:
    """In the timeout's words, and as the cause."""
    driver = FullDriver(connect=[Unprintable(), Unprintable(), Unprintable()])
    driver.verdicts = {Unprintable: Verdict.TRANSIENT}
    async with Pool(driver, min_size=0, backoff_min=10.0, backoff_max=10.0) as pool:
        with pytest.raises(PoolUnavailable, match="Unprintable"):
            await pool.acquire(timeout=0.05)


def cancel_this_task() -> None:
    """Be cancelled from the next await on, which is none of this call's."""
    if (task := asyncio_task()) is not None:
        task.cancel()


def asyncio_task() -> asyncio.Task[Any] | None:
    """Return the running task, on asyncio."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


left: contextvars.ContextVar[str] = contextvars.ContextVar("left", default="nothing")


@pytest.mark.parametrize("leave", ["swallowed", "pending", "variable"])
@pytest.mark.parametrize("call", ASYNC)
async def test_nothing_of_one_job_is_carried_to_the_next(call: str, leave: str) -> None:
    """A cancellation, or a context variable, ends with the task in which it was left."""
    found: list[str] = []

    class Leaving(RudeDriver):
        async def step(self, name: str) -> None:
            if name not in ("on_connect", "close"):  # they are not the first of their job
                task = asyncio_task()
                found.extend(["cancelled"] if task is not None and task.cancelling() else [])
                found.append(left.get())
            await super().step(name)
            if name == call:
                if leave == "swallowed":
                    await swallow_a_cancellation()
                elif leave == "pending":
                    cancel_this_task()
                else:
                    left.set(call)

    driver = Leaving()
    hooks = {name: driver.hook(name) for name in ASYNC if name.startswith("on_")}
    with contextlib.suppress(PoolUnavailable):
        async with Pool(driver, max_size=2, ping_after=0.0, **hooks) as pool:
            await live_through(pool, driver)
    assert set(found) == {"nothing"}
    assert not driver.alive


async def test_connection_is_there_although_its_connect_has_left_a_cancellation() -> None:
    """The task that made it ends; what it has made is as good as any."""

    class Leaving(FullDriver):
        async def connect(self) -> FakeConnection:
            cancel_this_task()
            connection = await super().connect() if asyncio_task() is None else None
            return connection or self.made()

        def made(self) -> FakeConnection:
            connection = FakeConnection(self, next(self.numbers))
            self.alive.add(connection)
            return connection

    driver = Leaving()
    async with Pool(driver, max_size=2) as pool:
        for _ in range(3):
            async with pool.acquire() as one, pool.acquire() as another:
                assert await one.query() == await another.query() == "row"
    assert not driver.alive


# -- what ends the process, and what ends the root task ------------------------------------------


def run_on(backend: Any, main: Callable[[], Awaitable[Any]]) -> Any:
    """Run on a loop of its own, as a program does."""
    name, options = backend
    return anyio.run(main, backend=name, backend_options=options)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("call", ASYNC + SYNC)
def test_what_ends_the_process_ends_the_run(
    call: str, kind: type[BaseException], anyio_backend: Any
) -> None:
    """As it does where no pool is; the connections end with it."""
    error = kind("now")
    driver = RudeDriver()
    hooks = {name: driver.hook(name) for name in ASYNC if name.startswith("on_")}
    pool = Pool(driver, max_size=2, ping_after=0.0, **hooks)

    async def main() -> None:
        async with pool:
            driver.call, driver.error = call, error
            await live_through(pool, driver)
            pool.renew()
        await anyio.sleep(1.0)  # some calls happen at the end only

    with pytest.raises((kind, BaseExceptionGroup)) as ended:
        run_on(anyio_backend, main)
    raised = ended.value
    while isinstance(raised, BaseExceptionGroup):
        (raised,) = raised.exceptions
    assert raised is error
    assert not driver.alive
    stats = pool.stats()
    assert (stats.size, stats.waiting) == (0, 0)
    run_on(anyio_backend, lambda: reopen(pool))


async def refused(pool: Pool[FakeConnection]) -> None:
    """Wait for a pool that is closed."""
    with pytest.raises(PoolClosed):
        await pool.acquire()


async def reopen(pool: Pool[FakeConnection]) -> None:
    """Use a pool once more."""
    async with pool, pool.acquire() as conn:
        assert await conn.query() == "row"


def test_root_task_that_is_cancelled_while_the_loop_goes_on_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is an error with its cause; nothing claims that the loop has ended."""
    driver = FullDriver()

    async def main() -> None:
        pool = await Pool(driver, max_size=1).open()
        conn = await pool.acquire()

        async def wait() -> BaseException | None:
            with pytest.raises(PoolClosed) as told:
                await pool.acquire()
            return told.value.__cause__

        waiting = asyncio.create_task(wait())
        await wait_all_tasks_blocked()
        (root,) = (task for task in asyncio.all_tasks() if task.get_name() == "poolkit root")
        root.cancel()
        assert isinstance(await waiting, asyncio.CancelledError)
        with pytest.raises(NotLeased):
            pool.release(conn)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
        gc.collect()
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert "its root task failed" in record.getMessage()
    assert not driver.alive


@pytest.mark.parametrize("eager", [True, False])
def test_worker_that_is_cancelled_by_somebody_is_replaced(*, eager: bool) -> None:
    """A parked one, one at work, and a task that has begun a reset at once: the pool goes on."""
    driver = FullDriver()

    def cancel_workers() -> int:
        names = ("Workers", "poolkit reset")
        return sum(
            task.cancel()
            for task in asyncio.all_tasks()
            if any(name in task.get_name() for name in names)
        )

    async def main() -> None:
        async with Pool(driver, max_size=2) as pool:
            for script in (None, 600.0):
                driver.script["reset"] = script
                async with pool.acquire() as one, pool.acquire() as another:
                    one.cursor()
                    another.cursor()
                await wait_all_tasks_blocked()
                assert cancel_workers() >= (1 if script is None else 2)
                assert pool.stats().recycling == (0 if script is None else 2)
            driver.script["reset"] = None
            await come_to_rest(pool, driver)

    with contextlib.nullcontext() if eager else only_workers():
        asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are eager tasks from 3.12 on")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ASYNC + SYNC)
def test_eager_tasks_are_no_less_patient(call: str, kind: str) -> None:
    """Jobs begin in the middle of what owes them, and end there if they never yield."""
    make, seen_again = KINDS[kind]
    driver = RudeDriver()

    async def step(name: str) -> None:
        driver._note(name)
        driver.meet(name)

    driver.step = step  # type: ignore[method-assign,assignment]
    hooks = {name: driver.hook(name) for name in ASYNC if name.startswith("on_")}

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(vars(asyncio)["eager_task_factory"])
        pool = await Pool(driver, max_size=2, ping_after=0.0, **hooks).open()
        driver.call, driver.error = call, make()
        assert await live_through(pool, driver) >= 10
        with pytest.raises(BaseException) if seen_again else contextlib.nullcontext():
            await pool.aclose()
        assert not driver.alive
        await come_to_rest(pool, driver)

    asyncio.run(main())


# -- those who ignore their cancellation ---------------------------------------------------------


@pytest.mark.parametrize("call", ["connect", "ping", "reset", "close"])
@pytest.mark.parametrize("use_uvloop", [False, True])
def test_job_that_ignores_its_cancellation_is_cancelled_once(call: str, use_uvloop: bool) -> None:
    """Then it is left alone and counts as stuck; the others go on without it."""
    if use_uvloop and sys.platform == "win32":
        pytest.skip("there is no uvloop")
    cancelled = 0
    ignoring = True

    class Ignoring(FullDriver):
        async def step(self, name: str) -> None:
            nonlocal cancelled
            await super().step(name)
            while name == call and ignoring:
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    cancelled += 1

    driver = Ignoring()
    limits = dict.fromkeys(("connect", "ping", "reset", "close"), 0.02)

    async def main() -> None:
        nonlocal ignoring
        ignoring = call != "connect"
        options: Any = {f"{name}_timeout": limit for name, limit in limits.items()}
        async with Pool(driver, max_size=2, ping_after=0.0, **options) as pool:
            ignoring = True
            try:
                if call == "connect":
                    pool.resize(min_size=2)
                else:  # a hung ping is one that somebody waits for, till there is another connection
                    async with pool.acquire() as conn:
                        conn.cursor()
                if call == "close":
                    ignoring = False
                    await until_quiet(pool)
                    ignoring = True
                    pool.renew()
                while not cancelled:  # noqa: ASYNC110  # no event tells
                    await anyio.sleep(0.001)
                for _ in range(100):
                    await checkpoint()
                assert cancelled == 1, f"{cancelled} times"
            finally:
                ignoring = False

    anyio.run(main, backend_options={"use_uvloop": use_uvloop})
    assert not driver.alive


def test_closing_cancels_once_what_ignores_it() -> None:
    """It is left behind then, as it was, and the loop is not kept busy with it."""
    cancelled = 0
    ignoring = True
    begun = anyio.Event()

    class Ignoring(FullDriver):
        async def connect(self) -> FakeConnection:
            nonlocal cancelled
            begun.set()
            while ignoring:
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    cancelled += 1
            return await super().connect()

    driver = Ignoring()
    options: Any = dict.fromkeys(("reset_timeout", "ping_timeout"), 0.01)

    async def main() -> None:
        nonlocal ignoring
        # Of one connection, or a slow machine would have another begun beside it.
        pool = await Pool(driver, min_size=0, max_size=1, close_timeout=0, **options).open()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(refused, pool)
                await begun.wait()
                await pool.aclose()
            assert cancelled == 1, f"{cancelled} times"
        finally:
            ignoring = False

    asyncio.run(main())
    assert not driver.alive


@pytest.mark.parametrize("call", ["ping", "reset", "on_close"])
async def test_no_job_begins_on_a_connection_that_was_terminated(call: str) -> None:
    """What was owed when the pool is closed at once is not done any more."""
    begun: list[str] = []

    class Watching(FullDriver):
        async def step(self, name: str) -> None:
            begun.append(name)
            await super().step(name)

        def terminate(self, c: FakeConnection, /) -> None:
            begun.append("terminate")
            super().terminate(c)

    driver = Watching()
    gate = anyio.Event()

    async def on_close(_: FakeConnection) -> None:
        begun.append("on_close")
        await gate.wait()

    pool = await Pool(driver, max_size=1, ping_after=0.0, on_close=on_close).open()
    if call == "reset":
        conn = await pool.acquire()
        conn.cursor()
        pool.release(conn)
    elif call == "ping":
        pool._state.suspect(pool._now())
        pool._carry_out()
    else:
        pool.renew()
        await wait_all_tasks_blocked()
    life: Any = pool._life
    pool._collapse(life, None)
    gate.set()
    await wait_all_tasks_blocked()
    assert "terminate" in begun
    after = begun[begun.index("terminate") + 1 :]
    assert not set(after) & {"ping", "reset", "close", "on_close"}, begun
