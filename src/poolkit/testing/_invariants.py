"""What must hold of a book after every event: the invariants I1 to I13.

Those that one look at a book can tell are here; the others can only be checked as things happen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolkit._core.slot import Slot
    from poolkit._core.state import PoolState

CONTAINERS = ("connecting", "idle", "leased", "recycling", "closing")


def check_book(book: PoolState, now: float, *, at_work: set[Slot] | None = None) -> None:
    """Check every invariant that one look at a book can tell.

    ``at_work`` are the slots whose job has been taken from the book and has not ended yet.
    """
    every_slot_is_in_one_place(book, at_work)
    never_above_capacity(book)
    nobody_waits_beside_a_good_connection(book, now)
    who_waits_is_waiting(book)
    connects_are_bounded(book)
    waiting_has_an_end(book)


def every_slot_is_in_one_place(book: PoolState, at_work: set[Slot] | None) -> None:
    """I1, I8: each slot is where its state says, once; each job has a slot of its own."""
    seen: set[Slot] = set()
    for name in CONTAINERS:
        for slot in getattr(book, name):
            assert slot.state == name, f"I1: {slot} among {name}"
            assert slot not in seen, f"I1: {slot} twice"
            seen.add(slot)
            assert (slot.connection is None) == (name == "connecting"), slot
    owed = [slot for _, slot in book.jobs]
    assert len(owed) == len(set(owed)), "I1: a slot with two jobs"
    for job, slot in book.jobs:
        expected = {"connect": "connecting", "ping": "recycling", "reset": "recycling"}
        assert slot.state == expected.get(job, "closing"), (job, slot)
    if at_work is not None:
        needy = {*book.connecting, *book.recycling, *book.closing}
        live = {slot for slot in at_work if slot.state != "gone"}
        assert needy == live | set(owed), "I8: a slot waits for a job that nobody does"
        assert not live & set(owed), "I1: a slot with two jobs"


def never_above_capacity(book: PoolState) -> None:
    """I1: no connect is owed while every slot is taken."""
    if any(job == "connect" for job, _ in book.jobs):
        assert book.size <= book.options.capacity, "I1: a connect above capacity"


def nobody_waits_beside_a_good_connection(book: PoolState, now: float) -> None:
    """I3: nobody waits while a connection that may be handed out is idle."""
    if any(now < waiter.deadline for waiter in book.queue.values()):
        assert all(now >= slot.good_until for slot in book.idle), "I3: a waiter beside a connection"


def who_waits_is_waiting(book: PoolState) -> None:
    """I5: in line is only who has neither given up nor got anything."""
    for waiter in book.queue.values():
        assert waiter.outcome == "waiting", "I5: in line after the end of its wait"
        assert waiter.slot is None, "I5: in line with a connection"


def connects_are_bounded(book: PoolState) -> None:
    """I9: no more connects are under way than may be, and one for each slow one; none stuck."""
    most = book.options.max_connecting
    most += min(most, book.prospects.slow_connects())
    underway = len(book.connecting.keys() - book.prospects.stuck)
    assert underway <= most, "I9: too many connects at once"


def waiting_has_an_end(book: PoolState) -> None:
    """I12: while somebody waits, something is under way, leased, or due at a known time."""
    if book.queue and book.is_open:
        hope = book.connecting or book.recycling or book.leased or book.closing or book.outage
        assert hope, "I12: a waiter without hope"
