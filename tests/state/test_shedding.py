"""Overload policies: pure objects, asked by the book."""

from __future__ import annotations

from typing import Any

import pytest

from poolkit import CoDel, Options, PoolConfigError, Verdict
from poolkit._core.slot import NEVER, Waiter
from poolkit._core.state import PoolState

POLICY = CoDel(target=0.1, interval=1.0)


# -- CoDel ---------------------------------------------------------------------------------------


def test_codel_lets_a_burst_wait_for_the_interval() -> None:
    """Longer than the target, and as long as it takes to be sure of an overload."""
    shedder = POLICY.begin()
    assert shedder.refuse_at(10.0) == pytest.approx(11.0)


def test_codel_refuses_at_twice_the_target_in_an_overload() -> None:
    """For an interval everybody has waited too long."""
    shedder = POLICY.begin()
    for tenth in range(15):
        now = 10.0 + tenth / 10
        shedder.left(now - 0.3, now, served=True)
    # The first of them came at 9.7.
    assert shedder.refuse_at(10.4) == pytest.approx(10.7)
    assert shedder.refuse_at(11.3) == pytest.approx(11.5)


def test_codel_needs_everybody_to_have_waited() -> None:
    """One who was served in time ends the overload."""
    shedder = POLICY.begin()
    for tenth in range(15):
        now = 10.0 + tenth / 10
        shedder.left(now - 0.3, now, served=True)
    shedder.left(11.41, 11.5, served=True)
    assert shedder.refuse_at(11.45) == pytest.approx(12.45)


def test_codel_forgets_an_overload_once_nobody_is_in_line() -> None:
    """The queue is empty: then nobody waits for anybody."""
    shedder = POLICY.begin()
    for tenth in range(15):
        now = 10.0 + tenth / 10
        shedder.left(now - 0.3, now, served=True)
    shedder.rest()
    assert shedder.refuse_at(20.0) == pytest.approx(21.0)


def test_codel_learns_nothing_from_those_who_give_up_early() -> None:
    """They were not served; those who give up late have waited too long as any other."""
    shedder = POLICY.begin()
    shedder.left(10.0, 10.3, served=True)
    shedder.left(10.25, 10.3, served=False)
    assert shedder.refuse_at(10.9) == pytest.approx(11.1)
    shedder.left(10.9, 10.95, served=True)
    shedder.left(10.9, 11.05, served=False)
    assert shedder.refuse_at(11.8) == pytest.approx(12.0)


def test_codel_decides_for_each_pool_by_itself() -> None:
    """One object may be given to many."""
    one, two = POLICY.begin(), POLICY.begin()
    one.left(0.0, 5.0, served=True)
    assert two.refuse_at(4.0) == pytest.approx(5.0)
    assert one.refuse_at(4.0) == pytest.approx(4.2)


@pytest.mark.parametrize(
    ("target", "interval"),
    [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (None, 1.0), (0.1, None), ("0.1", 1.0), (NEVER, NEVER)],
)
def test_codel_refuses_numbers_that_cannot_work(target: Any, interval: Any) -> None:
    """With the number."""
    with pytest.raises(PoolConfigError, match=r"target|interval"):
        CoDel(target=target, interval=interval)


def test_shedding_has_to_be_a_policy() -> None:
    """The class, for example, is not."""
    for wrong in ("codel", 1, CoDel(0.1, 1.0).begin()):
        with pytest.raises(PoolConfigError, match=r"poolkit\.CoDel\(\)"):
            Options(shedding=wrong)  # type: ignore[arg-type]


# -- the book ------------------------------------------------------------------------------------


class Office:
    """A book of one connection, which is leased, and those who wait for it."""

    def __init__(self, **options: Any) -> None:
        given = {"max_size": 1, "shedding": POLICY, "ping_every": None, **options}
        self.state = PoolState(Options(**given), lambda: 1.0)
        self.state.open(Waiter(NEVER, None), 0.0)
        _, slot = self.state.to_start.popleft()
        self.state.connect_succeeded(slot, "c", 0.0)
        taken = self.state.take(0.0)
        assert taken is not None
        self.slot = taken

    def join(self, now: float, patience: float = NEVER) -> Waiter:
        """Put somebody in line."""
        waiter = Waiter(now + patience, None)
        self.state.enqueue(waiter, now)
        return waiter

    def serve(self, now: float) -> None:
        """Let the holder release."""
        self.state.release(self.slot, now)


def test_book_refuses_when_the_policy_says_so() -> None:
    """At the time for which it has set the alarm."""
    office = Office()
    first, second = office.join(1.0), office.join(1.5)
    due = office.state.next_tick()
    assert due == pytest.approx(2.0)
    office.state.tick(due - 0.01)
    assert (first.outcome, second.outcome) == ("waiting", "waiting")
    office.state.tick(due)
    assert (first.outcome, second.outcome) == ("shed", "shed")
    assert office.state.stats(due).shed == 2
    assert office.state.stats(due).busy == 0


def test_alarm_is_set_for_the_first_refusal() -> None:
    """Also if nothing else is due."""
    office = Office(shedding=CoDel(target=0.1, interval=0.2))
    office.join(1.0)
    assert office.state.next_tick() == pytest.approx(1.2)


def test_refused_ones_are_passed_over_by_a_release() -> None:
    """The alarm may be late; then the first of those who may still wait is served."""
    office = Office()
    late, fresh = office.join(1.0), office.join(2.9)
    office.serve(3.0)
    assert (late.outcome, fresh.outcome) == ("shed", "served")


def test_who_was_served_late_counts() -> None:
    """From then on the overload is known, and twice the target is the limit."""
    office = Office()
    waiters = [office.join(1.0 + tenth / 10) for tenth in range(12)]
    now = 1.0
    for waiter in waiters[:4]:
        now = waiter.since + 0.15
        office.serve(now)
        assert waiter.outcome == "served"
    for _ in range(2):
        now += 0.9
        office.state.tick(now)
    assert [waiter.outcome for waiter in waiters[4:]] == ["shed"] * 8


def test_nobody_is_refused_while_the_database_is_down() -> None:
    """That is no overload; they wait to their own deadline."""
    office = Office(connect_timeout=None)
    waiter = office.join(1.0)
    office.state.release_broken(office.slot, 1.0)
    slot = next(slot for job, slot in office.state.to_start if job == "connect")
    office.state.to_start.clear()
    office.state.connect_failed(slot, OSError("refused"), Verdict.TRANSIENT, 1.1)
    office.state.tick(50.0)
    assert waiter.outcome == "waiting"


def test_nobody_is_refused_before_anything_is_leased() -> None:
    """The first connections are still being opened."""
    state = PoolState(Options(min_size=0, shedding=POLICY, connect_timeout=None), lambda: 1.0)
    state.open(Waiter(NEVER, None), 0.0)
    waiter = Waiter(NEVER, None)
    state.enqueue(waiter, 0.0)
    state.tick(50.0)
    assert waiter.outcome == "waiting"


def test_expired_waiter_timed_out_and_was_not_shed() -> None:
    """Its own deadline came first."""
    office = Office()
    waiter = office.join(1.0, patience=0.5)
    office.serve(9.0)
    assert waiter.outcome == "timed_out"


def test_reopened_pool_has_forgotten_its_overload() -> None:
    """It may be on another event loop, whose clock says something else."""
    office = Office()
    office.join(1000.0)
    office.serve(1000.3)
    office.state.close(1000.3)
    office.state.abort(1000.3, None)
    office.state.open(Waiter(NEVER, None), 0.0)
    job, slot = office.state.to_start.popleft()
    assert job == "connect"
    office.state.connect_succeeded(slot, "new", 0.0)
    assert office.state.take(0.0) is slot
    assert office.state._refuse_at(Waiter(NEVER, None)) == pytest.approx(1.0)


def test_overload_is_remembered_although_the_first_in_line_gives_up() -> None:
    """Somebody was in line all the time."""
    office = Office()
    waiters = [office.join(1.0 + tenth / 10) for tenth in range(12)]
    office.serve(1.3)  # from 1.0 on everybody has waited too long
    office.state.give_up(waiters[1], 2.15)
    fresh = office.join(2.15)
    office.state.tick(2.34)
    assert fresh in office.state.queue.values()
    office.state.tick(2.35)
    assert fresh.outcome == "shed"


def test_wait_for_the_database_to_come_back_counts_for_nothing() -> None:
    """Those who have waited it out are served like others."""
    office = Office(connect_timeout=None)
    waiters = [office.join(1.0), office.join(1.0)]
    office.state.release_broken(office.slot, 1.0)
    for now, outcome in ((1.1, "failed"), (9.0, "ok")):
        office.state.tick(now)
        slot = next(slot for job, slot in office.state.to_start if job == "connect")
        office.state.to_start.clear()
        if outcome == "ok":
            office.state.connect_succeeded(slot, "c2", now)
        else:
            office.state.connect_failed(slot, OSError("refused"), Verdict.TRANSIENT, now)
    assert [waiter.outcome for waiter in waiters] == ["served", "waiting"]
    office.state.tick(9.9)
    assert office.state.stats(9.9).shed == 0
    office.state.tick(10.0)
    assert waiters[1].outcome == "shed"


def test_second_opener_does_not_make_an_overload_forgotten() -> None:
    """The pool is open already."""
    office = Office()
    for tenth in range(12):
        office.join(1.0 + tenth / 10)
    office.serve(1.3)
    office.state.open(Waiter(NEVER, None), 1.4)
    office.state.tick(2.0)
    assert office.state.stats(2.0).shed > 0
