"""The book, event by event: every option that has to do with time, size or failure."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from poolkit import Options, Verdict
from poolkit._core.slot import NEVER, Slot, Waiter
from poolkit._core.slots import MOVES
from poolkit._core.state import PoolState
from poolkit.testing._invariants import check_state
from tests.fakes import gone


class Desk:
    """A book with a clock, and the shell's part played by hand."""

    def __init__(self, *, jitter: float = 1.0, **options: Any) -> None:
        self.now = 0.0
        self.count = 0
        self.state = PoolState(Options(**{"ping_every": None, **options}), lambda: jitter)

    def open(self) -> Desk:
        """Open, and let the first connects succeed."""
        self.opener = self.waiter()
        self.state.open(self.opener, self.now)
        while self.jobs("connect"):
            self.connect()
        return self

    def waiter(self, patience: float = NEVER) -> Waiter:
        """Return a caller."""
        return Waiter(self.now + patience, None)

    def join(self, patience: float = NEVER) -> Waiter:
        """Put a caller in line."""
        waiter = self.waiter(patience)
        self.state.enqueue(waiter, self.now)
        self.check()
        return waiter

    def jobs(self, kind: str) -> list[Slot]:
        """Return the slots to which a job of this kind is owed."""
        return [slot for job, slot in self.state.to_start if job == kind]

    def begin(self, kind: str) -> Slot:
        """Take up the first job of this kind."""
        for entry in self.state.to_start:
            if entry[0] == kind:
                self.state.to_start.remove(entry)
                return entry[1]
        raise AssertionError(f"no {kind} is owed")

    def connect(self) -> Slot:
        """Let a connect succeed."""
        slot = self.begin("connect")
        self.count += 1
        self.state.connect_succeeded(slot, f"c{self.count}", self.now)
        self.check()
        return slot

    def fail(self, verdict: Verdict | None = Verdict.TRANSIENT) -> None:
        """Let a connect fail."""
        self.state.connect_failed(self.begin("connect"), OSError("refused"), verdict, self.now)
        self.check()

    def take(self) -> Slot:
        """Lease an idle connection."""
        slot = self.state.take(self.now)
        assert slot is not None
        self.check()
        return slot

    def release(self, slot: Slot, *, touched: bool = True) -> None:
        """Give it back clean."""
        slot.touched = touched
        self.state.release(slot, self.now)
        self.check()

    def tick(self, now: float) -> None:
        """Let time pass."""
        self.now = now
        self.state.tick(now)
        self.check()

    def check(self) -> None:
        """Hold the book to its promises."""
        check_state(self.state, self.now)

    @property
    def idle(self) -> list[Any]:
        """The idle connections, the hottest last."""
        return [slot.connection for slot in self.state.idle]


def test_transitions_name_every_state_and_no_other() -> None:
    """The table is closed: what can be reached is in it or is the end."""
    reached = set().union(*MOVES.values())
    assert reached == (set(MOVES) - {"new"}) | {"gone"}


def test_move_that_the_table_does_not_know_is_refused() -> None:
    """One function moves, and it looks."""
    desk = Desk().open()
    slot = desk.state.idle[0]
    with pytest.raises(AssertionError, match="idle -> connecting"):
        desk.state._move(slot, "connecting")


def test_idle_connections_are_used_last_in_first_out() -> None:
    """So that the rest grows cold and can be closed."""
    desk = Desk(min_size=3).open()
    first, second = desk.take(), desk.take()
    desk.release(first)
    desk.release(second)
    assert desk.take() is second


def test_min_size_connections_are_opened_and_kept() -> None:
    """Also when one dies."""
    desk = Desk(min_size=2).open()
    assert desk.opener.outcome == "served"
    assert len(desk.idle) == 2
    desk.state.found_dead(desk.state.idle[0], desk.now)
    desk.connect()
    assert len(desk.idle) == 2


def test_max_size_bounds_growth() -> None:
    """Beyond it callers wait."""
    desk = Desk(min_size=0, max_size=2).open()
    for _ in range(3):
        desk.join()
    desk.connect()
    desk.connect()
    assert not desk.jobs("connect")
    assert len(desk.state.queue) == 1


def test_max_overflow_adds_to_capacity_and_surplus_is_closed_on_return() -> None:
    """With nobody waiting the extra connection goes at once."""
    desk = Desk(max_size=1, max_overflow=1).open()
    first = desk.take()
    desk.join()
    second = desk.connect()
    desk.release(second)
    assert second.state == "closing"
    assert second.reason == "surplus"
    desk.release(first)
    assert first.state == "idle"


def test_surplus_connection_is_handed_to_a_waiter_first() -> None:
    """It is extra only when nobody wants it."""
    desk = Desk(max_size=1, max_overflow=1).open()
    desk.take()
    desk.join()
    second = desk.connect()
    waiter = desk.join()
    desk.release(second)
    assert waiter.slot is second


def test_overflow_linger_keeps_a_surplus_connection_for_a_while() -> None:
    """A burst does not connect and close on every request."""
    desk = Desk(max_size=1, max_overflow=1, overflow_linger=5.0).open()
    desk.take()
    desk.join()
    second = desk.connect()
    desk.now = 1.0
    desk.release(second)
    assert second.state == "idle"
    assert desk.state.next_tick() == 6.0
    desk.tick(5.9)
    assert second.state == "idle"
    desk.tick(6.0)
    assert second.state == "closing"


def test_slot_that_is_closing_still_counts() -> None:
    """No connect starts before the close has ended."""
    desk = Desk(min_size=0, max_size=1, max_lifetime=10.0).open()
    desk.join()
    slot = desk.connect()
    waiter = desk.join()
    desk.now = 10.0
    desk.release(slot)
    assert slot.state == "closing"
    assert not desk.jobs("connect")
    desk.state.close_finished(desk.begin("close"), desk.now)
    desk.connect()
    assert waiter.outcome == "served"


def test_ping_after_lets_a_quiet_connection_be_pinged_before_it_is_handed_out() -> None:
    """The caller waits in line for it, and gets it when it answers."""
    desk = Desk(ping_after=2.0).open()
    slot = desk.take()
    desk.now = 1.0
    desk.release(slot)
    desk.now = 1.9
    desk.release(desk.take())
    desk.now = 3.9
    assert desk.state.take(desk.now) is None
    waiter = desk.join()
    desk.state.ping_succeeded(desk.begin("ping"), desk.now)
    assert waiter.slot is slot


def test_ping_after_counts_from_the_last_sign_of_life() -> None:
    """A lease on which nothing was done proves nothing."""
    desk = Desk(ping_after=2.0).open()
    desk.now = 1.5
    desk.release(desk.take(), touched=False)
    desk.now = 2.0
    assert desk.state.take(desk.now) is None


def test_ping_after_none_never_pings() -> None:
    """However long it was quiet."""
    desk = Desk(ping_after=None).open()
    desk.now = 1e6
    assert desk.state.options.max_lifetime is not None
    desk = Desk(ping_after=None, max_lifetime=None).open()
    desk.now = 1e6
    desk.take()


def test_ping_after_zero_always_pings() -> None:
    """Even a connection that was just used."""
    desk = Desk(ping_after=0.0).open()
    assert desk.state.take(desk.now) is None


def test_good_connection_is_preferred_to_a_ping() -> None:
    """The hottest that needs no ping is handed out at once."""
    desk = Desk(min_size=2, ping_after=2.0).open()
    desk.now = 1.0
    slot, _ = desk.take(), desk.take()
    desk.release(slot)
    other = next(iter(desk.state.leased))
    desk.now = 2.5
    desk.release(other, touched=False)
    assert desk.take() is slot


def test_ping_that_times_out_makes_the_others_suspect() -> None:
    """They are pinged together, and a connect is owed for the waiter."""
    desk = Desk(min_size=3, max_size=5, ping_after=2.0).open()
    desk.now = 3.0
    desk.join()
    slot = desk.begin("ping")
    desk.state.recycle_failed(slot, desk.now, suspect_others=True)
    assert desk.state.to_terminate.pop() == slot.connection
    assert len(desk.jobs("ping")) == 2
    assert desk.idle == []
    assert len(desk.jobs("connect")) == 1


def test_connects_that_fail_together_are_one_failure() -> None:
    """What begins again is followed by the shortest pause, though four had been under way."""
    desk = Desk(min_size=4, max_connecting=4, backoff_min=0.2)
    desk.state.open(desk.waiter(), desk.now)
    slots = [desk.begin("connect") for _ in range(4)]
    for slot in slots:
        desk.now += 0.01
        desk.state.connect_failed(slot, OSError("refused"), Verdict.TRANSIENT, desk.now)
    assert desk.state.outage is not None
    assert desk.state.outage.failures == 1
    assert desk.state.outage.retry_at == pytest.approx(desk.now + 0.2)


def test_max_lifetime_retires_between_ninety_and_a_hundred_percent() -> None:
    """With jitter, when it is touched or by upkeep."""
    desk = Desk(jitter=0.5, max_size=1, max_lifetime=100.0, ping_after=None).open()
    desk.tick(94.9)
    assert desk.idle == ["c1"]
    desk.tick(95.0)
    assert desk.idle == []
    assert desk.state.retired["expired"] == 1


def test_max_lifetime_replaces_two_at_a_time_until_it_is_reached() -> None:
    """Equals do not vanish together; past the hard limit none is handed out."""
    desk = Desk(jitter=0.0, min_size=5, max_size=5, max_lifetime=100.0, ping_after=None).open()
    desk.tick(90.0)
    assert len(desk.state.closing) == 2
    assert len(desk.idle) == 3
    desk.take()
    desk.now = 100.0
    assert desk.state.take(desk.now) is None
    assert len(desk.state.closing) == 4


def ages_at_retirement(desk: Desk, *, until: float) -> list[float]:
    """Return when connections were replaced, of a pool that closes and connects at once."""
    ages: list[float] = []
    while (due := min(desk.state.next_tick(), desk.now + 1.0)) < until:
        desk.tick(due)
        while desk.jobs("close") or desk.jobs("connect"):
            while desk.jobs("close"):
                ages.append(desk.now)
                desk.state.close_finished(desk.begin("close"), desk.now)
            while desk.jobs("connect"):
                desk.connect()
    return ages


def test_max_lifetime_replaces_those_of_one_age_at_an_even_pace() -> None:
    """Although chance would have all go at the very end."""
    desk = Desk(jitter=1.0, min_size=20, max_size=20, max_lifetime=60.0).open()
    ages = ages_at_retirement(desk, until=100.0)
    assert ages == pytest.approx([54.27 + 0.27 * n for n in range(20)])
    assert gone(desk.state) == {"expired": 20}


def test_max_lifetime_of_a_moment_is_kept_as_well() -> None:
    """Upkeep would come too late: the alarm rings."""
    desk = Desk(jitter=0.5, min_size=1, max_lifetime=0.2).open()
    ages = ages_at_retirement(desk, until=1.0)
    assert ages == pytest.approx([0.19 * n for n in range(1, 6)])


def test_no_alarm_rings_for_an_age_that_is_far() -> None:
    """Upkeep comes before then."""
    desk = Desk(jitter=0.5, max_lifetime=60.0).open()
    assert desk.state.next_tick() == NEVER
    desk.tick(53.0)
    assert desk.state.next_tick() == 54.0
    desk.tick(54.0)
    assert desk.state.next_tick() == NEVER
    desk.tick(56.0)
    assert desk.state.next_tick() == 57.0
    desk.state.close(desk.now)
    assert desk.state.next_tick() == NEVER


@pytest.mark.parametrize("how", ["idle", "returned"])
def test_max_lifetime_opens_the_new_connection_before_the_old_one_goes(how: str) -> None:
    """If there is room: the pool is never without. Meanwhile the old one is handed out."""
    desk = Desk(jitter=0.5, min_size=1, max_size=2, max_lifetime=100.0, ping_after=None).open()
    if how == "returned":
        slot = desk.take()
        desk.now = 96.0
        desk.release(slot)
    desk.tick(96.5)
    assert desk.idle == ["c1"]
    assert len(desk.jobs("connect")) == 1
    desk.release(desk.take())
    desk.tick(97.0)
    assert len(desk.jobs("connect")) == 1
    desk.connect()
    assert desk.idle == ["c2"]
    assert gone(desk.state) == {"expired": 1}
    desk.tick(98.0)
    assert not desk.jobs("connect")


def test_max_lifetime_keeps_the_old_connection_while_no_new_one_can_be_had() -> None:
    """To its end, and no longer."""
    desk = Desk(jitter=0.0, min_size=1, max_size=2, max_lifetime=100.0, ping_after=None).open()
    desk.tick(90.0)
    desk.fail()
    for now in (92.0, 95.0, 99.9):
        desk.tick(now)
        desk.fail()
    assert desk.idle == ["c1"]
    desk.tick(100.0)
    assert desk.idle == []


def test_max_lifetime_replaces_nothing_above_min_size() -> None:
    """What nobody needs goes at once, two at a time."""
    desk = Desk(jitter=0.0, min_size=4, max_size=9, max_lifetime=100.0, ping_after=None).open()
    desk.state.resize(Options(**{**desk.state.options.__dict__, "min_size": 0}), desk.now)
    desk.tick(90.0)
    assert len(desk.state.closing) == 2
    desk.state.close_finished(desk.begin("close"), desk.now)
    assert len(desk.state.closing) == 2
    assert not desk.jobs("connect")


def test_max_lifetime_waits_for_the_replacements_until_it_is_reached() -> None:
    """While the database cannot be reached, no more than two are given up."""
    desk = Desk(jitter=0.0, min_size=5, max_size=5, max_lifetime=100.0, max_idle_time=None).open()
    desk.tick(90.0)
    while desk.jobs("close"):
        desk.state.close_finished(desk.begin("close"), desk.now)
    while desk.jobs("connect"):
        desk.fail()
    desk.tick(99.9)
    assert len(desk.idle) == 3
    desk.tick(100.0)
    assert not desk.idle


def test_max_lifetime_spreads_a_tenth_of_a_large_pool_at_once() -> None:
    """And refills as many at once, within `max_connecting`."""
    desk = Desk(jitter=0.0, min_size=50, max_size=50, max_lifetime=100.0, max_connecting=9).open()
    desk.tick(90.0)
    assert len(desk.state.closing) == 5
    while desk.jobs("close"):
        desk.state.close_finished(desk.begin("close"), desk.now)
    assert len(desk.state.connecting) == 5
    desk.connect()
    assert len(desk.state.closing) == 1


def test_lifetime_counts_from_when_the_connection_was_there() -> None:
    """Not from the start of a connect that took long."""
    desk = Desk(jitter=0.0, min_size=0, max_lifetime=10.0, connect_timeout=None).open()
    waiter = desk.join()
    slot = desk.begin("connect")
    desk.now = 9.5
    desk.state.connect_succeeded(slot, "c1", desk.now)
    assert waiter.slot is slot
    desk.now = 18.0
    desk.release(slot)
    assert slot.state == "idle"


def test_max_idle_time_closes_the_cold_down_to_min_size() -> None:
    """The hot ones stay."""
    desk = Desk(min_size=1, max_size=3, max_idle_time=60.0, max_lifetime=None).open()
    slot = desk.take()
    desk.join()
    desk.release(desk.connect())
    desk.now = 50.0
    desk.release(slot)
    desk.tick(60.0)
    assert desk.idle == ["c1"]
    assert desk.state.retired["unused"] == 1
    desk.tick(500.0)
    assert desk.idle == ["c1"]


def test_max_uses_replaces_a_connection() -> None:
    """Counted in leases."""
    desk = Desk(max_uses=2).open()
    slot = desk.take()
    desk.release(slot)
    assert desk.take() is slot
    desk.release(slot)
    assert slot.reason == "used_up"


def test_max_waiting_refuses_the_next() -> None:
    """At once."""
    desk = Desk(min_size=0, max_size=1, max_waiting=1).open()
    desk.join()
    assert desk.join().outcome == "busy"


def test_max_waiting_zero_still_lets_an_idle_connection_be_pinged() -> None:
    """Only what somebody holds is not waited for."""
    desk = Desk(max_size=1, max_waiting=0, ping_after=1.0).open()
    desk.now = 5.0
    waiter = desk.join()
    assert desk.join().outcome == "busy"
    desk.state.ping_succeeded(desk.begin("ping"), desk.now)
    assert waiter.outcome == "served"


def test_max_connecting_bounds_connects_at_a_cold_start() -> None:
    """As many at once as allowed, no more."""
    desk = Desk(min_size=0, max_size=10, max_connecting=3).open()
    for _ in range(8):
        desk.join()
    assert len(desk.jobs("connect")) == 3


def test_connects_are_elided_when_waiters_have_a_prospect() -> None:
    """One connect for one waiter."""
    desk = Desk(min_size=0, max_size=10).open()
    desk.join()
    assert len(desk.jobs("connect")) == 1
    desk.join()
    assert len(desk.jobs("connect")) == 2


def test_growth_beside_leases_starts_with_one_and_doubles_with_success() -> None:
    """A returned connection is usually quicker than a new one."""
    desk = Desk(min_size=1, max_size=20, max_connecting=4).open()
    desk.take()
    for _ in range(15):
        desk.join()
    assert len(desk.jobs("connect")) == 1
    desk.connect()
    assert len(desk.jobs("connect")) == 2
    desk.connect()
    assert len(desk.jobs("connect")) == 4
    desk.connect()
    assert len(desk.jobs("connect")) == 4


def test_upkeep_connects_two_at_a_time() -> None:
    """Nobody waits for it."""
    desk = Desk(min_size=4).open()
    for slot in list(desk.state.idle):
        desk.state.found_dead(slot, desk.now)
    assert len(desk.jobs("connect")) == 2


def test_backoff_doubles_from_minimum_to_maximum() -> None:
    """One attempt at a time while the database is down."""
    desk = Desk(min_size=0, backoff_min=1.0, backoff_max=3.0, fail_fast_after=None).open()
    for _ in range(3):
        desk.join()
    pauses = []
    while desk.jobs("connect"):
        desk.fail()
    for _ in range(4):
        due = desk.state.next_tick()
        pauses.append(due - desk.now)
        desk.tick(due)
        assert len(desk.jobs("connect")) == 1
        desk.fail()
    assert pauses == [3.0, 3.0, 3.0, 3.0]
    desk = Desk(min_size=0, backoff_min=1.0, backoff_max=3.0).open()
    desk.join()
    desk.fail()
    assert desk.state.next_tick() - desk.now == 1.0
    desk.tick(1.0)
    desk.fail()
    assert desk.state.next_tick() - desk.now == 2.0


def test_backoff_has_jitter_on_its_upper_half() -> None:
    """A fleet does not come back in step."""
    desk = Desk(jitter=0.0, min_size=0, backoff_min=1.0, backoff_max=3.0).open()
    desk.join()
    desk.fail()
    assert desk.state.next_tick() == 0.5


def test_fail_fast_after_refuses_newcomers_of_a_long_outage() -> None:
    """With the database's own error; one who comes when a probe is due waits for it."""
    desk = Desk(min_size=0, backoff_min=1.0, backoff_max=1.0, fail_fast_after=2.5).open()
    desk.join()
    desk.fail()
    for second in (1.0, 2.0, 3.0):
        assert desk.join(patience=0.5).outcome == "waiting"
        desk.tick(second)
        desk.fail()
    refused = desk.join()
    assert refused.outcome == "failed"
    assert isinstance(refused.cause, OSError)


def test_fatal_failure_fails_every_waiter_and_newcomer() -> None:
    """Until the next probe is due, which the next newcomer starts."""
    desk = Desk(min_size=0, backoff_min=1.0, backoff_max=1.0).open()
    waiters = [desk.join() for _ in range(3)]
    desk.fail(Verdict.FATAL)
    assert {waiter.outcome for waiter in waiters} == {"failed"}
    assert desk.join().outcome == "failed"
    while desk.jobs("connect"):
        desk.fail(Verdict.FATAL)
    desk.now = 5.0
    assert desk.join().outcome == "waiting"
    assert len(desk.jobs("connect")) == 1


def test_first_unclassified_failure_fails_the_head_waiter_only() -> None:
    """The next attempt starts at once; from the second in a row all are told."""
    desk = Desk(min_size=0, max_connecting=1).open()
    first, second, third = (desk.join() for _ in range(3))
    desk.fail(None)
    assert (first.outcome, second.outcome, third.outcome) == ("failed", "waiting", "waiting")
    desk.fail(None)
    assert (second.outcome, third.outcome) == ("failed", "failed")


def test_success_ends_an_outage() -> None:
    """And growth begins again."""
    desk = Desk(min_size=0, max_connecting=4).open()
    for _ in range(6):
        desk.join()
    desk.fail()
    while desk.jobs("connect"):
        desk.fail()
    desk.tick(desk.state.next_tick())
    desk.connect()
    assert desk.state.outage is None
    assert len(desk.jobs("connect")) == 2
    assert desk.state.last_error is None


def test_overdue_connect_is_not_counted_on() -> None:
    """One that ignores its cancellation is visible, keeps its slot and delays nobody."""
    desk = Desk(min_size=0, max_size=3, max_connecting=1, connect_timeout=5.0).open()
    desk.join()
    for _ in range(2):  # the usual one, and one beside it
        desk.begin("connect")
        desk.tick(4.0)
    assert not desk.jobs("connect")
    desk.tick(6.0)
    assert len(desk.jobs("connect")) == 1
    assert desk.state.stats(desk.now).connecting == 3


def test_expired_waiter_is_never_served() -> None:
    """Even if nobody has told it yet that its time is up."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    late, patient = desk.join(patience=1.0), desk.join(patience=9.0)
    desk.now = 1.0
    desk.release(slot)
    assert late.outcome == "timed_out"
    assert patient.slot is slot


def test_renew_replaces_idle_now_and_the_others_on_return() -> None:
    """A connect that began before it counts as old."""
    desk = Desk(min_size=2, max_size=4).open()
    leased = desk.take()
    desk.take()
    desk.join()
    connecting = desk.begin("connect")
    desk.state.renew(desk.now)
    desk.release(leased)
    assert leased.reason == "stale"
    desk.state.connect_succeeded(connecting, "late", desk.now)
    assert connecting.reason == "stale"


def test_resize_grows_at_once() -> None:
    """Waiters do not wait for the next event."""
    desk = Desk(max_size=1).open()
    desk.take()
    waiter = desk.join()
    desk.state.resize(Options(max_size=2), desk.now)
    desk.connect()
    assert waiter.outcome == "served"


def test_resize_shrinks_idle_now_and_leased_on_return() -> None:
    """The size only falls."""
    desk = Desk(min_size=0, max_size=4).open()
    for _ in range(4):
        desk.join()
    slots = [desk.connect() for _ in range(4)]
    desk.release(slots[0])
    desk.state.resize(Options(min_size=0, max_size=1), desk.now)
    assert slots[0].reason == "surplus"
    for slot in slots[1:3]:
        desk.release(slot)
        assert slot.reason == "surplus"
    desk.release(slots[3])
    assert slots[3].state == "idle"


def test_after_shrinking_a_waiter_does_not_keep_a_surplus_connection_alive() -> None:
    """Above capacity a returned connection is closed although somebody waits."""
    desk = Desk(min_size=0, max_size=3).open()
    for _ in range(3):
        desk.join()
    slots = [desk.connect() for _ in range(3)]
    waiter = desk.join()
    desk.state.resize(Options(min_size=0, max_size=1), desk.now)
    desk.release(slots[0])
    desk.release(slots[1])
    assert waiter.slot is None
    desk.release(slots[2])
    assert waiter.slot is slots[2]


def test_close_decides_at_once() -> None:
    """Waiters fail, idle ones close, leased ones on their return; a late connect too."""
    desk = Desk(min_size=2, max_size=3).open()
    leased = desk.take()
    desk.take()
    waiter = desk.join()
    connecting = desk.begin("connect")
    desk.state.close(desk.now)
    assert waiter.outcome == "closed"
    desk.release(leased)
    assert leased.reason == "pool_closed"
    desk.state.connect_succeeded(connecting, "late", desk.now)
    assert connecting.reason == "pool_closed"
    assert desk.join().outcome == "closed"


def test_collapse_terminates_all_and_ends_the_leases() -> None:
    """Slots belong to one life of the pool; the handle of a lease is dead from now on."""
    desk = Desk(min_size=3).open()
    leased = desk.take()
    turn = leased.release_count
    desk.state.abort(desk.now, None)
    assert sorted(desk.state.to_terminate) == ["c1", "c2", "c3"]
    assert (desk.state.size, desk.state.phase) == (0, "closed")
    assert leased.release_count == turn + 1
    assert not desk.state.to_start


def test_giving_up_keeps_the_heap_of_deadlines_small() -> None:
    """A hundred thousand cancelled waiters leave nothing behind."""
    desk = Desk(max_size=1).open()
    desk.state.take(desk.now)
    for _ in range(1000):
        waiter = desk.waiter(patience=10.0)
        desk.state.enqueue(waiter, desk.now)
        desk.state.give_up(waiter, desk.now)
    assert len(desk.state.line._deadlines._heap) < 100
    assert desk.state.outcomes["cancelled"] == 1000


def test_idle_connection_is_pinged_for_a_waiter_beside_a_connect_under_way() -> None:
    """A ping is quicker, and the connect may hang."""
    desk = Desk(min_size=2, ping_after=1.0).open()
    desk.state.found_dead(desk.state.idle[0], desk.now)
    assert len(desk.jobs("connect")) == 1
    desk.now = 2.0
    waiter = desk.join()
    desk.state.ping_succeeded(desk.begin("ping"), desk.now)
    assert waiter.outcome == "served"


def test_connect_that_hangs_is_nobodys_prospect_after_a_moment() -> None:
    """Another is owed."""
    desk = Desk(min_size=1, max_size=9, max_connecting=3).open()
    desk.take()
    for _ in range(5):
        desk.join()
    desk.begin("connect")
    assert not desk.jobs("connect")
    assert desk.state.next_tick() == 0.5
    desk.tick(0.5)
    assert len(desk.jobs("connect")) == 1
    desk.begin("connect")
    assert desk.state.next_tick() == 1.5, "patience doubles"
    desk.tick(1.5)
    assert len(desk.jobs("connect")) == 1


def test_one_extra_attempt_is_due_for_each_slow_connect_one_after_the_other() -> None:
    """So that hung ones keep nobody from an answer, in steps of `backoff_min`."""
    desk = Desk(min_size=0, max_size=20, max_connecting=2, connect_timeout=60.0).open()
    for _ in range(9):
        desk.join()
    begun: list[float] = []
    while (due := desk.state.next_tick()) < 50.0:
        while desk.jobs("connect"):
            desk.begin("connect")
            begun.append(desk.now)
        desk.tick(due)
    assert begun == [0.0, 0.0, 0.5, 1.0], "as many extra ones as there may be anyway"


def test_many_that_become_slow_at_once_are_followed_by_one_attempt_at_a_time() -> None:
    """The alarm was late; the next is due after `backoff_min`, and the book says when."""
    desk = Desk(min_size=0, max_size=20, max_connecting=3, connect_timeout=60.0).open()
    for _ in range(9):
        desk.join()
    for _ in range(3):
        desk.begin("connect")
    begun: list[float] = []
    due = 30.0
    for _ in range(3):
        desk.tick(due)
        desk.begin("connect")
        begun.append(desk.now)
        assert not desk.jobs("connect")
        due = desk.state.next_tick()
    assert begun == pytest.approx([30.0, 30.2, 30.4])
    assert due == 34.0, "nothing but the next that will be slow"


def test_extra_attempt_that_ends_is_followed_by_another_for_who_waits() -> None:
    """Each serves somebody, while the usual ones hang."""
    desk = Desk(min_size=0, max_size=20, max_connecting=1, connect_timeout=60.0).open()
    waiters = [desk.join() for _ in range(3)]
    desk.begin("connect")
    for waiter, at in zip(waiters, (0.5, 0.7, 0.9), strict=True):
        assert desk.state.next_tick() == pytest.approx(at)
        desk.tick(desk.state.next_tick())
        desk.connect()
        assert waiter.outcome == "served"
    assert desk.state.next_tick() == NEVER


def test_extra_attempts_are_within_capacity() -> None:
    """A hung one keeps its slot."""
    desk = Desk(min_size=0, max_size=1, connect_timeout=60.0).open()
    desk.join()
    desk.begin("connect")
    desk.tick(5.0)
    assert not desk.jobs("connect")


def test_slow_probe_of_an_outage_has_one_other_attempt_beside_it() -> None:
    """Not before the pause has passed, and no third one."""
    desk = Desk(min_size=0, max_size=9, backoff_min=1.0, connect_timeout=60.0).open()
    desk.join()
    desk.fail()
    desk.tick(1.0)
    desk.begin("connect")
    desk.tick(1.9)
    assert not desk.jobs("connect")
    desk.tick(2.0)
    desk.fail()
    assert desk.state.next_tick() == 3.5, "a longer pause"
    desk.tick(3.5)
    desk.begin("connect")
    desk.tick(50.0)
    assert not desk.jobs("connect")
    desk.join()
    assert not desk.jobs("connect")


def test_opener_is_served_although_a_connect_hangs() -> None:
    """By the one beside it."""
    desk = Desk(min_size=2, max_size=9, max_connecting=2)
    opener = desk.waiter()
    desk.state.open(opener, desk.now)
    desk.begin("connect")
    desk.connect()
    assert desk.state.next_tick() == 0.5
    desk.tick(0.5)
    desk.connect()
    assert opener.outcome == "served"


def test_connect_that_is_slow_rings_no_alarm_after_the_close() -> None:
    """Nothing is to begin any more."""
    desk = Desk(min_size=2, max_size=9)
    desk.state.open(desk.waiter(), desk.now)
    desk.begin("connect")
    desk.begin("connect")
    desk.tick(3.0)
    desk.state.close(desk.now)
    assert desk.state.next_tick() == NEVER


def test_connect_that_is_stuck_does_not_count_for_min_size() -> None:
    """Another is owed in its place."""
    desk = Desk(min_size=1, max_size=3, connect_timeout=1.0)
    desk.opener = desk.waiter()
    desk.state.open(desk.opener, desk.now)
    desk.begin("connect")
    desk.tick(2.0)
    desk.connect()
    assert desk.opener.outcome == "served"


def test_alarm_is_never_set_for_a_connect_that_is_not_wanted() -> None:
    """It would ring again and again."""
    desk = Desk(min_size=0, max_size=2, ping_after=None).open()
    desk.join()
    slot = desk.connect()
    desk.join()
    desk.fail()
    desk.state.release_dirty(slot, desk.now)
    desk.begin("reset")
    assert desk.state.next_tick() > desk.now
    desk.tick(5.0)
    assert desk.state.next_tick() > desk.now


def test_first_hiccup_is_not_held_against_newcomers() -> None:
    """The next attempt is for them."""
    desk = Desk(min_size=0, max_size=5).open()
    desk.join()
    desk.fail(None)
    desk.now = 3600.0
    newcomers = [desk.join() for _ in range(3)]
    assert {waiter.outcome for waiter in newcomers} == {"waiting"}


def test_outage_of_long_ago_is_not_held_against_newcomers() -> None:
    """Nobody has tried since: the database may be well."""
    desk = Desk(min_size=0, max_size=5, connect_timeout=5.0, backoff_max=1.5).open()
    desk.join()
    desk.fail(Verdict.FATAL)
    desk.now = 3600.0
    newcomers = [desk.join() for _ in range(3)]
    assert {waiter.outcome for waiter in newcomers} == {"waiting"}


def test_probe_that_never_ends_does_not_refuse_newcomers_for_ever() -> None:
    """Overdue, it counts no more."""
    desk = Desk(min_size=0, max_size=5, connect_timeout=None, backoff_max=1.0).open()
    desk.join()
    desk.fail(Verdict.FATAL)
    desk.now = 2.0
    desk.join(patience=0.5)
    hung = desk.begin("connect")
    hung.overdue_at = 3.0
    assert desk.join().outcome == "failed"
    desk.tick(3.0)
    assert desk.join().outcome == "waiting"


def test_connect_that_began_before_a_renewal_says_nothing_when_it_fails() -> None:
    """No outage, and another is owed at once."""
    desk = Desk(min_size=0).open()
    desk.join()
    slot = desk.begin("connect")
    desk.state.renew(desk.now)
    desk.state.connect_failed(slot, OSError(), Verdict.FATAL, desk.now)
    assert desk.state.outage is None
    assert len(desk.jobs("connect")) == 1


# -- keepalive -----------------------------------------------------------------------------------


def test_ping_every_pings_half_of_the_idle_at_most_at_once() -> None:
    """The coldest first; the others when those are back."""
    desk = Desk(min_size=3, ping_every=30.0, ping_after=None).open()
    desk.tick(29.9)
    assert not desk.jobs("ping")
    for now in (30.0, 31.0):
        desk.tick(now)
        assert len(desk.jobs("ping")) == 2
        assert desk.idle == ["c3"]
    for _ in range(2):
        desk.state.ping_succeeded(desk.begin("ping"), desk.now)
    desk.tick(32.0)
    assert [slot.connection for slot in desk.jobs("ping")] == ["c3"]


def test_ping_every_reaches_every_idle_connection() -> None:
    """As often as it says, the hot ones too."""
    desk = Desk(min_size=6, ping_every=30.0, ping_after=None, max_lifetime=None).open()
    pings: Counter[str] = Counter()
    for now in range(3600):
        desk.tick(float(now))
        while desk.jobs("ping"):
            slot = desk.begin("ping")
            pings[slot.connection] += 1
            desk.state.ping_succeeded(slot, desk.now)
    assert all(115 <= pings[f"c{number}"] <= 120 for number in range(1, 7))


def test_thousands_of_suspects_are_no_trouble() -> None:
    """The patience doubles with each that is slow, but not for ever."""
    desk = Desk(min_size=0, max_size=3000, ping_after=None, max_connecting=3000)
    desk.state.open(desk.waiter(), desk.now)
    waiters = [desk.join() for _ in range(1500)]
    while desk.jobs("connect"):
        desk.count += 1
        desk.state.connect_succeeded(desk.begin("connect"), f"c{desk.count}", desk.now)
    for waiter in waiters:
        assert waiter.slot is not None
        desk.state.release(waiter.slot, desk.now)
    desk.state.suspect(desk.now)
    desk.join()
    assert desk.state.next_tick() > desk.now


def test_ping_every_counts_from_the_last_sign_of_life() -> None:
    """What is used needs no ping; a ping counts, too."""
    desk = Desk(ping_every=30.0, ping_after=None).open()
    desk.now = 20.0
    desk.release(desk.take())
    desk.tick(40.0)
    assert not desk.jobs("ping")
    desk.tick(50.0)
    desk.state.ping_succeeded(desk.begin("ping"), desk.now)
    desk.tick(79.0)
    assert not desk.jobs("ping")
    desk.tick(80.0)
    assert len(desk.jobs("ping")) == 1


def test_pinged_connection_stays_the_coldest() -> None:
    """Or what a burst has left would never be closed: each ping would bring another to the front."""
    desk = Desk(min_size=4, ping_every=30.0, ping_after=None, max_idle_time=100.0).open()
    desk.state.resize(dataclasses.replace(desk.state.options, min_size=1), desk.now)
    slots = list(desk.state.idle)
    desk.now = 29.0
    desk.state.take(desk.now)
    desk.release(slots[3])  # the hottest, heard from just now
    desk.tick(30.0)
    while desk.jobs("ping"):
        desk.state.ping_succeeded(desk.begin("ping"), desk.now)
    assert desk.state.idle[-1] is slots[3]
    for now in range(31, 100, 10):
        desk.now = float(now)
        assert desk.take() is slots[3]
        desk.release(slots[3])
    desk.tick(100.0)
    assert desk.idle == [slots[3].connection]


def test_dead_connection_is_found_by_its_keepalive_ping_and_replaced() -> None:
    """Nobody has to pay for it."""
    desk = Desk(ping_every=30.0).open()
    desk.tick(30.0)
    desk.state.recycle_failed(desk.begin("ping"), desk.now, suspect_others=False)
    desk.connect()
    assert desk.idle == ["c2"]


def test_caller_who_comes_during_a_keepalive_ping_is_served_by_it() -> None:
    """It opens no other connection for that."""
    desk = Desk(ping_every=30.0, max_size=2).open()
    desk.tick(30.0)
    waiter = desk.join()
    assert not desk.jobs("connect")
    desk.state.ping_succeeded(desk.begin("ping"), desk.now)
    assert waiter.outcome == "served"


def test_ping_every_none_never_pings() -> None:
    """A database that scales to zero may sleep."""
    desk = Desk(ping_every=None, max_lifetime=None).open()
    desk.tick(1_000_000.0)
    assert not desk.jobs("ping")


# -- renew over a window -------------------------------------------------------------------------


def test_renew_over_a_window_replaces_one_after_the_other() -> None:
    """Evenly: not all are missing at once, and none stays beyond its time for want of room."""
    desk = Desk(min_size=3, max_size=3, max_lifetime=None, ping_after=None).open()
    desk.state.renew(desk.now, 30.0)
    for count, now in enumerate((0.0, 9.9, 10.0, 19.9, 20.0, 29.9)):
        desk.tick(now)
        assert desk.state.stats(now).retired.get("stale", 0) == count // 2 + 1
        for _ in range(2):
            while desk.jobs("close"):
                desk.state.close_finished(desk.begin("close"), now)
            while desk.jobs("connect"):
                desk.connect()
    assert desk.idle == ["c4", "c5", "c6"]
    desk.tick(1000.0)
    assert gone(desk.state.stats(1000.0)) == {"stale": 3}


def test_renew_over_a_window_lets_what_is_leased_come_back_in_time() -> None:
    """Before its time it is used again, after it never."""
    desk = Desk(max_lifetime=None, ping_after=None).open()
    slot = desk.take()
    desk.state.renew(desk.now, 30.0)
    desk.now = 10.0
    desk.release(slot)
    assert desk.take() is slot
    desk.now = 30.0
    desk.release(slot)
    assert slot.state == "closing"
    assert slot.reason == "stale"


def test_renew_over_a_window_never_lengthens_a_life() -> None:
    """What would have expired before then does."""
    desk = Desk(max_lifetime=10.0, ping_after=None).open()
    desk.state.renew(desk.now, 1000.0)
    desk.now = 10.0
    assert desk.state.take(desk.now) is None


def test_second_renew_within_the_window_is_at_once() -> None:
    """The earlier time counts."""
    desk = Desk(min_size=2, max_lifetime=None).open()
    desk.state.renew(desk.now, 30.0)
    desk.state.renew(desk.now)
    assert not desk.idle


# -- what is stuck -------------------------------------------------------------------------------


def test_connect_that_outlasts_its_limit_is_counted_as_stuck_and_delays_nobody() -> None:
    """It ignores its cancellation: its slot is taken, and others connect."""
    desk = Desk(min_size=0, max_size=3, max_connecting=1, connect_timeout=2.0)
    desk.state.open(desk.waiter(), desk.now)
    waiter = desk.join()
    desk.begin("connect")
    desk.tick(2.0)
    desk.begin("connect")  # beside the slow one
    desk.tick(2.9)
    assert desk.state.stats(desk.now).stuck == 0
    assert not desk.jobs("connect")
    desk.tick(3.0)
    stats = desk.state.stats(desk.now)
    assert (stats.stuck, stats.connecting) == (1, 3)
    assert "3 connecting, 0 recycling (1 of both stuck)" in str(stats)
    desk.connect()
    assert waiter.outcome == "served"


def test_reopened_pool_measures_by_its_new_clock() -> None:
    """A renewal on another event loop's clock would put off the next one."""
    desk = Desk().open()
    desk.now = 1000.0
    desk.state.renew(desk.now)
    desk.state.close(desk.now)
    desk.state.abort(desk.now, None)
    desk.now = 0.0
    desk.state.open(desk.waiter(), desk.now)
    assert desk.state.renewed_at < desk.now
