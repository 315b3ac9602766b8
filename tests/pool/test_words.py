"""Errors tell of the pool as it was when the wait ended, and are put into words when read."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import traceback
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

import poolkit._shell.messages as words
from poolkit import (
    CoDel,
    ConnectFailed,
    Pool,
    PoolBusy,
    PoolConfigError,
    PoolDeadlock,
    PoolError,
    PoolTimeout,
    Verdict,
    WrongLoop,
)
from poolkit._shell.callsite import place
from poolkit.testing import OneStepLoop
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeDriver, FullDriver
from tests.pool.virtual import RUNNERS, on_asyncio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


# -- the facts are those of the deadline ---------------------------------------------------------


async def use(connection: FakeConnection) -> None:
    """Leave it as it came, but heard from."""
    await connection.query()


async def spoil(connection: FakeConnection) -> None:
    """Leave it to be reset."""
    await connection.query()
    connection.in_transaction = True


async def kill(connection: FakeConnection) -> None:
    """Leave it dead."""
    await connection.query()
    connection.dead = True


async def leave_alone(_: FakeConnection) -> None:
    """Do nothing with it."""


@RUNNERS
@pytest.mark.parametrize("handle", [leave_alone, use, spoil, kill])
def test_deadlock_between_two_pools_names_who_holds_on_both_sides(
    run: Any, handle: Callable[[FakeConnection], Awaitable[None]]
) -> None:
    """Whoever is told first gives back at once; the other is told who held at the deadline."""
    told: dict[str, str] = {}

    async def main() -> None:
        async def hold_and_wait(first: Pool[Any], second: Pool[Any]) -> None:
            try:
                async with first.acquire() as connection:
                    await handle(connection)
                    await anyio.sleep(1.0)
                    await second.acquire(timeout=5.0)
            except PoolTimeout as error:
                told[second.name] = str(error)

        one: Pool[Any]
        other: Pool[Any]
        async with (
            Pool(CleanDriver(), max_size=1, name="one") as one,
            Pool(CleanDriver(), max_size=1, name="other") as other,
            anyio.create_task_group() as group,
        ):
            group.start_soon(hold_and_wait, one, other)
            group.start_soon(hold_and_wait, other, one)

    run(main)
    for name, message in told.items():
        assert f"pool '{name}': no connection within" in message
        assert "1 leased" in message
        assert "in test_deadlock_between_two_pools" in message
        assert "nothing is leased" not in message
    assert set(told) == {"one", "other"}


@pytest.mark.parametrize("handle", [leave_alone, use, spoil, kill])
def test_two_pools_name_who_holds_although_the_loop_was_blocked(
    handle: Callable[[FakeConnection], Awaitable[None]],
) -> None:
    """Both deadlines have passed when the loop looks; only one alarm has rung when one gives back.

    Each step of the loop is a step of its own here: between the alarm of one pool and that of the
    other, the first waiter wakes and gives back.
    """
    told: dict[str, str] = {}

    async def main() -> None:
        async def hold_and_wait(first: Pool[Any], second: Pool[Any], timeout: float) -> None:
            try:
                async with first.acquire() as connection:
                    await handle(connection)
                    await asyncio.sleep(1.0)
                    await second.acquire(timeout=timeout)
            except PoolTimeout as error:
                told[second.name] = str(error)

        one: Pool[Any]
        other: Pool[Any]
        async with (
            Pool(CleanDriver(), max_size=1, name="one") as one,
            Pool(CleanDriver(), max_size=1, name="other") as other,
        ):
            tasks = [
                asyncio.create_task(hold_and_wait(one, other, 5.0)),
                asyncio.create_task(hold_and_wait(other, one, 5.00001)),
            ]
            await asyncio.sleep(2.0)
            loop = asyncio.get_running_loop()
            assert isinstance(loop, OneStepLoop)
            await asyncio.sleep(3.99999)
            loop._now += 1.0  # blocked
            await asyncio.gather(*tasks)

    with asyncio.Runner(loop_factory=lambda: OneStepLoop(lambda _: 0)) as runner:
        runner.run(main())
    assert set(told) == {"one", "other"}
    for message in told.values():
        assert "1 leased" in message
        assert "in test_two_pools_name" in message


@RUNNERS
def test_message_tells_of_the_deadline_however_late_it_is_read(run: Any) -> None:
    """Names of tasks that have ended since, sizes, seconds, and the cause."""

    async def main() -> None:
        driver = FakeDriver()
        async with Pool(driver, max_size=1) as pool:
            error: PoolTimeout | None = None

            async def hold() -> None:
                async with pool.acquire():
                    await anyio.sleep(3.0)

            async with anyio.create_task_group() as group:
                group.start_soon(hold, name="the holder")
                await wait_all_tasks_blocked()
                try:
                    await pool.acquire(timeout=2.0)
                except PoolTimeout as caught:
                    error = caught
            pool.resize(max_size=7)
            await anyio.sleep(100.0)
        assert "(1 leased, 0 idle, 0 connecting, 0 recycling, 0 closing of capacity 1" in str(error)
        assert "Held longest: the holder for 2.00 s, acquired at " in str(error)

    run(main)


@RUNNERS
def test_refusal_by_a_full_queue_tells_of_the_moment_it_came(run: Any) -> None:
    """Not of the pool as it is when somebody looks at the log."""

    async def main() -> None:
        async with Pool(FakeDriver(), max_size=1, max_waiting=0) as pool:
            async with pool.acquire():
                async with anyio.create_task_group() as group:
                    errors: list[PoolBusy] = []

                    async def refused() -> None:
                        with pytest.raises(PoolBusy) as caught:
                            await pool.acquire()
                        errors.append(caught.value)

                    group.start_soon(refused)
            assert "no place in line with max_waiting=0 (1 leased, 0 idle" in str(errors[0])

    run(main)


# -- words only for those who read ---------------------------------------------------------------


def test_nobody_pays_for_words_that_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands who time out together share their facts, and nothing is composed."""
    composed: list[object] = []
    reason = words._reason

    def counted(facts: Any) -> str:
        composed.append(facts)
        return reason(facts)

    monkeypatch.setattr(words, "_reason", counted)

    async def main() -> None:
        async with Pool(CleanDriver(), max_size=10, deadlock="off") as pool:
            held = [await pool.acquire() for _ in range(10)]
            waits = [pool._acquire_wait(pool.acquire(timeout=1.0)) for _ in range(1000)]
            errors = await asyncio.gather(*waits, return_exceptions=True)
            for connection in held:
                pool.release(connection)
        assert composed == []
        assert all(isinstance(error, PoolTimeout) for error in errors)
        facts = {id(error._compose.args[-1]) for error in errors}  # type: ignore[union-attr]
        assert len(facts) == 1
        assert "10 leased" in str(errors[0])
        assert str(errors[-1]) == str(errors[0])
        assert len(composed) == 1

    on_asyncio(main)


async def timed_out(pool: Pool[Any]) -> BaseException:
    """Return the error of a caller whose deadline passed."""
    with pytest.raises(PoolTimeout) as caught:
        await pool.acquire(timeout=0.05)
    return caught.value


async def busy(pool: Pool[Any]) -> BaseException:
    """Return the error of a caller who found a full queue."""
    async with anyio.create_task_group() as group:
        group.start_soon(timed_out, pool)
        await wait_all_tasks_blocked()
        with pytest.raises(PoolBusy) as caught:
            await pool.acquire()
    return caught.value


async def shed(pool: Pool[Any]) -> BaseException:
    """Return the error of a caller who was refused under overload."""
    with pytest.raises(PoolBusy) as caught:
        await pool.acquire(timeout=3.0)
    return caught.value


async def failed(pool: Pool[Any]) -> BaseException:
    """Return the error of a caller whose connection could not be opened."""
    pool._driver.script["connect"] = [Boom("refused")] * 10  # type: ignore[attr-defined]
    pool._driver.verdicts[Boom] = Verdict.FATAL  # type: ignore[attr-defined]
    pool.resize(max_size=2)
    with pytest.raises(ConnectFailed) as caught:
        await pool.acquire(timeout=5.0)
    return caught.value


async def deadlocked(pool: Pool[Any]) -> BaseException:
    """Return the error of a caller who waits for itself."""
    pool.resize(max_size=1)
    with pytest.raises(PoolDeadlock) as caught:
        await pool.acquire(timeout=50.0)
    return caught.value


def printed(error: BaseException) -> str:
    """Return what a traceback says."""
    return "".join(traceback.format_exception(error))


def logged(error: BaseException) -> str:
    """Return what a log handler makes of it."""
    record = logging.LogRecord("x", 30, "x", 1, "%s", (error,), None)
    return logging.Formatter().format(record)


def pickled(error: BaseException) -> str:
    """Return the message on the other side."""
    return str(pickle.loads(pickle.dumps(error)))


def copied(error: BaseException) -> str:
    """Return the message of a copy."""
    return str(copy.deepcopy(copy.copy(error)))


def first_argument(error: BaseException) -> str:
    """Return the message as some libraries look for it."""
    (message,) = error.args
    assert type(message) is str
    return message


@pytest.mark.parametrize(
    "read", [str, repr, printed, logged, pickled, copied, first_argument, "{}".format]
)
@pytest.mark.parametrize("get", [timed_out, busy, shed, failed, deadlocked])
def test_message_is_there_whatever_asks_for_it_first(
    get: Callable[[Pool[Any]], Awaitable[BaseException]],
    read: Callable[[BaseException], str],
) -> None:
    """As if it had been composed at once."""

    async def main() -> None:
        limited = get is busy
        pool: Pool[Any] = Pool(
            FullDriver(),
            max_size=1,
            name="shop",
            max_waiting=1 if limited else None,
            shedding=CoDel(0.01, 0.1) if get is shed else None,
            deadlock="raise" if get is deadlocked else "off",
        )
        async with pool, pool.acquire():
            error = await get(pool)
            assert isinstance(error, PoolError)
            assert error._compose is not None
            text = read(error)
            assert "pool 'shop'" in text
            assert " leased, " in text
            assert str(error) in text or repr(error) == text
            assert "_compose" not in vars(error)
            assert error.args == (str(error),)
            assert (error.__cause__ is not None) == (get is failed)

    on_asyncio(main)


def test_message_can_be_put_in_the_place_of_another() -> None:
    """Some programs add to what an error says."""
    error = PoolTimeout.composed_by(lambda: "composed")
    error.args = ("mine",)
    assert (str(error), error.args) == ("mine", ("mine",))
    error = PoolTimeout.composed_by(lambda: "composed")
    error.args = (f"{error}, and mine",)
    assert repr(error) == "PoolTimeout('composed, and mine')"


@pytest.mark.parametrize("kind", [PoolError, PoolTimeout, PoolConfigError, WrongLoop])
def test_errors_made_by_hand_are_plain(kind: type[PoolError]) -> None:
    """As in the tests of an application, which raise them themselves."""
    error = kind("why", 2)
    assert error.args == ("why", 2)
    assert kind().args == ()
    assert pickle.loads(pickle.dumps(error)).args == ("why", 2)
    error.add_note("a note")
    assert "a note" in printed(pickle.loads(pickle.dumps(error)))


class Unprintable(Exception):
    """What a driver may raise."""

    def __str__(self) -> str:
        """Fail."""
        raise RuntimeError("no words")

    __repr__ = __str__


@RUNNERS
def test_error_of_a_driver_that_cannot_be_printed_does_not_spoil_the_message(run: Any) -> None:
    """Neither of a failed connect, nor of a timeout while connecting fails."""

    async def main() -> None:
        driver = FullDriver()
        driver.script["connect"] = [Unprintable()] * 1000
        driver.verdicts[Unprintable] = Verdict.TRANSIENT
        async with Pool(driver, min_size=0, max_size=1) as pool:
            with pytest.raises(PoolTimeout, match=r"with Unprintable, whose str\(\) raises"):
                await pool.acquire(timeout=1.0)
        driver.verdicts[Unprintable] = Verdict.FATAL
        async with Pool(driver, min_size=0, max_size=1) as pool:
            with pytest.raises(ConnectFailed, match=r"Unprintable, whose str\(\) raises"):
                await pool.acquire(timeout=1.0)

    run(main)


# -- who and where -------------------------------------------------------------------------------


def test_wrong_loop_names_the_pool() -> None:
    """There may be many."""
    pool: Pool[Any] = Pool(FakeDriver(), name="shop")

    async def elsewhere() -> None:
        with pytest.raises(WrongLoop, match="pool 'shop' was opened on another event loop"):
            await pool.acquire()
        with pytest.raises(WrongLoop, match="pool 'shop' was opened on another event loop"):
            await pool.open()

    async def in_a_callback() -> None:
        future = asyncio.get_running_loop().create_future()

        def call() -> None:
            try:
                pool.acquire().__aenter__().send(None)
            except BaseException as error:
                future.set_result(error)

        asyncio.get_running_loop().call_soon(call)
        error = await future
        assert isinstance(error, WrongLoop)
        assert "pool 'shop': a connection can only be acquired in a task" in str(error)

    with asyncio.Runner() as home:
        home.run(pool.open())
        home.run(in_a_callback())
        with asyncio.Runner() as other:
            other.run(elsewhere())
        home.run(pool.aclose())


def test_places_of_equal_code_in_two_files_are_two() -> None:
    """Such codes are equal for Python, which does not ask for the file."""
    source = "def function():\n    pass\n"
    codes = [compile(source, name, "exec").co_consts[0] for name in ("one.py", "other.py")]
    assert codes[0] == codes[1]
    assert [place(code, 0).partition(":")[0] for code in codes] == ["one.py", "other.py"]
    labelled = codes[0].replace(co_qualname="GET / (function)")
    assert place(labelled, 0).endswith("in GET / (function)")
