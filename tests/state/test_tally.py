"""What is counted, on the hot edges as elsewhere: histograms, the most leases at once, open time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from poolkit import Verdict
from poolkit._core import tally
from poolkit._core.slot import BATCH, NEVER
from tests.state.test_state import Desk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from poolkit._histogram import Histogram


def test_acquire_that_finds_one_idle_waits_for_nothing() -> None:
    """It is in the bucket of 0 s, and in no other."""
    desk = Desk(max_size=2, min_size=2).open()
    for _ in range(3):
        desk.release(desk.take())
    found = desk.state.stats(desk.now)
    assert (found.direct, found.waited) == (3, 0)
    assert found.wait_times.bounds[0] == 0.0
    assert found.wait_times.counts[0] == found.wait_times.count == 3
    assert found.wait_times.sum == 0.0


def test_wait_is_counted_when_it_is_served() -> None:
    """By how long it took; whoever gives up first is in no histogram of waits."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    desk.join()
    gone = desk.join(1.0)
    desk.now += 0.3
    desk.release(slot)
    desk.state.give_up(gone, desk.now)
    found = desk.state.stats(desk.now)
    assert (found.direct, found.waited, found.cancelled) == (1, 1, 1)
    assert found.wait_times.count == 2
    assert found.wait_times.sum == pytest.approx(0.3)
    assert found.wait_times.percentile(0.9) == pytest.approx(0.5, abs=0.3)


@pytest.mark.parametrize("how", ["", "_dirty", "_unreset", "_broken", "_closing"])
def test_use_is_counted_however_it_ends(how: str) -> None:
    """Once."""
    desk = Desk(max_size=1).open()
    slot = desk.take()
    desk.now += 0.04
    getattr(desk.state, f"release{how}")(slot, desk.now)
    uses = desk.state.stats(desk.now).use_times
    assert uses.count == 1
    assert uses.sum == pytest.approx(0.04)


@pytest.mark.parametrize("how", ["abandon", "abort"])
def test_use_that_closing_ends_is_counted(how: str) -> None:
    """Like every other."""
    desk = Desk(max_size=1).open()
    desk.take()
    desk.now += 0.04
    if how == "abandon":
        desk.state.close(desk.now)
        desk.state.abandon_leases(desk.now)
    else:
        desk.state.abort(desk.now, None)
    uses = desk.state.stats(desk.now).use_times
    assert uses.count == 1
    assert uses.sum == pytest.approx(0.04)


def test_connection_found_dead_when_it_is_taken_was_not_leased() -> None:
    """Neither a wait nor a use, and not a lease at once with others."""
    desk = Desk(max_size=1).open()
    desk.state.undo_take(desk.take(), desk.now)
    found = desk.state.stats(desk.now)
    assert (found.direct, found.wait_times.count, found.use_times.count) == (0, 0, 0)
    assert found.most_leased == 0


def test_connects_are_counted_by_how_long_they_took() -> None:
    """Only those that succeeded."""
    desk = Desk(max_size=2, min_size=0).open()
    desk.join()
    desk.now += 0.2
    desk.connect()
    desk.join()
    desk.fail(Verdict.TRANSIENT)
    found = desk.state.stats(desk.now)
    assert (found.connected, found.connect_failures) == (1, 1)
    assert found.create_times.count == 1
    assert found.create_times.sum == pytest.approx(0.2)


def test_most_leased_at_once_is_remembered() -> None:
    """And how often each number was reached."""
    desk = Desk(max_size=3, min_size=3).open()
    first = desk.take()
    second = desk.take()
    desk.release(second)
    desk.release(desk.take())
    desk.release(first)
    found = desk.state.stats(desk.now)
    assert found.most_leased == 2
    assert found.leased_at_once == (0, 1, 2, 0)


def test_waiter_makes_as_many_leases_as_there_were() -> None:
    """By hand-off, and by a new connection."""
    desk = Desk(max_size=2, min_size=1).open()
    slot = desk.take()
    desk.join()
    desk.connect()
    desk.join()
    desk.release(slot)
    assert desk.state.stats(desk.now).leased_at_once == (0, 1, 2)


@pytest.mark.parametrize("is_contended", [False, True])
def test_hot_edges_sort_what_they_have_noted(is_contended: bool) -> None:
    """Nothing is kept for long that is not in its bucket, and nothing is lost on the way."""
    desk = Desk(max_size=1, ping_after=None).open()
    slot = desk.take()
    leases = 10 * BATCH
    for _ in range(leases):
        if is_contended:
            desk.join()
            desk.now += 0.003
            desk.release(slot, touched=False)
        else:
            desk.now += 0.003
            desk.release(slot, touched=False)
            slot = desk.take()
        desk.state.to_wake.clear()
        assert len(desk.state.uses.recent) <= tally._MANY + BATCH
        assert len(desk.state.waits.recent) <= tally._MANY + BATCH
    found = desk.state.stats(desk.now)
    assert found.use_times.count == leases
    assert found.use_times.counts[found.use_times.bounds.index(0.005)] == leases
    assert found.wait_times.count == leases + 1
    assert found.wait_times.counts[0] == (1 if is_contended else leases + 1)
    assert slot.uses == leases + 1


def test_lease_after_a_reset_counts_like_any_other() -> None:
    """Off the hot edges every duration is looked after as it comes."""
    desk = Desk(max_size=1, ping_after=None).open()
    slot = desk.take()
    leases = 3 * BATCH
    for _ in range(leases):
        desk.join()
        desk.state.release_dirty(slot, desk.now)
        desk.now += 0.03
        desk.state.reset_succeeded(desk.begin("reset"), desk.now)
        desk.state.to_wake.clear()
        assert len(desk.state.uses.recent) < tally._MANY
        assert len(desk.state.waits.recent) < tally._MANY
    found = desk.state.stats(desk.now)
    assert slot.uses == leases + 1
    assert found.wait_times.sum == pytest.approx(leases * 0.03)
    assert found.leased_at_once == (0, leases + 1)


def test_open_time_is_that_of_all_lives() -> None:
    """What is closed does not count; the clock of the next life may be another one."""
    desk = Desk(max_size=1).open()
    desk.now += 5.0
    assert desk.state.stats(desk.now).open_for == 5.0
    desk.state.close(desk.now)
    desk.now += 1.0
    desk.state.abort(desk.now, None)
    desk.now += 1.0
    assert desk.state.stats(desk.now).open_for == 5.0
    desk.state.open(desk.waiter(), 3.0)
    assert desk.state.stats(4.0).open_for == 6.0


def test_reopened_pool_goes_on_counting() -> None:
    """Histograms as counters do: none is set back to 0."""
    desk = Desk(max_size=1).open()
    desk.release(desk.take())
    desk.state.abort(desk.now, None)
    desk.state.to_terminate.clear()
    desk.open()
    desk.release(desk.take())
    found = desk.state.stats(desk.now)
    assert (found.direct, found.connected) == (2, 2)
    assert found.wait_times.count == found.use_times.count == found.create_times.count == 2
    assert found.leased_at_once == (0, 2)


def test_errors_do_not_count_buckets() -> None:
    """They may be many when there is much to do, and their texts do not have them."""
    desk = Desk(max_size=1, max_waiting=0).open()
    desk.release(desk.take())
    desk.take()
    refused = desk.join(NEVER)
    assert refused.outcome == "busy"
    assert refused.facts.stats.wait_times.count == 0
    assert refused.facts.stats.direct == 2


def test_durations_of_many_slots_are_sorted_with_each_tick() -> None:
    """A slot's hundredth lease is long in coming there: a million would be sorted at once."""
    desk = Desk(max_size=300, min_size=300).open()
    for slot in [desk.take() for _ in range(300)]:
        desk.release(slot)
    assert len(desk.state.uses.recent) == 300
    desk.state.tick(desk.now)
    assert not desk.state.uses.recent
    assert desk.state.uses.count == 300


class Seen(tally.Times):
    """Durations of which another thread adds some each time that somebody looks, a few times."""

    def __init__(self, meanwhile: Callable[[], None], times: int) -> None:
        super().__init__()
        self.meanwhile = meanwhile
        self.left = times

    def histogram(self) -> Histogram:
        """Return what is counted; then go on counting."""
        found = super().histogram()
        if self.left:
            self.left -= 1
            self.meanwhile()
        return found


@pytest.mark.parametrize("times", [1, 3])
def test_hand_off_while_another_thread_looks_is_no_wait_of_0_s(times: int) -> None:
    """Else the bucket of 0 s would fall at the next look, and seem to have begun again."""
    desk = Desk(max_size=1).open()
    desk.take()

    def hand_off() -> None:
        (slot,) = desk.state.leased
        desk.join()
        desk.now += 0.3
        desk.release(slot)
        desk.state.to_wake.clear()

    desk.state.waits = Seen(hand_off, times)
    found = desk.state.stats(desk.now)
    assert found.wait_times.counts[0] == found.direct == 1
    assert found.wait_times.count == found.use_times.count + found.leased == 1 + times


def test_look_at_a_pool_that_never_rests_ends() -> None:
    """With figures of several moments."""
    desk = Desk(max_size=1, min_size=1).open()
    desk.state.waits = Seen(lambda: desk.release(desk.take()), 1_000_000)
    assert desk.state.stats(desk.now).use_times.count > 1


class Unsummed(list[int]):
    """As long as there are slots, so nobody is to go through all of it at every turn."""

    def __iter__(self) -> Iterator[int]:
        """Refuse."""
        raise AssertionError


def test_leases_are_told_of_without_looking_at_every_slot() -> None:
    """Of 10,000, telling their times would cost an acquire as much as all else."""
    desk = Desk(max_size=1, min_size=1).open()
    desk.state.is_observed = True
    desk.state.tell_times(is_heard=True)
    desk.state.begun = Unsummed(desk.state.begun)
    for _ in range(3 * BATCH):
        desk.release(desk.take())
    told = [(what, len(seconds)) for _, what, seconds in desk.state.to_tell]
    assert sorted(told) == [("use", 3 * BATCH), ("wait", 3 * BATCH)]
