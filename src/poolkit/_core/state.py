"""The book: where every slot is, who waits in line, and which jobs are owed.

Rule 1: everything that decides lives in this file; nothing in it waits, looks at a clock or logs.
Events come in as method calls that carry the time; decisions go out through three queues, which the
shell empties after every event, in this order:

    doomed   connections to terminate, at once
    woken    waiters whose wait is over
    jobs     driver calls owed to a slot, each at most one at a time: connect, ping, reset, close

Rule 2: a slot is in exactly one of five containers, and every number is the length of one.

      ┌────────────┐ connected ┌──────┐ take / hand-off ┌────────┐
  ──▶ │ connecting ├──────────▶│ idle ├────────────────▶│ leased │──╮ hand-off
      └─────┬──────┘           └─┬──▲─┘◀────────────────┴─┬──┬───┘◀─╯
            │              ping │  │ ping, reset done     │  │
            │                ┌──▼──┴─────┐   reset        │  │
            │                │ recycling │◀───────────────╯  │
            │                └─────┬─────┘                   │
            │ failed        broken │ retire  ┌─────────┐     │ retire
            ▼                      ├────────▶│ closing │◀────╯
           gone ◀──────────────────┴─────────┴─────────┘

Rule 3: after a move that frees something the queue is served, first come, first served.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from poolkit._core.deadlines import Deadlines
from poolkit._core.outage import Outage
from poolkit._core.progress import PATIENCE, Prospects
from poolkit._core.slot import (
    NEVER,
    NO_VERDICTS,
    TRANSITIONS,
    Job,
    Outcome,
    Phase,
    Reason,
    Slot,
    Waiter,
)
from poolkit._driver import Verdict
from poolkit._stats import Facts, PoolStats, task_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._core.shedding import Shedder
    from poolkit._options import Options

#: Leases that are counted for an error: errors are many when there is much to do.
_COUNTED: Final = 1000
#: What is said of a connection that is not to be used again.
_BROKEN: Final = frozenset({Verdict.SUSPECT, Verdict.DEAD, Verdict.SERVER_GONE})
#: Connections that may be away at once to be replaced, and connects that upkeep, which nobody waits
#: for, may have under way: two at least, a tenth of a larger pool.
_FEW: Final = 2
#: The part of the lifetime in the course of which a connection is replaced.
_OLD_AGE: Final = 0.1
#: Seconds until the next visit of upkeep, about: what is due before needs an alarm.
_VISIT: Final = 1.5
#: Seconds: the event loop is not away before, however short `ping_after` is.
_BRIEF: Final = 0.5


class PoolState:
    """Every decision of a pool, as plain synchronous code."""

    def __init__(self, options: Options, random: Callable[[], float]) -> None:
        self._random = random
        self.phase: Phase = "closed"
        self.generation = 0

        self.connecting: dict[Slot, None] = {}
        self.idle: deque[Slot] = deque()  # the hottest last
        self.leased: dict[Slot, None] = {}  # the longest held first
        self.recycling: dict[Slot, None] = {}
        self.closing: dict[Slot, None] = {}
        self.prospects = Prospects(self.connecting, self.recycling)

        self.queue: OrderedDict[Any, Waiter] = OrderedDict()  # by the task that waits
        self.openers: dict[Waiter, None] = {}
        self._deadlines = Deadlines(self.queue)
        self.shedder: Shedder | None = None

        self.doomed: deque[Any] = deque()
        self.woken: deque[Waiter] = deque()
        self.jobs: deque[tuple[Job, Slot]] = deque()

        self.outage: Outage | None = None
        self._fit_since = -NEVER  # connections can be had
        self.renewed_at = -NEVER
        self._awake_by = NEVER  # when the shell, if the event loop runs, has been heard of again
        self._back_at = -NEVER  # until then the event loop, or the machine, was away
        self._ramp = 1  # connects under way at once while leases are out; doubles with success
        self._attempt_at = -NEVER  # the last connect began
        self._ticked_at = -NEVER
        self._age_at = NEVER  # the next connection comes of age, or is due to be replaced
        self._aging = 0  # those that are due, and go one after the other

        self.direct = 0
        self.outcomes: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self.connected_total = 0
        self.connect_failures = 0
        self.retired: dict[str, int] = dict.fromkeys(get_args(Reason), 0)

        self._adopt(options)

    def _adopt(self, options: Options) -> None:
        self.options = options
        #: How often the shell is to be heard of while somebody counts on an answer.
        self.pulse = NEVER if options.ping_after is None else max(options.ping_after, _BRIEF) / 4
        self._ping_after = NEVER if options.ping_after is None else options.ping_after
        self._capacity = options.capacity
        self._look_at_returns()

    def _look_at_returns(self) -> None:
        """Decide how much there is to ask of a connection that comes back.

        While this is False, it is no surplus one, not used up, and nothing that it told is old.
        """
        options = self.options
        self._ask_on_return = (
            options.max_overflow > 0
            or options.max_uses is not None
            or self.live > options.max_size
            or (bool(self.leased) and next(iter(self.leased)).leased_at < self._back_at)
        )

    # -- inspect ---------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Tell whether connections are to be had, now or soon."""
        return self.phase in ("opening", "open")

    @property
    def last_error(self) -> BaseException | None:
        """Why connecting fails, if it does."""
        return self.outage.error if self.outage else None

    @property
    def live(self) -> int:
        """Slots that are there to stay."""
        return len(self.connecting) + len(self.idle) + len(self.leased) + len(self.recycling)

    @property
    def size(self) -> int:
        """Slots in every state: one that is being closed is not free yet."""
        return self.live + len(self.closing)

    def stats(self, now: float) -> PoolStats:
        """Return a snapshot."""
        first = next(iter(self.queue.values()), None)
        return PoolStats(
            max_size=self.options.max_size,
            capacity=self.options.capacity,
            idle=len(self.idle),
            leased=len(self.leased),
            connecting=len(self.connecting),
            recycling=len(self.recycling),
            closing=len(self.closing),
            stuck=len(self.prospects.stuck),
            waiting=len(self.queue),
            oldest_wait=now - first.since if first else 0.0,
            direct=self.direct,
            waited=self.outcomes["served"],
            timed_out=self.outcomes["timed_out"],
            cancelled=self.outcomes["cancelled"],
            busy=self.outcomes["busy"],
            shed=self.outcomes["shed"],
            deadlocked=self.outcomes["deadlocked"],
            failed=self.outcomes["failed"],
            closed=self.outcomes["closed"],
            connected=self.connected_total,
            connect_failures=self.connect_failures,
            retired=dict(self.retired),
        )

    def facts(self, now: float) -> Facts:
        """Return what errors tell of a pool: small, and fit to be shared by many of them."""
        outage = self.outage
        held = list(itertools.islice(self.leased, _COUNTED))
        return Facts(
            now=now,
            stats=self.stats(now),
            options=self.options,
            failures=outage.failures if outage else 0,
            error=outage.error if outage else None,
            longest=tuple(
                (task_name(slot.holder), now - slot.leased_at, slot.holder)
                for slot in held[:3]
                if slot.holder
            ),
            holders=tuple([slot.holder for slot in held]),  # a third faster than a generator
        )

    def refuses_at(self) -> float:
        """Return when the overload policy refuses the first in line, as things are."""
        if self.shedder is None or not self.queue:
            return NEVER
        return self._shed_at(next(iter(self.queue.values())))

    # -- callers ---------------------------------------------------------------------------------

    def take(self, now: float) -> Slot | None:
        """Lease an idle connection now, or return None: then join the queue.

        The hot edge idle -> leased, written out.
        """
        idle = self.idle
        if not idle or self.queue:
            return None
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
        slot.uses += 1
        self.direct += 1
        return slot

    def untake(self, slot: Slot, now: float) -> None:
        """Take back a `take` whose connection turned out to be dead: nobody got anything."""
        self.direct -= 1
        self.release_broken(slot, now)

    def join(self, waiter: Waiter, now: float) -> bool:
        """Put a caller at the end of the queue, unless it is refused at once.

        One without time waits for no other user, and for a moment for a connection that is only to
        be pinged or reset.

        Return whether that was all, so that nothing is to be done but to mind its deadline.
        """
        waiter.since = now
        limit = self.options.max_waiting
        in_haste = waiter.deadline <= now
        if in_haste:
            limit = 0
            waiter.deadline = now + PATIENCE
        if self.phase != "open" and not self.is_open:  # a call less
            self._dismiss(waiter, "closed")
        elif limit is not None and len(self.queue) >= max(
            limit, len(self.idle) + self.prospects.recycles()
        ):
            self._turn_away(waiter, "timed_out" if in_haste else "busy", now)
        elif self._refuses_newcomers(now):
            self._leave(waiter, "failed", now, self.last_error)
        else:
            self._deadlines.joins(waiter)
            key = waiter.holder[0] if waiter.holder else waiter
            if self.queue.setdefault(key, waiter) is not waiter:  # one task, waiting twice at once
                key = waiter
                self.queue[key] = waiter
            waiter.key = key
            if self._is_full() and self.shedder is None:
                # Nothing could be owed; how long to count on what is under way, the first has said.
                return len(self.queue) > 1 or not (self.connecting or self.recycling)
            self._follow_up(now)
        return False

    def _turn_away(self, waiter: Waiter, outcome: Outcome, now: float) -> None:
        """Refuse a newcomer; the connect it would have waited for is begun, for the next one.

        Up to `max_size`: with nobody in line a surplus connection is closed when it comes.
        """
        if self.live < self.options.max_size:
            waiter.key = waiter
            self.queue[waiter] = waiter
            self._owe(now)
        self._leave(waiter, outcome, now)

    def refuse(self, waiter: Waiter, outcome: Outcome, now: float) -> None:
        """Send a caller away who is in line."""
        self._leave(waiter, outcome, now)

    def give_up(self, waiter: Waiter, now: float) -> None:
        """Let a caller go that no longer waits; what it was just given goes to the next in line."""
        if waiter.outcome == "waiting":
            self._tell_shedder(waiter, now, served=False)
            self.queue.pop(waiter.key, None)  # it may not have come so far
            self.outcomes["cancelled"] += 1
        elif waiter.slot is not None:
            slot, waiter.slot = waiter.slot, None
            self.recount("served", "cancelled")
            if slot.state == "leased":  # else it was taken back on closing
                self.release(slot, now)
        else:  # it was refused, and is cancelled before it noticed
            self.recount(waiter.outcome, "cancelled")
        waiter.outcome = "cancelled"

    def give_up_opening(self, waiter: Waiter) -> None:
        """Let go who no longer waits for the pool to be open."""
        self.openers.pop(waiter, None)
        waiter.outcome = "cancelled"

    def count(self, outcome: Outcome) -> None:
        """Count the end of an acquire that has not come here."""
        self.outcomes[outcome] += 1

    def recount(self, was: Outcome | Literal["direct"], outcome: Outcome) -> None:
        """Count the end of an acquire as another one: what its caller saw."""
        self.uncount(was)
        self.outcomes[outcome] += 1

    def uncount(self, was: Outcome | Literal["direct"]) -> None:
        """Forget the end of an acquire."""
        if was == "direct":
            self.direct -= 1
        else:
            self.outcomes[was] -= 1

    def release(self, slot: Slot, now: float) -> bool:
        """Take back a connection that is fit for the next user as it is.

        Return whether there is anything to be done. The hot edges leased -> idle and leased ->
        leased, written out.
        """
        slot.used_at = now
        if slot.touched:
            slot.touched = False
            self._heard_from(slot, slot.leased_at)
        if self._ask_on_return or now >= slot.retire_at:
            self._place(slot, now)
            return True
        if not self.queue:
            del self.leased[slot]
            slot.state = "idle"
            self.idle.append(slot)
            return False
        waiter = next(iter(self.queue.values()))
        if now >= waiter.deadline or self.shedder is not None or now >= self._awake_by:
            self._place(slot, now)
            return True
        del self.queue[waiter.key]
        del self.leased[slot]
        self.leased[slot] = None  # the last one now
        slot.uses += 1
        slot.holder = waiter.holder
        slot.leased_at = now
        waiter.slot = slot
        waiter.outcome = "served"
        self.outcomes["served"] += 1
        self.woken.append(waiter)
        return True

    def release_dirty(self, slot: Slot, now: float) -> None:
        """Take back a connection that has to be reset first."""
        if self.queue:
            self._end_overdue(now)
        slot.used_at = now
        self._begin("reset", slot, "recycling", self.options.reset_timeout, now)
        self._follow_up(now)

    def release_broken(self, slot: Slot, now: float, reason: Reason = "broken") -> None:
        """Take back a connection that nobody may use again."""
        if self.queue:
            self._end_overdue(now)
        self._retire(slot, reason)
        self._follow_up(now)

    def release_closing(self, slot: Slot, now: float) -> None:
        """Take back a connection whose holder has not closed it to the end: it is closed again."""
        if self.queue:
            self._end_overdue(now)
        self._close(slot, "broken")
        self._follow_up(now)

    # -- outcomes of jobs ------------------------------------------------------------------------

    def connected(self, slot: Slot, connection: Any, now: float) -> None:
        """Record a new connection: it goes to the first in line, or idle."""
        if slot.state != "connecting":  # given up meanwhile
            self.doomed.append(connection)
            return
        slot.connection = connection
        slot.used_at = now
        if (lifetime := self.options.max_lifetime) is not None:
            slot.expires_at = min(slot.expires_at, now + lifetime)
            old_age = lifetime * _OLD_AGE
            soft = now + lifetime - old_age * (1.0 - self._random())
            slot.retire_at = min(slot.retire_at, soft)
            self._age_at = min(self._age_at, now + lifetime - old_age)
        self._heard_from(slot, now)
        self.connected_total += 1
        if self.outage or not self.leased:
            self._fit_since = now
        self.outage = None
        self.prospects.overtaken(slot, now)
        self._place(slot, now)
        if self._shortage() > 0:
            self._ramp = min(self._ramp * 2, self.options.max_connecting)
        self._follow_up(now)

    def connect_failed(
        self, slot: Slot, error: BaseException, verdict: Verdict | None, now: float
    ) -> None:
        """Free the slot, and decide who is told and when to try again."""
        if slot.state != "connecting":
            return
        self._move(slot, "gone")
        if slot.generation != self.generation:  # begun before closing or renewing: says nothing
            self._follow_up(now)
            return
        self.connect_failures += 1
        self.outage = self.outage or Outage(now)
        told = self.outage.record(error, verdict, slot.begun_at, now, self.options, self._random())
        if told != "nobody":
            told_of = len(self.queue) if told == "everybody" else 1
            facts = None
            for waiter in [*self.openers, *itertools.islice(self.queue.values(), told_of)]:
                facts = self._leave(waiter, "failed", now, error, facts)
        self._follow_up(now)

    def pinged(self, slot: Slot, now: float) -> None:
        """Record that an idle connection is alive."""
        if slot.state == "recycling":
            self._heard_from(slot, slot.sent_at)
            self._place(slot, now, cold=True)
            self._follow_up(now)

    def was_reset(self, slot: Slot, now: float) -> None:
        """Record that a connection is fit for its next user."""
        if slot.state == "recycling":
            slot.touched = slot.cancelled = slot.derived = False
            self._heard_from(slot, slot.sent_at)
            self._place(slot, now)
            self._follow_up(now)

    def recycle_failed(self, slot: Slot, now: float, *, suspect_others: bool) -> None:
        """Record that a ping or a reset failed; maybe the others are dead as well."""
        if slot.state == "recycling":
            self._retire(slot, "broken")
            if suspect_others:
                self.suspect(now)
            self._follow_up(now)

    def closed(self, slot: Slot, now: float) -> None:
        """Record that a connection is closed: only now is its slot free."""
        if slot.state == "closing":
            self._move(slot, "gone")
            self._follow_up(now)

    # -- other events ----------------------------------------------------------------------------

    def died(self, slot: Slot, now: float) -> None:
        """Drop a connection that is known to be dead: now if it is idle, else on its return."""
        if slot.state == "idle":
            self._retire(slot, "broken")
            self._follow_up(now)
        else:
            slot.verdicts |= {Verdict.DEAD}
            slot.retire_at = -NEVER

    def learn(self, slot: Slot, now: float) -> bool:
        """Do to the others what the errors of a lease ask for; tell whether this one is to go.

        Call before the connection is taken back.
        """
        verdicts, slot.verdicts = slot.verdicts, NO_VERDICTS
        # Not for ever again and again, if those that are opened now are no better.
        rested = now >= self.renewed_at + self.options.backoff_max
        if Verdict.STALE in verdicts and slot.generation == self.generation and rested:
            self.renew(now)
        if Verdict.SERVER_GONE in verdicts:
            self.suspect(now)
        return not verdicts.isdisjoint(_BROKEN)

    def suspect(self, now: float) -> None:
        """Ping every idle connection before its next use, all together."""
        while self.idle:
            self._begin("ping", self.idle[-1], "recycling", self.options.ping_timeout, now)
        self.prospects.doubt()

    def is_awake(self, now: float, until: float) -> None:
        """Note that the event loop runs, and that the shell will be heard of again by then."""
        if now >= self._awake_by:
            self.was_away(now)
        self._awake_by = until + 3.0 * self.pulse

    def was_away(self, now: float) -> None:
        """Trust no connection before it has answered again: what was heard of it is old.

        The event loop was blocked, or nobody has run it, or the machine was suspended. Meanwhile
        the server may have ended sessions, and what it said before is only being read now.
        """
        if self._ping_after == NEVER:
            return
        self._back_at = now
        for slot in (*self.idle, *self.leased):
            slot.alive_at = slot.good_until = -NEVER
        self._look_at_returns()

    def was_away_since(self, then: float, now: float) -> bool:
        """Tell whether the event loop was away at some time since then."""
        return now >= self._awake_by or then < self._back_at

    def renew(self, now: float, over: float = 0.0) -> None:
        """Replace every connection there is, one after the other in so many seconds.

        When its time has come an idle one goes, the others do when they come back.
        """
        self.renewed_at = now
        if not over:
            self.generation += 1
        slots = [*self.idle, *self.connecting, *self.recycling, *self.leased]
        for place, slot in enumerate(slots, 1):
            slot.reason = "stale"
            slot.expires_at = min(slot.expires_at, now + over * place / len(slots))
            slot.retire_at = min(slot.retire_at, slot.expires_at)
            slot.good_until = min(slot.good_until, slot.retire_at)
        self._retire_idle(now)
        self._follow_up(now)

    def resize(self, options: Options, now: float) -> None:
        """Adopt new sizes: grow at once, shrink as connections come back."""
        self._adopt(options)
        for slot in list(self.idle):
            if not self._surplus(queued=False):
                break
            self._retire(slot, "surplus")
        self._follow_up(now)

    def tick(self, now: float) -> None:
        """Do what is due by time alone; call at `next_tick`, and every second or so."""
        self._end_overdue(now)
        self._first_in_line(now)  # dismisses those before
        self._look_at_returns()
        self.prospects.look(now)
        self._ticked_at = now
        if self._aging or now >= self._age_at:
            self._pace_ages(now)
        self._retire_idle(now)
        self._ping_idle(now)
        self._follow_up(now)

    def next_tick(self) -> float:
        """Return the time of the earliest thing that is due by time alone."""
        due = self._deadlines.next()
        if self.queue or self.openers:
            if self.connecting or self.recycling:
                due = self.prospects.next_look(due)
            if self.shedder is not None:
                due = min(due, self.refuses_at())
        if self.is_open and (self.outage or self.prospects.slow_connects()):
            spare, connect_at = self._spare()
            if min(spare, self._wanted(), self._room()) > 0:
                due = min(due, connect_at)
        if self._age_at < self._ticked_at + _VISIT:
            due = min(due, self._age_at)
        if self.idle and self.options.overflow_linger and self.live > self.options.max_size:
            due = min(due, self.idle[0].used_at + self.options.overflow_linger)
        return due

    # -- life ------------------------------------------------------------------------------------

    def open(self, waiter: Waiter, now: float) -> None:
        """Begin, or begin again; the waiter is served when `min_size` connections are there.

        One without time, who waits for no other user, has none to wait for: only for a connect.
        """
        waiter.since = now
        if waiter.deadline <= now:
            limit = self.options.connect_timeout
            waiter.deadline = NEVER if limit is None else now + limit
        if self.phase == "closed":  # the clock may be another one by now
            self._fit_since = self.renewed_at = self._attempt_at = self._back_at = -NEVER
            self._ticked_at = now
            self._awake_by = NEVER
            self.shedder = self.options.shedding.begin() if self.options.shedding else None
            self.phase = "opening"
        self.openers[waiter] = None
        self._deadlines.add(waiter)
        self._follow_up(now)

    def opened(self) -> None:
        """Record that an `open()` has returned: from now on only closing ends this life."""
        if self.phase == "opening":
            self.phase = "open"

    def close(self, cause: BaseException | None = None) -> None:
        """Stop serving: waiters fail, idle connections close, the others when they come back."""
        self.phase = "closing"
        self._age_at, self._aging = NEVER, 0
        self.outage = None
        self.generation += 1
        for waiter in [*self.openers, *self.queue.values()]:
            self._dismiss(waiter, "closed", cause)
        for slot in [*self.connecting, *self.leased, *self.recycling]:
            slot.reason = "pool_closed"
            slot.retire_at = slot.expires_at = -NEVER
        for slot in list(self.idle):
            self._retire(slot, "pool_closed")

    def abandon_leases(self, now: float) -> None:
        """Terminate what has not been given back; its holders' handles are dead from now on.

        A reset ends the operations that are under way, on the server as well; then it is closed.
        """
        for slot in list(self.leased):
            slot.turn += 1
            if slot.busy:
                self._begin("reset", slot, "recycling", self.options.reset_timeout, now)
            else:
                self._doom(slot, "pool_closed")

    def collapse(self, cause: BaseException | None) -> None:
        """End a life with nobody left to run jobs: terminate all there is; its leases end too."""
        self.close(cause)
        self.phase = "closed"
        self.jobs.clear()
        for slot in list(self.leased):
            slot.turn += 1
            self._doom(slot, "pool_closed")
        for slot in list(self.recycling):
            self._doom(slot, "pool_closed")
        for slot in list(self.closing):
            self.doomed.append(slot.connection)
            self._move(slot, "gone")
        for slot in list(self.connecting):
            self._move(slot, "gone")

    # -- decide ----------------------------------------------------------------------------------

    def _follow_up(self, now: float) -> None:
        """Let openers go on when all is there; owe the jobs that are missing for those who wait.

        The next one goes for its age when the one before is replaced.
        Connections are handed out where they become free, in `_place`: nobody waits beside one.
        """
        if self.openers:
            ready = len(self.idle) + len(self.leased) + len(self.recycling)
            if ready >= self.options.min_size:
                for waiter in list(self.openers):
                    self._dismiss(waiter, "served")
        if self._aging:
            self._retire_idle(now)
        if self.is_open:
            self._owe(now)

    def _owe(self, now: float) -> None:
        """Owe pings and connects: one for each waiter without a prospect, and for `min_size`."""
        options = self.options
        prospects = self.prospects
        if self._is_full():
            return
        for _ in range(min(len(self.queue) - prospects.recycles(), len(self.idle))):
            # Idle, but not to be trusted without a ping, which beats any connect under way.
            self._begin("ping", self.idle[-1], "recycling", options.ping_timeout, now)
        wanted = self._wanted()
        if self._shortage() <= 0:
            self._ramp = 1
        if wanted <= 0:
            return
        spare, due = self._spare()
        if now < due:
            return
        for _ in range(min(wanted, spare, self._room())):
            self._attempt_at = now
            slot = Slot(self.generation)
            self._begin("connect", slot, "connecting", options.connect_timeout, now)

    def _spare(self) -> tuple[int, float]:
        """Count the connects that may begin beside those under way, and say from when on.

        While somebody waits there may be one more for each that is slow, at most as many again:
        hung ones do not keep others from an answer. These begin one by one, for a server that is
        merely slow must not be stormed.
        """
        underway, slow = self.prospects.underway(), self.prospects.slow_connects()
        most, due = self.options.max_connecting, -NEVER
        if self.outage:
            most, due = 1, self.outage.retry_at
        spare = most - underway
        if spare <= 0 and (self.queue or self.openers):
            spare = min(1, spare + min(slow, most))
            due = max(due, self._attempt_at + self.options.backoff_min)
        shortage = self._shortage()
        if not (self.outage or self.openers) and (shortage <= 0 or self.leased):
            few = self._ramp if shortage > 0 else self._few()
            spare = min(spare, few - self.prospects.connects())
        return spare, due

    def _few(self) -> int:
        """Return how many of the connections may be away, with nobody waiting for them."""
        return max(_FEW, max(self.size, self.options.min_size) // 10)

    def _shortage(self) -> int:
        """Count the waiters whom nothing under way will serve soon."""
        return len(self.queue) - self.prospects.count()

    def _wanted(self) -> int:
        """Count the connections that are missing.

        Who opens the pool waits for no slow one; and one that is due for its age does not count,
        if there may be another beside it.
        """
        options = self.options
        away = len(self.prospects.stuck)
        if self.openers:
            away += self.prospects.slow_connects()
        if self._aging:
            away += min(self._aging, self._few(), options.max_size - options.min_size)
        # One beyond `max_size` would be a surplus one: closed at once, and missing again.
        missing = min(options.min_size - (self.live - away), options.max_size - self.live)
        return max(self._shortage(), missing)

    def _is_full(self) -> bool:
        """Tell whether there is neither an idle connection nor room for another."""
        away = len(self.leased) + len(self.recycling) + len(self.connecting) + len(self.closing)
        return away >= self._capacity and not self.idle

    def _room(self) -> int:
        """Count the free slots."""
        return self._capacity - self.size

    def _place(self, slot: Slot, now: float, *, cold: bool = False) -> None:
        """Find the place of a connection that is free and clean: the queue, idle, or the exit.

        ``cold``: nobody has used it, so nobody is to prefer it.
        """
        waiter = self._first_in_line(now)
        is_old = slot.state == "leased" and self.was_away_since(slot.leased_at, now)
        if is_old:  # what was done in the lease, perhaps
            slot.alive_at = slot.good_until = -NEVER
        reason = self._unfit(slot, now)
        if reason is None and self._surplus(queued=waiter is not None):
            reason = "surplus"
        if reason:
            self._retire(slot, reason)
            self._follow_up(now)
        elif waiter and is_old:
            self._begin("ping", slot, "recycling", self.options.ping_timeout, now)
        elif waiter:
            self._hand_off(slot, waiter, now)
        else:
            self._move(slot, "idle")
            if cold:
                self.idle.rotate(1)

    def _hand_off(self, slot: Slot, waiter: Waiter, now: float) -> None:
        self._move(slot, "leased")
        slot.uses += 1
        slot.holder = waiter.holder
        slot.leased_at = now
        waiter.slot = slot
        self._leave(waiter, "served", now)

    def _first_in_line(self, now: float) -> Waiter | None:
        """Return the first waiter whose time has not passed, dismissing those before it."""
        facts = None
        while self.queue:
            waiter = next(iter(self.queue.values()))
            if now >= waiter.deadline:
                facts = self._leave(waiter, "timed_out", now, None, facts)
            elif self.shedder is not None and now >= self._shed_at(waiter):
                facts = self._leave(waiter, "shed", now, None, facts)
            else:
                return waiter
        return None

    def _end_overdue(self, now: float) -> None:
        """Dismiss all whose time has passed, while what they have waited for is as it was then."""
        facts = None
        for waiter in self._deadlines.passed(now):
            facts = self._leave(waiter, "timed_out", now, None, facts)

    def _leave(
        self,
        waiter: Waiter,
        outcome: Outcome,
        now: float,
        cause: BaseException | None = None,
        facts: Facts | None = None,
    ) -> Facts | None:
        """End the wait of a caller in line, of an opener, or of one who comes and is refused.

        Return the facts that the error tells: the next whose wait ends for the same is given them.
        """
        if self.shedder is not None:
            self._tell_shedder(waiter, now, served=outcome == "served")
        self._dismiss(waiter, outcome, cause)
        if outcome != "served":
            waiter.facts = facts = facts or self.facts(now)
        return facts

    def _tell_shedder(self, waiter: Waiter, now: float, *, served: bool) -> None:
        """Tell the overload policy that somebody is about to leave the queue."""
        if self.shedder is None or next(iter(self.queue.values()), None) is not waiter:
            return
        self.shedder.left(max(waiter.since, self._fit_since), now, served=served)
        if len(self.queue) == 1:
            self.shedder.rest()

    def _shed_at(self, first: Waiter) -> float:
        """Return when the first in line is to be refused, as things are.

        What cannot connect is no overload, and what has not begun is none yet; neither is what
        was waited for meanwhile.
        """
        if self.shedder is None or self.outage or not self.leased:
            return NEVER
        return self.shedder.refuse_at(max(first.since, self._fit_since))

    def _usable(self, now: float) -> Slot | None:
        """Return the hottest idle slot that needs no ping, retiring the overaged on the way."""
        for slot in list(reversed(self.idle)):
            if now < slot.good_until:
                return slot
            if now >= slot.retire_at and (reason := self._unfit(slot, now)):
                self._retire(slot, reason)
            elif now < slot.alive_at + self._ping_after:
                return slot
        return None

    def _unfit(self, slot: Slot, now: float) -> Reason | None:
        """Say why a connection is not to be used again, if so."""
        if not slot.verdicts.isdisjoint(_BROKEN):  # it died while it was away
            return "broken"
        if not self.is_open:
            return "pool_closed"
        if self.options.max_uses is not None and slot.uses >= self.options.max_uses:
            return "used_up"
        if now >= slot.expires_at:
            return slot.reason or "expired"
        if now >= slot.retire_at and self._can_spare_one():
            return "expired"
        return None

    def _can_spare_one(self) -> bool:
        """Tell whether a connection may go for its age: its replacement first, if there is room."""
        there = len(self.idle) + len(self.leased) + len(self.recycling)
        missing = self.options.min_size - there
        has_room = self.live < self.options.max_size and self._room() > 0
        if missing >= 0 and (has_room or len(self.connecting) > missing):
            return False
        going = sum(slot.reason == "expired" for slot in self.closing)
        return max(going, missing) < self._few()

    def _pace_ages(self, now: float) -> None:
        """Have connections that expire together retire one after the other, the last in time.

        Each has drawn its time by chance. Where that is later than the pace allows at which all
        that follow can still be replaced, the pace counts.
        """
        old_age = (self.options.max_lifetime or 0.0) * _OLD_AGE
        spare = old_age / 10  # for the connect that replaces the last one
        slots = [
            slot for slot in (*self.idle, *self.leased, *self.recycling) if slot.reason is None
        ]
        slots.sort(key=lambda slot: (slot.expires_at, slot.retire_at), reverse=True)
        self._age_at = latest = NEVER
        self._aging = 0
        pace = (old_age - spare) / max(1, len(slots))
        for slot in slots:  # the youngest first
            latest = min(latest - pace, slot.expires_at - spare)
            slot.retire_at = min(slot.retire_at, latest)
            slot.good_until = min(slot.good_until, slot.retire_at)
            self._aging += now >= slot.retire_at
            for due in (slot.expires_at - old_age, slot.retire_at, slot.expires_at):
                if now < due:
                    self._age_at = min(self._age_at, due)
                    break

    def _surplus(self, *, queued: bool) -> bool:
        """Tell whether there is one connection too many."""
        if self.live > self._capacity:
            return True
        if queued or self.options.overflow_linger:
            return False
        return self.live > self.options.max_size

    def _unneeded(self, slot: Slot, now: float) -> Reason | None:
        """Say why an idle connection is to go although it is good, if so."""
        lingers_until = slot.used_at + self.options.overflow_linger  # as `next_tick` has it
        if self.live > self.options.max_size and now >= lingers_until:
            return "surplus"
        limit = self.options.max_idle_time
        if limit is not None and now >= slot.used_at + limit and self.live > self.options.min_size:
            return "unused"
        return None

    def _retire_idle(self, now: float) -> None:
        # The coldest first; where they wait for their replacement, whose time is over first.
        slots = sorted(self.idle, key=lambda slot: slot.expires_at) if self._aging else self.idle
        for slot in list(slots):
            reason = self._unfit(slot, now) or self._unneeded(slot, now)
            if reason:
                self._retire(slot, reason)

    def _ping_idle(self, now: float) -> None:
        """Ping what has not been heard from for long, so that half stays within reach."""
        every = self.options.ping_every
        if every is None or self.queue:
            return
        away = len(self.recycling)
        most = (len(self.idle) + away + 1) // 2 - away
        quiet = (slot for slot in self.idle if now >= slot.alive_at + every)
        for slot in list(itertools.islice(quiet, max(0, most))):
            self._begin("ping", slot, "recycling", self.options.ping_timeout, now)

    def _refuses_newcomers(self, now: float) -> bool:
        """Tell whether a newcomer fails at once: the database is down, nothing can come back."""
        if self.outage is None or self.idle or self.leased or self.recycling:
            return False
        return self.outage.refuses_newcomers(
            now, self.options, probing=self.prospects.underway() > 0
        )

    # -- record ----------------------------------------------------------------------------------

    def _heard_from(self, slot: Slot, sent_at: float) -> None:
        """Note that a connection was alive when it got what it has answered."""
        slot.alive_at = sent_at
        slot.good_until = min(sent_at + self._ping_after, slot.retire_at)

    def _move(self, slot: Slot, to: str) -> None:
        """Move a slot: the one door between the containers."""
        assert to in TRANSITIONS[slot.state], f"{slot.state} -> {to}"
        self.prospects.ended(slot)  # first: it is a call, which may fail for want of stack
        if slot.state == "idle":
            if self.idle[-1] is slot:
                self.idle.pop()
            else:
                self.idle.remove(slot)
        elif slot.state != "new":
            container: dict[Slot, None] = getattr(self, slot.state)
            del container[slot]
        slot.state = to
        if to == "idle":
            self.idle.append(slot)
        elif to != "gone":
            container = getattr(self, to)
            container[slot] = None

    def _begin(self, job: Job, slot: Slot, state: str, limit: float | None, now: float) -> None:
        self._move(slot, state)
        slot.begun_at = slot.sent_at = now
        slot.overdue_at = NEVER if limit is None else now + limit + 1.0
        self.jobs.append((job, slot))

    def _retire(self, slot: Slot, reason: Reason) -> None:
        """Decide that a connection goes: politely if it is healthy, at once if it is not."""
        if reason in ("broken", "derived"):
            self._doom(slot, reason)
            return
        if reason == "expired" and self._aging:
            self._aging -= 1
        self._close(slot, reason)

    def _close(self, slot: Slot, reason: Reason) -> None:
        """Owe a close: the slot is free when that has ended."""
        self.retired[reason] += 1
        slot.reason = reason
        self._move(slot, "closing")
        self.jobs.append(("close", slot))

    def _doom(self, slot: Slot, reason: Reason) -> None:
        """Terminate a connection now: its slot is free as soon as the shell has read this."""
        self.retired[reason] += 1
        self.doomed.append(slot.connection)
        self._move(slot, "gone")

    def _dismiss(
        self, waiter: Waiter, outcome: Outcome, cause: BaseException | None = None
    ) -> None:
        """End a wait."""
        if waiter in self.openers:
            del self.openers[waiter]
        else:
            self.queue.pop(waiter.key, None)
            self.outcomes[outcome] += 1
        waiter.outcome = outcome
        waiter.cause = cause
        self.woken.append(waiter)
