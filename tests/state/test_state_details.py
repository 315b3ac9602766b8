"""The book, number by number: counters, edges in time, and what hardly ever happens."""

from __future__ import annotations

from typing import Any, Literal, get_args

import pytest

from poolkit import CoDel, Options, Verdict
from poolkit._core.slot import NEVER, UNDONE, Reason
from tests.fakes import gone
from tests.state.test_state import Desk


def test_stats_count_every_end_of_a_wait_once() -> None:
    """An acquire is direct, or has waited, or has ended in one of five other ways."""
    desk = Desk(max_size=1, max_waiting=2).open()
    slot = desk.take()
    desk.now = 1.0
    desk.join(patience=5.0)
    desk.now = 3.0
    second = desk.join()
    desk.join()  # one too many
    desk.state.give_up(second, desk.now)
    desk.tick(6.0)  # the first times out
    third = desk.join()
    desk.release(slot)
    desk.state.give_up(third, desk.now)  # served, and cancelled before it noticed
    assert slot.state == "idle"
    fourth = desk.join()
    desk.state.ping_succeeded(desk.begin("ping"), desk.now)
    assert fourth.slot is slot
    desk.state.release_broken(slot, desk.now)
    desk.join()
    desk.fail(Verdict.FATAL)
    desk.tick(60.0)
    desk.join()
    desk.state.close(desk.now)
    stats = desk.state.stats(desk.now)
    assert (stats.direct, stats.waited, stats.timed_out, stats.cancelled) == (1, 1, 1, 2)
    assert (stats.busy, stats.failed, stats.closed) == (1, 1, 1)
    assert (stats.connected, stats.connect_failures) == (1, 1)
    assert gone(stats) == {"broken": 1}


def test_stats_say_how_long_the_first_in_line_has_waited() -> None:
    """Since it came; nobody in line is no wait."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    assert desk.state.stats(2.0).oldest_wait == 0.0
    desk.now = 2.0
    desk.join()
    desk.now = 3.0
    desk.join()
    assert desk.state.stats(7.0).oldest_wait == 5.0
    desk.release(slot)
    assert desk.state.stats(7.0).oldest_wait == 4.0


def test_take_that_was_dead_is_not_counted() -> None:
    """Nobody got anything."""
    desk = Desk(min_size=1).open()
    desk.state.undo_take(desk.take(), desk.now)
    assert desk.state.stats(desk.now).direct == 0
    assert gone(desk.state.stats(desk.now)) == {"broken": 1}
    assert len(desk.jobs("connect")) == 1


@pytest.mark.parametrize(
    ("options", "patience", "refused_as"),
    [({}, 0.0, "timed_out"), ({}, -5.0, "timed_out"), ({"max_waiting": 0}, 9.0, "busy")],
)
def test_caller_who_waits_for_no_other_user_is_refused_at_once(
    options: dict[str, int], patience: float, refused_as: str
) -> None:
    """One connect is begun, for the next one; not a second, and none that would be surplus."""
    desk = Desk(min_size=1, max_size=2, max_overflow=2, **options).open()
    desk.take()
    for _ in range(3):
        assert desk.join(patience=patience).outcome == refused_as
        assert len(desk.jobs("connect")) == 1
    desk.connect()
    desk.take()
    assert desk.join(patience=patience).outcome == refused_as
    assert not desk.jobs("connect")
    assert not desk.state.queue


@pytest.mark.parametrize(
    ("options", "patience", "refused_as"),
    [({}, 0.0, "timed_out"), ({"max_waiting": 0}, 9.0, "busy")],
)
def test_caller_who_waits_for_no_other_user_gets_what_is_pinged_or_reset_for_nobody(
    options: dict[str, int], patience: float, refused_as: str
) -> None:
    """One each; the next is refused."""
    desk = Desk(min_size=2, max_size=2, ping_after=1.0, **options).open()
    slot = desk.take()
    desk.now = 5.0
    desk.state.release_dirty(slot, desk.now)
    first, second, third = (desk.join(patience=patience) for _ in range(3))
    assert (first.outcome, second.outcome, third.outcome) == ("waiting", "waiting", refused_as)
    desk.state.reset_succeeded(desk.begin("reset"), desk.now)
    desk.state.ping_succeeded(desk.begin("ping"), desk.now)
    assert (first.outcome, second.outcome) == ("served", "served")


def test_slow_reset_is_not_waited_for_by_who_waits_for_no_other_user() -> None:
    """Nobody counts on it any more."""
    desk = Desk(max_size=1).open()
    desk.state.release_dirty(desk.take(), desk.now)
    assert desk.state.next_tick() == NEVER
    desk.tick(0.5)
    assert desk.join(patience=0.0).outcome == "timed_out"


def test_caller_without_time_is_in_line_for_half_a_second() -> None:
    """Then it is told of a timeout."""
    desk = Desk(max_size=1, ping_after=1.0).open()
    desk.now = 5.0
    waiter = desk.join(patience=0.0)
    assert len(desk.jobs("ping")) == 1
    assert desk.state.next_tick() == 5.5
    desk.tick(5.5)
    assert waiter.outcome == "timed_out"


@pytest.mark.parametrize("limit", [7.0, None])
def test_opener_without_time_waits_for_one_connect(limit: float | None) -> None:
    """As long as that may take."""
    desk = Desk(min_size=1, connect_timeout=limit)
    opener = desk.waiter(patience=0.0)
    desk.state.open(opener, desk.now)
    assert opener.deadline == (NEVER if limit is None else 7.0)
    desk.connect()
    assert opener.outcome == "served"


def test_newcomer_does_not_pass_those_in_line() -> None:
    """Although an idle connection, which is to be pinged, is there for each."""
    desk = Desk(min_size=0, max_size=3, ping_after=1.0).open()
    for _ in range(2):
        desk.join()
    slots = [desk.connect() for _ in range(2)]
    for slot in slots:
        desk.release(slot)
    desk.now = 5.0
    waiter = desk.join()
    assert len(desk.state.idle) == 1
    desk.state.idle[0].good_until = 9.0
    assert desk.state.take(desk.now) is None
    assert waiter.outcome == "waiting"


def test_opener_that_gives_up_is_told_nothing_more() -> None:
    """It counts among no acquires."""
    desk = Desk(min_size=1)
    opener = desk.waiter()
    desk.state.open(opener, desk.now)
    desk.state.give_up_opening(opener)
    assert opener.outcome == "cancelled"
    desk.connect()
    assert not desk.state.openers
    assert not desk.state.to_wake
    assert desk.state.stats(desk.now).cancelled == 0


def test_given_and_taken_back_before_it_was_noticed_is_not_released_again() -> None:
    """The pool was closed in between."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    waiter = desk.join()
    desk.release(slot)
    assert waiter.slot is slot
    desk.state.close(desk.now)
    desk.state.abandon_leases(desk.now)
    desk.state.give_up(waiter, desk.now)
    assert slot.state == "gone"
    assert list(desk.state.to_terminate) == ["c1"]
    assert waiter.slot is None


def test_what_is_noted_on_a_slot_is_forgotten_with_the_reset() -> None:
    """Its next user starts afresh; and the reset is a sign of life."""
    desk = Desk(max_size=1, ping_after=2.0).open()
    slot = desk.take()
    slot.touched = slot.cancelled = slot.has_derived = True
    desk.now = 4.0
    desk.state.release_dirty(slot, desk.now)
    desk.begin("reset").sent_at = 5.0
    desk.now = 6.0
    desk.state.reset_succeeded(slot, desk.now)
    assert not (slot.touched or slot.cancelled or slot.has_derived)
    assert (slot.used_at, slot.alive_at, slot.good_until) == (4.0, 5.0, 7.0)


def test_touched_lease_is_a_sign_of_life_once() -> None:
    """It may be as old as the lease; the next one, on which nothing is done, is none."""
    desk = Desk(max_size=1, ping_after=2.0).open()
    desk.now = 1.0
    slot = desk.take()
    desk.now = 1.5
    desk.release(slot)
    assert (slot.touched, slot.alive_at) == (False, 1.0)
    desk.now = 2.0
    desk.state.release(desk.take(), desk.now)
    assert (slot.alive_at, slot.used_at, slot.good_until) == (1.0, 2.0, 3.0)


def test_good_until_is_the_earlier_of_ping_and_age() -> None:
    """Both on the hot path and on the other."""
    desk = Desk(jitter=0.0, max_size=1, ping_after=5.0, max_lifetime=10.0).open()
    slot = desk.state.idle[0]
    assert slot.good_until == 5.0
    desk.now = 4.5
    desk.release(desk.take())
    assert slot.good_until == 9.0, "its age, not 9.5"
    slot = desk.take()
    desk.state.release_dirty(slot, desk.now)
    desk.now = 4.75
    desk.state.reset_succeeded(desk.begin("reset"), desk.now)
    assert slot.good_until == 9.0


def test_age_is_looked_at_when_a_connection_comes_back() -> None:
    """On the very second, too."""
    desk = Desk(jitter=0.0, max_size=1, max_lifetime=10.0).open()
    slot = desk.take()
    desk.now = 9.0
    desk.release(slot)
    assert (slot.state, slot.reason) == ("closing", "expired")


def test_expired_waiter_is_passed_over_on_the_very_second() -> None:
    """A deadline that is now has passed."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    waiter = desk.join(patience=3.0)
    desk.now = 3.0
    desk.release(slot)
    assert waiter.outcome == "timed_out"
    assert slot.state == "idle"


def test_connection_that_arrives_after_the_end_is_terminated() -> None:
    """Its slot is gone already."""
    desk = Desk(min_size=0, max_size=1).open()
    desk.join()
    slot = desk.begin("connect")
    desk.state.abort(desk.now, None)
    desk.state.connect_succeeded(slot, "late", desk.now)
    assert list(desk.state.to_terminate) == ["late"]
    assert desk.state.connected_total == 0
    assert desk.state.size == 0


def test_outcomes_of_jobs_after_the_end_change_nothing() -> None:
    """Each of them: the slots are gone, and each connection has been ended once."""
    desk = Desk(min_size=3, max_size=5, ping_after=None).open()
    reset, ping, close = desk.take(), desk.state.idle[0], desk.state.idle[1]
    desk.state.release_dirty(reset, desk.now)
    desk.state._begin("ping", ping, "recycling", 1.0, desk.now)
    desk.state._retire(close, "unused")
    desk.state._schedule_jobs(desk.now)
    connect = desk.begin("connect")
    cause = OSError("the loop has failed")
    desk.state.abort(desk.now, cause)
    assert sorted(desk.state.to_terminate) == ["c1", "c2", "c3"]
    assert gone(desk.state) == {"unused": 1, "pool_closed": 2}
    assert not desk.state.to_start
    desk.state.reset_succeeded(reset, desk.now)
    desk.state.recycle_failed(reset, desk.now, suspect_others=True)
    desk.state.ping_succeeded(ping, desk.now)
    desk.state.close_finished(close, desk.now)
    desk.state.connect_failed(connect, OSError(), Verdict.FATAL, desk.now)
    desk.state.found_dead(ping, desk.now)
    assert sorted(desk.state.to_terminate) == ["c1", "c2", "c3"]
    assert (desk.state.size, desk.state.connect_failures, desk.state.outage) == (0, 0, None)


def test_collapse_tells_those_who_wait_why() -> None:
    """And those who open."""
    desk = Desk(min_size=1, max_size=1)
    opener = desk.waiter()
    desk.state.open(opener, desk.now)
    waiter = desk.join()
    cause = OSError("the loop has failed")
    desk.state.abort(desk.now, cause)
    assert (opener.outcome, opener.cause) == ("closed", cause)
    assert (waiter.outcome, waiter.cause) == ("closed", cause)
    assert list(desk.state.to_wake) == [opener, waiter]


def test_close_ends_an_outage() -> None:
    """Whoever opens again is told nothing of it."""
    desk = Desk(min_size=0).open()
    desk.join()
    desk.fail()
    assert desk.state.last_error is not None
    desk.state.close(desk.now)
    assert desk.state.last_error is None


def test_fatal_failure_tells_those_who_open() -> None:
    """With the error; a passing one they wait for."""
    desk = Desk(min_size=1)
    opener = desk.waiter()
    desk.state.open(opener, desk.now)
    desk.fail(Verdict.TRANSIENT)
    assert opener in desk.state.openers
    desk.tick(desk.state.next_tick())
    desk.fail(Verdict.FATAL)
    assert opener.outcome == "failed"
    assert isinstance(opener.cause, OSError)


def test_opener_is_told_when_its_time_is_up() -> None:
    """A deadline of its own, beside those of the queue."""
    desk = Desk(min_size=1)
    opener = desk.waiter(patience=3.0)
    desk.state.open(opener, desk.now)
    desk.begin("connect")
    assert desk.state.stats(desk.now).waiting == 0
    desk.tick(2.9)
    assert opener in desk.state.openers
    assert desk.state.next_tick() == 3.0
    desk.tick(3.0)
    assert opener.outcome == "timed_out"
    assert desk.state.stats(desk.now).timed_out == 0


def test_opener_is_served_by_connections_wherever_they_are() -> None:
    """Idle, leased or being reset: they are there."""
    desk = Desk(min_size=3).open()
    leased = desk.take()
    desk.state.release_dirty(desk.take(), desk.now)
    another = desk.waiter()
    desk.state.open(another, desk.now)
    assert another.outcome == "served"
    assert leased.state == "leased"


def test_abandoned_lease_is_terminated_and_its_handle_is_dead() -> None:
    """One with an operation under way is reset first, which ends it on the server as well."""
    desk = Desk(min_size=2, max_size=2, reset_timeout=3.0).open()
    quiet, busy = desk.take(), desk.take()
    busy.busy = 1
    turns = quiet.release_count, busy.release_count
    desk.state.close(desk.now)
    desk.state.abandon_leases(5.0)
    assert (quiet.release_count, busy.release_count) == (turns[0] + 1, turns[1] + 1)
    assert quiet.state == "gone"
    assert list(desk.state.to_terminate) == [quiet.connection]
    assert desk.begin("reset") is busy
    assert (busy.job_began_at, busy.overdue_at) == (5.0, 9.0)
    desk.state.reset_succeeded(busy, 6.0)
    assert (busy.state, busy.reason) == ("closing", "pool_closed")
    assert gone(desk.state) == {"pool_closed": 2}


def test_leased_connection_outlives_neither_a_close_nor_a_reopening() -> None:
    """It is of the life before."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    desk.state.close(desk.now)
    desk.state.open(desk.waiter(), desk.now)
    desk.release(slot, touched=False)
    assert (slot.state, slot.reason) == ("closing", "pool_closed")


def test_renew_replaces_what_is_being_reset() -> None:
    """When the reset has ended."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    desk.state.release_dirty(slot, desk.now)
    desk.state.renew(desk.now)
    desk.state.reset_succeeded(desk.begin("reset"), desk.now)
    assert (slot.state, slot.reason) == ("closing", "stale")


def test_renew_refills_at_once() -> None:
    """Nobody has to come first, if there is room."""
    desk = Desk(min_size=1, max_size=2).open()
    desk.state.renew(desk.now)
    assert len(desk.jobs("connect")) == 1


def test_resize_closes_the_coldest_first_and_no_more_than_needed() -> None:
    """The hot ones stay."""
    desk = Desk(min_size=3, max_size=3).open()
    coldest, *others = list(desk.state.idle)
    desk.state.resize(Options(min_size=1, max_size=2), desk.now)
    assert coldest.reason == "surplus"
    assert [slot.state for slot in others] == ["idle", "idle"]


def test_suspects_are_pinged_under_the_time_limit_for_pings() -> None:
    """And nobody counts on them."""
    desk = Desk(min_size=2, ping_timeout=3.0).open()
    desk.state.suspect(5.0)
    pings = desk.jobs("ping")
    assert [(slot.job_began_at, slot.overdue_at) for slot in pings] == [(5.0, 9.0)] * 2
    assert desk.state.progress.recycles() == 0


def test_jobs_have_the_limits_of_their_kind() -> None:
    """A second later they are overdue; without a limit never."""
    desk = Desk(min_size=0, connect_timeout=7.0, ping_timeout=3.0, ping_after=0.0).open()
    desk.now = 10.0
    desk.join()
    assert desk.jobs("connect")[0].overdue_at == 18.0
    slot = desk.connect()
    desk.release(slot)
    desk.join()
    assert desk.jobs("ping")[0].overdue_at == 14.0
    desk = Desk(min_size=0, connect_timeout=None).open()
    desk.join()
    assert desk.jobs("connect")[0].overdue_at == NEVER


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_age_is_drawn_from_the_last_tenth_of_the_lifetime(jitter: float) -> None:
    """And nobody gets it past its end."""
    desk = Desk(jitter=jitter, min_size=0, max_lifetime=100.0).open()
    desk.now = 10.0
    desk.join()
    desk.now = 12.0  # the connect has taken so long
    slot = desk.connect()
    assert slot.retire_at == pytest.approx(102.0 + 10.0 * jitter)
    assert slot.expires_at == 112.0


def test_next_tick_is_the_earliest_deadline_of_those_who_still_wait() -> None:
    """Whoever has given up rings no alarm."""
    desk = Desk(max_size=1).open()
    desk.take()
    early, late = desk.waiter(patience=20.0), desk.waiter(patience=30.0)
    for waiter in (late, early):
        desk.state.enqueue(waiter, desk.now)
    slow = desk.state.progress.next_update(NEVER)
    assert slow == NEVER, "nothing is under way"
    assert desk.state.next_tick() == 20.0
    desk.state.give_up(early, desk.now)
    assert desk.state.next_tick() == 30.0
    desk.state.give_up(late, desk.now)
    assert desk.state.next_tick() == NEVER


def test_next_tick_is_when_the_next_attempt_is_due() -> None:
    """If anybody wants it, nothing is under way, and there is room."""
    desk = Desk(min_size=0, max_size=2, backoff_min=1.0).open()
    waiter = desk.join()
    desk.fail()
    assert desk.state.next_tick() == 1.0
    desk.state.give_up(waiter, desk.now)
    assert desk.state.next_tick() == NEVER, "nobody wants it"
    desk.join()
    desk.tick(1.0)
    assert desk.state.next_tick() == 1.5, "one is under way: when it will be slow"


def test_lingering_surplus_is_due_only_while_there_is_one() -> None:
    """An ordinary idle connection rings no alarm."""
    desk = Desk(max_size=1, max_overflow=1, overflow_linger=5.0).open()
    assert desk.state.next_tick() == NEVER
    desk.take()
    desk.join()
    desk.connect()
    assert desk.state.next_tick() == NEVER, "all are leased"
    desk = Desk(max_size=1, max_overflow=1).open()
    first = desk.take()
    desk.join()
    second = desk.connect()
    desk.release(second)
    assert second.state == "closing"
    desk.release(first)
    assert desk.state.next_tick() == NEVER


def test_lingering_surplus_is_closed_down_to_max_size() -> None:
    """The coldest first, and no more."""
    desk = Desk(min_size=0, max_size=1, max_overflow=2, overflow_linger=5.0).open()
    for _ in range(3):
        desk.join()
    slots = [desk.connect() for _ in range(3)]
    for second, slot in enumerate(slots):
        desk.now = float(second)
        desk.release(slot)
    desk.tick(5.0)
    assert [slot.state for slot in slots] == ["closing", "idle", "idle"]
    desk.tick(60.0)
    assert [slot.state for slot in slots] == ["closing", "closing", "idle"]
    assert gone(desk.state) == {"surplus": 2}


def test_cold_connection_is_closed_on_the_very_second() -> None:
    """Counted from its last release."""
    desk = Desk(min_size=0, max_idle_time=60.0, max_lifetime=None, ping_after=None).open()
    desk.join()
    slot = desk.connect()
    desk.now = 10.0
    desk.release(slot)
    desk.tick(69.9)
    assert slot.state == "idle"
    desk.tick(70.0)
    assert (slot.state, slot.reason) == ("closing", "unused")


def test_max_idle_time_none_keeps_what_is_cold() -> None:
    """For ever."""
    desk = Desk(min_size=0, max_idle_time=None, max_lifetime=None).open()
    desk.join()
    slot = desk.connect()
    desk.release(slot)
    desk.tick(1e6)
    assert slot.state == "idle"


def test_max_uses_none_wears_nothing_out() -> None:
    """However often it is used."""
    desk = Desk(max_size=1).open()
    for _ in range(100):
        desk.release(desk.take())
    assert desk.idle == ["c1"]


def test_stuck_jobs_have_no_surplus_connections_opened_in_their_place() -> None:
    """Each would be closed at once, and missing again: without end, and without a pause."""
    desk = Desk(min_size=2, max_size=2, max_overflow=2, ping_every=None).open()
    for _ in range(2):
        if desk.jobs("connect"):
            desk.connect()
    slots = [desk.take() for _ in range(2)]
    for slot in slots:
        desk.state.release_dirty(slot, desk.now)
    desk.tick(100.0)  # both resets have outlasted even their limits
    assert len(desk.state.progress.stuck) == 2
    assert desk.jobs("connect") == []
    waiter = desk.join()  # for whom there is room
    desk.connect()
    assert waiter.outcome == "served"


def test_max_connecting_bounds_connects_beside_stuck_ones() -> None:
    """A stuck one does not count; one that is slow does, and another may begin beside it."""
    desk = Desk(min_size=0, max_size=9, max_connecting=2, connect_timeout=1.0).open()
    for _ in range(5):
        desk.join()
    for _ in range(2):
        desk.begin("connect")
    desk.tick(0.4)
    assert not desk.jobs("connect"), "two are under way"
    desk.tick(1.5)
    desk.begin("connect")
    desk.tick(1.6)
    assert not desk.jobs("connect"), "the next extra one has time"
    desk.tick(2.0)
    assert len(desk.jobs("connect")) == 1, "two are stuck, one is under way"


def test_growth_starts_anew_when_nobody_lacks_anything() -> None:
    """The next burst beside leases begins with one connect again."""
    desk = Desk(min_size=1, max_size=20, max_connecting=4).open()
    held = [desk.take()]
    waiters = [desk.join() for _ in range(6)]
    while desk.jobs("connect"):
        desk.connect()
    assert {waiter.outcome for waiter in waiters} == {"served"}
    assert held[0].state == "leased"
    for _ in range(4):
        desk.join()
    assert len(desk.jobs("connect")) == 1


def test_growth_does_not_double_while_nobody_lacks_anything() -> None:
    """A connect that serves the last waiter is no reason for more."""
    desk = Desk(min_size=1, max_size=20, max_connecting=4).open()
    desk.take()
    desk.join()
    desk.connect()
    for _ in range(4):
        desk.join()
    assert len(desk.jobs("connect")) == 1


def test_opening_connects_all_at_once() -> None:
    """As many as may be under way, not as few as upkeep takes."""
    desk = Desk(min_size=5, max_connecting=3)
    desk.state.open(desk.waiter(), desk.now)
    assert len(desk.jobs("connect")) == 3


def test_connection_above_capacity_does_not_serve_the_queue() -> None:
    """Nor does one that is exactly at it go."""
    desk = Desk(min_size=0, max_size=1, max_overflow=1).open()
    for _ in range(2):
        desk.join()
    slots = [desk.connect(), desk.connect()]
    waiter = desk.join()
    desk.release(slots[0])
    assert waiter.slot is slots[0]


def test_overaged_are_passed_over_for_the_one_that_is_good() -> None:
    """They are closed on the way, and the caller has what it came for."""
    desk = Desk(jitter=0.0, min_size=0, max_size=3, max_lifetime=10.0, ping_after=None).open()
    desk.join()
    old = desk.connect()
    desk.now = 8.0
    desk.join()
    young = desk.connect()
    desk.release(young)
    desk.release(old)
    desk.now = 9.5
    assert desk.take() is young
    assert (old.state, old.reason) == ("closing", "expired")


def test_aged_but_not_expired_is_handed_out_while_two_are_being_replaced() -> None:
    """Between the two limits of its age; also when it comes back, and by hand-off."""
    desk = Desk(jitter=0.0, min_size=4, max_size=4, max_lifetime=100.0, ping_after=None).open()
    desk.tick(90.0)
    assert len(desk.state.closing) == 2
    slot = desk.take()
    desk.release(slot)
    assert slot.state == "idle"
    desk.now = 99.9
    assert desk.take() is slot
    desk.now = 100.0
    desk.release(slot)
    assert slot.state == "closing"


def test_aged_connection_that_was_quiet_is_pinged_first() -> None:
    """Although it may be handed out, two others being replaced."""
    desk = Desk(jitter=0.0, min_size=3, max_size=3, max_lifetime=100.0, ping_after=5.0).open()
    desk.tick(90.0)
    assert len(desk.state.closing) == 2
    assert desk.state.take(92.0) is None
    assert desk.state.idle[0].state == "idle"


def test_newcomers_are_not_refused_while_something_may_come_back() -> None:
    """Leased, idle or being reset: it will serve them, whatever the database does."""
    desk = Desk(min_size=1, max_size=3, ping_after=0.0, backoff_min=9.0, backoff_max=9.0).open()
    desk.join()
    slot = desk.begin("ping")
    desk.state.ping_succeeded(slot, desk.now)
    desk.join()
    desk.fail(Verdict.FATAL)
    assert desk.join().outcome == "waiting", "one is leased"
    desk.state.release_dirty(slot, desk.now)
    assert desk.join().outcome == "waiting", "one is being reset"


def test_deadlines_of_those_who_wait_survive_the_tidying_up() -> None:
    """Many have given up; the alarm rings for the others in their order."""
    desk = Desk(max_size=1).open()
    desk.take()
    kept = [desk.join(patience=50.0 - number) for number in range(3)]
    for _ in range(200):
        waiter = desk.waiter(patience=49.5)
        desk.state.enqueue(waiter, desk.now)
        desk.state.give_up(waiter, desk.now)
    ends = []
    while desk.state.queue:
        desk.tick(desk.state.next_tick())
        ends.append([waiter.outcome for waiter in kept].count("timed_out"))
    assert ends == [1, 2, 3]
    assert desk.now == 50.0


def test_deadline_of_somebody_served_passes_without_a_word() -> None:
    """It is still in the heap, and its owner long gone."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    waiter = desk.join(patience=2.0)
    desk.release(slot)
    desk.state.to_wake.clear()
    desk.tick(2.0)
    assert waiter.outcome == "served"
    assert not desk.state.to_wake
    assert desk.state.stats(desk.now).timed_out == 0


def test_growth_is_not_held_back_once_nothing_is_leased() -> None:
    """The last lease comes back dirty: its reset serves one, and connects the others."""
    desk = Desk(max_size=5).open()
    slot = desk.take()
    for _ in range(4):
        desk.join()
    assert len(desk.jobs("connect")) == 1
    desk.state.release_dirty(slot, desk.now)
    assert len(desk.jobs("connect")) == 3


def test_growth_doubles_for_a_single_waiter_without_a_prospect() -> None:
    """After a cold start the attempts under way go on, and soon one more is begun."""
    desk = Desk(min_size=0, max_size=10, max_connecting=4).open()
    for _ in range(5):
        desk.join()
    assert len(desk.jobs("connect")) == 4
    desk.connect()
    assert len(desk.jobs("connect")) == 3
    desk.connect()
    assert len(desk.jobs("connect")) == 3, "two, and one more"


def test_ping_that_nobody_waits_for_any_more_was_a_sign_of_life() -> None:
    """The next caller gets the connection without another."""
    desk = Desk(max_size=1, ping_after=2.0).open()
    desk.now = 5.0
    waiter = desk.join()
    slot = desk.begin("ping")
    desk.state.give_up(waiter, desk.now)
    desk.now = 6.0
    desk.state.ping_succeeded(slot, desk.now)
    assert (slot.state, slot.good_until, slot.used_at) == ("idle", 7.0, 0.0)
    desk.now = 6.9
    assert desk.take() is slot


def test_failed_ping_says_nothing_about_the_others() -> None:
    """Unless it timed out, or the driver knows that the server is gone."""
    desk = Desk(min_size=3, ping_after=2.0).open()
    desk.now = 3.0
    desk.join()
    desk.state.recycle_failed(desk.begin("ping"), desk.now, suspect_others=False)
    assert len(desk.jobs("ping")) == 1, "for the waiter"
    assert len(desk.idle) == 1


def test_resize_that_only_moves_the_line_closes_the_surplus_too() -> None:
    """As much capacity as before, but more of it is overflow."""
    desk = Desk(min_size=3, max_size=3).open()
    desk.state.resize(Options(min_size=0, max_size=1, max_overflow=2), desk.now)
    assert len(desk.idle) == 1
    assert gone(desk.state) == {"surplus": 2}


def test_next_tick_is_not_for_an_attempt_that_cannot_be_made() -> None:
    """One is under way; or every slot is taken. The alarm would ring again and again."""
    desk = Desk(min_size=0, max_size=1, backoff_min=1.0).open()
    desk.join()
    desk.fail()
    assert desk.state.next_tick() == 1.0, "the last slot is free"
    desk = Desk(min_size=0, max_size=3, backoff_min=1.0).open()
    desk.join()
    desk.fail()
    desk.join()
    desk.tick(1.0)
    assert desk.state.next_tick() == 1.5, "under way: when it will be slow"
    desk = Desk(min_size=0, max_size=2, backoff_min=1.0, ping_after=None).open()
    desk.join()
    slot = desk.connect()
    desk.join()
    desk.fail()
    desk.state.resize(Options(min_size=0, max_size=1), desk.now)
    assert slot.state == "leased"
    assert desk.state.next_tick() == NEVER, "taken: whatever comes back serves"


def test_jobs_that_nobody_waits_for_ring_no_alarm() -> None:
    """Slow or not."""
    desk = Desk(min_size=2, max_size=3)
    opener = desk.waiter()
    desk.state.open(opener, desk.now)
    assert len(desk.jobs("connect")) == 2
    assert desk.state.next_tick() == 0.5, "for the opener's sake"
    desk.state.give_up_opening(opener)
    assert desk.state.next_tick() == NEVER
    desk.tick(0.5)
    assert desk.state.next_tick() == NEVER
    assert len(desk.jobs("connect")) == 2


def test_connect_that_was_begun_before_the_close_says_nothing_when_it_fails() -> None:
    """It was given up: that is no outage."""
    desk = Desk(min_size=0).open()
    desk.join()
    slot = desk.begin("connect")
    desk.state.close(desk.now)
    desk.state.connect_failed(slot, OSError(), Verdict.FATAL, desk.now)
    assert (desk.state.connect_failures, desk.state.outage, desk.state.size) == (0, None, 0)


def test_one_waiter_is_worth_one_ping() -> None:
    """Whatever happens while it is under way."""
    desk = Desk(min_size=3, ping_after=1.0).open()
    desk.now = 5.0
    desk.join()
    slot = desk.begin("ping")
    desk.tick(5.1)
    assert not desk.jobs("ping")
    desk.state.ping_succeeded(slot, desk.now)
    assert len(desk.idle) == 2


def test_probe_is_the_only_attempt_while_it_is_under_way() -> None:
    """Whoever comes meanwhile waits for it."""
    desk = Desk(min_size=0, backoff_min=1.0).open()
    desk.join()
    desk.fail()
    desk.tick(1.0)
    desk.begin("connect")
    desk.now = 1.2
    desk.join()
    desk.join()
    assert not desk.jobs("connect")


def test_renewal_over_time_is_a_new_end_of_life_for_each() -> None:
    """The coldest goes first; past its time none is handed out, though nothing has ticked."""
    desk = Desk(min_size=2, ping_after=None, max_lifetime=None).open()
    cold, hot = list(desk.state.idle)
    desk.state.renew(desk.now, 10.0)
    assert (cold.expires_at, hot.expires_at) == (5.0, 10.0)
    desk.now = 9.9
    assert desk.take() is hot
    desk.release(hot)
    desk.now = 10.0
    assert desk.state.take(desk.now) is None
    assert gone(desk.state) == {"stale": 2}


def test_renewal_over_time_lets_connects_go_on() -> None:
    """They are as good as others for a while, and when they fail, that is a failure."""
    desk = Desk(min_size=0).open()
    desk.join()
    desk.state.renew(desk.now, 10.0)
    desk.fail(Verdict.TRANSIENT)
    assert desk.state.connect_failures == 1


@pytest.mark.parametrize("held", [0, 1])
def test_refilling_takes_two_at_a_time_whoever_holds_one(held: int) -> None:
    """Nobody waits for it: neither all at once, nor one after the other."""
    desk = Desk(min_size=5, max_size=20, max_connecting=4).open()
    for _ in range(held):
        desk.take()
    desk.state.renew(desk.now)
    assert len(desk.jobs("connect")) == 2


def test_worn_out_connection_is_replaced_when_it_comes_back() -> None:
    """If there is room, before it is closed."""
    desk = Desk(min_size=1, max_size=2, max_uses=1).open()
    slot = desk.take()
    desk.release(slot)
    assert (slot.state, slot.reason) == ("closing", "used_up")
    assert len(desk.jobs("connect")) == 1


def test_reason_is_the_first_there_is() -> None:
    """One that is too old as well as one too many is too old."""
    desk = Desk(max_size=1, max_overflow=1, max_lifetime=10.0).open()
    desk.take()
    desk.join()
    slot = desk.connect()
    desk.now = 11.0
    desk.release(slot)
    assert slot.reason == "expired"


def test_hand_offs_count_as_uses() -> None:
    """As much as leases that were taken at once."""
    desk = Desk(max_size=1, max_uses=3).open()
    slot = desk.take()
    for uses in (2, 3):
        waiter = desk.join()
        desk.release(slot)
        assert (waiter.slot, slot.uses) == (slot, uses)
    desk.release(slot)
    assert slot.reason == "used_up"


def test_connection_that_comes_back_to_a_closed_pool_goes_for_that_reason() -> None:
    """Worn out or not."""
    desk = Desk(max_size=1, max_uses=1).open()
    slot = desk.take()
    desk.state.close(desk.now)
    desk.release(slot)
    assert slot.reason == "pool_closed"


def test_nobody_is_refused_for_overload_in_an_outage() -> None:
    """What cannot connect is down, and not overloaded."""
    desk = Desk(max_size=2, shedding=CoDel(target=0.1, interval=1.0), backoff_min=1.0).open()
    desk.take()
    waiter = desk.join()
    desk.fail()
    desk.tick(30.0)
    assert waiter.outcome == "waiting"


def test_upkeep_pings_half_of_the_quiet_ones_and_none_while_somebody_waits() -> None:
    """There is always one left to hand out; and whoever waits has a ping of its own."""
    desk = Desk(min_size=2, ping_every=30.0, ping_after=None, max_idle_time=None).open()
    desk.tick(30.0)
    assert len(desk.jobs("ping")) == 1
    desk = Desk(min_size=3, ping_every=30.0, ping_after=1.0, max_idle_time=None).open()
    desk.now = 40.0
    desk.join()
    assert len(desk.jobs("ping")) == 1
    desk.tick(40.1)
    assert len(desk.jobs("ping")) == 1


def test_newcomer_is_not_refused_beside_an_idle_connection() -> None:
    """The database is down, they say; this one may answer."""
    desk = Desk(min_size=2, ping_after=1.0, backoff_min=9.0, backoff_max=9.0).open()
    desk.state.found_dead(desk.state.idle[0], desk.now)
    desk.fail(Verdict.FATAL)
    desk.now = 5.0
    assert desk.join().outcome == "waiting"
    assert len(desk.jobs("ping")) == 1


def test_slow_connect_is_forgotten_when_it_ends() -> None:
    """The one begun for it is now the prospect of the next."""
    desk = Desk(min_size=0, max_size=5).open()
    first = desk.join()
    slow = desk.begin("connect")
    desk.tick(0.5)
    assert len(desk.jobs("connect")) == 1
    desk.state.connect_succeeded(slow, "c1", desk.now)
    assert first.slot is slow
    desk.state.release_broken(slow, desk.now)
    desk.join()
    assert len(desk.jobs("connect")) == 1


def test_task_that_waits_twice_at_once_is_served_twice() -> None:
    """Nothing forbids it: a generator may be driven by hand."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    waiters = [desk.waiter(), desk.waiter()]

    def task() -> str:
        return "the task"

    for waiter in waiters:
        waiter.task = task
        desk.state.enqueue(waiter, desk.now)
    assert [waiter.key is task for waiter in waiters] == [True, False]
    assert len(desk.state.queue) == 2
    for waiter in waiters:
        desk.release(slot)
        assert waiter.slot is slot


def test_new_connection_counts_as_used_when_it_came() -> None:
    """It has its whole idle time before it."""
    desk = Desk(min_size=0, max_idle_time=60.0).open()
    desk.now = 100.0
    waiter = desk.join()
    slot = desk.begin("connect")
    desk.state.give_up(waiter, desk.now)
    desk.state.connect_succeeded(slot, "c1", desk.now)
    desk.tick(101.0)
    assert (slot.state, slot.used_at) == ("idle", 100.0)


def test_reasons_of_the_end_are_counted() -> None:
    """A failed reset, and a close."""
    desk = Desk(min_size=2, max_size=2).open()
    slot = desk.take()
    desk.state.release_dirty(slot, desk.now)
    desk.state.recycle_failed(desk.begin("reset"), desk.now, suspect_others=False)
    desk.state.close(desk.now)
    assert gone(desk.state) == {"broken": 1, "pool_closed": 1}


def test_caller_who_is_refused_is_in_line_no_more() -> None:
    """And counts as what it was refused for."""
    desk = Desk(max_size=1).open()
    desk.take()
    waiter = desk.join()
    desk.state.end_wait(waiter, "deadlocked", desk.now)
    assert waiter.outcome == "deadlocked"
    assert desk.state.to_wake[-1] is waiter
    stats = desk.state.stats(desk.now)
    assert (stats.waiting, stats.deadlocked) == (0, 1)


def test_every_reason_to_go_is_counted_from_the_beginning() -> None:
    """A metric that appears with its first event misses that one."""
    desk = Desk()
    assert desk.state.stats(0.0).retired == dict.fromkeys(get_args(Reason), 0)


@pytest.mark.parametrize("end", ["timed_out", "closed"])
def test_refused_waiter_that_is_cancelled_before_it_notices_counts_as_cancelled(
    end: Literal["timed_out", "closed"],
) -> None:
    """What the caller sees is what is counted."""
    desk = Desk(max_size=1).open()
    desk.take()
    waiter = desk.join(patience=1.0)
    if end == "closed":
        desk.state.close(desk.now)
    else:
        desk.now = 2.0
        desk.state.tick(desk.now)
    assert desk.state.outcomes[end] == 1
    desk.state.give_up(waiter, desk.now)
    assert (desk.state.outcomes[end], desk.state.outcomes["cancelled"]) == (0, 1)


def test_connection_that_its_holder_has_closed_by_half_keeps_its_slot_until_it_is_closed() -> None:
    """It counts as broken, and who waits is given a new one after that."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    waiter = desk.join()
    desk.state.release_closing(slot, desk.now)
    assert (slot.state, slot.reason) == ("closing", "broken")
    assert not desk.jobs("connect")
    desk.state.close_finished(desk.begin("close"), desk.now)
    assert desk.jobs("connect")
    assert waiter.outcome == "waiting"
    assert gone(desk.state) == {"broken": 1}


def test_connection_to_be_reset_is_taken_back_after_the_waits_that_are_over() -> None:
    """Whose time had passed before is told who held it then, and not that nobody does."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    waiter = desk.join(patience=1.0)
    desk.now = 2.0
    desk.state.release_dirty(slot, desk.now)
    assert waiter.outcome == "timed_out"
    assert waiter.facts is not None
    assert waiter.facts.stats.leased == 1
    assert slot.state == "recycling"


@pytest.mark.parametrize(("touched", "is_owed"), [(UNDONE, False), (True, True)])
def test_reset_that_was_put_off_is_made_up_by_a_commit_that_undoes_the_lease(
    touched: Any, is_owed: bool
) -> None:
    """A driver that only says that the connection is clean may know the last lease alone."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    desk.join()
    desk.state.release_unreset(slot, desk.now)
    assert slot.unreset == 1
    slot.touched = touched
    desk.state.release(slot, desk.now)
    assert (slot.state == "recycling") is is_owed
    assert (slot.state == "idle") is not is_owed
