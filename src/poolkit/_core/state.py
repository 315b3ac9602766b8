"""What decides: events in, decisions out, as plain synchronous code.

Rule 1: nothing here waits, looks at a clock or logs. Events come in as method calls that carry the
time; decisions go out through four queues, which the shell empties after every event, in this
order:

    to_terminate   connections, at once
    to_wake        waiters whose wait is over
    to_start       jobs, at most one for a slot at a time: connect, ping, reset, close
    to_tell        events, for observers

Rule 2: a slot is in exactly one of five containers, with one door between them (`slots`).

Rule 3: after a move that frees something the queue is served, first come, first served (`line`).

Which connection goes, and why, `fitness` says; which connects and pings are due, `supply`. Only the
state changes itself.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from poolkit._core import fitness, supply
from poolkit._core.outage import Outage
from poolkit._core.progress import PATIENCE
from poolkit._core.slot import BATCH, NEVER, NO_VERDICTS, UNDONE, Slot
from poolkit._core.unreset import Unreset
from poolkit._driver import Verdict

if TYPE_CHECKING:
    from poolkit._core.slot import Outcome, Reason, Waiter

#: Seconds until the next visit of upkeep, about: what is due before needs an alarm.
_VISIT: Final = 1.5


class PoolState(Unreset):
    """Every event of a pool, and what is decided on it."""

    __slots__ = ()

    # -- callers ---------------------------------------------------------------------------------

    def take(self, now: float) -> Slot | None:
        """Lease an idle connection now, or return None: then join the queue.

        The hot edge idle -> leased, written out.
        """
        idle = self.idle
        if not idle or self.queue:
            return None
        others = len(self.leased)  # before all else: a call may fail for want of stack
        slot = idle.pop()
        if now >= slot.good_until:
            idle.append(slot)
            usable = self._usable(now)
            if usable is None:
                return None
            slot = usable
            idle.remove(slot)
        self.leased[slot] = None
        slot.state = "leased"
        slot.leased_at = now
        self.begun[others] += 1
        slot.leases_left = left = slot.leases_left - 1
        if not left:
            slot.leases_left, slot.batches = BATCH, slot.batches + 1
            self.batch_is_over = self.asks_on_return = True
        return slot

    def undo_take(self, slot: Slot, now: float) -> None:
        """Undo a `take` whose connection turned out to be dead."""
        self.begun[len(self.leased) - 1] -= 1
        self._note_loss(slot, "idle")
        self._drop(slot, now, "broken")

    def enqueue(self, waiter: Waiter, now: float) -> bool:
        """Put a caller at the end of the queue, unless it is refused at once.

        A caller whose deadline has passed waits for no other user; it gets half a second for a
        connection that is only being pinged or reset.

        Return True if there are decisions to carry out; else only its deadline is to be minded.
        """
        waiter.since = now
        limit = self.options.max_waiting
        in_haste = waiter.deadline <= now
        if in_haste:
            limit = 0
            waiter.deadline += PATIENCE
        if self.phase != "open" and not self.is_open:  # a call less
            self.line.end(waiter, "closed")
        elif limit is not None and len(self.queue) >= max(
            limit, len(self.idle) + self.progress.recycles()
        ):
            self._turn_away(waiter, "timed_out" if in_haste else "busy", now)
        elif self.outage is not None and self._refuses_newcomers(now):
            self.end_wait(waiter, "failed", now, self.last_error)
        else:
            self.line.enqueue(waiter)
            # The first half of `_is_full`, which is a call less for nearly all who wait.
            is_full = len(self.leased) >= self._capacity and not self.idle
            if (is_full or self._is_full()) and self.line.shedder is None:
                # Nothing can be started. For the jobs under way, the alarm was set when the first
                # waiter joined: at the time from which they count as slow.
                return len(self.queue) == 1 and bool(self.connecting or self.recycling)
            self._follow_up(now)
        return True

    def _turn_away(self, waiter: Waiter, outcome: Outcome, now: float) -> None:
        """Refuse a newcomer, but begin the connect it would have waited for: the next one needs it.

        Only one that is kept: another would be closed at once, with nobody in line.
        """
        options = self.options
        if self.live < (options.min_size if options.keeps_none else options.max_size):
            waiter.key = waiter
            self.queue[waiter] = waiter
            self._schedule_jobs(now)
        self.end_wait(waiter, outcome, now)

    def give_up(self, waiter: Waiter, now: float) -> None:
        """End the wait of a caller that has given up.

        A connection that it was just handed goes to the next in line.
        """
        if waiter.outcome == "waiting":
            self.line.tell_shedder(waiter, self._fit_since, now, served=False)
            self.line.forget(waiter)
        elif waiter.slot is not None:
            slot, waiter.slot = waiter.slot, None
            self.recount("served", "cancelled")
            if slot.state == "leased":  # else it was taken back on closing
                self.release(slot, now)
        else:  # it was refused, and is cancelled before it noticed
            self.recount(waiter.outcome, "cancelled")
        waiter.outcome = "cancelled"

    def release(self, slot: Slot, now: float) -> bool:
        """Take back a connection that is fit for the next user as it is.

        Return True if there are decisions to carry out. The hot edges leased -> idle and leased ->
        leased, written out.
        """
        self.uses.recent.append(now - slot.leased_at)
        slot.used_at = now
        if slot.touched:
            if slot.touched == UNDONE:
                slot.unreset = 0
            slot.touched = False
            self._heard_from(slot, slot.leased_at)
        if self.asks_on_return or now >= slot.retire_at:
            if self.batch_is_over:
                self._settle()
            if self.asks_on_return or now >= slot.retire_at:
                self._place(slot, now)
                return True
        if not self.queue:
            del self.leased[slot]
            slot.state = "idle"
            self.idle.append(slot)
            return False
        waiter = next(iter(self.queue.values()))
        if now >= waiter.deadline or self.line.shedder is not None or now >= self._awake_by:
            self._place(slot, now)
            return True
        others = len(self.leased) - 1
        del self.queue[waiter.key]
        del self.leased[slot]
        self.leased[slot] = None  # the last one now
        slot.code = waiter.code
        slot.lasti = waiter.lasti
        slot.label = waiter.label
        slot.task = waiter.task
        slot.leased_at = now
        waiter.slot = slot
        waiter.outcome = "served"
        self.outcomes["served"] += 1
        self.to_wake.append(waiter)
        self.begun[others] += 1
        self.waits.recent.append(now - waiter.since)
        slot.leases_left = left = slot.leases_left - 1
        if not left:
            slot.leases_left, slot.batches = BATCH, slot.batches + 1
            self.batch_is_over = self.asks_on_return = True
        return True

    def release_dirty(self, slot: Slot, now: float) -> None:
        """Take back a connection that has to be reset first.

        The hot edge leased -> recycling, written out.
        """
        if self.queue and self.line.next_deadline() <= now:
            self._end_overdue(now)
        self._count_use(slot, now)
        slot.used_at = slot.job_began_at = slot.sent_at = now
        limit = self.options.reset_timeout
        slot.overdue_at = NEVER if limit is None else now + limit + 1.0
        self.to_start.append(("reset", slot))
        self.recycling[slot] = None  # before the other: nothing is lost if there is no memory
        del self.leased[slot]
        slot.state = "recycling"
        if self.openers or self.aging or (self.queue and not self._is_full()):
            self._follow_up(now)

    def release_broken(self, slot: Slot, now: float, reason: Reason = "broken") -> None:
        """Take back a connection that nobody may use again."""
        self._count_use(slot, now)
        self._drop(slot, now, reason)

    def _drop(self, slot: Slot, now: float, reason: Reason) -> None:
        if self.queue:
            self._end_overdue(now)
        self._retire(slot, reason)
        self._follow_up(now)

    def release_closing(self, slot: Slot, now: float) -> None:
        """Take back a connection whose holder's close was interrupted: it is closed once more."""
        self._count_use(slot, now)
        if self.queue:
            self._end_overdue(now)
        self._close(slot, "broken")
        self._follow_up(now)

    # -- outcomes of jobs ------------------------------------------------------------------------

    def connect_succeeded(self, slot: Slot, connection: Any, now: float) -> None:
        """Record a new connection, and hand it to the first in line, or put it idle."""
        if slot.state != "connecting":  # given up meanwhile
            self.to_terminate.append(connection)
            return
        slot.connection = connection
        slot.used_at = now
        if (lifetime := self.options.max_lifetime) is not None:
            slot.expires_at = min(slot.expires_at, now + lifetime)
            old_age = lifetime * fitness.OLD_AGE
            soft = now + lifetime - old_age * (1.0 - self._random())
            slot.retire_at = min(slot.retire_at, soft)
            self._age_at = min(self._age_at, now + lifetime - old_age)
        self._heard_from(slot, now)
        self.creates.add(seconds := now - slot.job_began_at)
        self._note_event("connected", seconds)
        if self.outage or not self.leased:
            self._fit_since = now
        if self.outage:
            self._note_event("outage_ended", now - self.outage.since)
        self.outage = None
        self.progress.overtaken(slot, now)
        self._place(slot, now)
        if supply.shortage(self) > 0:
            self.ramp = min(self.ramp * 2, self.options.max_connecting)
        self._follow_up(now)

    def connect_failed(
        self, slot: Slot, error: BaseException, verdict: Verdict | None, now: float
    ) -> None:
        """Free the slot, and decide who is told and when to try again."""
        if slot.state != "connecting":
            return
        self._move(slot, "gone")
        if slot.generation != self.generation:  # begun before closing or renewing: says nothing
            self._note_event("connect_failed", now - slot.job_began_at, error, 0)
            self._follow_up(now)
            return
        self.connect_failures += 1
        if self.outage is None:
            self.outage = Outage(now)
            self._note_event("outage_began", error)
        told = self.outage.record(
            error, verdict, slot.job_began_at, now, self.options, self._random()
        )
        most = {"nobody": 0, "first": 1, "everybody": len(self.queue)}[told]
        waiters = list(itertools.islice(self.queue.values(), most))
        if told != "nobody":
            waiters += self.openers
        self._note_event("connect_failed", now - slot.job_began_at, error, len(waiters))
        self._end_waits(waiters, "failed", now, error)
        self._follow_up(now)

    def ping_succeeded(self, slot: Slot, now: float) -> None:
        """Record that an idle connection is alive."""
        if slot.state == "recycling":
            self._heard_from(slot, slot.sent_at)
            self._place(slot, now, cold=True)
            self._follow_up(now)

    def reset_succeeded(self, slot: Slot, now: float) -> bool:
        """Record that a connection is fit for its next user.

        Return True if there are decisions to carry out, beside those whom it wakes. The hot edges
        recycling -> leased and recycling -> idle, written out.
        """
        if slot.state != "recycling":
            return False
        slot.touched = slot.cancelled = slot.has_derived = False
        slot.unreset = 0
        slot.alive_at = sent_at = slot.sent_at
        slot.good_until = min(sent_at + self._ping_after, slot.retire_at)
        waiter = next(iter(self.queue.values())) if self.queue else None
        asks = self._asks_all or self.openers or self.aging or self.line.shedder is not None
        if asks or now >= slot.retire_at or (waiter is not None and now >= waiter.deadline):
            self._place(slot, now)
            self._follow_up(now)
            return True
        self.progress.ended(slot)
        if waiter is None:
            self.idle.append(slot)
            del self.recycling[slot]
            slot.state = "idle"
            self.ramp = 1  # nobody is short of anything; all else that is due stays so
            return False
        self._count_hand_off(slot, waiter, now, others=len(self.leased))
        self.leased[slot] = None
        del self.recycling[slot]
        slot.state = "leased"
        del self.queue[waiter.key]
        slot.lease_to(waiter, now)
        waiter.slot = slot
        waiter.outcome = "served"
        self.outcomes["served"] += 1
        self.to_wake.append(waiter)
        if self._is_full():
            return False
        self._follow_up(now)
        return True

    def recycle_failed(self, slot: Slot, now: float, *, suspect_others: bool) -> None:
        """Record that a ping or a reset failed; the idle connections may be dead as well."""
        if slot.state == "recycling":
            self._retire(slot, "broken")
            if suspect_others:
                self.suspect(now)
            self._follow_up(now)

    def close_finished(self, slot: Slot, now: float) -> None:
        """Record that a connection is closed: only now is its slot free."""
        if slot.state == "closing":
            self._move(slot, "gone")
            self._follow_up(now)

    # -- other events ----------------------------------------------------------------------------

    def found_dead(self, slot: Slot, now: float) -> None:
        """Drop a connection that is known to be dead: now if it is idle, else on its return."""
        if slot.state == "idle":
            self._retire(slot, "broken")
            self._follow_up(now)
        else:
            slot.verdicts |= {Verdict.DEAD}
            slot.retire_at = -NEVER
            if slot.state in ("leased", "recycling"):
                self._note_loss(slot, slot.state)

    def learn(self, slot: Slot, now: float) -> bool:
        """Act on what a lease's errors say of other connections; return whether this one must go.

        Call before the connection is taken back.
        """
        verdicts, slot.verdicts = slot.verdicts, NO_VERDICTS
        # At most once in `backoff_max`: the new connections may lead to the same old server.
        rested = now >= self.renewed_at + self.options.backoff_max
        if Verdict.STALE in verdicts and slot.generation == self.generation and rested:
            self.renew(now)
        if Verdict.SERVER_GONE in verdicts:
            self.suspect(now)
        return not verdicts.isdisjoint(fitness.BROKEN)

    def tick(self, now: float) -> None:
        """Do what is due by time alone; call at `next_tick`, and every second or so."""
        self._end_overdue(now)
        self._first_in_line(now)  # ends the waits before the first live one
        self._settle(all_of_them=self.tells_times)
        self.progress.update(now)
        self._ticked_at = now
        if self.aging or now >= self._age_at:
            self._pace_ages(now)
        self._retire_idle(now)
        for slot in supply.silent(self, now):
            self._ping(slot, now)
        self._follow_up(now)

    def next_tick(self) -> float:
        """Return the time of the earliest thing that is due by time alone."""
        due = self.line.next_deadline()
        if self.queue or self.openers:
            if self.connecting or self.recycling:
                due = self.progress.next_update(due)
            if self.line.shedder is not None:
                due = min(due, self.refuses_at())
        if self.is_open and (self.outage or self.progress.slow_connects()):
            due = min(due, supply.next_connect_at(self))
        if self._age_at < self._ticked_at + _VISIT:
            due = min(due, self._age_at)
        if self.idle and self.options.overflow_linger and self.live > self.options.max_size:
            due = min(due, self.idle[0].used_at + self.options.overflow_linger)
        return due
