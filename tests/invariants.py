"""What must hold of a book after every event, named after the promises in the README."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolkit._slot import Slot
    from poolkit._state import PoolState

CONTAINERS = ("connecting", "idle", "leased", "recycling", "closing")


def check_book(book: PoolState, now: float, *, at_work: set[Slot] | None = None) -> None:
    """Check every invariant that one look at a book can tell.

    ``at_work`` are the slots whose job has been taken from the book and has not ended yet.
    """
    nothing_is_lost(book, at_work)
    never_above_capacity(book)
    first_come_first_served(book, now)
    outages_are_survivable(book)


def nothing_is_lost(book: PoolState, at_work: set[Slot] | None) -> None:
    """Each slot is where its state says, once; each job has one slot and each such slot one job."""
    seen: set[Slot] = set()
    for name in CONTAINERS:
        for slot in getattr(book, name):
            assert slot.state == name, (slot, name)
            assert slot not in seen, slot
            seen.add(slot)
            assert (slot.connection is None) == (name == "connecting"), slot
    owed = [slot for _, slot in book.jobs]
    assert len(owed) == len(set(owed)), "a slot with two jobs"
    for job, slot in book.jobs:
        expected = {"connect": "connecting", "ping": "recycling", "reset": "recycling"}
        assert slot.state == expected.get(job, "closing"), (job, slot)
    if at_work is not None:
        needy = {*book.connecting, *book.recycling, *book.closing}
        live = {slot for slot in at_work if slot.state != "gone"}
        assert needy == live | set(owed), "a slot waits for a job that nobody does"
        assert not live & set(owed), "a slot with two jobs"
    for waiter in book.queue:
        assert waiter.outcome == "waiting", "a waiter in line whose wait has ended"
        assert waiter.slot is None


def never_above_capacity(book: PoolState) -> None:
    """No connect is owed while every slot is taken."""
    if any(job == "connect" for job, _ in book.jobs):
        assert book.size <= book.options.capacity, "a connect above capacity"


def first_come_first_served(book: PoolState, now: float) -> None:
    """Nobody waits while a connection that may be handed out is idle."""
    if any(now < waiter.deadline for waiter in book.queue):
        assert all(now >= slot.good_until for slot in book.idle), (
            "a waiter beside a good connection"
        )


def outages_are_survivable(book: PoolState) -> None:
    """While somebody waits, something is under way, leased, or due at a known time."""
    if book.queue and book.is_open:
        hope = book.connecting or book.recycling or book.leased or book.closing or book.outage
        assert hope, "a waiter without hope"
    limit = book.options.max_connecting
    assert len(book.connecting.keys() - book.prospects.stuck) <= limit, "too many connects at once"
