"""Observers: told of every event of a pool, in order, and never felt."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from poolkit import (
    ConnectFailed,
    NotLeased,
    Observer,
    Pool,
    PoolBusy,
    PoolClosed,
    PoolConfigError,
    PoolDeadlock,
    PoolTimeout,
    Verdict,
    WrongLoop,
)
from poolkit._shell.observe import EVENTS
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeDriver, FullDriver, own
from tests.pool.virtual import RUNNERS


class Notes:
    """An observer of all events, which notes them without the pool and the seconds."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.seconds: list[tuple[str, float]] = []

    def __getattr__(self, event: str) -> Any:
        if event not in EVENTS:
            raise AttributeError(event)

        def note(pool: Pool[Any], *values: Any) -> None:
            assert isinstance(pool, Pool)
            self.seconds += [(event, value) for value in values if isinstance(value, float)]
            kept = [value for value in values if not isinstance(value, float)]
            self.events.append((event, *kept))

        return note

    def take(self, *only: str) -> list[tuple[Any, ...]]:
        """Return what was noted since the last time, of some events or of all but "timed"."""
        events, self.events = self.events, []
        return [event for event in events if (event[0] in only if only else event[0] != "timed")]


@RUNNERS
def test_times_are_told_many_at_a_time(run: Any) -> None:
    """Once a second at least, each once, whoever asks; and before the observer is told no more."""

    async def main() -> None:
        notes = Notes()
        async with Pool(CleanDriver(), max_size=1) as pool:
            async with pool.acquire():  # of before
                pass
            stop = pool.observe(notes)
            async with anyio.create_task_group() as group:
                conn = await pool.acquire()
                group.start_soon(acquire_for, pool, 0.5)
                await anyio.sleep(0.25)
                pool.release(conn)
            await anyio.sleep(2.0)
            assert times(notes) == {"wait": [0.0, 0.25], "use": [0.25, 0.5]}
            for _ in range(3):
                async with pool.acquire():
                    pass
            stop()
            assert times(notes) == {"wait": [0.0] * 3, "use": [0.0] * 3}
            async with pool.acquire():
                pass
        assert times(notes) == {}

    run(main)


def times(notes: Notes) -> dict[str, list[float]]:
    """Return the times that were told since the last time, in order."""
    found: dict[str, list[float]] = {}
    for _, what, seconds in notes.take("timed"):
        found[what] = sorted((*found.get(what, ()), *seconds))
    return found


async def acquire_for(pool: Pool[Any], seconds: float) -> None:
    """Hold a connection for so long."""
    async with pool.acquire():
        await anyio.sleep(seconds)


async def test_life_of_a_lease_is_told_in_order() -> None:
    """From the connect to the end of the pool."""
    notes = Notes()
    async with Pool(FakeDriver(), max_size=1, observers=[notes]) as pool:
        assert notes.take() == [("connect_began",), ("connected",)]
        async with pool.acquire(label="import"):
            assert notes.take() == [("acquire_began", "import"), ("leased", "import")]
        assert notes.take() == [("released", "import")]
        conn = await pool.acquire()
        assert notes.take() == [("acquire_began", None), ("leased", None)]
        pool.release(conn)
        assert notes.take() == [("released", None)]
    assert notes.take() == [("retired", "pool_closed")]


async def test_acquire_that_is_never_awaited_is_no_event() -> None:
    """It owns nothing."""
    notes = Notes()
    async with Pool(FakeDriver(), observers=[notes]) as pool:
        notes.take()
        pool.acquire()
        assert notes.take() == []


async def test_wait_that_is_served_is_told_before_the_lease() -> None:
    """And the release that serves it before both."""
    notes = Notes()
    async with Pool(CleanDriver(), max_size=1, observers=[notes]) as pool:

        async def wait() -> None:
            async with pool.acquire(label="second"):
                pass

        async with anyio.create_task_group() as group:
            async with pool.acquire(label="first"):
                notes.take()
                group.start_soon(wait)
                await wait_all_tasks_blocked()
                assert notes.take() == [("acquire_began", "second")]
        assert notes.take() == [
            ("released", "first"),
            ("wait_ended", "second", "served"),
            ("leased", "second"),
            ("released", "second"),
        ]


@RUNNERS
def test_seconds_are_those_that_have_passed(run: Any) -> None:
    """Of waiting, of holding, and of connecting."""

    async def main() -> None:
        notes = Notes()
        async with Pool(CleanDriver(), max_size=1, observers=[notes]) as pool:

            async def wait() -> None:
                async with pool.acquire():
                    await anyio.sleep(2.0)

            notes.seconds.clear()
            async with anyio.create_task_group() as group:
                async with pool.acquire():
                    group.start_soon(wait)
                    await anyio.sleep(3.0)
            assert notes.seconds == [
                ("leased", 0.0),
                ("released", pytest.approx(3.0)),
                ("wait_ended", pytest.approx(3.0)),
                ("leased", pytest.approx(3.0)),
                ("released", pytest.approx(2.0)),
            ]

    run(main)


async def test_every_end_of_a_wait_is_told() -> None:
    """One way after the other."""
    notes = Notes()
    pool = Pool(FullDriver(), max_size=1, max_waiting=1, observers=[notes])
    with pytest.raises(PoolClosed):
        await pool.acquire()
    assert notes.take("wait_ended", "leased") == [("wait_ended", None, "closed")]
    async with pool:
        async with pool.acquire():
            notes.take()
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
            assert notes.take("wait_ended") == [("wait_ended", None, "timed_out")]
            with pytest.raises(PoolDeadlock):
                await pool.acquire()
            assert notes.take("wait_ended") == [("wait_ended", None, "deadlocked")]

            async def wait() -> None:
                async with pool.acquire():
                    raise AssertionError("served")

            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await wait_all_tasks_blocked()
                with pytest.raises(PoolBusy):
                    await pool.acquire()
                assert notes.take("wait_ended") == [("wait_ended", None, "busy")]
                group.cancel_scope.cancel()
            assert notes.take("wait_ended") == [("wait_ended", None, "cancelled")]


@RUNNERS
def test_outage_is_told_from_its_first_failure_to_its_end(run: Any) -> None:
    """With how many callers were told of each failure."""

    async def main() -> None:
        notes = Notes()
        driver = FullDriver(connect=[Boom("down"), Boom("down")])
        driver.verdicts[Boom] = Verdict.FATAL
        async with Pool(driver, min_size=0, max_size=1, observers=[notes]) as pool:
            with pytest.raises(ConnectFailed):
                await pool.acquire()
            kinds = [event[0] for event in notes.take()]
            assert kinds == [
                "acquire_began",
                "connect_began",
                "outage_began",
                "connect_failed",
                "wait_ended",
            ]
            notes.seconds.clear()
            await anyio.sleep(1.0)
            with pytest.raises(ConnectFailed):
                await pool.acquire()
            (failed,) = notes.take("outage_began", "connect_failed")
            assert (str(failed[1]), failed[2]) == ("down", 1)
            await anyio.sleep(1.0)
            async with pool.acquire():
                pass
            kinds = [event[0] for event in notes.take()]
            assert kinds == [
                "acquire_began",
                "connect_began",
                "connected",
                "outage_ended",
                "wait_ended",
                "leased",
                "released",
            ]
            assert dict(notes.seconds)["outage_ended"] == pytest.approx(2.0)

    run(main)


@pytest.mark.parametrize("where", ["idle", "leased"])
async def test_connection_that_dies_is_lost_once_and_then_retired(where: str) -> None:
    """Idle it goes at once; leased it is known to be lost before it comes back."""
    driver = FullDriver()
    notes = Notes()
    async with Pool(driver, min_size=0, max_size=1, observers=[notes]) as pool:
        async with pool.acquire() as conn:
            await conn.query()
            real = own(conn)
            notes.take()
            if where == "leased":
                driver.watched[real]()
                await wait_all_tasks_blocked()
                assert notes.take() == [("lost",)]
        if where == "idle":
            await wait_all_tasks_blocked()
            notes.take()
            driver.watched[real]()
            await wait_all_tasks_blocked()
            assert notes.take() == [("lost",), ("retired", "broken")]
        else:
            assert notes.take() == [("released", None), ("retired", "broken")]


async def test_lease_that_nobody_gives_back_is_released_all_the_same(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Collected, or ended with the pool."""
    notes = Notes()
    async with Pool(FakeDriver(), max_size=2, observers=[notes]) as pool:
        conn = await pool.acquire(label="dropped")
        del conn
        gc.collect()
        await wait_all_tasks_blocked()
        assert ("released", "dropped") in notes.take()
        kept = await pool.acquire(label="kept")
        await pool.aclose(grace=0)
        assert notes.take("released") == [("released", "kept")]
        del kept
    assert recwarn


async def test_cancelled_aclose_tells_the_end_of_each_lease_once() -> None:
    """However it ends."""
    notes = Notes()
    pool = await Pool(FakeDriver(), max_size=1, observers=[notes]).open()
    kept: Any = None

    async def hold() -> None:
        nonlocal kept
        kept = await pool.acquire()

    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        await wait_all_tasks_blocked()
        with anyio.move_on_after(0) as scope:
            await pool.aclose(grace=None)
    assert scope.cancelled_caught
    assert notes.take("released") == [("released", None)]


async def test_hook_runs_after_the_lease_is_told() -> None:
    """And if it fails, the lease is over."""
    notes = Notes()

    async def hook(_: FakeConnection) -> None:
        notes.events.append(("hook",))
        raise Boom

    async with Pool(FakeDriver(), max_size=1, on_acquire=hook, observers=[notes]) as pool:
        notes.take()
        with pytest.raises(Boom):
            await pool.acquire()
        assert notes.take() == [
            ("acquire_began", None),
            ("leased", None),
            ("hook",),
            ("released", None),
        ]


async def test_finalizer_tells_nobody_in_the_middle_of_an_event() -> None:
    """What it does is told when the other event is done, in order."""
    notes = Notes()
    async with Pool(FakeDriver(), max_size=1, observers=[notes]) as pool:
        notes.take()
        pool._amid = True  # as if the collector ran in the middle of a line of the pool's
        with pytest.raises(PoolBusy):
            await pool.acquire(label="in a finalizer")
        assert notes.take() == []
        pool._amid = False
        pool._drain()
        async with pool.acquire(label="later"):
            pass
        assert notes.take() == [
            ("acquire_began", "in a finalizer"),
            ("wait_ended", "in a finalizer", "busy"),
            ("acquire_began", "later"),
            ("leased", "later"),
            ("released", "later"),
        ]


async def test_waiter_that_the_collector_closes_has_been_cancelled() -> None:
    """In the middle of another event, after which it is told."""
    notes = Notes()
    async with Pool(FakeDriver(), max_size=1, deadlock="off", observers=[notes]) as pool:
        async with pool.acquire():
            waiting = pool.acquire(label="collected").__aenter__()
            waiting.send(None)
            notes.take()
            pool._amid = True
            waiting.close()
            assert notes.take() == []
            pool._amid = False
            pool._drain()
            pool._tell_news()
            assert notes.take() == [("wait_ended", "collected", "cancelled")]
            assert pool.stats().waiting == 0


def test_release_without_stack_loses_nothing() -> None:
    """However deep the caller is, with an observer as without one."""

    async def main() -> None:
        notes = Notes()
        async with Pool(CleanDriver(), max_size=1, deadlock="off", observers=[notes]) as pool:

            def deep(left: int, conn: Any) -> None:
                if left:
                    deep(left - 1, conn)
                else:
                    pool.release(conn)

            for spare in range(1, 20):
                conn = await pool.acquire(timeout=5.0)

                frame, depth = sys._getframe(), 0
                while frame is not None:
                    frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
                with contextlib.suppress(RecursionError):
                    deep(sys.getrecursionlimit() - depth - spare, conn)
                with contextlib.suppress(NotLeased):
                    pool.release(conn)
                del conn
            async with pool.acquire(timeout=5.0):
                assert pool.stats().leased == 1
            assert len(notes.take("leased")) == 20

    asyncio.run(main())


async def test_waiter_whose_connection_is_taken_back_is_told_to_be_closed() -> None:
    """Handed a connection, and the pool ends before it wakes: it never had a lease."""
    notes = Notes()
    pool = await Pool(CleanDriver(), max_size=1, observers=[notes]).open()
    conn = await pool.acquire(label="first")

    async def wait() -> None:
        with pytest.raises(PoolClosed):
            await pool.acquire(label="second")

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await wait_all_tasks_blocked()
        notes.take()
        pool.release(conn)
        pool._collapse(pool._life, None)  # type: ignore[arg-type]
    assert notes.take("leased", "released", "wait_ended") == [
        ("released", "first"),
        ("wait_ended", "second", "closed"),
    ]


async def test_lease_that_a_finalizer_ends_during_aclose_is_released_once() -> None:
    """Between the note that leases end and their end."""
    notes = Notes()
    pool = await Pool(FakeDriver(), max_size=1, observers=[notes]).open()
    conn = await pool.acquire()
    pool._tell(pool._end_leases)
    pool.release(conn)
    await pool.aclose(grace=0)
    assert notes.take("released") == [("released", None)]


async def test_later_observer_hears_in_order_what_an_earlier_one_causes() -> None:
    """The first one releases as soon as it is told."""
    held: list[Any] = []

    class Releasing(Observer):
        def retired(self, pool: Pool[Any], reason: str) -> None:
            if held:
                pool.release(held.pop())

    notes = Notes()
    async with Pool(FakeDriver(), max_size=2, min_size=2, observers=[Releasing(), notes]) as pool:
        held.append(await pool.acquire(label="held"))
        notes.take()
        pool.resize(min_size=0, max_size=1)
        events = notes.take("retired", "released")
        assert events[:2] == [("retired", "surplus"), ("released", "held")]


async def test_stop_that_is_called_twice_stops_one() -> None:
    """Of an observer that is there twice, the other stays."""
    notes = Notes()
    async with Pool(FakeDriver()) as pool:
        stop = pool.observe(notes)
        pool.observe(notes)
        stop()
        stop()
        async with pool.acquire():
            pass
    assert len(notes.take("leased")) == 1


def test_acquire_on_a_wrong_loop_is_told_to_nobody() -> None:
    """It ends with an error there, and is counted nowhere."""
    notes = Notes()
    pool = Pool(FakeDriver(), observers=[notes])

    async def elsewhere() -> None:
        with pytest.raises(WrongLoop):
            await pool.acquire()

    async def main() -> None:
        async with pool:
            notes.take()
            await asyncio.to_thread(asyncio.run, elsewhere())
            assert notes.take() == []
            failed: list[BaseException] = []

            def callback() -> None:
                try:
                    pool.acquire().__aenter__().send(None)
                except WrongLoop as error:
                    failed.append(error)

            asyncio.get_running_loop().call_soon(callback)
            await asyncio.sleep(0.01)
            assert failed
            assert notes.take() == []

    asyncio.run(main())


async def test_transaction_that_begins_twice_keeps_its_label() -> None:
    """Its BEGIN met a lost connection; the other lease is for the same."""
    driver = FullDriver()
    driver.verdicts[Boom] = Verdict.DEAD

    notes = Notes()
    async with Pool(driver, max_size=1, observers=[notes]) as pool:
        begun = iter([Boom("gone")])
        transaction = driver.transaction

        def begin(c: FakeConnection, **settings: Any) -> Any:
            made = transaction(c, **settings)
            enter = made.__aenter__

            class Once:
                async def __aenter__(self) -> None:
                    if error := next(begun, None):
                        raise error
                    await enter()

                async def __aexit__(self, *error: object) -> None:
                    await made.__aexit__(*error)

            return Once()

        driver.transaction = begin  # type: ignore[method-assign]
        async with pool.transaction(label="nightly import"):
            (info,) = pool.leases()
            assert info.label == "nightly import"
    assert notes.take("leased") == [("leased", "nightly import")] * 2


async def test_lost_connection_is_told_once_though_the_pool_is_renewed() -> None:
    """Its reason stays."""
    driver = FullDriver()
    notes = Notes()
    async with Pool(driver, max_size=1, observers=[notes]) as pool:
        async with pool.acquire() as conn:
            await conn.query()
            driver.watched[own(conn)]()
            await wait_all_tasks_blocked()
            pool.renew()
        assert notes.take("lost", "retired") == [("lost",), ("retired", "broken")]


@RUNNERS
def test_connect_that_fails_after_a_renewal_is_told(run: Any) -> None:
    """It says nothing of the database, and was told to nobody; but it has ended."""

    async def main() -> None:
        notes = Notes()
        driver = FakeDriver(connect=[(1.0, Boom("late"))])
        async with Pool(driver, min_size=0, max_size=1, observers=[notes]) as pool:

            async def use() -> None:
                async with pool.acquire():
                    pass

            async with anyio.create_task_group() as group:
                group.start_soon(use)
                await anyio.sleep(0.5)
                pool.renew()
            events = notes.take("connect_began", "connect_failed", "connected", "outage_began")
            assert [event[0] for event in events] == [
                "connect_began",
                "connect_failed",
                "connect_began",
                "connected",
            ]
            assert events[1][2] == 0

    run(main)


def test_observer_whose_attribute_raises_is_not_kept() -> None:
    """Looked up once, when it is given."""

    class Broken(Notes):
        @property
        def leased(self) -> Any:
            raise Boom("attribute")

    pool = Pool(FakeDriver())
    with pytest.raises(Boom):
        pool.observe(Broken())
    stop = pool.observe(Notes())
    stop()
    assert pool._observers is None


# -- observers come, go and fail -----------------------------------------------------------------


async def test_observer_that_raises_is_logged_once_and_never_felt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the caller, the others, and the pool's tasks."""

    class Rude(Observer):
        def acquire_began(self, pool: Any, label: str | None) -> None:
            raise Boom("began")

        def connected(self, pool: Any, seconds: float) -> None:
            raise asyncio.CancelledError

        def released(self, pool: Any, label: str | None, seconds: float) -> None:
            raise Boom("released")

    notes = Notes()
    with caplog.at_level(logging.DEBUG, "poolkit"):
        async with Pool(FakeDriver(), observers=[Rude(), notes]) as pool:
            for _ in range(3):
                async with pool.acquire():
                    pass
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert sorted(text.split(" raised ")[0] for text in errors) == [
        "Rude.acquire_began",
        "Rude.connected",
        "Rude.released",
    ]
    assert len(notes.take("released")) == 3


async def test_observer_that_comes_again_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    """And not one that has stayed meanwhile."""

    class Rude(Observer):
        def released(self, pool: Any, label: str | None, seconds: float) -> None:
            raise Boom("released")

    class Ruder(Rude):
        pass

    rude, ruder = Rude(), Ruder()

    async def told_of() -> list[str]:
        caplog.clear()
        async with pool.acquire():
            pass
        return [record.getMessage().partition(".")[0] for record in caplog.records]

    async with Pool(FakeDriver(), observers=[ruder]) as pool:
        stop = pool.observe(rude)
        assert await told_of() == ["Ruder", "Rude"]
        assert await told_of() == []
        stop()
        pool.observe(rude)
        assert await told_of() == ["Rude"]


async def test_what_an_observer_raises_that_is_no_error_comes_out_of_aclose() -> None:
    """Each time, as what a driver raises: the caller in whose way it came has not seen it."""

    class Fatal(BaseException):
        pass

    class Rude(Observer):
        def released(self, pool: Any, label: str | None, seconds: float) -> None:
            raise Fatal

    pool = await Pool(FakeDriver(), observers=[Rude()]).open()
    for _ in range(2):
        async with pool.acquire() as conn:
            assert await conn.query() == "row"
    with pytest.raises(BaseExceptionGroup) as caught:
        await pool.aclose()
    assert [type(error) for error in caught.value.exceptions] == [Fatal, Fatal]


async def test_event_that_nobody_has_a_method_for_is_not_noted() -> None:
    """So one that hears nothing of leases costs them nothing, nor does what it has inherited."""

    class Idle(Observer):
        pass

    class Leasing(Observer):
        def leased(self, pool: Any, label: str | None, seconds: float) -> None:
            pass

    class Counting(Observer):
        def retired(self, pool: Any, reason: str) -> None:
            pass

    own = {"connect_began", "connected", "connect_failed", "lost"}  # for the pool's own log
    for observer, is_asked in ((Idle(), False), (Leasing(), True), (Counting(), False)):
        async with Pool(FakeDriver(), observers=[observer]) as pool:
            assert (pool._observers is not None) is is_asked
            heard = {event for event in EVENTS if pool._all_observers.hear(event)}
            assert heard == own | {name for name in vars(type(observer)) if name in EVENTS}
            assert repr(pool)


async def test_observers_come_and_go_in_any_order() -> None:
    """Each is told as long as it is there, in the order in which they came."""
    told: list[str] = []

    class Named(Observer):
        def __init__(self, name: str) -> None:
            self.name = name

        def leased(self, pool: Any, label: str | None, seconds: float) -> None:
            told.append(self.name)

    async with Pool(FakeDriver()) as pool:
        stops = [pool.observe(Named(name)) for name in "abc"]
        for gone in (1, 0, 2, 2):
            async with pool.acquire():
                pass
            stops[gone]()
        async with pool.acquire():
            pass
        assert told == [*"abc", *"ac", *"c"]
        assert pool._observers is None
        pool.observe(Named("d"))
        async with pool.acquire():
            pass
        assert told[-1] == "d"


async def test_observer_that_stops_when_it_is_told_hears_nothing_more() -> None:
    """Not even of what has happened already; and nobody feels it."""
    told: list[str] = []

    class Once(Observer):
        def retired(self, pool: Any, reason: str) -> None:
            told.append(reason)
            stop()

    driver = FakeDriver()
    async with Pool(driver, min_size=3, max_size=3) as pool:
        stop = pool.observe(Once())
        pool.resize(min_size=0, max_size=1)
        assert told == ["surplus"]
        assert pool.stats().retired["surplus"] == 2
        async with pool.acquire() as conn:
            assert await conn.query() == "row"


async def test_lease_that_began_unobserved_is_not_told_to_be_released() -> None:
    """Nor one whose observer has gone in between; another one that comes then hears nothing of it."""
    first, second = Notes(), Notes()
    async with Pool(FakeDriver(), max_size=2) as pool:
        before = await pool.acquire(label="before")
        stop = pool.observe(first)
        during = await pool.acquire(label="during")
        pool.release(before)
        stop()
        pool.release(during)
        pool.observe(second)
        async with pool.acquire(label="after"):
            pass
    assert first.take("leased", "released") == [("leased", "during")]
    assert second.take("leased", "released") == [("leased", "after"), ("released", "after")]


async def test_observer_may_ask_the_pool() -> None:
    """It is told when the books are in order."""
    seen: list[tuple[int, int]] = []

    class Asking(Observer):
        def leased(self, pool: Pool[Any], label: str | None, seconds: float) -> None:
            seen.append((pool.stats().leased, len(pool.leases())))

        def released(self, pool: Pool[Any], label: str | None, seconds: float) -> None:
            seen.append((pool.stats().leased, len(pool.leases())))

        def retired(self, pool: Pool[Any], reason: str) -> None:
            pool.renew()

    async with Pool(FakeDriver(), observers=[Asking()]) as pool:
        async with pool.acquire():
            pass
        assert seen == [(1, 1), (0, 0)]


@pytest.mark.parametrize(
    "wrong", [object(), Observer, 3, "leased"], ids=["object", "class", "3", "str"]
)
def test_what_is_no_observer_is_refused(wrong: Any) -> None:
    """With what is missing."""
    with pytest.raises(PoolConfigError, match="observer"):
        Pool(FakeDriver(), observers=[wrong])
    with pytest.raises(PoolConfigError, match="observer"):
        Pool(FakeDriver()).observe(wrong)


@pytest.mark.parametrize("wrong", [Notes(), iter([Notes()]), None], ids=["one", "iterator", "None"])
def test_observers_that_are_no_list_are_refused(wrong: Any) -> None:
    """Also one that is given by itself."""
    with pytest.raises(PoolConfigError, match="is no list: give"):
        Pool(FakeDriver(), observers=wrong)


async def test_wrapped_methods_of_a_pool_go_on_working(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent may wrap the public methods of the class, or of one pool, before or after."""
    calls: list[str] = []
    original = Pool.acquire

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append("acquire")
        return original(self, *args, **kwargs)

    notes = Notes()
    async with Pool(FakeDriver(), max_size=1, observers=[notes]) as pool:
        monkeypatch.setattr(Pool, "acquire", wrapped)
        stop = pool.observe(Notes())
        async with pool.acquire(label="x"):
            pass
        stop()
        async with pool.acquire():
            pass
        assert calls == ["acquire", "acquire"]
        assert len(notes.take("leased")) == 2


async def test_waiter_that_cannot_tell_how_its_wait_has_ended_gives_back() -> None:
    """There may be no stack left for it; the connection it was handed goes to the next one."""
    async with Pool(FakeDriver(), max_size=1, observers=[Notes()]) as pool:
        held = await pool.acquire()
        errors: list[BaseException] = []

        async def wait() -> None:
            try:
                await pool.acquire()
            except RecursionError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await wait_all_tasks_blocked()
            pool.release(held)
            now = pool._runtime.now

            def fail() -> float:
                pool._runtime.now = now
                raise RecursionError("no stack")

            pool._runtime.now = fail
        assert len(errors) == 1
        assert pool.stats().idle == 1
        assert pool.stats().cancelled == 1


async def test_line_that_is_joined_while_an_observer_releases_is_left_at_once() -> None:
    """The wait is over before it has begun."""
    held: list[Any] = []

    class Releasing(Observer):
        def connect_began(self, pool: Pool[Any]) -> None:
            if held:
                pool.release(held.pop())

    async with Pool(FakeDriver(), min_size=1, max_size=2, observers=[Releasing()]) as pool:
        held.append(await pool.acquire())
        real = own(held[0])
        async with pool.acquire() as conn:
            assert own(conn) is real
