"""The book under Hypothesis: long random lives of pools of every kind, the invariants all along."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from poolkit import CoDel, Options
from poolkit._core.slot import NEVER
from poolkit._core.state import PoolState
from tests.effort import SHARE
from tests.state.world import World

OPTIONS = st.fixed_dictionaries(
    {
        "min_size": st.integers(0, 2),
        "min_idle": st.integers(0, 2),
        "max_size": st.integers(2, 4),
        "max_overflow": st.integers(0, 2),
        "overflow_linger": st.sampled_from([0.0, 3.0]),
        "max_waiting": st.sampled_from([None, 3]),
        "max_uses": st.sampled_from([None, 3]),
        "max_lifetime": st.sampled_from([None, 20.0]),
        "max_idle_time": st.sampled_from([None, 8.0, 0.0]),
        "ping_after": st.sampled_from([None, 0.0, 2.0]),
        "ping_every": st.sampled_from([None, 3.0]),
        "shedding": st.sampled_from([None, CoDel(target=0.5, interval=2.0)]),
        "max_connecting": st.integers(1, 3),
        "fail_fast_after": st.sampled_from([None, 5.0]),
    }
)


class Book(RuleBasedStateMachine):
    """One life: whatever may happen next happens, in any order; then everything comes to rest."""

    @initialize(options=OPTIONS, callers=st.integers(1, 8))
    def make(self, options: dict[str, Any], callers: int) -> None:
        """Make a book with some options."""
        jitter = itertools.cycle([0.0, 0.9, 0.5])
        self.world = World(PoolState(Options(**options), lambda: next(jitter)), callers)

    @rule(data=st.data())
    def happen(self, data: st.DataObject) -> None:
        """One event, of those that are possible."""
        events = self.world.events(
            patience=(0.0, 1.0, 5.0, NEVER),
            seconds=(0.1, 1.0, 2.5, 7.0, 25.0),
            late=(3.0,),
            sizes=((1, 0), (2, 2), (5, 0)),
            spans=(5.0,),
            blocks=(0.3, 3.0),
            readiness=True,
        )
        event = data.draw(st.sampled_from(list(events)))
        note(f"{event}")
        self.world.do(event)

    def teardown(self) -> None:
        """Let everything end well."""
        if hasattr(self, "world"):
            self.world.come_to_rest()


Book.TestCase.settings = settings(
    max_examples=round(300 * SHARE),
    stateful_step_count=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_book = pytest.mark.timeout(300)(Book.TestCase)


def test_pause_shorter_than_ping_after_is_of_no_account() -> None:
    """What an idle connection has said is not old by it; nobody waits for a ping."""
    options = Options(min_size=1, max_size=2, ping_after=2.0, ping_every=None)
    world = World(PoolState(options, lambda: 0.5), 1)
    for event in (("open",), ("end_job", 0, "ok"), ("block", 0.3), ("acquire", 0, 0.0)):
        world.do(event)
    assert world.callers[0].slot is not None
