"""A book and everything around it: callers, jobs, time; each event checked against the invariants.

The shell is played in a few lines (`settle`), so that the book can be driven through any order of
events: by Hypothesis (`test_state_machine`) and by visiting every state there is (`test_model`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from poolkit import Options, Verdict
from poolkit._core import fitness
from poolkit._core.slot import NEVER, Slot, Waiter
from poolkit._core.state import PoolState
from poolkit.testing._invariants import check_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit import PoolStats

#: What to do next: the name of a method of `World`, and its arguments.
Event = tuple[Any, ...]

OUTCOMES = {
    "connect": ("ok", "transient", "fatal", "unclassified"),
    "ping": ("ok", "failed", "timed_out"),
    "reset": ("ok", "failed"),
    "close": ("ok",),
}
VERDICTS = {
    "transient": Verdict.TRANSIENT,
    "fatal": Verdict.FATAL,
    "unclassified": None,
    "stale": Verdict.STALE,
    "server gone": Verdict.SERVER_GONE,
}
RELEASES = (
    *("clean", "used", "unreset", "dirty", "rejected"),
    *("broken", "closing", "stale", "server gone"),
)


class Caller:
    """Somebody who acquires and releases: out, waiting, served without knowing it, or holding."""

    def __init__(self) -> None:
        self.waiter: Waiter | None = None
        self.slot: Slot | None = None
        self.how: Literal["direct", "served"] = "direct"

    @property
    def is_out(self) -> bool:
        """Tell whether this one neither waits nor holds."""
        return self.waiter is None and self.slot is None


class World:
    """One book, with ``callers`` who use it."""

    def __init__(self, state: PoolState, callers: int) -> None:
        self.state = state
        self.now = 100.0
        self.callers = [Caller() for _ in range(callers)]
        self.opener: Waiter | None = None
        self.ready: Waiter | None = None  # who waits for `min_size` connections
        self.line: list[Caller] = []  # who waits, in the order they came
        self.at_work: dict[Slot, str] = {}
        self.opened = 0  # connections so far; each is known by its number
        self.alive: set[int] = set()  # those that have not ended
        self.dead: set[int] = set()  # those of which the pool has been told that they died
        self.stale_at: dict[Slot, float] = {}  # from when on a renewal forbids its use
        self.proved_at: dict[Slot, float] = {}  # when what it has last answered was sent
        self.owing: set[Slot] = set()  # those that need a reset before they may be idle
        self.blocked_until = -NEVER  # the event loop was away
        self.size_limit = state.options.capacity
        self.acquires = 0
        self.held = 0  # as the event began
        self.turned_away = False  # somebody, a moment ago
        self.attempt_at = -NEVER  # the last connect began
        self.connected = 0  # those that the pool has kept
        self.direct = 0  # acquires that found a connection idle
        self.retired = dict(state.retired)
        self.aged: set[Slot] = set()  # those that go for their age, before they have to
        self.lost = 0  # those whose caller was given a connection and had gone
        self.most_leased = 0
        self.open_for = 0.0

    # -- events ----------------------------------------------------------------------------------

    def events(
        self,
        *,
        patience: tuple[float, ...] = (NEVER,),
        seconds: tuple[float, ...] = (),
        late: tuple[float, ...] = (),
        sizes: tuple[tuple[int, int], ...] = (),
        spans: tuple[float, ...] = (),
        blocks: tuple[float, ...] = (),
        lives: bool = True,
        readiness: bool = False,
    ) -> Iterator[Event]:
        """Return everything that may happen next; of callers that are alike, the first."""
        state = self.state
        out = next((i for i, caller in enumerate(self.callers) if caller.is_out), None)
        if out is not None:
            yield from (("acquire", out, seconds) for seconds in patience)
        for i, caller in enumerate(self.callers):
            if caller.waiter is not None:
                yield ("give_up", i)
                if caller.waiter.slot is not None:
                    yield ("notice", i)
            elif caller.slot is not None:
                yield from (("release", i, how) for how in RELEASES)
        for i, job in enumerate(self.at_work.values()):
            yield from (("end_job", i, outcome) for outcome in OUTCOMES[job])
        for where in ("idle", "leased", "recycling"):
            yield from (("die", where, i) for i in range(len(getattr(state, where))))
        yield from (("wait", length) for length in seconds)
        yield from (("oversleep", length) for length in late)
        yield from (("block", length) for length in blocks)
        if self.is_overdue:
            yield ("ring",)
        yield from (("resize", *size) for size in sizes)
        yield from (("renew", span) for span in spans)
        yield from self._of_readiness(readiness)
        if lives:
            if state.phase == "closed":
                yield ("open",)
            elif state.is_open:
                yield ("renew",)
                yield ("close",)
            else:
                yield ("abandon",)
            yield ("collapse",)

    def _of_readiness(self, is_wanted: bool) -> Iterator[Event]:
        if is_wanted and self.state.phase == "closed":
            yield ("open_at_once",)
        elif is_wanted and self.state.is_open:
            yield ("leave",) if self.ready else ("await_ready",)
            if self.state.idle:
                yield ("check_idle",)

    def do(self, event: Event) -> None:
        """Let something happen, and check everything."""
        name, *arguments = event
        was_open, began_at = self.state.is_open, self.now
        getattr(self, name)(*arguments)
        self.settle()
        self.open_for += was_open * (self.now - began_at)
        self.most_leased = max(self.most_leased, len(self.state.leased))
        self.check()

    def open(self) -> None:
        """Open, or open again."""
        self.opener = Waiter(self.now + 30.0, None)
        self.state.open(self.opener, self.now)

    def open_at_once(self) -> None:
        """Open without waiting for a connection."""
        self.state.open(None, self.now)
        assert self.state.phase == "open"

    def await_ready(self) -> None:
        """Wait for `min_size` connections."""
        self.ready = Waiter(NEVER, None)
        self.state.wait_ready(self.ready, self.now)

    def leave(self) -> None:
        """Cancel the caller who waits for them."""
        assert self.ready is not None
        self.state.give_up_opening(self.ready)
        self.ready = None

    def check_idle(self) -> None:
        """Ping whatever is idle: there is as much as before, and none of it is idle."""
        live = self.state.live
        self.state.ping_idle(self.now)
        assert not self.state.idle
        assert self.state.live == live

    def acquire(self, i: int, patience: float) -> None:
        """Acquire: at once, or in line."""
        caller = self.callers[i]
        self.acquires += 1
        waiting = any(self.now < w.waiter.deadline for w in self.line if w.waiter)
        slot = self.state.take(self.now)
        if slot is not None:
            assert not waiting, "I4: barging"
            self.check_handed_out(slot)
            self.direct += 1
            caller.slot, caller.how = slot, "direct"
            return
        caller.waiter = Waiter(self.now + patience, None)
        self.line.append(caller)
        self.state.enqueue(caller.waiter, self.now)
        limit = 0 if patience == 0 else self.state.options.max_waiting
        coming = len(self.state.idle) + self.state.progress.recycles()
        if caller.waiter.outcome in ("busy", "timed_out"):
            self.turned_away = True
            assert len(self.state.queue) >= coming, "I3: refused, and only a ping is missing"
        elif limit is not None and caller.waiter.outcome == "waiting":
            assert len(self.state.queue) <= max(limit, coming), "a longer queue than allowed"

    def give_up(self, i: int) -> None:
        """Cancel a caller who waits, or was served and has not noticed yet."""
        caller = self.callers[i]
        assert caller.waiter is not None
        self.lost += caller.waiter.slot is not None
        self.state.give_up(caller.waiter, self.now)
        if caller in self.line:
            self.line.remove(caller)
        caller.waiter = None

    def notice(self, i: int) -> None:
        """Let a caller who was served notice."""
        caller = self.callers[i]
        assert caller.waiter is not None
        slot, caller.waiter = caller.waiter.slot, None
        assert slot is not None
        if slot.state == "leased":  # else taken back meanwhile
            caller.slot, caller.how = slot, "served"

    def check_handed_out(self, slot: Slot) -> None:
        """Check that a slot may be handed out now."""
        assert slot.state == "leased"
        assert slot.connection in self.alive, "I10: handed out after its end"
        assert slot.connection not in self.dead, "I10: handed out after its death"
        assert self.now < slot.expires_at, "I10: handed out past its lifetime"
        assert self.now < self.stale_at.get(slot, NEVER), "I10: handed out after a renewal"
        if self.state.options.ping_after is not None:
            proved = self.proved_at[slot] >= self.blocked_until
            assert proved, "I13: handed out on news from before the loop was away"

    def release(self, i: int, how: str) -> None:
        """Give back, in one of the ways there are."""
        slot, self.callers[i].slot = self.callers[i].slot, None
        assert slot is not None
        if how == "rejected":  # by `on_acquire`, which is given another one
            self.state.uncount(self.callers[i].how)
            self.acquires -= 1
            self.lost += 1
            self.owing.add(slot)
            self.state.release_broken(slot, self.now, "rejected")
        elif how in VERDICTS:
            self.heed(slot, VERDICTS[how])
        elif how in ("unreset", "dirty", "broken", "closing"):
            self.owing.add(slot)
            if how == "unreset":
                self.proved_at[slot] = slot.leased_at
            getattr(self.state, f"release_{how}")(slot, self.now)
            for waiter in self.state.queue.values():
                assert self.now < waiter.deadline, "I13: will be told of what comes after"
        else:
            slot.touched = how == "used"
            if slot.touched:
                self.proved_at[slot] = slot.leased_at
            self.state.release(slot, self.now)

    def heed(self, slot: Slot, verdict: Verdict | None) -> None:
        """Give back after an error that says something of the connection, and of the others."""
        assert verdict is not None
        state = self.state
        slot.verdicts |= {verdict}
        generation = state.generation
        there = (*state.connecting, *state.idle, *state.leased, *state.recycling)
        broken = state.learn(slot, self.now)
        if state.generation > generation:
            self.stale_at.update(dict.fromkeys(there, self.now))
        if broken:
            state.release_broken(slot, self.now)
        else:
            state.release(slot, self.now)

    def end_job(self, i: int, outcome: str) -> None:
        """End a job."""
        slot = list(self.at_work)[i]
        job = self.at_work.pop(slot)
        if job == "connect" and outcome == "ok":
            self.opened += 1
            self.connected += slot.state == "connecting"  # else given up meanwhile
            self.alive.add(connection := self.opened)
            self.proved_at[slot] = self.now
            self.state.connect_succeeded(slot, connection, self.now)
        elif job == "connect":
            self.state.connect_failed(slot, OSError("refused"), VERDICTS[outcome], self.now)
        elif job == "close":
            if slot.state == "closing":
                self.end(slot.connection)
            self.state.close_finished(slot, self.now)
            self.owing.discard(slot)
        elif outcome != "ok":
            self.state.recycle_failed(slot, self.now, suspect_others=outcome == "timed_out")
        else:
            if self.state.was_away_since(slot.sent_at, self.now):
                slot.sent_at = self.now  # the shell pings again
            self.proved_at[slot] = slot.sent_at
            if job == "ping":
                self.state.ping_succeeded(slot, self.now)
            else:
                self.owing.discard(slot)
                self.state.reset_succeeded(slot, self.now)

    def die(self, where: str, i: int) -> None:
        """Find a connection dead."""
        slot = list(getattr(self.state, where))[i]
        self.dead.add(slot.connection)
        self.state.found_dead(slot, self.now)

    def wait(self, seconds: float) -> None:
        """Let time pass; the alarm rings when the book has said it would."""
        if self.is_overdue:
            self.ring()
            self.settle()
        until = self.now + seconds
        for _ in range(200):
            due = self.state.next_tick()
            if due > until:
                break
            self.now = max(self.now, due)
            self.state.tick(self.now)
            self.settle()
        else:
            raise AssertionError("I12: the alarm never comes to rest")
        self.now = until
        before = self.what_upkeep_sees()
        self.state.tick(self.now)
        if self.what_upkeep_sees() == before:
            begun = any(job == "connect" for job, _ in self.state.to_start)
            assert not begun, "I12: a connect was due, and the alarm did not ring"
        self.settle()
        for waiter in self.state.queue.values():
            assert self.now < waiter.deadline, "I11: still waiting after its deadline"
        for waiter in list(self.state.queue.values())[:1]:
            assert self.now < self.state._refuse_at(waiter), "I12: not refused, as the policy says"

    def what_upkeep_sees(self) -> tuple[int, int, int, int]:
        """Count what is found without an alarm, every second.

        Who has to go, what is stuck, and how much headroom is missing.
        """
        state = self.state
        in_use = len(state.leased) + state.options.min_idle + fitness.leaving(state)
        headroom = max(0, in_use - state.live + len(state.progress.stuck))
        return sum(state.retired.values()), state.aging, len(state.progress.stuck), headroom

    def oversleep(self, seconds: float) -> None:
        """Let time pass in which the event loop is kept from ringing the alarm."""
        self.now += seconds

    def block(self, seconds: float) -> None:
        """Let time pass in which nothing of the event loop runs; others may run before the alarm.

        If it is shorter than `ping_after`, the shell thinks nothing of it, nor does the pool.
        """
        self.now += seconds
        if seconds < (self.state.options.ping_after or 0.0):
            return
        self.blocked_until = self.now
        self.state._awake_by = self.now

    @property
    def is_overdue(self) -> bool:
        """Tell whether the loop was away and the alarm has not rung since."""
        return self.now >= self.state._awake_by

    def ring(self) -> None:
        """Let the alarm ring that is overdue."""
        self.state.is_awake(self.now, NEVER)
        self.state.tick(self.now)

    def resize(self, max_size: int, overflow: int) -> None:
        """Change the sizes; after shrinking the size only falls."""
        options = self.state.options
        given = {**options.__dict__, "max_size": max_size, "max_overflow": overflow}
        for name in ("min_size", "min_idle"):
            given[name] = min(given[name], max_size)
        self.state.resize(Options(**given), self.now)
        self.size_limit = max(self.state.options.capacity, self.state.size)

    def renew(self, over: float = 0.0) -> None:
        """Have everything older than now replaced, one after the other in so many seconds."""
        state = self.state
        for slot in (*state.connecting, *state.idle, *state.leased, *state.recycling):
            until = self.now + over
            self.stale_at[slot] = min(until, self.stale_at.get(slot, until))
        state.renew(self.now, over)

    def close(self) -> None:
        """Close politely."""
        self.state.close(self.now)
        assert not self.state.queue
        assert not self.state.idle

    def abandon(self) -> None:
        """Let the grace end."""
        self.state.abandon_leases(self.now)
        for caller in self.callers:
            caller.slot = None

    def collapse(self) -> None:
        """End the event loop: nobody is there to run jobs."""
        self.state.abort(self.now, None)
        self.settle()
        for caller in self.callers:
            caller.slot = None
        # The jobs under way will still report; nothing may come of that, in the next life either.
        assert self.state.size == 0

    # -- what the shell does after each event ----------------------------------------------------

    def settle(self) -> None:
        """Empty the three queues as the shell does, and check what comes out of them."""
        state = self.state
        while state.to_terminate:
            self.end(state.to_terminate.popleft())
        while state.to_wake:
            self.wake(state.to_wake.popleft())
        if any(job == "connect" for job, _ in state.to_start):
            assert len(self.alive) + len(state.connecting) <= state.options.capacity, (
                "I1: a connect above capacity"
            )
            prospects = state.progress
            self.check_pace(sum(job == "connect" for job, _ in state.to_start))
            others = state.live - len(prospects.stuck) - prospects.live_connects()
            missing = self.needed(self.turned_away) - others + state.aging
            waiting = len(state.queue) + self.turned_away  # for whom one may be begun, too
            assert prospects.connects() <= max(waiting, missing), (
                "I9: more connects than anybody waits for"
            )
        self.turned_away = False
        self.check_who_went()
        while state.to_start:
            job, slot = state.to_start.popleft()
            assert slot not in self.at_work, "I1: a slot with two jobs"
            self.at_work[slot] = job
        self.held = len(state.leased)

    def needed(self, more: int = 0) -> int:
        """Return how many connections the options and the callers, and some more, ask for."""
        state, options = self.state, self.state.options
        in_use = len(state.leased) + len(state.queue) + more
        return min(options.max_size, max(options.min_size, in_use + options.min_idle))

    def count_ready(self) -> int:
        """Return how many connections are open and not on their way out."""
        return len(self.state.idle) + len(self.state.leased) + len(self.state.recycling)

    def check_who_went(self) -> None:
        """Check that nothing was closed that was to be opened again, or before its successor."""
        state, before = self.state, self.retired
        self.retired = dict(state.retired)
        gone = {
            reason: n - before[reason] for reason, n in self.retired.items() if n > before[reason]
        }
        if gone.keys() == {"unused"}:
            assert self.count_ready() >= self.needed(), "I17: closed as unused, and needed"
        aged = {slot for slot in state.closing if slot.reason in ("expired", "stale")}
        aged = {slot for slot in aged if self.now < slot.expires_at}
        new = len(aged - self.aged)
        if new and state.room > 0 and state.live + new < state.options.max_size:
            assert self.count_ready() >= self.needed(), "I18: gone before its successor was there"
        self.aged = aged

    def check_facts(self, waiter: Waiter) -> None:
        """Check that an error tells of the pool as it was, not of what has become of it."""
        if waiter.outcome == "closed":
            return
        assert waiter.facts.now == self.now
        assert waiter.facts.stats.leased == self.held, "I13: told of what came after"

    def check_pace(self, begun: int) -> None:
        """Check that connects beyond the usual number begin one by one."""
        options, underway = self.state.options, self.state.progress.live_connects()
        usual = max(1 if self.state.outage else options.max_connecting, underway - begun)
        if underway > usual and options.backoff_min > 0:
            assert underway == usual + 1, "I9: several extra attempts at once"
            assert self.now >= self.attempt_at + options.backoff_min, "I9: a hasty extra attempt"
        self.attempt_at = self.now

    def wake(self, waiter: Waiter) -> None:
        """Tell a waiter how it ended; one who is served is the first in line, and in time."""
        assert waiter.outcome != "waiting"
        if waiter is self.opener:
            self.opener = None
            if waiter.outcome == "served":
                self.state.open_succeeded()
            return
        if waiter is self.ready:
            self.ready = None
            if waiter.outcome == "served":
                there = len(self.state.idle) + len(self.state.leased) + len(self.state.recycling)
                assert there >= self.state.options.min_size, "I12: told before they are there"
            return
        caller = next(c for c in self.callers if c.waiter is waiter)
        place = self.line.index(caller)
        del self.line[place]
        if waiter.outcome != "served":
            self.check_facts(waiter)
            caller.waiter = None
            return
        assert self.now < waiter.deadline, "I5: served after its deadline"
        for earlier in self.line[:place]:
            assert earlier.waiter is not None
            assert earlier.waiter.outcome != "waiting", "I4: overtaken"
        assert waiter.slot is not None
        self.check_handed_out(waiter.slot)

    def end(self, connection: int) -> None:
        """Record the end of a connection: exactly one for each."""
        assert connection in self.alive, "I7: ended twice, or never opened"
        self.alive.remove(connection)

    # -- what holds after each event -------------------------------------------------------------

    def check(self) -> None:
        """Check the invariants that one look can tell; the others are checked as things happen."""
        state = self.state
        check_state(state, self.now, at_work=set(self.at_work))
        held = [caller.slot for caller in self.callers if caller.slot]
        held += [c.waiter.slot for c in self.callers if c.waiter and c.waiter.slot]
        held = [slot for slot in held if slot.state == "leased"]
        assert len(held) == len(set(held)), "I2: two holders"
        assert set(held) == set(state.leased), "I8: leased, and held by nobody"
        assert state.size <= self.size_limit, "I1: above capacity"
        self.size_limit = max(state.options.capacity, state.size)
        few = max(2, max(state.size, state.options.min_size) // 10)
        assert len(self.aged) <= few, "I9: too many are replaced at once"
        assert self.owing.isdisjoint(state.idle), "I14: an idle connection owes a reset"
        self.owing.intersection_update([*state.leased, *state.recycling])
        there = [*state.idle, *state.leased, *state.recycling, *state.closing]
        assert {slot.connection for slot in there} == self.alive, "I7: lost, or in two places"
        assert len(there) == len(self.alive)
        s = state.stats(self.now)
        ended = s.direct + s.waited + s.timed_out + s.cancelled + s.busy + s.failed + s.closed
        ended += s.shed + s.deadlocked
        assert ended + s.waiting == self.acquires, "I6: an acquire ends once, in one way"
        self.check_times(s)

    def check_times(self, s: PoolStats) -> None:
        """Check that the histograms have counted what the counters have."""
        given = s.direct + s.waited + self.lost
        assert s.wait_times.count == given, "I15: a wait that is not counted, or twice"
        assert s.wait_times.counts[0] == self.direct, "I15: who found one idle has not waited"
        assert s.use_times.count + s.leased == given, "I15: a lease ends once"
        assert s.create_times.count == s.connected == self.connected
        assert sum(s.leased_at_once) == given
        assert s.most_leased == self.most_leased
        assert s.open_for == pytest.approx(self.open_for)

    def come_to_rest(self) -> None:
        """Let everything end well: then nobody waits, and every slot is idle or gone."""
        for _ in range(100):
            event = self._next_to_rest()
            if event is None:
                break
            self.do(event)
        else:
            raise AssertionError(
                "I12: it never comes to rest" if self.has_headroom() else "I17: too few are idle"
            )
        state = self.state
        assert not state.queue, "I12: somebody waits, and the database answers"
        assert state.size == len(state.idle), "I8: a slot is lost"
        assert not state.is_open or not state.openers, "I12: open() never returns"
        assert self.ready is None, "I12: wait() never returns"

    def _next_to_rest(self) -> Event | None:
        for i, caller in enumerate(self.callers):
            if caller.slot is not None:
                return ("release", i, "clean")
            if caller.waiter is not None and caller.waiter.slot is not None:
                return ("notice", i)
        if self.at_work:
            return ("end_job", 0, "ok")
        if self.state.queue or self.state.openers or not self.has_headroom():
            return ("wait", 1.0)
        return None

    def has_headroom(self) -> bool:
        """Tell whether as many connections are idle as are to be."""
        options = self.state.options
        least = min(options.max_size, max(options.min_size, options.min_idle))
        return len(self.state.idle) >= least or not self.state.is_open
