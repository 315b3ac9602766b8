"""Idle connections that are kept ready, and successors that are there before the old ones go."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from poolkit import Options, PoolConfigError
from poolkit._core.slot import NEVER
from tests.fakes import gone
from tests.state.test_state import Desk


def resize(desk: Desk, **sizes: Any) -> None:
    """Change the sizes."""
    desk.state.resize(dataclasses.replace(desk.state.options, **sizes), desk.now)
    desk.check()


def work(desk: Desk) -> None:
    """Let every connect and close succeed."""
    while desk.jobs("close") or desk.jobs("connect"):
        while desk.jobs("close"):
            desk.state.close_finished(desk.begin("close"), desk.now)
        while desk.jobs("connect"):
            desk.connect()


def test_headroom_is_kept_beside_what_is_in_use() -> None:
    """Whatever is taken of it is opened anew by upkeep."""
    desk = Desk(min_size=0, min_idle=2, max_size=9).open()
    assert len(desk.idle) == 2
    for leased in range(1, 4):
        desk.take()
        assert not desk.jobs("connect")  # an acquire pays nothing for it
        desk.tick(desk.now + 1.0)
        work(desk)
        assert (len(desk.state.leased), len(desk.idle)) == (leased, 2)


def test_opening_does_not_wait_for_headroom() -> None:
    """It waits for `min_size`."""
    desk = Desk(min_size=1, min_idle=3, max_connecting=3)
    opener = desk.waiter()
    desk.state.open(opener, desk.now)
    assert len(desk.jobs("connect")) == 3
    desk.connect()
    assert opener.outcome == "served"


def test_headroom_stays_within_max_size() -> None:
    """What goes beyond, a caller has to ask for."""
    desk = Desk(min_idle=3, max_size=4, max_overflow=5).open()
    for _ in range(3):
        desk.take()
    desk.tick(1.0)
    work(desk)
    assert (len(desk.idle), desk.state.size) == (1, 4)


def test_min_size_that_is_idle_is_headroom() -> None:
    """The two do not add up."""
    desk = Desk(min_size=5, min_idle=2).open()
    assert len(desk.idle) == 5
    for _ in range(4):
        desk.take()
    desk.tick(1.0)
    assert len(desk.jobs("connect")) == 1


def test_headroom_is_opened_two_at_a_time() -> None:
    """Nobody waits for it: the database is not stormed."""
    desk = Desk(min_size=0, max_size=20).open()
    resize(desk, min_idle=10)
    assert len(desk.jobs("connect")) == 2
    desk.connect()
    assert len(desk.jobs("connect")) == 2


def test_headroom_gives_way_to_who_waits() -> None:
    """A connection that comes goes to the first in line; then another one is opened."""
    desk = Desk(min_size=0, min_idle=1, max_size=3).open()
    desk.take()
    waiter = desk.join()
    slot = desk.connect()
    assert waiter.slot is slot
    work(desk)
    assert len(desk.idle) == 1


def test_headroom_waits_for_the_end_of_an_outage() -> None:
    """One attempt after the other, after pauses; the alarm rings when the next is due."""
    desk = Desk(min_idle=2, backoff_min=1.0, backoff_max=1.0).open()
    desk.take()
    desk.tick(1.0)
    desk.fail()
    desk.tick(1.5)
    assert not desk.jobs("connect")
    assert desk.state.next_tick() == 2.0
    desk.tick(2.0)
    assert len(desk.jobs("connect")) == 1
    work(desk)
    assert len(desk.idle) == 2
    assert desk.state.next_tick() == NEVER


def test_headroom_is_not_closed_as_unused() -> None:
    """Or it would be opened again; what is beyond goes."""
    desk = Desk(min_size=1, min_idle=2, max_idle_time=60.0, max_lifetime=None).open()
    slots = [desk.take(), desk.take()]
    desk.tick(1.0)
    work(desk)
    for slot in slots:
        desk.release(slot)
    assert len(desk.idle) == 4
    for now in (70.0, 140.0, 1000.0):
        desk.tick(now)
        assert not desk.jobs("connect")
        work(desk)
        assert len(desk.idle) == 2
    assert gone(desk.state) == {"unused": 2}


def test_headroom_that_is_being_pinged_is_there() -> None:
    """Nothing is opened in its place, and nothing closed that would be missing if it failed."""
    desk = Desk(min_idle=2, ping_every=30.0, max_idle_time=60.0, max_lifetime=None).open()
    desk.tick(61.0)
    assert (len(desk.jobs("ping")), len(desk.idle)) == (1, 1)
    assert not desk.jobs("connect")
    desk.state.recycle_failed(desk.begin("ping"), desk.now, suspect_others=False)
    assert len(desk.jobs("connect")) == 1


def test_headroom_may_be_changed() -> None:
    """More is opened at once; less closes what nobody uses."""
    desk = Desk(min_size=0, max_idle_time=60.0, max_lifetime=None).open()
    assert not desk.idle
    resize(desk, min_idle=3)
    work(desk)
    assert len(desk.idle) == 3
    resize(desk, min_idle=1)
    assert len(desk.idle) == 3
    desk.tick(60.0)
    assert len(desk.idle) == 1


def test_headroom_above_max_size_is_refused() -> None:
    """It could never be."""
    with pytest.raises(PoolConfigError, match="min_idle=11 is above max_size=10"):
        Options(min_idle=11)
    with pytest.raises(PoolConfigError, match="min_idle=-1 is below 0"):
        Options(min_idle=-1)


# -- successors ----------------------------------------------------------------------------------


def test_headroom_of_one_age_is_replaced_with_no_dip() -> None:
    """Each has its successor first, and all go in time."""
    desk = Desk(jitter=0.0, min_size=0, min_idle=5, max_size=9, max_lifetime=100.0).open()
    while desk.now < 100.0:
        desk.tick(max(desk.now + 0.1, min(desk.now + 1.0, desk.state.next_tick())))
        while desk.jobs("connect"):
            desk.connect()
            assert len(desk.idle) >= 5
        work(desk)
    assert set(desk.idle) == {f"c{n}" for n in range(6, 11)}


def test_successor_of_what_is_in_use_is_there_when_it_comes_back() -> None:
    """Though it is above `min_size`: the next caller finds one open."""
    desk = Desk(jitter=0.0, min_size=0, max_size=3, max_lifetime=100.0, ping_after=None).open()
    desk.join()
    slot = desk.connect()
    desk.tick(91.0)
    assert len(desk.jobs("connect")) == 1
    desk.connect()
    desk.release(slot)
    assert slot.reason == "expired"
    assert desk.idle == ["c2"]
    desk.tick(92.0)
    assert not desk.jobs("connect")


def test_old_connection_is_handed_on_while_its_successor_is_missing() -> None:
    """To its end: who waits does not wait for a connect."""
    desk = Desk(jitter=0.0, min_size=0, max_size=2, max_lifetime=100.0, ping_after=None).open()
    desk.join()
    slot = desk.connect()
    desk.tick(91.0)
    waiter = desk.join()
    desk.release(slot)
    assert waiter.slot is slot
    desk.now = 100.0
    desk.release(slot)
    assert slot.reason == "expired"


def test_old_connection_is_taken_where_no_other_is_idle() -> None:
    """Although there is no room for a successor: who takes it does not wait for a connect."""
    desk = Desk(jitter=0.0, min_size=1, max_size=1, max_lifetime=100.0, ping_after=None).open()
    desk.now = 95.0
    slot = desk.take()
    desk.release(slot)
    assert slot.reason == "expired"


def test_connection_that_never_comes_back_has_one_successor() -> None:
    """Which is not closed as unused and opened again, for ever."""
    desk = Desk(jitter=0.0, min_size=0, max_lifetime=100.0, max_idle_time=60.0).open()
    desk.join()
    desk.connect()
    opened = []
    for now in range(91, 180, 3):
        desk.tick(float(now))
        opened.append(len(desk.jobs("connect")))
        work(desk)
    assert sum(opened) == 1
    assert gone(desk.state) == {}


def test_capacity_leaves_no_room_for_a_successor() -> None:
    """Then two at a time go first."""
    desk = Desk(jitter=0.0, min_size=0, min_idle=4, max_size=4, max_lifetime=100.0).open()
    desk.tick(90.0)
    assert (len(desk.state.closing), len(desk.idle)) == (2, 2)
    assert not desk.jobs("connect")


def test_renewal_over_time_opens_successors_first() -> None:
    """Each goes as soon as its successor is there, at the latest when its time has come."""
    desk = Desk(min_size=3, max_size=4, max_lifetime=None, ping_after=None).open()
    desk.state.renew(desk.now, 30.0)
    for now in (0.0, 10.0, 20.0):
        desk.tick(now)
        assert len(desk.jobs("connect")) == 1
        assert len(desk.idle) == 3
        desk.connect()
        assert len(desk.idle) == 3
        work(desk)
    assert desk.idle == ["c4", "c5", "c6"]
    assert gone(desk.state) == {"stale": 3}


def test_renewal_over_time_without_room_or_server_is_kept_all_the_same() -> None:
    """Past its time none is handed out."""
    desk = Desk(min_size=2, max_size=3, max_lifetime=None, ping_after=None).open()
    desk.state.renew(desk.now, 10.0)
    desk.fail()
    desk.now = 4.9
    assert len(desk.idle) == 2
    desk.tick(5.0)
    assert len(desk.idle) == 1
    desk.tick(10.0)
    assert not desk.idle
