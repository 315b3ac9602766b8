"""Whether a transaction is tried again, and after which pause."""

from __future__ import annotations

import math

import pytest

from poolkit._core.repeating import pause_before_next


def test_pauses_double_up_to_a_second() -> None:
    """At most, that is: chance draws from nothing to all of it."""
    longest = [pause_before_next(n, 100, math.inf, 1.0) for n in range(1, 9)]
    assert longest == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0]
    assert pause_before_next(5000, 5000, math.inf, 0.5) == 0.5
    assert pause_before_next(3, 3, math.inf, 0.0) == 0.0


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_attempts_are_counted(retries: int) -> None:
    """The first one is none of the retries."""
    given = [pause_before_next(n, retries, math.inf, 0.5) is not None for n in range(1, 6)]
    assert given == [n <= retries for n in range(1, 6)]


@pytest.mark.parametrize(
    ("left", "goes_on"), [(0.021, True), (0.02, False), (0, False), (-1, False)]
)
def test_no_attempt_begins_at_the_deadline(left: float, *, goes_on: bool) -> None:
    """Nor later; and nobody waits for one that would."""
    assert (pause_before_next(1, 3, left, 1.0) is not None) is goes_on
