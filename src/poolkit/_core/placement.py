"""What follows from every event: who is served next, what is due, and which connection goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from poolkit._core import fitness, supply
from poolkit._core.reading import facts_of, stats_of, times_of
from poolkit._core.slot import NEVER, Phase, Slot
from poolkit._core.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from poolkit._core.outage import Outage
    from poolkit._core.slot import Outcome, Reason, Waiter
    from poolkit._options import Options
    from poolkit._stats import Facts, PoolStats

#: How many leases of a connection in a row may end without its reset, while somebody waits.
_MOST_UNRESET: Final = 100
#: For how many seconds.
_LONGEST_UNRESET: Final = 5.0
#: Seconds: the event loop is not away before, however short `ping_after` is.
_BRIEF: Final = 0.5
#: How often another thread looks again, if leases have begun or ended under its eyes.
_LOOKS: Final = 20


class Placement(Tally):
    """What all events have in common: who is served next, and what is due."""

    __slots__ = (
        "_age_at",
        "_asks_all",
        "_awake_by",
        "_back_at",
        "_capacity",
        "_fit_since",
        "_ping_after",
        "_puts_off_resets",
        "_random",
        "_ticked_at",
        "aging",
        "asks_on_return",
        "attempt_at",
        "generation",
        "openers",
        "outage",
        "phase",
        "pulse",
        "queue",
        "ramp",
        "renewed_at",
        "to_wake",
    )

    def __init__(self, options: Options, random: Callable[[], float]) -> None:
        super().__init__()
        self._random = random
        self.phase: Phase = "closed"
        self.generation = 0

        line = self.line
        self.queue = line.queue  # what the hot edges look at, without a step more
        self.openers = line.openers
        self.to_wake = line.to_wake

        self.outage: Outage | None = None
        self._fit_since = -NEVER  # connections can be had
        self.renewed_at = -NEVER
        self._awake_by = NEVER  # when the shell, if the event loop runs, has been heard of again
        self._back_at = -NEVER  # until then the event loop, or the machine, was away
        self.ramp = 1  # connects under way at once while leases are out; doubles with success
        self.attempt_at = -NEVER  # the last connect began
        self._ticked_at = -NEVER
        self._age_at = NEVER  # the next connection comes of age, or is due to be replaced
        self.aging = 0  # those that are due, and go one after the other
        self._puts_off_resets = False  # a leased connection may owe one

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

        While `_asks_all` is False, it is to be kept, not used up, and nothing that it told is old;
        while `asks_on_return` is, it owes no reset either, and nothing is to be settled.
        """
        options = self.options
        self._asks_all = (
            options.max_overflow > 0
            or options.max_uses is not None
            or options.keeps_none
            or self.live > options.max_size
            or (bool(self.leased) and next(iter(self.leased)).leased_at < self._back_at)
        )
        self.asks_on_return = self._asks_all or self._puts_off_resets or self.batch_is_over

    def _settle(self, *, all_of_them: bool = False) -> None:
        """Sort the durations that the hot edges have noted, and decide anew what is to be asked."""
        self.settle_times(all_of_them=all_of_them)
        self._look_at_returns()

    # -- inspect ---------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Tell whether connections are to be had, now or soon."""
        return self.phase in ("opening", "open")

    @property
    def last_error(self) -> BaseException | None:
        """Why connecting fails, if it does."""
        return self.outage.error if self.outage else None

    def stats(self, now: float) -> PoolStats:
        """Return a snapshot: for another thread, too, of one moment, unless that fails often."""
        for _ in range(_LOOKS):
            counted = sum(self.begun), self.uses.count
            stats = stats_of(self, now, **times_of(self, now))
            if counted == (sum(self.begun), self.uses.count):
                return stats
        return stats_of(self, now, **times_of(self, now))

    def refuses_at(self) -> float:
        """Return when the overload policy refuses the first in line, as things are."""
        first = self.line.first()
        return NEVER if first is None else self._refuse_at(first)

    # -- after every event -----------------------------------------------------------------------

    def _follow_up(self, now: float) -> None:
        """Let openers go on when all is there; schedule what is missing for those who wait.

        The next one goes for its age when the one before is replaced.
        Connections are handed out where they become free, in `_place`: nobody waits beside one.
        """
        if self.openers:
            ready = len(self.idle) + len(self.leased) + len(self.recycling)
            if ready >= self.options.min_size:
                for waiter in list(self.openers):
                    self.line.end(waiter, "served")
        if self.aging:
            self._retire_idle(now)
        if self.is_open:
            self._schedule_jobs(now)

    def _schedule_jobs(self, now: float) -> None:
        """Begin the pings and connects that are due: for those who wait, and for the sizes."""
        if self._is_full():
            return
        for _ in range(supply.untrusted_wanted(self)):
            self._ping(self.idle[-1], now)
        if supply.shortage(self) <= 0:
            self.ramp = 1
        for _ in range(supply.connects_due(self, now)):
            self.attempt_at = now
            slot = Slot(self.generation)
            self._begin("connect", slot, "connecting", self.options.connect_timeout, now)
            self._count_slot()
            self._note_event("connect_began")

    def _is_full(self) -> bool:
        """Tell whether there is neither an idle connection nor room for another."""
        away = len(self.leased) + len(self.recycling) + len(self.connecting) + len(self.closing)
        return away >= self._capacity and not self.idle

    # -- where a free connection goes ------------------------------------------------------------

    def _place(self, slot: Slot, now: float, *, cold: bool = False) -> None:
        """Find the place of a connection that is free and clean: the queue, idle, or the exit.

        One whose reset was put off may go to the queue only; else it is reset now.

        ``cold``: it was only pinged; put it at the cold end.
        """
        waiter = self._first_in_line(now)
        is_old = slot.state == "leased" and self.was_away_since(slot.leased_at, now)
        if is_old:  # what was done in the lease, perhaps
            slot.alive_at = slot.good_until = -NEVER
        reason = fitness.why_unfit(self, slot, now)
        reason = reason or fitness.why_not_kept(self, slot, wanted=waiter is not None)
        if reason:
            self._retire(slot, reason)
            self._follow_up(now)
        elif slot.unreset and (waiter is None or is_old or self._must_be_reset(slot, now)):
            self._reset(slot, now)
            self._follow_up(now)
        elif waiter and is_old:
            self._ping(slot, now)
        elif waiter:
            self._hand_off(slot, waiter, now)
        else:
            self._move(slot, "idle")
            if cold:
                self.idle.rotate(1)

    def _must_be_reset(self, slot: Slot, now: float) -> bool:
        """Tell whether the reset of a connection was put off for as long as it may be."""
        return slot.unreset > _MOST_UNRESET or now >= slot.unreset_since + _LONGEST_UNRESET

    def _hand_off(self, slot: Slot, waiter: Waiter, now: float) -> None:
        self._count_hand_off(slot, waiter, now, others=len(self.leased) - (slot.state == "leased"))
        self._move(slot, "leased")
        slot.lease_to(waiter, now)
        waiter.slot = slot
        self.end_wait(waiter, "served", now)

    def _usable(self, now: float) -> Slot | None:
        """Return the hottest idle slot that needs no ping, retiring the overaged on the way."""
        for slot in list(reversed(self.idle)):
            if now < slot.good_until:
                return slot
            if now >= slot.retire_at and (reason := fitness.why_unfit(self, slot, now, more=1)):
                self._retire(slot, reason)
            elif now < slot.alive_at + self._ping_after:
                return slot
        return None

    def _heard_from(self, slot: Slot, sent_at: float) -> None:
        """Note that a connection was alive when it got what it has answered."""
        slot.alive_at = sent_at
        slot.good_until = min(sent_at + self._ping_after, slot.retire_at)

    def was_away_since(self, then: float, now: float) -> bool:
        """Tell whether the event loop was away at some time since then."""
        return now >= self._awake_by or then < self._back_at

    # -- the end of a wait -----------------------------------------------------------------------

    def _first_in_line(self, now: float) -> Waiter | None:
        """Return the first waiter whose time has not passed, ending the waits before it."""
        facts = None
        while (waiter := self.line.first()) is not None:
            if now >= waiter.deadline:
                facts = self.end_wait(waiter, "timed_out", now, None, facts)
            elif self.line.shedder is not None and now >= self._refuse_at(waiter):
                facts = self.end_wait(waiter, "shed", now, None, facts)
            else:
                return waiter
        return None

    def _end_overdue(self, now: float) -> None:
        """End the waits whose time has passed, while what they waited for is as it was then."""
        self._end_waits(self.line.overdue(now), "timed_out", now)

    def _end_waits(
        self,
        waiters: Iterable[Waiter],
        outcome: Outcome,
        now: float,
        cause: BaseException | None = None,
    ) -> None:
        facts = None
        for waiter in waiters:
            facts = self.end_wait(waiter, outcome, now, cause, facts)

    def end_wait(
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
        if self.line.shedder is not None:
            self.line.tell_shedder(waiter, self._fit_since, now, served=outcome == "served")
        self.line.end(waiter, outcome, cause)
        if outcome != "served":
            waiter.facts = facts = facts or facts_of(self, now)
        return facts

    def _refuse_at(self, first: Waiter) -> float:
        """Return when the first in line is to be refused, as things are.

        Never during an outage or while nothing is leased. Time waited before connections became
        available does not count.
        """
        if self.outage or not self.leased:
            return NEVER
        return self.line.refuse_at(first, self._fit_since)

    def _refuses_newcomers(self, now: float) -> bool:
        """Tell whether a newcomer fails at once: the database is down, nothing can come back."""
        if self.outage is None or self.idle or self.leased or self.recycling:
            return False
        return self.outage.refuses_newcomers(
            now, self.options, probing=self.progress.live_connects() > 0
        )

    # -- who goes --------------------------------------------------------------------------------

    def _pace_ages(self, now: float) -> None:
        """Have connections that expire together retire one after the other, the last in time."""
        slots = (*self.idle, *self.leased, *self.recycling)
        ages = fitness.pace_ages(slots, self.options.max_lifetime or 0.0, now)
        self._age_at, self.aging = ages.next_at, ages.due
        for slot, retire_at in ages.retire_at:
            slot.retire_at = retire_at
            slot.good_until = min(slot.good_until, retire_at)

    def _retire_idle(self, now: float) -> None:
        # The coldest first; where they wait for their replacement, whose time is over first.
        slots = sorted(self.idle, key=lambda slot: slot.expires_at) if self.aging else self.idle
        for slot in list(slots):
            reason = fitness.why_unfit(self, slot, now) or fitness.why_unneeded(self, slot, now)
            if reason:
                self._retire(slot, reason)

    def _retire(self, slot: Slot, reason: Reason) -> None:
        if reason in fitness.AGED and self.aging:
            self.aging -= 1
        super()._retire(slot, reason)
