"""Storms under schedules that Hypothesis chooses, callback by callback, in virtual time."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import poolkit._shell.lease
import poolkit._shell.pool
import poolkit._shell.transaction
from tests.effort import SHARE
from tests.pool.planting import plant
from tests.pool.schedules import run_on_asyncio, run_on_trio
from tests.pool.storm import storm

if TYPE_CHECKING:
    from collections.abc import Callable

explored = settings(
    max_examples=round(200 * SHARE),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
seeds = st.integers(0, 1 << 32)


@explored
@given(seed=seeds, eager=st.booleans())
def test_storm_under_a_random_schedule_loses_nothing(seed: int, *, eager: bool) -> None:
    """Whichever callback comes next, on asyncio."""
    run_on_asyncio(Random(seed), storm, eager=eager)


@explored
@given(seed=seeds, order=st.lists(st.integers(0, 5), max_size=300), eager=st.booleans())
def test_storm_under_a_chosen_schedule_loses_nothing(
    seed: int, order: list[int], *, eager: bool
) -> None:
    """First in, first out, with the deviations that Hypothesis chooses, and shrinks."""
    left = iter(order)

    def choose(many: int) -> int:
        return min(next(left, 0), many - 1)

    run_on_asyncio(Random(seed), storm, choose=choose, eager=eager)


@explored
@given(seed=seeds)
def test_storm_on_trio_loses_nothing(seed: int) -> None:
    """In batches that trio shuffles."""
    run_on_trio(Random(seed), storm)


RUNS: dict[str, Callable[..., Any]] = {"asyncio": run_on_asyncio, "trio": run_on_trio}


# -- planted bugs --------------------------------------------------------------------------------


def check_found(run: Callable[..., Any], *, seeds: int = 200) -> None:
    """Check that one of the first seeds brings the bug to light."""
    for seed in range(seeds):
        try:
            run(Random(seed), storm)
        except BaseException:  # a lost slot, a deadlock, an assertion of the book's own
            return
    raise AssertionError(f"not found within {seeds} seeds")


@pytest.mark.parametrize("backend", RUNS)
def test_planted_waiter_that_does_not_give_up_is_found(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled in line, or after the hand-off: what it was given is lost."""
    pool = poolkit._shell.pool.Pool
    plant(
        monkeypatch,
        pool,
        "_leave_line",
        "self._tell(self._state.give_up, waiter, self._runtime.now())",
        "pass",
    )
    check_found(RUNS[backend])


@pytest.mark.parametrize("backend", RUNS)
def test_planted_hand_off_lost_to_a_cancellation_is_found(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was served before the cancellation came gives nothing back."""
    pool = poolkit._shell.pool.Pool
    plant(
        monkeypatch,
        pool,
        "_leave_line",
        "self._tell(self._state.give_up, waiter, self._runtime.now())",
        "waiter.slot or self._tell(self._state.give_up, waiter, self._runtime.now())",
    )
    check_found(RUNS[backend])


@pytest.mark.parametrize("backend", RUNS)
def test_planted_transaction_that_keeps_its_lease_is_found(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A BEGIN that fails after the connection was acquired."""
    plant(
        monkeypatch,
        poolkit._shell.transaction.Transaction,
        "_end_lease",
        "await self._lease.__aexit__(type(error), error, None)",
        "pass",
    )
    check_found(RUNS[backend])


@pytest.mark.parametrize("backend", RUNS)
def test_planted_release_that_forgets_those_in_line_is_found(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are served, and nobody wakes them."""
    plant(
        monkeypatch,
        poolkit._shell.pool.Pool,
        "_end_lease",
        "while state.to_wake:",
        "while False:",
    )
    check_found(RUNS[backend])
