"""`advise`: what it says of a pool, from what the pool has counted."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit import PoolStats, advise
from poolkit._advise import _by_erlang
from poolkit._core.slot import NEVER
from tests.state.test_state import Desk


class Office(Desk):
    """A pool whose callers come and go by plan."""

    def __init__(self, **options: Any) -> None:
        super().__init__(ping_after=None, **options)
        self.open()

    def lease(self, many: int, seconds: float) -> None:
        """Lease so many at once, for so long, and give them back."""
        slots = [self.take() for _ in range(many)]
        self.now += seconds
        for slot in slots:
            self.release(slot, touched=False)

    def wait(self, seconds: float) -> None:
        """Have one caller wait so long for a connection that another one has, and use it as long."""
        slots = [self.take() for _ in self.state.idle.copy()]
        self.join()
        self.now += seconds
        for slot in slots:
            self.release(slot, touched=False)
        (slot,) = self.state.leased
        self.state.to_wake.clear()
        self.release(slot, touched=False)

    def stats(self) -> PoolStats:
        """Return a snapshot."""
        return self.state.stats(self.now)


def test_advice_tells_of_listeners() -> None:
    """The server counts their connections, too; without any, nothing is said of them."""
    office = Office(min_size=2, max_size=2)
    office.lease(1, 0.05)
    assert "listening" not in str(advise(office.stats()))
    office.state.listening = 2
    advice = advise(office.stats())
    assert (advice.listening, advice.capacity) == (2, 2)
    assert str(advice).endswith("Besides, the server has 2 connections for listening.")
    idle = str(advise(office.stats(), since=office.stats()))
    assert idle.endswith("Besides, the server has 2 connections for listening.")


def test_advice_on_a_pool_with_connections_to_spare() -> None:
    """The peak, Little's law, and what would do."""
    office = Office(min_size=20, max_size=20)
    for _ in range(400):
        office.lease(7, 0.05)
        office.now += 0.05
    advice = advise(office.stats())
    assert (advice.peak_leased, advice.usual_leased, advice.enough) == (7, 7, 10)
    assert advice.leases == 2800
    assert advice.rate == pytest.approx(70.0)
    assert advice.mean_use == pytest.approx(0.05)
    assert advice.mean_leased == pytest.approx(3.5)
    assert (advice.waited, advice.without, advice.wait) == (0.0, 0, None)
    assert str(advice) == (
        "Peak need 7 of 20 connections; 3.5 on average in 40 s (70 leases a second, held for "
        "50 ms). Nobody waited. 10 would do."
    )


def test_rare_peak_does_not_decide() -> None:
    """It is told beside what was usual."""
    office = Office(min_size=20, max_size=20)
    for _ in range(5000):
        office.lease(3, 0.01)
    office.lease(15, 0.01)
    advice = advise(office.stats())
    assert (advice.peak_leased, advice.usual_leased, advice.enough) == (15, 3, 5)
    assert "Peak need 15 of 20 connections, 3 or fewer for 99.9 % of the leases;" in str(advice)
    assert str(advice).endswith(" 5 would do.")


def test_scarce_pool_is_told_how_many_would_be_enough() -> None:
    """More than there are; and what is not known of that."""
    office = Office(min_size=2, max_size=2)
    for _ in range(500):
        office.wait(0.15)
    advice = advise(office.stats())
    assert advice.is_scarce
    assert advice.waited == pytest.approx(1 / 3)
    assert advice.wait is not None
    assert 0.1 < advice.wait <= 0.2
    assert advice.enough is not None
    assert advice.enough > 2
    assert "33 % of the callers waited" in str(advice)
    assert "full nearly all the time: hold connections for shorter" in str(advice)
    assert f"About {advice.enough} connections would let 99 % find one idle." in str(advice)
    assert any("database" in sentence for sentence in advice.unknown)


def test_pool_that_is_scarce_only_now_and_then_is_told_no_more() -> None:
    """Leases are not too long: there are more of them at times."""
    office = Office(min_size=4, max_size=4)
    for _ in range(50):
        office.wait(0.01)
        office.now += 1.0
    advice = advise(office.stats())
    assert advice.is_scarce
    assert advice.enough == 5
    assert "; 0.04 on average in 50.5 s (5 leases a second, " in str(advice)
    assert str(advice).endswith(
        " 20 % of the callers waited, 99 % of them for at most 19.7 ms. "
        "About 5 connections would let 99 % find one idle."
    )


def test_callers_without_a_connection_are_told() -> None:
    """They have not waited until they got one, and count all the same."""
    office = Office(min_size=1, max_size=1, max_waiting=1)
    slot = office.take()
    office.join(0.5)
    office.join(NEVER)  # refused: the line is full
    office.now += 1.0
    office.state.tick(office.now)
    office.release(slot, touched=False)
    advice = advise(office.stats())
    assert (advice.without, advice.is_scarce) == (2, True)
    assert advice.waited == pytest.approx(2 / 3)
    assert "2 callers got no connection." in str(advice)


def test_waits_without_a_full_pool_are_explained() -> None:
    """As for the first connection: more of them would not have helped."""
    office = Office(min_size=0, max_size=5)
    office.join()
    office.now += 0.2
    slot = office.connect()
    office.now += 0.2
    office.release(slot, touched=False)
    advice = advise(office.stats())
    assert advice.waited == 1.0
    assert not advice.is_scarce
    assert "though not all were leased: for one that was being opened, pinged or reset" in str(
        advice
    )


def test_pool_that_is_just_large_enough_is_told_so() -> None:
    """Nobody has waited, and there was nothing to spare."""
    office = Office(min_size=3, max_size=3)
    office.lease(3, 0.1)
    assert str(advise(office.stats())).endswith(" Nobody waited. 3 are as many as it takes.")


def test_window_is_what_came_between_two_snapshots() -> None:
    """The peak as well: it was lower this time."""
    office = Office(min_size=10, max_size=10)
    office.lease(9, 1.0)
    before = office.stats()
    office.lease(2, 0.5)
    advice = advise(office.stats(), since=before)
    assert (advice.leases, advice.peak_leased) == (2, 2)
    assert advice.seconds == pytest.approx(0.5)
    assert advice.mean_leased == pytest.approx(2.0)
    assert not any("goes back" in sentence for sentence in advice.unknown)
    assert any("goes back" in sentence for sentence in advise(office.stats()).unknown)


def test_window_in_which_the_pool_grew_is_that_of_both() -> None:
    """There were fewer connections when it began."""
    office = Office(min_size=1, max_size=3)
    office.lease(1, 0.1)
    before = office.stats()
    office.take()
    for _ in range(2):
        office.join()
        office.connect()
    advice = advise(office.stats(), since=before)
    assert advice.peak_leased == 3


def test_pool_that_leaks_is_not_told_to_grow() -> None:
    """The leases that ended were short, so more connections would seem to help: they leak too."""
    office = Office(min_size=4, max_size=4)
    office.lease(2, 0.01)
    for _ in range(3):
        office.take()
    assert "not ended" not in str(advise(office.stats()))  # nobody has waited yet
    office.take()
    office.join(0.5)
    office.now += 1.0
    office.state.tick(office.now)
    advice = advise(office.stats())
    assert (advice.leased, advice.is_scarce) == (4, True)
    held = (
        "4 of 4 connections are held by leases that have not ended, and are in no average: see "
        "who holds them (`pool.leases()`) before you add any."
    )
    assert str(advice).endswith(f" 1 caller got no connection. {held}")


def test_leases_that_have_not_ended_are_known_to_be_missing() -> None:
    """What is leased now is a peak as well; how long it will be, nobody knows."""
    office = Office(min_size=2, max_size=2)
    office.take()
    advice = advise(office.stats(), since=office.stats())
    assert advice.peak_leased == 1
    assert any("not ended: 1 lease." in sentence for sentence in advice.unknown)


def test_idle_pool_gets_no_advice() -> None:
    """Nothing has happened; also not in no time at all."""
    office = Office(max_size=2)
    office.now += 200 * 60.0
    advice = advise(office.stats())
    assert (advice.enough, advice.peak_leased, advice.rate) == (None, 0, 0.0)
    assert str(advice) == "No lease has ended in 3 h: there is nothing to go by."
    now = advise(office.stats(), since=office.stats())
    assert str(now) == "No lease has ended in 0 ms: there is nothing to go by."


def test_snapshots_in_the_wrong_order_are_refused() -> None:
    """And those of two pools: the sentence would be nonsense."""
    office = Office(max_size=2)
    before = office.stats()
    office.lease(1, 1.0)
    with pytest.raises(ValueError, match="earlier snapshot"):
        advise(before, since=office.stats())
    other = dataclasses.replace(office.stats(), open_for=0.0)
    with pytest.raises(ValueError, match="earlier snapshot"):
        advise(before, since=other)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0015, "1.5 ms"), (1.5, "1.5 s"), (119.0, "119 s"), (600.0, "10 min"), (86400.0, "24 h")],
)
def test_durations_are_told_as_people_say_them(seconds: float, said: str) -> None:
    """Three digits are enough."""
    office = Office(max_size=1)
    office.lease(1, seconds)
    assert f"in {said} (" in str(advise(office.stats()))


@given(offered=st.floats(0.0, 200.0))
def test_erlangs_formula_is_the_least_that_is_enough(offered: float) -> None:
    """As it is written in books: by the sum, where this goes step by step."""

    def waits(n: int) -> float:
        if n <= offered:
            return 1.0
        logs = [k * math.log(offered or 1e-300) - math.lgamma(k + 1) for k in range(n + 1)]
        highest = max(logs)
        full = math.exp(logs[n] - highest) * n / (n - offered)
        return full / (sum(math.exp(log - highest) for log in logs[:n]) + full)

    n = _by_erlang(offered)
    assert waits(n) <= 0.01 * (1 + 1e-6)
    assert n == 1 or waits(n - 1) > 0.01 * (1 - 1e-6)


def test_words_are_those_that_people_use() -> None:
    """No exponents, and one is one."""
    office = Office(max_size=1, min_size=1)
    office.lease(1, 0.9997)
    office.now += 1e6
    advice = advise(office.stats())
    assert "less than 0.01 leases a second, held for 1 s" in str(advice)
    assert "Much: 1 lease is few." in advice.unknown


def test_callers_without_a_connection_are_told_of_though_no_lease_has_ended() -> None:
    """As when all connections leak."""
    office = Office(max_size=1, min_size=1)
    office.take()
    office.state.count("timed_out")
    office.now += 3.0
    advice = str(advise(office.stats()))
    assert advice == (
        "No lease has ended in 3 s: there is nothing to go by. 1 caller got no connection. 1 of 1 "
        "connections are held by leases that have not ended, and are in no average: see who holds "
        "them (`pool.leases()`) before you add any."
    )


def test_many_connections_are_estimated_at_once() -> None:
    """As going through all of them would, to one in a thousand; 10**12 would take days."""
    assert _by_erlang(10_001) == pytest.approx(_by_erlang(9_999), rel=0.001)
    assert _by_erlang(1e12) == pytest.approx(1e12, rel=0.001)
