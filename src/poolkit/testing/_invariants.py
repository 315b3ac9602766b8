"""What must hold of a pool's state after every event: the invariants I1 to I18.

Those that one look at the state can tell are here; the others can only be checked as things happen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolkit._core.slot import Slot
    from poolkit._core.state import PoolState

CONTAINERS = ("connecting", "idle", "leased", "recycling", "closing")


def check_state(state: PoolState, now: float, *, at_work: set[Slot] | None = None) -> None:
    """Check every invariant that one look at the state can tell.

    ``at_work`` are the slots whose job has been taken from the state and has not ended yet.
    """
    every_slot_is_in_one_place(state, at_work)
    never_above_capacity(state)
    nobody_waits_beside_a_good_connection(state, now)
    an_idle_connection_owes_no_reset(state)
    nothing_is_kept_that_nobody_wants(state)
    who_waits_is_waiting(state)
    connects_are_bounded(state)
    waiting_has_an_end(state)


def every_slot_is_in_one_place(state: PoolState, at_work: set[Slot] | None) -> None:
    """I1, I8: each slot is where its state says, once; each job has a slot of its own."""
    seen: set[Slot] = set()
    for name in CONTAINERS:
        for slot in getattr(state, name):
            assert slot.state == name, f"I1: {slot} among {name}"
            assert slot not in seen, f"I1: {slot} twice"
            seen.add(slot)
            assert (slot.connection is None) == (name == "connecting"), slot
    owed = [slot for _, slot in state.to_start]
    assert len(owed) == len(set(owed)), "I1: a slot with two jobs"
    for job, slot in state.to_start:
        expected = {"connect": "connecting", "ping": "recycling", "reset": "recycling"}
        assert slot.state == expected.get(job, "closing"), (job, slot)
    if at_work is not None:
        needy = {*state.connecting, *state.recycling, *state.closing}
        live = {slot for slot in at_work if slot.state != "gone"}
        assert needy == live | set(owed), "I8: a slot waits for a job that nobody does"
        assert not live & set(owed), "I1: a slot with two jobs"


def never_above_capacity(state: PoolState) -> None:
    """I1: no connect is owed while every slot is taken."""
    if any(job == "connect" for job, _ in state.to_start):
        assert state.size <= state.options.capacity, "I1: a connect above capacity"


def nobody_waits_beside_a_good_connection(state: PoolState, now: float) -> None:
    """I3: nobody waits while a connection that may be handed out is idle."""
    if any(now < waiter.deadline for waiter in state.queue.values()):
        assert all(now >= slot.good_until for slot in state.idle), (
            "I3: a waiter beside a connection"
        )


def an_idle_connection_owes_no_reset(state: PoolState) -> None:
    """I14: a reset is put off only while the connection goes from one user to the next."""
    assert not any(slot.unreset for slot in state.idle), "I14: an idle connection owes a reset"


def nothing_is_kept_that_nobody_wants(state: PoolState) -> None:
    """I16: with ``max_idle_time=0`` no connection is idle for a moment that no size asks for.

    But for the successors of those that are due to leave.
    """
    options = state.options
    if options.keeps_none:
        most = max(options.min_size, options.min_idle) + state.aging
        assert len(state.idle) <= most, "I16: kept, and wanted by nobody"


def who_waits_is_waiting(state: PoolState) -> None:
    """I5: in line is only who has neither given up nor got anything."""
    for waiter in state.queue.values():
        assert waiter.outcome == "waiting", "I5: in line after the end of its wait"
        assert waiter.slot is None, "I5: in line with a connection"


def connects_are_bounded(state: PoolState) -> None:
    """I9: no more connects are under way than may be, and one for each slow one; none stuck."""
    most = state.options.max_connecting
    most += min(most, state.progress.slow_connects())
    underway = len(state.connecting.keys() - state.progress.stuck)
    assert underway <= most, "I9: too many connects at once"


def waiting_has_an_end(state: PoolState) -> None:
    """I12: while somebody waits, something is under way, leased, or due at a known time."""
    if state.queue and state.is_open:
        hope = state.connecting or state.recycling or state.leased or state.closing or state.outage
        assert hope, "I12: a waiter without hope"
