"""`Histogram`: what it says of durations, and how exact that is."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit import Histogram
from poolkit._core import tally
from poolkit._core.tally import Times
from poolkit._histogram import BOUNDS, EMPTY

DURATIONS = st.lists(st.floats(0.0, 100.0) | st.sampled_from(BOUNDS), max_size=600)


def histogram(*durations: float) -> Histogram:
    """Count some durations."""
    times = Times()
    for seconds in durations:
        times.add(seconds)
    return times.histogram()


@given(durations=DURATIONS)
def test_every_duration_is_in_the_bucket_of_its_bound(durations: list[float]) -> None:
    """Also when they were sorted in several goes, and in between looked at."""
    times = Times()
    for seconds in durations:
        times.add(seconds)
        if seconds > 50.0:
            times.histogram()
    found = times.histogram()
    below = [sum(seconds <= bound for seconds in durations) for bound in BOUNDS]
    assert found.cumulative() == (*below, len(durations))
    assert found.count == times.count == len(durations)
    assert found.sum == pytest.approx(sum(durations))


@given(durations=DURATIONS.filter(bool), fraction=st.floats(0.0, 1.0))
def test_percentile_is_in_the_bucket_of_the_true_one(
    durations: list[float], fraction: float
) -> None:
    """So it is off by less than that is wide."""
    rank = max(1, -int(-fraction * len(durations) // 1))
    true = sorted(durations)[rank - 1]
    found = histogram(*durations).percentile(fraction)
    assert found is not None
    lower, upper = 0.0, BOUNDS[-1]
    for bound in BOUNDS:
        if true <= bound:
            upper = bound
            break
        lower = bound
    assert lower <= found <= upper


def test_percentile_is_interpolated() -> None:
    """Four in a bucket are taken for evenly spread."""
    found = histogram(0.015, 0.015, 0.015, 0.015)
    assert found.percentile(0.25) == pytest.approx(0.0125)
    assert found.percentile(1.0) == pytest.approx(0.02)
    assert found.percentile(0.0) == pytest.approx(0.01)


def test_percentile_of_nothing_is_none() -> None:
    """And so is the mean; an empty pool has no latency, not one of 0 s."""
    assert EMPTY.percentile(0.5) is None
    assert EMPTY.mean is None


def test_percentile_above_all_bounds_is_the_last_one() -> None:
    """More is not known."""
    assert histogram(100.0, 200.0).percentile(0.9) == BOUNDS[-1]


@pytest.mark.parametrize("fraction", [-0.1, 1.5, 99.0, float("nan")])
def test_percentile_that_is_no_fraction_is_refused(fraction: float) -> None:
    """99 for 0.99 would be the maximum, silently."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        histogram(1.0).percentile(fraction)


def test_mean_is_exact() -> None:
    """It comes from the sum, not from buckets."""
    assert histogram(0.3, 0.5).mean == pytest.approx(0.4)


def test_difference_is_what_came_between() -> None:
    """Two snapshots make a window."""
    later = histogram(0.001, 0.001, 0.3)
    window = later - histogram(0.001)
    assert window.count == 2
    assert window.sum == pytest.approx(0.301)
    assert window.counts == histogram(0.001, 0.3).counts


def test_difference_of_other_buckets_is_refused() -> None:
    """And of what is no histogram."""
    other = dataclasses.replace(EMPTY, bounds=(1.0,), counts=(0, 0))
    with pytest.raises(ValueError, match="different buckets"):
        _ = EMPTY - other
    with pytest.raises(TypeError):
        _ = EMPTY - 1  # type: ignore[operator]


def test_histogram_is_frozen() -> None:
    """It is a snapshot."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        EMPTY.sum = 1.0  # type: ignore[misc]


def test_durations_are_sorted_many_at_a_time() -> None:
    """One at a time would cost more than all the rest of a lease."""
    times = Times()
    for seconds in range(1, tally._MANY):
        times.add(seconds)
        assert len(times.recent) == seconds
    times.add(1.0)
    assert times.recent == []
    assert times.count == times.histogram().count == tally._MANY


def test_reader_sees_all_or_nothing_of_what_is_sorted_meanwhile() -> None:
    """Another thread that has begun to read sees the list as it was, not an emptied one."""
    times = Times()
    times.recent.extend([0.3] * tally._MANY)
    told, recent = times._told
    times.settle()
    times.add(0.3)
    assert told.count + len(recent) == tally._MANY
    assert times.count == tally._MANY + 1
