"""Every state that small pools can get into, visited once: the invariants hold in all of them.

And bugs that other pools have had, planted in the shipped code, are found.
"""

from __future__ import annotations

import inspect
import sys
import types
from importlib import import_module
from typing import Any

import pytest

from poolkit import CoDel, Options
from poolkit._core.slot import NEVER
from poolkit._core.state import PoolState
from tests.effort import SHARE
from tests.state.explore import Violation, explore
from tests.state.world import World


def half() -> float:
    """Return what passes for chance."""
    return 0.5


def make(callers: int, kind: type[PoolState] = PoolState, **options: Any) -> World:
    """Return a world, not opened yet."""
    plain = {"max_lifetime": None, "max_idle_time": None, "ping_after": None, "ping_every": None}
    given: dict[str, Any] = {**plain, "min_size": 0, "max_size": 2, **options}
    return World(kind(Options(**given), half), callers)


#: By what is explored: the callers, the options, what may happen besides acquiring and releasing.
WORLDS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "three callers on two connections": (3, {}, {}),
    "pings before each use": (4, {"max_size": 3, "ping_after": 0.0}, {}),
    "overflow, a short queue, and resizing": (
        3,
        {"max_size": 1, "max_overflow": 1, "max_waiting": 1},
        {"sizes": ((1, 0), (1, 1), (2, 0))},
    ),
    "deadlines, slow jobs and outages": (
        3,
        {
            "ping_after": 1.0,
            "connect_timeout": 2.0,
            "backoff_min": 1.0,
            "backoff_max": 1.0,
            "fail_fast_after": 3.0,
        },
        {"patience": (0.0, 2.0, NEVER), "seconds": (1.0,), "late": (2.0,)},
    ),
    "connects that hang": (
        2,
        {
            "max_size": 3,
            "max_connecting": 1,
            "connect_timeout": 9.0,
            "backoff_min": 0.5,
            "backoff_max": 0.5,
        },
        {"seconds": (0.5, 3.0)},
    ),
    "an event loop that is away": (3, {"ping_after": 1.0}, {"blocks": (2.0,), "seconds": (0.5,)}),
    "lifetimes, idle times and uses": (
        2,
        {"max_lifetime": 4.0, "max_idle_time": 2.0, "min_size": 1, "max_uses": 2},
        {"seconds": (1.0,)},
    ),
    "headroom, lifetimes and idle times": (
        2,
        {"max_size": 3, "min_idle": 1, "max_lifetime": 4.0, "max_idle_time": 2.0},
        {"seconds": (1.0,), "sizes": ((2, 0), (3, 0))},
    ),
    "headroom, overflow, outages and renewal over time": (
        2,
        {
            "max_overflow": 1,
            "min_idle": 1,
            "min_size": 1,
            "connect_timeout": 2.0,
            "backoff_min": 1.0,
            "backoff_max": 1.0,
        },
        {"seconds": (1.0,), "spans": (2.0,), "patience": (2.0,)},
    ),
    "shedding, keepalive and renewal over time": (
        3,
        {"shedding": CoDel(target=1.0, interval=2.0), "ping_every": 2.0},
        {"seconds": (1.0,), "spans": (2.0,)},
    ),
    "opened at once, awaited and checked": (
        2,
        {"min_size": 2, "max_size": 2, "backoff_min": 1.0, "backoff_max": 1.0, "ping_after": 1.0},
        {"readiness": True, "seconds": (1.0,)},
    ),
    "nothing kept": (
        3,
        {"min_size": 0, "max_idle_time": 0.0, "ping_after": 1.0},
        {"sizes": ((1, 0), (2, 1)), "patience": (0.0, NEVER)},
    ),
    "one kept": (
        3,
        {"min_size": 1, "max_idle_time": 0.0, "max_size": 3, "ping_after": 1.0},
        {"sizes": ((1, 0), (3, 0)), "seconds": (1.0,)},
    ),
}
#: States in which a planted bug has to be found, and that CI visits of each world; small ones have fewer.
MOST = 2000


@pytest.mark.timeout(900)  # with effort a world has many states
@pytest.mark.parametrize("name", WORLDS)
def test_invariants_hold_in_every_state(name: str) -> None:
    """And from every state everything comes to rest."""
    callers, options, events = WORLDS[name]
    most = round(MOST * SHARE)
    report = explore(make(callers, **options), most=most, events=events)
    print(f"{name}: {report}")
    assert report.complete or report.states == most


# -- planted bugs --------------------------------------------------------------------------------


#: The modules that decide together, each after those it imports.
PARTS = (
    "line",
    "slots",
    "tally",
    "fitness",
    "supply",
    "placement",
    "trust",
    "lifecycle",
    "unreset",
    "state",
)


def planted(old: str, new: str) -> type[PoolState]:
    """Return the state with a bug: the shipped source, with one piece of it replaced."""
    sources = {part: inspect.getsource(import_module(f"poolkit._core.{part}")) for part in PARTS}
    found = sum(source.count(old) for source in sources.values())
    assert found == 1, f"found {found} times: {old}"
    for part, source in sources.items():
        module = sys.modules[f"planted.{part}"] = types.ModuleType(f"planted.{part}")
        code = source.replace(old, new)
        for other in PARTS:
            code = code.replace(
                f"from poolkit._core.{other} import", f"from planted.{other} import"
            )
        code = code.replace("from poolkit._core import", "from planted import")
        exec(compile(code, f"planted.{part}", "exec"), module.__dict__)
        sys.modules.setdefault("planted", types.ModuleType("planted")).__dict__[part] = module
    kind: type[PoolState] = sys.modules["planted.state"].PoolState
    return kind


#: Smaller worlds, in which bugs are found soon that take long in the others.
SMALL: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "a deadline that passes": (
        2,
        {"max_size": 1, "connect_timeout": 2.0},
        {"patience": (2.0,), "late": (2.0,)},
    ),
    "a loop that is away from one connection": (
        2,
        {"max_size": 1, "ping_after": 1.0},
        {"blocks": (2.0,), "seconds": (0.5,)},
    ),
}


def check_found(invariant: str, old: str, new: str, world: str, *, most: int = MOST) -> None:
    """Check that a bug is found, by the invariant that forbids it."""
    callers, options, events = {**WORLDS, **SMALL}[world]
    with pytest.raises(Violation, match=invariant):
        explore(make(callers, planted(old, new), **options), most=most, events=events)


SIMPLE = "three callers on two connections"
TIMED = "deadlines, slow jobs and outages"
HUNG = "connects that hang"
AWAY = "an event loop that is away"
SHEDDING = "shedding, keepalive and renewal over time"
READY = "opened at once, awaited and checked"
HEADROOM = "headroom, lifetimes and idle times"


def test_planted_hand_off_to_a_waiter_that_gave_up_is_found() -> None:
    """The bug of nearly every pool: a connection given to somebody who is not there any more."""
    check_found(
        "I5",
        "self.queue.pop(waiter.key, None)  # it may not have come so far\n",
        "pass\n",
        SIMPLE,
    )


def test_planted_loss_of_what_was_just_given_is_found() -> None:
    """Served and cancelled at once: the connection has to go to the next in line."""
    check_found("I8", 'if slot.state == "leased":  # else', "if False:  # else", SIMPLE)


def test_planted_slot_freed_before_its_close_ends_is_found() -> None:
    """The database would see more connections than there may be."""
    check_found(
        "I7",
        'self._move(slot, "closing")\n        self.to_start.append(("close", slot))',
        'self._move(slot, "gone")\n        self.to_start.append(("close", slot))',
        SIMPLE,
    )


def test_planted_slot_freed_under_a_close_that_was_broken_off_is_found() -> None:
    """The pool closes once more what its holder has not closed to the end."""
    again = 'self._close(slot, "broken")\n        self._follow_up(now)'
    check_found("I7", again, 'self._move(slot, "gone")\n        self._follow_up(now)', SIMPLE)


def test_planted_barging_is_found() -> None:
    """A newcomer goes to the head of the queue."""
    line = "waiter.key = key\n"
    check_found("I4", line, f"{line}        self.queue.move_to_end(key, last=False)\n", SIMPLE)


#: At the head of the queue there is somebody: on the hot edge, and elsewhere.
LATE = {
    "if now >= waiter.deadline or self.line.shedder": "if self.line.shedder",
    "if now >= waiter.deadline:\n": "if False:\n",
}


@pytest.mark.parametrize(
    "first",
    [
        "waiter = next(iter(self.queue.values()))\n",
        "return next(iter(self.queue.values()), None)\n",
    ],
    ids=["written out", "elsewhere"],
)
def test_planted_last_come_first_served_is_found(first: str) -> None:
    """The queue from the wrong end."""
    check_found("I4", first, first.replace("iter(", "reversed("), SIMPLE)


@pytest.mark.parametrize(
    ("invariant", "old", "new"),
    [
        ("I17: too few", "in_use + options.min_idle)", "in_use)"),
        ("I17: closed", "_ready(state) > needed(state) +", "_ready(state) > 0 +"),
        ("I18", "if missing >= 0 and (has_room or", "if False and (has_room or"),
        ("I9: more connects", "return min(state.aging, away_limit(state)) if", "return 5 if"),
    ],
)
def test_planted_carelessness_with_headroom_is_found(invariant: str, old: str, new: str) -> None:
    """None is kept; it is closed and opened again; the old one goes before the new one is there."""
    check_found(invariant, old, new, HEADROOM)


@pytest.mark.parametrize("late", LATE)
def test_planted_service_after_the_deadline_is_found(late: str) -> None:
    """Whom nobody waits for any more."""
    check_found("I5", late, LATE[late], TIMED)


def test_planted_facts_of_what_came_after_the_deadline_are_found() -> None:
    """Told too late: who held the connection has given it back, and nothing is leased."""
    used_at = "self._count_use(slot, now)\n        slot.used_at = slot.job_began_at"
    overdue = "if self.queue and self.line.next_deadline() <= now:"
    early = f"{overdue}\n            self._end_overdue(now)\n        {used_at}"
    check_found("I13", early, used_at, "a deadline that passes")


def test_planted_refusal_of_nobody_is_found() -> None:
    """The policy says that it is time, and nobody listens."""
    asked = "elif self.line.shedder is not None and now >= self._refuse_at(waiter):\n"
    check_found("I12", asked, "elif False:\n", SHEDDING)


def test_planted_forgotten_queue_after_a_close_is_found() -> None:
    """A slot is free, and nobody looks who waits for it."""
    check_found(
        "I12",
        'if slot.state == "closing":\n            self._move(slot, "gone")\n            self._follow_up(now)',
        'if slot.state == "closing":\n            self._move(slot, "gone")',
        SIMPLE,
    )


def test_planted_release_that_forgets_the_queue_is_found() -> None:
    """The hot edge from leased to idle, taken although somebody waits."""
    check_found("I3", "if not self.queue:\n            del", "if True:\n            del", SIMPLE)


def test_planted_storm_of_connects_is_found() -> None:
    """One for each look at the queue, whatever is under way already."""
    check_found(
        "I9", "return len(state.queue) - state.progress.count()", "return len(state.queue)", SIMPLE
    )


def test_planted_haste_of_extra_attempts_is_found() -> None:
    """As soon as one has ended the next begins beside the one that hangs."""
    pace = "due = max(due, state.attempt_at + options.backoff_min)"
    check_found("I9: a hasty", pace, "pass", HUNG)


def test_planted_attempt_for_each_slow_one_without_end_is_found() -> None:
    """A server that is merely slow would be stormed."""
    check_found("I9: too many", "spare + min(slow, most)", "spare + slow", HUNG)


def test_planted_extra_attempt_that_rings_no_alarm_is_found() -> None:
    """It is due by time alone, and nobody comes to look."""
    check_found(
        "I12: a connect was due",
        "return due if min(spare, _wanted(state), state.room) > 0 else NEVER",
        "return NEVER",
        HUNG,
    )


def test_planted_refusal_beside_a_connection_that_is_only_to_be_pinged_is_found() -> None:
    """Whoever does not wait for others would be refused by a healthy pool, for ever."""
    check_found(
        "I3: refused", "limit, len(self.idle) + self.progress.recycles()", "limit, 0", TIMED
    )


def test_planted_reuse_after_a_renewal_is_found() -> None:
    """A connect that began with the old password."""
    check_found(
        "I10",
        "slots = [*self.idle, *self.connecting, *self.recycling, *self.leased]",
        "slots = [*self.idle, *self.recycling, *self.leased]",
        SIMPLE,
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self._heard_from(slot, slot.leased_at)", "self._heard_from(slot, now)"),
        ("elif waiter and is_old:", "elif waiter and False:"),
        (" or now >= self._awake_by:\n", ":\n"),
    ],
)
def test_planted_trust_in_old_news_is_found(old: str, new: str) -> None:
    """The loop was away, and what was heard before counts as if it had not been."""
    check_found("I13", old, new, "a loop that is away from one connection")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("elif slot.unreset and (waiter is None or is_old", "elif slot.unreset and (is_old"),
        ("self._asks_all or self._puts_off_resets", "self._asks_all"),
        ("slot.unreset += 1\n", "pass\n"),
    ],
)
def test_planted_reset_that_is_put_off_for_nobody_is_found(old: str, new: str) -> None:
    """Who was to get the connection as it is has given up, or nobody has waited at all."""
    check_found("I14", old, new, SIMPLE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.uses.recent.append(now - slot.leased_at)\n        slot.", "slot."),
        ("self._count_use(slot, now)\n        self._drop(", "self._drop("),
        ("self.begun[others] += 1\n        self.waits", "self.waits"),
        (
            "self.waits.recent.append(now - waiter.since)\n        slot.leases_left",
            "slot.leases_left",
        ),
    ],
)
def test_planted_time_that_is_not_counted_is_found(old: str, new: str) -> None:
    """On a hot edge or elsewhere."""
    check_found("I15|I6", old, new, SIMPLE)


def test_planted_end_of_the_same_connection_twice_is_found() -> None:
    """A ping that fails after the pool was closed at once."""
    check_found(
        "AssertionError|I7|KeyError",
        'if slot.state == "recycling":\n            self._retire(slot, "broken")',
        'if True:\n            self._retire(slot, "broken")',
        "pings before each use",
    )


def test_planted_reuse_after_a_death_is_found() -> None:
    """Its library has said so while it was leased, or being reset."""
    check_found(
        "I10", "slot.retire_at = -NEVER\n            if slot.state", "if slot.state", SIMPLE
    )


def test_planted_renewal_that_leaves_the_role_of_a_server_out_is_found() -> None:
    """A lease has said that the primary is none any more; its own connection goes, no other."""
    renewed = "if Verdict.STALE in verdicts and slot.generation == self.generation and rested:"
    check_found(
        "I10",
        f"{renewed}\n            self.renew(now)",
        f"{renewed}\n            self.generation += 1",
        SIMPLE,
    )


@pytest.mark.parametrize(
    ("invariant", "old", "new", "world"),
    [
        # A hot edge that keeps what nobody waits for, and the other ways to idle.
        ("I16", "            or options.keeps_none\n", "", "nothing kept"),
        (
            "I16",
            'return "unused" if _ready(state) + (',
            'return "unused" if False and (',
            "nothing kept",
        ),
        # It would be refused, and the connect that it would have waited for be for nobody.
        ("I12", "ready >= self.options.min_size", "ready > self.options.min_size", READY),
        ("I12", "self.line.add_opener(waiter)\n        self._follow_up(now)", "pass", READY),
        ("I12: told before", "ready >= self.options.min_size", "True", READY),
    ],
)
def test_planted_neglect_of_what_is_to_be_there_is_found(
    invariant: str, old: str, new: str, world: str
) -> None:
    """More connections than anybody asked for, or a caller who waits for them in vain."""
    check_found(invariant, old, new, world)
