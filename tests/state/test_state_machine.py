"""The book under Hypothesis: any order of events, checked against the promises one by one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from poolkit import Options, Verdict
from poolkit._slot import NEVER, Slot, Waiter
from poolkit._state import PoolState
from tests.invariants import check_book

UNUSABLE = ("gone", "closing")


class Book(RuleBasedStateMachine):
    """Callers, jobs with every outcome, time, outages, resizing, renewing, closing, reopening."""

    @initialize(
        min_size=st.integers(0, 2),
        max_size=st.integers(2, 4),
        overflow=st.integers(0, 2),
        linger=st.sampled_from([0.0, 3.0]),
        max_waiting=st.sampled_from([None, 3]),
        max_uses=st.sampled_from([None, 3]),
        lifetime=st.sampled_from([None, 20.0]),
        ping_after=st.sampled_from([None, 0.0, 2.0]),
        max_connecting=st.integers(1, 3),
    )
    def make(
        self,
        min_size: int,
        max_size: int,
        overflow: int,
        linger: float,
        max_waiting: int | None,
        max_uses: int | None,
        lifetime: float | None,
        ping_after: float | None,
        max_connecting: int,
    ) -> None:
        """Make a book with some options."""
        self.options = Options(
            min_size=min_size,
            max_size=max_size,
            max_overflow=overflow,
            overflow_linger=linger,
            max_waiting=max_waiting,
            max_uses=max_uses,
            max_lifetime=lifetime,
            max_idle_time=8.0,
            ping_after=ping_after,
            max_connecting=max_connecting,
        )
        self.now = 100.0
        self.jitter = itertools.cycle([0.0, 0.9, 0.5])
        self.book = PoolState(self.options, lambda: next(self.jitter))
        self.names = itertools.count()
        self.opened: set[str] = set()
        self.ended: list[str] = []
        self.at_work: dict[Slot, str] = {}
        self.waiters: list[Waiter] = []  # in the order they came
        self.holders: dict[str, object] = {}  # connection -> who holds it
        self.taken: list[tuple[Slot, object]] = []
        self.acquires = 0
        self.size_limit = self.options.capacity
        self.last_served = -1

    # -- what the shell does after each event ----------------------------------------------------

    def settle(self) -> None:
        """Empty the three queues as the shell does, and check what comes out of them."""
        book = self.book
        while book.doomed:
            self.end(book.doomed.popleft())
        while book.woken:
            waiter = book.woken.popleft()
            assert waiter.outcome != "waiting"
            if waiter.slot is not None:
                self.hand_over(waiter)
        while book.jobs:
            job, slot = book.jobs.popleft()
            assert slot not in self.at_work, "a slot with two jobs"
            self.at_work[slot] = job
            if job == "connect":
                assert book.size <= max(self.options.capacity, self.size_limit)

    def end(self, connection: str) -> None:
        """Record the end of a connection: exactly one for each."""
        assert connection in self.opened
        assert connection not in self.ended, "closed twice"
        self.ended.append(connection)

    def hand_over(self, waiter: Waiter) -> None:
        """Record that a waiter was served, in order and in time."""
        slot = waiter.slot
        assert slot is not None
        assert self.now < waiter.deadline, "served after its deadline"
        place = self.waiters.index(waiter)
        for earlier in self.waiters[:place]:
            assert earlier.outcome != "waiting", "overtaken"
        self.take_up(slot, waiter)

    def take_up(self, slot: Slot, holder: object) -> None:
        """Record a holder: there is at most one."""
        assert slot.state == "leased"
        assert slot.connection in self.opened
        assert slot.connection not in self.ended, "handed out after its end"
        assert slot.connection not in self.holders, "two holders"
        assert self.now < slot.expires_at, "handed out past its lifetime"
        self.holders[slot.connection] = holder
        self.taken.append((slot, holder))

    def give_back(self, index: int) -> Slot:
        """Return a leased slot that is no longer held."""
        slot, _ = self.taken.pop(index % len(self.taken))
        del self.holders[slot.connection]
        return slot

    def job(self, kind: str, index: int) -> Slot:
        """Return a slot whose job of this kind ends now."""
        slots = [slot for slot, job in self.at_work.items() if job == kind]
        slot = slots[index % len(slots)]
        del self.at_work[slot]
        return slot

    def has_job(self, kind: str) -> bool:
        """Tell whether a job of this kind is under way."""
        return kind in self.at_work.values()

    # -- events ----------------------------------------------------------------------------------

    index = st.integers(0, 20)

    @precondition(lambda self: not self.book.is_open and not self.taken and not self.at_work)
    @rule(patience=st.sampled_from([1.0, 30.0]))
    def open(self, patience: float) -> None:
        """Open, or open again."""
        self.opener = Waiter(self.now + patience, None, None)
        self.book.open(self.opener, self.now)
        self.settle()

    @rule(patience=st.sampled_from([0.0, 1.0, 5.0, NEVER]))
    def acquire(self, patience: float) -> None:
        """Acquire: at once, or in line."""
        self.acquires += 1
        waiting = [w for w in self.book.queue if self.now < w.deadline]
        slot = self.book.take(self.now)
        if slot is not None:
            assert not waiting, "barging"
            self.take_up(slot, object())
            self.settle()
            return
        waiter = Waiter(self.now + patience, None, None)
        self.waiters.append(waiter)
        self.book.join(waiter, self.now)
        if self.options.max_waiting is not None:
            assert len(self.book.queue) <= self.options.max_waiting
        self.settle()

    @precondition(lambda self: any(w.outcome == "waiting" for w in self.waiters))
    @rule(index=index)
    def give_up(self, index: int) -> None:
        """A waiting caller is cancelled."""
        waiting = [w for w in self.waiters if w.outcome == "waiting"]
        self.book.give_up(waiting[index % len(waiting)], self.now)
        self.settle()

    @precondition(lambda self: any(isinstance(h, Waiter) for _, h in self.taken))
    @rule(index=index)
    def cancelled_after_hand_off(self, index: int) -> None:
        """A caller is cancelled after it was served and before it has noticed."""
        served = [(s, h) for s, h in self.taken if isinstance(h, Waiter) and h.slot is s]
        if not served:
            return
        slot, waiter = served[index % len(served)]
        assert isinstance(waiter, Waiter)
        self.taken.remove((slot, waiter))
        del self.holders[slot.connection]
        self.book.give_up(waiter, self.now)
        self.settle()

    @precondition(lambda self: self.taken)
    @rule(index=index, touched=st.booleans())
    def release(self, index: int, touched: bool) -> None:
        """A holder gives back a clean connection."""
        slot = self.give_back(index)
        slot.touched = touched
        self.book.release(slot, self.now)
        self.settle()

    @precondition(lambda self: self.taken)
    @rule(index=index)
    def release_dirty(self, index: int) -> None:
        """A holder gives back a connection that needs a reset."""
        self.book.release_dirty(self.give_back(index), self.now)
        self.settle()

    @precondition(lambda self: self.taken)
    @rule(index=index)
    def release_broken(self, index: int) -> None:
        """A holder gives back a dead connection."""
        self.book.release_broken(self.give_back(index), self.now)
        self.settle()

    @precondition(lambda self: self.has_job("connect"))
    @rule(index=index)
    def connected(self, index: int) -> None:
        """A connect succeeds."""
        slot = self.job("connect", index)
        connection = f"c{next(self.names)}"
        self.opened.add(connection)
        self.book.connected(slot, connection, self.now)
        self.settle()

    @precondition(lambda self: self.has_job("connect"))
    @rule(index=index, verdict=st.sampled_from([Verdict.TRANSIENT, Verdict.FATAL, None]))
    def connect_failed(self, index: int, verdict: Verdict | None) -> None:
        """A connect fails in one of three ways."""
        slot = self.job("connect", index)
        self.book.connect_failed(slot, OSError("refused"), verdict, self.now)
        self.settle()

    @precondition(lambda self: self.has_job("ping"))
    @rule(index=index, alive=st.booleans(), timed_out=st.booleans())
    def pinged(self, index: int, alive: bool, timed_out: bool) -> None:
        """A ping ends."""
        slot = self.job("ping", index)
        if alive:
            self.book.pinged(slot, self.now)
        else:
            self.book.recycle_failed(slot, self.now, suspect_others=timed_out)
        self.settle()

    @precondition(lambda self: self.has_job("reset"))
    @rule(index=index, clean=st.booleans())
    def was_reset(self, index: int, clean: bool) -> None:
        """A reset ends."""
        slot = self.job("reset", index)
        if clean:
            self.book.was_reset(slot, self.now)
        else:
            self.book.recycle_failed(slot, self.now, suspect_others=False)
        self.settle()

    @precondition(lambda self: self.has_job("close"))
    @rule(index=index)
    def closed(self, index: int) -> None:
        """A close ends."""
        slot = self.job("close", index)
        if slot.state == "closing":
            self.end(slot.connection)
        self.book.closed(slot, self.now)
        self.settle()

    @precondition(lambda self: self.book.idle)
    @rule(index=index)
    def died(self, index: int) -> None:
        """An idle connection is found dead."""
        idle = list(self.book.idle)
        self.book.died(idle[index % len(idle)], self.now)
        self.settle()

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 2.5, 7.0, 25.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes, and the alarm rings when it said it would."""
        until = self.now + seconds
        for _ in range(200):
            due = self.book.next_tick()
            if due > until:
                break
            self.now = max(self.now, due)
            self.book.tick(self.now)
            self.settle()
        else:
            raise AssertionError("the alarm never comes to rest")
        self.now = until
        self.book.tick(self.now)
        self.settle()
        for waiter in self.book.queue:
            assert self.now < waiter.deadline, "still waiting after its deadline"

    @rule(max_size=st.integers(1, 5), overflow=st.integers(0, 2))
    def resize(self, max_size: int, overflow: int) -> None:
        """The sizes change; after shrinking the size only falls."""
        self.options = Options(
            **{
                **self.options.__dict__,
                "min_size": min(self.options.min_size, max_size),
                "max_size": max_size,
                "max_overflow": overflow,
            }
        )
        self.book.resize(self.options, self.now)
        self.size_limit = max(self.options.capacity, self.book.size)
        self.settle()

    @rule()
    def renew(self) -> None:
        """Everything older than now is to be replaced."""
        before = {slot.connection for slot in self.book.idle}
        self.book.renew(self.now)
        self.settle()
        assert not before & {slot.connection for slot in self.book.idle}

    @precondition(lambda self: self.book.is_open)
    @rule()
    def close(self) -> None:
        """The pool is closed politely."""
        self.book.close()
        assert not self.book.queue
        assert not self.book.idle
        self.settle()

    @rule()
    def abandon(self) -> None:
        """The grace has ended."""
        if not self.book.is_open:
            self.book.abandon_leases()
            self.taken.clear()
            self.holders.clear()
            self.settle()

    @rule()
    def collapse(self) -> None:
        """The event loop ends."""
        self.book.collapse(None)
        self.settle()
        assert self.book.size == len(self.taken)
        self.at_work = {s: j for s, j in self.at_work.items() if j == "connect"}

    # -- the promises ----------------------------------------------------------------------------

    @invariant()
    def promises_hold(self) -> None:
        """Nothing is lost; never above capacity; first come, first served; outages end."""
        if hasattr(self, "book"):
            check_book(self.book, self.now, at_work=set(self.at_work))

    @invariant()
    def one_holder(self) -> None:
        """What the book calls leased is exactly what somebody holds."""
        if hasattr(self, "book"):
            assert {slot for slot, _ in self.taken} == set(self.book.leased)

    @invariant()
    def size_is_bounded(self) -> None:
        """The size never grows above the capacity, and above it only falls."""
        if hasattr(self, "book"):
            assert self.book.size <= self.size_limit
            self.size_limit = max(self.options.capacity, self.book.size)

    @invariant()
    def every_connection_is_somewhere(self) -> None:
        """A connection that was opened is in the book or has ended, never both or neither."""
        if hasattr(self, "book"):
            book = self.book
            slots = [*book.idle, *book.leased, *book.recycling, *book.closing]
            alive = [slot.connection for slot in slots]
            assert sorted([*alive, *self.ended]) == sorted(self.opened)

    @invariant()
    def every_acquire_is_counted_once(self) -> None:
        """Direct, waited, timed out, cancelled, busy, failed, closed, or still waiting."""
        if hasattr(self, "book"):
            s = self.book.stats(self.now)
            ended = s.direct + s.waited + s.timed_out + s.cancelled + s.busy + s.failed + s.closed
            assert ended + s.waiting == self.acquires


Book.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_book = pytest.mark.timeout(300)(Book.TestCase)
