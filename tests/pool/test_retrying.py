"""Transactions that are run again: what is, what never is, and until when."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked

import poolkit
from poolkit import (
    CommitUnknown,
    ConnectFailed,
    NotLeased,
    Observer,
    Pool,
    PoolClosed,
    PoolConfigError,
    PoolDeadlock,
    PoolError,
    PoolTimeout,
    PoolUnavailable,
    Verdict,
)
from poolkit.testing import NEVER, FakeDriver, Fault, check_pool
from tests.fakes import Boom, FakeConnection, FakeTransaction, FullDriver
from tests.pool.virtual import RUNNERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def conflict(text: str = "conflict") -> Fault:
    """Return what a server says that has rolled back for the sake of others."""
    return Fault(text, may_repeat=True)


def lost() -> Fault:
    """Return what a library says of a connection that is gone."""
    return Fault("lost", verdict=Verdict.DEAD)


class Writer:
    """Writes one row each time it is called."""

    def __init__(self, *errors: Exception) -> None:
        self.calls = 0
        self.errors = list(errors)
        self.connections: list[int] = []

    async def __call__(self, conn: Any) -> str:
        """Write, and fail as often as there are errors."""
        self.calls += 1
        self.connections.append(conn.number)
        await conn.write(f"row {self.calls}")
        if self.errors:
            raise self.errors.pop(0)
        return f"result {self.calls}"


# -- what is run again ---------------------------------------------------------------------------


async def test_result_is_returned_after_the_commit() -> None:
    """One attempt, if nothing is in its way."""
    driver = FakeDriver()
    async with Pool(driver) as pool:
        assert await pool.run(Writer()) == "result 1"
        assert driver.rows == ["row 1"]
        assert pool.stats().retried == 0
        await check_pool(pool)


@pytest.mark.parametrize("call", ["begin", "query", "commit"])
async def test_conflict_is_tried_again_wherever_it_comes(call: str) -> None:
    """At BEGIN, in a statement, or at COMMIT; what was undone has left nothing."""
    driver = FakeDriver(**{call: [conflict(), conflict()]})
    writer = Writer()
    async with Pool(driver) as pool:
        result = await pool.run(writer)
        assert result == f"result {writer.calls}"
        assert driver.rows == [f"row {writer.calls}"]
        assert writer.calls == (1 if call == "begin" else 3)
        stats = pool.stats()
        assert (stats.retried, (stats - stats).retried) == (2, 0)
        await check_pool(pool)


async def test_lost_connection_is_tried_again_on_another_one() -> None:
    """As long as no COMMIT was sent."""
    driver = FakeDriver()
    writer = Writer()

    async def work(conn: Any) -> str:
        if not writer.calls:
            driver.crash(silently=True)
        return await writer(conn)

    async with Pool(driver) as pool:
        assert await pool.run(work) == "result 2"
        assert driver.rows == ["row 2"]
        await check_pool(pool)


async def test_lost_connection_without_a_verdict_is_tried_again() -> None:
    """It is dead, and the error came from one of its operations."""
    driver = FullDriver()
    calls = 0

    async def work(conn: Any) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            for connection in driver.alive:
                connection.dead = True
            await conn.fail()
        return "done"

    class Failing(FakeConnection):
        async def fail(self) -> None:
            raise Boom("gone")

    driver.kind = Failing
    async with Pool(driver) as pool:
        assert await pool.run(work) == "done"
        assert calls == 2


async def test_each_attempt_has_a_lease_of_its_own_and_a_pause_has_none() -> None:
    """Others work meanwhile, with the only connection."""
    driver = FakeDriver(commit=[conflict()])
    seen: list[int] = []

    class Watching(Observer):
        def retried(self, pool: Any, label: Any, seconds: float, error: BaseException) -> None:
            seen.append(pool.stats().leased)

    views: list[Any] = []

    async def work(conn: Any) -> None:
        views.append(conn)
        await conn.query()

    async with Pool(driver, max_size=1, observers=[Watching()]) as pool:
        await pool.run(work)
        assert seen == [0]
        first, second = views
        assert first is not second
        with pytest.raises(NotLeased):
            await first.query()


async def test_group_is_tried_again_if_all_of_it_may_be() -> None:
    """What child tasks raise comes in one."""
    for errors, calls in (
        ([conflict(), conflict()], 2),
        ([conflict(), ValueError("own")], 1),
        ([ExceptionGroup("inner", [conflict()])], 2),
    ):
        writer = Writer(ExceptionGroup("children", errors))
        async with Pool(FakeDriver()) as pool:
            if calls == 2:
                assert await pool.run(writer) == "result 2"
            else:
                with pytest.raises(ExceptionGroup, match="children"):
                    await pool.run(writer)
        assert writer.calls == calls


async def test_conflict_in_a_task_group_of_the_function_is_tried_again() -> None:
    """As it comes from anyio."""
    driver = FakeDriver(query=[None, conflict()])

    async def work(conn: Any) -> None:
        await conn.write("one")
        async with anyio.create_task_group() as group:
            group.start_soon(conn.write, "two")

    async with Pool(driver) as pool:
        await pool.run(work)
        assert driver.rows == ["one", "two"]


# -- what never is -------------------------------------------------------------------------------


async def wrapped(conn: Any) -> None:
    """Say in one's own words what has happened."""
    try:
        raise conflict()
    except Fault as error:
        raise LookupError("mine") from error


async def own_error(conn: Any) -> None:
    """Fail for one's own reasons."""
    await conn.write("row")
    raise LookupError("mine")


@pytest.mark.parametrize("fn", [wrapped, own_error])
async def test_error_of_the_functions_own_is_raised_at_once(fn: Any) -> None:
    """Also one that it has made from a conflict: it has decided what that means."""
    driver = FakeDriver()
    async with Pool(driver) as pool:
        with pytest.raises(LookupError, match="mine"):
            await pool.run(fn)
        assert (driver.calls["begin"], driver.calls["rollback"], driver.rows) == (1, 1, [])
        assert pool.stats().retried == 0


@pytest.mark.parametrize("call", ["query", "commit"])
async def test_error_that_is_no_conflict_is_raised_at_once(call: str) -> None:
    """A constraint, say: it would come again."""
    driver = FakeDriver(**{call: [Fault("constraint")]})
    writer = Writer()
    async with Pool(driver) as pool:
        with pytest.raises(Fault, match="constraint"):
            await pool.run(writer)
        assert (writer.calls, driver.rows) == (1, [])
        await check_pool(pool)


async def test_conflict_of_another_pool_is_not_this_ones() -> None:
    """What was done there, nobody here has undone."""
    other_driver = FakeDriver(query=[conflict()])
    driver = FakeDriver()
    async with Pool(other_driver) as other, Pool(driver) as pool:

        async def work(conn: Any) -> None:
            async with other.acquire() as another:
                await another.query()

        with pytest.raises(Fault, match="conflict"):
            await pool.run(work)
        assert driver.calls["begin"] == 1


async def test_error_of_a_begin_that_was_exchanged_is_not_the_blocks() -> None:
    """The BEGIN has succeeded on another connection: what comes later has undone nothing there."""
    error = lost()
    driver = FakeDriver(begin=[error])
    calls = 0

    async def work(conn: Any) -> None:
        nonlocal calls
        calls += 1
        raise error

    async with Pool(driver) as pool:
        with pytest.raises(Fault, match="lost"):
            await pool.run(work)
        assert (calls, driver.calls["begin"], pool.stats().retried) == (1, 2, 0)
        await check_pool(pool)


async def test_error_of_acquiring_is_raised_at_once() -> None:
    """The pool itself has waited for what may pass."""
    driver = FakeDriver(connect=Fault("no such database", verdict=Verdict.FATAL))
    async with Pool(driver, min_size=0) as pool:
        with pytest.raises(ConnectFailed):
            await pool.run(Writer())
    with pytest.raises(PoolClosed):
        await pool.run(Writer())
    assert driver.calls["begin"] == 0


async def test_acquire_inside_of_a_lease_can_deadlock_as_any() -> None:
    """It waits for itself: that is said, and not tried again."""
    async with Pool(FakeDriver(), max_size=1) as pool:
        async with pool.acquire():
            with pytest.raises(PoolDeadlock):
                await pool.run(Writer())
        await check_pool(pool)


# -- a COMMIT whose answer never came ------------------------------------------------------------


async def test_connection_lost_in_the_commit_is_unknown_and_not_tried_again() -> None:
    """It may be there: to do it again may be to do it twice."""
    driver = FakeDriver(commit=[lost()])
    writer = Writer()
    async with Pool(driver) as pool:
        with pytest.raises(CommitUnknown, match=r"nobody knows .* Fault: lost") as caught:
            await pool.run(writer)
        assert isinstance(caught.value.__cause__, Fault)
        assert not isinstance(caught.value, PoolUnavailable)
        assert writer.calls == 1
        assert pool.stats().retried == 0
        await check_pool(pool)


async def test_every_transaction_says_that_its_commit_is_unknown() -> None:
    """In a lease of its own, on a connection that one holds, and in a loop."""
    driver = FakeDriver(commit=[lost(), lost(), lost()])
    async with Pool(driver) as pool:
        with pytest.raises(CommitUnknown):
            async with pool.transaction() as conn:
                await conn.query()
        async with pool.acquire() as conn:
            with pytest.raises(CommitUnknown):
                async with poolkit.transaction(conn):
                    await conn.query()
        with pytest.raises(CommitUnknown):
            async for attempt in pool.attempts():
                async with attempt as conn:
                    await conn.query()
        assert driver.calls["commit"] == 3
        await check_pool(pool)


async def test_lost_connection_at_the_end_of_an_inner_block_is_no_commit() -> None:
    """It releases a savepoint, at most: all of it is undone, and done again."""

    class Nested(FakeDriver):
        """Its transactions inside of others are no transactions."""

        def transaction(self, c: Any, /, **settings: Any) -> Any:
            if not c.in_transaction:
                return super().transaction(c, **settings)
            return Savepoint()

    class Savepoint:
        async def __aenter__(self) -> None:
            """Begin."""

        async def __aexit__(self, *error: object) -> None:
            if left:
                raise left.pop()

    driver, left, writer = Nested(), [lost()], Writer()

    async def work(conn: Any) -> str:
        async with poolkit.transaction(conn):
            return await writer(conn)

    async with Pool(driver) as pool:
        assert await pool.run(work) == "result 2"
        assert driver.rows == ["row 2"]


class Knowing(FullDriver):
    """Its transactions know what became of their COMMIT."""

    def __init__(self, answer: Any, **script: Any) -> None:
        super().__init__(**script)
        self.answer = answer
        self.conflicts = {Boom}

    def transaction(self, c: Any, **settings: Any) -> Any:
        """Return one that says what it is told to."""
        transaction: Any = FakeTransaction(c, settings)
        transaction.may_have_committed = self.ask
        return transaction

    def ask(self, error: Exception) -> bool:
        """Answer, or raise."""
        if isinstance(self.answer, BaseException):
            raise self.answer
        return bool(self.answer)


async def query(conn: Any) -> str:
    """Do something."""
    answer: str = await conn.query()
    return answer


async def test_driver_that_knows_what_became_of_a_commit_is_believed() -> None:
    """Whatever the connection looks like."""
    async with Pool(Knowing(answer=True, commit=[Boom("late")])) as pool:
        with pytest.raises(CommitUnknown):
            await pool.run(query)
    driver = Knowing(answer=False, commit=[Boom("late")])
    async with Pool(driver) as pool:
        assert await pool.run(query) == "row"
    assert driver.calls["commit"] == 2


async def test_driver_whose_answer_fails_leaves_a_commit_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That costs nobody a row; and it is logged."""
    async with Pool(Knowing(answer=ValueError("rude"), commit=[Boom("late")])) as pool:
        with pytest.raises(CommitUnknown):
            await pool.run(query)
    assert "Knowing.may_have_committed raised" in caplog.text


async def test_driver_whose_may_repeat_fails_has_nothing_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its user sees the error; and it is logged."""

    class Rude(FullDriver):
        def may_repeat(self, exc: BaseException, c: Any) -> bool:
            raise ValueError("rude")

    async with Pool(Rude(commit=[Boom("late")])) as pool:
        with pytest.raises(Boom, match="late"):
            await pool.run(query)
    assert "Rude.may_repeat raised" in caplog.text


# -- how often, and until when -------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_last_error_is_raised_when_all_attempts_have_failed(retries: int) -> None:
    """With a note of how many there were; of one alone there is nothing to say."""
    driver = FakeDriver(commit=[conflict(str(n)) for n in range(10)])
    writer = Writer()
    async with Pool(driver) as pool:
        with pytest.raises(Fault) as caught:
            await pool.run(writer, retries=retries)
        assert str(caught.value) == str(retries)
        notes = getattr(caught.value, "__notes__", [])
        assert notes == [f"poolkit: given up after {retries + 1} attempts"][: retries > 0]
        assert writer.calls == retries + 1
        assert pool.stats().retried == retries
        await check_pool(pool)


@RUNNERS
def test_no_attempt_begins_after_the_deadline(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that takes long is not ended by it; its time counts."""
    monkeypatch.setattr("random.random", lambda: 1.0)

    async def main() -> None:
        driver = FakeDriver(commit=conflict())
        calls: list[float] = []

        async def work(conn: Any) -> None:
            calls.append(anyio.current_time())
            await anyio.sleep(0.4)

        async with Pool(driver) as pool:
            began = anyio.current_time()
            with pytest.raises(Fault) as caught:
                await pool.run(work, retries=100, timeout=1.0)
            assert [round(when - began, 3) for when in calls] == [0.0, 0.42, 0.86]
            assert anyio.current_time() - began == pytest.approx(1.26)
            assert caught.value.__notes__ == ["poolkit: given up after 3 attempts: the time is up"]

    run(main)


@RUNNERS
def test_default_deadline_is_the_pools_acquire_timeout(run: Any) -> None:
    """And None is none."""

    async def main() -> None:
        driver = FakeDriver(commit=conflict())
        calls = 0

        async def work(conn: Any) -> None:
            nonlocal calls
            calls += 1
            await anyio.sleep(1.5)

        async with Pool(driver, acquire_timeout=2.0) as pool:
            with pytest.raises(Fault):
                await pool.run(work)
            assert calls == 2
            with pytest.raises(Fault):
                await pool.run(work, timeout=None)
            assert calls == 6

    run(main)


@RUNNERS
def test_acquires_and_pauses_share_one_deadline(run: Any) -> None:
    """The second attempt waits for what is left of it, and no longer."""

    async def main() -> None:
        driver = FakeDriver(commit=[conflict()])
        taken = anyio.Event()

        async def take_all(pool: Any) -> None:
            async with pool.acquire():
                taken.set()
                await anyio.sleep(100)

        async with Pool(driver, max_size=1) as pool, anyio.create_task_group() as group:

            async def work(conn: Any) -> None:
                group.start_soon(take_all, pool)  # next in line
                await anyio.sleep(1.0)

            began = anyio.current_time()
            with pytest.raises(PoolTimeout):
                await pool.run(work, timeout=3.0)
            assert taken.is_set()
            assert anyio.current_time() - began == pytest.approx(3.0)
            assert driver.calls["begin"] == 1
            group.cancel_scope.cancel()

    run(main)


async def test_attempts_without_time_are_one() -> None:
    """Which waits for nobody."""
    driver = FakeDriver(commit=[conflict(), conflict()])
    async with Pool(driver) as pool:
        with pytest.raises(Fault):
            await pool.run(Writer(), timeout=0)
        assert driver.calls["commit"] == 1
        async with pool.acquire():
            pass


# -- cancellation --------------------------------------------------------------------------------


@RUNNERS
@pytest.mark.parametrize("stage", ["connect", "begin", "query", "rollback", "commit", "pause"])
def test_cancellation_is_one_wherever_it_comes(run: Any, stage: str) -> None:
    """It is not tried again, and nothing of it is swallowed, nor lost."""

    async def main() -> None:
        driver = FakeDriver()
        if stage == "pause":
            driver.script["commit"] = [conflict()]
        else:
            driver.script[stage] = [NEVER]
        writer = Writer(*([conflict()] if stage == "rollback" else []))
        pool = Pool(driver, min_size=0, max_size=1, reset_timeout=None, connect_timeout=None)
        async with pool:
            ended = False
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:

                    async def user() -> None:
                        nonlocal ended
                        await pool.run(writer)
                        ended = True

                    group.start_soon(user)
                    if stage == "pause":
                        while not pool.stats().retried:
                            await anyio.lowlevel.checkpoint()
                    else:
                        await wait_all_tasks_blocked()
                    scope.cancel()
            assert scope.cancelled_caught
            assert not ended
            assert driver.rows == []
            assert writer.calls == (stage not in ("connect", "begin"))
            assert pool.stats().retried == (stage == "pause")
            if stage == "connect":
                return  # it hangs for ever
            driver.script.clear()
            await check_pool(pool)
            assert await pool.run(writer) == f"result {writer.calls}"

    run(main)


# -- what is told --------------------------------------------------------------------------------


async def test_observers_are_told_of_each_attempt_that_is_made_again() -> None:
    """With the label, the pause, and what has undone it."""
    told: list[Any] = []

    class Watching(Observer):
        def retried(self, pool: Any, label: Any, seconds: float, error: BaseException) -> None:
            assert 0.0 <= seconds <= 0.04
            told.append((label, str(error)))

    driver = FakeDriver(commit=[conflict("a"), conflict("b")])
    async with Pool(driver, observers=[Watching()]) as pool:
        await pool.run(Writer(), label="booking")
        assert told == [("booking", "a"), ("booking", "b")]


async def test_attempts_are_named_for_who_runs_them() -> None:
    """By the place of the call, and the label around it."""
    async with Pool(FakeDriver()) as pool:

        async def work(conn: Any) -> tuple[str, str]:
            (lease,) = pool.leases()
            return lease.place, lease.label

        here = r"test_retrying.py:\d+ in {} \(test_attempts_are_named_for_who_runs_them\)"
        with poolkit.labelled("import"):
            place, label = await pool.run(work)
        assert re.search(here.format("import"), place)
        assert label == "import"
        async for attempt in pool.attempts(label="loop"):
            async with attempt as conn:
                place, label = await work(conn)
        assert re.search(here.format("loop"), place)
        assert label == "loop"


async def test_settings_reach_the_driver_in_each_attempt() -> None:
    """As they are."""
    driver = FullDriver(commit=[Boom("conflict")])
    driver.conflicts = {Boom}
    async with Pool(driver) as pool:
        await pool.run(query, isolation="serializable", settings={"app.user": "1"})
    begun = [line for line in driver.log if line.startswith("begin")]
    assert begun == ["begin {'isolation': 'serializable', 'settings': {'app.user': '1'}}"] * 2


# -- bad input -----------------------------------------------------------------------------------


async def generator(conn: Any) -> Any:
    """Stream."""
    yield 1


@pytest.mark.parametrize("retries", [-1, True, 1.0, "3", None])
async def test_retries_that_are_no_number_of_attempts_are_refused(retries: Any) -> None:
    """When they are given, and not when they are needed."""
    async with Pool(FakeDriver()) as pool:
        with pytest.raises(PoolConfigError, match=r"retries=.*whole number, 0 or more"):
            await pool.run(query, retries=retries)
        with pytest.raises(PoolConfigError, match=r"retries=.*whole number, 0 or more"):
            pool.attempts(retries=retries)


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (None, "fn=None is not callable: give an async function of one connection"),
        ("SELECT 1", "is not callable"),
        (generator, "has a `yield`"),
        (generator(None), "has been called already"),
        (Writer, "is a class"),
        (lambda: None, "cannot be called with a connection alone"),
        (functools.partial(query, None), None),
    ],
)
async def test_function_that_cannot_be_run_is_refused(fn: Any, words: str | None) -> None:
    """Before anything is acquired, where that can be told."""
    driver = FakeDriver()
    async with Pool(driver) as pool:
        if words is None:
            with pytest.raises(TypeError):  # Python's own
                await pool.run(fn)
        else:
            with pytest.raises(PoolConfigError, match=words):
                await pool.run(fn)
            assert driver.calls["begin"] == 0
        await check_pool(pool)


async def test_function_whose_result_cannot_be_awaited_is_undone() -> None:
    """Whatever it has done."""
    driver = FakeDriver()
    async with Pool(driver) as pool:
        with pytest.raises(PoolConfigError, match=r"fn=.* returned an object of type int"):
            await pool.run(lambda _: 1)  # type: ignore[arg-type,return-value]
        assert (driver.calls["rollback"], driver.calls["begin"]) == (1, 1)
        await check_pool(pool)


@pytest.mark.parametrize("timeout", ["1", float("nan"), True])
async def test_timeout_that_is_no_time_is_refused(timeout: Any) -> None:
    """As that of an acquire."""
    async with Pool(FakeDriver()) as pool:
        with pytest.raises(PoolConfigError, match="timeout"):
            await pool.run(query, timeout=timeout)


# -- the loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["begin", "query", "commit"])
async def test_loop_goes_on_until_an_attempt_succeeds(call: str) -> None:
    """And ends after it."""
    driver = FakeDriver(**{call: [conflict(), conflict()]})
    numbers: list[int] = []
    async with Pool(driver) as pool:
        async for attempt in pool.attempts():
            async with attempt as conn:
                numbers.append(attempt.number)
                await conn.write(len(numbers))
        assert numbers == ([3] if call == "begin" else [1, 2, 3])
        assert driver.rows == [len(numbers)]
        assert pool.stats().retried == 2
        await check_pool(pool)


@pytest.mark.parametrize("retries", [0, 2])
async def test_loop_raises_the_last_error(retries: int) -> None:
    """From the block of the last attempt."""
    driver = FakeDriver(commit=[conflict(str(n)) for n in range(10)])
    async with Pool(driver) as pool:
        with pytest.raises(Fault) as caught:
            async for attempt in pool.attempts(retries=retries):
                async with attempt as conn:
                    await conn.query()
        assert str(caught.value) == str(retries)
        assert driver.calls["commit"] == retries + 1


async def leave_by_return(pool: Pool[Any]) -> str:
    """Return from the block."""
    async for attempt in pool.attempts():
        async with attempt as conn:
            return str(await conn.query())
    raise AssertionError


async def leave_by_break(pool: Pool[Any]) -> str:
    """Break out of the block."""
    answer = ""
    async for attempt in pool.attempts():
        async with attempt as conn:
            answer = await conn.query()
            break
    return answer


async def leave_by_break_into_another_loop(pool: Pool[Any]) -> str:
    """Break out of the block, to where another loop comes round."""
    answers: list[str] = []

    class Once:
        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> int:
            if answers:
                raise StopAsyncIteration
            return 1

    async for _ in Once():
        async for attempt in pool.attempts():
            async with attempt as conn:
                answers.append(await conn.query())
                break
    return str(answers[0])


async def leave_by_return_in_a_statement_after(pool: Pool[Any]) -> str:
    """Have something follow the block."""
    async for attempt in pool.attempts():
        async with attempt as conn:
            answer = str(await conn.query())
        return answer  # noqa: RET504  # after the block
    raise AssertionError


async def leave_by_a_stack(pool: Pool[Any]) -> str:
    """Have the block ended by something in between."""
    answer = ""
    async for attempt in pool.attempts():
        async with contextlib.AsyncExitStack() as stack:
            conn = await stack.enter_async_context(attempt)
            answer = await conn.query()
    return answer


async def leave_by_hand(pool: Pool[Any]) -> str:
    """Take the attempts by hand, in a loop over something else."""
    answers: list[str] = []

    class Twice:
        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> int:
            if answers:
                raise StopAsyncIteration
            return 1

    attempts = pool.attempts()
    async for _ in Twice():
        attempt = await anext(attempts)
        async with attempt as conn:
            answers.append(await conn.query())
    return answers[0]


LEAVING = [
    leave_by_hand,
    leave_by_return,
    leave_by_break,
    leave_by_break_into_another_loop,
    leave_by_return_in_a_statement_after,
    leave_by_a_stack,
]


@pytest.mark.parametrize("leave", LEAVING)
async def test_loop_that_may_be_left_commits(leave: Any) -> None:
    """As any block that ends without an error."""
    driver = FakeDriver()
    async with Pool(driver) as pool:
        assert await leave(pool) == "row"
        assert driver.calls["commit"] == 1
        await check_pool(pool)


@pytest.mark.parametrize("leave", LEAVING)
async def test_conflict_of_a_commit_is_raised_where_the_loop_may_have_been_left(leave: Any) -> None:
    """Else its user would believe in what was undone."""
    driver = FakeDriver(commit=[conflict()])
    async with Pool(driver) as pool:
        with pytest.raises(Fault, match="conflict") as caught:
            await leave(pool)
        assert "is not tried again" in caught.value.__notes__[0]
        assert pool.stats().retried == 0
        await check_pool(pool)


async def test_conflict_of_a_commit_in_another_loop_is_raised() -> None:
    """That one comes round, and may then be followed by anything."""
    answers: list[str] = []

    class Once:
        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> int:
            if answers:
                raise StopAsyncIteration
            return 1

    async def leave(pool: Pool[Any]) -> None:
        async for attempt in pool.attempts():
            async for _ in Once():
                async with attempt as conn:
                    answers.append(await conn.query())
            return

    driver = FakeDriver(commit=[conflict()])
    async with Pool(driver) as pool:
        with pytest.raises(Fault, match="conflict"):
            await leave(pool)
        await check_pool(pool)


async def test_attempts_that_are_handed_on_are_tried_again() -> None:
    """By a generator of one's own, which asks for them in its own loop."""

    async def mine(pool: Pool[Any]) -> AsyncIterator[Any]:
        async for attempt in pool.attempts(retries=1):
            yield attempt

    driver = FakeDriver(commit=[conflict()])
    async with Pool(driver) as pool:
        async for attempt in mine(pool):
            async with attempt as conn:
                await conn.write(attempt.number)
        assert driver.rows == [2]
        await check_pool(pool)


@pytest.mark.parametrize("leave", LEAVING)
async def test_conflict_in_a_block_that_would_leave_the_loop_is_tried_again(leave: Any) -> None:
    """It was not left yet."""
    driver = FakeDriver(query=[conflict()])
    async with Pool(driver) as pool:
        if leave is leave_by_return_in_a_statement_after:
            with pytest.raises(UnboundLocalError):  # its user's mistake, of which the page warns
                await leave(pool)
        else:
            assert await leave(pool) == "row"
        await check_pool(pool)


async def test_long_block_is_followed_as_a_short_one() -> None:
    """The way back to the begin of the loop is a long jump."""
    source = "\n".join(
        [
            "async def work(pool):",
            "    x = 0",
            "    async for attempt in pool.attempts(timeout=None):",
            "        async with attempt as conn:",
            *["            x = x + 1 if x else 2"] * 3000,
            "            await conn.write(x)",
        ]
    )
    names: dict[str, Any] = {}
    exec(source, names)
    driver = FakeDriver(commit=[conflict()])
    async with Pool(driver) as pool:
        await names["work"](pool)
        assert (driver.calls["commit"], len(driver.rows)) == (2, 1)


async def test_continue_goes_on_as_the_end_of_the_block_does() -> None:
    """It leaves the block, and not the loop."""
    driver = FakeDriver(commit=[conflict(), conflict()])
    async with Pool(driver) as pool:
        async for attempt in pool.attempts():
            async with attempt as conn:
                if attempt.number < 3:
                    await conn.write(attempt.number)
                    continue
                await conn.write("last")
        assert driver.rows == ["last"]


async def test_errors_own_to_the_block_end_the_loop() -> None:
    """At once."""
    driver = FakeDriver()
    async with Pool(driver) as pool:
        with pytest.raises(LookupError):
            async for attempt in pool.attempts():
                async with attempt as conn:
                    await conn.write(1)
                    raise LookupError
        assert (driver.calls["begin"], driver.rows) == (1, [])
        async for attempt in pool.attempts():
            try:
                async with attempt as conn:
                    raise LookupError
            except LookupError:
                pass  # it was given up: there is no other attempt
        assert driver.calls["begin"] == 2
        await check_pool(pool)


async def test_attempt_that_is_not_entered_is_an_error() -> None:
    """Else the loop would never end."""
    async with Pool(FakeDriver()) as pool:
        with pytest.raises(PoolError, match="was not entered: write `async with attempt as conn:`"):
            async for _ in pool.attempts():
                pass


async def test_attempt_is_entered_once() -> None:
    """One after the other, or in itself."""
    driver = FakeDriver()
    async with Pool(driver) as pool:
        with pytest.raises(PoolError, match="used already"):
            async for attempt in pool.attempts():
                async with attempt:
                    pass
                async with attempt:
                    raise AssertionError
        with pytest.raises(PoolError, match="used already"):
            async for attempt in pool.attempts():
                async with attempt, attempt:
                    raise AssertionError
        assert driver.calls["begin"] == 2
        await check_pool(pool)


async def test_attempt_that_goes_on_keeps_the_loop_from_going_on() -> None:
    """As its transaction is open."""
    async with Pool(FakeDriver()) as pool:
        attempts = pool.attempts()
        attempt = await anext(attempts)
        async with attempt:
            with pytest.raises(PoolError, match="has not ended"):
                await anext(attempts)
        with pytest.raises(StopAsyncIteration):
            await anext(attempts)
        await check_pool(pool)


async def test_attempt_is_of_no_use_after_its_loop() -> None:
    """Nor are the attempts for another loop, which would do nothing."""
    driver = FakeDriver(commit=[conflict()])
    async with Pool(driver) as pool:
        attempts = pool.attempts()
        kept: Any = None
        async for attempt in attempts:
            kept = attempt
            async with attempt:
                pass
        with pytest.raises(PoolError, match="used already"):
            async with kept:
                raise AssertionError
        with pytest.raises(PoolError, match="once for each loop"):
            async for _ in attempts:
                raise AssertionError
        await check_pool(pool)


async def test_async_generator_is_refused() -> None:
    """What it has yielded would be yielded once more: half a response, twice."""
    driver = FakeDriver()

    async def stream(pool: Pool[Any]) -> Any:
        async for attempt in pool.attempts():
            async with attempt as conn:
                yield await conn.query()

    async with Pool(driver) as pool:
        with pytest.raises(
            PoolConfigError, match=r"async generator, .*stream: what it has yielded"
        ):
            async for _ in stream(pool):
                raise AssertionError
        assert driver.calls["begin"] == 0
        await check_pool(pool)


async def test_loop_that_is_left_after_an_undone_attempt_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its user may believe that it was done."""
    driver = FakeDriver(query=[conflict()])
    async with Pool(driver, name="shop") as pool:

        async def leave() -> None:
            async for attempt in pool.attempts():
                async with attempt as conn:
                    await conn.query()
                break

        with caplog.at_level(logging.WARNING, "poolkit"):
            await leave()
            await leave()
        (record,) = caplog.records
        assert "left after an attempt that was undone (Fault: conflict)" in record.getMessage()
        await check_pool(pool)


async def test_loop_that_is_left_in_any_way_loses_nothing() -> None:
    """Before an attempt, in it, and after it."""
    async with Pool(FakeDriver(), max_size=1) as pool:
        async for _ in pool.attempts():
            break
        with pytest.raises(LookupError):
            async for _ in pool.attempts():
                raise LookupError
        with pytest.raises(LookupError):
            async for attempt in pool.attempts():
                async with attempt:
                    pass
                raise LookupError
        await check_pool(pool)
